"""Boxes of a threshold sweep: `boxes_from_maps` against one labelling or contour search per threshold.

Everybody starts from the same coarse maps and returns the box of the largest component of every map at every
threshold; upsampling and scaling are the same code and count for all. Peers that label components must return
the very same boxes (checked); contours take the largest polygon instead, as most evaluation code does.
Rounds alternate between the methods; the figure is processor time on one thread, the least of the rounds.

    python tests/benchmarks/bench_boxes.py --output boxes.json

OpenCV (opencv-python-headless) is not a dependency of the project; its rows are left out where it is absent.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from infocam_utils.localization import boxes_from_maps, normalise_maps, upsample_maps

try:
    import cv2
except ImportError:
    cv2 = None

SIDE = 224
Method = Callable[[Tensor, np.ndarray], np.ndarray]


def ours(maps: Tensor, thresholds: np.ndarray) -> np.ndarray:
    return boxes_from_maps(maps, SIDE, torch.from_numpy(thresholds)).numpy()


def one_by_one(box: Callable[[np.ndarray], tuple[int, int, int, int]]) -> Method:
    def run(maps: Tensor, thresholds: np.ndarray) -> np.ndarray:
        values = normalise_maps(upsample_maps(maps, SIDE)).numpy()
        return np.array([[box(v > t) for t in thresholds] for v in values])

    return run


def scipy_components(mask: np.ndarray) -> tuple[int, int, int, int]:
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if not count:
        return 0, 0, 0, 0
    y, x = ndimage.find_objects(labels)[np.bincount(labels.ravel())[1:].argmax()]
    return x.start, y.start, x.stop, y.stop


def cv2_components(mask: np.ndarray) -> tuple[int, int, int, int]:
    count, _, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    if count == 1:
        return 0, 0, 0, 0
    x, y, w, h, _ = stats[1 + stats[1:, 4].argmax()]
    return x, y, x + w, y + h


def cv2_contours(retrieve: str) -> Callable[[np.ndarray], tuple[int, int, int, int]]:
    def box(mask: np.ndarray) -> tuple[int, int, int, int]:
        found, _ = cv2.findContours(mask.view(np.uint8), getattr(cv2, retrieve), cv2.CHAIN_APPROX_SIMPLE)
        if not found:
            return 0, 0, 0, 0
        x, y, w, h = cv2.boundingRect(max(found, key=cv2.contourArea))
        return x, y, x + w, y + h

    return box


def methods() -> dict[str, Method]:
    table: dict[str, Method] = {"boxes_from_maps": ours, "scipy components": one_by_one(scipy_components)}
    if cv2 is not None:
        cv2.setNumThreads(1)
        table["OpenCV components"] = one_by_one(cv2_components)
        table["OpenCV contours, outer"] = one_by_one(cv2_contours("RETR_EXTERNAL"))
        table["OpenCV contours, tree"] = one_by_one(cv2_contours("RETR_TREE"))
    return table


def inputs(count: int) -> dict[str, Tensor]:
    """Maps like activation maps (a few hills), random maps of three sizes, and noise, the worst case."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.arange(14.0)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)  # (14, 14, 2)
    centres = 14 * torch.rand(count, 3, 1, 1, 2, generator=generator)
    hills = torch.exp(-(grid - centres).square().sum(-1) / 12).sum(1)  # (count, 14, 14)
    kinds = {"hills 14x14": hills + 0.05 * torch.rand(count, 14, 14, generator=generator)}
    for size in (7, 14, 28):
        kinds[f"random {size}x{size}"] = torch.rand(count, size, size, generator=generator)
    kinds["noise 224x224"] = torch.rand(1, SIDE, SIDE, generator=generator)
    return kinds


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of a threshold sweep, side by side.")
    parser.add_argument("--maps", type=int, default=24)
    parser.add_argument("--thresholds", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    thresholds = (np.arange(args.thresholds) / args.thresholds).astype(np.float32)
    table, rows = methods(), {}
    for kind, maps in inputs(args.maps).items():
        boxes = {name: run(maps, thresholds) for name, run in table.items()}
        for name, found in boxes.items():
            if "components" in name:
                np.testing.assert_array_equal(found, boxes["boxes_from_maps"], err_msg=f"{name}, {kind}")
        least = dict.fromkeys(table, float("inf"))
        for _ in range(args.rounds):
            for name, run in table.items():
                start = time.process_time()
                run(maps, thresholds)
                spent = (time.process_time() - start) / (len(maps) * len(thresholds))
                least[name] = min(least[name], 1e6 * spent)
        rows[kind] = least
    names = list(table)
    print(f"µs per map and threshold, {args.thresholds} thresholds, {SIDE} pixels (in brackets: ours = 1)\n")
    print("| maps | " + " | ".join(names) + " |\n|---" + "|---:" * len(names) + "|")
    for kind, least in rows.items():
        mine = least["boxes_from_maps"]
        cells = [f"{t:.1f}" + (f" ({t / mine:.1f}x)" if n != names[0] else "") for n, t in least.items()]
        print(f"| {kind} | " + " | ".join(cells) + " |")
    if args.output:
        packages = ("torch", "numpy", "scipy") + (("opencv-python-headless",) if cv2 is not None else ())
        report = {
            "unit": "microseconds per map and threshold",
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "versions": {p: metadata.version(p) for p in packages},
            "rows": rows,
        }
        args.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
