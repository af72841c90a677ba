"""Where data and results lie, atomic writing, and one store of what is computed once.

The store keeps arrays under a key that says everything they depend on: settings, seed, the data's and the
weights' digests, and `code_digest` of the module that makes them. It serves decoded images, drawn birds,
networks, features and evidence alike.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

if TYPE_CHECKING:  # torch takes seconds to import; reading a ledger does not need it
    from torch import Tensor

PACKAGES = (
    *("infocam", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas"),
    *("lightning-fabric", "papermill", "nbconvert"),
)
PACKAGE = Path(__file__).resolve().parents[1]


def checkout() -> Path | None:
    """The repository this package is run from, or None when it is installed elsewhere."""
    folder = PACKAGE.parent
    return folder if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file() else None


def data_root(data_dir: str | Path | None = None) -> Path:
    """Where data sets and the store lie: `data_dir`, else $INFOCAM_DATA, else ``data/`` of the repository.

    >>> data_root("birds").name
    'birds'
    """
    given = data_dir or os.environ.get("INFOCAM_DATA")
    if given:
        return Path(given).expanduser().resolve()
    home = checkout()
    return home / "data" if home else Path.home() / ".cache" / "infocam"


def output_root(output_dir: str | Path | None = None) -> Path:
    """Where a run writes: `output_dir`, else $INFOCAM_OUTPUT, else ``runs/interactive``."""
    given = output_dir or os.environ.get("INFOCAM_OUTPUT")
    if given:
        return Path(given).expanduser().resolve()
    return (checkout() or Path.cwd()) / "runs" / "interactive"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that takes its place when the body ends well and goes when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: str | Path, content: bytes | str) -> Path:
    """Write a file so that a reader sees the old content or the new, never half of it."""
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class Store:
    """Arrays that are made once for each key and then read as memory maps.

    An entry is a folder ``<data_root>/cache/<kind>-<hash of the key>/`` with an ``.npy`` file for each array
    and ``entry.json``: the whole key, and length and CRC-32 of every file. It is built as a draft beside its
    place and renamed, so it is there whole or not at all.

    >>> import tempfile
    >>> store = Store(tempfile.mkdtemp())
    >>> store.get("ones", {"n": 2}, lambda draft: {"x": np.ones(2)})["x"]
    memmap([1., 1.])
    >>> store.get("ones", {"n": 2}, lambda draft: 1 / 0)["x"]  # not made again
    memmap([1., 1.])
    """

    def __init__(self, data_dir: str | Path | None = None) -> None:
        self.root = data_root(data_dir)
        self.folder = self.root / "cache"

    def get(
        self,
        kind: str,
        key: Mapping[str, object],
        make: Callable[[Draft], Mapping[str, Tensor | np.ndarray] | None],
    ) -> dict[str, np.ndarray]:
        """The arrays of `key`, made by `make` unless they are there, as read-only memory maps.

        `make` returns arrays or tensors by name, or fills `Draft.empty` with what is too large for memory,
        or both. Two processes that want one key do the work once: the second waits. An entry is made again
        when it is damaged in any way or older than $INFOCAM_FRESH_SINCE (seconds since 1970, set by
        ``--fresh``).

        Raises
        ------
        TypeError
            When `key` cannot be written as JSON, since then equal keys could not be recognised.
        OSError
            With errno ENOSPC and the folder when the disk is full. Like any error of `make` it leaves
            nothing behind; what a killed process left is removed when the next entry is made.
        """
        try:
            text = json.dumps(key, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"the key of {kind!r} must be made of finite numbers, strings, lists and mappings: {error}"
            ) from error
        entry = self.folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
        with _naming_a_full_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{entry}.lock")
            lock.acquire()
        try:
            if (arrays := _opened(entry, json.loads(text))) is not None:
                return arrays
            self._remove_orphans()
            _remove(entry)
            draft = Draft(entry.with_name(f"{entry.name}.draft"))
            try:
                draft.finish(make(draft) or {}, json.loads(text))
                os.replace(draft.folder, entry)
            finally:
                _remove(draft.folder)
            return _arrays(entry)
        finally:
            lock.release()

    def _remove_orphans(self) -> None:
        """Remove the drafts that nobody works on any more: their locks are free."""
        for orphan in self.folder.glob("*.draft"):
            lock = FileLock(orphan.with_suffix(".lock"), timeout=0)
            with contextlib.suppress(Timeout), lock:
                _remove(orphan)


class Draft:
    """An entry of the store in the making."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: list[np.memmap] = []
        _remove(folder)
        with _naming_a_full_disk(folder.parent):
            folder.mkdir()

    def empty(self, name: str, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.memmap:
        """A writable memory map for the entry's array `name`, its space on the disk reserved.

        Unreserved, a full disk would end the process by a signal at some later assignment.
        """
        if not name or {*name} & {*'/\\:*?"<>|\0'}:
            raise ValueError(f"an array's name must be a file name without its folder, got {name!r}")
        kind = np.dtype(dtype)
        if kind.hasobject:
            raise TypeError(f"array {name!r} must hold numbers, got dtype {kind}")
        path, shape = self.folder / f"{name}.npy", tuple(map(int, shape))
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        with _naming_a_full_disk(self.folder.parent), path.open("xb") as stream:  # x: a name is given once
            np.lib.format.write_array_header_1_0(stream, header)
            stream.flush()
            _reserve(stream.fileno(), stream.tell() + math.prod(shape) * kind.itemsize)
        self._open.append(np.load(path, mmap_mode="r+"))
        return self._open[-1]

    def finish(self, arrays: Mapping[str, Tensor | np.ndarray], key: object) -> None:
        """Add `arrays` and the description that makes the folder a whole entry."""
        for name, array in arrays.items():
            values = array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()
            self.empty(name, values.shape, values.dtype)[...] = values
        for mapped in self._open:
            mapped.flush()
        entry = {"key": key, "files": _sums(self.folder)}
        with _naming_a_full_disk(self.folder.parent):
            (self.folder / "entry.json").write_text(json.dumps(entry, indent=1))


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Tensors copied out of the store's read-only arrays, for a state dict for instance."""
    import torch

    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _opened(entry: Path, key: object) -> dict[str, np.ndarray] | None:
    """The arrays of an entry that is whole, of this key and not too old; else None."""
    since = float(os.environ.get("INFOCAM_FRESH_SINCE") or 0)
    description = entry / "entry.json"
    try:
        if description.stat().st_mtime < since:
            return None
        said = json.loads(description.read_bytes())
        if said == {"key": key, "files": _sums(entry)}:
            return _arrays(entry)
    except OSError as error:  # missing or unreadable
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # our trouble, not the entry's
            raise
    except (ValueError, RecursionError):  # not JSON
        pass
    return None


def _arrays(entry: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(entry.glob("*.npy"))}


def _sums(folder: Path) -> dict[str, list[int]]:
    """Length and CRC-32 of every file of an entry but its description.

    CRC-32 finds every damage up to 32 bits long and misses another with a chance of 2^-32; it reads about a
    gigabyte in a second. Nothing here has to withstand forgery.
    """
    sums = {}
    for path in sorted(folder.iterdir()):
        if path.name != "entry.json":
            length = checksum = 0
            with path.open("rb") as stream:
                while block := stream.read(1 << 22):
                    length, checksum = length + len(block), zlib.crc32(block, checksum)
            sums[path.name] = [length, checksum]
    return sums


def _reserve(descriptor: int, length: int) -> None:
    """Give a file its length, and its room on the disk where the system can promise it."""
    if hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(descriptor, 0, length)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # what a file system without it says
                raise
    os.truncate(descriptor, length)


@contextlib.contextmanager
def _naming_a_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"{os.strerror(error.errno)} in {folder}: make room, or name another data folder "
            "(--data-dir or $INFOCAM_DATA)",
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_digest(path: str | Path) -> str:
    """sha256 of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache(maxsize=64)
def code_digest(*modules: str) -> str:
    """sha256 over the code of modules and of all that they import from this package; of all if none is given.

    Followed are imports anywhere in a file (in functions and under TYPE_CHECKING too) and the `__init__`
    files of the packages on the way, but no module that is named by a string. Comments, docstrings and
    layout do not count: editing them must not throw away an hour of computing. A digest is computed once in
    a process, whose code does not change either.

    Raises
    ------
    ModuleNotFoundError
        When the package has no such module.

    >>> code_digest("gaussians") != code_digest("experiments.mixtures")
    True
    """
    code = _code_behind(modules)
    digest = hashlib.sha256()
    for path in sorted(code):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {len(code[path])}\n".encode() + code[path])
    return digest.hexdigest()


def _code_behind(modules: tuple[str, ...]) -> dict[Path, bytes]:
    """Every file that `code_digest` covers, with its code."""
    waiting = [_file_of(module.split(".")) for module in modules]
    if None in waiting:
        raise ModuleNotFoundError(f"{PACKAGE.name} has no module {modules[waiting.index(None)]!r}")
    code: dict[Path, bytes] = {}
    waiting = waiting or [*_all_files()]
    while waiting:
        path = waiting.pop()
        if path is not None and path not in code:
            tree = ast.parse(path.read_bytes())
            waiting += _imported(tree, path)
            for folder in path.relative_to(PACKAGE).parents:  # their __init__ runs before the module does
                waiting.append(_file_of([*folder.parts]))
            code[path] = _code_alone(tree)
    return code


def _imported(tree: ast.Module, path: Path) -> list[Path | None]:
    """The files of the package that are named by a file's import statements; None for what is of others."""
    files: list[Path | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            files += [_file_of(name[1:]) for name in names if name[0] == PACKAGE.name]
        elif isinstance(node, ast.ImportFrom):
            here = [PACKAGE.name, *path.relative_to(PACKAGE).parts]
            base = here[: -node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            if base[0] == PACKAGE.name:  # a name is a module of its own or something inside `base`
                files += [_file_of([*base[1:], alias.name]) or _file_of(base[1:]) for alias in node.names]
    if PACKAGE / "__init__.py" in files:  # which finds its names on demand, in any module
        files += _all_files()
    return files


def _all_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _file_of(parts: list[str]) -> Path | None:
    """The file of a module or package given by its names below the root package."""
    folder = PACKAGE.joinpath(*parts)
    for path in (folder / "__init__.py", folder.with_suffix(".py")):
        if path.is_file():
            return path
    return None


def _code_alone(tree: ast.Module) -> bytes:
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [s for s in body if not _is_text(s)]  # type: ignore[attr-defined]
    return ast.dump(tree).encode()


def _is_text(statement: ast.AST) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(getattr(statement.value, "value", None), str)


def report_progress(text: str, done: int | None = None, total: int | None = None) -> None:
    """One line for whoever watches this run: appended to the file named by $INFOCAM_PROGRESS, if any."""
    path = os.environ.get("INFOCAM_PROGRESS")
    if path:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"text": text, "done": done, "total": total}) + "\n")


def provenance() -> dict[str, Any]:
    """Versions, hardware, git commit and time of this run; no paths and no names of people or machines."""
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return {
        "versions": versions,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "commit": git_commit(),
        "utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def git_commit() -> str | None:
    """The commit this code is from, with "+changes" when files differ from it; None outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(checkout()), *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    if checkout() is None or not (checkout() / ".git").exists():  # type: ignore[operator]
        return None
    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
