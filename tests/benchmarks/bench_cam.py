"""What a map costs beside the forward pass that it needs: infoCAM, torchcam, pytorch-grad-cam on one network.

A network for each way: MobileNetV2 (mean and linear layer), ConvNeXt-Tiny (a layer norm between) and
MobileNetV3-Small (a hidden layer between, so the gradient). Everything runs in this process on the same
images, in turns, so that a busy machine slows all alike. The peers are optional (`pip install
'infocam[peers]'`); that their maps are ours where arithmetic says so is tested in tests/test_peers.py.
pytorch-grad-cam also enlarges its maps to the size of the images. The last column is infoCAM in channels-last
memory and, where the processor multiplies faster in it, bfloat16.

    python tests/benchmarks/bench_cam.py --output cam.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from infocam_utils import InfoCAM
from infocam_utils.classifiers.training import best_precision

NETWORKS = {  # the layer at which peers take their maps, and the last linear layer where CAM is exact
    "mobilenet_v2": ("features", "classifier.1"),
    "convnext_tiny": ("features", None),
    "mobilenet_v3_small": ("features", None),
}
FAST = "infoCAM, fast"
TARGETS = (  # what is measured, over what, at most (or at least), and of which networks
    ("infoCAM", "forward pass", 1.05, None, ("mobilenet_v2", "convnext_tiny")),
    ("infoCAM", "torchcam GradCAM", 1.0, None, ("mobilenet_v3_small",)),
    ("pytorch-grad-cam GradCAM", FAST, None, 4.0, tuple(NETWORKS)),
    ("pytorch-grad-cam FinerCAM", FAST, None, 4.0, tuple(NETWORKS)),
)


def contestants(
    name: str, model: nn.Module, images: Tensor
) -> tuple[dict[str, Callable[[], object]], list[str]]:
    """One call per method, each drawing maps of predicted classes; notes on what is absent or agrees."""
    notes: list[str] = []
    layer, linear = NETWORKS[name]
    cam, last = InfoCAM(model), images.to(memory_format=torch.channels_last)
    low = best_precision() != "32-true"

    def forward() -> Tensor:
        with torch.inference_mode():
            return model(images)

    def fast() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if low else contextlib.nullcontext():
            return cam(last).maps

    calls: dict[str, Callable[[], object]] = {
        "forward pass": forward,
        "infoCAM": lambda: cam(images).maps,
        FAST: fast,
    }
    exact, quick = cam(images).maps.flatten(1), fast().float().flatten(1)
    alike = torch.nn.functional.cosine_similarity(exact, quick, dim=1)
    notes.append(f"{name}: {FAST} against infoCAM, cosine of the maps at least {float(alike.min()):.4f}")
    try:
        from torchcam.methods import CAM, GradCAM
    except ImportError:
        notes.append("torchcam is not installed: skipped")
    else:
        extractor = GradCAM(model, layer)
        extractor.disable_hooks()  # each works in its own turn only

        def torchcam_grad() -> Tensor:
            extractor.enable_hooks()
            logits = model(images)
            (maps,) = extractor(logits.argmax(1).tolist(), logits)
            extractor.disable_hooks()
            return maps

        calls["torchcam GradCAM"] = torchcam_grad
        if linear is not None:
            plain = CAM(model, layer, linear)
            plain.disable_hooks()

            def torchcam_cam() -> Tensor:
                plain.enable_hooks()
                with torch.inference_mode():
                    labels = model(images).argmax(1)
                    (maps,) = plain(labels.tolist())
                plain.disable_hooks()
                return maps

            calls["torchcam CAM"] = torchcam_cam
    try:
        from pytorch_grad_cam import FinerCAM
        from pytorch_grad_cam import GradCAM as PeerGradCAM
    except ImportError:
        notes.append("pytorch-grad-cam is not installed: skipped")
    else:
        target = [model.get_submodule(layer)]

        def peer(method: type) -> object:
            with method(model, target) as made:
                return made(images, targets=None)

        calls |= {f"pytorch-grad-cam {m.__name__}": lambda m=m: peer(m) for m in (PeerGradCAM, FinerCAM)}
    return calls, notes


Times = dict[str, list[float]]


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> Times:
    """Wall seconds of each call in each round, after a round that is not counted.

    Every round starts with another method, as each leaves caches and memory to the next in its own state.
    """
    wall: Times = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            calls[name]()
            if turn > 0:
                wall[name].append(time.perf_counter() - start)
    return wall


def ratio(times: Times, name: str, base: str) -> tuple[float, float, float]:
    """Median over the rounds of the ratio within a round, and its quartiles."""
    found = sorted(a / b for a, b in zip(times[name], times[base], strict=True))
    low, middle, high = statistics.quantiles(found, n=4)
    return middle, low, high


def targets(name: str, wall: Times) -> list[str]:
    """Each target of a network with what was measured: met or not met."""
    said = []
    for method, base, most, least, networks in TARGETS:
        if name in networks and method in wall and base in wall:
            middle, low, high = ratio(wall, method, base)
            met = middle <= most if most is not None else middle >= (least or 0)
            bound = f"≤ {most}" if most is not None else f"≥ {least}"
            spread = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
            said.append(f"{name}: {method} over {base} {spread}, {bound}: {'met' if met else 'NOT MET'}")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="write the times as JSON")
    options = parser.parse_args()

    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{options.size} px, batch {options.batch}, {options.rounds} rounds; {machine}")
    record: dict[str, object] = {"machine": machine, "batch": options.batch, "size": options.size}
    for name in NETWORKS:
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).eval()
        nn.init.normal_([m for m in model.modules() if isinstance(m, nn.Linear)][-1].weight, std=0.1)
        images = torch.randn(options.batch, 3, options.size, options.size)
        calls, notes = contestants(name, model, images)
        wall = measure(calls, options.rounds)
        print(f"\n**{name}**, way {InfoCAM(model)(images[:1]).way}\n")
        print("| method | ms per batch | images/s | × forward pass | × infoCAM | × infoCAM, fast |")
        print("|---|---:|---:|---:|---:|---:|")
        for method in calls:
            median = statistics.median(wall[method])
            ratios = [ratio(wall, method, base)[0] for base in ("forward pass", "infoCAM", FAST)]
            cells = " | ".join(f"{r:.3f}" for r in ratios)
            print(f"| {method} | {1e3 * median:.0f} | {options.batch / median:.1f} | {cells} |")
        said = targets(name, wall)
        print("", *(f"- {line}" for line in [*notes, *said]), sep="\n", flush=True)
        record[name] = {"wall_seconds": wall, "notes": notes, "targets": said}
    if options.output is not None:
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
