"""Boxes at thresholds: `boxes_from_maps` against contours, and labels, of the enlarged map.

Everybody starts from the same coarse maps and returns the box of the largest component of every map at every
threshold. The contours are the faster of two ways to write them: enlarged by torch, all maps at once, or by
OpenCV, one by one. Rounds alternate between the methods, on one thread; what is compared is processor time, and
a ratio is taken within a round. Boxes within a pixel of scipy's, which are those of pixels, are counted.

    python tests/benchmarks/bench_boxes.py --output boxes.json

OpenCV (opencv-python-headless) is not a dependency of the project; its rows are left out where it is absent.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
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
OURS, CV2_TORCH, CV2_RESIZE, SCIPY = (
    "boxes_from_maps",
    "OpenCV contours",
    "OpenCV resize, contours",
    "pixel_boxes",
)


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
    print(
        "| maps | pixels | thresholds | ours | OpenCV | OpenCV / ours | scipy / ours | within 1 px | target |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---|")
    rows = []
    for kind, side, maps in inputs(args.maps):
        for thresholds in (np.array([0.3], np.float32), np.arange(100, dtype=np.float32) / 100):
            few = maps[: 50 if len(thresholds) == 1 else 5]
            methods: dict[str, Callable[[], object]] = {
                OURS: lambda m=maps, s=side, t=thresholds: boxes_from_maps(m, s, torch.from_numpy(t)),
                SCIPY: lambda m=few, s=side, t=thresholds: pixel_boxes(m[:2], s, torch.from_numpy(t)),
            }
            if cv2 is not None:
                methods[CV2_TORCH] = lambda m=few, s=side, t=thresholds: enlarged_by_torch(m, s, t)
                methods[CV2_RESIZE] = lambda m=few, s=side, t=thresholds: enlarged_by_cv2(m, s, t)
            counts = {OURS: len(maps), SCIPY: len(few[:2]), CV2_TORCH: len(few), CV2_RESIZE: len(few)}
            methods[OURS]()
            times = {name: [] for name in methods}
            for _ in range(args.rounds):
                for name, call in methods.items():
                    times[name].append(1e6 * seconds(call, counts[name]))
            levels = torch.from_numpy(thresholds)
            apart = boxes_from_maps(few, side, levels) - pixel_boxes(few, side, levels)
            row = {
                "maps": f"{kind} {maps.shape[-1]}x{maps.shape[-1]}",
                "pixels": side,
                "thresholds": len(thresholds),
                "microseconds": {name: statistics.median(values) for name, values in times.items()},
                "scipy_ratio": statistics.median(
                    b / a for a, b in zip(times[OURS], times[SCIPY], strict=True)
                ),
                "within_a_pixel": float((apart.abs().amax(-1) <= 1).double().mean()),
            }
            opencv = ratio = verdict = "–"
            if cv2 is not None:
                best = min(CV2_TORCH, CV2_RESIZE, key=lambda name: statistics.median(times[name]))
                ratios = sorted(b / a for a, b in zip(times[OURS], times[best], strict=True))
                row["opencv_ratios"] = ratios
                opencv = f"{statistics.median(times[best]):.0f}"
                ratio = f"{statistics.median(ratios):.0f} ({ratios[0]:.0f} to {ratios[-1]:.0f})"
                verdict = f"{'met' if statistics.median(ratios) >= TARGET else 'not met'} (≥ {TARGET})"
            rows.append(row)
            print(
                f"| {row['maps']} | {side} | {len(thresholds)} | {row['microseconds'][OURS]:.1f} | {opencv} | {ratio} "
                f"| {row['scipy_ratio']:.0f} | {100 * row['within_a_pixel']:.1f} % | {verdict} |",
                flush=True,
            )
    if args.output:
        packages = ("torch", "numpy", "numba", "scipy")
        packages += ("opencv-python-headless",) if cv2 is not None else ()
        report = {
            "unit": "microseconds of processor time a map",
            "machine": machine,
            "versions": {p: metadata.version(p) for p in packages},
            "rows": rows,
        }
        args.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
