"""Rows of tidy frames: how a prediction, an estimate or an exact value becomes a number with its error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from infocam_utils.information import Estimate, Reading, accuracy, mutual_information, recalls

Row = dict[str, Any]  # one measured number and what it is of
READINGS: tuple[Reading, ...] = ("pc", "softmax", "log_k_minus_ce")  # of logits
WHOLE = (  # columns of whole numbers, of which some are not applicable
    *("stride", "few", "many", "dimension", "seed", "n", "region", "than_region", "images", "vector"),
    "epoch",
)


def accuracies(predictions: Tensor, labels: Tensor, num_classes: int) -> list[Row]:
    """Accuracy p, with standard error ``√(p(1 − p) / n)``, and per_class_accuracy (%) of (N,) predictions.

    >>> accuracies(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 0]), 2)[0]
    {'metric': 'accuracy', 'unit': '%', 'value': 50.0, 'stderr': 25.0, 'n': 4}
    """
    share, n = accuracy(predictions, labels), len(labels)
    row = {"unit": "%", "value": 100 * share, "stderr": 100 * math.sqrt(share * (1 - share) / n), "n": n}
    of_classes = mean_recall(predictions, labels, torch.ones(num_classes, dtype=torch.bool))
    return [{"metric": "accuracy"} | row, {"metric": "per_class_accuracy"} | of_classes]


def mean_recall(predictions: Tensor, labels: Tensor, classes: Tensor) -> Row:
    """Mean recall (%) of the `classes`, bool (K,), that have images; its standard error; and their images.

    The classes' images are drawn independently: ``√(Σ_k r_k(1 − r_k) / n_k) / K`` over K of them.

    >>> mean_recall(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), torch.tensor([True, True]))
    {'unit': '%', 'value': 75.0, 'stderr': 17.67..., 'n': 3}
    """
    recall = recalls(predictions, labels, len(classes))[classes]
    counts = torch.bincount(labels, minlength=len(classes))[classes]
    there = counts > 0
    variances = (recall * (1 - recall) / counts)[there]  # (K,)
    stderr = 100 * float(variances.sum().sqrt()) / int(there.sum())
    return {"unit": "%", "value": 100 * float(recall.nanmean()), "stderr": stderr, "n": int(counts.sum())}


def calibration(log_posterior: Tensor, labels: Tensor, balanced: bool = False, bins: int = 15) -> list[Row]:
    """How far the posteriors (N, K) themselves can be trusted: negative_log_likelihood and calibration_error.

    The first (nats) is the mean of ``−log p(label)``; `balanced` takes the mean of the classes' means. The
    second (%) is the expected calibration error of the predicted class: over `bins` equal parts of [0, 1] in
    which its probability falls, the mean distance between that probability and the share of images that are
    right, weighed by their images (Guo et al. 2017). Its error is not known, so it has none.

    >>> rows = calibration(torch.tensor([[0.75, 0.25], [0.75, 0.25]]).log(), torch.tensor([0, 1]))
    >>> [(row["metric"], round(row["value"], 4)) for row in rows]
    [('negative_log_likelihood', 0.837), ('calibration_error', 25.0)]
    """
    n, each = len(labels), -log_posterior.double().take_along_dim(labels[:, None], 1)[:, 0]  # (N,)
    shares = torch.full((n,), 1 / n, dtype=torch.float64)
    if balanced:
        counts = torch.bincount(labels)
        shares = 1 / (counts[labels] * (counts > 0).sum()).double()
    value = float(shares @ each)
    stderr = float((shares.square() @ (each - value).square()).sqrt())
    sure, predicted = log_posterior.double().exp().max(1)
    gap = (predicted == labels).double() - sure
    place = (sure * bins).ceil().long().clamp(1, bins) - 1
    error = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, gap).abs().sum() / n
    likelihood = {"metric": "negative_log_likelihood", "unit": "nats", "value": value, "stderr": stderr}
    return [likelihood | {"n": n}, {"metric": "calibration_error", "unit": "%", "value": 100 * float(error)}]


def information(found: Estimate) -> Row:
    """An estimate of mutual information as a row."""
    row = {"metric": "mutual_information", "unit": "nats"}
    return row | {"value": found.value, "stderr": found.stderr, "n": found.n}


def readings(logits: Mapping[Any, Tensor], labels: Tensor, prior: Tensor) -> list[Row]:
    """Mutual information by three readings of the logits (N, K) of "softmax" and "pc"."""
    made = []
    for reading in READINGS:
        of = logits["pc" if reading == "pc" else "softmax"]
        found = mutual_information(of, labels, prior, reading)
        made.append({"method": reading} | information(found))
    return made


def exact(method: str, metric: str, unit: str, value: float) -> Row:
    """A number without chance as a row: its interval is itself."""
    row = {"method": method, "metric": metric, "unit": unit, "value": value, "stderr": 0.0}
    return row | {"low": value, "high": value, "interval": "exact"}


def bayes(bayes_accuracy: Callable[..., float]) -> list[Row]:
    """Accuracies (%) of the Bayes rules, for the training's shares (bayes_map) and for equal (bayes_ml)."""
    return [
        exact(f"bayes_{rule}", metric, "%", 100 * bayes_accuracy(rule=rule, average=average))
        for rule in ("map", "ml")
        for metric, average in (("accuracy", "micro"), ("per_class_accuracy", "macro"))
    ]


def frame(rows: Iterable[Row], setting: Mapping[str, Any]) -> pd.DataFrame:
    """A frame of rows that share a setting; whole numbers stay whole where some are not applicable."""
    table = pd.DataFrame([{**setting, **row} for row in rows])
    return table.astype({name: "Int64" for name in WHOLE if name in table})
