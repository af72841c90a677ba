"""Time to accuracy: the classifier as an estimator of mutual information against MINE, NWJ and InfoNCE.

One network, optimiser and batch for all, on the paper's mixtures, whose information is known exactly. Every
estimator is evaluated on the same held-out pairs every few steps; the time is that of the processor
in training steps only. An estimator has arrived when its error, root mean square over the seeds, stays within
the bound from then on. The error is taken against the mean of the exact PMI on the same held-out pairs, so
that their draw, which is common to all, does not count.

The critics draw the product of marginals by shuffling labels, as they are usually written; "exact" sums it
over the classes. InfoNCE is PC-softmax under the batch's own class shares, so it differs from it by little.

    python tests/benchmarks/bench_mi.py --output mi.csv
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import pandas as pd
import torch

from infocam_utils.experiments.mixtures import CRITICS, Curve, Estimator, held_out, paper_mixtures, train
from infocam_utils.gaussians import GaussianMixture

ESTIMATORS = (Estimator("softmax"), Estimator("pc"), *CRITICS, Estimator("nwj", "exact"))
BOUNDS = (0.05, 0.01)  # nats


def follow(mixture: GaussianMixture, estimator: Estimator, seeds: range, steps: int) -> pd.DataFrame:
    """The error of each seed, in nats, and the seconds of training of one, after every few steps."""
    pairs = int(mixture.train_counts.sum()) // 5
    curve = Curve(mixture, estimator, {seed: held_out(mixture, seed, pairs) for seed in seeds})
    train(mixture, estimator, seeds=seeds, steps=steps, on_step=curve)
    return pd.DataFrame(curve.rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument("--output", type=Path, help="write the curves as CSV")
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds, curves = range(options.seeds), []
    machine = f"{platform.machine()}, 1 thread, torch {torch.__version__}"
    print(f"{options.steps} steps, {options.seeds} seeds side by side, seconds per seed; {machine}\n")
    print("| mixture | estimator | s to 0.05 nats | s to 0.01 nats | error at the end, rms nats |")
    print("|---|---|---:|---:|---:|")
    follow(GaussianMixture(1), ESTIMATORS[0], range(1), Curve.EVERY)  # a process is slow at first
    for (shares, d), mixture in paper_mixtures(options.dimensions).items():
        for estimator in ESTIMATORS:
            curve = follow(mixture, estimator, seeds, options.steps)
            curves.append(curve.assign(shares=shares, dimension=d, **estimator._asdict()))
            by_step = curve.assign(square=curve["error"] ** 2).groupby("step")[["square", "seconds"]].mean()
            rms, seconds = by_step["square"] ** 0.5, by_step["seconds"]
            stays = [(rms <= bound)[::-1].cummin()[::-1] for bound in BOUNDS]
            cells = [f"{seconds[inside].min():.2f}" if inside.any() else "not reached" for inside in stays]
            name = " ".join(filter(None, estimator))
            print(f"| {d}-D {shares} | {name} | {' | '.join(cells)} | {rms.iloc[-1]:.4f} |", flush=True)
    if options.output is not None:
        pd.concat(curves).to_csv(options.output, index=False)


if __name__ == "__main__":
    main()
