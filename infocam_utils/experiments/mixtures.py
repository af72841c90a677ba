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
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from infocam_utils.estimators import critic_terms, nearest_neighbour_mi
from infocam_utils.experiments import rows as rows_of
from infocam_utils.experiments.recipe import check_seeds, loss_of
from infocam_utils.experiments.rows import Row
from infocam_utils.gaussians import GaussianMixture
from infocam_utils.information import Estimate, Kind, entropy, mutual_information, shift_prior

Loss = Callable[[Tensor, Tensor], Tensor]  # logits (B, K) and labels (B,) of one seed -> 0-d
Pairs = tuple[Tensor, Tensor]  # points (N, d) and labels (N,)
Draws = Mapping[int, Pairs]  # by seed

BATCH = 2000
RATE = 1e-3
DIMENSIONS = (1, 2, 5, 10)
NEIGHBOURS_SAMPLES = 15_000  # as many as the paper tests on
SETTING = {"dataset": "gaussian-mixtures"}


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
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise((dimension, 100, 100, 100, num_classes)):
            bound = inputs**-0.5  # nn.Linear draws weight and bias from U(−1/√in, 1/√in)
            drawn = torch.stack([torch.rand(inputs + 1, outputs, generator=g) for g in generators])
            drawn = (2 * drawn - 1) * bound  # (S, in + 1, out)
            self.weights.append(drawn[:, :-1].clone())
            self.biases.append(drawn[:, -1:].clone())

    def forward(self, x: Tensor) -> Tensor:
        """(S, N, K) logits of (N, d) or (S, N, d) points."""
        return self._through(x.expand(len(self.biases[0]), *x.shape[-2:]), torch.baddbmm, slice(None))

    def __getitem__(self, index: int) -> Callable[[Tensor], Tensor]:
        return torch.no_grad()(lambda x: self._through(x.float(), torch.addmm, index))

    def _through(self, x: Tensor, layer: Callable[..., Tensor], index: int | slice) -> Tensor:
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = layer(bias[index], x.relu() if number else x, weight[index])
        return x


def fit_mlps(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    loss: Loss,
    *,
    seeds: Sequence[int],
    steps: int = 300,
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
        If shapes and seeds disagree, or there is no step, or a loss stops being finite.

    >>> x, y = torch.randn(1, 64, 1), torch.zeros(1, 64, dtype=torch.long)
    >>> fit_mlps(x, y, 2, nn.CrossEntropyLoss(), seeds=[0], steps=2)[0](x[0]).shape
    torch.Size([64, 2])
    """
    if x.ndim != 3 or y.shape != x.shape[:2] or len(x) != len(seeds) or y.numel() == 0 or steps < 1:
        raise ValueError(
            f"x must be (S, N, d) and y (S, N) for {len(seeds)} seeds, and steps at least 1, got "
            f"{tuple(x.shape)}, {tuple(y.shape)} and {steps}"
        )
    mlps = MLPs(x.shape[2], num_classes, seeds)
    optimiser = torch.optim.Adam(mlps.parameters(), lr=RATE)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    samples = x.shape[1]
    batch_size = min(BATCH, samples)
    per_epoch = samples // batch_size
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
    if not math.isfinite(last := float(total.detach())):
        raise ValueError(f"the training loss is {last} after {steps} steps; are the points finite?")
    return mlps.requires_grad_(False)


class Estimator(NamedTuple):
    """What a network is trained as: a classifier by one of two losses, or a critic by its bound.

    >>> Estimator("pc").read(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), torch.tensor([0.5, 0.5])).value
    0.0
    """

    method: Any  # the Kind of a classifier, or the CriticKind of a critic
    marginal: Any = None  # of a critic, a Marginal

    def loss(self, prior: Tensor) -> Loss:
        """What training minimises, where the classes have these shares (K,)."""
        if self.marginal is None:
            return loss_of(self.method, prior)
        return lambda critic, labels: -critic_terms(critic, labels, self.method, self.marginal).mean()

    def read(self, outputs: Tensor, labels: Tensor, prior: Tensor) -> Estimate:
        """The information (nats) that a network's outputs (N, K) give."""
        if self.marginal is None:
            return mutual_information(outputs, labels, prior, self.method)
        terms = critic_terms(outputs.double(), labels, self.method, self.marginal, prior)
        return Estimate.from_samples(terms)


CRITICS = (
    Estimator("mine", "shuffle"),
    Estimator("mine", "exact"),
    Estimator("nwj", "shuffle"),
    Estimator("infonce", "exact"),
)


def train(
    mixture: GaussianMixture,
    estimator: Estimator,
    *,
    seeds: Sequence[int],
    steps: int = 300,
    on_step: Callable[[int, MLPs], None] | None = None,
) -> MLPs:
    """The estimator's network for each seed, each trained on its own draw of the mixture's ``train_counts``.

    >>> mixture = GaussianMixture(1, counts=[50] * 5)
    >>> train(mixture, Estimator("pc"), seeds=[0], steps=2)[0](torch.zeros(4, 1)).shape
    torch.Size([4, 5])
    """
    draws = [mixture.sample(mixture.train_counts, torch.Generator().manual_seed(seed)) for seed in seeds]
    x, y = (torch.stack(part) for part in zip(*draws, strict=True))
    loss = estimator.loss(mixture.prior)
    return fit_mlps(x, y, mixture.num_classes, loss, seeds=seeds, steps=steps, on_step=on_step)


class Synthetic(NamedTuple):
    """What :func:`measure` returns: all numbers, the learning curves, and the trained classifiers."""

    frame: pd.DataFrame
    curves: pd.DataFrame
    networks: dict[tuple[str, int, str], MLPs]  # by shares, dimension and loss


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
    times = n // int(parts.sum())
    if times < 1:
        raise ValueError(f"n must be at least {int(parts.sum())} for these class shares, got {n}")
    return mixture.sample(parts * times, torch.Generator().manual_seed(1000 + seed))


class Curve:
    """Watch networks train: every 20 steps the error against the mean exact PMI of the same pairs.

    So the noise of the draw, common to the estimate and its truth, does not count.

    Attributes
    ----------
    draws : held-out pairs of each network, by its seed
    rows : of step, seed, error (nats) and seconds since the start
    seconds : of one network, the processor's and in training steps alone
    """

    EVERY = 20

    def __init__(self, mixture: GaussianMixture, estimator: Estimator, draws: Draws) -> None:
        self.mixture, self.estimator, self.draws = mixture, estimator, draws
        self.rows: list[Row] = []
        self.exact = {
            seed: float(mixture.pointwise_mutual_information(x).gather(1, y[:, None]).mean())
            for seed, (x, y) in draws.items()
        }
        self.seconds, self.since = 0.0, time.process_time()

    def __call__(self, step: int, networks: MLPs) -> None:
        self.seconds += (time.process_time() - self.since) / len(self.draws)
        if step % self.EVERY == 0:
            for i, (seed, (x, y)) in enumerate(self.draws.items()):
                found = self.estimator.read(networks[i](x), y, self.mixture.prior)
                row = {"step": step, "seed": seed, "error": found.value - self.exact[seed]}
                self.rows.append(row | {"seconds": self.seconds})
        self.since = time.process_time()


def truths(dimensions: Sequence[int] = DIMENSIONS) -> pd.DataFrame:
    """What is known exactly of each mixture, one row a number.

    The information, the entropy of the label, ``log K − H(Y)``, by which log K − CE is too high; and the
    accuracies of the Bayes rules.
    """
    made = []
    for (shares, d), mixture in paper_mixtures(dimensions).items():
        made += [{"shares": shares, "dimension": d} | row for row in _truths(mixture)]
    return rows_of.frame(made, SETTING)


def _truths(mixture: GaussianMixture) -> list[Row]:
    label_entropy = float(entropy(mixture.prior))
    values = {
        "mutual_information": mixture.mutual_information(),
        "label_entropy": label_entropy,
        "log_k_minus_entropy": max(0.0, math.log(mixture.num_classes) - label_entropy),
    }
    made = [rows_of.exact("exact", metric, "nats", value) for metric, value in values.items()]
    return made + rows_of.bayes(mixture.bayes_accuracy)


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

    and "training_time" (s) of one network. The curves have the rows of :class:`Curve` of what trains on those
    imbalanced mixtures. `test_samples` are the held-out pairs of a seed, at most.
    """
    check_seeds(seeds)
    made, curves, networks = list[Row](), list[Row](), dict[tuple[str, int, str], MLPs]()
    for (shares, d), mixture in paper_mixtures(dimensions).items():
        place = {"shares": shares, "dimension": d}
        draws = {seed: held_out(mixture, seed, test_samples) for seed in seeds}
        pc = softmax = train(mixture, Estimator("softmax"), seeds=seeds, steps=steps)
        others, watches = list[Row](), list[Curve]()
        if shares == "imbalanced":  # on balanced data the two losses differ by the constant log K
            pc, watch = _watched(mixture, Estimator("pc"), seeds, steps)
            if d in (dimensions[0], dimensions[-1]):
                others, watches = _comparison(mixture, draws, critic_steps)
                watches.insert(0, watch)
        networks |= {(shares, d, "softmax"): softmax, (shares, d, "pc"): pc}
        found = _classifier_rows(mixture, {"softmax": softmax, "pc": pc}, draws) + others
        for row in [row for row in found if row["metric"] == "mutual_information"]:
            found.append(row | {"metric": "error", "value": row["value"] - mixture.mutual_information()})
        for watch in watches:
            about = watch.estimator._asdict()
            found.append(about | {"metric": "training_time", "unit": "s", "value": watch.seconds})
            curves += [place | about | row for row in watch.rows]
        made += [place | row for row in _truths(mixture) + found]
    return Synthetic(rows_of.frame(made + _summaries(made), SETTING), pd.DataFrame(curves), networks)


def _watched(
    mixture: GaussianMixture, estimator: Estimator, seeds: Sequence[int], steps: int
) -> tuple[MLPs, Curve]:
    watch = Curve(mixture, estimator, {seed: held_out(mixture, 3000 + seed, 5000) for seed in seeds})
    return train(mixture, estimator, seeds=seeds, steps=steps, on_step=watch), watch


def _classifier_rows(mixture: GaussianMixture, networks: Mapping[Kind, MLPs], draws: Draws) -> list[Row]:
    """Information and accuracies of both classifiers, which are given by loss."""
    made = []
    for i, (seed, (x, y)) in enumerate(draws.items()):
        outputs = {loss: trained[i](x) for loss, trained in networks.items()}
        found = rows_of.readings(outputs, y, mixture.prior)
        for loss, logits in outputs.items():
            for rule, prior in (("map", mixture.prior), ("ml", None)):
                chosen = shift_prior(logits, mixture.prior, prior, loss).argmax(1)
                columns = {"method": loss, "rule": rule}
                found += [columns | row for row in rows_of.accuracies(chosen, y, mixture.num_classes)]
        made += [{"seed": seed} | row for row in found]
    return made


def _comparison(mixture: GaussianMixture, draws: Draws, steps: int) -> tuple[list[Row], list[Curve]]:
    """Information by critics and by nearest neighbours, and the critics' learning curves."""
    made, watches = [], []
    for critic in CRITICS:
        critics, watch = _watched(mixture, critic, list(draws), steps)
        watches.append(watch)
        for i, (seed, (x, y)) in enumerate(draws.items()):
            row = rows_of.information(critic.read(critics[i](x), y, mixture.prior))
            made.append(critic._asdict() | {"seed": seed} | row)
    for seed in draws:
        pairs = mixture.sample(NEIGHBOURS_SAMPLES, torch.Generator().manual_seed(2000 + seed))
        row = rows_of.information(nearest_neighbour_mi(*pairs))
        made.append({"method": "nearest_neighbours", "seed": seed} | row)
    return made, watches


def _summaries(rows: Sequence[Row]) -> list[Row]:
    """The largest absolute and the mean error of each reading over the dimensions, from its rows."""
    table = pd.DataFrame(rows)
    errors = table[(table["metric"] == "error") & table["method"].isin(rows_of.READINGS)]
    made: list[Row] = []
    for about, group in errors.groupby(["shares", "method", "seed"], sort=False):
        row = dict(zip(("shares", "method", "seed"), about, strict=True)) | {"unit": "nats"}
        worst = group.iloc[int(group["value"].abs().argmax())]
        largest = {"value": abs(worst["value"]), "stderr": worst["stderr"], "n": worst["n"]}
        noise = math.hypot(*group["stderr"]) / len(group)
        mean = {"value": group["value"].mean(), "stderr": noise, "n": group["n"].sum()}
        made += [row | {"metric": "worst_error"} | largest, row | {"metric": "mean_error"} | mean]
    return made


def arrivals(curves: pd.DataFrame, bounds: Sequence[float] = (0.05, 0.02, 0.01)) -> pd.DataFrame:
    """When each method's error, averaged over seeds, comes within each bound (nats) to stay.

    Columns dimension, method, marginal, bound and seconds (of one network; NaN for never within these steps).

    >>> steps = {"step": [20, 40, 60], "error": [0.2, 0.01, 0.03], "seconds": [1.0, 2.0, 3.0]}
    >>> curves = pd.DataFrame({"dimension": 1, "method": "pc", "marginal": None, **steps})
    >>> arrivals(curves, bounds=[0.05, 0.02]).seconds.tolist()
    [2.0, nan]
    """
    columns = ["dimension", "method", "marginal"]
    made = []
    for place, curve in curves.groupby(columns, dropna=False, sort=False):
        means = curve.groupby("step")[["error", "seconds"]].mean()  # sorted by step
        for bound in bounds:
            inside = means["error"].abs() <= bound
            stays = inside[::-1].cummin()[::-1]  # from here on always inside
            made.append((*place, bound, means["seconds"][stays].min()))
    return pd.DataFrame(made, columns=[*columns, "bound", "seconds"])
