"""infoCAM beside the maps of torchcam on one network: boxes, pointing, faithfulness to class and difference.

Localization with maps of the true class: GT-known at the threshold that held-out images chose, MaxBoxAccV2,
and the pointing game (the largest cell's centre lies in the true box). Faithfulness with maps of the
predicted class: torchcam's own deletion (lower is better), insertion and average drop (lower) of the class's
probability, and deletion and insertion of the difference of the logits of the predicted class and the
runner-up, in nats. Deletion ranks by the signed map; the average drop takes every map's positive part. 95 %
intervals are from a bootstrap over images, the same draws for all methods.

    python tests/benchmarks/bench_maps.py                                      drawn birds
    python tests/benchmarks/bench_maps.py --dataset cub-40-photos --set weights=FILE --set stride=32
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from infocam_utils import InfoCAM
from infocam_utils.experiments import localize, second_layer
from infocam_utils.experiments.recipe import network, prepared, recipe
from infocam_utils.localization import boxes_from_maps, iou_with_truth, select_threshold

Maps = Callable[[Tensor, list[int]], Tensor]  # images and classes to (B, h, w)
LEVELS = np.linspace(0, 0.98, 50).tolist()


def methods(model: nn.Module, side: int) -> dict[str, Maps]:
    """Every method as a function of images and classes."""
    from torchcam import methods as peers

    made: dict[str, Maps] = {}
    for name, against in (
        ("CAM", None),
        ("infoCAM, least likely", "least_likely"),
        ("infoCAM, others", "others"),
        ("infoCAM, runner-up", "runner_up"),
    ):
        cam = InfoCAM(model, against)
        made[name] = lambda images, labels, cam=cam: cam(images, labels).maps
    place = second_layer.position_of(model, side)
    layers = ["features"] if place is None else [f"features.{place}", "features"]
    options: dict[str, dict[str, Any]] = {
        name: {} for name in ("GradCAM", "GradCAMpp", "LayerCAM", "ScoreCAM")
    }
    options |= {"FinerCAM": {}} | ({"RefineCAM": {}} if len(layers) > 1 else {})
    for name, given in options.items():
        target = layers if name == "RefineCAM" else "features"
        extractor = getattr(peers, name)(model, target, input_shape=(3, side, side), **given)

        def draw(images: Tensor, labels: list[int], extractor: Any = extractor) -> Tensor:
            with torch.enable_grad(), active(extractor):
                (maps,) = extractor(labels, model(images), normalized=False)
            return maps.detach()

        for hooked in (extractor, getattr(extractor, "base_cam", extractor)):
            hooked.disable_hooks() if hasattr(hooked, "disable_hooks") else None
        made[f"torchcam {name}"] = draw
    return made


@contextlib.contextmanager
def active(extractor: Any):
    """Each works in its own turn only."""
    hooked = getattr(extractor, "base_cam", extractor)
    hooked.enable_hooks()
    try:
        yield
    finally:
        hooked.disable_hooks()


class Given:
    """Maps that are there already, as torchcam's metrics ask for them."""

    def __init__(self, model: nn.Module, maps: Tensor) -> None:
        self.model, self.maps = model, maps

    def __call__(self, *_: Any, **__: Any) -> list[Tensor]:
        return [self.maps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    def _hooks_off(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def faithfulness(model: nn.Module, images: Tensor, logits: Tensor, maps: Tensor) -> dict[str, np.ndarray]:
    """Per image: deletion, insertion and drop of the class and of the difference to the runner-up."""
    from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

    classes = logits.topk(2).indices
    found: dict[str, list[float]] = {}
    positive = maps.clamp_min(0)
    positive = positive / positive.amax((1, 2), keepdim=True).clamp_min(1e-12)
    for i in range(len(images)):
        first, second = classes[i].tolist()
        softmax = {"logits_fn": lambda f: f.softmax(-1)}
        for what, options, asked in (
            ("class", softmax, {"class_idx": [first]}),
            ("difference", {}, {"targets": [lambda f, a=first, b=second: f[a] - f[b]]}),
        ):
            curve = DeletionInsertionMetric(Given(model, maps[i : i + 1]), **options)
            drop = ClassificationMetric(Given(model, positive[i : i + 1]), **options)
            curve.update(images[i : i + 1], **asked)
            drop.update(images[i : i + 1], **asked)
            numbers = curve.summary()
            if what == "class":  # of a difference near 0 the relative drop means nothing
                numbers |= {"drop": drop.summary()["avg_drop"]}
            for key, value in numbers.items():
                found.setdefault(f"{what} {key}", []).append(float(value))
    return {key: np.array(values) for key, values in found.items()}


def interval(values: np.ndarray) -> str:
    """Mean and 95 % bootstrap interval over images."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(2000, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():.3g} [{low:.3g}, {high:.3g}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="minibirds")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="fields of the recipe"
    )
    parser.add_argument(
        "--images", type=int, default=200, help="to choose thresholds on, and as many to score"
    )
    parser.add_argument("--faithful", type=int, default=100, help="of the scored images, for faithfulness")
    parser.add_argument("--output", type=Path, help="write all numbers as JSON")
    options = parser.parse_args()

    changes = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in options.set)}
    how = recipe(options.dataset, options.data_dir, **changes)
    sets = localize.sets(how, options.data_dir, options.images)
    if how.frozen:
        run = localize.evidence(how, 0, sets, region=1, thresholds=2, data_dir=options.data_dir)
        model, model.linear = run.network, run.heads["decayed"]
    else:
        model = network(how, 0, options.data_dir)
    model.requires_grad_(True).eval()
    side = how.geometry.sizes(how.size)[1]
    table: dict[str, dict[str, Any]] = {}
    for name, draw in methods(model, side).items():
        row: dict[str, Any] = {}
        ious, seconds = [], 0.0
        for part in sets[1:]:
            maps = []
            for rows in torch.arange(len(part)).split(16):
                images = prepared(part, rows.tolist(), how)
                start = time.perf_counter()
                maps.append(draw(images, part.labels[rows].tolist()))
                seconds += time.perf_counter() - start
            drawn = torch.cat(maps).float().nan_to_num()
            truth = how.geometry.boxes(part.boxes, part.size)
            ious.append(iou_with_truth(boxes_from_maps(drawn, side, LEVELS), truth))
        hits = ious[1][:, select_threshold(ious[0], LEVELS)] >= 0.5
        row["GT-known, %"] = 100 * hits.double().numpy()
        v2 = [(ious[1] >= c).double() for c in (0.3, 0.5, 0.7)]
        row["V2, %"] = 100 * torch.stack([each[:, each.mean(0).argmax()] for each in v2]).mean(0).numpy()
        cell = drawn.flatten(1).argmax(1)
        centre = torch.stack([cell % drawn.shape[2], cell // drawn.shape[2]], 1) + 0.5
        centre = centre * side / torch.tensor([drawn.shape[2], drawn.shape[1]])
        inside = (centre >= truth[:, :2]).all(1) & (centre < truth[:, 2:]).all(1)
        row["pointing, %"] = 100 * inside.double().numpy()
        images = prepared(sets[2], range(min(options.faithful, len(sets[2]))), how)
        with torch.inference_mode():
            logits = model(images)
        labels = logits.argmax(1).tolist()
        maps = torch.cat([draw(images[i : i + 16], labels[i : i + 16]) for i in range(0, len(images), 16)])
        row |= faithfulness(model, images, logits, maps.float().nan_to_num())
        table[name] = {key: values.tolist() for key, values in row.items()}
        table[name]["images/s"] = (len(sets[1]) + len(sets[2])) / seconds
        print(name, {key: interval(values) for key, values in row.items()}, flush=True)
    keys = [key for key in table["CAM"] if key != "images/s"]
    print(f"\n{options.dataset}, {len(sets[2])} images\n\n| method | {' | '.join(keys)} | images/s |")
    print("|---|" + "---|" * (len(keys) + 1))
    for name, row in table.items():
        cells = [interval(np.array(row[key])) for key in keys]
        print(f"| {name} | {' | '.join(cells)} | {row['images/s']:.1f} |")
    if options.output is not None:
        options.output.write_text(json.dumps(table) + "\n")


if __name__ == "__main__":
    main()
