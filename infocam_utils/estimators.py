"""Estimators of mutual information that the classifier is compared with: critics and nearest neighbours.

The critics are written for discrete labels. One network, the classifier's, gives T(x, y) for all K classes
at once, so the expectation over the product of marginals can be summed exactly over the classes instead of
drawn by shuffling labels. ``log K − CE`` is a reading of ``information.mutual_information``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from sklearn.feature_selection import mutual_info_classif
from torch import Tensor

from infocam_utils.gaussians import GaussianMixture
from infocam_utils.information import Estimate, check_choice, check_labels, entropy

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


def check_estimator(
    estimate: Callable[[Tensor, Tensor, Tensor], float | Tensor],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    kind: Literal["pc", "softmax"] = "softmax",
) -> list[str]:
    """What is wrong with somebody's reading of mutual information from a classifier; nothing where all holds.

    `estimate` takes logits (N, K), labels (N,) and the training shares π (K,) and returns nats; the logits of
    the kind "softmax" are ``log p(y|x)`` up to a constant for each x, of "pc" ``log p(x|y)``. `loss`, if
    given, takes the same. Tried on the paper's mixtures, balanced and not, where the truth is known:

    - *truth*: logits of the exact posterior give the exact mutual information, to four standard errors; -
    *bound*: however sure the logits are of the label, no more than H(Y); - *shift*: a constant added to all
    logits of a pair changes nothing; - *gradient*: the exact posterior is where the mean gradient of the
    loss is zero, under unequal shares too.

    >>> from infocam_utils.information import PCSoftmaxLoss, mutual_information
    >>> check_estimator(lambda f, y, prior: mutual_information(f, y, prior, "pc").value,
    ...                 lambda f, y, prior: PCSoftmaxLoss(prior)(f, y), kind="pc")
    []
    >>> log_k = lambda f, y, prior: mutual_information(f, y, prior, "log_k_minus_ce").value
    >>> [problem.split(":")[0] for problem in check_estimator(log_k)]
    ['truth, unbalanced', 'bound, unbalanced']
    """
    check_choice("kind", kind, ("pc", "softmax"))
    problems = []
    for balanced in (True, False):
        where = "balanced" if balanced else "unbalanced"
        mixture = GaussianMixture(1, balanced=balanced)
        prior, truth = mixture.prior, mixture.mutual_information()
        x, y = mixture.sample(40_000, torch.Generator().manual_seed(0))
        pmi = mixture.pointwise_mutual_information(x)  # log p(x|y) up to a constant for each x
        exact = pmi if kind == "pc" else pmi + prior.log()
        found = float(estimate(exact, y, prior))
        error = 4 * float(Estimate.from_samples(pmi[torch.arange(len(y)), y]).stderr)
        if not abs(found - truth) <= error:
            problems.append(f"truth, {where}: {found:.4f} nats instead of {truth:.4f} ± {error:.4f}")
        sure = 50.0 * torch.nn.functional.one_hot(y, len(prior)).double()
        most, allowed = float(estimate(sure, y, prior)), float(entropy(torch.bincount(y) / len(y)))
        if not most <= allowed + 1e-3:
            problems.append(f"bound, {where}: {most:.4f} nats, though H(Y) is {allowed:.4f}")
        moved = float(estimate(exact + 10 * x[:, :1].double(), y, prior))
        if not abs(moved - found) <= 1e-4:
            problems.append(f"shift, {where}: {found:.4f} became {moved:.4f} nats")
        if loss is not None:
            logits = exact.clone().requires_grad_()
            (slope,) = torch.autograd.grad(loss(logits, y, prior), logits)
            per_class = slope.sum(0) / slope.abs().sum().clamp_min(
                1e-30
            )  # of the mean loss by each class's bias
            if not float(per_class.abs().max()) <= 0.02:
                largest = f"{float(per_class.abs().max()):.3f}"
                problems.append(f"gradient, {where}: {largest} of it is left at the exact posterior")
    return problems
