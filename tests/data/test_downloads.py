"""Downloads against a web server on loopback: whole, interrupted, refused, damaged, hostile."""

import errno
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import struct
import tarfile
import threading
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
from small_sets import write_cub, write_tiny
from torchvision.datasets import MNIST

from infocam_utils.data import downloads
from infocam_utils.data.downloads import get, status
from infocam_utils.data.sets import CUB, SETS, TinyImageNet, load_images


class Site:
    """What the server serves and how it misbehaves."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None  # bytes after which nothing more comes
        self.cuts = 10**6  # for so many requests
        self.hang = 0.0  # seconds until the connection is closed then
        self.code = 200
        self.length: str | None = "right"  # the header Content-Length
        self.asked = 0
        self.address = ""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    place = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            place.asked += 1
            body = place.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            self.send_response(place.code)
            if place.length is not None:
                self.send_header("Content-Length", place.length.replace("right", str(len(body))))
            self.end_headers()
            if place.cut is not None and place.asked <= place.cuts:
                self.wfile.write(body[: place.cut])
                self.wfile.flush()
                time.sleep(place.hang)
            else:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(pooch.core, "time", types.SimpleNamespace(sleep=lambda seconds: None))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    place.address = f"http://127.0.0.1:{server.server_port}"
    yield place
    server.shutdown()
    server.server_close()


def packed(folder: Path, kind: str) -> bytes:
    """The archive of a folder, under its own name, as its owners would pack it."""
    archive = shutil.make_archive(str(folder.parent / "packed"), kind, folder.parent, folder.name)
    return Path(archive).read_bytes()


@pytest.fixture
def cub(site: Site, tmp_path: Path) -> str:
    site.files["/CUB_200_2011.tgz"] = packed(write_cub(tmp_path / "source"), "gztar")
    return site.address + "/CUB_200_2011.tgz"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def left(data: Path) -> list[str]:
    """Everything in the data directory but locks."""
    return sorted(
        str(path.relative_to(data)) for path in data.rglob("*") if path.is_file() and path.suffix != ".lock"
    )


def state(data: Path, name: str) -> str:
    return next(row["state"] for row in status(data) if row["name"] == name)


def test_a_whole_run_with_the_cub_layout(
    site: Site, cub: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, seen, content = tmp_path / "data", [], site.files["/CUB_200_2011.tgz"]
    size, checksum = len(content), sha256(content)
    folder = get("cub200", data, cub, checksum.upper(), lambda *step: seen.append(step))
    assert folder == data / "cub200"
    assert seen[-1] == (size, size)
    assert max(done for done, _ in seen) == size
    assert len(CUB(folder)) == 4
    assert load_images("cub200", "train", data, size=8).boxes is not None
    record = json.loads((data / "cub200.json").read_text())
    assert record.pop("utc").endswith("Z")
    assert record == {
        "name": "cub200",
        "url": cub,
        "bytes": size,
        "sha256": checksum,
        "md5": hashlib.md5(content).hexdigest(),
        "checked against": f"sha256 {checksum}",
        "official": False,
    }
    assert not [name for name in left(data) if name.startswith(".downloads")]
    get("cub200", data, cub, checksum)  # there and verified: no second request
    assert site.asked == 1
    assert state(data, "cub200") == "there, verified"
    assert capfd.readouterr() == ("", "")  # pooch says nothing of its own


def test_a_whole_run_with_the_tiny_imagenet_layout(site: Site, tmp_path: Path) -> None:
    site.files["/tiny.zip"] = packed(write_tiny(tmp_path / "source"), "zip")
    folder = get("tiny-imagenet", tmp_path / "data", site.address + "/tiny.zip", into="tiny-2")
    assert len(TinyImageNet(folder)) == 4
    assert state(tmp_path / "data", "tiny-2") == "there, verified"
    row = next(row for row in status(tmp_path / "data") if row["name"] == "tiny-2")
    assert (row["title"], row["size"]) == ("Tiny-ImageNet", "0 MB")


def test_a_download_that_stops_is_tried_again(site: Site, cub: str, tmp_path: Path) -> None:
    site.cut, site.cuts = 1000, 2
    assert len(CUB(get("cub200", tmp_path / "data", cub, into="small"))) == 4
    assert site.asked == 3


def test_after_any_failure_the_next_good_attempt_succeeds(site: Site, cub: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    site.cut = 1000
    with pytest.raises(ConnectionError, match=r"cannot be fetched \(.*\); .*--url"):
        get("cub200", data, cub, into="small")
    assert site.asked == 3
    assert left(data) == []
    site.cut, site.length = None, "abc"
    with pytest.raises(ConnectionError, match="cannot be fetched"):
        get("cub200", data, cub, into="small")
    site.length, site.code = "right", 503
    with pytest.raises(ConnectionError, match=r"cannot be fetched \(503 Server Error"):
        get("cub200", data, cub, into="small")
    site.code = 200

    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get("cub200", data, cub, into="small", progress=interrupt)
    assert left(data) == []
    assert state(data, "cub200") == "missing"
    site.length = None  # the server does not say how much will come
    assert len(CUB(get("cub200", data, cub, into="small"))) == 4


def test_what_a_killed_process_left_is_swept_up(site: Site, cub: str, tmp_path: Path) -> None:
    workshop = tmp_path / "data" / ".downloads" / "small"
    (workshop / "draft" / "unpacked" / "CUB_200_2011").mkdir(parents=True)
    (workshop / "draft" / "tmp1234").write_bytes(b"half")
    get("cub200", tmp_path / "data", cub, into="small")
    assert not workshop.exists()


def test_a_server_that_falls_silent(
    site: Site, cub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_TIMEOUT", 0.2)
    site.cut, site.hang = 1000, 1.0
    with pytest.raises(ConnectionError, match=r"\(.*timed out.*\)"):
        get("cub200", tmp_path / "data", cub, into="small")


def test_an_interrupt_while_unpacking_keeps_the_archive(
    site: Site, cub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", interrupt)
        with pytest.raises(KeyboardInterrupt):
            get("cub200", tmp_path / "data", cub, into="small")
    assert not list((tmp_path / "data").glob("**/CUB_200_2011"))
    get("cub200", tmp_path / "data", cub, into="small")
    assert site.asked == 1


def test_a_wrong_checksum_removes_the_file(site: Site, cub: str, tmp_path: Path) -> None:
    found = sha256(site.files["/CUB_200_2011.tgz"])
    with pytest.raises(ValueError, match=rf"has sha256 {found}, expected {'0' * 64}"):
        get("cub200", tmp_path / "data", cub, "0" * 64)
    assert left(tmp_path / "data") == []
    assert site.asked == 1  # it would not be another one the second time


def test_the_official_size_and_checksum_are_checked(
    site: Site, cub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"has \d+ bytes, the official archive has 1150585339.*--into"):
        get("cub200", tmp_path / "data", cub)
    assert left(tmp_path / "data") == []
    assert site.asked == 1
    site.length = None  # then the size is known only when all has come
    with pytest.raises(ValueError, match=r"has \d+ bytes, the official archive has 1150585339.*--into"):
        get("cub200", tmp_path / "data", cub)
    size = len(site.files["/CUB_200_2011.tgz"])
    fake = replace(SETS["cub200"], url=cub, bytes=size)
    monkeypatch.setitem(SETS, "cub200", fake)
    with pytest.raises(ValueError, match=f"expected {fake.md5}"):
        get("cub200", tmp_path / "data")
    right = hashlib.md5(site.files["/CUB_200_2011.tgz"]).hexdigest()
    monkeypatch.setitem(SETS, "cub200", replace(fake, md5=right))
    get("cub200", tmp_path / "data")
    assert json.loads((tmp_path / "data" / "cub200.json").read_text())["checked against"] == f"md5 {right}"
    assert json.loads((tmp_path / "data" / "cub200.json").read_text())["official"] is True


def test_the_first_download_sets_the_checksum_for_the_next(site: Site, cub: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.rmtree(get("cub200", data, cub, into="small"))
    site.files["/CUB_200_2011.tgz"] = packed(write_cub(tmp_path / "other", boxes=False), "gztar")
    with pytest.raises(ValueError, match=r"has sha256 .*: another archive, or damaged"):
        get("cub200", data, cub, into="small")


@pytest.mark.parametrize("kind", ["gztar", "zip"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "a web page"])
def test_a_damaged_archive_leaves_nothing(site: Site, tmp_path: Path, kind: str, damage: str) -> None:
    content = packed(write_cub(tmp_path / "source"), kind)
    middle = len(content) // 2
    site.files["/a"] = {
        "truncated": content[:middle],
        "a web page": b"<html>please log in</html>",
        "flipped": content[:middle] + bytes(99) + content[middle + 99 :],
    }[damage]
    with pytest.raises(ValueError, match=r"/a cannot be unpacked \(.*\)\. Nothing of it was kept; try again"):
        get("cub200", tmp_path / "data", site.address + "/a", into="small")
    assert left(tmp_path / "data") == []


def _tar(*members: tarfile.TarInfo, content: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def _zip(*names: str, content: bytes = b"x") -> bytearray:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return bytearray(stream.getvalue())


def _patched(archive: bytearray, local: int, central: int, value: int) -> bytes:
    """A zip file with a two-byte field of its one member changed in both of its headers."""
    start = archive.index(b"PK\x01\x02")
    archive[local : local + 2] = archive[start + central : start + central + 2] = struct.pack("<H", value)
    return bytes(archive)


def _dated(moment: float) -> tarfile.TarInfo:
    member = tarfile.TarInfo("good/file")
    member.mtime = moment
    return member


STRANGE: dict[str, Callable[[], bytes]] = {
    "hard link to a missing member": lambda: _tar(_link("good/link", "good/none", tarfile.LNKTYPE)),
    "encrypted zip": lambda: _patched(_zip("good/file"), 6, 8, 1),
    "unknown method": lambda: _patched(_zip("good/file"), 8, 10, 99),
    "file below a file": lambda: _tar(tarfile.TarInfo("good"), tarfile.TarInfo("good/file")),
    "zipped file below a file": lambda: bytes(_zip("good", "good/file")),
    "too long a name": lambda: _tar(tarfile.TarInfo("x" * 300)),
    "too long a zipped name": lambda: bytes(_zip("x" * 300)),
    "bad date": lambda: _tar(_dated(1e20)),
    "device": lambda: _tar(_link("good/null", "", tarfile.CHRTYPE)),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_strange_archive_is_one_clear_error_and_the_next_try_starts_anew(
    site: Site, cub: str, tmp_path: Path, kind: str
) -> None:
    site.files["/a"] = STRANGE[kind]()
    with pytest.raises(ValueError, match=r"/a cannot be unpacked \(.*\)\. Nothing of it was kept"):
        get("cub200", tmp_path / "data", site.address + "/a", into="small")
    assert left(tmp_path / "data") == []
    site.files["/a"] = site.files["/CUB_200_2011.tgz"]
    assert len(CUB(get("cub200", tmp_path / "data", site.address + "/a", into="small"))) == 4


@pytest.mark.parametrize(
    "content",
    [
        *(_tar(tarfile.TarInfo(name)) for name in ("../evil", "/evil", "good/../../evil")),
        *(bytes(_zip("good/file", name)) for name in ("../evil", "/evil", "..\\evil", "C:\\evil")),
        *(_tar(_link("good/link", to, tarfile.SYMTYPE)) for to in ("../../evil", "/etc")),
        _tar(_link("good/link", "../../evil", tarfile.LNKTYPE)),
    ],
    ids=lambda content: "archive",  # its bytes hold the second in which it was made
)
def test_an_archive_that_escapes_is_refused(site: Site, tmp_path: Path, content: bytes) -> None:
    site.files["/a"] = content
    with pytest.raises(ValueError, match=r"would write outside its folder|AbsoluteLink|LinkOutside"):
        get("cub200", tmp_path / "data", site.address + "/a", into="small")
    assert left(tmp_path) == []


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_bomb_is_refused_before_it_is_written(
    site: Site, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = bytes(110_000_000)
    bomb = _zip("zeros", content=zeros) if kind == "zip" else _tar(tarfile.TarInfo("zeros"), content=zeros)
    site.files["/a"] = bytes(bomb)
    for packed_file in (zipfile.ZipFile, tarfile.TarFile):
        monkeypatch.setattr(packed_file, "extractall", None)
    assert len(site.files["/a"]) < 200_000
    with pytest.raises(ValueError, match=r"holds more than can be right: over 10\d MB or 1000000 files"):
        get("cub200", tmp_path / "data", site.address + "/a", into="small")
    assert left(tmp_path) == []


@pytest.mark.parametrize(("field", "bound"), [("unpacked", 5_000), ("files", 10)])
def test_the_table_bounds_the_official_archive(
    site: Site, cub: str, tmp_path: Path, field: str, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = site.files["/CUB_200_2011.tgz"]
    md5 = hashlib.md5(content).hexdigest()
    fake = replace(SETS["cub200"], url=cub, bytes=len(content), md5=md5)
    monkeypatch.setitem(SETS, "cub200", replace(fake, **{field: bound}))
    with pytest.raises(ValueError, match="holds more than can be right"):
        get("cub200", tmp_path / "data")
    assert left(tmp_path / "data") == []
    monkeypatch.setitem(SETS, "cub200", fake)
    get("cub200", tmp_path / "data")


@pytest.mark.parametrize("when", ["before", "while unpacking"])
def test_no_space_is_said_up_front(
    site: Site, cub: str, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([1000] if when == "before" else [10**12, 1000])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=next(answers)))
    with pytest.raises(OSError, match=r"MB are needed, but 0 MB are free in .*make room") as caught:
        get("cub200", tmp_path / "data", cub, into="small")
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert not (tmp_path / "data" / "small").exists()
    asked = site.asked
    get("cub200", tmp_path / "data", cub, into="small")
    assert site.asked - asked == (1 if when == "before" else 0)  # what had come was not fetched again


def test_404_and_an_address_without_a_server(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match=r"answers 404 Not Found\); .* --url"):
        get("cub200", tmp_path / "data", site.address + "/nothing.tgz", into="small")
    assert site.asked == 1
    with pytest.raises(ConnectionError, match="cannot be fetched"):
        get("cub200", tmp_path / "data", "http://127.0.0.1:9/x.tgz", into="small")
    with pytest.raises(ConnectionError, match=r"cannot be fetched .*No such file"):
        get("cub200", tmp_path / "data", (tmp_path / "none.tgz").as_uri(), into="small")
    assert left(tmp_path / "data") == []


def test_a_file_address(tmp_path: Path) -> None:
    size, seen = len(packed(write_cub(tmp_path / "source"), "gztar")), []
    address = (tmp_path / "source" / "packed.tar.gz").as_uri()
    folder = get("cub200", tmp_path / "data", address, None, lambda *step: seen.append(step), into="small")
    assert len(CUB(folder, "test")) == 2
    assert seen == [(size, size)]
    with pytest.raises(ValueError, match=rf"has {size} bytes, the official archive has 1150585339"):
        get("cub200", tmp_path / "data", address)


def test_a_folder_put_there_by_hand_is_left_alone(site: Site, cub: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "cub200").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="was not put there by this command"):
        get("cub200", data, cub, "0" * 64)
    assert state(data, "cub200") == "there, not verified"
    get("cub200", data, cub, into="small")
    with pytest.raises(FileExistsError, match="not what is asked for"):
        get("cub200", data, cub, "0" * 64, into="small")


STRAY = ["{}", "null", '{"name": "cub200"}', '{"name": ["cub200"], "url": "", "bytes": 1}', "[" * 10**5]


@pytest.mark.parametrize("content", STRAY)
def test_a_stray_file_in_the_data_folder_breaks_nothing(
    site: Site, cub: str, tmp_path: Path, content: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "folder.json").mkdir()
    (data / "latin.json").write_bytes(b'{"name": "\xe9"}')
    for name in ("notes.json", "small.json"):
        (data / name).write_text(content)
    assert [row["name"] for row in status(data)] == list(SETS)
    get("cub200", data, cub, into="small")
    assert [row["name"] for row in status(data)] == [*SETS, "small"]
    (data / "cub200").mkdir()
    (data / "cub200.json").write_text(content)
    with pytest.raises(FileExistsError, match="was not put there by this command"):
        get("cub200", data, cub)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cub20",), "'cub20' cannot be downloaded; can be: mnist, cub200, tiny-imagenet"),
        (("digits",), "'digits' cannot be downloaded"),
        (("cub200", None, "ftp://example.org/x"), "url must begin with"),
        (("cub200", None, None, "abc"), "sha256 must be 64 hexadecimal digits, got 'abc'"),
        (("mnist", None, None, "0" * 64), "mnist is several files, each checked by torchvision's MD5"),
        *(
            (("cub200", None, None, None, None, into), "into must be a plain folder name")
            for into in ("../x", "mnist", "cache", ".downloads")
        ),
    ],
)
def test_wrong_arguments_are_refused_before_anything_happens(
    arguments: tuple, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFOCAM_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(message)):
        get(*arguments)
    assert not list(tmp_path.iterdir())


def test_two_who_want_the_same_download_once(site: Site, cub: str, tmp_path: Path) -> None:
    def work() -> None:
        get("cub200", tmp_path / "data", cub, into="small")

    both = [threading.Thread(target=work) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert site.asked == 1
    assert len(CUB(tmp_path / "data" / "small")) == 4


def test_mnist_lies_where_torchvision_looks(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    digits = np.arange(3, dtype=np.uint8)
    plain = {
        "images": b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (3, 28, 28)) + bytes(3 * 784),
        "labels": b"\0\0\x08\x01" + (3).to_bytes(4, "big") + digits.tobytes(),
    }
    resources = []
    for file, _ in MNIST.resources:
        body = gzip.compress(plain["images" if "images" in file else "labels"], mtime=0)
        site.files[f"/m/{file}"] = body
        resources.append((file, hashlib.md5(body).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # must not be asked
    data, seen = tmp_path / "data", []
    site.code = 500
    with pytest.raises(ConnectionError, match=r"HTTP Error 500.*; try later, or .*--url"):
        get("mnist", data, site.address + "/m/")
    site.code = 200
    assert state(data, "mnist") == "missing"
    get("mnist", data, site.address + "/m", progress=lambda *step: seen.append(step))
    size = sum(len(body) for body in site.files.values())
    assert seen == [(size, size)]
    assert json.loads((data / "mnist.json").read_text())["bytes"] == size
    assert state(data, "mnist") == "there, verified"
    assert load_images("mnist", "test", data).labels.tolist() == [0, 1, 2]
    assert load_images("mnist", "train", data).images.shape == (3, 3, 28, 28)
    shutil.rmtree(data)
    site.files[f"/m/{resources[2][0]}"] = b"damaged"
    with pytest.raises(ValueError, match=r"/m/ has a file that is not the official one by its MD5"):
        get("mnist", data, site.address + "/m/")
    with pytest.raises(FileNotFoundError, match="infocam data get mnist"):
        load_images("mnist", "test", data)
    assert left(data) == []
    assert capfd.readouterr().err == ""


ARCHIVES = [
    ("cub200", "CUB_200_2011-40-classes-photos.tgz", CUB, {"train": 1200, "test": 1108}),
    ("tiny-imagenet", "tiny-imagenet-200-20-classes.zip", TinyImageNet, {"train": 10_000, "val": 1_000}),
]


@pytest.mark.parametrize(("name", "file", "reader", "counts"), ARCHIVES)
def test_the_real_archives(
    site: Site, tmp_path: Path, name: str, file: str, reader: type, counts: dict[str, int]
) -> None:
    archive = Path(os.environ.get("INFOCAM_DATA", "nowhere")) / file
    if not archive.is_file():
        pytest.skip(f"INFOCAM_DATA names no folder that holds {file}")
    content = archive.read_bytes()
    site.files[f"/{file}"], site.cut, site.cuts = content, len(content) // 2, 1
    folder = get(name, tmp_path, f"{site.address}/{file}", into="part")
    assert site.asked == 2
    assert {split: len(reader(folder, split, need_boxes=True)) for split in counts} == counts
