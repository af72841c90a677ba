"""Which notebooks run with which parameters: names, profiles and values checked before anything starts."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

from infocam_utils.records import checkout


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
