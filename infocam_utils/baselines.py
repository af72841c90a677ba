"""What the method is compared with: neural and nearest-neighbour MI estimators, class-agnostic boxes.

The critics are written for discrete labels. One network, the classifier's, gives T(x, y) for all K classes
at once, so the expectation over the product of marginals can be summed exactly over the classes instead of
drawn by shuffling labels. Post-hoc logit adjustment is ``information.shift_prior``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from sklearn.feature_selection import mutual_info_classif
from torch import Tensor

from infocam_utils.checks import check_choice, check_labels
from infocam_utils.information import NORMAL_95, Estimate, class_prior
from infocam_utils.mixture_training import MLPs, fit_mlps

CriticKind = Literal["mine", "nwj", "infonce"]
Marginal = Literal["exact", "shuffle"]


def critic_terms(
    critic: Tensor,
    labels: Tensor,
    kind: CriticKind,
    marginal: Marginal = "exact",
    prior: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """Per-sample terms whose mean is a variational lower bound on I(X; Y), for a critic T.

    With ``Z(x) = E_{y ~ p(y)} exp T(x, y)``:

    - "mine": ``mean T − log mean Z`` (Donsker and Varadhan 1983; Belghazi et al. 2018), spread over samples
      by linearising the logarithm: ``T_i − log mean Z − (Z_i / mean Z − 1)``.
    - "nwj": ``T + 1 − Z`` (Nguyen, Wainwright and Jordan 2010, with their critic written as T + 1).
    - "infonce": ``T − log Z`` with the batch's own labels (van den Oord et al. 2018). This is log PC-softmax
      under the batch's class shares.

    Parameters
    ----------
    critic : (N, K) values T(x_i, k)
    labels : (N,)
    marginal : "exact", Z summed over the classes with their shares; "shuffle", Z = exp T(x_i, y_j) with j
        from a permutation of the batch. "infonce" always sums over all labels of the batch.
    prior : (K,) class shares for "exact"; None is the batch's own
    seed : of the permutation

    Returns
    -------
    (N,) nats

    >>> critic_terms(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), "nwj").mean()
    tensor(0.)
    """
    check_choice("kind", kind, get_args(CriticKind))
    check_choice("marginal", marginal, get_args(Marginal))
    joint = critic.gather(1, labels[:, None])[:, 0]  # (N,)
    if kind == "infonce" or marginal == "exact":
        if kind == "infonce" or prior is None:
            prior = torch.bincount(labels, minlength=critic.shape[1]) / len(labels)
        log_z = torch.logsumexp(critic + prior.to(critic).log(), 1)  # (N,); an absent class adds exp(−∞) = 0
    else:
        other = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        log_z = critic.gather(1, labels[other][:, None])[:, 0]
    if kind == "infonce":
        return joint - log_z
    if kind == "nwj":
        return joint + 1 - log_z.exp()
    log_mean_z = torch.logsumexp(log_z, 0) - math.log(len(log_z))
    return joint - log_mean_z - ((log_z - log_mean_z).exp() - 1)


def train_critics(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    kind: CriticKind,
    marginal: Marginal = "exact",
    *,
    seeds: Sequence[int],
    steps: int = 300,
    batch_size: int = 2000,
    lr: float = 1e-3,
    on_step: Callable[[int, MLPs], None] | None = None,
) -> MLPs:
    """Train one critic per seed to raise its bound, with the classifier's network, optimiser and budget.

    MINE's gradient of ``log mean Z`` is the batch's, without a moving average: at 2,000 samples its bias is
    far below the other errors. Batches come shuffled, so one fixed permutation of each draws the marginal.

    Parameters
    ----------
    x, y : (S, N, d) float32 and (S, N), one training set per seed

    >>> x, y = torch.randn(1, 64, 1), torch.arange(64)[None] % 2
    >>> train_critics(x, y, 2, "mine", seeds=[0], steps=1)[0](x[0]).shape
    torch.Size([64, 2])
    """
    check_choice("kind", kind, get_args(CriticKind))
    check_choice("marginal", marginal, get_args(Marginal))

    def loss(critic: Tensor, labels: Tensor) -> Tensor:
        return -critic_terms(critic, labels, kind, marginal).mean()

    return fit_mlps(
        x, y, num_classes, loss, seeds=seeds, steps=steps, batch_size=batch_size, lr=lr, on_step=on_step
    )


def critic_estimate(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    x_test: Tensor,
    y_test: Tensor,
    kind: CriticKind = "mine",
    steps: int = 300,
    seed: int = 0,
    marginal: Marginal = "shuffle",
) -> Estimate:
    """Train a critic on (x, y) and evaluate its bound on held-out pairs.

    Parameters
    ----------
    x, y, x_test, y_test : (N, d) points and (N,) labels in [0, num_classes)
    marginal : how the product of marginals is averaged, in training and in evaluation

    Returns
    -------
    Estimate
        Nats, with a normal 95 % interval over the test pairs.

    Raises
    ------
    ValueError
        On an unknown kind or marginal, wrong shapes, or labels out of range.

    >>> x, y = torch.randn(64, 1), torch.arange(64) % 2
    >>> critic_estimate(x, y, 2, x, y, steps=1).n
    64
    """
    prior = class_prior(y, num_classes)
    check_labels(y_test, num_classes)
    critic = train_critics(x[None], y[None], num_classes, kind, marginal, seeds=[seed], steps=steps)[0]
    terms = critic_terms(critic(x_test).double(), y_test, kind, marginal, prior, seed)
    return Estimate.from_samples(terms)


def nearest_neighbour_mi(
    x: Tensor, y: Tensor, neighbours: int = 3, blocks: int = 10, seed: int = 0
) -> Estimate:
    """Nearest-neighbour estimate of I(X; Y) (Ross 2014) on a one-dimensional projection, by scikit-learn.

    x is projected on the first principal axis of the class means. That loses nothing when they lie on a line
    and the classes are spherical Gaussians of one width.

    Parameters
    ----------
    x, y : (N, d) points and (N,) labels
    blocks : the standard error comes from the estimates on so many disjoint parts

    Returns
    -------
    Estimate
        Nats; the value uses all samples.

    Raises
    ------
    ValueError
        If shapes disagree, or there are fewer than 2 blocks or 100 samples per block.

    >>> y = torch.arange(4000) % 2
    >>> x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0)) + 20 * y[:, None]
    >>> round(nearest_neighbour_mi(x, y).value, 2)  # log 2
    0.69
    """
    if x.ndim != 2 or y.shape != x.shape[:1] or blocks < 2 or len(x) < 100 * blocks:
        raise ValueError(
            f"x must be (N, d) and y (N,) with N at least 100 for each of 2 or more blocks, got "
            f"{tuple(x.shape)}, {tuple(y.shape)} and {blocks} blocks; pass more samples or fewer blocks"
        )
    means = torch.stack([x[y == k].double().mean(0) for k in y.unique()])
    axis = torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh[0]
    projected, labels = (x.double() @ axis)[:, None].numpy(), y.numpy()  # (N, 1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).numpy()

    def estimate(part: slice) -> float:
        rows = order[part]
        return float(
            mutual_info_classif(projected[rows], labels[rows], n_neighbors=neighbours, random_state=seed)[0]
        )

    value, parts = estimate(slice(None)), [estimate(slice(b, None, blocks)) for b in range(blocks)]
    stderr = float(torch.tensor(parts).std()) / math.sqrt(blocks)
    return Estimate(value, stderr, value - NORMAL_95 * stderr, value + NORMAL_95 * stderr, len(x))


def whole_image_boxes(n: int, size: int | tuple[int, int]) -> Tensor:
    """The whole image as the box of each of n images: (n, 4) float32, x0 y0 x1 y1 in pixels.

    >>> whole_image_boxes(1, (48, 64))  # height, width
    tensor([[ 0.,  0., 64., 48.]])
    """
    return centre_boxes(n, size, 1.0)


def centre_boxes(n: int, size: int | tuple[int, int], fraction: float) -> Tensor:
    """Centred boxes with ``fraction`` of each side: (n, 4) float32, x0 y0 x1 y1 in pixels.

    >>> centre_boxes(1, 100, 0.7)
    tensor([[15., 15., 85., 85.]])
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}; 0.7 covers half of the image")
    height, width = (size, size) if isinstance(size, int) else size
    if n < 0 or min(height, width) < 1:
        raise ValueError(f"n must be at least 0 and sides at least 1 pixel, got n={n}, size={height}x{width}")
    low, high = (1 - fraction) / 2, (1 + fraction) / 2
    return torch.tensor([width * low, height * low, width * high, height * high]).repeat(n, 1)


def feature_norm_maps(features: Tensor) -> Tensor:
    """Euclidean norm of the features at each place, a map that knows no class: (B, C, H, W) → (B, H, W).

    >>> feature_norm_maps(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1))
    tensor([[[5.]]])
    """
    if features.ndim != 4:
        raise ValueError(
            f"features must be (B, C, H, W), got {tuple(features.shape)}; take them before pooling"
        )
    return features.norm(dim=1)
