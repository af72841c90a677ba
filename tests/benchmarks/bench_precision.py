"""bfloat16 beside float32: speed of forward pass and training step, and whether maps and boxes agree.

The second table needs real photographs: a folder `cub-40-photos` in the CUB layout and the state dict of a
MobileNetV2 in $INFOCAM_DATA, named by $INFOCAM_WEIGHTS. Seconds are the best of five, in turns.
"""

import os
import time

import numpy as np
import torch
from torch import nn

from infocam_utils.classifiers.backbones import classifier
from infocam_utils.classifiers.heads import fit_head
from infocam_utils.classifiers.training import PRECISIONS, best_precision, evaluating, pooled_features
from infocam_utils.data.store import Store
from infocam_utils.experiments import localize
from infocam_utils.experiments.recipe import recipe, untrained

COMPARED = PRECISIONS[:2]  # "32-true" and "bf16-mixed"


def speed() -> None:
    print(f"measured to suit this machine: {best_precision()}\n")
    print("| network, 224 px, batches of 32 | forward, ms an image | training step, ms an image |")
    print("|---|---|---|")
    for name in ("mobilenet_v2", "resnet50"):
        model, batch = classifier(name, 200), 32 if name == "mobilenet_v2" else 8
        images, labels = torch.randn(batch, 3, 224, 224), torch.randint(200, (batch,))
        images = images.contiguous(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

        def step(half: bool, model=model, images=images, labels=labels, optimizer=optimizer) -> None:
            model.train()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits = model(images)
            nn.functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

        best = np.full((2, 2), np.inf)
        for _ in range(5):
            for i, precision in enumerate(COMPARED):
                with evaluating(model, "cpu", precision):
                    start = time.perf_counter()
                    model(images)
                    best[0, i] = min(best[0, i], time.perf_counter() - start)
                start = time.perf_counter()
                step(precision != "32-true")
                best[1, i] = min(best[1, i], time.perf_counter() - start)
        cells = [f"{a:.1f} → {b:.1f} ({a / b:.1f} times)" for a, b in 1000 * best / batch]
        print(f"| {name} | {cells[0]} | {cells[1]} |")


def agreement(weights: str) -> None:
    how = recipe("cub-40-photos", weights=weights, stride=32, crop=225, precision="32")
    train, _, test = localize.sets(how)
    model, store, found = untrained(how, train.num_classes, 0), Store(), []
    options = {"geometry": how.geometry, "store": store}
    features = pooled_features(model, train, **options)
    heads = {
        "decayed": fit_head(features, train.labels, train.num_classes, weight_decay=1e-3, optimizer="lbfgs")
    }
    options |= {
        "variants": localize.variants(["decayed"], 3, ["full"]),
        "thresholds": np.linspace(0, 0.98, 50),
    }
    options["prior"] = torch.full((train.num_classes,), 1 / train.num_classes)
    for precision in COMPARED:
        found.append(localize.collect(model, heads, test, **options, precision=precision))
    exact, half = found
    same = (exact.predictions == half.predictions).mean()
    print(f"\n{len(test)} photographs, {weights}; predictions alike: {100 * same:.1f} %")
    print(f"largest difference of a PMI: {np.abs(exact.pmi - half.pmi).max():.3f} nats\n")
    print("| map | boxes that move by more than a pixel, % | GT-known, bf16 − float32, points [95 %] |")
    print("|---|---|---|")
    for variant in exact.variants:
        if variant.method not in localize.MAPS or variant.region > 1:
            continue
        at = exact.position(variant)
        moved = np.abs(exact.official_boxes[at].astype(int) - half.official_boxes[at]).max(1) > 1
        level = exact.hits(variant).mean(0).argmax()
        gap = 100.0 * (half.hits(variant)[:, level].astype(float) - exact.hits(variant)[:, level])
        mean, low, high = localize.bootstrap(gap[None, None])
        words = f"{variant.method} {variant.against or ''}".strip()
        print(f"| {words} | {100 * moved.mean():.1f} | {mean[0]:.2f} [{low[0]:.2f}, {high[0]:.2f}] |")


if __name__ == "__main__":
    speed()
    if weights := os.environ.get("INFOCAM_WEIGHTS"):
        agreement(weights)
