"""The synthetic experiment: estimators of mutual information on mixtures whose information is known.

The networks are small multilayer perceptrons on point data, one per seed, trained side by side: the paper's
d-100-100-100-K with ReLU. All seeds go through one batched matrix product per layer; each has its own data,
initial weights and batches, so runs are independent, the same as if trained one by one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from infocam_utils.estimators import CriticKind, Marginal, critic_terms, nearest_neighbour_mi
from infocam_utils.experiments.imbalance import mean_recall, share_right
from infocam_utils.experiments.recipe import check_seeds
from infocam_utils.gaussians import GaussianMixture
from infocam_utils.information import (
    Estimate,
    Kind,
    PCSoftmaxLoss,
    Reading,
    check_choice,
    entropy,
    mutual_information,
    shift_prior,
)

Loss = Callable[[Tensor, Tensor], Tensor]  # logits (B, K) and labels (B,) of one seed -> 0-d
Pairs = tuple[Tensor, Tensor]  # points (N, d) and labels (N,)

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


def training_sets(mixture: GaussianMixture, seeds: Sequence[int]) -> Pairs:
    """The training set of each seed, points (S, N, d) and labels (S, N): a draw of ``train_counts``."""
    draws = [mixture.sample(mixture.train_counts, torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack([x for x, _ in draws]), torch.stack([y for _, y in draws])


def train_mixture_classifier(
    mixture: GaussianMixture,
    kind: Kind = "softmax",
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
    check_choice("kind", kind, get_args(Kind))
    x, y = training_sets(mixture, seeds)
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


Read = Callable[[Tensor, Tensor], Estimate]  # a network's (N, K) outputs and the labels (N,) -> nats
Mixtures = Mapping[tuple[str, int], GaussianMixture]  # by shares, "balanced" or "imbalanced", and dimension
Networks = dict[tuple[str, int, str], MLPs]  # by shares, dimension and loss

DIMENSIONS = (1, 2, 5, 10)
CRITICS: tuple[tuple[CriticKind, Marginal], ...] = (
    ("mine", "shuffle"),
    ("mine", "exact"),
    ("nwj", "shuffle"),
    ("infonce", "exact"),
)
NEIGHBOURS_SAMPLES = 15_000  # as many as the paper tests on
COLUMNS = [
    *("dataset", "shares", "dimension", "method", "rule", "marginal", "metric", "unit", "seed"),
    *("value", "stderr", "n", "low", "high", "interval"),
]
WHOLE = ("dimension", "seed", "n")  # columns of whole numbers, of which some are not applicable


class Synthetic(NamedTuple):
    """What :func:`measure` returns: all numbers, the learning curves, and the trained classifiers."""

    frame: pd.DataFrame
    curves: pd.DataFrame
    networks: Networks


def paper_mixtures(dimensions: Sequence[int] = DIMENSIONS) -> dict[tuple[str, int], GaussianMixture]:
    """The paper's mixtures by shares and dimension.

    >>> list(paper_mixtures([1]))
    [('balanced', 1), ('imbalanced', 1)]
    """
    names = (("balanced", True), ("imbalanced", False))
    return {(name, d): GaussianMixture(d, balanced) for name, balanced in names for d in dimensions}


def held_out(mixture: GaussianMixture, seed: int, n: int) -> Pairs:
    """At most n pairs in exactly the proportions of the prior, independent of the training draw of the seed.

    >>> torch.bincount(held_out(GaussianMixture(1, balanced=False), seed=0, n=40)[1]).tolist()
    [2, 4, 6, 8, 10]
    """
    parts = mixture.train_counts // math.gcd(*mixture.train_counts.tolist())  # such as 1, 2, 3, 4, 5
    if n < int(parts.sum()):
        raise ValueError(f"n must be at least {int(parts.sum())} for these class shares, got {n}")
    return mixture.sample(parts * (n // int(parts.sum())), torch.Generator().manual_seed(1000 + seed))


def reader(mixture: GaussianMixture, method: str, marginal: Marginal | None = None) -> Read:
    """How a network's outputs are read as mutual information: a :data:`Reading`, or a critic's bound."""
    if method in get_args(Reading):
        return lambda logits, y: mutual_information(logits, y, mixture.prior, method)  # type: ignore[arg-type]

    def bound(outputs: Tensor, y: Tensor) -> Estimate:
        terms = critic_terms(outputs.double(), y, method, marginal or "exact", mixture.prior)  # type: ignore[arg-type]
        return Estimate.from_samples(terms)

    return bound


class Curve:
    """Watch networks train: every 20 steps the error against the mean exact PMI of the same pairs.

    So the noise of the draw, common to the estimate and its truth, does not count. Time is the processor's
    in training steps alone.

    Parameters
    ----------
    draws : held-out pairs of each network
    """

    EVERY = 20

    def __init__(self, mixture: GaussianMixture, read: Read, draws: Sequence[Pairs]) -> None:
        self.read, self.draws = read, draws
        self.steps: list[int] = []
        self.errors: list[list[float]] = []  # of each step, of each network
        self.seconds: list[float] = []  # since the start, of all networks together
        pmi = [mixture.pointwise_mutual_information(x).gather(1, y[:, None]) for x, y in draws]
        self.exact = [float(values.mean()) for values in pmi]
        self.spent, self.since = 0.0, time.process_time()

    def __call__(self, step: int, networks: MLPs) -> None:
        self.spent += time.process_time() - self.since
        if step % self.EVERY == 0:
            found = [self.read(networks[i](x), y).value for i, (x, y) in enumerate(self.draws)]
            self.errors.append([value - exact for value, exact in zip(found, self.exact, strict=True)])
            self.steps.append(step)
            self.seconds.append(self.spent)
        self.since = time.process_time()

    def frame(self, seeds: Sequence[int], **columns: object) -> pd.DataFrame:
        """Columns step, seed, error (nats) and seconds (of one network), besides those given."""
        return pd.DataFrame(
            [
                {**columns, "step": step, "seed": seed, "error": error, "seconds": seconds / len(seeds)}
                for step, errors, seconds in zip(self.steps, self.errors, self.seconds, strict=True)
                for seed, error in zip(seeds, errors, strict=True)
            ]
        )


def truths(dimensions: Sequence[int] = DIMENSIONS) -> pd.DataFrame:
    """What is known exactly of each mixture, one row a number.

    The information, the entropy of the label, ``log K − H(Y)``, by which log K − CE is too high; and the
    accuracies of the Bayes rules for the mixture's shares ("bayes_map") and for equal ones ("bayes_ml").
    """
    return _tidy(_truths(paper_mixtures(dimensions)))


def _truths(mixtures: Mixtures) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for (shares, d), mixture in mixtures.items():
        label_entropy = float(entropy(mixture.prior))
        exact = {
            ("exact", "mutual_information", "nats"): mixture.mutual_information(),
            ("exact", "label_entropy", "nats"): label_entropy,
            ("exact", "log_k_minus_entropy", "nats"): max(0.0, math.log(mixture.num_classes) - label_entropy),
        }
        for rule in ("map", "ml"):
            for metric, average in (("accuracy", "micro"), ("per_class_accuracy", "macro")):
                value = 100 * mixture.bayes_accuracy(rule, average)  # type: ignore[arg-type]
                exact[f"bayes_{rule}", metric, "%"] = value
        made += [
            {
                "shares": shares,
                "dimension": d,
                "method": method,
                "metric": metric,
                "unit": unit,
                "value": value,
            }
            | {"stderr": 0.0, "low": value, "high": value, "interval": "exact"}
            for (method, metric, unit), value in exact.items()
        ]
    return made


def measure(
    seeds: Sequence[int],
    dimensions: Sequence[int] = DIMENSIONS,
    *,
    steps: int = 300,
    critic_steps: int = 300,
    test_samples: int = 40_000,
) -> Synthetic:
    """Train and read all estimators on the paper's eight mixtures.

    The frame has the rows of :func:`truths`, and for every seed

    - "mutual_information" and "error" against the truth (nats) of the classifiers by three readings, and on
      imbalanced data of the first and the last dimension of the critics and of nearest neighbours;
    - "worst_error", the largest absolute error, and "mean_error" of each reading over the dimensions;
    - "accuracy" and "per_class_accuracy" (%) of both classifiers under the rule "map" (for the mixture's
      shares) and "ml" (for equal ones);

    and "training_time" (s) of one network. The curves have columns shares, dimension, method, marginal, step,
    seed, error and seconds, for what trains on those imbalanced mixtures, see :class:`Curve`.

    Parameters
    ----------
    steps, critic_steps : of training of the classifiers and of the critics
    test_samples : held-out pairs of a seed, at most
    """
    check_seeds(seeds)
    mixtures = paper_mixtures(dimensions)
    networks: Networks = {}
    curves: list[tuple[dict[str, Any], Curve]] = []
    made = _truths(mixtures)
    for (shares, d), mixture in mixtures.items():
        place = {"shares": shares, "dimension": d}
        draws = [held_out(mixture, seed, test_samples) for seed in seeds]
        watch = None
        if shares == "imbalanced" and d in (dimensions[0], dimensions[-1]):
            watch = Curve(mixture, reader(mixture, "pc"), _watched(mixture, seeds))
        pc = softmax = train_mixture_classifier(mixture, "softmax", seeds=seeds, steps=steps)
        if shares == "imbalanced":  # on balanced data the two losses differ by the constant log K
            pc = train_mixture_classifier(mixture, "pc", seeds=seeds, steps=steps, on_step=watch)
        networks[shares, d, "softmax"], networks[shares, d, "pc"] = softmax, pc
        found = _classifier_rows(mixture, {"softmax": softmax, "pc": pc}, seeds, draws)
        if watch is not None:
            curves.append((place | {"method": "pc", "marginal": None}, watch))
            rows, watches = _critic_rows(mixture, seeds, draws, critic_steps)
            found += rows + _neighbour_rows(mixture, seeds)
            curves += [(place | columns, curve) for columns, curve in watches]
        made += [place | row for row in found]
    made += _summaries(made)
    made += [
        {**columns, "metric": "training_time", "unit": "s", "value": curve.spent / len(seeds)}
        for columns, curve in curves
    ]
    frames = [curve.frame(seeds, **columns) for columns, curve in curves]
    return Synthetic(_tidy(made), pd.concat(frames, ignore_index=True), networks)


def _watched(mixture: GaussianMixture, seeds: Sequence[int]) -> list[Pairs]:
    return [held_out(mixture, 3000 + seed, 5000) for seed in seeds]


def _classifier_rows(
    mixture: GaussianMixture, networks: Mapping[Kind, MLPs], seeds: Sequence[int], draws: Sequence[Pairs]
) -> list[dict[str, Any]]:
    """Information and accuracies of both classifiers, which are given by loss."""
    made: list[dict[str, Any]] = []
    classes = torch.ones(mixture.num_classes, dtype=torch.bool)
    for i, (seed, (x, y)) in enumerate(zip(seeds, draws, strict=True)):
        outputs: dict[Kind, Tensor] = {loss: trained[i](x) for loss, trained in networks.items()}
        for method in get_args(Reading):
            found = reader(mixture, method)(outputs["pc" if method == "pc" else "softmax"], y)
            made += [{"method": method, "seed": seed, **row} for row in _against(mixture, found)]
        for loss, logits in outputs.items():
            for rule, prior in (("map", mixture.prior), ("ml", None)):
                chosen = shift_prior(logits, mixture.prior, prior, loss).argmax(1)
                columns = {"method": loss, "rule": rule, "seed": seed}
                made.append({**columns, "metric": "accuracy", **share_right(chosen, y)})
                made.append({**columns, "metric": "per_class_accuracy", **mean_recall(chosen, y, classes)})
    return made


def _critic_rows(
    mixture: GaussianMixture, seeds: Sequence[int], draws: Sequence[Pairs], steps: int
) -> tuple[list[dict[str, Any]], list[tuple[dict[str, Any], Curve]]]:
    """The critics' information, and the learning curve of each with its columns."""
    made: list[dict[str, Any]] = []
    curves: list[tuple[dict[str, Any], Curve]] = []
    points, labels = training_sets(mixture, seeds)
    for kind, marginal in CRITICS:
        columns = {"method": kind, "marginal": marginal}
        read = reader(mixture, kind, marginal)
        watch = Curve(mixture, read, _watched(mixture, seeds))
        critics = train_critics(
            points, labels, mixture.num_classes, kind, marginal, seeds=seeds, steps=steps, on_step=watch
        )
        curves.append((columns, watch))
        for i, (seed, (x, y)) in enumerate(zip(seeds, draws, strict=True)):
            made += [{**columns, "seed": seed, **row} for row in _against(mixture, read(critics[i](x), y))]
    return made, curves


def _neighbour_rows(mixture: GaussianMixture, seeds: Sequence[int]) -> list[dict[str, Any]]:
    made = []
    for seed in seeds:
        drawn = mixture.sample(NEIGHBOURS_SAMPLES, torch.Generator().manual_seed(2000 + seed))
        rows = _against(mixture, nearest_neighbour_mi(*drawn))
        made += [{"method": "nearest_neighbours", "seed": seed, **row} for row in rows]
    return made


def _against(mixture: GaussianMixture, found: Estimate) -> list[dict[str, Any]]:
    """An estimate and its error, as rows."""
    noise = {"unit": "nats", "stderr": found.stderr, "n": found.n}
    return [
        {"metric": "mutual_information", "value": found.value} | noise,
        {"metric": "error", "value": found.value - mixture.mutual_information()} | noise,
    ]


def _summaries(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The largest absolute and the mean error of each reading over the dimensions, from its rows."""
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["metric"] == "error" and row["method"] in get_args(Reading):
            groups.setdefault((row["shares"], row["method"], row["seed"]), []).append(row)
    made = []
    for (shares, method, seed), errors in groups.items():
        columns = {"shares": shares, "method": method, "unit": "nats", "seed": seed}
        worst = max(errors, key=lambda row: abs(row["value"]))
        mean = sum(row["value"] for row in errors) / len(errors)
        noise = math.hypot(*(row["stderr"] for row in errors)) / len(errors)
        made += [
            {**columns, "metric": "worst_error", "value": abs(worst["value"])}
            | {"stderr": worst["stderr"], "n": worst["n"]},
            {**columns, "metric": "mean_error", "value": mean}
            | {"stderr": noise, "n": sum(row["n"] for row in errors)},
        ]
    return made


def _tidy(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame([{"dataset": "gaussian-mixtures", **row} for row in rows], columns=COLUMNS)
    return frame.astype(dict.fromkeys(WHOLE, "Int64"))


def arrivals(curves: pd.DataFrame, bounds: Sequence[float] = (0.05, 0.02, 0.01)) -> pd.DataFrame:
    """When each method's error, averaged over seeds, comes within each bound (nats) to stay.

    Columns dimension, method, marginal, bound and seconds (of one network; NaN for never within these steps).

    >>> steps = {"step": [20, 40, 60], "error": [0.2, 0.01, 0.03], "seconds": [1.0, 2.0, 3.0]}
    >>> curves = pd.DataFrame({"dimension": 1, "method": "pc", "marginal": None, **steps})
    >>> arrivals(curves, bounds=[0.05, 0.02]).seconds.tolist()
    [2.0, nan]
    """
    made = []
    for place, curve in curves.groupby(["dimension", "method", "marginal"], dropna=False, sort=False):
        means = curve.groupby("step")[["error", "seconds"]].mean()  # sorted by step
        for bound in bounds:
            inside = means.error.abs() <= bound
            stays = inside[::-1].cummin()[::-1]  # from here on always inside
            made.append((*place, bound, means.seconds[stays].min()))
    return pd.DataFrame(made, columns=["dimension", "method", "marginal", "bound", "seconds"])
