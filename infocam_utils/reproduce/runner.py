"""The strict notebook runner: plan, execute with papermill, show progress, keep and resume.

A run is a folder: ``notebooks/`` (executed), ``html/``, ``results/``, ``figures/``, ``logs/``, ``failed/``,
``previous/``, ``index.html`` and ``manifest.json``. The manifest is also the memory: a notebook whose key
(cells, package, parameters, profile, data) is there as done, and whose files are all there and readable, is
not run again. Before a notebook runs again the manifest says so, and only then what it made before moves to
``previous/``: it stays there when the new run fails or is killed, and no later notebook takes it for this
run's.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import json
import operator
import os
import re
import signal
import sys
import threading
import time
from ast import literal_eval
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import nbformat
import yaml
from filelock import FileLock, Timeout

from infocam_utils.data.store import atomic_write, checkout, code_digest, data_root, file_digest
from infocam_utils.reproduce import report as reports
from infocam_utils.reproduce.results import Results, provenance, read

PACKAGE = Path(__file__).resolve().parents[1]
DATA = ("dataset", "datasets", "weights")  # the parameters and recipe fields that name data
# glibc gives large buffers back to the kernel after every layer and asks for them again, which can double
# the time of a network on a CPU; kept, they are reused. Other C libraries ignore these. Threads that spin
# while they wait for each other waste a core that another program uses; passive ones sleep.
CPU_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "OMP_WAIT_POLICY": "PASSIVE",
}
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class PlanError(ValueError):
    """A request that cannot be: what does not exist, or a value or an output of the wrong kind."""


class RunError(Exception):
    """The run cannot start; the message says why and what to do."""


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


def _near(name: str, known: Iterable[str]) -> str:
    known = sorted(set(known))
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
        For a name that fits none or several, with the near matches; for two notebooks of one number.
    """
    known = {p.stem: p for p in sorted(folder.glob("*.ipynb"))}
    chosen: set[str] = set()
    for name in names or known:
        stem = name.removesuffix(".ipynb").rpartition("/")[2]
        fits = [stem] if stem in known else [k for k in known if k.startswith(stem)]
        if len(fits) != 1:
            raise PlanError(f"unknown notebook {name!r}; {_near(stem, fits or known)}")
        chosen.add(fits[0])
    numbers: dict[str, str] = {}
    for name in sorted(chosen):
        other = numbers.setdefault(name[:2], name)
        if other != name:
            raise PlanError(
                f"{other} and {name} would both write results/{name[:2]}.csv; rename one or run them apart"
            )
    return [known[k] for k in known if k in chosen]


def read_parameters(path: Path) -> dict[str, Parameter]:
    """The parameters in the cell tagged ``parameters``, by `papermill.inspect_notebook`.

    A default must be a literal, since the type of a computed one is not known without running it. A comment
    that says what None means, as in ``limit = 1000  # images; None: all``, lets a parameter be None.

    Raises
    ------
    PlanError
        When the notebook cannot be read, or a line of that cell is not ``name = literal  # comment``.
    """
    import papermill

    try:
        inspected = papermill.inspect_notebook(path)
        cells = nbformat.read(path, as_version=4).cells
    except Exception as error:  # a damaged notebook fails in as many ways as there are readers
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise PlanError(f"{path.name} is not a notebook that can be read: {first[:200]}") from error
    source = next((c.source for c in cells if "parameters" in c.metadata.get("tags", [])), "")
    try:
        compile(source, path.name, "exec")
    except (SyntaxError, ValueError) as error:
        raise PlanError(f"{path.name}: the parameters cell is not Python: {error}") from error
    found = {}
    for name in re.findall(r"^(\w+)\s*(?::[^=\n]*)?=", source, re.M):
        try:
            default = literal_eval(inspected[name]["default"])
        except (KeyError, ValueError, SyntaxError):
            raise PlanError(
                f"{path.name}: the default of {name!r} must be a literal, on a line with one equals sign"
            ) from None
        optional = re.search(r"\bNone\b", inspected[name]["help"]) is not None
        found[name] = Parameter(default, _kind(default, optional))
    return found


def _kind(default: Any, optional: bool) -> Any:
    if default is None:
        return Any
    kind: Any = type(default)
    if kind is list and default:
        kind = list[functools.reduce(operator.or_, map(type, default))]  # type: ignore[misc]
    return kind | None if optional else kind


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if len(_alternatives(kind)) > 1:
        return any(_fits(value, one) for one in _alternatives(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0]) for item in value)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is (NoneType if kind is None else kind)


def checked(name: str, value: Any, parameter: Parameter) -> Any:
    """`value`, if it has the type that the parameter takes; a whole number becomes a float where one is due.

    >>> checked("epochs", "3", Parameter(10, int))
    Traceback (most recent call last):
    ...
    infocam_utils.reproduce.runner.PlanError: parameter 'epochs' must be int like its default 10, was '3'
    """
    if not _fits(value, parameter.kind):
        kinds = " or ".join(
            "None" if one in (None, NoneType) else one.__name__ if isinstance(one, type) else str(one)
            for one in _alternatives(parameter.kind)
        )
        like = "" if parameter.default is None else f" like its default {parameter.default!r}"
        raise PlanError(f"parameter {name!r} must be {kinds}{like}, was {value!r}")
    alone = int not in _alternatives(parameter.kind) and float in _alternatives(parameter.kind)
    return float(value) if alone and type(value) is int else value


def parse(text: str, kind: Any) -> Any:
    """A value typed on a command line, read as what the parameter takes.

    >>> parse("1e-3", float), parse("[0, 1]", list[int]), parse("5", str), parse("null", str | None)
    (0.001, [0, 1], '5', None)
    """
    kinds = _alternatives(kind)
    if str in kinds:
        return None if NoneType in kinds and text in ("null", "None") else text
    try:
        value = None if text == "None" else yaml.safe_load(text)
        json.dumps(value)  # a date, say, is no parameter
        # YAML 1.1 reads 1e-3 as a string.
        return float(value) if float in kinds and isinstance(value, str) else value
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return text


def read_profile(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The profile's parameters: under ``common`` for all notebooks, else by notebook."""
    known = {p.stem: p for p in (folder / "profiles").glob("*.yaml")}
    if name not in known:
        raise PlanError(f"unknown profile {name!r}; {_near(name, known)}")
    try:
        content = yaml.safe_load(known[name].read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlanError(f"profile {name!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(v or {}, dict) for v in content.values()):
        raise PlanError(f"profile {name!r} must map notebooks (or 'common') to parameters")
    stems = {p.stem for p in folder.glob("*.ipynb")}
    for key in content:
        if key != "common" and key not in stems:
            raise PlanError(f"profile {name!r} names an unknown notebook {key!r}; {_near(key, stems)}")
    return {key: value or {} for key, value in content.items()}


@dataclass(frozen=True)
class _Taker:
    """What one notebook takes: its parameters and, if one of them is `recipe`, the recipe's fields."""

    path: Path
    parameters: Mapping[str, Parameter]
    fields: Mapping[str, Parameter]

    @property
    def names(self) -> set[str]:
        return set(self.parameters) | set(self.fields)

    def parameter(self, name: str) -> Parameter:
        return self.parameters[name] if name in self.parameters else self.fields[name]

    def put(self, given: dict[str, Any], name: str, value: Any) -> None:
        """Into `given`: a parameter as it is, a field of the recipe merged over the recipe's default."""
        if name in self.parameters and not (name == "recipe" and self.fields):
            given[name] = checked(name, value, self.parameters[name])
            return
        changes = checked(name, value, self.parameters[name]) if name == "recipe" else {name: value}
        for field_name, change in changes.items():
            if field_name not in self.fields:
                raise PlanError(f"the recipe has no field {field_name!r}; {_near(field_name, self.fields)}")
            changes = changes | {field_name: checked(field_name, change, self.fields[field_name])}
        given["recipe"] = given.get("recipe", self.parameters["recipe"].default or {}) | changes


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
    where = notebook_folder(folder)
    overrides = dict(overrides or {})
    content: dict[str, dict[str, Any]]
    if record is not None:
        names, profile = [str(record.notebook)], str(record.profile)
        content = {record.notebook: dict(record.parameters)}
    else:
        content = read_profile(profile, where)
    said_by = f"profile {profile!r}" if record is None else "the record"
    fields = {name: Parameter(None, kind | None) for name, kind in (recipe_fields or {}).items()}

    def taker(path: Path) -> _Taker:
        known = read_parameters(path)
        return _Taker(path, known, fields if "recipe" in known else {})

    takers = [taker(path) for path in select(names, where)]
    here = {name for one in takers for name in one.names}
    for name in overrides:
        if name not in here:
            raise PlanError(f"unknown parameter {name!r}; {_near(name, here)}")
    common = content.get("common", {})
    if set(common) - here:  # perhaps of a notebook that is not asked for, which may be broken
        others, broken = set(here), False
        for path in where.glob("*.ipynb"):
            try:
                others |= taker(path).names
            except PlanError:
                broken = True
        for name in common:
            if name not in others and not broken:
                raise PlanError(f"{said_by} sets an unknown parameter {name!r}; {_near(name, others)}")
    plans = []
    for one in takers:
        # A record's recipe is whole: what the notebook's default says by now does not come into it.
        whole = record is not None and "recipe" in record.parameters and "recipe" in one.parameters
        given: dict[str, Any] = {"recipe": {}} if whole else {}
        stem = one.path.stem
        for name, value in common.items():
            if name in one.names:
                one.put(given, name, value)
        for name, value in content.get(stem, {}).items():
            if name not in one.names:
                raise PlanError(
                    f"{said_by} sets an unknown parameter {name!r} of {stem}; {_near(name, one.names)}"
                )
            one.put(given, name, value)
        for name, text in overrides.items():
            if name in one.names:
                one.put(given, name, parse(text, one.parameter(name).kind))
        if "profile" in one.parameters:
            given.setdefault("profile", profile)
        for place in (given, given.get("recipe") or {}):
            for name in set(DATA) & set(place):
                place[name] = _located(place[name], data_root(data_dir), known_data)
        planned = Plan(stem, one.path, profile, given, {k: p.default for k, p in one.parameters.items()})
        seeds = planned.in_force.get("seeds")
        if isinstance(seeds, list) and (not seeds or len(set(map(repr, seeds))) < len(seeds)):
            raise PlanError(f"seeds must be distinct, and at least one, were {seeds}")
        plans.append(planned)
    return plans


def _located(value: Any, root: Path, known: Collection[str]) -> Any:
    """Data named for a notebook that runs in another folder: paths that lead somewhere become absolute."""
    if isinstance(value, list):
        return [_located(item, root, known) for item in value]
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
    """The data sets and files that the parameters and their recipe name, each with its digest."""
    named: set[str] = set()
    for place in (parameters, parameters.get("recipe") or {}):
        for value in (place[name] for name in DATA if name in place):
            for item in value if isinstance(value, list) else [value]:
                named |= {item, *item.split(",")} if isinstance(item, str) else set()
    used = {}
    for name in sorted(named - {""}):
        found = next((p for p in (root / name, Path(name)) if p.exists() and p.is_absolute()), None)
        if found is not None and found.resolve() not in (root, *root.parents):
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


def products(output: Path, name: str) -> list[Path]:
    """What a notebook has made in a run's folder: itself executed, its page, its results and figures."""
    fixed = [output / "notebooks" / f"{name}.ipynb", output / "html" / f"{name}.html"]
    results = sorted((output / "results").glob(f"{name[:2]}.*"))
    return [p for p in fixed if p.exists()] + results + sorted((output / "figures").glob(f"{name[:2]}*"))


def intact(output: Path, files: Sequence[str]) -> bool:
    """Whether all of a notebook's files are there and those that a program reads can be read."""
    try:
        for name in files:
            if name.endswith(".ipynb"):
                nbformat.read(output / name, as_version=4)
            elif name.startswith("results/") and name.endswith(".json"):
                read(output / name)
            elif not (output / name).is_file():
                return False
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError):
        return False
    return bool(files)


def read_manifest(path: Path) -> dict[str, Any]:
    """A run's manifest; one that is missing, damaged or of another shape counts as empty."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {k: v for k, v in content["notebooks"].items() if isinstance(v["status"], str)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {"notebooks": {}}
    return content | {"notebooks": known}


class _Memory:
    """The manifest of a run and the files that it vouches for; what changes is on disk before it counts."""

    def __init__(self, output: Path, head: Mapping[str, Any], entries: Mapping[str, Any]) -> None:
        self.output, self.previous = output, output / "previous"
        self.manifest: dict[str, Any] = dict(head) | {"notebooks": dict(entries)}

    def save(self) -> None:
        atomic_write(self.output / "manifest.json", json.dumps(self.manifest, indent=1) + "\n")

    def is_done(self, name: str, key: str) -> bool:
        entry = self.manifest["notebooks"].get(name, {})
        return (
            entry.get("status") == "done"
            and entry.get("key") == key
            and intact(self.output, entry.get("files", ()))
        )

    def begin(self, names: Iterable[str], status: str) -> None:
        """Say that these notebooks run, then put what they made before aside.

        A kill in between is mended by the next call: files that were vouched for and are not yet all aside
        are moved, any others are of a run that did not end, and go.
        """
        names = list(names)
        for name in names:
            old = self.manifest["notebooks"].get(name, {})
            kept = old.get("previous", [])
            if old.get("status", "done") == "done":  # without an entry, somebody may want them still
                kept = [str(p.relative_to(self.output)) for p in products(self.output, name)]
                for file in products(self.previous, name):
                    file.unlink()
            self.manifest["notebooks"][name] = {"status": status} | ({"previous": kept} if kept else {})
        self.save()
        for name in names:
            kept = self.manifest["notebooks"][name].get("previous", [])
            aside = all((self.previous / file).exists() for file in kept)
            for file in products(self.output, name):
                if aside:
                    file.unlink()
                else:
                    target = self.previous / file.relative_to(self.output)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, target)

    def end(self, name: str, entry: Mapping[str, Any]) -> None:
        """Keep what a notebook made if it is done; else only say what became of it."""
        kept = self.manifest["notebooks"][name].get("previous")
        made = products(self.output, name)
        if entry["status"] == "done":
            entry = dict(entry) | {"files": [str(p.relative_to(self.output)) for p in made]}
        else:
            entry = dict(entry) | ({"previous": kept} if kept else {})
            for file in made:
                file.unlink()
        self.manifest["notebooks"][name] = entry
        self.save()
        if entry["status"] == "done":
            for file in products(self.previous, name):
                file.unlink()


def run_notebook(plan: Plan, output: Path, environment: Mapping[str, str], show: Display) -> dict[str, Any]:
    """Execute one notebook and put its files in place; returns its entry for the manifest."""
    partial = output / "failed" / f"{plan.name}.ipynb"
    log = output / "logs" / f"{plan.name}.log"
    progress, kernel_log = (output / "logs" / f".{plan.name}.{end}" for end in ("progress", "kernel"))
    for folder in ("failed", "logs", "notebooks"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    for old in (log, progress):
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

    entry: dict[str, Any] = {"status": "done", "profile": plan.profile, "parameters": plan.in_force}
    start = time.monotonic()
    threading.Thread(target=work, daemon=True).start()
    try:
        _watch(watch, plan.name, progress, show)
    except KeyboardInterrupt:
        entry |= {"status": "interrupted", "error": f"interrupted in cell {watch.cell}"}
    finally:
        progress.unlink(missing_ok=True)
    entry["seconds"] = round(time.monotonic() - start, 1)
    if entry["status"] == "interrupted":
        return entry
    if watch.error is not None:
        error = watch.error
        number = getattr(error, "exec_count", None) or watch.cell
        what = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
        first = what.strip().splitlines()[0]
        said = kernel_log.read_text(errors="replace") if kernel_log.exists() else ""
        text = f"{plan.name}, cell [{number}]\n\n{error}\n\nThe kernel's process said:\n{said}"
        atomic_write(log, _ANSI.sub("", text))
        show.line(f"{plan.name} failed in cell [{number}]: {first}\n  log: {log}\n  notebook: {partial}")
        failure = {"status": "failed", "cell": number, "error": first, "log": str(log.relative_to(output))}
        return entry | failure
    try:
        for record in (output / "results").glob(f"{plan.name[:2]}.json"):
            read(record)
    except ValueError as error:
        show.line(f"{plan.name} ran, but {error}")
        return entry | {"status": "failed", "error": str(error)}
    os.replace(partial, output / "notebooks" / partial.name)
    reports.export_html(output / "notebooks" / partial.name, output / "html" / f"{plan.name}.html")
    show.line(f"{plan.name} done in {entry['seconds']:.0f} s")
    return entry


def _check_output(output: Path, plans: Sequence[Plan]) -> None:
    """Refuse a folder in which a run would write over what is not a run's."""
    for plan in plans:
        if plan.path.parent in ((output / "notebooks").resolve(), output):
            raise PlanError(
                f"--output {output} would overwrite the notebooks in {plan.path.parent}; give another folder"
            )
    inside = [p.name for p in output.iterdir() if p.name != ".lock"] if output.is_dir() else []
    if inside and "manifest.json" not in inside:
        raise PlanError(
            f"--output {output} is not empty and has no manifest.json of a run; give a new or an empty folder"
        )


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
    are in place, and the same call continues. A folder once started `fresh` uses nothing cached before then.

    Raises
    ------
    PlanError
        When `output` holds something else than a run.
    RunError
        When another run is writing there.
    OSError
        When it cannot be written.
    """
    show = show or Display()
    output, root = output.resolve(), data_root(data_dir)
    _check_output(output, plans)
    environment = CPU_SETTINGS | {
        "INFOCAM_DATA": str(root),
        "IPYTHONDIR": str(output / "logs" / ".ipython"),  # a user's start-up files must not change results
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")])),
    }
    with _only_run_in(output):
        before = read_manifest(output / "manifest.json")
        fresh_since = time.time() if fresh else before.get("fresh_since")
        if isinstance(fresh_since, float):
            environment["INFOCAM_FRESH_SINCE"] = str(fresh_since)
        head = {
            "name": name,
            "command": command,
            "started": _now(),
            "finished": None,
            "fresh_since": fresh_since,
            "provenance": provenance(),
            "data": {k: v for plan in plans for k, v in data_used(plan.in_force, root).items()},
        }
        memory = _Memory(output, head, before["notebooks"])
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
            status = memory.manifest["notebooks"][plan.name]["status"]
            if status == "done" and after is not None:
                after(plan)
            if status == "interrupted":
                break
        memory.manifest["finished"] = _now()
        memory.save()
        reports.write_index(output, memory.manifest, results)
    return memory.manifest


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
