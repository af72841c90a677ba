"""The imbalance experiment: some classes made rare, two losses, four decisions, and what each is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from infocam_utils.experiments import recipe as recipes
from infocam_utils.experiments import rows as rows_of
from infocam_utils.experiments.recipe import Recipe, check_seeds
from infocam_utils.information import Kind

TAUS = tuple(np.linspace(-0.5, 1.5, 21))
FROM_LOG_PRIOR = "softmax_from_log_prior"  # a softmax whose head starts at log π
TRAININGS: dict[str, dict[str, Any]] = {  # what the experiment changes in the recipe of a network
    "softmax": {"loss": "softmax", "log_prior_bias": False},
    "pc": {"loss": "pc", "log_prior_bias": False},
    FROM_LOG_PRIOR: {"loss": "softmax", "log_prior_bias": True},
}

Logits = Mapping[tuple[str, int], Tensor]  # (name in TRAININGS, seed) -> (N, K) of all test images


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
        return recipes.training_rows(self.recipe, self.train, seed, self.data_dir)

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
    load = partial(sets.load_images, recipe.dataset, data_dir=data_dir, size=recipe.size)
    train, test = load("train", limit=recipe.train_limit), load(row.test_from, limit=limit)
    rule, test_rule = recipes.imbalance_rule(recipe, train, data_dir), row.test_rule(test.labels)
    if test_rule.pool is not None:
        test, test_rule = test.subset(torch.arange(*test_rule.pool)), replace(test_rule, pool=None)
    recipe, kept = replace(recipe, few=rule.few, many=rule.many), recipes.kept_rows(test, test_rule, None)
    minority = rule.is_minority(torch.tensor(train.class_numbers))
    return ImbalancedTask(recipe, train, test, kept, minority, data_dir)


def overview(task: ImbalancedTask, seed: int) -> pd.DataFrame:
    """One row that says what there is to learn from, and what forgetting the class shares is worth.

    ``largest_class`` (%) is the accuracy of always naming it; ``log_k_minus_entropy`` (nats) is what the
    reading log K − CE gains for nothing.
    """
    prior, counts = task.prior(seed), torch.bincount(task.train.labels[task.train_rows(seed)])
    entropy = float(information.entropy(prior))
    row = task.recipe.columns() | {
        "classes": len(prior),
        "train_images": int(counts.sum()),
        "rare": int(counts[task.minority].min()),
        "common": int(counts[~task.minority].max()),
        "test_training_shares": len(task.test_rows),
        "test_all": len(task.test),
        "largest_class": 100 * float(prior.max()),
        "entropy": entropy,
        "log_k_minus_entropy": math.log(len(prior)) - entropy,
    }
    return pd.DataFrame([row])


def logits_of(task: ImbalancedTask, seeds: Sequence[int]) -> dict[tuple[str, int], Tensor]:
    """Logits (N, K) of all test images by both losses for every seed, by ("softmax" or "pc", seed).

    A recipe that trains a network also has a plain softmax whose head starts at log π, FROM_LOG_PRIOR. On
    frozen features a head is trained to convergence, and where it starts does not matter; its weight decay
    is chosen with the plain softmax, and the same for both losses.
    """
    check_seeds(seeds)
    train = _of_heads if task.recipe.frozen else _of_networks
    return {(name, seed): f for seed in seeds for name, f in train(task, seed).items()}


def _of_networks(task: ImbalancedTask, seed: int) -> dict[str, Tensor]:
    made = {}
    for name, changes in TRAININGS.items():
        recipe = replace(task.recipe, **changes)
        model = recipes.network(recipe, seed, task.data_dir)
        made[name] = predict(model, task.test, geometry=recipe.geometry, precision=recipe.precision)
    return made


def _of_heads(task: ImbalancedTask, seed: int) -> dict[str, Tensor]:
    recipe, rows, classes = task.recipe, task.train_rows(seed), task.train.num_classes
    model, store = recipes.untrained(recipe, classes, seed), Store(task.data_dir)
    features, unseen = (
        pooled_features(model, images, geometry=recipe.geometry, precision=recipe.precision, store=store)
        for images in (task.train, task.test)
    )
    known = (features[rows], task.train.labels[rows], classes)
    decay = recipe.head_decay
    if decay is None:
        decay = heads.select_decay(*known, seed=seed)
    epochs = max(1, round(recipe.passes / len(rows)))
    fit = partial(heads.fit_head, *known, optimizer=recipe.head_optimizer, epochs=epochs, seed=seed)
    of_losses = {loss: recipes.loss_of(loss, task.prior(seed)) for loss in get_args(Kind)}
    return {name: fit(loss, weight_decay=decay)(unseen).detach() for name, loss in of_losses.items()}


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


def scores(task: ImbalancedTask, predictions: Tensor) -> list[rows_of.Row]:
    """Rows of predictions (N,) for all test images: test, metric, unit "%", value, stderr, n.

    On "training_shares", the paper's test set, accuracy and per_class_accuracy, the mean recall of the
    classes; on "all" test images per_class_accuracy, and the mean recall of the rare and the common classes.
    """
    labels, rows, classes = task.test.labels, task.test_rows, task.test.num_classes
    as_trained = rows_of.accuracies(predictions[rows], labels[rows], classes)
    everywhere = rows_of.accuracies(predictions, labels, classes)[1:]
    for metric, some in (("rare_recall", task.minority), ("common_recall", ~task.minority)):
        everywhere.append({"metric": metric} | rows_of.mean_recall(predictions, labels, some))
    tests = {"training_shares": as_trained, "all": everywhere}
    return [{"test": test} | row for test, found in tests.items() for row in found]


def measure(task: ImbalancedTask, seeds: Sequence[int], logits: Logits) -> pd.DataFrame:
    """All that the experiment measures of what :func:`logits_of` gave for these seeds, one row a number.

    Every seed has the scores of the four decisions, of "post_hoc" with ``start="log_prior"`` too where there
    are logits from that start, and the mutual information by three readings of the test images in training
    proportions. Rows without a seed are exact: the number of classes, and where the data set knows them, the
    information and the accuracies of the Bayes rules.
    """
    check_seeds(seeds)
    made: list[rows_of.Row] = [
        {"seed": seed} | row for seed in seeds for row in _seed_rows(task, seed, logits)
    ]
    made.append(rows_of.exact("exact", "classes", "", float(task.train.num_classes)))
    known = sets.describe(task.recipe.dataset, task.data_dir).exact
    if known is not None:
        prior = task.prior(seeds[0])
        rows = [rows_of.exact("exact", "mutual_information", "nats", known.mutual_information(prior))]
        rows += rows_of.bayes(partial(known.bayes_accuracy, prior))
        made += [{"test": "training_shares"} | row for row in rows]
    return rows_of.frame(made, task.recipe.columns())


def _seed_rows(task: ImbalancedTask, seed: int, logits: Logits) -> list[rows_of.Row]:
    prior = task.prior(seed)
    of = {name: f for (name, own), f in logits.items() if own == seed}
    chosen = decisions(of["softmax"], of["pc"], prior)
    made: list[rows_of.Row] = [
        {"method": method} | row for method, found in chosen.items() for row in scores(task, found)
    ]
    if FROM_LOG_PRIOR in of:
        started = decisions(of[FROM_LOG_PRIOR], of["pc"], prior)["post_hoc"]
        made += [{"method": "post_hoc", "start": "log_prior"} | row for row in scores(task, started)]
    seen = {name: f[task.test_rows] for name, f in of.items()}
    found = rows_of.readings(seen, task.test.labels[task.test_rows], prior)
    return made + [{"test": "training_shares"} | row for row in found]


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
            made += [{"tau": tau, "seed": seed} | row for row in found]
    return rows_of.frame(made, task.recipe.columns())


def implied_recalls(accuracy: float, per_class: float, rare: int, common: int) -> tuple[float, float]:
    """Mean recalls r, c of rare and common classes, as many of each, that two accuracies (per cent) imply.

    Solves ``per_class = (r + c) / 2`` and ``accuracy = (rare r + common c) / (rare + common)``, with `rare`
    and `common` test images of them.

    >>> rare, common = implied_recalls(89.73, 87.69, 500, 1496)
    >>> round(rare, 1), round(common, 1)
    (83.6, 91.8)
    """
    if rare == common:
        raise ValueError(f"with as many rare as common images ({rare}) the two accuracies are one number")
    share = rare / (rare + common)
    of_common = (accuracy - 2 * share * per_class) / (1 - 2 * share)
    return 2 * per_class - of_common, of_common
