"""The imbalance experiment: rare and common classes, logits of both softmaxes, decisions and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from infocam_utils.classifiers import heads
from infocam_utils.classifiers.training import pooled_features, predict
from infocam_utils.data import sets as datasets
from infocam_utils.data.images import ImageSet
from infocam_utils.data.splits import ImbalanceRule, imbalanced_subset
from infocam_utils.experiments.recipe import Kind, Protocol, loss_of, network, select_decay, untrained
from infocam_utils.information import accuracy, class_prior, per_class_accuracy, recalls, shift_prior


@dataclass(frozen=True)
class ImbalancedTask:
    """A data set of which some classes are made rare, as in the paper.

    Attributes
    ----------
    train, test : all images; `train_rows` and `test_rows` choose among them
    train_rule, test_rule : how many of each class are kept
    minority : bool (K,), the rare classes
    """

    name: str
    train: ImageSet
    test: ImageSet
    train_rule: ImbalanceRule
    test_rule: ImbalanceRule

    @property
    def minority(self) -> Tensor:
        return self.train_rule.is_minority(torch.tensor(self.train.class_numbers))

    def train_rows(self, seed: int | None) -> Tensor:
        """The kept training images: the first of each class in an order drawn from the seed.

        None walks the data set's own order, which gives the paper's list.
        """
        return _rows(self.train, self.train_rule, seed)

    @property
    def test_rows(self) -> Tensor:
        """Test images in the training set's proportions, by the paper's rule and in its order."""
        return _rows(self.test, self.test_rule, None)

    def prior(self, seed: int | None) -> Tensor:
        """(K,) class shares of the kept training images."""
        return class_prior(self.train.labels[self.train_rows(seed)], self.train.num_classes)


def _rows(images: ImageSet, rule: ImbalanceRule, seed: int | None) -> Tensor:
    if seed is None:
        return imbalanced_subset(images.labels, rule, class_numbers=images.class_numbers)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    chosen = imbalanced_subset(images.labels[order], rule, class_numbers=images.class_numbers)
    return order[chosen].sort().values


def imbalanced_task(
    dataset: str,
    data_dir: str | Path | None = None,
    *,
    few: int | None = None,
    many: int | None = None,
    size: int | None = None,
    limit: int | None = None,
) -> ImbalancedTask:
    """The paper's imbalance on a data set, or another with `few` images per rare class and `many` per common.

    CUB and folders: odd class numbers 10 training images and 5 test images, even ones all and 15. Digits and
    MNIST: even digits a tenth. Drawn birds: odd classes a tenth.

    >>> task = imbalanced_task("digits")
    >>> torch.bincount(task.train.labels[task.train_rows(seed=0)]).tolist()
    [12, 120, 12, 120, 12, 120, 12, 120, 12, 120]
    """
    if dataset == "mnist":
        limit = None  # the paper's rule walks fixed parts of the whole list
    train = datasets.load_images(dataset, "train", data_dir, size=size, limit=limit)
    test = datasets.load_images(dataset, "test", data_dir, size=size, limit=limit)
    if dataset == "mnist":  # both pools are parts of the official training images
        train_rule, test_rule = datasets.RULES["paper_mnist_train"], datasets.RULES["paper_mnist_test"]
        rows = torch.arange(*(test_rule.pool or (0, len(train))))
        test, test_rule = train.subset(rows), replace(test_rule, pool=None)
    elif dataset in ("digits", "minibirds"):
        side = "even" if dataset == "digits" else "odd"
        common, common_test = (int(torch.bincount(s.labels).min()) // 10 * 10 for s in (train, test))
        train_rule = ImbalanceRule(max(1, common // 10), common, side)
        test_rule = ImbalanceRule(max(1, common_test // 10), common_test, side)
    else:
        train_rule, test_rule = datasets.RULES["paper_cub_train"], datasets.RULES["paper_cub_test"]
    if few is not None:  # a 0 must reach the rule, which refuses it
        train_rule = replace(train_rule, few=few)
    if many is not None:
        train_rule = replace(train_rule, many=many)
    return ImbalancedTask(dataset, train, test, train_rule, test_rule)


def imbalanced_logits(
    task: ImbalancedTask, how: Protocol, kind: Kind, seed: int, *, log_prior_bias: bool = False,
    cache_dir: Path | None = None,
) -> Tensor:  # fmt: skip
    """Logits (N, K) of all test images, from a classifier trained on the kept training images."""
    rows = task.train_rows(seed)
    if not how.frozen:
        kept = task.train.subset(rows)
        model = network(kept, how, kind, seed, log_prior_bias=log_prior_bias, cache_dir=cache_dir)
        return predict(model, task.test, geometry=how.geometry)
    model = untrained(how, task.train.num_classes, seed)
    features, unseen = (
        pooled_features(model, images, geometry=how.geometry, cache_dir=cache_dir)
        for images in (task.train, task.test)
    )
    labels, prior = task.train.labels[rows], task.prior(seed)
    decay = how.head_decay
    if decay is None:  # chosen with the plain softmax, and the same for both losses
        decay = select_decay(features[rows], labels, task.train.num_classes, seed=seed)
    head = heads.fit_head(
        features[rows], labels, task.train.num_classes, loss_of(kind, prior), weight_decay=decay,
        optimizer=how.head_optimizer, epochs=max(1, round(how.passes / len(rows))), seed=seed,
    )  # fmt: skip
    with torch.no_grad():
        return head(unseen)


METHODS = ("softmax", "softmax, post-hoc", "PC-softmax", "PC-softmax + log prior")


def decisions(softmax: Tensor, pc: Tensor, prior: Tensor) -> dict[str, Tensor]:
    """Predicted classes (N,) by the four rules of `METHODS`, from softmax and PC-softmax logits (N, K).

    Plain argmax of each; post-hoc logit adjustment g - log π; and f + log π, PC-softmax's rule for test
    images in the training set's proportions.

    >>> rules = decisions(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0.9, 0.1]))
    >>> {name: int(predicted) for name, predicted in rules.items()}
    {'softmax': 0, 'softmax, post-hoc': 1, 'PC-softmax': 0, 'PC-softmax + log prior': 0}
    """
    shifted = shift_prior(softmax, prior, None, "softmax"), shift_prior(pc, prior, prior, "pc")
    made = (softmax, shifted[0], pc, shifted[1])
    return {name: logits.argmax(1) for name, logits in zip(METHODS, made, strict=True)}


def imbalance_scores(predictions: Tensor, task: ImbalancedTask) -> dict[str, float]:
    """Accuracies in per cent of predictions (N,) for all test images.

    ``accuracy`` and ``per_class_accuracy`` are the paper's, on test images in the training proportions;
    ``per_class_accuracy_all`` and the mean recalls of rare and common classes are over all test images.
    """
    rows, labels, classes = task.test_rows, task.test.labels, task.test.num_classes
    recall = recalls(predictions, labels, classes)
    scores = {
        "accuracy": accuracy(predictions[rows], labels[rows]),
        "per_class_accuracy": per_class_accuracy(predictions[rows], labels[rows], classes),
        "per_class_accuracy_all": per_class_accuracy(predictions, labels, classes),
        "minority_recall": float(recall[task.minority].nanmean()),
        "majority_recall": float(recall[~task.minority].nanmean()),
    }
    return {name: 100 * value for name, value in scores.items()}


def prior_sweep(
    pc_logits: dict[int, Tensor],
    task: ImbalancedTask,
    taus: Sequence[float] = tuple(np.linspace(-0.5, 1.5, 21)),
) -> dict[str, np.ndarray]:
    """Scores of ``argmax f + τ log π`` along τ, from the PC logits (N, K) of each seed.

    Returns
    -------
    "tau" (T,), and "accuracy" and "per_class_accuracy_all" (seeds, T) in per cent.
    """
    curves = []
    for seed, logits in pc_logits.items():
        log_prior = task.prior(seed).log().to(logits)
        made = [imbalance_scores((logits + tau * log_prior).argmax(1), task) for tau in taus]
        curves.append([(one["accuracy"], one["per_class_accuracy_all"]) for one in made])
    table = np.array(curves)  # (seeds, T, 2)
    return {"tau": np.array(taus), "accuracy": table[..., 0], "per_class_accuracy_all": table[..., 1]}


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
