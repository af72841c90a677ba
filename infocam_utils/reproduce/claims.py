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
from infocam_utils.reproduce import results
from infocam_utils.reproduce.results import difference_words, number, select, setting_words

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
    "real": ("<!-- real:begin -->", "<!-- real:end -->"),
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
    text = f"{_span(elsewhere)} on other or smaller data; " if elsewhere else ""
    noun = "difference" if leads[0]["unit"] == "points" else "value"
    text += f"{noun} ({_span(leads)}) above 0 in {row.count()['above']} of {len(leads)} settings"
    text += f", below in {row.count()['below']}"
    heads = sorted({f.head for f in row.findings if f.head})
    if len(heads) > 1:
        counts = (f"{h} head {'/'.join(map(str, row.count(h).values()))}" for h in heads)
        text += f" (above/undecided/below: {', '.join(counts)})"
    return text


def _span(rows: Sequence[Mapping[Any, Any]]) -> str:
    """The least and the largest value: "−0.4 to 7.0 points"."""
    ends = [{**pick(rows, key=lambda row: row["value"]), "low": None} for pick in (min, max)]
    return f"{number(ends[0], unit=False)} to {number(ends[1])}"


HEADER = ["The paper says", "Paper", "Here", "Verdict"]


def _cells(row: Judged) -> list[str]:
    claim = row.claim
    paper = "–" if claim.paper is None else f"{claim.paper:g} {claim.unit}".strip()
    return [claim.statement, paper, ours(row), f"{SIGNS[row.verdict]} {row.verdict}"]


def _grid(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    table = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table)


def markdown(judged: Iterable[Judged]) -> str:
    """The scorecard as a Markdown table, one line a claim, as README and notebook 05 show it."""
    return _grid(HEADER, map(_cells, judged))


def table(judged: Iterable[Judged]) -> pd.DataFrame:
    """The scorecard as a table with one row per claim, with the remarks."""
    import pandas as pd

    return pd.DataFrame([[*_cells(r), r.claim.remark.strip()] for r in judged], columns=[*HEADER, "Remark"])


def details(judged: Iterable[Judged]) -> str:
    """Every finding of every claim, as ``results/SCORECARD.md`` shows them."""
    parts = [
        "# Scorecard, finding by finding",
        "Rendered by `infocam claims --write` from the results in this folder. Values with their 95 % "
        "interval; a difference is paired, like with like (same region sum, same test images).",
    ]
    for row in judged:
        claim, (_, paper, _, verdict) = row.claim, _cells(row)
        parts += [f"## {claim.statement}", f"**{verdict}** · paper: {paper} · {claim.metric}"]
        parts += [
            f"Source: {claim.source}. Command for the paper's data: `{claim.command}`",
            claim.remark.strip(),
        ]
        lines = []
        for f in row.findings:
            lead = number(f.direction) if f.direction else "–"
            if f.direction and f.direction.get("than_method"):
                lead = f"{difference_words(f.direction)}: {lead}"
            lines.append([f.setting, number(f.value) if f.value else "–", lead, f.side or "–"])
        parts.append(_grid(["setting", "ours", "difference", "lies"], lines) if lines else "")
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
        {**f.direction, "label": _setting({**f.direction, "head": None}), "claim": row.claim.statement}
        for row in judged
        for f in row.findings
        if f.direction is not None and f.direction["unit"] == "points"
    ]
    return pd.DataFrame(made, columns=["claim", "label", "head", "unit", "value", "low", "high"])


def _wide(rows: pd.DataFrame, index: list[str], title: str) -> str:
    """A table with a line for each setting and a column for each `column`, in their order."""
    if rows.empty:
        return ""
    cells = rows.assign(text=[number(row, unit=False) for row in rows.to_dict("records")])
    wide = cells.pivot(index=index, columns="column", values="text")[list(dict.fromkeys(cells["column"]))]
    wide = wide.reset_index().fillna("–").astype(str)
    return f"{title}\n\n{_grid(list(wide.columns), wide.to_numpy().tolist())}"


# What tells whether the posteriors for balanced classes are better, and which sign of a difference is.
TRUST = {"per_class_accuracy": 1, "negative_log_likelihood": -1, "calibration_error": -1}
ALIKE = {"points": 0.05, "nats": 5e-4}  # what is closer counts as equal, however narrow its interval


def loss_or_correction(rows: pd.DataFrame) -> str:
    """Whether PC-softmax beats a softmax that is corrected after training, in a sentence each of three cases.

    From the paired differences over seeds, over all test images for balanced classes: of converged heads on
    frozen features, of trained networks and stopped or decayed heads, and of these from a log-prior start.
    With a bias that is not decayed, PC-softmax is the softmax with its bias moved by log π, so that from that
    start every gradient is the same.
    """
    pool = select(rows, method=["pc", "post_hoc"], than_method=None, test="all", metric=list(TRUST))
    if not {"pc", "post_hoc"} <= set(pool.get("method", [])):
        return ""
    gaps = results.over_seeds(results.difference(pool, {"method": "pc"}, {"method": "post_hoc"}))
    cases: dict[str, list[Mapping[Any, Any]]] = {"converged": [], "plain": [], "started": []}
    for row in gaps.to_dict("records"):
        setting = results.known(row).get("setting")
        converged = setting is None and bool(row["frozen"])
        cases["converged" if converged else "started" if "log-prior" in str(setting) else "plain"].append(row)
    said = []
    together = {
        "converged": "On frozen features with a converged head the loss and the correction are one model",
        "started": "Once the softmax's bias starts at the log prior they are one training but for rounding",
    }
    for case, what in together.items():
        if leads := [abs(r["value"]) for r in cases[case] if r["metric"] == "per_class_accuracy"]:
            settings = f"{len(leads)} setting{'s' * (len(leads) > 1)}"
            said.append(f"{what}: at most {max(leads):.1f} points of per-class accuracy apart ({settings}).")
    if found := [_counted(cases["plain"], metric, better) for metric, better in TRUST.items()]:
        where = "Where training stops early, decays the bias or moves the whole network"
        said.insert(1, f"{where}, {'; '.join(filter(None, found))}.")
    return " ".join(said)


def _counted(leads: Sequence[Mapping[Any, Any]], metric: str, better: int) -> str:
    """In how many settings the loss is better and worse than the correction by a metric."""
    sides = []
    for row in leads:
        if row["metric"] == metric and not math.isnan(row["low"]):
            apart = abs(row["value"]) >= ALIKE[row["unit"]] and row["low"] * row["high"] > 0
            sides.append(apart * math.copysign(1, row["value"] * better))
    if not sides:
        return ""
    words = metric.replace("_", " ").replace("per class", "per-class")
    better_in, worse_in = sides.count(1), sides.count(-1)
    return f"the loss has the better {words} in {better_in} of {len(sides)} settings, the worse in {worse_in}"


def gauge(rows: pd.DataFrame) -> str:
    """How large the common vector is that training leaves, and what infoCAM's gain over CAM owes to it.

    From networks that were trained: of the head as training left it and of the same classifier without its
    common vector, on which CAM differs and infoCAM does not, at equal region.
    """
    gains = select(rows, method="infocam", against="least_likely", than_method="cam", metric="gt_known")
    gains = select(gains, head=["own", "own_zero_sum"], second_layer=None)
    shares = select(rows, head="own", metric="common_share")
    if gains.empty or "epoch" not in shares or shares["epoch"].isna().all():
        return ""
    said: list[str] = []
    explained: dict[str, list[float]] = {}
    for run, found in gains.groupby("run", sort=True):
        region = found["region"].max()
        lead = {row["head"]: row for row in select(found, region=region).to_dict("records")}
        course = results.over_seeds(select(shares[shares["epoch"].notna()], run=run)).sort_values("epoch")
        first, last = (100 * float(course["value"].iloc[i]) for i in (0, -1))
        own, without = (number(lead[head], unit=False) for head in ("own", "own_zero_sum"))
        row = results.known(lead["own"])
        by = {"sgd": "SGD", "adamw": "AdamW"}.get(str(row.get("optimizer")), "an optimizer")
        how = "fine-tunes a pretrained network" + ", as in the paper" * (by == "SGD")
        explained.setdefault(f"{by} {how if row.get('weights') else 'trains one from scratch'}", []).append(
            abs(row["value"] - lead["own_zero_sum"]["value"])
        )
        said.append(
            f"{setting_words({**lead['own'], 'head': None})}: the common vector goes from {first:.0f} to "
            f"{last:.0f} % of the class weights, infoCAM gains {own} points on CAM, and {without} once "
            "it is gone"
        )
    most = [
        f"at most {max(explained[how]):.1f} points where {how}" for how in sorted(explained, reverse=True)
    ]
    text = f"Of infoCAM's gain on CAM the common vector explains {'; '.join(most)}. "
    return text + "; ".join(said) + "."


def starting_point(rows: pd.DataFrame) -> str:
    """How many nats a head learns of the same labels from networks that were trained on different images.

    >>> import pandas as pd
    >>> row = {"dataset": "d", "frozen": True, "few": 5, "method": "softmax", "metric": "mutual_information",
    ...        "backbone": "b", "unit": "nats", "seed": 0}
    >>> two = [row | {"weights": "b_x", "value": 3.0}, row | {"weights": "b_y", "value": 4.0}]
    >>> starting_point(pd.DataFrame(two))
    'd, 5 : all: 3.00 nats from x, 4.00 nats from y.'
    """
    read = select(rows, metric="mutual_information", method="softmax", frozen=True)
    if read.empty or "weights" not in read or read["weights"].isna().all():
        return ""
    said = []
    for _, group in results.over_seeds(read[read["weights"].notna()]).groupby(["dataset", "few"], sort=True):
        if group["weights"].nunique() > 1:
            rows_ = group.sort_values("value").to_dict("records")
            names = [str(row["weights"]).removeprefix(f"{row['backbone']}_") for row in rows_]
            each = [f"{number(row, digits=2)} from {name}" for row, name in zip(rows_, names, strict=True)]
            said.append(f"{rows_[0]['dataset']}, {rows_[0]['few']} : all: {', '.join(each)}")
    return "; ".join(said) + "." * bool(said)


def answers(rows: pd.DataFrame) -> str:
    """The two questions that the paper leaves open, answered from the rows of all runs."""
    parts = [
        "**Does the loss ever beat the correction?** " + loss_or_correction(select(rows, notebook="03")),
        "**What does the gauge do in the paper's own regime?** " + gauge(select(rows, notebook="04")),
        "**What is the starting point worth?** Mutual information that a head on frozen features reads off, "
        "by the network's own training images: " + starting_point(select(rows, notebook="03")),
    ]
    return "\n\n".join(part for part in parts if not part.endswith(" "))


def imbalance_table(rows: pd.DataFrame) -> str:
    """Per-class accuracy over all test images by each decision, with the differences that matter."""
    import pandas as pd

    names = {"softmax": "softmax", "post_hoc": "corrected", "pc": "PC-softmax"}
    chosen = {"metric": "per_class_accuracy", "test": "all", "setting": None, "method": list(names)}
    pool = select(rows, notebook="03", **chosen)
    if pool.empty:
        return ""
    leads = [results.difference(pool, {"method": "pc"}, {"method": m}) for m in ("softmax", "post_hoc")]
    found = results.over_seeds(pd.concat([pool, *leads]))
    found = found.assign(data=[f"[{run}](results/{run}/03.csv)" for run in found["run"]])
    found["rare : common"] = [f"{few} : all" for few in found["few"]]
    found["column"] = [
        names[row["method"]] + (f" − {names[row['than_method']]}" if row["unit"] == "points" else "")
        for row in found.to_dict("records")
    ]
    title = "**Imbalanced classes** (notebook 03): per-class accuracy on all test images, in %"
    return _wide(found.astype({"seeds": str}), ["data", "rare : common", "seeds"], title)


def second_layer_table(rows: pd.DataFrame) -> str:
    """GT-known of maps with the region sum and of maps times the surprise of a second layer, a line a run."""
    import pandas as pd

    pool = select(rows, notebook="04", metric="gt_known", interval="bootstrap over images", head="decayed")
    runs = set(select(pool, second_layer="surprise")["run"])
    if not runs:
        return ""
    pool = pool[pool["run"].isin(runs) & (pool["region"].isna() | (pool["region"] > 1))]
    names = {"cam": "CAM", "infocam": "infoCAM", "spread": "spread", "feature_norm": "norm"}
    own = select(pool, method=[*names, "centre_box"], against=[None, "least_likely"], than_method=None)
    leads = select(pool, method="spread", second_layer="surprise", than_method=["cam", "feature_norm"])
    leads = leads[leads["than_region"].notna()] if len(leads) else leads
    made = []
    for row in own.to_dict("records") + leads.to_dict("records"):
        got = results.known(row)
        name = names.get(got["method"], "centre box")
        end = " × surprise" if "second_layer" in got else " + sum" if "region" in got else ""
        than = f" − {names[got['than_method']]} + sum" if "than_method" in got else ""
        made.append(
            row | {"column": name + end + than, "data": f"[{row['run']}](results/{row['run']}/04.csv)"}
        )
    title = "**A second layer** (notebook 04, ours): GT-known in %, decayed head, held-out thresholds"
    return _wide(pd.DataFrame(made), ["data"], title)


def localization_table(rows: pd.DataFrame) -> str:
    """GT-known of class maps, the feature norm and the centre box, like for like: one line a region sum."""
    import pandas as pd

    pool = select(rows, notebook="04", metric="gt_known", interval="bootstrap over images")
    if pool.empty:
        return ""
    names = {"cam": "CAM", "infocam": "infoCAM", "feature_norm": "feature norm"}
    maps = select(pool, method=list(names), against=[None, "least_likely"], than_method=[None, "cam"])
    maps = select(maps, second_layer=None, head=["decayed", "free"])
    maps = maps[maps["than_region"].isna() | (maps["region"] == maps["than_region"])]
    once = (maps["head"] == "decayed") & maps["than_method"].isna()  # the norm knows no head
    maps = maps[(maps["method"] != "feature_norm") | once]
    sums = maps[["run", "region", "padding"]].drop_duplicates()
    centre = select(pool, method="centre_box", head="decayed").drop(columns=["region", "padding"])
    found = pd.concat([maps, centre.merge(sums, on="run")], ignore_index=True)
    found["column"] = [
        names.get(row["method"], "centre box")
        + (" − CAM" if row["unit"] == "points" else "")
        + (f", {row['head']}" if row["method"] in ("cam", "infocam") else "")
        for row in found.to_dict("records")
    ]
    found["data"] = [f"[{run}](results/{run}/04.csv)" for run in found["run"]]
    found["region sum"] = [
        "none" if row["region"] == 1 else f"{row['region']}×{row['region']}, {row['padding']}"
        for row in found.to_dict("records")
    ]
    title = (
        "**Localization** (notebook 04): GT-known in %, threshold from held-out images, infoCAM against the "
        "least likely class, both maps of a difference with the same region sum"
    )
    return _wide(found, ["data", "region sum"], title)


def defects_table(rows: pd.DataFrame) -> str:
    """Top-1 Loc as the official code would have printed it, by each of its defects alone and by all."""
    names = {
        "none": "correct",
        "unclamped_iou": "IoU not clamped",
        "running_average": "running averages",
        "resize_minus_one": "boxes one pixel off",
        "boxes_as_xywh": "boxes read as x y w h",
        "all": "all together",
        "inclusive_boxes": "the field's convention",
    }
    found = select(rows, notebook="04", metric="top1_loc", official=list(names))
    if found.empty:
        return ""
    found = found.assign(
        column=found["official"].map(names),
        data=[f"[{run}](results/{run}/04.csv)" for run in found["run"]],
        low=math.nan,  # of one seed: the changes are exact, the value's own interval stands above
    )
    title = (
        "**What the released code would print** (notebook 04): Top-1 Loc in % of infoCAM with the region sum "
        "at its threshold of 0.2, by each defect alone, one seed; the paper has 55.83 (CUB-200-2011) and "
        "43.34 (Tiny-ImageNet). The field's convention, that of wsolevaluation, counts box ends as inclusive"
    )
    return _wide(found, ["data"], title)


def real_tables(rows: pd.DataFrame) -> str:
    """The tables, of photographs alone: what a network learned that starts from weights."""
    photographs = rows[rows["weights"].notna()] if "weights" in rows else rows[:0]
    tables = (imbalance_table, localization_table, second_layer_table, defects_table)
    made = [t(photographs) for t in tables]
    return "\n\n".join(filter(None, made)) or "No run on photographs yet."


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
    """Render the scorecard and the tables into README.md and ``results/SCORECARD.md``."""
    root = Path(root)
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, content in _blocks(root).items():
        before, after = _around(text, readme, name)
        text = f"{before}{BLOCKS[name][0]}\n{content}\n{BLOCKS[name][1]}{after}"
    atomic_write(readme, text)
    return [readme, atomic_write(root / "results" / "SCORECARD.md", details(scorecard(root)))]


def _blocks(root: Path) -> dict[str, str]:
    rows = results.read_all(root / "results")
    return {"scorecard": markdown(scorecard(root)), "real": real_tables(rows), "answers": answers(rows)}


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
    if not pages.is_file() or pages.read_text(encoding="utf-8") != details(scorecard(root)):
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
