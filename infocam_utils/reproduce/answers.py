"""The answers and tables that README, notebooks and ``results/SCORECARD.md`` share, rendered from tidy rows.

Nothing is typed: each function takes rows, of one run or of all, and returns text, "" where they say nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from infocam_utils.reproduce import results
from infocam_utils.reproduce.results import number, select, setting_words

if TYPE_CHECKING:
    import pandas as pd


def _wide(rows: pd.DataFrame, index: list[str], title: str) -> str:
    """A table with a line for each setting and a column for each `column`, in their order."""
    if rows.empty:
        return ""
    cells = rows.assign(text=[number(row, unit=False) for row in rows.to_dict("records")])
    wide = cells.pivot(index=index, columns="column", values="text")[list(dict.fromkeys(cells["column"]))]
    wide = wide.reset_index().fillna("–").astype(str)
    return f"{title}\n\n{results.grid(list(wide.columns), wide.to_numpy().tolist())}"


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
    counted = [_counted(cases["plain"], metric, better) for metric, better in TRUST.items()]
    if found := [text for text in counted if text]:
        where = "Where training stops early, decays the bias or moves the whole network the loss is better in"
        said.insert(1, f"{where} {'; in '.join(found)}.")
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
    return f"{words} in {better_in} of {len(sides)} settings, worse in {worse_in}"


def _gauge_runs(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Of each run that trained a network: setting, common share at both ends, gain with and without it."""
    gains = select(rows, method="infocam", against="least_likely", than_method="cam", metric="gt_known")
    gains = select(gains, head=["own", "own_zero_sum"], second_layer=None)
    shares = select(rows, head="own", metric="common_share")
    if gains.empty or "epoch" not in shares or shares["epoch"].isna().all():
        return []
    found = []
    for run, of_run in gains.groupby("run", sort=True):
        lead = {row["head"]: row for row in select(of_run, region=of_run["region"].max()).to_dict("records")}
        course = results.over_seeds(select(shares[shares["epoch"].notna()], run=run)).sort_values("epoch")
        row = results.known(lead["own"])
        by = {"sgd": "SGD", "adamw": "AdamW"}.get(str(row.get("optimizer")), "an optimizer")
        how = "fine-tunes a pretrained network" + ", as in the paper" * (by == "SGD")
        found.append(
            {
                "setting": setting_words({**lead["own"], "head": None}),
                "how": f"{by} {how if row.get('weights') else 'trains one from scratch'}",
                "shares": [100 * float(course["value"].iloc[i]) for i in (0, -1)],
                "own": lead["own"],
                "without": lead["own_zero_sum"],
            }
        )
    return found


def gauge(rows: pd.DataFrame) -> str:
    """What infoCAM's gain over CAM owes to the common vector that training leaves, by how it was trained.

    From networks that were trained: of the head as training left it and of the same classifier without its
    common vector, on which CAM differs and infoCAM does not, at equal region; the largest of each kind.
    """
    explained: dict[str, list[float]] = {}
    for run in _gauge_runs(rows):
        explained.setdefault(run["how"], []).append(abs(run["own"]["value"] - run["without"]["value"]))
    if not explained:
        return ""
    most = [
        f"at most {max(points):.1f} points where {how}" for how, points in sorted(explained.items())[::-1]
    ]
    return f"Of infoCAM's gain on CAM (GT-known) the common vector explains {'; '.join(most)}."


def gauge_table(rows: pd.DataFrame) -> str:
    """The same run by run: how large the common vector was and became, and the gain with and without it."""
    lines = [
        [
            run["setting"],
            run["how"].split()[0],
            "{:.0f} → {:.0f} %".format(*run["shares"]),
            number(run["own"], unit=False),
            number(run["without"], unit=False),
        ]
        for run in _gauge_runs(rows)
    ]
    title = (
        "**The gauge that training leaves** (notebook 04): infoCAM − CAM, GT-known in points, head as trained"
    )
    head = ["setting", "by", "common vector", "gain", "gain without the common vector"]
    return f"{title}\n\n{results.grid(head, lines)}" if lines else ""


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
            names = [results.weights_words(row) for row in rows_]
            each = [f"{number(row, digits=2)} from {name}" for row, name in zip(rows_, names, strict=True)]
            said.append(f"{rows_[0]['dataset']}, {rows_[0]['few']} : all: {', '.join(each)}")
    return "; ".join(said) + "." * bool(said)


def theory(rows: pd.DataFrame) -> str:
    """What the readings say of labels that were shuffled, of which nothing is to be learned (notebook 01)."""
    read = select(rows, labels="permuted", metric="mutual_information")
    if not {"softmax", "log_k_minus_ce"} <= set(read.get("method", [])):
        return ""
    found = {row["method"]: number(row, digits=3) for row in results.over_seeds(read).to_dict("records")}
    return (
        "Its loss is the entropy of the labels less what it knows of them, so it can only fall short. Of "
        f"shuffled, unequal labels it reads {found['softmax']}, and log K − CE {found['log_k_minus_ce']} of "
        "information that is not there."
    )


def synthetic(rows: pd.DataFrame) -> str:
    """How far the readings are off on mixtures whose information is known (notebook 02)."""
    said = []
    for shares, method, words in (
        ("balanced", "softmax", "softmax is off by {} at most with equal classes"),
        ("imbalanced", "pc", "PC-softmax by {} with unequal ones"),
        ("imbalanced", "log_k_minus_ce", "log K − CE overshoots there by {} on average"),
    ):
        metric = "mean_error" if method == "log_k_minus_ce" else "worst_error"
        of_runs = select(rows, shares=shares, method=method, metric=metric)
        if of_runs.empty:
            return ""
        worst = max(results.over_seeds(of_runs).to_dict("records"), key=lambda row: abs(row["value"]))
        said.append(words.format(number(worst, digits=4)))
    return f"Over the dimensions, {'; '.join(said)}."


NOTEBOOKS = {  # each with what it asks
    "01_mi_theory": "Why is a classifier an estimator of mutual information?",
    "02_synthetic_estimation": "How close does it come where the information is known exactly?",
    "03_pc_softmax_imbalanced_cub": "Does PC-softmax help rare classes, more than a correction afterwards?",
    "04_infocam_localization": "Does infoCAM localize better than CAM, and how much of that is the gauge?",
}


def gain(rows: pd.DataFrame, what: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """From where to where the paired difference of two methods lies over the runs, how often it is clear."""
    pool = rows if "than_method" not in rows else select(rows, **first, than_method=second["method"])
    if "than_method" not in rows or pool.empty:  # made from the seeds of both
        singles = select(rows, than_method=None)
        if select(singles, **first).empty or select(singles, **second).empty:
            return ""
        pool = results.difference(singles, first, second)
    leads = results.over_seeds(pool).to_dict("records")
    clear = [row for row in leads if not math.isnan(row["low"])]
    ends = [min(row["value"] for row in leads), max(row["value"] for row in leads)]
    text = f"{what} {number({'value': ends[0], 'unit': 'points'}, unit=False)} to "
    text += f"{number({'value': ends[1], 'unit': 'points'})}"
    above, below = sum(row["low"] > 0 for row in clear), sum(row["high"] < 0 for row in clear)
    return f"{text} (interval above 0 in {above} of {len(leads)} settings, below in {below}). "


def answer(notebook: str, rows: pd.DataFrame) -> str:
    """The answer of a notebook, "01" to "04", from its own rows or those of all runs."""
    if notebook == "01":
        return theory(rows)
    if notebook == "02":
        return synthetic(rows)
    if notebook == "03":
        chosen = select(rows, test="all", metric="per_class_accuracy", setting=None)
        what = "PC-softmax − softmax, per-class accuracy:"
        text = gain(chosen, what, {"method": "pc"}, {"method": "softmax"})
        start = starting_point(rows)
        nats = f" What heads on frozen features learn of the label: {start}" if start else ""
        return text + loss_or_correction(rows) + nats
    text, heads = "", {"free": "on a head that AdamW leaves free", "decayed": "on one without common vector"}
    for head, words in heads.items():
        chosen = select(rows, metric="gt_known", head=head, region=1, second_layer=None)
        infocam = {"method": "infocam", "against": "least_likely"}
        text += gain(chosen, f"infoCAM − CAM, GT-known, {words}:", infocam, {"method": "cam"})
    return text + gauge(rows)


def listing(rows: pd.DataFrame) -> str:
    """Every notebook's question with its answer, a sentence a line, as the README shows them."""
    parts = []
    for name, question in NOTEBOOKS.items():
        said = answer(name[:2], select(rows, notebook=name[:2])).strip()
        lines = [f"- {one}" for one in said.replace(". ", ".\n").splitlines()]
        parts.append("\n".join([f"**[{name[:2]}](notebooks/{name}.ipynb) {question}**\n", *lines]))
    return "\n\n".join(parts)


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
    found = found.assign(data=[f"[{run}]({run}/03.csv)" for run in found["run"]])
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
        made.append(row | {"column": name + end + than, "data": f"[{row['run']}]({row['run']}/04.csv)"})
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
    found["data"] = [f"[{run}]({run}/04.csv)" for run in found["run"]]
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
    names = results.DEFECTS
    found = select(rows, notebook="04", metric="top1_loc", official=list(names))
    if found.empty:
        return ""
    found = found.assign(
        column=found["official"].map(names),
        data=[f"[{run}]({run}/04.csv)" for run in found["run"]],
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
