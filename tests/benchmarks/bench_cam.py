"""What a map costs beside the forward pass it needs: infoCAM, torchcam and pytorch-grad-cam on one network.

Everything runs in this process on the same images, in turns, so that a busy machine slows all alike. The
peers are optional (`pip install torchcam grad-cam`). What is compared is checked first: without a rival,
infoCAM's map must be torchcam's CAM. FinerCAM is a contrast of classes too, by gradients; pytorch-grad-cam
also enlarges its maps to the size of the images.

    python tests/benchmarks/bench_cam.py --output cam.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from infocam_utils.cam import InfoCAM
from infocam_utils.classifiers.adapt import Classifier
from infocam_utils.classifiers.backbones import classifier


def contestants(model: Classifier, images: Tensor) -> tuple[dict[str, Callable[[], object]], list[str]]:
    """One call per method, each drawing maps of predicted classes; notes on what was checked or absent."""
    notes: list[str] = []
    open_cams = {against: InfoCAM(model, against).__enter__() for against in ("least_likely", None)}

    def forward() -> Tensor:
        with torch.inference_mode():
            return model(images)

    calls: dict[str, Callable[[], object]] = {
        "forward pass": forward,
        "infoCAM": lambda: open_cams["least_likely"](images).maps,
    }
    try:
        from torchcam.methods import CAM, GradCAM
    except ImportError:
        notes.append("torchcam is not installed: skipped")
    else:
        extractors = CAM(model, "features", "linear"), GradCAM(model, "features")
        for extractor in extractors:
            extractor.disable_hooks()  # each works in its own turn only

        def torchcam_cam(normalized: bool = True) -> Tensor:
            extractors[0].enable_hooks()
            with torch.inference_mode():
                labels = model(images).argmax(1)
                (maps,) = extractors[0](labels.tolist(), normalized=normalized)
            extractors[0].disable_hooks()
            return maps

        def torchcam_grad() -> Tensor:
            extractors[1].enable_hooks()
            logits = model(images)
            (maps,) = extractors[1](logits.argmax(1).tolist(), logits)
            extractors[1].disable_hooks()
            return maps

        ours, theirs = open_cams[None](images).maps, torchcam_cam(normalized=False)
        torch.testing.assert_close(ours, theirs.clone(), rtol=1e-4, atol=1e-4)
        gap = float((ours - theirs).abs().max() / theirs.abs().max())
        notes.append(f"CAM by infoCAM and by torchcam agree to {gap:.0e} of the largest value")
        calls |= {"torchcam CAM": torchcam_cam, "torchcam GradCAM": torchcam_grad}
    try:
        from pytorch_grad_cam import FinerCAM
        from pytorch_grad_cam import GradCAM as PeerGradCAM
    except ImportError:
        notes.append("pytorch-grad-cam is not installed: skipped")
    else:
        calls |= {
            f"pytorch-grad-cam {method.__name__}": lambda m=method: m(model, [model.features])(
                images, targets=None
            )
            for method in (PeerGradCAM, FinerCAM)
        }
    return calls, notes


Times = dict[str, list[float]]


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> tuple[Times, Times]:
    """Wall and processor seconds of each call in each round, after a round that is not counted.

    Every round starts with another method, as each leaves caches and memory to the next in its own state.
    """
    wall: Times = {name: [] for name in calls}
    processor: Times = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter(), time.process_time()
            calls[name]()
            if turn > 0:
                wall[name].append(time.perf_counter() - start[0])
                processor[name].append(time.process_time() - start[1])
    return wall, processor


def ratio(times: Times, name: str, base: str) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", type=Path, help="state dict of torchvision's MobileNetV2; random without it"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="write the times as JSON")
    options = parser.parse_args()

    torch.manual_seed(0)
    model = classifier("mobilenet_v2", 1000, weights=options.weights).eval()
    if options.weights is None:  # else the biases are zero and all logits alike
        nn.init.normal_(model.linear.weight, std=0.1)
    images = torch.randn(options.batch, 3, options.size, options.size)
    calls, notes = contestants(model, images)
    wall, processor = measure(calls, options.rounds)

    table = {
        name: {
            "median_ms": 1e3 * statistics.median(wall[name]),
            "images_per_second": options.batch / statistics.median(wall[name]),
            "wall_over_forward": ratio(wall, name, "forward pass"),
            "processor_over_forward": ratio(processor, name, "forward pass"),
            "wall_over_infocam": ratio(wall, name, "infoCAM"),
        }
        for name in calls
    }
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"MobileNetV2, {options.size} px, batch {options.batch}, {options.rounds} rounds; {machine}\n")
    print("| method | ms per batch | images/s | × forward pass | × its processor time | × infoCAM |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, row in table.items():
        first, second, *ratios = row.values()
        print(f"| {name} | {first:.0f} | {second:.1f} | " + " | ".join(f"{r:.3f}" for r in ratios) + " |")
    print("", *(f"- {note}" for note in notes), sep="\n")
    if options.output is not None:
        record = {
            "network": "mobilenet_v2",
            "batch": options.batch,
            "size": options.size,
            "machine": machine,
            "wall_seconds": wall,
            "processor_seconds": processor,
            "table": table,
            "notes": notes,
        }
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
