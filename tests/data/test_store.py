"""The store: made once, whole or not at all, and never wrong; digests of code; files replaced in one step."""

import errno
import gc
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from infocam_utils.data import store as module
from infocam_utils.data.store import Draft, Store, code_digest

KEY = {"n": 1000, "settings": {"rate": 0.1, "name": "ü"}, "list": [1, None, True]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


class Maker:
    """Counts its calls; makes one array in the draft and returns another."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, draft: Draft) -> dict[str, torch.Tensor]:
        self.calls += 1
        draft.empty("counted", (4, 250), np.int32)[:] = np.arange(1000).reshape(4, 250)
        return {"layer.0.weight": torch.linspace(0, 1, 12).reshape(3, 4)}


def refusing(number: int):
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def entry_of(store: Store) -> Path:
    (folder,) = (path for path in store.folder.iterdir() if path.is_dir())
    return folder


WHOLE = {
    "counted": np.arange(1000).reshape(4, 250).tolist(),
    "layer.0.weight": torch.linspace(0, 1, 12).reshape(3, 4).tolist(),
}


def whole(arrays: dict[str, np.ndarray]) -> bool:
    return {name: array.tolist() for name, array in arrays.items()} == WHOLE


def test_an_entry_is_made_once_and_mapped_read_only(store: Store, tmp_path: Path) -> None:
    make = Maker()
    first, second = store.get("demo", KEY, make), Store(str(tmp_path)).get("demo", KEY, make)
    assert make.calls == 1
    for arrays in (first, second):
        assert whole(arrays)
        assert all(isinstance(array, np.memmap) and not array.flags.writeable for array in arrays.values())
    entry = entry_of(store)
    files = {path.name: module.file_digest(path) for path in entry.glob("*.npy")}
    assert json.loads((entry / "entry.json").read_text()) == {"key": KEY, "files": files}
    assert (entry / "counted.npy").stat().st_size == 128 + 4000  # not a byte more is reserved


def test_an_entry_is_found_by_everything_in_the_key_and_nothing_else(store: Store) -> None:
    made: list[object] = []
    one, other, short = {"n": 2, "m": 1}, {"n": 3, "m": 1}, {"n": 2}
    different = [("ab", one), ("ab", other), ("ab", short), ("abc", one)]
    for kind, key in [*different, ("ab", {"m": 1, "n": 2})]:  # the first again
        store.get(kind, key, lambda draft, asked=(kind, key): made.append(asked))
    assert made == different


def test_shapes_and_kinds_of_numbers_come_back(store: Store) -> None:
    given = {
        "scalar": torch.tensor(3),
        "none": np.zeros((0, 7), np.float32),
        "flags": torch.tensor([True, False]),
        "half": torch.ones(2, 3, dtype=torch.float16, requires_grad=True),
        "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "view": torch.arange(100_000)[10:20:2],
    }
    arrays = store.get("kinds", {}, lambda draft: given)
    for name, value in given.items():
        expected = value.detach().numpy() if isinstance(value, torch.Tensor) else value
        assert arrays[name].dtype == expected.dtype
        np.testing.assert_array_equal(arrays[name], expected, strict=True)
    assert (entry_of(store) / "view.npy").stat().st_size < 1000  # not what it is a view of
    copies = module.tensors(arrays)
    copies["flags"].zero_()  # can be written, the file cannot
    assert store.get("kinds", {}, Maker())["flags"].tolist() == [True, False]
    assert copies["scalar"].shape == ()
    assert copies["half"].dtype == torch.float16


@pytest.mark.parametrize("value", [Path("x"), math.nan, {1, 2}, np.int64(3)])
def test_a_key_that_is_not_json_is_refused(store: Store, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match="JSON"):
        store.get("ones", {"value": value}, Maker())


def test_an_array_is_given_once(store: Store) -> None:
    def make(draft: Draft) -> dict[str, np.ndarray]:
        draft.empty("x", (np.int64(2), 3), np.float32)[:] = 1
        return {"x": np.ones(2)} if twice else {}

    twice = True
    with pytest.raises(FileExistsError, match=r"x\.npy"):
        store.get("once", {}, make)
    twice = False
    assert store.get("once", {}, make)["x"].shape == (2, 3)


def test_an_entry_is_kept_when_it_is_the_reader_who_lacks_something(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Maker()
    store.get("demo", KEY, make)
    monkeypatch.setattr(module, "file_digest", refusing(errno.EMFILE))
    with pytest.raises(OSError, match="Too many open files"):
        store.get("demo", KEY, make)
    monkeypatch.undo()
    assert whole(store.get("demo", KEY, make))
    assert make.calls == 1


def check_made_again(store: Store, damage: str) -> None:
    make = Maker()
    for _ in range(2):
        assert whole(store.get("demo", KEY, make)), damage
        assert make.calls == 1, f"{damage} was not noticed, or not mended"


FILES = pytest.mark.parametrize("file", ["counted.npy", "layer.0.weight.npy", "entry.json"])


@FILES
def test_a_file_cut_at_any_length_is_made_again(store: Store, file: str) -> None:
    store.get("demo", KEY, Maker())
    path = entry_of(store) / file
    length = path.stat().st_size
    for cut in sorted({0, 1, 127, 128, 129, *range(0, length, length // 8), length - 1}):
        os.truncate(path, cut)
        check_made_again(store, f"{file} cut to {cut} of {length} bytes")


@FILES
def test_flipped_bytes_are_noticed_wherever_they_are(store: Store, file: str) -> None:
    store.get("demo", KEY, Maker())
    path, rng = entry_of(store) / file, np.random.default_rng(0)
    for place in rng.integers(0, path.stat().st_size, 30).tolist():
        content = bytearray(path.read_bytes())
        content[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(content)
        check_made_again(store, f"byte {place} of {file}")


def test_files_that_are_missing_added_or_of_another_shape_are_made_again(store: Store) -> None:
    store.get("demo", KEY, Maker())
    entry = entry_of(store)
    text = (entry / "entry.json").read_text()
    for damage, act in {
        "array missing": lambda: (entry / "counted.npy").unlink(),
        "description missing": lambda: (entry / "entry.json").unlink(),
        "array added": lambda: np.save(entry / "more.npy", np.zeros(3)),
        "junk added": lambda: (entry / "x.tmp").write_text("x"),
        "another shape": lambda: np.save(entry / "counted.npy", np.arange(1000, dtype=np.int32)),
        "text for an array": lambda: (entry / "counted.npy").write_text("<html>"),
        "folder for an array": lambda: ((entry / "counted.npy").unlink(), (entry / "counted.npy").mkdir()),
        "another key": lambda: (entry / "entry.json").write_text(text.replace('"n": 1000', '"n": 1001')),
        "no JSON": lambda: (entry / "entry.json").write_bytes(b"\xff"),
        "JSON of another form": lambda: (entry / "entry.json").write_text("[]"),
        "all gone": lambda: shutil.rmtree(entry),
    }.items():
        act()
        check_made_again(store, damage)


def test_fresh_makes_what_is_older_again_and_only_that(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Maker()
    store.get("demo", KEY, make)
    os.utime(entry_of(store) / "entry.json", (time.time() - 100,) * 2)
    monkeypatch.setenv("INFOCAM_FRESH_SINCE", "")
    store.get("demo", KEY, make)
    assert make.calls == 1
    monkeypatch.setenv("INFOCAM_FRESH_SINCE", str(time.time() - 50))
    for _ in range(2):
        assert whole(store.get("demo", KEY, make))
        assert make.calls == 2


def test_a_clock_that_goes_back_costs_work_and_nothing_else(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour back since ``--fresh``: what is made now seems older than that, so it is made once more."""
    monkeypatch.setenv("INFOCAM_FRESH_SINCE", str(time.time() + 3600))
    make = Maker()
    for calls in (1, 2):
        assert whole(store.get("demo", KEY, make))
        assert make.calls == calls
    monkeypatch.setenv("INFOCAM_FRESH_SINCE", str(time.time() - 1))
    assert whole(store.get("demo", KEY, make))
    assert make.calls == 2


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.suffix != ".lock")


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_a_maker_that_fails_leaves_nothing(store: Store, error: BaseException) -> None:
    def make(draft: Draft) -> None:
        draft.empty("x", (10,), np.float32)[:] = 1
        raise error

    with pytest.raises(type(error)):
        store.get("demo", KEY, make)
    assert left(store.folder) == []


def test_a_full_disk_is_an_error_that_names_the_folder(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", refusing(errno.ENOSPC), raising=False)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left.*cache: make room[^:]+$") as caught:
        store.get("outer", KEY, lambda draft: store.get("demo", KEY, Maker()))
    assert caught.value.errno == errno.ENOSPC
    assert left(store.folder) == []


def test_space_is_reserved_unless_the_file_system_cannot(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sizes(draft: Draft) -> None:
        draft.empty("x", (1000, 1000), np.float32)
        blocks.append((draft.folder / "x.npy").stat().st_blocks * 512)

    blocks: list[int] = []
    store.get("reserved", {}, sizes)
    assert blocks[0] >= 4_000_000
    monkeypatch.setattr(os, "posix_fallocate", refusing(errno.EOPNOTSUPP), raising=False)
    assert whole(store.get("demo", KEY, Maker()))
    monkeypatch.delattr(os, "posix_fallocate")
    assert whole(store.get("demo", {}, Maker()))


@pytest.fixture
def small_disk(tmp_path: Path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_disk_that_is_really_full_ends_in_an_error_and_not_in_a_signal(small_disk: Path) -> None:
    store = Store(small_disk)
    free = shutil.disk_usage(small_disk).free
    for make in (
        lambda draft: {"x": np.ones(1_000_000)},
        lambda draft: draft.empty("x", (8_000_000,), np.uint8).fill(1),
        lambda draft: {"a": np.ones(200_000), "b": np.ones(200_000)},  # 1.6 MB each: the second is too much
    ):
        with pytest.raises(OSError, match="make room"):
            store.get("large", {}, make)
        assert left(store.folder) == []
        gc.collect()  # the error's traceback holds the memory maps
    assert shutil.disk_usage(small_disk).free > free - 50_000
    assert whole(store.get("demo", KEY, Maker()))


def _killed(folder: Path) -> None:
    def make(draft: Draft) -> None:
        draft.empty("x", (1000,), np.float64)
        os._exit(9)

    Store(folder).get("killed", {}, make)


def test_what_a_killed_process_left_goes_with_the_next_entry_and_work_in_progress_stays(
    store: Store, tmp_path: Path
) -> None:
    for _ in range(2):  # the second finds what the first left in its own place
        process = multiprocessing.get_context("fork").Process(target=_killed, args=(tmp_path,))
        process.start()
        process.join(30)
        assert process.exitcode == 9
    assert [path.suffix for path in store.folder.iterdir() if path.is_dir()] == [".draft"]

    def outer(draft: Draft) -> dict[str, np.ndarray]:
        draft.empty("x", (3,), np.float32)[:] = 1
        inner = store.get("inner", {}, lambda inner: {"y": np.full(3, 2.0, np.float32)})
        return {"y": inner["y"]}

    arrays = store.get("outer", {}, outer)
    assert [arrays["x"].tolist(), arrays["y"].tolist()] == [[1, 1, 1], [2, 2, 2]]
    kinds = {path.name.split("-")[0] for path in store.folder.iterdir() if path.is_dir()}
    assert kinds == {"inner", "outer"}


def _slow(folder: Path) -> list[int]:
    def make(draft: Draft) -> dict[str, np.ndarray]:
        with (folder / "made").open("a") as stream:
            stream.write("once")
        time.sleep(0.3)
        return {"x": np.arange(3)}

    return Store(folder).get("shared", {}, make)["x"].tolist()


def test_processes_do_the_work_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:  # a fresh interpreter would import torch
        assert pool.map(_slow, [tmp_path] * 3, chunksize=1) == [[0, 1, 2]] * 3
    assert (tmp_path / "made").read_text() == "once"


def test_arrays_in_use_outlive_their_entry(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = store.get("demo", KEY, Maker())
    monkeypatch.setenv("INFOCAM_FRESH_SINCE", str(time.time() + 1000))
    store.get("demo", KEY, lambda draft: {"x": np.zeros(5)})
    assert whole(before)


def test_roots_prefer_the_parameter_then_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for root, variable in ((module.data_root, "INFOCAM_DATA"), (module.output_root, "INFOCAM_OUTPUT")):
        monkeypatch.setenv(variable, str(tmp_path / "env"))
        assert root("given") == tmp_path / "given"
        assert root() == tmp_path / "env"
        monkeypatch.delenv(variable)
    assert Store("given").folder == tmp_path / "given" / "cache"
    assert module.data_root().name == "data"
    monkeypatch.setattr(module, "checkout", lambda: None)
    assert module.data_root() == Path.home() / ".cache" / "infocam"
    assert module.output_root() == tmp_path / "runs" / "interactive"


def test_a_checkout_has_notebooks_and_a_project_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "infocam_utils")
    assert module.checkout() is None
    (tmp_path / "notebooks").mkdir()
    assert module.checkout() is None
    (tmp_path / "pyproject.toml").touch()
    assert module.checkout() == tmp_path
    (tmp_path / "notebooks").rmdir()
    assert module.checkout() is None


def test_a_write_that_fails_midway_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = module.atomic_write(tmp_path / "a" / "x.txt", "old content")
    write = Path.write_bytes

    def half(self: Path, content: bytes) -> None:
        write(self, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="full"):
        module.atomic_write(path, "the new content")
    assert path.read_text() == "old content"
    assert os.listdir(path.parent) == ["x.txt"]
    monkeypatch.undo()
    assert module.atomic_write(path, b"new").read_text() == "new"


def test_file_digest_is_sha256_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert module.file_digest(tmp_path / "abc") == known


PACKAGE = {
    "__init__.py": "",
    "root.py": "x = 1",
    "alone.py": "x = 1",
    "a/__init__.py": "from . import settings",
    "a/settings.py": "x = 1",
    "a/used.py": "import os\nfrom tiny import root",
    "a/deep/__init__.py": "",
    "a/deep/down.py": "from ...b.relative import value",
    "b/__init__.py": "",
    "b/relative.py": "from . import sibling\nvalue = 1",
    "b/sibling.py": "def f():\n    import tiny.b.late as late",
    "b/late.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tiny.b.types import T",
    "b/types.py": "T = int",
    "b/unused.py": "x = 1",
    "start.py": '"""Doc."""\nfrom tiny.a.used import root as r, os\nfrom tiny.a.deep import down',
    "lazy.py": "from tiny import anything",
    "named.py": "import tiny",
}
BEHIND_START = {*PACKAGE} - {"alone.py", "b/unused.py", "lazy.py", "named.py"}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "tiny"
    for name, text in PACKAGE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(module, "PACKAGE", folder)
    code_digest.cache_clear()
    yield folder
    code_digest.cache_clear()


def behind(folder: Path, *modules: str) -> set[str]:
    """The files that change the digest of `modules` when their code changes."""
    digests = {}
    for name, text in PACKAGE.items():
        (folder / name).write_text(text + "\nmore = 1\n")
        code_digest.cache_clear()
        digests[name] = code_digest(*modules)
        (folder / name).write_text(text)
    code_digest.cache_clear()
    return {name for name in PACKAGE if digests[name] != code_digest(*modules)}


def test_code_digest_follows_every_import_and_nothing_else(tiny: Path) -> None:
    assert behind(tiny, "start") == BEHIND_START
    assert behind(tiny, "alone") == {"__init__.py", "alone.py"}
    assert behind(tiny, "b.types") == {"__init__.py", "b/__init__.py", "b/types.py"}
    assert behind(tiny, "alone", "b.types") == behind(tiny, "alone") | behind(tiny, "b.types")
    assert behind(tiny, "b") == {"__init__.py", "b/__init__.py"}
    # What the root package is asked for by a name that is no module, any module may be behind.
    assert behind(tiny, "lazy") == behind(tiny, "named") == behind(tiny) == {*PACKAGE}


def test_code_digest_follows_the_code_not_its_layout(tiny: Path) -> None:
    before = code_digest("start")
    (tiny / "root.py").write_text('"""What x is."""\n\nx=1  # one\n')
    code_digest.cache_clear()
    assert code_digest("start") == before
    for other in ("x = 1\nprint(x)", "x = 1\nx"):  # no docstring
        (tiny / "root.py").write_text(other)
        code_digest.cache_clear()
        assert code_digest("start") != before
    (tiny / "root.py").write_text("x = 1")
    code_digest.cache_clear()
    assert code_digest("start") == before
    (tiny / "root.py").write_text("x = 2")
    assert code_digest("start") == before  # a process has one digest, as it has one version of the code
    code_digest.cache_clear()
    assert code_digest("start") != before


def test_code_digest_refuses_what_is_not_there(tiny: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"no module tiny\.b\.other"):
        code_digest("alone", "b.other")


def test_the_digest_of_real_modules_holds_what_they_load() -> None:
    listing = "import sys; import infocam_utils.data.minibirds; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True).stdout
    loaded = {name for name in out.split() if name.startswith("infocam_utils")}
    assert "infocam_utils.data.drawing" in loaded
    assert loaded <= module._code_behind(("data.minibirds",)).keys()


def test_progress_is_a_json_line_or_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INFOCAM_PROGRESS", raising=False)
    module.report_progress("epoch", 1, 2)
    monkeypatch.setenv("INFOCAM_PROGRESS", str(tmp_path / "p"))
    module.report_progress("epoch", 1, 2)
    module.report_progress("done")
    lines = [json.loads(line) for line in (tmp_path / "p").read_text().splitlines()]
    done = {"text": "done", "done": None, "total": None}
    assert lines == [{"text": "epoch", "done": 1, "total": 2}, done]


def test_an_entry_travels_whole_or_not_at_all(tmp_path):
    there, here = Store(tmp_path / "there"), Store(tmp_path / "here")
    with module.recording() as used:
        there.get("ones", {"n": 2}, lambda draft: {"layer.0.weight": np.ones(2)})
    (entry,) = used
    files = {path.name: path.read_bytes() for path in entry.iterdir()}
    assert not here.has("ones", {"n": 2})
    for wrong, message in (
        (files | {"layer.0.weight.npy": files["layer.0.weight.npy"][:-1] + b"x"}, "damaged"),
        (files | {"../outside.npy": b""}, "files that no entry has"),
        ({"layer.0.weight.npy": b""}, "none that describes it"),
        ({"entry.json": files["entry.json"]}, f"^{entry.name} came damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            here.bring(entry.name, wrong)
        assert not [path for path in here.folder.glob("*") if path.suffix != ".lock"]
    with pytest.raises(ValueError, match="not the name of its key"):
        here.bring("ones-" + 24 * "0", files)
    here.bring(entry.name, files)
    place = (here.folder / entry.name).stat().st_ino
    here.bring(entry.name, files)  # a second time nothing is done
    assert (here.folder / entry.name).stat().st_ino == place
    assert here.has("ones", {"n": 2})
    assert here.get("ones", {"n": 2}, lambda draft: 1 / 0)["layer.0.weight"].tolist() == [1, 1]
    assert not (tmp_path / "outside.npy").exists()


def test_what_comes_to_a_full_disk_is_told_with_the_folder(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.get("ones", {}, lambda draft: {"x": np.ones(2)})
    entry = entry_of(store)
    files = {path.name: path.read_bytes() for path in entry.iterdir()}
    monkeypatch.setattr(Path, "mkdir", refusing(errno.ENOSPC))
    with pytest.raises(OSError, match=rf"No space left on device in {tmp_path}/there/cache: make room"):
        Store(tmp_path / "there").bring(entry.name, files)
