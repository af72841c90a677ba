"""Entropy, PC-softmax, pointwise and average mutual information, in nats.

Notation: K classes, prior π (the training set's class shares), logits f of shape (..., K).
PC-softmax is ``s_y = exp f_y / Σ_j π_j exp f_j`` (arXiv 1911.10688); its logarithm estimates
PMI(x, y) = log p(y|x) / p(y). Everything runs through logsumexp, stays on the logits' device, and is
computed in float32 for half-precision logits. What is wrong with an input is said by the checks at the end:
a TypeError where it is of the wrong kind, or else a ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

Prior = Tensor | np.ndarray | Sequence[float]
Kind = Literal["pc", "softmax"]
Output = Literal["pc", "softmax", "probabilities"]  # what a classifier returns
Reading = Literal["pc", "softmax", "probabilities", "log_k_minus_ce"]
Reduction = Literal["mean", "sum", "none"]

NORMAL_95 = 1.959963984540054
CHUNK = 2**20  # logits of which the label's PMI is computed together


def class_prior(
    labels: Tensor | np.ndarray | Sequence[int], num_classes: int, smoothing: float = 0.0
) -> Tensor:
    """Class shares ``π_y = (n_y + smoothing) / (N + K smoothing)`` of (N,) training labels: (K,) float64.

    Raises ValueError if labels are empty or outside [0, K), or if a class is absent and nothing is added to
    its count by ``smoothing``: its log-prior would be −∞.

    >>> class_prior([0, 0, 0, 1], num_classes=2)
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    if smoothing < 0:
        raise ValueError(f"smoothing must be at least 0, got {smoothing}; 0 or 1 is usual")
    labels = torch.as_tensor(labels)
    check_labels(labels, num_classes)
    counts = torch.bincount(labels.long(), minlength=num_classes).double() + smoothing
    return check_prior(counts / counts.sum())


def entropy(prior: Prior) -> Tensor:
    """Entropy ``H(Y) = −Σ_y π_y log π_y`` of a (K,) prior, in nats, as a 0-d tensor.

    >>> round(float(entropy([0.5, 0.5])), 6)
    0.693147
    """
    prior = check_prior(prior)
    return -(prior * prior.log()).sum()


def log_pc_softmax(logits: Tensor, prior: Prior) -> Tensor:
    """Log PC-softmax ``log s_y = f_y − logsumexp_j(f_j + log π_j)`` in nats; ``Σ_y π_y s_y = 1``.

    Logits and result are (..., K), the prior (K,). NaN and infinite logits pass through: to look for them
    would stop a GPU's queue at every step.

    >>> log_pc_softmax(torch.tensor([[0.0, 50.0]]), [0.25, 0.75])
    tensor([[-49.7123,   0.2877]])
    """
    _check_logits(logits)
    return _log_ratio(logits, check_prior(prior, logits.shape[-1]), "pc")


def pointwise_mutual_information(logits: Tensor, prior: Prior, kind: Output = "pc") -> Tensor:
    """Estimated ``PMI(x, y) = log p(y|x) − log π_y`` in nats for every class, (..., K) like the logits.

    ``kind="pc"``: logits of a PC-softmax classifier, ``log s_y``. ``kind="softmax"``: logits of a plain
    softmax classifier trained under the prior, ``log softmax(g)_y − log π_y``. ``kind="probabilities"``: the
    posterior itself, of any classifier trained under the prior; where it is 0 the PMI is −∞. The result is
    float64 where float32 cannot hold the difference of two logits. Raises ValueError for logits that are not
    finite, and for rows that are no probabilities.

    >>> pmi = pointwise_mutual_information(torch.zeros(1, 4), [0.25] * 4, kind="softmax")
    >>> pmi.abs().max() < 1e-6
    tensor(True)
    """
    check_choice("kind", kind, get_args(Output))
    logits, form = _as_logits(logits, kind)
    return _log_ratio(logits, check_prior(prior, logits.shape[-1]), form)


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` independent samples with its standard error and normal 95 % interval, in nats.

    The sum of two estimates is the estimate from both sets of samples, which must be disjoint: a large set
    can be read in parts.

    >>> Estimate.from_samples(torch.tensor([1.0])) + Estimate.from_samples(torch.tensor([3.0]))
    Estimate(value=2.0, stderr=1.0, low=0.0400..., high=3.9599..., n=2)
    """

    value: float
    stderr: float
    low: float = field(init=False)
    high: float = field(init=False)
    n: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", self.value - NORMAL_95 * self.stderr)
        object.__setattr__(self, "high", self.value + NORMAL_95 * self.stderr)

    @classmethod
    def from_samples(cls, samples: Tensor) -> Estimate:
        """Mean and standard error of (N,) samples; infinite standard error for one sample."""
        samples = samples.detach().cpu().double()
        n = samples.numel()
        if n == 0:
            raise ValueError("an estimate needs at least 1 sample, got 0; pass a non-empty held-out set")
        return cls(float(samples.mean()), float(samples.std()) / math.sqrt(n) if n > 1 else math.inf, n)

    def __add__(self, other: Estimate) -> Estimate:
        if not isinstance(other, Estimate):
            return NotImplemented
        n, gap = self.n + other.n, other.value - self.value
        # Sums of squared deviations: each part's from its own mean, and the two means' from the common one.
        # One sample deviates by nothing from its mean, though its standard error is infinite.
        within = sum(e.stderr**2 * e.n * (e.n - 1) for e in (self, other) if e.n > 1)
        squares = within + gap**2 * self.n * other.n / n
        return Estimate(self.value + gap * other.n / n, math.sqrt(squares / (n - 1) / n), n)


def mutual_information(
    logits: Tensor | np.ndarray,
    labels: Tensor | np.ndarray | Sequence[int],
    prior: Prior,
    kind: Reading = "pc",
) -> Estimate:
    """Estimate I(X; Y) from held-out pairs: the mean estimated PMI at the true labels, in nats.

    Its expectation is a lower bound on I(X; Y) (Barber and Agakov 2003), tight when the classifier is exact.
    ``kind="log_k_minus_ce"`` is ``log K − cross-entropy`` of a plain softmax, the reading of the official
    code: it exceeds ``kind="softmax"`` by ``log K − H(Y)`` and is no bound unless labels are uniform.

    Logits are (N, K), or with ``kind="probabilities"`` posteriors of any classifier, labels (N,) integers,
    the prior is that of the training set. They are read once, some rows at a time, so a memory-mapped array
    need not fit into memory; the estimates of parts add. Raises ValueError for an empty batch, labels outside
    [0, K), logits that are not finite, and a label to which the classifier gave no probability.

    >>> logits = torch.tensor([[9.0, -9.0], [-9.0, 9.0]])
    >>> round(mutual_information(logits, torch.tensor([0, 1]), [0.5, 0.5]).value, 4)  # log 2
    0.6931
    """
    check_choice("kind", kind, get_args(Reading))
    given = torch.as_tensor(labels)
    if (
        not isinstance(logits, np.ndarray) or logits.ndim != 2
    ):  # a part of an array is looked at when it is read
        _check_logits(torch.from_numpy(logits) if isinstance(logits, np.ndarray) else logits, given)
    elif given.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (B, K) and labels (B,), got {logits.shape} and {tuple(given.shape)}"
        )
    classes = logits.shape[1]
    check_labels(given, classes)
    prior = check_prior(prior, classes)
    if kind == "log_k_minus_ce":  # log softmax(g)_y + log K is the PMI of a softmax under a uniform prior
        prior, kind = torch.full((classes,), 1 / classes, dtype=torch.float64), "softmax"
    # One result, made before: small ones kept from each turn would split the memory that the turns share.
    pmi, rows = torch.empty(len(given), dtype=torch.float64), max(1, CHUNK // classes)
    for start in range(0, len(given), rows):
        part, own = logits[start : start + rows], given[start : start + rows].long()
        part = torch.from_numpy(np.array(part)) if isinstance(part, np.ndarray) else part.detach()
        part, form = _as_logits(part, kind)
        pmi[start : start + rows] = _log_ratio(part, prior, form, own.to(part.device))
    if bool(pmi.isinf().any()):
        first = int(pmi.isinf().nonzero()[0])
        raise ValueError(
            f"the label of pair {first} has probability 0, which is −∞ nats; smooth the probabilities, for "
            "instance 0.99 p + 0.01 π"
        )
    return Estimate.from_samples(pmi)


class PCSoftmaxLoss(nn.Module):
    """Negative log PC-softmax at the label, ``−f_y + logsumexp_j(f_j + log π_j)``, in nats.

    Replaces ``nn.CrossEntropyLoss``. Its mean is minus the mutual-information estimate: it may be negative.
    It is logit-adjusted cross-entropy (Menon et al. 2021, τ = 1; balanced softmax, Ren et al. 2020) plus
    ``log π_y``, which has no gradient. Predict with ``argmax f``, or for another prior :func:`shift_prior`.

    ``weight`` (K,), ``ignore_index``, ``label_smoothing`` and ``reduction`` ("mean", "sum", "none") mean what
    they mean to ``nn.CrossEntropyLoss``, with log PC-softmax in place of log-softmax.

    The prior is kept as the buffer ``prior``, which ``.half()`` leaves as it is: in half precision a share
    below 6e-8 is 0. Each call checks shapes, dtypes and, on the CPU and outside torch.compile, export and
    vmap, the range of labels. What only a wait for the device could tell is not checked: NaN logits give a
    NaN loss, and a label out of range on an accelerator ends in the device's own assertion.

    >>> loss = PCSoftmaxLoss([0.9, 0.1])(torch.tensor([[4.0, -4.0]]), torch.tensor([0]))
    >>> round(float(loss), 4)  # nearly log 0.9: at most −log π_y can be learned about class 0
    -0.1053
    >>> PCSoftmaxLoss([0.9, 0.1], label_smoothing=0.1)
    PCSoftmaxLoss(K=2, prior=0.1..0.9, reduction='mean', label_smoothing=0.1)
    """

    prior: Tensor
    weight: Tensor | None

    def __init__(
        self,
        prior: Prior,
        reduction: Reduction = "mean",
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, get_args(Reduction))
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")
        self.reduction, self.ignore_index, self.label_smoothing = reduction, ignore_index, label_smoothing
        self.register_buffer("prior", check_prior(prior).detach().clone())
        if weight is not None and (weight.shape != self.prior.shape or not weight.isfinite().all()):
            raise ValueError(f"weight must be finite and ({len(self.prior)},), was {tuple(weight.shape)}")
        self.register_buffer("weight", None if weight is None else weight.detach().clone())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of (B, K) logits at (B,) integer labels: 0-d, or (B,) for reduction "none"."""
        _check_logits(logits, labels)
        _check_width(self.prior, logits.shape[1])
        labels, kept = labels.long(), labels != self.ignore_index
        if labels.device.type == "cpu" and not _traced(labels) and bool(kept.any()):
            check_labels(labels[kept], logits.shape[1])
        labels = labels.where(kept, 0)
        if self.label_smoothing:
            ratios = _log_ratio(logits, self.prior, "pc")  # (B, K)
            losses = -ratios.gather(1, labels[:, None])[:, 0]
            ratios = ratios if self.weight is None else ratios * self.weight
            even = -ratios.sum(1) / logits.shape[1]
        else:
            losses = -_log_ratio(logits, self.prior, "pc", labels)  # (B,)
            even = torch.zeros_like(losses)
        shares = kept.to(losses) if self.weight is None else kept * self.weight.to(losses)[labels]
        losses = (1 - self.label_smoothing) * shares * losses + self.label_smoothing * kept * even
        if self.reduction == "none":
            return losses
        return losses.sum() / shares.sum() if self.reduction == "mean" else losses.sum()

    def extra_repr(self) -> str:
        """The number of classes, the range of their shares, and the options."""
        low, high = (f"{float(end):.3g}" for end in (self.prior.min(), self.prior.max()))
        text = f"K={len(self.prior)}, prior={low}..{high}, reduction={self.reduction!r}"
        text += f", ignore_index={self.ignore_index}" * (self.ignore_index != -100)
        text += f", label_smoothing={self.label_smoothing:g}" * bool(self.label_smoothing)
        return text + ", weight=..." * (self.weight is not None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PCSoftmaxLoss:
        prior = self.prior
        super()._apply(fn, recurse)
        if torch.finfo(self.prior.dtype).bits < 32:
            self.prior = prior.to(self.prior.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if prefix + "prior" in state_dict:  # saved in half precision it may hold zeros
            check_prior(state_dict[prefix + "prior"])
        super()._load_from_state_dict(state_dict, prefix, *args)


def shift_prior(logits: Tensor, train_prior: Prior, test_prior: Prior | None, kind: Output = "pc") -> Tensor:
    """Logits (..., K) of the posterior under another class prior π′, uniform for None; predict their argmax.

    PC-softmax: ``f + log π′``. Plain softmax trained under π: ``g + log π′ − log π``; with π′ uniform this is
    post-hoc logit adjustment (Menon et al. 2021). ``kind="probabilities"`` takes and returns probabilities,
    ``p π′/π`` divided by its sum. Raises ValueError for logits that are not finite.

    >>> shift_prior(torch.zeros(1, 2), [0.9, 0.1], None, kind="softmax").argmax(1)
    tensor([1])
    """
    check_choice("kind", kind, get_args(Output))
    classes = logits.shape[-1]
    if kind == "probabilities":
        logits, _ = _as_logits(logits, kind)
    else:
        _check_finite(logits)
    logits = _at_least_float32(logits)
    train = check_prior(train_prior, classes)
    test = torch.full_like(train, 1 / classes) if test_prior is None else check_prior(test_prior, classes)
    shift = test.log() if kind == "pc" else test.log() - train.to(test).log()
    shifted = logits + shift.to(logits)
    return shifted.softmax(-1) if kind == "probabilities" else shifted


def recalls(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Share of each class's samples that are predicted right: (K,) float64, NaN for a class with no sample.

    >>> recalls(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), num_classes=2)
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    check_labels(labels, num_classes)
    _check_predictions(predictions, labels)
    total = torch.bincount(labels.long(), minlength=num_classes)
    right = torch.bincount(labels.long()[predictions == labels], minlength=num_classes)
    return right.double() / total


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Share of samples predicted right (micro average), in [0, 1].

    >>> accuracy(torch.tensor([0, 1]), torch.tensor([0, 0]))
    0.5
    """
    _check_predictions(predictions, labels)
    return float((predictions == labels).double().mean())


def per_class_accuracy(predictions: Tensor, labels: Tensor, num_classes: int) -> float:
    """Mean recall over the classes that have samples (macro average), in [0, 1].

    >>> per_class_accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), num_classes=2)
    0.75
    """
    return float(recalls(predictions, labels, num_classes).nanmean())


# ---- how log p(y|x)/π_y is computed


def _log_ratio(logits: Tensor, prior: Tensor, kind: Kind, labels: Tensor | None = None) -> Tensor:
    """Estimated log p(y|x)/π_y of every class, (..., K), or only at ``labels`` of (B, K) logits, (B,)."""
    logits = _at_least_float32(logits)
    # Subtracting the largest logit before adding log π keeps log π's digits when logits are large.
    shifted = logits - logits.detach().amax(-1, keepdim=True)
    log_prior = _at_least_float32(prior).log().to(logits)
    normaliser = torch.logsumexp(shifted + log_prior if kind == "pc" else shifted, -1, keepdim=True)
    if labels is not None:
        shifted, log_prior = shifted.gather(1, labels[:, None]), log_prior[labels][:, None]  # (B, 1)
    ratio = shifted - normaliser if kind == "pc" else shifted - normaliser - log_prior
    return ratio if labels is None else ratio[:, 0]


def _as_logits(given: Tensor, kind: Reading) -> tuple[Tensor, Kind]:
    """Logits in a dtype that holds any difference of two, and of what; of probabilities the logarithm."""
    if kind != "probabilities":
        return given.to(_check_finite(given)), "pc" if kind == "pc" else "softmax"
    _check_logits(given)
    total = given.double().sum(-1)
    if not bool((given >= 0).all()) or not bool(((total - 1).abs() < 1e-3).all()):
        raise ValueError(
            "probabilities must not be negative, and each row must sum to 1 within 0.001; for logits pass "
            "kind='softmax' or 'pc'"
        )
    return _at_least_float32(given).log(), "softmax"


def _traced(labels: Tensor) -> bool:
    """Inside torch.compile, export or vmap, where no value may be looked at."""
    return torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(labels)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


# ---- checks


def check_prior(prior: Prior, num_classes: int | None = None) -> Tensor:
    """The prior as a (K,) floating tensor, or a ValueError that names what is wrong with it.

    >>> check_prior([0.5, 0.5], num_classes=2)
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    remedy = "class_prior(labels, num_classes) makes one, with smoothing > 0 if a class has no labels"
    prior = prior if isinstance(prior, Tensor) else torch.as_tensor(np.asarray(prior, dtype=np.float64))
    if prior.ndim != 1 or prior.numel() == 0 or not prior.is_floating_point():
        given = f"{tuple(prior.shape)} of {prior.dtype}"
        raise ValueError(f"prior must be a floating (K,) vector, got {given}; {remedy}")
    wrong = (~(prior > 0) | prior.isinf()).nonzero().flatten().tolist()  # ~(> 0) catches NaN too
    if wrong:
        first = f"{float(prior[wrong[0]])} at class {wrong[0]}"
        raise ValueError(f"prior must be finite and above 0, but is {first}; {remedy}")
    total = float(prior.double().sum() if prior.device.type == "cpu" else prior.sum())
    if abs(total - 1) > 1e-3:
        raise ValueError(f"prior must sum to 1 within 0.001, got {total:.6g}; divide by the sum, or {remedy}")
    if num_classes is not None:
        _check_width(prior, num_classes)
    return prior


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse labels that are no non-empty (N,) integers in [0, num_classes); waits for the device.

    >>> check_labels(torch.tensor([0, 2]), num_classes=2)
    Traceback (most recent call last):
    ValueError: labels must lie in [0, 1], got 2; number the classes from 0, or raise num_classes
    """
    _check_integers(labels)
    if labels.ndim != 1 or labels.numel() == 0:
        raise ValueError(f"labels must be a non-empty (N,) vector, got shape {tuple(labels.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels must lie in [0, {num_classes - 1}], got {low if low < 0 else high};"
            " number the classes from 0, or raise num_classes"
        )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is not among the named choices.

    >>> check_choice("kind", "PC", ("pc", "softmax"))
    Traceback (most recent call last):
    ValueError: kind must be one of 'pc', 'softmax', got 'PC'
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_finite(logits: Tensor) -> torch.dtype:
    """Refuse NaN and infinite logits, waiting for the device; the dtype that holds any difference of two."""
    _check_logits(logits)
    low, high = float(logits.detach().amin()), float(logits.detach().amax())  # NaN comes through
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = logits[~logits.isfinite()]
        raise ValueError(
            f"logits must be finite, but {bad.numel()} of {logits.numel()} are not (first: {float(bad[0])});"
            " lower the learning rate if training diverged, or drop masked classes"
        )
    fits = logits.dtype != torch.float64 and high - low <= torch.finfo(torch.float32).max
    return torch.float32 if fits else torch.float64


def _check_logits(logits: Tensor, labels: Tensor | None = None) -> None:
    """Refuse anything but floating logits (..., K), or (B, K) where (B,) integer labels come with them."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        given = getattr(logits, "dtype", type(logits))
        raise TypeError(f"logits must be a floating-point tensor, got {given}; convert with .float()")
    if logits.ndim == 0 or logits.numel() == 0:
        shape = tuple(logits.shape)
        raise ValueError(f"logits must be (..., K) and not empty, got {shape}; skip empty batches")
    if labels is None:
        return
    _check_integers(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (B, K) and labels (B,), got {tuple(logits.shape)} and {tuple(labels.shape)};"
            " flatten extra axes, and give class numbers rather than one-hot rows"
        )


def _check_integers(labels: Tensor) -> None:
    whole = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex())
    if not whole or labels.dtype == torch.bool:
        given = getattr(labels, "dtype", type(labels))
        raise TypeError(f"labels must be an integer tensor, got {given}; use torch.as_tensor(labels).long()")


def _check_width(prior: Tensor, num_classes: int) -> None:
    if prior.numel() != num_classes:
        sizes = f"prior has {prior.numel()} classes but the logits have {num_classes}"
        raise ValueError(f"{sizes}; use the prior of this classifier's own training set")


def _check_predictions(predictions: Tensor, labels: Tensor) -> None:
    if predictions.shape != labels.shape or labels.ndim != 1 or labels.numel() == 0:
        shapes = f"{tuple(predictions.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"predictions and labels must be (N,) with one N > 0, got {shapes}; use argmax(-1)")
