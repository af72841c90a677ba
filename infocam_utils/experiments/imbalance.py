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
LOSSES: tuple[Kind, ...] = get_args(Kind)
LOG_PRIOR = "log-prior start"  # the softmax's bias starts at log π; PC-softmax has it in the loss
# Where the loss and the correction could differ on frozen features, besides None, the converged heads:
# options of `heads.fit_head`. AdamW's heads are stopped after some passes of the images.
STOPPED = {f"stopped after {n} pass{'es' * (n > 1)}": n for n in (1, 3, 10, 30)}
DECAYED_BIAS = "bias decayed"
BALANCED = ("post_hoc", "pc")  # the two answers to one question: which class, were all as frequent?

# (setting or None, loss, seed) -> (N, K) of all test images
Logits = Mapping[tuple[str | None, str, int], Tensor]


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


def logits_of(task: ImbalancedTask, seeds: Sequence[int]) -> dict[tuple[str | None, str, int], Tensor]:
    """Logits (N, K) of all test images by both losses for every seed, by (setting, loss, seed).

    Setting None is the recipe as it is. A trained network has LOG_PRIOR besides. On frozen features heads are
    trained to convergence, where the start does not matter and the two losses have one minimum; the other
    settings are where they have not: STOPPED, each from both starts, and DECAYED_BIAS. The weight decay is
    chosen with the plain softmax, and the same for both losses.
    """
    check_seeds(seeds)
    train = _of_heads if task.recipe.frozen else _of_networks
    return {(*name, seed): f for seed in seeds for name, f in train(task, seed).items()}


def _of_networks(task: ImbalancedTask, seed: int) -> dict[tuple[str | None, str], Tensor]:
    made: dict[tuple[str | None, str], Tensor] = {}
    for setting, recipe in networks_of(task.recipe):
        model = recipes.network(recipe, seed, task.data_dir)
        logits = predict(model, task.test, geometry=recipe.geometry, precision=recipe.precision)
        made[setting, recipe.loss] = logits
    return made | {(LOG_PRIOR, "pc"): made[None, "pc"]}


def features_of(task: ImbalancedTask, seed: int) -> tuple[Tensor, Tensor]:
    """Features (N, C) of all training and all test images by the network as it comes, from the store."""
    model, store = recipes.untrained(task.recipe, task.train.num_classes, seed), Store(task.data_dir)
    how: dict[str, Any] = {"geometry": task.recipe.geometry, "precision": task.recipe.precision}
    train, test = (pooled_features(model, images, **how, store=store) for images in (task.train, task.test))
    return train, test


def networks_of(recipe: Recipe) -> list[tuple[str | None, Recipe]]:
    """The recipes of the networks that are compared, each with its setting."""
    trained: list[tuple[str | None, Kind]] = [(None, "softmax"), (None, "pc"), (LOG_PRIOR, "softmax")]
    return [(s, replace(recipe, loss=loss, log_prior_bias=s == LOG_PRIOR)) for s, loss in trained]


def _of_heads(task: ImbalancedTask, seed: int) -> dict[tuple[str | None, str], Tensor]:
    recipe, rows, classes = task.recipe, task.train_rows(seed), task.train.num_classes
    features, unseen = features_of(task, seed)
    known = (features[rows], task.train.labels[rows], classes)
    decay = recipe.head_decay
    if decay is None:
        decay = heads.select_decay(*known, seed=seed)
    prior = task.prior(seed)
    how: dict[str | None, dict[str, Any]] = {
        None: {"optimizer": recipe.head_optimizer, "weight_decay": decay}
    }
    how[None]["epochs"] = max(1, round(recipe.passes / len(rows)))
    how[DECAYED_BIAS] = how[None] | {"decay_bias": True}
    how |= {name: {"optimizer": "adamw", "epochs": epochs} for name, epochs in STOPPED.items()}

    def fitted(setting: str | None, loss: Kind, **start: Any) -> Tensor:
        options = how[setting] | start | {"seed": seed}
        return heads.fit_head(*known, recipes.loss_of(loss, prior), **options)(unseen).detach()

    made: dict[tuple[str | None, str], Tensor] = {}
    made |= {(setting, loss): fitted(setting, loss) for setting in how for loss in LOSSES}
    for setting in STOPPED:
        also = f"{setting}, {LOG_PRIOR}"
        made[also, "softmax"] = fitted(setting, "softmax", log_prior=prior.log())
        made[also, "pc"] = made[setting, "pc"]
    return made


def posteriors(softmax: Tensor, pc: Tensor, prior: Tensor) -> dict[str, Tensor]:
    """Log posteriors (N, K) by four rules, from softmax logits g and PC-softmax logits f, each (N, K).

    With log-softmax of "softmax" g; "post_hoc" g − log π, logit adjustment (Menon et al. 2021); "pc" f;
    "pc_log_prior" f + log π. The first and the last hold for test images in the training set's proportions,
    the other two for balanced classes. A rule decides for the class of its largest posterior.

    >>> rules = posteriors(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0.9, 0.1]))
    >>> {method: int(found.argmax()) for method, found in rules.items()}
    {'softmax': 0, 'post_hoc': 1, 'pc': 0, 'pc_log_prior': 0}
    """
    logits = {
        "softmax": softmax,
        "post_hoc": information.shift_prior(softmax, prior, None, "softmax"),
        "pc": pc,
        "pc_log_prior": information.shift_prior(pc, prior, prior, "pc"),
    }
    return {method: of.log_softmax(1) for method, of in logits.items()}


def scores(task: ImbalancedTask, log_posterior: Tensor) -> list[rows_of.Row]:
    """Rows of log posteriors (N, K) for all test images: test, metric, unit, value, stderr, n.

    On "training_shares", the paper's test set, accuracy and per_class_accuracy, the mean recall of the
    classes; on "all" test images per_class_accuracy, and the mean recall of the rare and the common classes.
    On both the negative log-likelihood of the labels (nats; on "all" the mean of the classes' means, so that
    it stands for balanced classes) and calibration_error, see `rows.calibration`.
    """
    labels, rows, classes = task.test.labels, task.test_rows, task.test.num_classes
    predictions = log_posterior.argmax(1)
    as_trained = rows_of.accuracies(predictions[rows], labels[rows], classes)
    as_trained += rows_of.calibration(log_posterior[rows], labels[rows])
    everywhere = rows_of.accuracies(predictions, labels, classes)[1:]
    for metric, some in (("rare_recall", task.minority), ("common_recall", ~task.minority)):
        everywhere.append({"metric": metric} | rows_of.mean_recall(predictions, labels, some))
    everywhere += rows_of.calibration(log_posterior, labels, balanced=True)
    tests = {"training_shares": as_trained, "all": everywhere}
    return [{"test": test} | row for test, found in tests.items() for row in found]


def measure(task: ImbalancedTask, seeds: Sequence[int], logits: Logits) -> pd.DataFrame:
    """All that the experiment measures of what :func:`logits_of` gave for these seeds, one row a number.

    Every seed has the scores of the four rules; those of the two for balanced classes on all test images in
    every `setting` besides; and the mutual information by three readings of the test images in training
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
    made: list[rows_of.Row] = []
    for setting in dict.fromkeys(setting for setting, _, own in logits if own == seed):
        rules = posteriors(logits[setting, "softmax", seed], logits[setting, "pc", seed], prior)
        for method in rules if setting is None else BALANCED:
            about = {"method": method, "setting": setting}
            found = scores(task, rules[method])
            made += [about | row for row in found if setting is None or row["test"] == "all"]
    seen = {loss: logits[None, loss, seed][task.test_rows] for loss in LOSSES}
    found = rows_of.readings(seen, task.test.labels[task.test_rows], prior)
    return made + [{"test": "training_shares"} | row for row in found]


def prior_sweep(
    task: ImbalancedTask, seeds: Sequence[int], logits: Logits, taus: Sequence[float] = TAUS
) -> pd.DataFrame:
    """The scores of ``argmax f + τ log π`` along τ, of the PC logits f of every seed, with a column "tau"."""
    check_seeds(seeds)
    made = []
    for seed in seeds:
        f = logits[None, "pc", seed]
        log_prior = task.prior(seed).log().to(f)
        for tau in taus:
            found = scores(task, (f + tau * log_prior).log_softmax(1))
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
