"""The imbalance experiment: some classes made rare, two losses, four decisions, and what each is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from infocam_utils import information
from infocam_utils.classifiers import heads
from infocam_utils.classifiers.training import pooled_features, predict
from infocam_utils.data import sets
from infocam_utils.data.images import ImageSet
from infocam_utils.data.store import Store
from infocam_utils.experiments.recipe import (
    Loss,
    Recipe,
    check_seeds,
    kept_rows,
    loss_of,
    network,
    training_rows,
    untrained,
)

TAUS = tuple(np.linspace(-0.5, 1.5, 21))
FROM_LOG_PRIOR = "softmax_from_log_prior"  # a softmax whose head starts at log π
WHOLE = ("stride", "few", "many", "seed", "n")  # columns of whole numbers, of which some are not applicable

Logits = Mapping[tuple[str, int], Tensor]  # (loss or FROM_LOG_PRIOR, seed) -> (N, K) of all test images


@dataclass(frozen=True)
class ImbalancedTask:
    """A data set of which some classes are made rare, as in the paper; see :func:`task`.

    Attributes
    ----------
    recipe : how it is learned; `few` and `many` are the training images of each rare and common class
    train, test : all images
    test_rows : test images in the training set's proportions, by the paper's rule and in its order
    minority : bool (K,), the rare classes
    data_dir : where the data and the store lie
    """

    recipe: Recipe
    train: ImageSet
    test: ImageSet
    test_rows: Tensor
    minority: Tensor
    data_dir: str | Path | None = None

    def train_rows(self, seed: int | None) -> Tensor:
        """The training images that are kept; for seed=None the paper's, see :func:`training_rows`."""
        return training_rows(self.recipe, self.train, seed, self.data_dir)

    def prior(self, seed: int | None) -> Tensor:
        """(K,) class shares of the kept training images."""
        return information.class_prior(self.train.labels[self.train_rows(seed)], self.train.num_classes)


def task(recipe: Recipe, data_dir: str | Path | None = None, limit: int | None = None) -> ImbalancedTask:
    """The paper's imbalance on a recipe's data set, or another where the recipe has `few` or `many`.

    CUB and folders: odd class numbers 10 training images and 5 test images, even ones all and 15. Digits and
    MNIST: even digits a tenth. Drawn birds: odd classes a tenth. `limit` is of test images; where both rules
    walk fixed parts of one whole list (MNIST) neither it nor the recipe's `train_limit` plays a part.

    >>> from infocam_utils.experiments.recipe import recipe
    >>> digits = task(recipe("digits"))
    >>> torch.bincount(digits.train.labels[digits.train_rows(seed=0)]).tolist()
    [12, 120, 12, 120, 12, 120, 12, 120, 12, 120]
    """
    row = sets.describe(recipe.dataset, data_dir)
    if row.test_from == "train":
        limit, recipe = None, replace(recipe, train_limit=None)
    train, test = (
        sets.load_images(recipe.dataset, split, data_dir, size=recipe.size, limit=most)
        for split, most in (("train", recipe.train_limit), (row.test_from, limit))
    )
    train_rule, test_rule = row.train_rule(train.labels), row.test_rule(test.labels)
    if test_rule.pool is not None:
        test = test.subset(torch.arange(*test_rule.pool))
        test_rule = replace(test_rule, pool=None)
    if recipe.few is None:
        many = train_rule.many if recipe.many is None else recipe.many
        recipe = replace(recipe, few=train_rule.few, many=many)
    minority = train_rule.is_minority(torch.tensor(train.class_numbers))
    return ImbalancedTask(recipe, train, test, kept_rows(test, test_rule, None), minority, data_dir)


def overview(task: ImbalancedTask, seed: int) -> pd.DataFrame:
    """One row that says what there is to learn from, and what forgetting the class shares is worth.

    ``largest_class`` (%) is the accuracy of always naming it; ``log_k_minus_entropy`` (nats) is what the
    reading log K − CE gains for nothing.
    """
    prior, counts = task.prior(seed), torch.bincount(task.train.labels[task.train_rows(seed)])
    entropy = float(information.entropy(prior))
    rare, common = counts[task.minority], counts[~task.minority]
    row = task.recipe.columns() | {
        "classes": len(prior),
        "train_images": int(counts.sum()),
        "rare": int(rare.min()),
        "common": int(common.max()),
        "test_training_shares": len(task.test_rows),
        "test_all": len(task.test),
        "largest_class": 100 * float(prior.max()),
        "entropy": entropy,
        "log_k_minus_entropy": math.log(len(prior)) - entropy,
    }
    return pd.DataFrame([row])


def logits(
    task: ImbalancedTask, seed: int, loss: Loss = "softmax", *, log_prior_bias: bool = False
) -> Tensor:
    """Logits (N, K) of all test images, from a classifier trained on the kept training images.

    On frozen features the weight decay is chosen with the plain softmax, and the same for both losses.
    """
    recipe = replace(task.recipe, loss=loss, log_prior_bias=log_prior_bias)
    if not recipe.frozen:
        return predict(network(recipe, seed, task.data_dir), task.test, geometry=recipe.geometry)
    rows, classes = task.train_rows(seed), task.train.num_classes
    model = untrained(recipe, classes, seed)
    features, unseen = (
        pooled_features(
            model, images, geometry=recipe.geometry, precision=recipe.precision, store=Store(task.data_dir)
        )
        for images in (task.train, task.test)
    )
    seen, labels = features[rows], task.train.labels[rows]
    decay = recipe.head_decay
    if decay is None:
        decay = heads.select_decay(seen, labels, classes, seed=seed)
    head = heads.fit_head(
        seen,
        labels,
        classes,
        loss_of(loss, task.prior(seed)),
        weight_decay=decay,
        optimizer=recipe.head_optimizer,
        epochs=max(1, round(recipe.passes / len(rows))),
        seed=seed,
    )
    with torch.no_grad():
        return head(unseen)


def logits_of(task: ImbalancedTask, seeds: Sequence[int]) -> dict[tuple[str, int], Tensor]:
    """The logits of both losses for every seed, by ("softmax" or "pc", seed).

    A recipe that trains a network also has a plain softmax whose head starts at log π, FROM_LOG_PRIOR. On
    frozen features a head is trained to convergence, and where it starts does not matter.
    """
    check_seeds(seeds)
    made = {(loss, seed): logits(task, seed, loss) for seed in seeds for loss in get_args(Loss)}
    if not task.recipe.frozen:
        made |= {(FROM_LOG_PRIOR, seed): logits(task, seed, log_prior_bias=True) for seed in seeds}
    return made


def decisions(softmax: Tensor, pc: Tensor, prior: Tensor) -> dict[str, Tensor]:
    """Predicted classes (N,) by four rules, from softmax logits g and PC-softmax logits f, each (N, K).

    "softmax" argmax g; "post_hoc" argmax g − log π, logit adjustment (Menon et al. 2021); "pc" argmax f;
    "pc_log_prior" argmax f + log π. The first and the last decide for test images in the training set's
    proportions, the other two for balanced classes.

    >>> rules = decisions(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0.9, 0.1]))
    >>> {method: int(predicted) for method, predicted in rules.items()}
    {'softmax': 0, 'post_hoc': 1, 'pc': 0, 'pc_log_prior': 0}
    """
    return {
        "softmax": softmax.argmax(1),
        "post_hoc": information.shift_prior(softmax, prior, None, "softmax").argmax(1),
        "pc": pc.argmax(1),
        "pc_log_prior": information.shift_prior(pc, prior, prior, "pc").argmax(1),
    }


def share_right(predictions: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy p (%) of (N,) predictions with its standard error ``√(p(1 − p) / n)``, as a row's columns.

    >>> share_right(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 0]))
    {'unit': '%', 'value': 50.0, 'stderr': 25.0, 'n': 4}
    """
    share = information.accuracy(predictions, labels)
    stderr = 100 * math.sqrt(share * (1 - share) / len(labels))
    return {"unit": "%", "value": 100 * share, "stderr": stderr, "n": len(labels)}


def mean_recall(predictions: Tensor, labels: Tensor, classes: Tensor) -> dict[str, Any]:
    """Mean recall (%) of the `classes`, bool (K,), that have images; its standard error; and their images.

    The classes' images are drawn independently: ``√(Σ_k r_k(1 − r_k) / n_k) / K`` over K of them.

    >>> mean_recall(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), torch.tensor([True, True]))
    {'unit': '%', 'value': 75.0, 'stderr': 17.67..., 'n': 3}
    """
    recall = information.recalls(predictions, labels, len(classes))[classes]
    counts = torch.bincount(labels, minlength=len(classes))[classes]
    there = counts > 0
    variances = (recall * (1 - recall) / counts)[there]  # (K,)
    stderr = 100 * float(variances.sum().sqrt()) / int(there.sum())
    return {"unit": "%", "value": 100 * float(recall.nanmean()), "stderr": stderr, "n": int(counts.sum())}


def scores(task: ImbalancedTask, predictions: Tensor) -> list[dict[str, Any]]:
    """Rows of predictions (N,) for all test images: test, metric, unit "%", value, stderr, n.

    On "training_shares", the paper's test set, accuracy and per_class_accuracy, the mean recall of the
    classes; on "all" test images per_class_accuracy, and the mean recall of the rare and the common classes.
    """
    labels, rows, every = task.test.labels, task.test_rows, torch.ones_like(task.minority)
    as_trained, of_those = predictions[rows], labels[rows]
    first, second = {"test": "training_shares"}, {"test": "all"}
    return [
        first | {"metric": "accuracy"} | share_right(as_trained, of_those),
        first | {"metric": "per_class_accuracy"} | mean_recall(as_trained, of_those, every),
        second | {"metric": "per_class_accuracy"} | mean_recall(predictions, labels, every),
        second | {"metric": "rare_recall"} | mean_recall(predictions, labels, task.minority),
        second | {"metric": "common_recall"} | mean_recall(predictions, labels, ~task.minority),
    ]


def measure(task: ImbalancedTask, seeds: Sequence[int], logits: Logits | None = None) -> pd.DataFrame:
    """All that the experiment measures, one row a number.

    Every seed has the scores of the four decisions, of "post_hoc" with ``start="log_prior"`` too where there
    are logits from that start, and the mutual information by three readings of the test images in training
    proportions. Rows without a seed are exact: the number of classes, and where the data set knows them, the
    information and the accuracies of the Bayes rules for the training shares ("bayes_map") and for balanced
    classes ("bayes_ml").

    Parameters
    ----------
    logits : what :func:`logits_of` gave for these seeds; made here if not given
    """
    check_seeds(seeds)
    logits = logits_of(task, seeds) if logits is None else logits
    made = [row for seed in seeds for row in _seed_rows(task, seed, logits)]
    made += [
        row | {"stderr": 0.0, "low": row["value"], "high": row["value"], "interval": "exact"}
        for row in _exact_rows(task, seeds[0])
    ]
    frame = pd.DataFrame([task.recipe.columns() | row for row in made])
    return frame.astype(dict.fromkeys(WHOLE, "Int64"))


def _seed_rows(task: ImbalancedTask, seed: int, logits: Logits) -> list[dict[str, Any]]:
    prior = task.prior(seed)
    chosen = decisions(logits["softmax", seed], logits["pc", seed], prior)
    made = [{"method": method, **row} for method, found in chosen.items() for row in scores(task, found)]
    if (FROM_LOG_PRIOR, seed) in logits:
        started = decisions(logits[FROM_LOG_PRIOR, seed], logits["pc", seed], prior)["post_hoc"]
        made += [{"method": "post_hoc", "start": "log_prior", **row} for row in scores(task, started)]
    for reading in get_args(information.Reading):
        of = logits["pc" if reading == "pc" else "softmax", seed][task.test_rows]
        found = information.mutual_information(of, task.test.labels[task.test_rows], prior, reading)
        row = {"method": reading, "test": "training_shares", "metric": "mutual_information", "unit": "nats"}
        made.append(row | {"value": found.value, "stderr": found.stderr, "n": found.n})
    return [row | {"seed": seed} for row in made]


def _exact_rows(task: ImbalancedTask, seed: int) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [
        {"method": "exact", "metric": "classes", "unit": "", "value": float(task.train.num_classes)}
    ]
    exact = sets.describe(task.recipe.dataset, task.data_dir).exact
    if exact is not None:
        prior, test = task.prior(seed), {"test": "training_shares"}
        value = exact.mutual_information(prior)
        made.append(
            {"method": "exact", **test, "metric": "mutual_information", "unit": "nats", "value": value}
        )
        for rule in ("map", "ml"):
            for metric, average in (("accuracy", "micro"), ("per_class_accuracy", "macro")):
                value = 100 * exact.bayes_accuracy(prior, rule=rule, average=average)
                made.append(
                    {"method": f"bayes_{rule}", **test, "metric": metric, "unit": "%", "value": value}
                )
    return made


def prior_sweep(
    task: ImbalancedTask, seeds: Sequence[int], logits: Logits, taus: Sequence[float] = TAUS
) -> pd.DataFrame:
    """The scores of ``argmax f + τ log π`` along τ, of the PC logits f of every seed, with a column "tau"."""
    check_seeds(seeds)
    made = []
    for seed in seeds:
        f = logits["pc", seed]
        log_prior = task.prior(seed).log().to(f)
        for tau in taus:
            found = scores(task, (f + tau * log_prior).argmax(1))
            made += [{**task.recipe.columns(), "tau": tau, "seed": seed, **row} for row in found]
    return pd.DataFrame(made).astype(dict.fromkeys(WHOLE, "Int64"))


def implied_recalls(accuracy: float, per_class: float, rare: int, common: int) -> tuple[float, float]:
    """Mean recall of rare and common classes that an accuracy and a per-class accuracy (per cent) imply.

    Solves ``per_class = (r + c) / 2`` and ``accuracy = (rare r + common c) / (rare + common)``, for as many
    rare as common classes and `rare` and `common` test images of them.

    >>> rare, common = implied_recalls(89.73, 87.69, 500, 1496)
    >>> round(rare, 1), round(common, 1)
    (83.6, 91.8)
    """
    if rare == common:
        raise ValueError(f"with as many rare as common images ({rare}) the two accuracies are one number")
    share = rare / (rare + common)
    of_common = (accuracy - 2 * share * per_class) / (1 - 2 * share)
    return 2 * per_class - of_common, of_common
