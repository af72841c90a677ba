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
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import resolve_name
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout

if TYPE_CHECKING:  # torch takes seconds to import; reading a ledger does not need it
    from torch import Tensor

PACKAGE = Path(__file__).resolve().parents[1]
_USED: ContextVar[list[Path] | None] = ContextVar("entries that are recorded", default=None)


def checkout() -> Path | None:
    """The repository this package is run from, or None when it is installed elsewhere."""
    folder = PACKAGE.parent
    return folder if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file() else None


def data_root(data_dir: str | Path | None = None) -> Path:
    """Where data sets and the store lie: `data_dir`, else $INFOCAM_DATA, else ``data/`` of the repository.

    >>> data_root("birds").name
    'birds'
    """
    if given := data_dir or os.environ.get("INFOCAM_DATA"):
        return Path(given).expanduser().resolve()
    home = checkout()
    return home / "data" if home else Path.home() / ".cache" / "infocam"


def output_root(output_dir: str | Path | None = None) -> Path:
    """Where a run writes: `output_dir`, else $INFOCAM_OUTPUT, else ``runs/interactive``."""
    if given := output_dir or os.environ.get("INFOCAM_OUTPUT"):
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
    and ``entry.json``: the whole key, and the sha256 of every file. It is built as a draft beside its place
    and renamed, so it is there whole or not at all.

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
        TypeError, ValueError
            When `key` cannot be written as JSON, since then equal keys could not be recognised.
        OSError
            With errno ENOSPC and the folder when the disk is full. Like any error of `make` it leaves
            nothing behind; what a killed process left is removed when the next entry is made.
        """
        entry = self.folder / _name(kind, key)
        with _naming_a_full_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{entry}.lock"):
                if not _is_good(entry, key):
                    self._build(entry, key, make)
                if (used := _USED.get()) is not None and entry not in used:
                    used.append(entry)
                return {path.stem: np.load(path, mmap_mode="r") for path in sorted(entry.glob("*.npy"))}

    def has(self, kind: str, key: Mapping[str, object]) -> bool:
        """Whether `get` would find the entry and make nothing."""
        return _is_good(self.folder / _name(kind, key), key)

    def bring(self, name: str, files: Mapping[str, bytes]) -> None:
        """Put in an entry that another store made: its files by name, `entry.json` among them.

        Raises
        ------
        ValueError
            When the name is not that of the key, a file's sha256 is another than the entry says, or a file is
            none that an entry has. Then nothing is changed.
        """
        odd = [file for file in files if not re.fullmatch(r"\w[\w.-]*\.npy|entry\.json", file)]
        if odd or "entry.json" not in files:
            raise ValueError(f"{name} has files that no entry has ({odd}), or none that describes it")
        key = json.loads(files["entry.json"])["key"]
        if name != _name(name.rpartition("-")[0], key) or not re.fullmatch(r"\w+-[0-9a-f]{24}", name):
            raise ValueError(f"{name} is not the name of its key")
        entry = self.folder / name
        with _naming_a_full_disk(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{entry}.lock"):
                if not _is_good(entry, key):
                    self._build(entry, key, lambda draft: draft.fill(name, files))

    def _build(self, entry: Path, key: Mapping[str, object], make: Callable) -> None:
        draft = Draft(entry.with_name(f"{entry.name}.draft"))
        for left in (entry, draft.folder):
            if left.exists():
                shutil.rmtree(left)
        for orphan in self.folder.glob("*.draft"):  # nobody works on it when its lock is free
            with contextlib.suppress(Timeout), FileLock(orphan.with_suffix(".lock"), timeout=0):
                shutil.rmtree(orphan)
        draft.folder.mkdir()
        try:
            for name, array in (make(draft) or {}).items():
                values = array if isinstance(array, np.ndarray) else array.detach().cpu().numpy()
                draft.empty(name, values.shape, values.dtype)[...] = values
            (draft.folder / "entry.json").write_text(_description(draft.folder, key))
            os.replace(draft.folder, entry)
        finally:
            shutil.rmtree(draft.folder, ignore_errors=True)  # gone when all went well


@dataclass(frozen=True)
class Draft:
    """An entry of the store in the making."""

    folder: Path

    def empty(self, name: str, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.memmap:
        """A writable memory map for the entry's array `name`, its space on the disk reserved.

        Unreserved, a full disk would end the process by a signal at some later assignment.
        """
        path = self.folder / f"{name}.npy"
        path.touch(exist_ok=False)  # a name is given once
        array = np.lib.format.open_memmap(path, "w+", dtype, tuple(map(int, shape)))
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as stream:
                try:
                    os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # of a file system without it
                        raise
        return array

    def fill(self, name: str, files: Mapping[str, bytes]) -> None:
        """The arrays of an entry of that name from elsewhere, if they are what its description says."""
        for file in set(files) - {"entry.json"}:
            (self.folder / file).write_bytes(files[file])
        if _description(self.folder, json.loads(files["entry.json"])["key"]).encode() != files["entry.json"]:
            raise ValueError(f"{name} came damaged: its files are not those that it describes")


@contextlib.contextmanager
def recording() -> Iterator[list[Path]]:
    """The entries of any store that are made or read while the body runs."""
    used: list[Path] = []
    token = _USED.set(used)
    try:
        yield used
    finally:
        _USED.reset(token)


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Tensors copied out of the store's read-only arrays, for a state dict for instance."""
    import torch

    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _name(kind: str, key: Mapping[str, object]) -> str:
    text = json.dumps(key, sort_keys=True, allow_nan=False)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def _is_good(entry: Path, key: Mapping[str, object]) -> bool:
    """Whether an entry is whole, of this key and not too old."""
    said = entry / "entry.json"
    try:
        fresh = said.stat().st_mtime >= float(os.environ.get("INFOCAM_FRESH_SINCE") or 0)
        return fresh and said.read_bytes() == _description(entry, key).encode()
    except (FileNotFoundError, IsADirectoryError):  # of another error the entry may be innocent
        return False


def _description(entry: Path, key: Mapping[str, object]) -> str:
    """What entry.json must say."""
    files = {path.name: file_digest(path) for path in entry.iterdir() if path.name != "entry.json"}
    return json.dumps({"key": key, "files": files}, sort_keys=True, indent=1)


@contextlib.contextmanager
def _naming_a_full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        advice = "make room, or name another data folder (--data-dir or $INFOCAM_DATA)"
        where = error.filename or folder
        raise OSError(error.errno, f"{os.strerror(error.errno)} in {where}: {advice}") from error


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
    return hashlib.sha256(repr(sorted(_code_behind(modules).items())).encode()).hexdigest()


def _code_behind(modules: tuple[str, ...]) -> dict[str, str]:
    """The code of every module that `code_digest` covers, by the module's name."""
    files = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        files[name.removesuffix(".__init__")] = path
    waiting = [f"{PACKAGE.name}.{module}" for module in modules] or [*files]
    if missing := [name for name in waiting if name not in files]:
        raise ModuleNotFoundError(f"there is no module {missing[0]}")
    code: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        if name in files and name not in code:
            tree = _WithoutText().visit(ast.parse(files[name].read_bytes()))
            code[name] = ast.dump(tree)
            above = name.rpartition(".")[0]  # its code runs before the module's
            waiting.append(above)
            for target in _imported(tree, name if files[name].name == "__init__.py" else above):
                found = target if target in files else target.rpartition(".")[0]  # a module, or a name in one
                # the root package finds its names on demand, in any module
                waiting += files if found == PACKAGE.name else [found]
    return code


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """Full names of all that the import statements of a module in `package` name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


class _WithoutText(ast.NodeTransformer):
    """Drops docstrings."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(getattr(node.value, "value", None), str) else node


def report_progress(text: str, done: int | None = None, total: int | None = None) -> None:
    """One line for whoever watches this run: appended to the file named by $INFOCAM_PROGRESS, if any."""
    if path := os.environ.get("INFOCAM_PROGRESS"):
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"text": text, "done": done, "total": total}) + "\n")
