"""The paper's claims against the results: ``claims.yml`` states them, a rule gives each its verdict.

A claim selects rows of the results by their columns: its `value` (ours, beside the paper's number) and its
`direction` (a paired difference that the claim says is positive). Every setting that has such rows is a
finding, and a verdict counts them; it is never typed, and never that of the best finding alone:

- *reproduced*: on the paper's own data at full size, the value of every finding is within the row's tolerance
  of the paper's number or has it inside its interval; without a number, every finding there is above 0.
- *higher*: there, and the interval of every value in % lies above the paper's number.
- *not reproduced*: measured on the paper's own data, and not so.
- *direction only*: on other or smaller data more settings are above 0 than undecided, and none is below.
- *contradicted*: some are below 0, and none above.
- *mixed*: some are above 0, but others are below, or as many undecided.
- *not shown*: measured, and every interval contains 0.
- *not attempted*: no result can decide.
- *cannot be right*: the stated value contradicts another stated value by arithmetic.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import yaml

from infocam_utils.data.store import atomic_write, checkout
from infocam_utils.reproduce import answers, results
from infocam_utils.reproduce.results import HEADS, difference_words, number, select, setting_words

if TYPE_CHECKING:  # pandas takes a second to import; `infocam --help` does not need it
    import pandas as pd

REPRODUCED, NOT_REPRODUCED, DIRECTION = "reproduced", "not reproduced", "direction only"
HIGHER, MIXED, CONTRADICTED, NOT_SHOWN = "higher", "mixed", "contradicted", "not shown"
NOT_ATTEMPTED, IMPOSSIBLE = "not attempted", "cannot be right"
SIGNS = {
    REPRODUCED: "✅",
    HIGHER: "⬆️",
    DIRECTION: "🟢",
    MIXED: "🟡",
    NOT_SHOWN: "⚪",
    NOT_REPRODUCED: "🟠",
    CONTRADICTED: "🔴",
    NOT_ATTEMPTED: "▫️",
    IMPOSSIBLE: "❌",
}
SIDES = ("above", "undecided", "below")
SETTING = (
    *("run", "dataset", "shares", "backbone", "weights", "stride", "frozen", "few", "many", "head", "region"),
    "padding",
)
BLOCKS = {
    "scorecard": ("<!-- scorecard:begin -->", "<!-- scorecard:end -->"),
    "answers": ("<!-- answers:begin -->", "<!-- answers:end -->"),
}


class LedgerError(ValueError):
    """The ledger or what it points to is not as it must be; the message names the row."""


@dataclass(frozen=True)
class Claim:
    """A row of ``claims.yml``.

    `data` is the paper's data set and `classes` its number of classes: a finding is on the paper's own data
    when its data set is that one, not known to come from another archive, and its results have a row
    "classes" of that value. `contradicts` names a
    row whose Top-1 localization cannot exceed 100 minus this row's error.
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
    value: Mapping[Any, Any] = field(default_factory=dict)
    direction: Mapping[Any, Any] = field(default_factory=dict)
    contradicts: str | None = None
    remark: str = ""


@dataclass(frozen=True)
class Finding:
    """What one setting says: our value and the difference, as rows over seeds or images, or one of them."""

    setting: str
    head: str | None
    own: bool
    value: Mapping[Any, Any] | None
    direction: Mapping[Any, Any] | None

    @property
    def side(self) -> str | None:
        """Where the interval of the difference lies: above 0, below 0, or undecided; None without one."""
        row = self.direction
        if row is None or not math.isfinite(float(row["low"])):
            return None
        return "above" if row["low"] > 0 else "below" if row["high"] < 0 else "undecided"


@dataclass(frozen=True)
class Judged:
    """A claim, its verdict and all that was found."""

    claim: Claim
    verdict: str
    findings: tuple[Finding, ...]

    def count(self, head: str | None = None) -> dict[str, int]:
        """How many settings are above 0, undecided and below 0, of all or of those with one head."""
        sides = [f.side for f in self.findings if head is None or f.head == head]
        return {side: sides.count(side) for side in SIDES}


def load_ledger(path: str | Path) -> list[Claim]:
    """Read and check ``claims.yml``.

    Raises
    ------
    LedgerError
        For a row with an unknown or missing key, a value of the wrong type, or a taken identifier.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LedgerError(f"{path} is not there; name the folder of a clone of the repository") from None
    except yaml.YAMLError as error:
        raise LedgerError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("claims"), list):
        raise LedgerError(f"{path} must have a list under 'claims'")
    ledger: dict[str, Claim] = {}
    for number_, row in enumerate(content["claims"], 1):
        where = f"{path}: row {(row.get('id') if isinstance(row, dict) else None) or number_}"
        claim = _claim(row, where)
        if claim.id in ledger:
            raise LedgerError(f"{where}: the identifier is taken")
        ledger[claim.id] = claim
    for claim in ledger.values():
        if claim.contradicts is not None and claim.contradicts not in ledger:
            raise LedgerError(f"{path}: row {claim.id}: contradicts an unknown row {claim.contradicts!r}")
    return list(ledger.values())


def _claim(row: Any, where: str) -> Claim:
    names = {f.name for f in fields(Claim)}
    for key in [*row] if isinstance(row, dict) else [row]:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            raise LedgerError(f"{where}: unknown key {key!r}; did you mean {near or sorted(names)}?")
    for kind, expected in ((int | float | None, "paper tolerance classes"), (dict | None, "value direction")):
        for name in expected.split():
            if not isinstance(row.get(name), kind):
                what = "a number" if name in ("paper", "tolerance", "classes") else "a choice of columns"
                raise LedgerError(f"{where}: {name} must be {what}, was {row[name]!r}")
    try:
        return Claim(**row)
    except TypeError as error:
        raise LedgerError(f"{where}: {str(error).partition('()')[2].strip()}") from None


def judge(ledger: Sequence[Claim], rows: pd.DataFrame) -> list[Judged]:
    """The verdict of every claim from all rows (`results.read_all`); the profile "smoke" decides nothing."""
    stated = {claim.id: claim.paper for claim in ledger}
    other = set(select(rows, archive="another")["run"])
    rows = rows.drop(columns=["archive", "optimizer"], errors="ignore")
    if "profile" in rows:
        rows = rows[rows["profile"] != "smoke"].drop(columns="profile")
    judged = []
    for claim in ledger:
        findings = _findings(claim, rows, other)
        verdict = _verdict(claim, findings)
        localization = stated.get(claim.contradicts or "")
        if localization is not None and claim.paper is not None and localization > 100 - claim.paper:
            verdict = IMPOSSIBLE
        judged.append(Judged(claim, verdict, tuple(findings)))
    return judged


def _findings(claim: Claim, rows: pd.DataFrame, other: Collection[str]) -> list[Finding]:
    values = _summary(claim, "value", claim.value, rows)
    leads = _summary(claim, "direction", claim.direction, rows)
    found = []
    for setting in dict.fromkeys([*leads, *values]):
        value, lead = values.get(setting), leads.get(setting)
        row = dict(lead or value or {})
        size = select(rows, run=row.get("run"), dataset=row.get("dataset"), metric="classes")["value"]
        whole = claim.classes is None or claim.classes in set(size)
        head = row.get("head")
        own = row.get("dataset") == claim.data and whole and row.get("run") not in other
        found.append(Finding(_setting(row), head, own, value, lead))
    return found


def _setting(row: Mapping[Any, Any]) -> str:
    region = results.known(row).get("region", 1)
    seeds = row.get("seeds")
    words = setting_words(row) + (f", {region}×{region} sum" if region > 1 else "")
    return words + (f", {seeds} seeds" if seeds and seeds > 1 else "")


def _summary(
    claim: Claim, what: str, selection: Mapping[Any, Any], rows: pd.DataFrame
) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The selected rows over seeds, by setting; a difference that no row has is made from its methods."""
    if not selection:
        return {}
    second = {k.removeprefix("than_"): v for k, v in selection.items() if k.startswith("than_")}
    for column in [*second, *(k for k in selection if not k.startswith("than_"))]:
        if column not in results.PROPERTIES:
            near = difflib.get_close_matches(column, results.PROPERTIES, n=2)
            raise LedgerError(f"row {claim.id}: {what} selects by an unknown column {column!r}; near: {near}")
    chosen = select(rows, **selection)
    if what == "value":
        chosen = select(chosen, than_method=None)
        over_images = select(chosen, interval="bootstrap over images")  # rather than over seeds alone
        chosen = chosen if over_images.empty else over_images
    elif second and chosen.empty:
        first = {k: v for k, v in selection.items() if k in second}
        rest = {k: v for k, v in selection.items() if k not in first and not k.startswith("than_")}
        pool = select(rows, **rest, than_method=None)
        if len(select(pool, **first)) and len(select(pool, **second)):
            chosen = results.difference(pool, first, second)
    if chosen.empty:
        return {}
    made: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in results.over_seeds(chosen).to_dict("records"):
        if row["unit"] not in (claim.unit, "points" if claim.unit == "%" else claim.unit):
            raise LedgerError(f"row {claim.id}: is in {claim.unit!r}, its {what} in {row['unit']!r}")
        setting = tuple(str(row.get(c)) for c in SETTING)
        if setting in made:
            raise LedgerError(f"row {claim.id}: {what} selects more than one number of {_setting(row)}")
        made[setting] = {str(k): v for k, v in row.items()}
    return made


def _verdict(claim: Claim, findings: Sequence[Finding]) -> str:
    own = [f for f in findings if f.own]
    if claim.paper is not None and any(f.value is not None for f in own):
        values = [f.value for f in own if f.value is not None]
        near = [_near(claim, value) for value in values]
        higher = [claim.unit == "%" and float(value["low"]) > claim.paper for value in values]
        if all(near) or all(higher):
            return REPRODUCED if all(near) else HIGHER
        return MIXED if any(near) or any(higher) else NOT_REPRODUCED
    if claim.paper is None and own:
        sides = [f.side for f in own if f.side]
        if sides and all(side == "above" for side in sides):
            return REPRODUCED
    sides = [f.side for f in findings if f.side]
    above, undecided, below = (sides.count(side) for side in SIDES)
    if not sides:
        return NOT_ATTEMPTED  # a value on other data, without a difference, is context and decides nothing
    if not above:
        return CONTRADICTED if below else NOT_SHOWN
    return DIRECTION if not below and above > undecided else MIXED


def _near(claim: Claim, row: Mapping[Any, Any]) -> bool:
    assert claim.paper is not None
    inside = row["low"] <= claim.paper <= row["high"]  # False where there is no interval
    return bool(abs(row["value"] - claim.paper) <= claim.tolerance or inside)


def ours(row: Judged) -> str:
    """What was found, in a line: the number where there is one, else how many settings lie on which side."""
    values = [f.value for f in row.findings if f.own and f.value is not None]
    if row.claim.paper is not None and values:
        return " · ".join(map(number, values))
    leads = [f.direction for f in row.findings if f.side and f.direction]
    if not leads:
        return "–"
    elsewhere = [f.value for f in row.findings if f.value is not None and row.claim.paper is not None]
    text = f"{_span(elsewhere)} on other data; " if elsewhere else ""
    noun, counts = "difference" if leads[0]["unit"] == "points" else "value", row.count()
    text += f"{noun} {_span(leads)}, above 0 in {counts['above']} of {len(leads)} settings"
    return text + f", below in {counts['below']}"


def _span(rows: Sequence[Mapping[Any, Any]]) -> str:
    """The least and the largest value: "−0.4 to 7.0 points"."""
    ends = [{**pick(rows, key=lambda row: row["value"]), "low": None} for pick in (min, max)]
    return f"{number(ends[0], unit=False)} to {number(ends[1])}"


HEADER = ["The paper says", "Paper", "Here", "Verdict"]


def _cells(row: Judged) -> list[str]:
    claim = row.claim
    paper = "–" if claim.paper is None else f"{claim.paper:g} {claim.unit}".strip()
    return [claim.statement, paper, ours(row), f"{SIGNS[row.verdict]} {row.verdict}"]


def markdown(judged: Iterable[Judged]) -> str:
    """The scorecard as a Markdown table, one line a claim, as README and notebook 05 show it."""
    return results.grid(HEADER, map(_cells, judged))


def table(judged: Iterable[Judged]) -> pd.DataFrame:
    """The scorecard as a table with one row per claim, with the remarks."""
    import pandas as pd

    return pd.DataFrame([[*_cells(r), r.claim.remark.strip()] for r in judged], columns=[*HEADER, "Remark"])


def beside(committed: Iterable[Judged], fresh: Iterable[Judged], name: str) -> pd.DataFrame:
    """What the run of that `name` says on each claim: in this run, and in the committed results."""
    import pandas as pd

    def said(judged: Iterable[Judged]) -> dict[tuple[str, str], str]:
        return {
            (row.claim.statement, finding.setting): number(lead)
            for row in judged
            for finding in row.findings
            if (lead := finding.direction or finding.value) and lead.get("run") == name
        }

    then, now = said(committed), said(fresh)
    lines = [[claim, how, text, then.get((claim, how), "–")] for (claim, how), text in now.items()]
    return pd.DataFrame(lines, columns=[HEADER[0], "Setting", "This run", "Committed"])


def details(judged: Iterable[Judged], rows: pd.DataFrame) -> str:
    """Every finding of every claim and the tables of all runs, as ``results/SCORECARD.md`` shows them."""
    parts = [
        "# Scorecard, finding by finding",
        "Rendered by `infocam claims --write` from the results in this folder. Values with their 95 % "
        "interval; a difference is paired, like with like (same region sum, same test images). Above, "
        "undecided and below count the settings by where the interval of the difference lies.",
    ]
    for row in judged:
        claim, (_, paper, _, verdict) = row.claim, _cells(row)
        parts += [f"## {claim.statement}", f"**{verdict}** · paper: {paper} · {claim.metric}"]
        parts += [
            f"Source: {claim.source}. Command for the paper's data: `{claim.command}`",
            claim.remark.strip(),
        ]
        heads = sorted({f.head for f in row.findings if f.head})
        if len(heads) > 1:
            counts = (f"{HEADS.get(h, h)} {'/'.join(map(str, row.count(h).values()))}" for h in heads)
            parts.append(f"By head, above/undecided/below: {', '.join(counts)}.")
        lines = []
        for f in row.findings:
            lead = number(f.direction) if f.direction else "–"
            if f.direction and f.direction.get("than_method"):
                lead = f"{difference_words(f.direction)}: {lead}"
            lines.append([f.setting, number(f.value) if f.value else "–", lead, f.side or "–"])
        parts.append(results.grid(["setting", "ours", "difference", "lies"], lines) if lines else "")
    parts += ["## Photographs, run by run", answers.real_tables(rows), answers.gauge_table(rows)]
    return "\n\n".join(filter(None, parts)) + "\n"


def values_table(judged: Iterable[Judged]) -> pd.DataFrame:
    """Our values beside the paper's numbers, one line a setting, for a figure."""
    import pandas as pd

    made = [
        {**f.value, "label": f.setting, "paper": row.claim.paper}
        | {"claim": f"{row.claim.statement}, {row.claim.unit}"}
        for row in judged
        for f in row.findings
        if f.value is not None and row.claim.paper is not None
    ]
    return pd.DataFrame(made, columns=["claim", "label", "value", "low", "high", "paper"])


def directions_table(judged: Iterable[Judged]) -> pd.DataFrame:
    """Every difference of percentages that a claim says is positive, one line a setting, for a figure."""
    import pandas as pd

    made = [
        {**f.direction, "label": setting_words({**f.direction, "head": None}), "claim": row.claim.statement}
        for row in judged
        for f in row.findings
        if f.direction is not None and f.direction["unit"] == "points"
    ]
    return pd.DataFrame(made, columns=["claim", "label", "head", "unit", "value", "low", "high"])


def scorecard(
    repository: str | Path | None = None, run_dir: str | Path | None = None, name: str = ""
) -> list[Judged]:
    """Every claim of the repository's ``claims.yml``, judged by its ``results``; by default this clone's.

    With `run_dir`, that run's results take the place of the committed ones of the same `name`.
    """
    root = Path(repository) if repository is not None else checkout()
    if root is None:
        raise LedgerError("the ledger is part of a clone of the repository; give that folder")
    return judge(load_ledger(root / "claims.yml"), rows_with(root, run_dir, name))


def rows_with(root: Path, run_dir: str | Path | None = None, name: str = "") -> pd.DataFrame:
    """All committed rows, those of a run in place of the committed ones of the same name and notebook."""
    import pandas as pd

    rows = results.read_all(root / "results")
    folder = Path(run_dir) / "results" if run_dir is not None else None
    if folder is None or not folder.is_dir():
        return rows
    fresh = results.read_all(folder).assign(run=name)
    replaced = (rows["run"] == name) & rows["notebook"].isin(set(fresh["notebook"]))
    return pd.concat([rows[~replaced], fresh], ignore_index=True)


def write(root: str | Path) -> list[Path]:
    """Render the scorecard and the answers into README.md, and all of it into ``results/SCORECARD.md``."""
    root = Path(root)
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, content in _blocks(root).items():
        before, after = _around(text, readme, name)
        text = f"{before}{BLOCKS[name][0]}\n{content}\n{BLOCKS[name][1]}{after}"
    atomic_write(readme, text)
    rows = results.read_all(root / "results")
    return [readme, atomic_write(root / "results" / "SCORECARD.md", details(scorecard(root), rows))]


def _blocks(root: Path) -> dict[str, str]:
    rows = results.read_all(root / "results")
    return {"scorecard": markdown(scorecard(root)), "answers": answers.listing(rows)}


def _around(text: str, readme: Path, name: str) -> tuple[str, str]:
    """What stands before and after a marked block, which must be there once."""
    begin, end = BLOCKS[name]
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise LedgerError(f"{readme} must have one {begin} and after it one {end}")
    return text.partition(begin)[0], text.partition(end)[2]


def check(root: str | Path) -> list[str]:
    """What disagrees with the results: README, ``results/SCORECARD.md``, notebook 05; as sentences."""
    root = Path(root)
    readme, blocks = root / "README.md", _blocks(root)
    text = readme.read_text(encoding="utf-8")
    problems = []
    for name, content in blocks.items():
        before, after = _around(text, readme, name)
        if text != f"{before}{BLOCKS[name][0]}\n{content}\n{BLOCKS[name][1]}{after}":
            problems.append(
                f"README.md: the block {name!r} differs from the results; run infocam claims --write"
            )
    pages = root / "results" / "SCORECARD.md"
    if not pages.is_file() or pages.read_text(encoding="utf-8") != details(
        scorecard(root), results.read_all(root / "results")
    ):
        problems.append("results/SCORECARD.md differs from the results; run infocam claims --write")
    for path in sorted((root / "notebooks").glob("05_*.ipynb")):
        shown = [
            "".join(output.get("data", {}).get("text/markdown", ""))
            for cell in nbformat.read(path, as_version=4).cells
            for output in cell.get("outputs", [])
        ]
        if not any(blocks["scorecard"] in output for output in shown):
            problems.append(f"{path.name}: shows another scorecard than the results give; execute it again")
    return problems
