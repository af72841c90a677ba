"""Time to accuracy: the classifier as an estimator of mutual information against MINE, NWJ and InfoNCE.

One network, optimiser and batch for all, on the paper's mixtures, whose information is known exactly. Every
estimator is evaluated on the same held-out pairs every few steps; the time is that of the processor
in training steps only. An estimator has arrived when its error, root mean square over the seeds, stays within
the bound from then on. The error is taken against the mean of the exact PMI on the same held-out pairs, so
that their draw, which is common to all, does not count.

The critics draw the product of marginals by shuffling labels, as they are usually written; "exact" sums it
over the classes. InfoNCE is PC-softmax under the batch's own class shares, so it differs from it by little.

    python tests/benchmarks/bench_mi.py --output mi.json
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from infocam_utils.estimators import critic_terms
from infocam_utils.experiments.mixtures import Curve, fit_mlps, held_out, reader, training_sets
from infocam_utils.gaussians import GaussianMixture
from infocam_utils.information import PCSoftmaxLoss

METHODS = ("softmax", "pc", "mine shuffle", "mine exact", "nwj shuffle", "nwj exact", "infonce exact")
BOUNDS = (0.05, 0.01)  # nats


Trace = list[tuple[float, list[float]]]


def follow(mixture: GaussianMixture, method: str, seeds: list[int], steps: int) -> Trace:
    """Seconds of training and error of each seed, in nats, after every few steps."""
    name, _, marginal = method.partition(" ")
    x, y = training_sets(mixture, seeds)
    tests = [held_out(mixture, seed, y.shape[1] // 5) for seed in seeds]
    curve = Curve(mixture, reader(mixture, name, marginal or None), tests)

    def critic_loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return -critic_terms(outputs, labels, name, marginal).mean()

    loss = {"softmax": cross_entropy, "pc": PCSoftmaxLoss(mixture.prior)}.get(name, critic_loss)
    fit_mlps(x, y, mixture.num_classes, loss, seeds=seeds, steps=steps, on_step=curve)
    return list(zip(curve.seconds, curve.errors, strict=True))


def arrival(trace: Trace, bound: float) -> float | None:
    """Seconds after which the error stays within the bound; None if it never does."""
    arrived = None
    for seconds, errors in trace:
        inside = sum(e * e for e in errors) / len(errors) <= bound * bound
        arrived = (seconds if arrived is None else arrived) if inside else None
    return arrived


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument("--output", type=Path, help="write the traces as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = list(range(options.seeds))
    machine = f"{platform.machine()}, 1 thread, torch {torch.__version__}"
    print(f"{options.steps} steps, {options.seeds} seeds side by side, seconds per seed; {machine}\n")
    print("| mixture | estimator | s to 0.05 nats | s to 0.01 nats | error at the end, rms nats |")
    print("|---|---|---:|---:|---:|")
    follow(GaussianMixture(1), "pc", [0], Curve.EVERY)  # the first steps of a process are slow
    traces = {}
    for dimension in options.dimensions:
        for balanced in (True, False):
            mixture = GaussianMixture(dimension, balanced=balanced)
            for method in METHODS:
                trace = follow(mixture, method, seeds, options.steps)
                title = f"{dimension}-D {'balanced' if balanced else 'imbalanced'}"
                traces[f"{title}, {method}"] = trace
                times = [arrival(trace, bound) for bound in BOUNDS]
                cells = ["not reached" if t is None else f"{t / len(seeds):.2f}" for t in times]
                last = trace[-1][1]
                error = (sum(e * e for e in last) / len(last)) ** 0.5
                print(f"| {title} | {method} | {' | '.join(cells)} | {error:.4f} |", flush=True)
    if options.output is not None:
        record = {"machine": machine, "seeds": seeds, "steps": options.steps, "traces": traces}
        options.output.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
