"""Estimators of mutual information that the classifier is compared with: critics and nearest neighbours.

The critics are written for discrete labels. One network, the classifier's, gives T(x, y) for all K classes
at once, so the expectation over the product of marginals can be summed exactly over the classes instead of
drawn by shuffling labels. ``log K − CE`` is a reading of ``information.mutual_information``.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from sklearn.feature_selection import mutual_info_classif
from torch import Tensor

from infocam_utils.information import Estimate, check_choice, check_labels

CriticKind = Literal["mine", "nwj", "infonce"]
Marginal = Literal["exact", "shuffle"]

PARTS = 10  # of the samples, whose scatter gives the standard error of the nearest-neighbour estimate


def critic_terms(
    critic: Tensor,
    labels: Tensor,
    kind: CriticKind,
    marginal: Marginal = "exact",
    prior: Tensor | None = None,
) -> Tensor:
    """Per-sample terms, (N,) nats, whose mean is a variational lower bound on I(X; Y), for a critic T.

    With ``Z(x) = E_{y ~ p(y)} exp T(x, y)``:

    - "mine": ``mean T − log mean Z`` (Donsker and Varadhan 1983; Belghazi et al. 2018), spread over samples
      by linearising the logarithm: ``T_i − log mean Z − (Z_i / mean Z − 1)``.
    - "nwj": ``T + 1 − Z`` (Nguyen, Wainwright and Jordan 2010, with their critic written as T + 1).
    - "infonce": ``T − log Z`` with the batch's own labels (van den Oord et al. 2018). This is log PC-softmax
      under the batch's class shares.

    ``critic`` holds T(x_i, k), (N, K), and labels are (N,). For the marginal "exact", Z is summed over the
    classes with their shares ``prior`` (K,), or the batch's own shares for None; for "shuffle", Z is
    exp T(x_i, y_j) with j from a fixed permutation of the batch; "infonce" always sums over its labels.

    >>> critic_terms(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), "nwj").mean()
    tensor(0.)
    """
    check_choice("kind", kind, get_args(CriticKind))
    check_choice("marginal", marginal, get_args(Marginal))
    if critic.ndim != 2 or labels.shape != critic.shape[:1]:
        found = f"{tuple(critic.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"critic must be (N, K), for every class, and labels (N,), got {found}")
    check_labels(labels, critic.shape[1])
    joint = critic.gather(1, labels[:, None])[:, 0]  # (N,)
    if kind == "infonce" or marginal == "exact":
        if kind == "infonce" or prior is None:
            prior = torch.bincount(labels, minlength=critic.shape[1]) / len(labels)
        log_z = torch.logsumexp(critic + prior.to(critic).log(), 1)  # (N,); an absent class adds exp(−∞) = 0
    else:
        other = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        log_z = critic.gather(1, labels[other][:, None])[:, 0]
    if kind == "infonce":
        return joint - log_z
    if kind == "nwj":
        return joint + 1 - log_z.exp()
    log_mean_z = torch.logsumexp(log_z, 0) - math.log(len(log_z))
    return joint - log_mean_z - ((log_z - log_mean_z).exp() - 1)


def nearest_neighbour_mi(x: Tensor, y: Tensor) -> Estimate:
    """Estimate I(X; Y) in nats by 3 nearest neighbours (Ross 2014) of a one-dimensional projection.

    x (N, d) is projected on the first principal axis of the means of the classes y (N,). That loses nothing
    when they lie on a line and the classes are spherical Gaussians of one width. The value, scikit-learn's,
    uses all samples; the standard error comes from the estimates on 10 disjoint parts. Raises ValueError for
    less than 100 samples a part.

    >>> y = torch.arange(4000) % 2
    >>> x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0)) + 20 * y[:, None]
    >>> round(nearest_neighbour_mi(x, y).value, 2)  # log 2
    0.69
    """
    if x.ndim != 2 or y.shape != x.shape[:1] or len(x) < 100 * PARTS:
        found = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"x must be (N, d) and y (N,) with N at least {100 * PARTS}, got {found}")
    means = torch.stack([x[y == k].double().mean(0) for k in y.unique()])
    axis = torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh[0]
    projected = (x.double() @ axis)[:, None]  # (N, 1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))

    def estimate(rows: Tensor) -> float:
        points, labels = projected[rows].numpy(), y[rows].numpy()
        return float(mutual_info_classif(points, labels, n_neighbors=3, random_state=0)[0])

    parts = torch.tensor([estimate(order[part::PARTS]) for part in range(PARTS)])
    return Estimate(estimate(order), float(parts.std()) / math.sqrt(PARTS), len(x))
