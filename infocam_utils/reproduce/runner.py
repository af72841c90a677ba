"""The strict notebook runner: plan, execute with papermill, show progress, keep and resume.

A run is a folder: ``notebooks/`` (executed), ``html/``, ``results/``, ``figures/``, ``logs/``, ``failed/``,
``previous/``, ``index.html`` and ``manifest.json``. The manifest is also the memory: a notebook whose key
(cells, package, parameters, profile, data) is there as done, and whose files are all there and readable, is
not run again. Before a notebook runs again, what it made before moves to ``previous/``: it stays there when
the new run fails or is killed, and no later notebook takes it for this run's.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import inspect
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TextIO, Union, get_args, get_origin

import nbformat
import yaml
from filelock import FileLock, Timeout

from infocam_utils.data.store import PACKAGE, atomic_write, checkout, code_digest, data_root, file_digest
from infocam_utils.reproduce import report as reports
from infocam_utils.reproduce.results import Results, provenance, read

TIME = "%Y-%m-%dT%H:%M:%SZ"
DATA = ("dataset", "weights")  # the parameters and recipe fields that name data
# glibc gives large buffers back to the kernel after every layer and asks for them again, which can double
# the time of a network on a CPU; kept, they are reused. Other C libraries ignore these. Threads that spin
# while they wait for each other waste a core that another program uses; passive ones sleep.
CPU_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "OMP_WAIT_POLICY": "PASSIVE",
}


class PlanError(ValueError):
    """A request that cannot be: what does not exist, or a value or an output of the wrong kind."""


@dataclass(frozen=True)
class Parameter:
    """What a notebook takes: a default, and the type (or union of types) that a value must have."""

    default: Any
    kind: Any


@dataclass(frozen=True)
class Plan:
    """One notebook to run: its file, the parameters given to it, and the defaults it came with."""

    name: str
    path: Path
    profile: str
    parameters: dict[str, Any]
    defaults: dict[str, Any]

    @property
    def in_force(self) -> dict[str, Any]:
        """All parameters, those not given with their defaults."""
        return self.defaults | self.parameters


def _refuse(what: str, name: str, known: Iterable[str]) -> PlanError:
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known) or 'none'}"
    return PlanError(f"{what} {name!r}; {hint}")


def select(names: Sequence[str], folder: Path) -> list[Path]:
    """The notebooks of that name, or whose name starts so (``03``); all, in order, without names."""
    known = {p.stem: p for p in sorted(folder.glob("*.ipynb"))}
    if not known:
        raise PlanError(f"no notebooks in {folder}; run from a clone or give --notebooks FOLDER")
    chosen: dict[str, str] = {}
    for name in names or known:
        stem = Path(name).stem
        fits = [stem] if stem in known else [k for k in known if k.startswith(stem)]
        if len(fits) != 1:
            raise _refuse("unknown notebook", name, fits or known)
        other = chosen.setdefault(fits[0][:2], fits[0])
        if other != fits[0]:
            raise PlanError(f"{other} and {fits[0]} would both write results/{other[:2]}.csv; run them apart")
    return [known[stem] for stem in sorted(chosen.values())]


def read_parameters(path: Path) -> dict[str, Parameter]:
    """The parameters in the cell tagged ``parameters``.

    A default must be a literal, since the type of a computed one is not known without running it. A comment
    that says what None means, as in ``limit = 1000  # images; None: all``, lets a parameter be None.
    """
    try:
        cells = nbformat.read(path, as_version=4).cells
        source = next((c.source for c in cells if "parameters" in c.metadata.get("tags", [])), "")
        statements = ast.parse(source).body
    except Exception as error:  # a damaged notebook fails in as many ways as there are readers
        first = (str(error).strip() or repr(error)).splitlines()[0][:200]
        raise PlanError(f"{path.name} or its parameters cell cannot be read: {first}") from error
    found = {}
    for statement in statements:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            try:
                default = ast.literal_eval(statement.value or "")
            except (ValueError, TypeError, SyntaxError) as error:
                raise PlanError(
                    f"{path.name}: the default of {ast.unparse(target)!r} is no literal"
                ) from error
            kind: Any = Any if default is None else type(default)
            if isinstance(default, list) and default:
                kind = list[type(default[0])]  # type: ignore[misc]
            if re.search(r"#.*\bNone\b", source.splitlines()[statement.lineno - 1]):
                kind = Any if default is None else kind | None
            found[ast.unparse(target)] = Parameter(default, kind)
    return found


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0]) for item in value)
    return kind is Any or type(value) is kind or (kind is float and type(value) is int)


def checked(name: str, value: Any, parameter: Parameter) -> Any:
    """`value`, if it has the type that the parameter takes; a whole number becomes a float where one is due.

    >>> checked("epochs", "3", Parameter(10, int))
    Traceback (most recent call last):
    ...
    infocam_utils.reproduce.runner.PlanError: parameter 'epochs' must be int like its default 10, was '3'
    """
    if not _fits(value, parameter.kind):
        kind = inspect.formatannotation(parameter.kind).replace(" | ", " or ")
        kind = re.sub(r"^Optional\[(.*)\]$", r"\1 or None", kind)
        like = "" if parameter.default is None else f" like its default {parameter.default!r}"
        raise PlanError(f"parameter {name!r} must be {kind}{like}, was {value!r}")
    return float(value) if type(value) is int and parameter.kind in (float, float | None) else value


def parse(text: str, kind: Any) -> Any:
    """A value typed on a command line, read as what the parameter takes.

    >>> parse("1e-3", float), parse("[0, 1]", list[int]), parse("5", str), parse("null", str | None)
    (0.001, [0, 1], '5', None)
    """
    if kind in (str, str | None):
        return None if kind is not str and text in ("null", "None") else text
    try:
        value = None if text == "None" else yaml.safe_load(text)
        json.dumps(value)  # a date, say, is no parameter
        # YAML 1.1 reads 1e-3 as a string.
        return float(value) if kind in (float, float | None) and isinstance(value, str) else value
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return text


def read_profile(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The profile's parameters: under ``common`` for all notebooks, else by notebook."""
    known = {p.stem: p for p in (folder / "profiles").glob("*.yaml")}
    if name not in known:
        raise _refuse("unknown profile", name, known)
    try:
        content = yaml.safe_load(known[name].read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlanError(f"profile {name!r} is not YAML: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(v or {}, dict) for v in content.values()):
        raise PlanError(f"profile {name!r} must map notebooks (or 'common') to parameters")
    stems = {"common", *(p.stem for p in folder.glob("*.ipynb"))}
    for key in content:
        if key not in stems:
            raise _refuse(f"profile {name!r} names an unknown notebook", key, stems)
    return {key: value or {} for key, value in content.items()}


class _Notebook:
    """What one notebook takes: its parameters and, if one of them is `recipe`, the recipe's fields."""

    def __init__(self, path: Path, fields: Mapping[str, Parameter]) -> None:
        self.path, self.parameters = path, read_parameters(path)
        self.fields = fields if "recipe" in self.parameters else {}
        self.takes = {**self.fields, **self.parameters}

    def put(self, given: dict[str, Any], name: str, value: Any, said_by: str) -> None:
        """Into `given`: a parameter as it is, a field of the recipe merged over the recipe's default."""
        if name not in self.takes:
            raise _refuse(f"{said_by} sets for {self.path.stem} an unknown parameter", name, self.takes)
        if name in self.parameters and not (name == "recipe" and self.fields):
            given[name] = checked(name, value, self.parameters[name])
            return
        changes = checked(name, value, self.parameters[name]) if name == "recipe" else {name: value}
        recipe = given.setdefault("recipe", dict(self.parameters["recipe"].default))
        for changed, to in changes.items():
            if changed not in self.fields:
                raise _refuse("the recipe has no field", changed, self.fields)
            recipe[changed] = checked(changed, to, self.fields[changed])


def plan(
    names: Sequence[str] = (),
    profile: str = "quick",
    overrides: Mapping[str, str] | None = None,
    folder: str | Path | None = None,
    *,
    record: Results | None = None,
    recipe_fields: Mapping[str, Any] | None = None,
    known_data: Collection[str] = (),
    data_dir: str | Path | None = None,
) -> list[Plan]:
    """The notebooks to run, each with the profile's parameters and `overrides` (name to typed text) on top.

    A common parameter and an override reach every notebook that takes it, and at least one must. A notebook
    with a parameter `recipe` (a dict of changes) also takes each of `recipe_fields` (name to type) by its
    name; it goes into that dict.

    With a `record` its notebook is planned with the parameters that it was made with, and no profile is read.

    A dataset or weights may be one of `known_data`, a name in the data folder, or a path, which is made
    absolute here: the notebook runs in its own folder.
    """
    where = (Path(folder) if folder else (checkout() or Path.cwd()) / "notebooks").resolve()
    root, overrides = data_root(data_dir), dict(overrides or {})
    if record is not None:
        names, profile = [record.notebook], record.profile
    fields = {name: Parameter(None, kind | None) for name, kind in (recipe_fields or {}).items()}
    chosen = [_Notebook(path, fields) for path in select(names, where)]
    here = {name for one in chosen for name in one.takes}
    if record is not None:
        said_by, settings = "the record", {record.notebook: dict(record.parameters)}
    else:
        said_by, settings = f"profile {profile!r}", read_profile(profile, where)
    common = settings.get("common", {})
    for name in overrides:
        if name not in here:
            raise _refuse("unknown parameter", name, here)
    for path in where.glob("*.ipynb") if set(common) - here else ():
        with contextlib.suppress(PlanError):  # of a notebook that is not asked for
            here |= _Notebook(path, fields).takes.keys()
    for name in common:
        if name not in here:
            raise _refuse(f"{said_by} sets an unknown parameter", name, here)
    plans = []
    for one in chosen:
        # A record's recipe is whole: what the notebook's default says by now does not come into it.
        given: dict[str, Any] = {"recipe": {}} if record and "recipe" in record.parameters else {}
        typed = {k: parse(text, one.takes[k].kind) for k, text in overrides.items() if k in one.takes}
        own = settings.get(one.path.stem, {})
        for source in ({k: v for k, v in common.items() if k in one.takes}, own, typed):
            for name, value in source.items():
                one.put(given, name, value, said_by)
        if "profile" in one.parameters:
            given.setdefault("profile", profile)
        for place in (given, given.get("recipe", {})):
            for name in set(DATA) & set(place):
                place[name] = _located(place[name], root, known_data)
        defaults = {name: p.default for name, p in one.parameters.items()}
        plans.append(Plan(one.path.stem, one.path, profile, given, defaults))
        seeds = plans[-1].in_force.get("seeds")
        if isinstance(seeds, list) and (not seeds or len(set(map(repr, seeds))) < len(seeds)):
            raise PlanError(f"seeds must be distinct, and at least one, were {seeds}")
    return plans


def _located(value: Any, root: Path, known: Collection[str]) -> Any:
    """Data named for a notebook that runs in another folder: paths that lead somewhere become absolute."""
    if not isinstance(value, str) or value in known:
        return value
    if not value.startswith(".") and (root / value).exists():
        return value
    path = Path(value).expanduser()
    if path.exists():
        return os.path.abspath(path)
    return ",".join(_located(part, root, known) for part in value.split(",")) if "," in value else value


@dataclass
class Watch:
    """Where a running notebook is; written by the executing thread, read by the one that prints."""

    total: int
    cell: int = 0
    kernel_pid: int | None = None
    error: BaseException | None = None
    # Not Thread.join: interrupted, it can take a running thread for a finished one (Python 3.11).
    finished: threading.Event = field(default_factory=threading.Event)


class Display:
    """Progress on `stream`: one live line on a terminal, elsewhere plain lines, in one cell every 10 s."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self._shown, self._cell, self._time = "", "", 0.0

    def line(self, text: str) -> None:
        """A line that stays."""
        self.stream.write(("\r\x1b[K" if self.live else "") + text + "\n")
        self.stream.flush()

    def update(self, cell: str, detail: str) -> None:
        """Where the run is: `cell`, and `detail` such as the epoch within it."""
        text, now = f"{cell}  {detail}".rstrip(), time.monotonic()
        if text == self._shown or not (self.live or cell != self._cell or now - self._time > 10):
            return
        if self.live:
            self.stream.write("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1])
            self.stream.flush()
        else:
            self.line(text)
        self._shown, self._cell, self._time = text, cell, now


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
    """The data sets and files that the parameters and their recipe name, each with its digest."""
    places = (parameters, parameters.get("recipe", {}))
    values = [str(place[name]) for place in places for name in DATA if place.get(name)]
    used = {}
    for name in sorted({part for value in values for part in (value, *value.split(","))}):
        found = root / name  # which is `name` itself when that is absolute
        if found.exists() and found.resolve() not in (root, *root.parents):
            used[name] = tree_digest(found)
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # of the download
                used[name]["sha256"] = json.loads((root / f"{name}.json").read_text())["sha256"]
    return used


def run_key(plan: Plan, root: Path, output: Path, results: Path) -> str:
    """Changes when the notebook's cells, the package, the parameters, the profile or the data change.

    A notebook with a parameter ``results_dir`` shows results and the claims on them, so for it they count
    as data.
    """
    parts: dict[str, Any] = {
        "cells": [[c.cell_type, c.source] for c in nbformat.read(plan.path, as_version=4).cells],
        "package": code_digest(),
        "parameters": plan.parameters,
        "profile": plan.profile,
        "data": data_used(plan.in_force, root),
    }
    if "results_dir" in plan.defaults:
        own = output / "results" / plan.name[:2]
        files = [p for f in (results, output / "results") for p in sorted(f.rglob("[0-9][0-9].*"))]
        files = [results.parent / "claims.yml", *(p for p in files if p.with_suffix("") != own)]
        parts["results"] = [file_digest(p) for p in files if p.is_file()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def execute(
    plan: Plan, partial: Path, kernel_log: Path, environment: Mapping[str, str], watch: Watch
) -> None:
    """Run the notebook into `partial`, saved after every cell; raises papermill's error of a failing cell.

    What the kernel's process itself says, such as on a crash, goes to `kernel_log`.
    """
    import papermill
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.output_widget import OutputWidget
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine, papermill_engines

    class RunningInterpreter(AsyncKernelManager):
        """Its kernel is this interpreter, whatever kernels are installed or activated."""

        kernel_spec = KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            language="python",
            env=dict(environment),
        )

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
                kernel_manager_class=RunningInterpreter,
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
            last = json.loads(stream.readlines()[-1])
        return f"{last['text']} {last['done']}/{last['total']}" if last["total"] else str(last["text"])
    return ""


def _watch(watch: Watch, name: str, progress: Path, show: Display) -> None:
    """Print progress until the worker ends; an interrupt is passed on to the kernel's running cell."""
    start = time.monotonic()
    try:
        while not watch.finished.wait(0.2):
            seconds = f"  {time.monotonic() - start:.0f} s" if show.live else ""
            show.update(f"{name}  cell {watch.cell}/{watch.total}", _progress(progress) + seconds)
    except KeyboardInterrupt:
        show.line("interrupted: stopping the running cell (once more to stop at once)")
        # A cell may need a moment to write its checkpoint; after that the kernel is ended.
        for sign in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(KeyboardInterrupt, ProcessLookupError):
                if watch.kernel_pid is not None and not watch.finished.is_set():
                    os.killpg(watch.kernel_pid, sign)
                watch.finished.wait(15)
        raise


def run_notebook(plan: Plan, output: Path, environment: Mapping[str, str], show: Display) -> dict[str, Any]:
    """Execute one notebook and put its files in place; returns its entry for the manifest."""
    partial, final = (output / folder / f"{plan.name}.ipynb" for folder in ("failed", "notebooks"))
    log, kernel_log = output / "logs" / f"{plan.name}.log", output / "logs" / f".{plan.name}.kernel"
    progress = Path(environment["INFOCAM_PROGRESS"])
    for file in (partial, final, log):
        file.parent.mkdir(exist_ok=True)
    for old in (log, kernel_log, progress):
        old.unlink(missing_ok=True)
    cells = nbformat.read(plan.path, as_version=4).cells
    filled = sum(c.cell_type == "code" and bool(c.source.strip()) for c in cells)
    watch = Watch(filled + bool(plan.parameters))

    def work() -> None:
        try:
            execute(plan, partial, kernel_log, environment, watch)
            for record in (output / "results").glob(f"{plan.name[:2]}.json"):
                read(record)
        except BaseException as error:  # handed to the thread that waits
            watch.error = error
        finally:
            watch.finished.set()

    entry: dict[str, Any] = {"status": "done", "profile": plan.profile, "parameters": plan.in_force}
    start = time.monotonic()
    threading.Thread(target=work, daemon=True).start()
    try:
        _watch(watch, plan.name, progress, show)
    except KeyboardInterrupt:
        return entry | {"status": "interrupted", "error": f"interrupted in cell {watch.cell}"}
    entry["seconds"] = round(time.monotonic() - start, 1)
    if (error := watch.error) is not None:
        number = getattr(error, "exec_count", None) or watch.cell
        what = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
        first = what.strip().splitlines()[0]
        said = kernel_log.read_text(errors="replace") if kernel_log.exists() else ""
        text = f"{plan.name}, cell [{number}]\n\n{error}\n\nThe kernel's process said:\n{said}"
        atomic_write(log, re.sub(r"\x1b\[[0-9;]*m", "", text))  # no colours
        show.line(f"{plan.name} failed in cell [{number}]: {first}\n  log: {log}\n  notebook: {partial}")
        return entry | {"status": "failed", "error": f"cell [{number}]: {first}"}
    os.replace(partial, final)
    reports.export_html(final, output / "html" / f"{plan.name}.html")
    show.line(f"{plan.name} done in {entry['seconds']:.0f} s")
    return entry


def products(folder: Path, name: str) -> list[Path]:
    """What a notebook has made in a run's folder: itself executed, its page, its results and figures."""
    kinds = ("notebooks", "html", "results", "figures")
    return [p for kind in kinds for p in sorted((folder / kind).glob(f"{name[:2]}*"))]


def intact(output: Path, files: Sequence[str]) -> bool:
    """Whether all of a notebook's files are there and those that a program reads can be read."""
    try:
        for name in files:
            if name.endswith(".ipynb"):
                nbformat.read(output / name, as_version=4)
            elif name.endswith(".json"):
                read(output / name)
            elif not (output / name).is_file():
                return False
    except Exception:  # damaged files fail in as many ways as there are readers
        return False
    return bool(files)


def read_manifest(path: Path) -> dict[str, Any]:
    """A run's manifest; one that is missing, damaged or of another shape counts as empty."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {k: v for k, v in content["notebooks"].items() if isinstance(v.get("files", []), list)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {"notebooks": {}}
    return content | {"notebooks": known}


class _Memory:
    """The manifest of a run and the files that it vouches for."""

    def __init__(self, output: Path, manifest: dict[str, Any]) -> None:
        self.output, self.manifest = output, manifest
        self.entries: dict[str, dict[str, Any]] = manifest["notebooks"]

    def save(self) -> None:
        atomic_write(self.output / "manifest.json", json.dumps(self.manifest, indent=1) + "\n")

    def is_done(self, name: str, key: str) -> bool:
        entry = self.entries.get(name, {})
        same = entry.get("status") == "done" and entry.get("key") == key
        return same and intact(self.output, entry.get("files", ()))

    def begin(self, names: Iterable[str], status: str) -> None:
        """Put what these notebooks made before aside, and say that they run.

        A kill before the manifest says so leaves notebooks that are done but not intact; what is left of
        them moves with the next call. What a run made that did not end goes.
        """
        for name in names:
            # Without an entry, somebody may want them still.
            finished = self.entries.get(name, {}).get("status", "done") == "done"
            for file in products(self.output, name):
                if finished:
                    target = self.output / "previous" / file.relative_to(self.output)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, target)
                else:
                    file.unlink()
            self.entries[name] = {"status": status}
        self.save()

    def end(self, name: str, entry: dict[str, Any]) -> None:
        """Keep what a notebook made if it is done; else only say what became of it."""
        made, obsolete = products(self.output, name), products(self.output / "previous", name)
        if entry["status"] == "done":
            entry["files"] = [str(p.relative_to(self.output)) for p in made]
        else:
            made, obsolete = [], made
        self.entries[name] = entry
        self.save()
        for file in obsolete:
            file.unlink()


@contextlib.contextmanager
def _only_run_in(output: Path, plans: Sequence[Plan]) -> Iterator[None]:
    """Hold the run's folder, if nothing but a run would be overwritten and no other run writes there."""
    names = {p.name for p in output.iterdir()} if output.is_dir() else set()
    # A run that was killed as it wrote its first manifest has left the draft.
    inside = {
        name for name in names if name != ".lock" and not re.fullmatch(r"\.manifest\.json.*\.tmp", name)
    }
    for plan in plans:
        if plan.path.parent in ((output / "notebooks").resolve(), output):
            raise PlanError(f"--output {output} would overwrite {plan.path.parent}; give another folder")
    if inside and "manifest.json" not in inside:
        raise PlanError(f"--output {output} has other files and no manifest.json of a run; give a new folder")
    output.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / ".lock", timeout=0):
            yield
    except Timeout:
        raise OSError("another run is writing there; wait for it or give another --output") from None


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
    are in place, and the same call continues. A folder once started `fresh` uses nothing cached before then.

    Raises PlanError when `output` holds something else than a run, and OSError when another run is writing
    there or it cannot be written.
    """
    show = show or Display()
    output, root = output.resolve(), data_root(data_dir)
    environment = CPU_SETTINGS | {
        "INFOCAM_DATA": str(root),
        "INFOCAM_OUTPUT": str(output),
        "INFOCAM_PROGRESS": str(output / "logs" / ".progress"),
        "IPYTHONDIR": str(output / "logs" / ".ipython"),  # a user's start-up files must not change results
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])),
    }
    with _only_run_in(output, plans):
        before = read_manifest(output / "manifest.json")
        fresh_since = time.time() if fresh else before.get("fresh_since")
        if isinstance(fresh_since, float):
            environment["INFOCAM_FRESH_SINCE"] = str(fresh_since)
        manifest = {
            "name": name,
            "command": command,
            "started": time.strftime(TIME, time.gmtime()),
            "finished": None,
            "fresh_since": fresh_since,
            "provenance": provenance(),
            "data": {k: v for plan in plans for k, v in data_used(plan.in_force, root).items()},
            "notebooks": before["notebooks"],
        }
        memory = _Memory(output, manifest)
        (output / "index.html").unlink(missing_ok=True)
        memory.save()
        if fresh:
            memory.begin([plan.name for plan in plans], "waiting")
        for plan in plans:
            key = run_key(plan, root, output, results)
            if memory.is_done(plan.name, key):
                show.line(f"{plan.name} is done and unchanged; --fresh runs it again")
            else:
                memory.begin([plan.name], "running")
                memory.end(plan.name, run_notebook(plan, output, environment, show) | {"key": key})
            status = memory.entries[plan.name]["status"]
            if status == "done" and after is not None:
                after(plan)
            if status == "interrupted":
                break
        manifest["finished"] = time.strftime(TIME, time.gmtime())
        memory.save()
        reports.write_index(output, manifest, results)
    return manifest
