"""The design of the drawn birds: which colours which class has, and the exact information in them.

Each class y has a prototype of four colours (crown, breast, wing bar, tail). Given the class, the colours are
independent: the prototype's with probability 1 − ε, else any of the part's values alike. So

    log p(a | y) = Σ_m log[(1 − ε) 1{a_m = prototype_m(y)} + ε / V_m],        V = 6, 6, 4, 4 values,

and PMI, I(X; Y) and the Bayes accuracy follow from the 576 combinations of colours. Pose, size, place, body,
light and background are independent of the class, so what is true of the colours is true of the picture, as
far as the colours can be seen. A sum over parts is what average pooling and one linear layer can represent.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from infocam_utils.information import Prior, check_prior
from infocam_utils.minibirds_drawing import PARTS

VALUES = tuple(len(colours) for colours in PARTS.values())  # (6, 6, 4, 4)
#: One row per class: values of crown, breast, wing bar and tail. Any two rows differ in two parts or more,
#: so one changed colour never makes another kind; the 33 pairs that differ in just two are the look-alikes.
#: Found by a greedy search in random order.
PROTOTYPES = np.array(
    [[4, 3, 0, 2], [5, 2, 1, 0], [1, 5, 1, 1], [2, 3, 3, 2], [1, 0, 0, 2], [0, 0, 2, 1], [2, 5, 0, 1],
     [0, 4, 1, 3], [0, 0, 0, 0], [4, 0, 0, 1], [4, 1, 1, 0], [4, 2, 1, 3], [2, 2, 3, 3], [1, 1, 3, 2],
     [0, 1, 3, 3], [5, 1, 3, 1], [1, 3, 2, 2], [5, 2, 2, 3], [3, 5, 2, 0], [2, 3, 2, 0]]
)  # fmt: skip
MAX_CLASSES = len(PROTOTYPES)


def check_design(num_classes: int, epsilon: float, prior: Prior | None) -> Tensor:
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
    chances = torch.tensor([epsilon / v for v in VALUES], dtype=torch.float64)
    agree = attributes[:, None, :] == prototypes  # (N, K, 4)
    return torch.where(agree, 1 - epsilon + chances, chances).log().sum(-1)


def _all_attributes() -> Tensor:
    return torch.cartesian_prod(*(torch.arange(v) for v in VALUES))  # (576, 4)


def pointwise_mutual_information(
    attributes: Tensor, prior: Prior | None = None, *, num_classes: int = MAX_CLASSES, epsilon: float = 0.2
) -> Tensor:
    """Exact PMI of every bird with every class, log p(a | y) − log Σ_j π_j p(a | j), in nats.

    Parameters
    ----------
    attributes : (N, 4) integers, as `Birds.attributes`
    prior : (K,) class shares, uniform when None

    Returns
    -------
    (N, K) float64

    Raises
    ------
    ValueError
        When attributes are not (N, 4) or out of range, or the design cannot be.

    >>> pmi = pointwise_mutual_information(torch.from_numpy(PROTOTYPES))  # each kind's own bird
    >>> bool((pmi.argmax(1) == torch.arange(20)).all())
    True
    """
    prior = check_design(num_classes, epsilon, prior)
    attributes = torch.as_tensor(attributes)
    if attributes.ndim != 2 or attributes.shape[1] != len(VALUES) or attributes.is_floating_point():
        raise ValueError(
            f"attributes must be (N, {len(VALUES)}) integers, were {tuple(attributes.shape)} of "
            f"{attributes.dtype}; pass birds.attributes"
        )
    wrong = ((attributes < 0) | (attributes >= torch.tensor(VALUES))).nonzero()
    if len(wrong):
        row, part = wrong[0].tolist()
        raise ValueError(
            f"attribute {part} ({list(PARTS)[part]}) of bird {row} is {int(attributes[row, part])}; "
            f"it must be in [0, {VALUES[part] - 1}]"
        )
    log_likelihood = _log_likelihood(attributes, num_classes, epsilon)
    return log_likelihood - (log_likelihood + prior.log()).logsumexp(1, keepdim=True)


def mutual_information(
    prior: Prior | None = None, *, num_classes: int = MAX_CLASSES, epsilon: float = 0.2
) -> float:
    """Exact I(attributes; Y) in nats, the sum over all 576 combinations; log K is its upper bound.

    >>> round(mutual_information(), 3)
    2.525
    """
    prior = check_design(num_classes, epsilon, prior)
    attributes = _all_attributes()
    joint = _log_likelihood(attributes, num_classes, epsilon).exp() * prior  # (576, K)
    pmi = pointwise_mutual_information(attributes, prior, num_classes=num_classes, epsilon=epsilon)
    return float((joint * pmi).sum())


def bayes_accuracy(
    prior: Prior | None = None,
    *,
    rule: Literal["map", "ml"] = "map",
    average: Literal["micro", "macro"] = "micro",
    num_classes: int = MAX_CLASSES,
    epsilon: float = 0.2,
) -> float:
    """Exact accuracy, in [0, 1], of the most probable ("map") or most likely ("ml") class given the colours.

    "micro" weights classes by the prior; "macro" is the mean of the classes' recalls. Classes that tie share
    the bird evenly.

    >>> round(bayes_accuracy(), 3)
    0.837
    """
    if rule not in ("map", "ml") or average not in ("micro", "macro"):
        raise ValueError(f"rule is 'map' or 'ml', average 'micro' or 'macro'; got {rule!r} and {average!r}")
    prior = check_design(num_classes, epsilon, prior)
    log_likelihood = _log_likelihood(_all_attributes(), num_classes, epsilon)
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
