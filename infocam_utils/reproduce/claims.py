"""The paper's claims against the records: ``claims.yml`` states them, a rule gives each its verdict.

A verdict is computed, never typed:

- *reproduced*: on the paper's own data, in profile ``paper``, our value is within the row's tolerance of
  the paper's or the paper's lies inside our interval; for a claim that is a direction, the difference's
  interval excludes zero on that side.
- *direction only*: the paired difference's interval excludes zero in the claimed direction.
- *not reproduced*: measured, and neither of these.
- *not attempted*: no record that could decide.
- *cannot be right*: the stated value contradicts another stated value by arithmetic.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import yaml

from infocam_utils.data.store import atomic_write, checkout
from infocam_utils.reproduce.results import Record, RecordBook, exact, read_book

if TYPE_CHECKING:  # pandas takes a second to import; checking the ledger does not need it
    import pandas as pd

REPRODUCED, DIRECTION, NOT_REPRODUCED = "reproduced", "direction only", "not reproduced"
NOT_ATTEMPTED, IMPOSSIBLE = "not attempted", "cannot be right"
_STRENGTH = (NOT_ATTEMPTED, NOT_REPRODUCED, DIRECTION, REPRODUCED)
BEGIN, END = "<!-- scorecard:begin -->", "<!-- scorecard:end -->"


class LedgerError(ValueError):
    """The ledger or what it points to is not as it must be; the message names the row."""


@dataclass(frozen=True)
class Evidence:
    """Where to look: a file under ``results/`` and, in it, our value, a paired difference, or both.

    The difference is oriented so that the claim says it is positive.
    """

    file: str
    value: str | None = None
    direction: str | None = None


@dataclass(frozen=True)
class Claim:
    """A row of ``claims.yml``.

    `data` is the paper's data set and `classes` its number of classes; evidence counts as the paper's own
    data when its book has that data set, profile ``paper`` and a record ``<data>/classes`` of that value.
    `contradicts` names a row whose top-1 localization cannot exceed 100 minus this row's error.
    """

    id: str
    source: str
    statement: str
    metric: str
    data: str
    command: str
    classes: int | None = None
    paper: float | None = None
    unit: str = ""
    tolerance: float = 0.0
    evidence: tuple[Evidence, ...] = ()
    contradicts: str | None = None
    remark: str = ""


@dataclass(frozen=True)
class Finding:
    """What one piece of evidence says."""

    dataset: str
    profile: str
    value: Record | None
    direction: Record | None
    verdict: str

    @property
    def what(self) -> str:
        """The methods whose difference decides, from the record's name: "free/least likely − cam"."""
        name = self.direction.name if self.direction is not None else ""
        return "/".join(name.split("/")[1:-1]).replace("_minus_", " − ").replace("_", " ") or "difference"


@dataclass(frozen=True)
class Judged:
    """A claim, its verdict, what was found, and who of them disagrees."""

    claim: Claim
    verdict: str
    findings: tuple[Finding, ...]
    dissent: str


def _build(kind: type, content: Any, where: str) -> Any:
    known = {f.name: f for f in fields(kind)}
    if not isinstance(content, dict):
        raise LedgerError(f"{where}: expected a mapping, was {content!r}")
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise LedgerError(
                f"{where}: unknown key {key!r}; " + (f"did you mean {near[0]}?" if near else str([*known]))
            )
    try:
        return kind(**content)
    except TypeError as error:
        raise LedgerError(f"{where}: {str(error).partition('()')[2].strip()}") from None


def load_ledger(path: str | Path) -> list[Claim]:
    """Read and check ``claims.yml``.

    Raises
    ------
    LedgerError
        For a row with an unknown or missing key, a value of the wrong type, or a taken identifier.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise LedgerError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("claims"), list):
        raise LedgerError(f"{path} must have a list under 'claims'")
    ledger: list[Claim] = []
    for number, row in enumerate(content["claims"], 1):
        where = f"{path}: row {(row.get('id') if isinstance(row, dict) else None) or number}"
        if isinstance(row, dict):
            entries = row.get("evidence") or []
            if not isinstance(entries, list):
                raise LedgerError(f"{where}: evidence must be a list, was {entries!r}")
            row = row | {"evidence": tuple(_build(Evidence, e, f"{where}: evidence") for e in entries)}
        claim = _build(Claim, row, where)
        for name in ("paper", "tolerance", "classes"):
            if not isinstance(getattr(claim, name), (int, float, type(None))):
                raise LedgerError(f"{where}: {name} must be a number, was {getattr(claim, name)!r}")
        if any(e.value is None and e.direction is None for e in claim.evidence):
            raise LedgerError(f"{where}: evidence must name a value, a direction, or both")
        if claim.id in {c.id for c in ledger}:
            raise LedgerError(f"{where}: the identifier is taken")
        ledger.append(claim)
    for claim in ledger:
        if claim.contradicts is not None and claim.contradicts not in {c.id for c in ledger}:
            raise LedgerError(f"{path}: row {claim.id}: contradicts an unknown row {claim.contradicts!r}")
    return ledger


def load_books(folder: str | Path, prefix: str = "") -> dict[str, RecordBook]:
    """All books under `folder`, by their path in it (``quick/02_synthetic_estimation.json``)."""
    root = Path(folder)
    return {
        "/".join(filter(None, [prefix, p.relative_to(root).as_posix()])): read_book(p)
        for p in sorted(root.rglob("*.json"))
    }


def _record(book: RecordBook, name: str | None, claim: Claim, file: str) -> Record | None:
    if name is None:
        return None
    if name not in book.records:
        near = difflib.get_close_matches(name, book.records, n=2, cutoff=0.3)
        raise LedgerError(f"row {claim.id}: {file} has no record {name!r}; near: {', '.join(near) or 'none'}")
    return book.records[name]


def _find(claim: Claim, evidence: Evidence, book: RecordBook) -> Finding:
    value = _record(book, evidence.value, claim, evidence.file)
    direction = _record(book, evidence.direction, claim, evidence.file)
    if value is not None and value.unit != claim.unit:
        raise LedgerError(
            f"row {claim.id}: is in {claim.unit!r}, its record {value.name!r} in {value.unit!r}"
        )
    # A book may hold several data sets; then a record's name begins with its own.
    first = (direction or value or exact("?", 0.0)).name.partition("/")[0]
    dataset = first if first in book.dataset.split(",") else book.dataset
    size = book.records.get(f"{claim.data}/classes")
    whole = claim.classes is None or (size is not None and size.value == claim.classes)
    own = dataset == claim.data and book.profile == "paper" and whole
    holds = direction is not None and direction.low > 0 and math.isfinite(direction.low)
    near = (
        own
        and value is not None
        and claim.paper is not None
        and (
            abs(value.value - claim.paper) <= claim.tolerance
            or (math.isfinite(value.high - value.low) and value.low <= claim.paper <= value.high)
        )
    )
    if near or (own and holds and claim.paper is None):
        verdict = REPRODUCED
    elif holds:
        verdict = DIRECTION
    elif direction is not None or own:
        verdict = NOT_REPRODUCED
    else:
        verdict = NOT_ATTEMPTED  # a value on other data, without a difference, is context and decides nothing
    return Finding(dataset, book.profile, value, direction, verdict)


def judge(ledger: Sequence[Claim], books: Mapping[str, RecordBook]) -> list[Judged]:
    """The verdict of every claim: its strongest evidence's, with the data sets that disagree beside it."""
    stated = {claim.id: claim.paper for claim in ledger}
    judged = []
    for claim in ledger:
        found = tuple(_find(claim, e, books[e.file]) for e in claim.evidence if e.file in books)
        verdict = max((f.verdict for f in found), key=_STRENGTH.index, default=NOT_ATTEMPTED)
        localization = stated.get(claim.contradicts or "")
        if localization is not None and claim.paper is not None and localization > 100 - claim.paper:
            verdict = IMPOSSIBLE
        others = [f"{f.dataset} ({f.profile}): {f.verdict}" for f in found
                  if f.verdict not in (verdict, NOT_ATTEMPTED) and verdict != IMPOSSIBLE]  # fmt: skip
        judged.append(Judged(claim, verdict, found, "; ".join(others)))
    return judged


def _ours(row: Judged) -> str:
    lines = []
    for finding in row.findings:
        value, direction = finding.value, finding.direction
        parts = [value.text] if value is not None else []
        if direction is not None and direction is not value:
            parts.append(f"{finding.what}: {direction.text}")
        runs = len((value or direction).seeds)  # type: ignore[union-attr]
        seeds = f", {runs} seeds" if runs > 1 else ""
        lines.append(f"{', '.join(parts)} ({finding.dataset}, {finding.profile}{seeds})")
    return "<br>".join(lines) or "–"


def _cells(row: Judged) -> list[str]:
    claim = row.claim
    paper = "–" if claim.paper is None else f"{claim.paper:g} {claim.unit}".strip()
    verdict = f"**{row.verdict}**" + (f"<br>but {row.dissent}" if row.dissent else "")
    return [
        f"{claim.statement} ({claim.metric}; {claim.data})",
        paper,
        _ours(row),
        verdict,
        f"`{claim.command}`",
    ]


HEADER = ["Claim", "Paper", "Ours [95 %]", "Verdict", "Command"]


def markdown(judged: Iterable[Judged]) -> str:
    """The scorecard as a Markdown table, as README and notebook 05 show it."""
    rows = [HEADER, ["---"] * len(HEADER), *map(_cells, judged)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def table(judged: Iterable[Judged]) -> pd.DataFrame:
    """The scorecard as a table with one row per claim."""
    import pandas as pd

    rows = [[row.claim.id, *_cells(row), row.claim.remark] for row in judged]
    plain = [[cell.replace("<br>", "\n").replace("**", "").replace("`", "") for cell in row] for row in rows]
    return pd.DataFrame(plain, columns=["id", *HEADER, "Remark"]).set_index("id")


def scorecard(
    repository: str | Path | None = None, run_dir: str | Path | None = None, name: str = ""
) -> list[Judged]:
    """Every claim of the repository's ``claims.yml``, judged by its ``results``; by default this clone's.

    With `run_dir`, that run's records take the place of the committed ones of the same `name`.
    """
    root = Path(repository) if repository is not None else checkout()
    if root is None:
        raise LedgerError("the ledger is part of a clone of the repository; give that folder")
    books = load_books(root / "results")
    if run_dir is not None:
        books |= load_books(Path(run_dir) / "records", prefix=name)
    return judge(load_ledger(root / "claims.yml"), books)


def write_readme(root: str | Path) -> Path:
    """Put the scorecard between the markers of README.md."""
    readme = Path(root) / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, after = around(text, readme, BEGIN, END)
    return atomic_write(readme, f"{before}{BEGIN}\n{markdown(scorecard(root))}\n{END}{after}")


def around(text: str, readme: Path, begin: str, end: str) -> tuple[str, str]:
    """What stands before and after a marked block, which must be there once."""
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise LedgerError(f"{readme} must have one {begin} and after it one {end}")
    return text.partition(begin)[0], text.partition(end)[2]


def check(root: str | Path) -> list[str]:
    """What disagrees with the records: the README's table and notebook 05's output, as sentences.

    A ledger that points to a record that is not there raises `LedgerError`.
    """
    root = Path(root)
    text = markdown(scorecard(root))
    problems = []
    readme = root / "README.md"
    content = readme.read_text(encoding="utf-8")
    before, after = around(content, readme, BEGIN, END)
    if content != f"{before}{BEGIN}\n{text}\n{END}{after}":
        problems.append("README.md: the scorecard differs from the records; run infocam claims --write")
    for path in sorted((root / "notebooks").glob("05_*.ipynb")):
        shown = [
            "".join(output.get("data", {}).get("text/markdown", ""))
            for cell in nbformat.read(path, as_version=4).cells
            for output in cell.get("outputs", [])
        ]
        if not any(text in output for output in shown):
            problems.append(f"{path.name}: shows another scorecard than the records give; execute it again")
    return problems
