"""Which images of a list are used: the paper's imbalance rules, its even/odd halves, stratified splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ImbalanceRule:
    """Keep the first `few` images of each minority class and the first `many` of every other class.

    Attributes
    ----------
    few : images of a minority class.
    many : images of a majority class, or None for all.
    minority : "odd" or "even" class numbers, or the class numbers themselves.
    first_number : class number of label 0, where the class numbers are not given.
    pool : (start, stop), the part of the list that is walked; None for all.
    """

    few: int
    many: int | None
    minority: str | Sequence[int] = "odd"
    first_number: int = 1
    pool: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.few < 1 or (self.many is not None and self.many < 1):
            raise ValueError(
                f"few and many must be positive, got few={self.few}, many={self.many}; many=None keeps all"
            )
        if isinstance(self.minority, str) and self.minority not in ("odd", "even"):
            raise ValueError(f"minority must be 'odd', 'even' or class numbers, got {self.minority!r}")

    def is_minority(self, numbers: Tensor) -> Tensor:
        """Which of the class numbers belong to the minority."""
        if isinstance(self.minority, str):
            return numbers % 2 == (self.minority == "odd")
        return torch.isin(numbers, torch.as_tensor(list(self.minority)))


def imbalanced_subset(
    labels: Tensor,
    rule: ImbalanceRule,
    ids: Tensor | None = None,
    class_numbers: Sequence[int] | None = None,
) -> Tensor:
    """Indices of an imbalanced subset, in walking order: the first n images of each class are kept.

    Parameters
    ----------
    labels : int64 (N,).
    rule : how many of each class; the paper's are in the rows of `infocam_utils.data.sets.SETS`.
    ids : (N,), image ids; the walk is in their order. None walks the list as it is.
    class_numbers : the data set's own number of each label, as in `ImageSet.class_numbers`. The paper's CUB
        rule goes by folder numbers, so a subset of the classes needs them. Default: label + first_number.

    >>> labels = torch.tensor([0, 0, 0, 1, 1, 1])
    >>> imbalanced_subset(labels, ImbalanceRule(few=1, many=2)).tolist()
    [0, 3, 4]
    """
    labels = _checked(labels)
    if class_numbers is None:
        numbers = labels + rule.first_number
    elif int(labels.max()) >= len(class_numbers):
        raise ValueError(f"label {int(labels.max())} has no class number: only {len(class_numbers)} given")
    else:
        numbers = torch.as_tensor(list(class_numbers))[labels]
    if ids is not None and len(ids) != len(labels):
        raise ValueError(f"{len(labels)} labels need as many ids, got {len(ids)}")
    order = torch.arange(len(labels)) if ids is None else torch.argsort(ids, stable=True)
    if rule.pool is not None:
        start, stop = rule.pool
        if len(labels) < stop:
            raise ValueError(
                f"this rule walks images {start} to {stop - 1} of the official training list, got only "
                f"{len(labels)}; give an ImbalanceRule without a pool"
            )
        order = order[start:stop]
    many = len(labels) if rule.many is None else rule.many
    limits = torch.where(rule.is_minority(numbers[order]), rule.few, many)
    return order[_position_within_class(labels[order]) < limits]


def half_split(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's halves, validation and test: even and odd positions of the list within each class.

    >>> [half.tolist() for half in half_split(torch.tensor([0, 0, 0, 1, 1]))]
    [[0, 2, 3], [1, 4]]
    """
    return _parted(_position_within_class(_checked(labels)) % 2 == 1)


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """A random share of every class is held out; kept and held-out indices, each ascending.

    Of n images of a class round(n * fraction) are held out, at least one and at most n - 1, so that every
    class is on both sides. Different seeds give repeated splits.

    >>> kept, held_out = stratified_split(torch.tensor([0] * 8 + [1] * 4), 0.25, seed=0)
    >>> len(kept), len(held_out)
    (9, 3)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie strictly between 0 and 1, got {fraction}")
    labels = _checked(labels)
    counts = torch.bincount(labels)
    if bool((counts == 1).any()):
        lone = torch.nonzero(counts == 1).flatten().tolist()
        raise ValueError(f"classes {lone[:5]} have one image only and cannot be split; leave them out")
    shuffled = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    held = torch.clamp(torch.round(counts * fraction).long(), min=1).minimum((counts - 1).clamp(min=0))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[shuffled] = _position_within_class(labels[shuffled]) < held[labels[shuffled]]
    return _parted(chosen)


def _parted(chosen: Tensor) -> tuple[Tensor, Tensor]:
    return torch.nonzero(~chosen).flatten(), torch.nonzero(chosen).flatten()


def _checked(labels: Tensor) -> Tensor:
    labels = torch.as_tensor(labels).cpu()
    if labels.ndim != 1 or len(labels) == 0 or labels.is_floating_point() or int(labels.min()) < 0:
        least = f", least {labels.min().item()}" if labels.numel() else ""
        raise ValueError(
            "labels must be a non-empty one-dimensional tensor of integers >= 0, got "
            f"{labels.dtype} of shape {tuple(labels.shape)}{least}"
        )
    return labels.long()


def _position_within_class(labels: Tensor) -> Tensor:
    """0 for the first image of its class in the list, 1 for the second, ..."""
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    starts = torch.cumsum(counts, 0) - counts
    position = torch.empty_like(labels)
    position[order] = torch.arange(len(labels)) - starts[labels[order]]
    return position
