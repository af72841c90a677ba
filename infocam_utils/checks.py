"""Refusals at the door: what was given, what was expected, what to do next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Prior = Tensor | np.ndarray | Sequence[float]


def check_prior(prior: Prior, num_classes: int | None = None) -> Tensor:
    """The prior as a (K,) floating tensor, or a ValueError that names what is wrong with it.

    >>> check_prior([0.5, 0.5], num_classes=2)
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    remedy = "class_prior(labels, num_classes) makes one from training labels"
    prior = prior if isinstance(prior, Tensor) else torch.as_tensor(np.asarray(prior, dtype=np.float64))
    if prior.ndim != 1 or prior.numel() == 0 or not prior.is_floating_point():
        raise ValueError(
            f"prior must be a floating (K,) vector, got {tuple(prior.shape)} of {prior.dtype}; {remedy}"
        )
    wrong = (~(prior > 0) | prior.isinf()).nonzero().flatten().tolist()  # ~(> 0) catches NaN too
    if wrong:
        raise ValueError(
            f"prior must be finite and above 0, but is {float(prior[wrong[0]])} at {named('class', wrong)}; "
            f"{remedy} (with smoothing > 0 if a class is absent)"
        )
    total = float(prior.double().sum() if prior.device.type == "cpu" else prior.sum())
    if abs(total - 1) > 1e-3:
        raise ValueError(f"prior must sum to 1 within 0.001, got {total:.6g}; divide by the sum, or {remedy}")
    if num_classes is not None:
        check_width(prior, num_classes)
    return prior


def check_width(prior: Tensor, num_classes: int) -> None:
    """Refuse a prior of another number of classes than the logits."""
    if prior.numel() != num_classes:
        raise ValueError(
            f"prior has {prior.numel()} classes but the logits have {num_classes};"
            " use the prior of this classifier's own training set"
        )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the named choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_logits(logits: Tensor) -> None:
    """Refuse logits that are no floating (..., K) tensor with at least one sample."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        given = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"logits must be a floating-point tensor, got {given}; convert with .float()")
    if logits.ndim == 0 or logits.numel() == 0:
        raise ValueError(
            f"logits must be (..., K) with at least one sample and class, got {tuple(logits.shape)};"
            " skip empty batches"
        )


def check_pairs(logits: Tensor, labels: Tensor) -> None:
    """Refuse anything but (B, K) floating logits with (B,) integer labels."""
    check_logits(logits)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (B, K) and labels (B,), got {tuple(logits.shape)} and {tuple(labels.shape)};"
            " flatten extra axes, and give class numbers rather than one-hot rows"
        )
    check_integers("labels", labels)


def check_finite(logits: Tensor) -> None:
    """Refuse NaN and infinite logits; waits for the device."""
    finite = logits.isfinite()
    if not bool(finite.all()):
        bad = logits[~finite]
        raise ValueError(
            f"logits must be finite, but {bad.numel()} of {logits.numel()} are not (first: {float(bad[0])});"
            " training diverged or a class was masked: lower the learning rate, or drop masked classes"
        )


def check_integers(name: str, values: Tensor) -> None:
    """Refuse floating, complex and boolean values where class numbers belong."""
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {values.dtype}; convert with .long()")


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse labels that are no non-empty (N,) integers in [0, num_classes); waits for the device."""
    if labels.ndim != 1 or labels.numel() == 0:
        raise ValueError(f"labels must be a non-empty (N,) vector, got shape {tuple(labels.shape)}")
    check_integers("labels", labels)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels must lie in [0, {num_classes - 1}], got {low if low < 0 else high};"
            " number the classes from 0, or raise num_classes"
        )


def check_predictions(predictions: Tensor, labels: Tensor) -> None:
    """Refuse predictions and labels of different or no length."""
    if predictions.shape != labels.shape or labels.ndim != 1 or labels.numel() == 0:
        raise ValueError(
            f"predictions and labels must be non-empty (N,) vectors of one length, got "
            f"{tuple(predictions.shape)} and {tuple(labels.shape)}; predict with logits.argmax(-1)"
        )


def named(noun: str, indices: list[int]) -> str:
    """'class 3', or 'classes 1, 2, 3, … (12 in all)'."""
    if len(indices) == 1:
        return f"{noun} {indices[0]}"
    shown = ", ".join(map(str, indices[:10]))
    return f"{noun}es {shown}" + (f", … ({len(indices)} in all)" if len(indices) > 10 else "")
