"""Where data and results lie, atomic writing, a cache that processes share, and what a run was made with."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import pickle
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from filelock import FileLock

if TYPE_CHECKING:  # torch takes seconds to import; reading a ledger does not need it
    from torch import Tensor

PACKAGES = (
    *("infocam", "torch", "torchvision", "numpy", "scipy", "scikit-learn", "pandas"),
    *("lightning-fabric", "papermill", "nbconvert"),
)


def checkout() -> Path | None:
    """The repository this package is run from, or None when it is installed elsewhere."""
    folder = Path(__file__).resolve().parents[2]
    return folder if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file() else None


def data_root(data_dir: str | Path | None = None) -> Path:
    """Where data sets and caches lie: `data_dir`, else $INFOCAM_DATA, else ``data/`` of the repository.

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
    return (
        Path(given).expanduser().resolve() if given else (checkout() or Path.cwd()) / "runs" / "interactive"
    )


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


def cached(
    kind: str,
    key: Mapping[str, object],
    make: Callable[[], dict[str, Tensor]],
    cache_dir: Path | None = None,
) -> dict[str, Tensor]:
    """Tensors made once per `key` and kept in ``<data_root>/cache/<kind>-<sha>.pt``.

    Two processes that want the same key do the work once: the second waits. A damaged file is made again,
    and so is one older than $INFOCAM_FRESH_SINCE (seconds since 1970), by which a run starts over.

    Raises
    ------
    TypeError
        When `key` cannot be written as JSON, since then equal keys could not be recognised.

    >>> import tempfile, torch
    >>> where = Path(tempfile.mkdtemp())
    >>> cached("ones", {"n": 2}, lambda: {"x": torch.ones(2)}, where)["x"]
    tensor([1., 1.])
    >>> cached("ones", {"n": 2}, lambda: 1 / 0, where)["x"]  # not made again
    tensor([1., 1.])
    """
    import torch

    try:
        text = json.dumps(key, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the cache key of {kind!r} must be made of numbers, strings and lists: {error}"
        ) from error
    folder = cache_dir if cache_dir is not None else data_root() / "cache"
    path = folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.exists() and path.stat().st_mtime >= float(os.environ.get("INFOCAM_FRESH_SINCE", 0)):
            with contextlib.suppress(RuntimeError, pickle.UnpicklingError, EOFError):
                return torch.load(path, map_location="cpu", weights_only=True)
        # A clone, because saving a view would save all of what it is a view of.
        made = {name: tensor.detach().cpu().clone() for name, tensor in make().items()}
        with replacing(path) as temporary:
            torch.save(made, temporary)
    return made


def fingerprint(*sources: ModuleType | str | Path) -> str:
    """sha256 over modules or files, for keys that must change when the code does.

    Of Python, comments, docstrings and layout do not count: editing them must not throw away an hour of
    computing.
    """
    digest = hashlib.sha256()
    for source in sources:
        path = Path(str(source.__file__) if isinstance(source, ModuleType) else source)
        content = path.read_bytes()
        if path.suffix == ".py":
            content = _code_alone(content)
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _code_alone(source: bytes) -> bytes:
    tree = ast.parse(source)
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
