"""Small multilayer perceptrons on point data, one per seed, trained side by side.

The paper's network for the mixtures, d-100-100-100-K with ReLU. All seeds go through one batched matrix
product per layer; each has its own data, initial weights and batches, so runs are independent, the same as
if trained one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from infocam_utils.estimators import CriticKind, Marginal, critic_terms
from infocam_utils.gaussians import GaussianMixture
from infocam_utils.information import (
    Estimate,
    PCSoftmaxLoss,
    check_choice,
    check_labels,
    class_prior,
)


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


MixtureKind = Literal["softmax", "pc"]
Loss = Callable[[Tensor, Tensor], Tensor]  # logits (B, K) and labels (B,) of one seed -> 0-d

WIDTH = 100


class MLPs(nn.Module):
    """S independent d-100-100-100-K perceptrons, one per seed, with torch's default initialisation.

    ``mlps(x)`` gives (S, N, K) logits of points x that are shared, (N, d), or per network, (S, N, d);
    ``mlps[s]`` is network s alone, a function (N, d) → (N, K).

    >>> mlps = MLPs(dimension=2, num_classes=5, seeds=[0, 1])
    >>> mlps(torch.zeros(3, 2)).shape, mlps[1](torch.zeros(3, 2)).shape
    (torch.Size([2, 3, 5]), torch.Size([3, 5]))
    """

    def __init__(self, dimension: int, num_classes: int, seeds: Sequence[int]) -> None:
        super().__init__()
        widths = (dimension, WIDTH, WIDTH, WIDTH, num_classes)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise(widths):
            bound = inputs**-0.5  # nn.Linear draws weight and bias from U(−1/√in, 1/√in)
            drawn = torch.stack([torch.rand(inputs + 1, outputs, generator=g) for g in generators])
            drawn = (2 * drawn - 1) * bound  # (S, in + 1, out)
            self.weights.append(drawn[:, :-1].clone())
            self.biases.append(drawn[:, -1:].clone())

    def __len__(self) -> int:
        return len(self.biases[0])

    def __getitem__(self, index: int) -> Callable[[Tensor], Tensor]:
        def logits(x: Tensor) -> Tensor:
            hidden = x.float()
            with torch.no_grad():
                for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                    hidden = torch.addmm(bias[index], hidden if layer == 0 else hidden.relu(), weight[index])
            return hidden

        return logits

    def forward(self, x: Tensor) -> Tensor:
        """(S, N, K) logits of (N, d) or (S, N, d) points."""
        hidden = x.expand(len(self), *x.shape[-2:])  # (S, N, d)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden if layer == 0 else hidden.relu(), weight)
        return hidden


def fit_mlps(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    loss: Loss,
    *,
    seeds: Sequence[int],
    steps: int = 300,
    batch_size: int = 2000,
    lr: float = 1e-3,
    on_step: Callable[[int, MLPs], None] | None = None,
) -> MLPs:
    """Train one perceptron per seed with Adam on shuffled batches.

    Parameters
    ----------
    x, y : (S, N, d) float32 points and (S, N) labels, one training set per seed
    loss : of one network's batch, ``loss(logits (B, K), labels (B,)) -> 0-d``
    on_step : called after every step with its number, from 1, and the networks

    Raises
    ------
    ValueError
        If shapes and seeds disagree, or a count is below 1, or a loss stops being finite.

    >>> x, y = torch.randn(1, 64, 1), torch.zeros(1, 64, dtype=torch.long)
    >>> len(fit_mlps(x, y, 2, cross_entropy, seeds=[0], steps=2, batch_size=32))
    1
    """
    if x.ndim != 3 or y.shape != x.shape[:2] or len(x) != len(seeds) or y.numel() == 0:
        raise ValueError(
            f"x must be (S, N, d) and y (S, N) for {len(seeds)} seeds, got {tuple(x.shape)} and "
            f"{tuple(y.shape)}; stack one training set per seed"
        )
    if min(steps, batch_size) < 1 or lr <= 0:
        raise ValueError(f"steps, batch_size and lr must be positive, got {steps}, {batch_size}, {lr}")
    mlps = MLPs(x.shape[2], num_classes, seeds)
    optimiser = torch.optim.Adam(mlps.parameters(), lr=lr)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    samples, batch_size = x.shape[1], min(batch_size, x.shape[1])
    per_epoch = samples // batch_size
    total = torch.zeros(())
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.stack([torch.randperm(samples, generator=g) for g in generators])  # (S, N)
        start = step % per_epoch * batch_size
        batch = order[:, start : start + batch_size]  # (S, B)
        points = x.gather(1, batch[..., None].expand(-1, -1, x.shape[2]))  # (S, B, d)
        logits, labels = mlps(points), y.gather(1, batch)  # (S, B, K), (S, B)
        # A sum over networks gives each its own gradient; Adam scales every weight by itself.
        total = torch.stack([loss(f, target) for f, target in zip(logits, labels, strict=True)]).sum()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()
        if on_step is not None:
            on_step(step + 1, mlps)
    if not bool(total.isfinite()):
        raise ValueError(
            f"the training loss is {float(total.detach())} after {steps} steps; lower lr, which is {lr}"
        )
    return mlps.requires_grad_(False)


def train_mixture_classifier(
    mixture: GaussianMixture,
    kind: MixtureKind = "softmax",
    *,
    seeds: Sequence[int] = (0,),
    steps: int = 300,
    batch_size: int = 2000,
    lr: float = 1e-3,
    on_step: Callable[[int, MLPs], None] | None = None,
) -> MLPs:
    """Train the paper's classifier on a mixture, once per seed, each on its own draw of ``train_counts``.

    ``kind="softmax"`` minimises cross-entropy, ``kind="pc"`` ``PCSoftmaxLoss`` under the mixture's prior.
    On a balanced mixture the two losses differ by the constant log K, so the networks are the same.

    Returns
    -------
    MLPs
        Index it by the position in ``seeds`` for one classifier, a function (N, d) → (N, K) logits.

    >>> mixture = GaussianMixture(1, counts=[50] * 5)
    >>> train_mixture_classifier(mixture, "pc", steps=2)[0](torch.zeros(4, 1)).shape
    torch.Size([4, 5])
    """
    check_choice("kind", kind, get_args(MixtureKind))
    draws = [mixture.sample(mixture.train_counts, torch.Generator().manual_seed(seed)) for seed in seeds]
    x, y = torch.stack([x for x, _ in draws]), torch.stack([y for _, y in draws])
    loss: Loss = cross_entropy if kind == "softmax" else PCSoftmaxLoss(mixture.prior)
    return fit_mlps(
        x,
        y,
        mixture.num_classes,
        loss,
        seeds=seeds,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        on_step=on_step,
    )
