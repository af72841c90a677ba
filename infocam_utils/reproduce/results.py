"""Results as tidy tables: one row a measured number, a column for each of its properties.

``results/NAME/NN.csv`` keeps the rows of notebook NN and ``NN.json`` the parameters that were in force, the
recipes, and what the run was made with. Intervals over seeds, paired differences, comparisons with another
run and the words in which people read a row are computed from the rows, by selecting columns.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infocam_utils.data.store import atomic_write, checkout, data_root, output_root

if TYPE_CHECKING:  # pandas takes a second to import; `infocam --help` does not need it
    import pandas as pd

    Row = Mapping[Any, Any] | pd.Series[Any]

UNITS = ("nats", "%", "points", "s", "")  # points: differences of percentages
MEASURE = "seed value stderr n low high interval".split()
PROPERTIES = (  # all that a row may say it is about, in the order of a table
    "run notebook profile archive optimizer dataset shares labels dimension backbone weights stride frozen "
    "few many test method setting rule tau head against region padding second_layer marginal official images "
    "vector common_length epoch metric unit"
).split()
_THAN = [f"than_{name}" for name in PROPERTIES]  # of the second method of a difference
_INTEGERS = {"seed", "n", "dimension", "stride", "few", "many", "region", "images", "vector", "epoch"}
_NUMBERS = {"value", "stderr", "low", "high", "tau", "common_length"}
# A choice that a table shows beside a number, not a measured number: it may jump where two are as good.
CHOICES = ("threshold",)
NOT_NEGATIVE = ("worst_error",)  # metrics whose interval must not reach below 0
_PLACES = ("data_dir", "output_dir", "results_dir")  # where a run reads and writes, not what it computes
PACKAGES = (
    "infocam torch torchvision numpy scipy scikit-learn pandas numba lightning-fabric papermill nbconvert"
).split()


@dataclass(frozen=True)
class Results:
    """The rows of one run of one notebook, with all that is needed to run it again."""

    rows: pd.DataFrame
    notebook: str
    profile: str
    parameters: Mapping[str, Any]
    recipes: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]
    official: bool = True  # no data set is known to come from an archive that is not the official one


def tidy(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows in the common form: known types, one order of columns, and nothing that cannot be.

    Raises
    ------
    ValueError
        Without the columns metric, unit and value; for an unknown unit, a value that is not finite, an
        interval that does not hold its value, or two rows that say the same of the same seed.

    >>> import pandas as pd
    >>> tidy(pd.DataFrame({"value": [1.0], "unit": ["nats"], "metric": ["error"]})).columns.tolist()
    ['metric', 'unit', 'value']
    """
    table = _typed(rows)
    order = [*PROPERTIES[:-2], *_THAN, *PROPERTIES[-2:], *MEASURE]
    given = set(map(str, table.columns))
    strange, lacking = sorted(given - set(order)), sorted({"metric", "unit", "value"} - given)
    if strange or lacking:
        raise ValueError(f"results need the columns {lacking} and have no columns {strange}; known: {order}")
    table = table[[c for c in order if c in table]].dropna(axis="columns", how="all").reset_index(drop=True)
    _check(table)
    return table


def _typed(rows: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    made: dict[str, Any] = {}
    for name in map(str, rows.columns):
        base = name.removeprefix("than_")
        if base in _INTEGERS:
            made[name] = rows[name].astype("Float64").astype("Int64")
        elif base == "frozen":
            made[name] = rows[name].replace({"True": True, "False": False}).astype("boolean")
        elif base in _NUMBERS:
            made[name] = rows[name].astype("float64")
        else:
            made[name] = rows[name].astype("object").where(rows[name].notna(), None)
    return pd.DataFrame(made)


def _check(table: pd.DataFrame) -> None:
    strange = sorted(set(table["unit"]) - set(UNITS), key=str)
    if strange:
        raise ValueError(f"unit must be one of {UNITS}, got {strange}")
    bad = table[~table["value"].map(math.isfinite)]
    if len(bad):
        raise ValueError(
            f"value must be finite, but {len(bad)} rows are not, the first: {_told(bad.iloc[0])}"
        )
    if {"low", "high"} <= set(table.columns):
        outside = table[(table["low"] > table["value"]) | (table["high"] < table["value"])]
        if len(outside):
            raise ValueError(f"an interval must hold its value, but not in: {_told(outside.iloc[0])}")
    same = table[table.duplicated([*keys(table), *(["seed"] if "seed" in table else [])], keep=False)]
    if len(same):
        raise ValueError(
            f"{len(same)} rows say the same of the same seed, the first: {_told(same.iloc[0])}; "
            "seeds must be distinct, and what tells two methods apart needs a column"
        )


def known(row: Row) -> dict[str, Any]:
    """What is known of a row: its columns without those that are not applicable."""
    import pandas as pd

    return {str(k): v for k, v in row.items() if not pd.isna(v)}


def _told(row: Row) -> str:
    return ", ".join(f"{k}={v}" for k, v in known(row).items())


def keys(rows: pd.DataFrame) -> list[str]:
    """The columns that say what a row is about: all but the measured ones."""
    return [c for c in rows.columns if c not in MEASURE]


def select(rows: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    """The rows whose columns have the given values; None means not applicable, a list takes any.

    >>> import pandas as pd
    >>> rows = pd.DataFrame({"method": ["cam", "infocam"], "against": [None, "others"], "value": [1.0, 2.0]})
    >>> select(rows, against=None)["value"].tolist(), select(rows, method=["infocam", "x"])["value"].tolist()
    ([1.0], [2.0])
    """
    import pandas as pd

    chosen = pd.Series(True, index=rows.index)
    for name, wanted in columns.items():
        column = rows[name] if name in rows else pd.Series(None, index=rows.index, dtype="object")
        any_of = wanted if isinstance(wanted, list) else [wanted]
        fits = column.isin([one for one in any_of if one is not None]).fillna(False).astype(bool)
        chosen &= fits | (column.isna() if None in any_of else False)
    return rows[chosen]


def interval(values: Iterable[float], share: bool = False, positive: bool = False) -> tuple[float, float]:
    """Student's t interval (95 %) of the mean of one value per seed; NaN for a single seed.

    For a `share` in per cent the interval is made on the logit scale by the delta method,
    ``logit p ± t s / (p (1 − p) √n)``, and carried back, so that it stays inside [0, 100]; for a `positive`
    number likewise on the logarithmic scale, ``m exp(± t s / (m √n))``.

    >>> [round(end, 1) for end in interval([80.0, 82.0, 84.0])]
    [77.0, 87.0]
    >>> [round(end, 1) for end in interval([98.0, 99.0, 99.9], share=True)]  # not 101.3
    [90.5, 99.9]
    """
    import numpy as np
    from scipy.stats import t

    numbers = np.asarray(list(values), dtype=np.float64)
    n, mean = len(numbers), float(numbers.mean())
    if n == 1:
        return math.nan, math.nan
    half = float(t.ppf(0.975, n - 1) * numbers.std(ddof=1) / math.sqrt(n))
    if positive:
        factor = math.exp(min(half / mean, 700.0)) if mean > 0 else 1.0
        return mean / factor, mean * factor
    if not share:
        return mean - half, mean + half
    p = mean / 100
    if not 0 < p < 1:  # then all seeds agree
        return mean, mean
    centre, reach = math.log(p / (1 - p)), half / 100 / (p * (1 - p))
    low, high = (
        100 / (1 + math.exp(-min(max(end, -700.0), 700.0))) for end in (centre - reach, centre + reach)
    )
    return low, high


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a number: the mean over its seeds with a t interval; rows without a seed stay as they are.

    Adds the columns `seeds`, how many there were, and `spread`, their standard deviation. Raises ValueError
    for equal seeds and for no rows.

    >>> import pandas as pd
    >>> two = pd.DataFrame({"metric": "accuracy", "unit": "%", "seed": [0, 1], "value": [80.0, 82.0]})
    >>> over_seeds(two)[["value", "seeds", "interval"]].to_dict("records")
    [{'value': 81.0, 'seeds': 2, 'interval': 't over seeds'}]
    """
    import pandas as pd

    if rows.empty:
        raise ValueError("there is no row to take a mean of: the selection names no row of the results")
    rows = tidy(rows).reindex(columns=[*keys(tidy(rows)), *MEASURE])
    names = keys(rows)
    made = []
    for _, group in rows[rows["seed"].notna()].groupby(names, dropna=False, sort=False):
        metric, unit = group["metric"].iloc[0], group["unit"].iloc[0]
        low, high = interval(group["value"], share=unit == "%", positive=metric in NOT_NEGATIVE)
        one = group.iloc[0].to_dict() | {"value": group["value"].mean(), "low": low, "high": high}
        one |= {"stderr": group["stderr"].mean() / math.sqrt(len(group)), "seeds": len(group)}
        one["spread"] = group["value"].std()
        made.append(one | {"interval": "t over seeds" if len(group) > 1 else "none"})
    whole = rows[rows["seed"].isna()].assign(seeds=0)
    summary = pd.concat([pd.DataFrame(made), whole], ignore_index=True) if made else whole
    return _typed(summary.drop(columns="seed")).astype({"seeds": int})


def difference(rows: pd.DataFrame, first: Mapping[str, Any], second: Mapping[str, Any]) -> pd.DataFrame:
    """Paired differences, first − second, of rows of one seed that differ in the given columns alone.

    The second's columns come along with the prefix ``than_``; a difference of percentages is in points.

    >>> import pandas as pd
    >>> rows = pd.DataFrame({"method": ["pc", "softmax"], "metric": "accuracy", "unit": "%", "seed": 0,
    ...                      "value": [82.0, 80.0]})
    >>> lead = difference(rows, {"method": "pc"}, {"method": "softmax"})
    >>> lead[["than_method", "value", "unit"]].to_dict("records")
    [{'than_method': 'softmax', 'value': 2.0, 'unit': 'points'}]
    """
    names = sorted({*first, *second})
    left, right = (
        select(rows, **{n: given.get(n) for n in names}).drop(columns=names, errors="ignore")
        for given in (first, second)
    )
    pairs = left.merge(right, on=[*keys(left), "seed"], suffixes=("", "_2"))
    if pairs.empty:
        raise ValueError(f"no seed has both {dict(first)} and {dict(second)}; there are {list(rows.columns)}")
    made = pairs[[*keys(left), "seed", *(c for c in ("n",) if c in left)]]
    made = made.assign(value=pairs["value"] - pairs["value_2"], unit=made["unit"].replace("%", "points"))
    if "stderr" in left:
        made["stderr"] = (pairs["stderr"] ** 2 + pairs["stderr_2"] ** 2) ** 0.5
    return tidy(made.assign(**first, **{f"than_{n}": second.get(n) for n in names}))


def parameters(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters in force: what a notebook's namespace holds right after its parameters cell.

    >>> parameters({"seeds": [0, 1], "profile": "quick", "In": ["…"], "_": 3, "print": print})
    {'seeds': [0, 1], 'profile': 'quick'}
    """
    skip = {"In", "Out", "exit", "quit", "open", "get_ipython", *_PLACES}
    found = {k: v for k, v in namespace.items() if not k.startswith("_") and k not in skip}
    return {
        k: _portable(v) for k, v in found.items() if isinstance(v, str | int | float | list | dict | None)
    }


def _portable(value: Any) -> Any:
    """A value without this machine's folders: a file is found again by its name in the data folder."""
    if isinstance(value, dict):
        return {k: _portable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_portable(v) for v in value]
    if isinstance(value, str):  # several data sets are named with commas between
        return ",".join(Path(one).name if Path(one).is_absolute() else one for one in value.split(","))
    return value


def _may_be_official(dataset: str) -> bool:
    """What `infocam data get` noted of a data set's archive; True where it noted nothing."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return bool(json.loads((data_root() / f"{dataset}.json").read_text()).get("official", True))
    return True


def write(
    notebook: str,
    rows: pd.DataFrame,
    *,
    parameters: Mapping[str, Any],
    recipes: Mapping[str, Mapping[str, Any]] | None = None,
    output_dir: str | Path | None = None,
) -> Path:
    """Write ``<out>/results/NN.csv`` and ``NN.json``, NN being the first two letters of the notebook's name.

    The JSON holds the checksum of the rows and is written last: `read` refuses what a crash left half.
    """
    table = tidy(rows)
    content = table.to_csv(index=False, lineterminator="\n").encode()
    folder = output_root(output_dir) / "results"
    atomic_write(folder / f"{notebook[:2]}.csv", content)
    notes = {
        "notebook": notebook,
        "profile": parameters.get("profile", ""),
        "parameters": _portable(dict(parameters)),
        "recipes": _portable({name: dict(recipe) for name, recipe in (recipes or {}).items()}),
        "official": all(_may_be_official(str(recipe.get("dataset"))) for recipe in (recipes or {}).values()),
        "rows": len(table),
        "sha256": hashlib.sha256(content).hexdigest(),
        "provenance": provenance(),
    }
    return atomic_write(folder / f"{notebook[:2]}.json", json.dumps(notes, indent=1, allow_nan=False) + "\n")


def read(path: str | Path) -> Results:
    """Read what `write` wrote, by either of its two files.

    Raises
    ------
    ValueError
        When a file is missing or damaged, or the two do not belong together; with the reason and the remedy.
    """
    path = Path(path).with_suffix(".json")
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
        content = path.with_suffix(".csv").read_bytes()
        if hashlib.sha256(content).hexdigest() != notes["sha256"]:
            raise ValueError("the rows are not those that it was written with")
        rows = read_rows(path.with_suffix(".csv"))
        named = {k: notes[k] for k in ("notebook", "profile", "parameters", "recipes", "provenance")}
        if not all(isinstance(named[k], dict) for k in ("parameters", "recipes", "provenance")):
            raise ValueError("parameters, recipes and provenance must be mappings")
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(f"{path} and its .csv are no results ({error}); run the notebook again") from error
    return Results(rows, **named, official=notes.get("official") is not False)


def read_rows(path: str | Path) -> pd.DataFrame:
    """The rows of a .csv alone, in the common form; an empty cell is not applicable, but for a unit."""
    import pandas as pd

    text = pd.read_csv(path, dtype=str, keep_default_na=False)
    return tidy(text.where((text != "") | (text.columns == "unit")))


def read_all(folder: str | Path) -> pd.DataFrame:
    """The rows of all results under a folder, with their `run` (folder), `notebook` (NN), `profile`.

    `archive` is "another" where a data set is known not to come from the official one, whatever its name;
    `optimizer` is that of networks which are trained as a whole.
    """
    import pandas as pd

    frames = []
    for path in sorted(Path(folder).rglob("[0-9][0-9].json")):
        one = read(path)
        place: dict[str, Any] = {"run": path.parent.name, "notebook": path.stem, "profile": one.profile}
        trained = [recipe for recipe in one.recipes.values() if recipe.get("frozen") is False]
        place |= {"optimizer": trained[0].get("optimizer")} if trained else {}
        frames.append(one.rows.assign(**place, archive=None if one.official else "another"))
    if not frames:
        return pd.DataFrame({name: [] for name in ("run", "notebook", "profile", "metric", "unit", "value")})
    return pd.concat(frames, ignore_index=True)


def comparable(one: Results) -> dict[str, dict[Any, Any]]:
    """The numbers that `compare` compares, each as a row over its seeds, by what it is of."""
    table = over_seeds(one.rows).reindex(columns=[*PROPERTIES, *_THAN, *MEASURE, "seeds", "spread"])
    sampled = table["interval"].fillna("none").isin(("none", "draws of held-out images"))
    single = (table["frozen"] == False) & (table["unit"] == "%") & (table["seeds"] < 2) & sampled  # noqa: E712
    table = table[(table["unit"] != "s") & ~table["metric"].isin(CHOICES) & ~single]
    told = [_told(row) for row in table[[*PROPERTIES, *_THAN]].to_dict("records")]
    return dict(zip(told, table.to_dict("records"), strict=True))


def compare(committed: Results, fresh: Results) -> list[str]:
    """Differences that matter, as sentences; two runs of the same thing on two machines should have none.

    A mean over S seeds may differ by 3 √2 standard errors: each row's own, over its n test images or pairs,
    or the spread of the seeds, whichever is larger, divided by √S. So the bound follows from how much was
    measured; a number without sampling error must agree to 1e-9. A paired difference
    must moreover not be sure of one sign here and of the other there, and rows that only one side has count.

    Left out are seconds, `CHOICES`, and percentages of one network that was trained from its first layer on:
    another machine rounds otherwise, trains another network, and one says nothing of how much they differ.
    """

    about: dict[str, tuple[Any, Any]] = {
        "notebook": (committed.notebook, fresh.notebook),
        "profile": (committed.profile, fresh.profile),
    }
    for name in sorted({*committed.parameters, *fresh.parameters}):
        about[f"parameter {name}"] = (committed.parameters.get(name), fresh.parameters.get(name))
    found = [f"{k}: committed {then!r}, now {now!r}" for k, (then, now) in about.items() if then != now]
    old, new = comparable(committed), comparable(fresh)
    found += [f"{name}: not among the fresh results" for name in old.keys() - new.keys()]
    found += [f"{name}: not among the committed results" for name in new.keys() - old.keys()]
    for name in old.keys() & new.keys():
        then, now, allowed = old[name], new[name], _tolerance(old[name])
        sure = [then["unit"] == "points" and row["low"] * row["high"] > 0 for row in (then, now)]
        if not abs(then["value"] - now["value"]) <= allowed:
            apart = f"more than {allowed:.2g} apart"
            found.append(f"{name}: committed {then['value']:.6g}, now {now['value']:.6g}, {apart}")
        elif all(sure) and not then["value"] * now["value"] > 0:
            found.append(f"{name}: was {number(then)} and is {number(now)}, sure of the other sign")
    return sorted(found)


def _tolerance(row: Row) -> float:
    """How far the value may be off on another machine, see `compare`."""
    got = known(row)
    value, n, stderr, high = (float(got.get(c, math.nan)) for c in ("value", "n", "stderr", "high"))
    seeds = int(row["seeds"])
    spread = 3 * math.sqrt(2 / max(seeds, 1)) * float(got.get("spread", 0.0))
    if row["unit"] == "%" and n > 0 and (seeds or math.isnan(stderr)):
        p = (value / 100 * n + 2) / (n + 4)  # Agresti and Coull: an accuracy of 100 % is not without error
        return max(spread, 300 * math.sqrt(2 * p * (1 - p) / n / max(seeds, 1)))
    if not math.isnan(stderr):
        images = 300 / n if row["unit"] in ("%", "points") and n > 0 else 0.0  # any three may change sides
        return max(
            spread, 3 * math.sqrt(2) * stderr + images + (1e-4 if seeds else 1e-9 * max(abs(value), 1.0))
        )
    # No sampling error is known: what the seeds differ by, or a tenth.
    return 0.1 * abs(value) if math.isnan(high) else 2 * (high - value) + 1e-4


METHODS = {
    "cam": "CAM",
    "infocam": "infoCAM",
    "spread": "spread of the logits",
    "feature_norm": "feature norm",
    "centre_box": "centre box",
    "whole_image": "whole image",
    "softmax": "softmax",
    "post_hoc": "softmax, corrected after training",
    "pc": "PC-softmax",
    "pc_log_prior": "PC-softmax + log prior",
    "log_k_minus_ce": "log K − CE",
    "mine": "MINE",
    "nwj": "NWJ",
    "infonce": "InfoNCE",
    "nearest_neighbours": "nearest neighbours",
    "exact": "exact",
    "bayes_map": "Bayes, training shares",
    "bayes_ml": "Bayes, balanced classes",
}
AGAINST = {
    "others": "the others' mean",
    "least_likely": "the least likely class",
    "runner_up": "the runner-up",
}


NETWORKS = {
    "mobilenet_v2": "MobileNetV2",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "resnet50": "ResNet-50",
}
WEIGHTS = {  # what is left of a file's name behind the network's
    "": "ImageNet",
    "imagenet": "ImageNet",
    "imagenet_v1": "ImageNet, torchvision's",
    "inat_birds": "iNaturalist birds",
}
HEADS = {"own_zero_sum": "own (zero sum)"}


DEFECTS = {  # of the official code, and one convention of the field
    "none": "correct",
    "unclamped_iou": "IoU not clamped",
    "running_average": "running averages",
    "resize_minus_one": "boxes one pixel off",
    "boxes_as_xywh": "boxes read as x y w h",
    "all": "all together",
    "inclusive_boxes": "the field's convention",
}
WORDS = {
    **METHODS,
    **AGAINST,
    **HEADS,
    **{k: v for k, v in DEFECTS.items() if "_" in k},
    "gt_known": "GT-known Loc",
    "top1_loc": "Top-1 Loc",
    "gt_known_all": "GT-known Loc, all",
    "top1_loc_all": "Top-1 Loc, all",
    "oracle_gt_known": "GT-known Loc, oracle",
    "max_box_acc_v2": "V2, oracle",
    "per_class_accuracy": "per-class accuracy",
    "negative_log_likelihood": "negative log-likelihood",
    "pmi_correlation": "correlation of the PMI",
    "common_share": "share of the common vector",
    "label_entropy": "H(Y)",
    "log_k_minus_entropy": "log K − H(Y)",
    "test_training_shares": "test images in the training shares",
    "test_all": "all test images",
}


def worded(table: pd.DataFrame) -> pd.DataFrame:
    """A table for people: what the code calls `per_class_accuracy` is written in words, wherever it stands.

    >>> import pandas as pd
    >>> worded(pd.DataFrame({"gt_known": [1.0], "of": ["own_zero_sum"]}))
       GT-known Loc              of
    0           1.0  own (zero sum)
    """

    def word(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return re.sub(r"\b[a-z\d]+(_[a-z\d]+)+\b", lambda m: WORDS.get(m[0], m[0].replace("_", " ")), value)

    renamed = table.map(word).rename(index=word, columns=word)
    renamed.index.names = [word(name) for name in renamed.index.names]
    renamed.columns.names = [word(name) for name in renamed.columns.names]
    return renamed


def method_words(row: Row, than: str = "") -> str:
    """The method of a row in words; ``than="than_"`` gives the second method of a difference.

    >>> method_words({"method": "infocam", "against": "least_likely", "region": 3, "padding": "full"})
    'infoCAM against the least likely class + 3×3 sum, full'
    """
    got = known(row)
    name = str(got.get(f"{than}method", ""))
    words = METHODS.get(name, name.replace("_", " "))
    if f"{than}against" in got:
        words += f" against {AGAINST.get(got[f'{than}against'], got[f'{than}against'])}"
    if int(got.get(f"{than}region", 1)) > 1:
        side = int(got[f"{than}region"])
        words += f" + {side}×{side} sum" + (", full" if got.get(f"{than}padding") == "full" else "")
    if f"{than}second_layer" in got:
        words += " × surprise of a second layer"
    if f"{than}marginal" in got:
        words += {"exact": ", summed", "shuffle": ", shuffled"}.get(got[f"{than}marginal"], "")
    if f"{than}setting" in got:
        words += f", {got[f'{than}setting']}"
    return words


def difference_words(row: Row) -> str:
    """Both methods of a paired difference: "infoCAM against the others' mean − CAM"."""
    return f"{method_words(row)} − {method_words(row, 'than_')}"


def grid(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(grid(["a", "b"], [["1", "x|y"]]))
    | a | b |
    | --- | --- |
    | 1 | x\\|y |
    """
    table = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table)


def weights_words(row: Row) -> str:
    """What a network was trained on before, from the name of its file.

    >>> weights_words({"backbone": "mobilenet_v2", "weights": "mobilenet_v2_inat_birds"})
    'iNaturalist birds'
    """
    name = str(row["weights"]).removeprefix(str(row["backbone"])).strip("_")
    return WEIGHTS.get(name, name)


def setting_words(row: Row) -> str:
    """Data, network and task of a row in words, so that two different runs never read alike.

    >>> setting_words({"dataset": "birds", "stride": 16, "head": "free", "few": 3, "many": None})
    'birds, 3 : all, stride 16, free head'
    """
    got = known(row)
    parts = [str(got.get("dataset", ""))]
    if "shares" in got:
        parts.append(str(got["shares"]))
    if "few" in got:
        parts.append(f"{got['few']} : {got.get('many', 'all')}")
    if "weights" in got:
        parts.append(f"{NETWORKS.get(got['backbone'], got['backbone'])} ({weights_words(row)})")
    if "stride" in got:
        parts.append(f"stride {got['stride']}")
    if "frozen" in got and "weights" in got and not got["frozen"]:
        parts.append("fine-tuned")
    if "head" in got:
        parts.append(f"{HEADS.get(got['head'], got['head'])} head")
    return ", ".join(filter(None, parts))


def number(row: Row, unit: bool = True, digits: int | None = None) -> str:
    """Value, interval and unit as people read them.

    >>> number({"value": -0.5, "low": -1.25, "high": 0.25, "unit": "points"})
    '−0.5 [−1.2, 0.2] points'
    """
    name = str(row["unit"])
    places = digits if digits is not None else {"%": 1, "points": 1, "s": 1}.get(name, 4)

    def one(value: Any) -> str:
        text = f"{round(float(value), places) + 0.0:.{places}f}"
        return text.replace("-", "−")

    ends = f" [{one(row['low'])}, {one(row['high'])}]" if {"low", "high"} <= set(known(row)) else ""
    if row.get("interval") == "exact":
        ends = ""
    return f"{one(row['value'])}{ends}{f' {name}' if unit and name else ''}"


def provenance() -> dict[str, Any]:
    """Versions, hardware, git commit and time of this run; no paths and no names of people or machines."""
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return {
        "versions": versions,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": next(named, platform.machine()),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "commit": git_commit(),
        "utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def git_commit() -> str | None:
    """The commit this code is from, with "+changes" when files differ from it; None outside a repository."""
    home = checkout()
    if home is None or not (home / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(home), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
