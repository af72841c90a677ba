"""Drawn birds with boxes, masks and part boxes, whose information on their kind is known exactly.

A class is a prototype: one colour for each of the four parts in `PARTS`. A bird y has each part's colour from
its prototype with chance 1 − ε and otherwise a colour drawn evenly from the part's V values,

    p(a | y) = Π_parts [(1 − ε) 1(a_part = prototype_y,part) + ε / V_part],

and all else in its picture is independent of y, so that I(image; Y) = I(attributes; Y) wherever the colours
can be read off the picture. The 576 combinations of colours make every expectation a finite sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from infocam_utils.data.drawing import PARTS, render
from infocam_utils.data.store import Draft, Store, code_digest, report_progress, tensors
from infocam_utils.information import Prior, check_choice, check_labels, check_prior

_VALUES = tuple(len(colours) for colours in PARTS.values())  # (6, 6, 4, 4)
_ALL = torch.cartesian_prod(*(torch.arange(v) for v in _VALUES))  # (576, 4), every bird's attributes
#: One row per class: values of crown, breast, wing bar and tail. Any two rows differ in two parts or more,
#: so one changed colour never makes another kind; the 33 pairs that differ in just two are the look-alikes.
#: Found by a greedy search in random order.
PROTOTYPES = np.array(
    [[4, 3, 0, 2], [5, 2, 1, 0], [1, 5, 1, 1], [2, 3, 3, 2], [1, 0, 0, 2], [0, 0, 2, 1], [2, 5, 0, 1],
     [0, 4, 1, 3], [0, 0, 0, 0], [4, 0, 0, 1], [4, 1, 1, 0], [4, 2, 1, 3], [2, 2, 3, 3], [1, 1, 3, 2],
     [0, 1, 3, 3], [5, 1, 3, 1], [1, 3, 2, 2], [5, 2, 2, 3], [3, 5, 2, 0], [2, 3, 2, 0]]
)  # fmt: skip
MAX_CLASSES = len(PROTOTYPES)
EPSILON = 0.2  # the chance that a part's colour is drawn afresh, unless another is given


def _check_design(num_classes: int, epsilon: float, prior: Prior | None = None) -> Tensor:
    """The prior over `num_classes`, uniform when None, as (K,) float64 that sums to 1."""
    if not 2 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"num_classes must be 2 to {MAX_CLASSES} for drawn birds, was {num_classes}")
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon must be in (0, 1], was {epsilon}; for hardly any noise pass 1e-6")
    if prior is None:
        return torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
    prior = check_prior(prior).double()
    if len(prior) != num_classes:
        raise ValueError(f"prior has {len(prior)} entries, num_classes is {num_classes}; give one per class")
    return prior / prior.sum()


def _log_likelihood(attributes: Tensor, num_classes: int, epsilon: float) -> Tensor:
    """log p(attributes | y): (N, 4) -> (N, K) float64."""
    prototypes = torch.from_numpy(PROTOTYPES[:num_classes])
    chances = torch.tensor([epsilon / v for v in _VALUES], dtype=torch.float64)
    agree = attributes[:, None, :] == prototypes  # (N, K, 4)
    return torch.where(agree, 1 - epsilon + chances, chances).log().sum(-1)


def pointwise_mutual_information(
    attributes: Tensor,
    prior: Prior | None = None,
    *,
    num_classes: int = MAX_CLASSES,
    epsilon: float = EPSILON,
) -> Tensor:
    """Exact PMI of every bird with every class, log p(a | y) − log Σ_j π_j p(a | j), in nats: (N, K) float64.

    `attributes` are (N, 4) integers, as `Birds.attributes`; `prior` the (K,) class shares, uniform when None.
    Raises ValueError for others, and for a design that cannot be.

    >>> pmi = pointwise_mutual_information(torch.from_numpy(PROTOTYPES))  # each kind's own bird
    >>> bool((pmi.argmax(1) == torch.arange(20)).all())
    True
    """
    prior = _check_design(num_classes, epsilon, prior)
    attributes = torch.as_tensor(attributes)
    if attributes.ndim != 2 or attributes.shape[1] != len(_VALUES) or attributes.is_floating_point():
        given = f"{attributes.dtype} {tuple(attributes.shape)}"
        raise ValueError(f"attributes must be (N, 4) integers, got {given}; pass birds.attributes")
    if bool(((attributes < 0) | (attributes >= torch.tensor(_VALUES))).any()):
        given = f"{attributes.amin(0).tolist()} to {attributes.amax(0).tolist()}"
        raise ValueError(f"attributes must be at least 0 and less than {_VALUES}, got {given}")
    log_likelihood = _log_likelihood(attributes, num_classes, epsilon)
    return log_likelihood - (log_likelihood + prior.log()).logsumexp(1, keepdim=True)


def mutual_information(
    prior: Prior | None = None, *, num_classes: int = MAX_CLASSES, epsilon: float = EPSILON
) -> float:
    """Exact I(attributes; Y) in nats, the sum over all 576 combinations; log K is its upper bound.

    >>> round(mutual_information(), 3)
    2.525
    """
    prior = _check_design(num_classes, epsilon, prior)
    joint = _log_likelihood(_ALL, num_classes, epsilon).exp() * prior  # (576, K)
    pmi = pointwise_mutual_information(_ALL, prior, num_classes=num_classes, epsilon=epsilon)
    return float((joint * pmi).sum())


def bayes_accuracy(
    prior: Prior | None = None,
    *,
    rule: Literal["map", "ml"] = "map",
    average: Literal["micro", "macro"] = "micro",
    num_classes: int = MAX_CLASSES,
    epsilon: float = EPSILON,
) -> float:
    """Exact accuracy, in [0, 1], of the most probable ("map") or most likely ("ml") class given the colours.

    "micro" weights classes by the prior; "macro" is the mean of the classes' recalls. Classes that tie share
    the bird evenly.

    >>> round(bayes_accuracy(), 3)
    0.837
    """
    check_choice("rule", rule, ("map", "ml"))
    check_choice("average", average, ("micro", "macro"))
    prior = _check_design(num_classes, epsilon, prior)
    log_likelihood = _log_likelihood(_ALL, num_classes, epsilon)
    score = log_likelihood + prior.log() if rule == "map" else log_likelihood  # (576, K)
    best = (score > score.amax(1, keepdim=True) - 1e-9).double()  # rounding must not decide between ties
    recalls = (best / best.sum(1, keepdim=True) * log_likelihood.exp()).sum(0)  # (K,)
    return float(recalls.mean() if average == "macro" else recalls @ prior)


def class_names(num_classes: int = MAX_CLASSES) -> list[str]:
    """Names that say the prototype's crown, breast and tail.

    >>> class_names()[0]
    'White_crowned_Black_breasted_Redtail'
    """
    crowns, breasts, _, tails = ([colour.capitalize() for colour in values] for values in PARTS.values())
    return [
        f"{crowns[a]}_crowned_{breasts[b]}_breasted_{tails[d]}tail" for a, b, _, d in PROTOTYPES[:num_classes]
    ]


Labels = int | Tensor | np.ndarray | Sequence[int]


@dataclass(frozen=True)
class Birds:
    """N drawn birds; boxes are x0, y0, x1, y1 in pixels, half-open. Arrays may be read-only maps of files.

    Attributes
    ----------
    images : (N, 3, S, S) uint8
    masks : (N, S, S) bool, true on the bird
    labels : (N,) int64
    attributes : (N, 4) int64, the value of crown, breast, wing bar and tail (see `PARTS` for its colour)
    boxes : (N, 4) float32
    part_boxes : (N, 4, 4) float32, one box per part in the order of `PARTS`
    """

    images: np.ndarray
    masks: np.ndarray
    labels: Tensor
    attributes: Tensor
    boxes: Tensor
    part_boxes: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def draw(
    n: Labels, seed: int, *, num_classes: int = MAX_CLASSES, epsilon: float = EPSILON, size: int = 64
) -> Birds:
    """Draw `n` birds, whose labels run through the classes in turn, or one for each label given as `n`.

    Image i has a random generator of its own, made of `seed` and i: it is the same however many are drawn.
    `num_classes` takes the first so many of the 20 kinds; `epsilon`, in (0, 1], is the chance that a part's
    colour is drawn afresh instead of taken from the prototype; `size` is the side in pixels, 32 or more.

    Raises ValueError or TypeError for labels that are no classes, nothing to draw, or an impossible design.

    >>> birds = draw(4, seed=0)
    >>> birds.images.shape, birds.labels, birds.part_boxes.shape
    ((4, 3, 64, 64), tensor([0, 1, 2, 3]), torch.Size([4, 4, 4]))
    """
    _check_design(num_classes, epsilon)
    labels = _labels(n, num_classes)
    return _birds(_draw(labels, seed, epsilon, size, lambda _, shape, dtype: np.empty(shape, dtype)))


def cached_birds(n: Labels, seed: int, data_dir: str | Path | None = None, *, size: int = 64) -> Birds:
    """`draw` of all kinds with its own ε, kept in the store: pictures and masks are read-only memory maps.

    >>> import tempfile
    >>> len(cached_birds(4, seed=0, data_dir=tempfile.mkdtemp()))
    4
    """
    labels = _labels(n, MAX_CLASSES)
    digest = hashlib.sha256(labels.numpy().tobytes()).hexdigest()
    key = {"labels": digest, "seed": seed, "size": size, "code": code_digest("data.minibirds")}

    def make(draft: Draft) -> None:
        _draw(labels, seed, EPSILON, size, draft.empty)

    return _birds(Store(data_dir).get("minibirds", key, make))


def _labels(n: Labels, num_classes: int) -> Tensor:
    labels = torch.arange(n) % num_classes if isinstance(n, int) and n > 0 else torch.as_tensor(n)
    check_labels(labels, num_classes)
    return labels.long()


def _draw(
    labels: Tensor, seed: int, epsilon: float, size: int, empty: Callable[..., np.ndarray]
) -> dict[str, np.ndarray]:
    """The fields of `Birds`, in arrays that `empty` makes of name, shape and type."""
    if seed < 0 or size < 32:
        raise ValueError(f"seed must be at least 0 and size at least 32 pixels, were {seed} and {size}")
    n = len(labels)
    arrays = {
        "images": empty("images", (n, 3, size, size), np.uint8),
        "masks": empty("masks", (n, size, size), np.bool_),
        "labels": empty("labels", (n,), np.int64),
        "attributes": empty("attributes", (n, 4), np.int64),
        "boxes": empty("boxes", (n, 4), np.float32),
        "part_boxes": empty("part_boxes", (n, 4, 4), np.float32),
    }
    for i, label in enumerate(labels.tolist()):
        rng = np.random.default_rng([seed, i])
        chance = rng.random(9)  # the first was for drawing a label, and moves what follows
        other = (chance[5:] * _VALUES).astype(np.int64)
        attributes = np.where(chance[1:5] < epsilon, other, PROTOTYPES[label])
        drawn = render(attributes, rng, size)
        arrays["images"][i], arrays["masks"][i], arrays["boxes"][i], arrays["part_boxes"][i] = drawn
        arrays["labels"][i], arrays["attributes"][i] = label, attributes
        if i % 1000 == 0:
            report_progress("drawing birds", i, n)
    return arrays


def _birds(arrays: Mapping[str, np.ndarray]) -> Birds:
    small = tensors({name: array for name, array in arrays.items() if name not in ("images", "masks")})
    return Birds(images=arrays["images"], masks=arrays["masks"], **small)
