"""Boxes at thresholds: `boxes_from_maps` against contours, and labels, of the enlarged map.

Everybody starts from the same coarse maps and returns the box of the largest component of every map at every
threshold. The contours are the faster of two ways to write them: enlarged by torch, all maps at once, or by
OpenCV, one by one. Rounds alternate between the methods, on one thread; what is compared is processor time,
and a ratio is taken within a round. Boxes within a pixel of those of `pixel_boxes` (scipy) are counted.

    python tests/benchmarks/bench_boxes.py --output boxes.json

OpenCV (opencv-python-headless) is not a dependency of the project; its rows are left out where it is absent.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from infocam_utils.localization import boxes_from_maps, normalise_maps, pixel_boxes

try:
    import cv2
except ImportError:
    cv2 = None

TARGET = 50  # times faster than OpenCV's contours
OURS, CV2_TORCH, CV2_RESIZE = "boxes_from_maps", "OpenCV contours", "OpenCV resize, contours"


def contours(values: np.ndarray, thresholds: np.ndarray) -> list[tuple[int, int, int, int]]:
    boxes = []
    for t in thresholds:
        mask = (values > t).view(np.uint8)
        found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        boxes.append(cv2.boundingRect(max(found, key=cv2.contourArea)) if found else (0, 0, 0, 0))
    return boxes


def enlarged_by_torch(maps: Tensor, side: int, thresholds: np.ndarray) -> np.ndarray:
    values = normalise_maps(F.interpolate(maps[:, None], size=(side, side), mode="bilinear")[:, 0]).numpy()
    return np.array([contours(v, thresholds) for v in values])


def enlarged_by_cv2(maps: Tensor, side: int, thresholds: np.ndarray) -> np.ndarray:
    boxes = []
    for values in maps.numpy():
        large = cv2.resize(values, (side, side), interpolation=cv2.INTER_LINEAR)
        boxes.append(contours((large - large.min()) / np.ptp(large), thresholds))
    return np.array(boxes)


def inputs(count: int) -> Iterator[tuple[str, int, Tensor]]:
    """Maps like activation maps (a few hills), and noise, the worst case, with the image's side."""
    generator = torch.Generator().manual_seed(0)
    for cells, side in ((7, 224), (14, 224), (14, 1024)):
        steps = torch.arange(float(cells))
        grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)  # (cells, cells, 2)
        centres = cells * torch.rand(count, 3, 1, 1, 2, generator=generator)
        hills = torch.exp(-(grid - centres).square().sum(-1) / (cells**2 / 16)).sum(1)
        noise = torch.rand(count, cells, cells, generator=generator)
        yield "hills", side, hills + 0.05 * noise
        yield "noise", side, noise


def seconds(call: Callable[[], object], maps: int) -> float:
    start = time.process_time()
    call()
    return (time.process_time() - start) / maps


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of boxes at one and at many thresholds, side by side.")
    parser.add_argument("--maps", type=int, default=1000, help="for boxes_from_maps; the others get fewer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if cv2 is not None:
        cv2.setNumThreads(1)
    machine = f"{platform.processor() or platform.machine()}, Python {platform.python_version()}"
    print(f"µs a map, one thread, median of {args.rounds} rounds; {machine}\n")
    print("| maps | pixels | thresholds | ours | OpenCV | OpenCV / ours | within 1 px | target |")
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    rows = []
    for (kind, side, maps), count in itertools.product(inputs(args.maps), (1, 100)):
        thresholds = np.array([0.3], np.float32) if count == 1 else np.arange(100, dtype=np.float32) / 100
        levels, few = torch.from_numpy(thresholds), maps[: 50 if count == 1 else 5]
        methods = {OURS: (partial(boxes_from_maps, maps, side, levels), len(maps))}
        if cv2 is not None:
            for name, contoured in ((CV2_TORCH, enlarged_by_torch), (CV2_RESIZE, enlarged_by_cv2)):
                methods[name] = partial(contoured, few, side, thresholds), len(few)
        methods[OURS][0]()  # compiled
        rounds = [
            {name: 1e6 * seconds(*method) for name, method in methods.items()} for _ in range(args.rounds)
        ]
        times = {name: statistics.median(times[name] for times in rounds) for name in methods}
        apart = boxes_from_maps(few, side, levels) - pixel_boxes(few, side, levels)
        near = float((apart.abs().amax(-1) <= 1).double().mean())
        row = {"maps": f"{kind} {maps.shape[-1]}x{maps.shape[-1]}", "pixels": side, "thresholds": count}
        row |= {"microseconds": times, "within_a_pixel": near}
        opencv = ratio = verdict = "–"
        if cv2 is not None:
            best = min(CV2_TORCH, CV2_RESIZE, key=times.__getitem__)
            row["opencv_ratios"] = ratios = sorted(times[best] / times[OURS] for times in rounds)
            opencv = f"{times[best]:.0f}"
            ratio = f"{statistics.median(ratios):.0f} ({ratios[0]:.0f} to {ratios[-1]:.0f})"
            verdict = f"{'met' if statistics.median(ratios) >= TARGET else 'not met'} (≥ {TARGET})"
        rows.append(row)
        cells = (
            row["maps"],
            side,
            count,
            f"{times[OURS]:.1f}",
            opencv,
            ratio,
            f"{100 * near:.1f} %",
            verdict,
        )
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    if args.output:
        packages = ["torch", "numpy", "numba", "scipy"]
        packages += ["opencv-python-headless"] if cv2 is not None else []
        versions = {name: metadata.version(name) for name in packages}
        unit = "microseconds of processor time a map"
        report = {"unit": unit, "machine": machine, "versions": versions, "rows": rows}
        args.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
