"""The strict notebook runner: validate, execute with papermill, show progress, keep and resume.

A run is a folder: ``notebooks/`` (executed), ``html/``, ``records/``, ``figures/``, ``logs/``, ``failed/``,
``index.html`` and ``manifest.json``. The manifest is also the memory: a notebook whose key (source, package,
parameters, profile, data) is there as done is not run again.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import yaml
from filelock import FileLock, Timeout

from infocam_utils.data.store import atomic_write, checkout, data_root, fingerprint, provenance
from infocam_utils.reproduce import report as reports
from infocam_utils.reproduce.results import read_book


class PlanError(ValueError):
    """A notebook, profile or parameter that does not exist, or a value of the wrong type."""


@dataclass(frozen=True)
class Plan:
    """One notebook to run: its file, the parameters given to it, and the defaults it came with."""

    name: str
    path: Path
    profile: str
    parameters: dict[str, Any]
    defaults: dict[str, Any]


def _near(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known) or 'none'}"


def notebook_folder(folder: str | Path | None = None) -> Path:
    """The folder of notebooks: given, or the repository's."""
    home = checkout()
    if folder is None and home is None:
        raise PlanError("no notebooks here: run from a clone of the repository or give --notebooks FOLDER")
    found = Path(folder) if folder is not None else Path(str(home)) / "notebooks"
    if not any(found.glob("*.ipynb")):
        raise PlanError(f"no notebooks in {found}; give --notebooks FOLDER")
    return found.resolve()


def select(names: Sequence[str], folder: Path) -> list[Path]:
    """The notebooks of that name, or whose name starts so (``03``); all, in order, without names.

    Raises
    ------
    PlanError
        For a name that fits none or several, with the near matches.
    """
    known = {p.stem: p for p in sorted(folder.glob("*.ipynb"))}
    chosen: set[str] = set()
    for name in names or known:
        stem = name.removesuffix(".ipynb").rpartition("/")[2]
        fits = [stem] if stem in known else [k for k in known if k.startswith(stem)]
        if len(fits) != 1:
            raise PlanError(f"unknown notebook {name!r}; {_near(stem, fits or known)}")
        chosen.add(fits[0])
    return [known[k] for k in known if k in chosen]


def default_parameters(path: Path) -> dict[str, Any]:
    """Names and default values in the cell tagged ``parameters``; every value must be a literal.

    Raises
    ------
    PlanError
        When a default is computed, since then its type is not known without running it.
    """
    source = _parameter_source(path)
    found: dict[str, Any] = {}
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name):
                try:
                    found[target.id] = ast.literal_eval(node.value)  # type: ignore[attr-defined]
                except ValueError:
                    raise PlanError(f"{path.name}: the default of {target.id!r} must be a literal") from None
    return found


def optional_parameters(path: Path) -> set[str]:
    """The parameters whose comment says what None means, as in ``limit = 1000  # images; None: all``."""
    return set(re.findall(r"^(\w+) *=.*#.*\bNone\b", _parameter_source(path), re.M))


def _parameter_source(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(c.source for c in cells if "parameters" in c.metadata.get("tags", []))


def checked(name: str, value: Any, default: Any, optional: bool = False) -> Any:
    """`value`, if it has the type of `default`; a default of None takes anything, and `optional` takes None.

    >>> checked("epochs", "3", 10)
    Traceback (most recent call last):
    ...
    infocam_utils.plans.PlanError: parameter 'epochs' must be int like its default 10, was '3'
    """
    if default is None or (optional and value is None):
        return value
    wanted = type(default)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        raise PlanError(
            f"parameter {name!r} must be {wanted.__name__} like its default {default!r}, was {value!r}"
        )
    if wanted is list and default:
        return [checked(f"{name}[{i}]", item, default[0]) for i, item in enumerate(value)]
    return value


def parse(text: str, default: Any) -> Any:
    """A value typed on a command line, read as what `default` is.

    >>> parse("1e-3", 0.1), parse("[0, 1]", [0]), parse("5", "all"), parse("null", None)
    (0.001, [0, 1], '5', None)
    """
    if isinstance(default, str):
        return text
    try:
        value = yaml.safe_load(text)
        # YAML 1.1 reads 1e-3 as a string.
        return float(value) if isinstance(default, float) and isinstance(value, str) else value
    except (yaml.YAMLError, ValueError):
        return text


def read_profile(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The profile's parameters: under ``common`` for all notebooks, else by notebook."""
    known = {p.stem: p for p in (folder / "profiles").glob("*.yaml")}
    if name not in known:
        raise PlanError(f"unknown profile {name!r}; {_near(name, known)}")
    try:
        content = yaml.safe_load(known[name].read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise PlanError(f"profile {name!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(v or {}, dict) for v in content.values()):
        raise PlanError(f"profile {name!r} must map notebooks (or 'common') to parameters")
    stems = {p.stem for p in folder.glob("*.ipynb")}
    for key in content:
        if key != "common" and key not in stems:
            raise PlanError(f"profile {name!r} names an unknown notebook {key!r}; {_near(key, stems)}")
    return {key: value or {} for key, value in content.items()}


def plan(
    names: Sequence[str] = (),
    profile: str = "quick",
    overrides: Mapping[str, str] | None = None,
    folder: str | Path | None = None,
) -> list[Plan]:
    """The notebooks to run, each with the profile's parameters and `overrides` (name to typed text) on top.

    A common parameter and an override reach every notebook that has it, and at least one must have it.
    """
    where = notebook_folder(folder)
    content = read_profile(profile, where)
    overrides = dict(overrides or {})
    chosen = select(names, where)
    defaults = {p.stem: default_parameters(p) for p in sorted(where.glob("*.ipynb"))}
    everywhere = {name for known in defaults.values() for name in known}
    for name in content.get("common", {}):
        if name not in everywhere:
            raise PlanError(
                f"profile {profile!r} sets an unknown parameter {name!r}; {_near(name, everywhere)}"
            )
    here = {name for p in chosen for name in defaults[p.stem]}
    for name in overrides:
        if name not in here:
            raise PlanError(f"unknown parameter {name!r}; {_near(name, here)}")
    plans = []
    for path in chosen:
        known = defaults[path.stem]
        given = {k: v for k, v in content.get("common", {}).items() if k in known}
        for name, value in content.get(path.stem, {}).items():
            if name not in known:
                raise PlanError(
                    f"profile {profile!r} sets an unknown parameter {name!r} of {path.stem}; "
                    + _near(name, known)
                )
            given[name] = value
        given |= {k: parse(v, known[k]) for k, v in overrides.items() if k in known}
        if "profile" in known:
            given.setdefault("profile", profile)
        optional = optional_parameters(path)
        values = {k: checked(k, v, known[k], k in optional) for k, v in given.items()}
        plans.append(Plan(path.stem, path, profile, values, known))
    return plans


DERIVED = ("cache", "minibirds")  # what the code itself writes under the data root
# glibc gives large buffers back to the kernel after every layer and asks for them again, which can double
# the time of a network on a CPU; kept, they are reused. Other C libraries ignore these. Threads that spin
# while they wait for each other waste a core that another program uses; passive ones sleep.
CPU_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "OMP_WAIT_POLICY": "PASSIVE",
}
PACKAGE = Path(__file__).resolve().parents[1]
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class RunError(Exception):
    """The run cannot start; the message says why and what to do."""


@dataclass
class Watch:
    """Where a running notebook is; written by the executing thread, read by the one that prints."""

    total: int
    cell: int = 0
    kernel_pid: int | None = None
    error: BaseException | None = None
    # Not Thread.join: interrupted, it can take a running thread for a finished one (Python 3.11).
    finished: threading.Event = field(default_factory=threading.Event)


@dataclass
class Display:
    """Progress on `stream`: one live line on a terminal, plain lines elsewhere."""

    stream: Any = field(default_factory=lambda: sys.stderr)
    every: float = 10.0  # seconds between plain lines inside one cell
    _last: str = ""
    _cell: str = ""
    _time: float = 0.0

    def line(self, text: str) -> None:
        """A line that stays."""
        self.stream.write(("\r\x1b[K" if self._live else "") + text + "\n")
        self.stream.flush()

    def update(self, cell: str, detail: str) -> None:
        """Where the run is: `cell`, and `detail` such as the epoch within it."""
        text = f"{cell}  {detail}".rstrip()
        if text == self._last:
            return
        if self._live:
            width = os.get_terminal_size(self.stream.fileno()).columns or 80
            self.stream.write("\r\x1b[K" + text[: max(width - 1, 20)])
            self.stream.flush()
        elif cell != self._cell or time.monotonic() - self._time > self.every:
            self.line(text)
            self._time = time.monotonic()
        else:
            return
        self._last, self._cell = text, cell

    @property
    def _live(self) -> bool:
        return bool(self.stream.isatty())


def tree_digest(path: Path) -> dict[str, Any]:
    """How many files lie under `path`, their bytes, and a digest of their names, sizes and times."""
    digest, files, size = hashlib.sha256(), 0, 0
    listed = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in listed:
        if file.suffix in (".lock", ".tmp", ".part") or "cache" in file.relative_to(path).parts[:-1]:
            continue
        stat = file.stat()
        digest.update(f"{file.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        files, size = files + 1, size + stat.st_size
    return {"files": files, "bytes": size, "digest": digest.hexdigest()}


def data_used(parameters: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The data sets and files that the parameters name, each with its digest (see `tree_digest`)."""
    named = [v for value in parameters.values() for v in (value if isinstance(value, list) else [value])]
    used = {}
    names = {n for v in named if isinstance(v, str) for n in (v, *v.split(","))} - {"", *DERIVED}
    for name in sorted(names):
        found = next((p for p in (root / name, Path(name).expanduser().absolute()) if p.exists()), None)
        if found is not None and found.resolve() not in (root, *root.parents):
            used[name] = tree_digest(found)
            with contextlib.suppress(OSError, ValueError, KeyError):  # what `infocam data get` verified
                used[name]["sha256"] = json.loads((root / f"{name}.json").read_text())["sha256"]
    return used


def run_key(plan: Plan, root: Path, output: Path, results: Path) -> str:
    """Changes when the notebook's cells, the package, the parameters, the profile or the data change.

    A notebook with a parameter ``results_dir`` shows records, so for it the records count as data.
    """
    cells = [[c.cell_type, c.source] for c in nbformat.read(plan.path, as_version=4).cells]
    parts: dict[str, Any] = {
        "cells": cells,
        "package": fingerprint(*sorted(PACKAGE.rglob("*.py"))),
        "parameters": plan.parameters,
        "profile": plan.profile,
        "data": data_used(plan.parameters, root),
    }
    if "results_dir" in plan.defaults:
        folders = (results, output / "records")
        files = sorted(p for f in folders for p in f.rglob("*.json") if p.stem != plan.name)
        parts["records"] = fingerprint(*files)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _kernel_manager(environment: Mapping[str, str]) -> type:
    """A kernel manager whose kernel is this interpreter, whatever kernels are installed or activated."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="Python 3",
        language="python",
        env=dict(environment),
    )

    class RunningInterpreter(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return spec

    return RunningInterpreter


def execute(
    plan: Plan, partial: Path, kernel_log: Path, environment: Mapping[str, str], watch: Watch
) -> None:
    """Run the notebook into `partial`, saved after every cell; raises papermill's error of a failing cell.

    What the kernel's process itself says, such as on a crash, goes to `kernel_log`.
    """
    import papermill
    from nbclient.output_widget import OutputWidget
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine, papermill_engines

    class KeptOutput(OutputWidget):
        """What `interact` shows is kept, but the kernel is not told of it.

        Sending from here can lose the wake-up of the reply that is waited for: about one run in twenty
        with sliders hung for ever.
        """

        def sync_state(self) -> None:
            pass

    class Watched(Engine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **_: Any) -> None:
            client = PapermillNotebookClient(
                nb_man,
                kernel_name=kernel_name,
                kernel_manager_class=_kernel_manager(environment),
                resources={"metadata": {"path": str(plan.path.parent)}},
                timeout=None,
                startup_timeout=180,
            )

            def started(cell: Any, cell_index: int) -> None:
                watch.cell, watch.kernel_pid = watch.cell + 1, client.km.provisioner.pid

            client.on_cell_execute = started
            client.widget_registry = {"@jupyter-widgets/output": {"OutputModel": KeptOutput}}
            with kernel_log.open("wb") as stream:
                client.execute(stdout=stream, stderr=stream)

    papermill_engines.register("infocam", Watched)
    papermill.execute_notebook(
        str(plan.path),
        str(partial),
        parameters=plan.parameters,
        engine_name="infocam",
        kernel_name="python3",
        language="python",
        progress_bar=False,
    )


def _progress(file: Path) -> str:
    """The last complete line that the notebook reported, as text."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with file.open("rb") as stream:
            stream.seek(max(file.stat().st_size - 4096, 0))
            lines = stream.read().decode(errors="replace").splitlines()
        last = json.loads(lines[-1])
        count = f" {last['done']}/{last['total']}" if last["total"] else ""
        return f"{last['text']}{count}"
    return ""


def _watch(watch: Watch, name: str, progress: Path, show: Display) -> None:
    """Print progress until the worker ends; an interrupt is passed on to the kernel's running cell."""
    start = time.monotonic()
    try:
        while not watch.finished.wait(0.2):
            seconds = f"  {time.monotonic() - start:.0f} s" if show._live else ""
            show.update(f"{name}  cell {watch.cell}/{watch.total}", _progress(progress) + seconds)
    except KeyboardInterrupt:
        show.line("interrupted: stopping the running cell (once more to stop at once)")
        # A cell may need a moment to write its checkpoint; after that the kernel is ended.
        for sign, patience in ((signal.SIGINT, 15.0), (signal.SIGKILL, 15.0)):
            with contextlib.suppress(KeyboardInterrupt, ProcessLookupError):
                if watch.kernel_pid is not None and not watch.finished.is_set():
                    os.killpg(watch.kernel_pid, sign)
                watch.finished.wait(patience)
        raise


def run_notebook(plan: Plan, output: Path, environment: Mapping[str, str], show: Display) -> dict[str, Any]:
    """Execute one notebook and put its results in place; returns its entry for the manifest."""
    partial = output / "failed" / f"{plan.name}.ipynb"
    log = output / "logs" / f"{plan.name}.log"
    progress, kernel_log = (output / "logs" / f".{plan.name}.{end}" for end in ("progress", "kernel"))
    for folder in ("failed", "logs", "notebooks"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    for old in (log, progress, output / "records" / f"{plan.name}.json"):
        old.unlink(missing_ok=True)
    cells = nbformat.read(plan.path, as_version=4).cells
    watch = Watch(
        total=sum(c.cell_type == "code" and bool(c.source.strip()) for c in cells) + bool(plan.parameters)
    )
    environment = dict(environment) | {"INFOCAM_PROGRESS": str(progress), "INFOCAM_OUTPUT": str(output)}

    def work() -> None:
        try:
            execute(plan, partial, kernel_log, environment, watch)
        except BaseException as error:  # handed to the thread that waits
            watch.error = error
        finally:
            watch.finished.set()

    entry: dict[str, Any] = {"status": "done", "parameters": plan.parameters, "profile": plan.profile}
    start = time.monotonic()
    threading.Thread(target=work, daemon=True).start()
    try:
        _watch(watch, plan.name, progress, show)
    except KeyboardInterrupt:
        entry |= {"status": "interrupted", "error": f"interrupted in cell {watch.cell}"}
    finally:
        progress.unlink(missing_ok=True)
    entry["seconds"] = round(time.monotonic() - start, 1)
    if entry["status"] == "done" and watch.error is not None:
        error = watch.error
        number = getattr(error, "exec_count", None) or watch.cell
        what = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
        first = what.strip().splitlines()[0]
        entry |= {"status": "failed", "cell": number, "error": first, "log": str(log.relative_to(output))}
        said = kernel_log.read_text(errors="replace") if kernel_log.exists() else ""
        text = f"{plan.name}, cell [{number}]\n\n{error}\n\nThe kernel's process said:\n{said}"
        atomic_write(log, _ANSI.sub("", text))
        show.line(f"{plan.name} failed in cell [{number}]: {first}\n  log: {log}\n  notebook: {partial}")
    elif entry["status"] == "done":
        os.replace(partial, output / "notebooks" / partial.name)
        reports.export_html(output / "notebooks" / partial.name, output / "html" / f"{plan.name}.html")
        records = output / "records" / f"{plan.name}.json"
        if records.exists():
            book = read_book(records)
            entry |= {"seeds": list(book.seeds), "times": book.times, "records": f"records/{records.name}"}
        show.line(f"{plan.name} done in {entry['seconds']:.0f} s")
    return entry


@contextlib.contextmanager
def _only_run_in(output: Path) -> Iterator[None]:
    output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / ".lock", timeout=0):
            yield
    except Timeout:
        raise RunError(f"another run is writing to {output}; wait for it or give another --output") from None


def run(
    plans: Sequence[Plan],
    output: Path,
    *,
    name: str,
    results: Path,
    data_dir: str | Path | None = None,
    fresh: bool = False,
    command: str = "",
    show: Display | None = None,
    after: Callable[[Plan], None] | None = None,
) -> dict[str, Any]:
    """Run the notebooks in order into `output`, skip what is done and unchanged, and return the manifest.

    `after` is called for each notebook that is done, before the next one starts. A failing notebook does
    not stop the others; an interrupt does. Either way the manifest, the index and every finished notebook
    are in place, and the same call continues.
    """
    show = show or Display()
    output, root = output.resolve(), data_root(data_dir)
    environment = CPU_SETTINGS | {
        "INFOCAM_DATA": str(root),
        "IPYTHONDIR": str(output / "logs" / ".ipython"),  # a user's start-up files must not change results
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])),
    }
    if fresh:
        environment["INFOCAM_FRESH_SINCE"] = str(time.time())
    with _only_run_in(output):
        path = output / "manifest.json"
        before: dict[str, Any] = {}
        if path.exists() and not fresh:
            with contextlib.suppress(ValueError, KeyError):
                before = json.loads(path.read_text())["notebooks"]
        manifest: dict[str, Any] = {
            "name": name, "command": command, "started": _now(), "finished": None, "provenance": provenance(),
            "data": {k: v for plan in plans for k, v in data_used(plan.parameters, root).items()},
            "notebooks": dict(before),
        }  # fmt: skip
        for plan in plans:
            key = run_key(plan, root, output, results)
            old = before.get(plan.name, {})
            done = old.get("status") == "done" and old.get("key") == key
            if done and (output / "notebooks" / f"{plan.name}.ipynb").exists():
                show.line(f"{plan.name} is done and unchanged; --fresh runs it again")
            else:
                entry = run_notebook(plan, output, environment, show) | {"key": key}
                manifest["notebooks"][plan.name] = entry
                atomic_write(path, json.dumps(manifest, indent=1) + "\n")
            if manifest["notebooks"][plan.name]["status"] == "done" and after is not None:
                after(plan)
            if manifest["notebooks"][plan.name]["status"] == "interrupted":
                break
        manifest["finished"] = _now()
        atomic_write(path, json.dumps(manifest, indent=1) + "\n")
        reports.write_index(output, manifest, results)
    return manifest


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
