"""The localization experiment: heads that differ in gauge alone, the map variants, the sets of images.

Adding one vector to every row of the class weights changes no softmax and no infoCAM, but every CAM: that
vector is the gauge. How large it is depends on the optimiser, not on the task. Two heads on the same features
make it visible: one with weight decay, whose rows sum to zero, and one trained by AdamW without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from infocam_utils.cam import Padding
from infocam_utils.datasets import load_images
from infocam_utils.evidence import Evidence, Variant
from infocam_utils.heads import fit_head
from infocam_utils.images import ImageSet
from infocam_utils.localization import boxes_from_maps, localization_accuracy
from infocam_utils.protocols import select_decay
from infocam_utils.splits import half_split, stratified_split

AGAINST: dict[str, Literal["others", "least_likely", "runner_up"] | None] = {
    "cam": None, "others": "others", "least_likely": "least_likely", "runner_up": "runner_up",
}  # fmt: skip
FRACTIONS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
STEPS = 2_000  # of AdamW at least, on sets however small: it moves each weight by 0.001 a step
LARGE = 20_000  # images beyond which a convergent head takes too long


def localization_sets(
    dataset: str, data_dir: str | Path | None = None, *, size: int | None = None, limit: int | None = None,
    train_limit: int | None = None,
) -> tuple[ImageSet, ImageSet, ImageSet]:  # fmt: skip
    """Images to train on, to choose thresholds on, and to score; the last two with boxes.

    Drawn birds have a set for each. Of photographs the labelled test images are split by the paper's even/odd
    rule within each class (2,916 and 2,878 of CUB, 5,000 and 5,000 of Tiny-ImageNet). `limit` keeps that many
    of each of the last two, `train_limit` of the first.
    """
    train = load_images(dataset, "train", data_dir, size=size, limit=train_limit)
    if dataset == "minibirds":
        heldout, test = (load_images(dataset, s, data_dir, size=size, limit=limit) for s in ("val", "test"))
        return train, heldout, test
    whole = None if limit is None else 2 * limit
    labelled = load_images(dataset, "test", data_dir, size=size, limit=whole, need_boxes=True)
    first, second = half_split(labelled.labels)
    return train, labelled.subset(first), labelled.subset(second)


def gauge_heads(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> dict[str, nn.Linear]:
    """Two linear heads on the same features (N, C): "decayed" and "free".

    Both are trained on a random 80 % of the images of each class, drawn from the seed, so that intervals over
    seeds hold for the choice of images. "decayed": L-BFGS to convergence with the weight decay that predicts
    the other 20 % best. Beyond 20,000 images that takes too long; then "decayed" is an AdamW head put into
    the gauge that decay leads to, by `zero_sum`. "free": AdamW without decay, from PyTorch's usual random
    start.
    """
    rows, unseen = stratified_split(labels, 0.2, seed)
    seen = features[rows], labels[rows], num_classes
    if len(rows) > LARGE:
        # AdamW's decay alone leaves the common vector as large as it was, relative to the rows
        decayed = zero_sum(fit_head(*seen, weight_decay=0.01, epochs=20, lr=1e-3, seed=seed))
    else:
        decay = select_decay(features, labels, num_classes, seed=seed, split=(rows, unseen))
        decayed = fit_head(*seen, weight_decay=decay, optimizer="lbfgs", tolerance=1e-4)
    epochs = max(20, math.ceil(STEPS / math.ceil(len(rows) / 256)))
    return {"decayed": decayed, "free": fit_head(*seen, optimizer="adamw", epochs=epochs, lr=1e-3, seed=seed)}


def common_share(weight: Tensor) -> float:
    """Norm of the mean row over the root mean square norm of the rows (K, C): how much of W is gauge.

    0 where the rows sum to zero, 1 where all are the same.

    >>> common_share(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), common_share(torch.ones(3, 2))
    (0.0, 1.0)
    """
    return float(weight.mean(0).norm() / weight.square().sum(1).mean().sqrt())


def zero_sum(head: nn.Linear) -> nn.Linear:
    """The same classifier in the gauge where the rows sum to zero: their mean is taken from each of them.

    >>> head = zero_sum(nn.Linear(3, 4))
    >>> bool(head.weight.sum(0).abs().max() < 1e-6)
    True
    """
    moved = nn.Linear(head.in_features, head.out_features).to(head.weight)
    with torch.no_grad():
        moved.weight.copy_(head.weight - head.weight.mean(0))
        moved.bias.copy_(head.bias)
    return moved.requires_grad_(False)


def with_common_vector(head: nn.Linear, scale: float, seed: int = 0) -> nn.Linear:
    """A head that predicts the same, with one random vector added to every row of its weights.

    Its length is `scale` times the root mean square norm of the rows. All logits of an image move by the same
    amount, so the softmax stays as it was.
    """
    weight = head.weight.detach()
    vector = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(seed)).to(weight)
    vector *= scale * weight.square().sum(1).mean().sqrt() / vector.norm()
    moved = nn.Linear(weight.shape[1], weight.shape[0]).to(weight)
    with torch.no_grad():
        moved.weight.copy_(weight + vector)
        moved.bias.copy_(head.bias)
    return moved.requires_grad_(False)


def variants(heads: Sequence[str], region: int, paddings: Sequence[Padding] = ("same",)) -> list[Variant]:
    """CAM and the three infoCAMs of every head, plain and with the region sum, and class-agnostic baselines.

    Names are ``<head>/<against>``, with ``+<padding>`` for a region sum: "free/least_likely+same". Baselines:
    "feature_norm", the same with the region sum, "whole_image" and "centre_<per cent of the side>".

    >>> [v.name for v in variants(["free"], region=3)][:4]
    ['free/cam', 'free/cam+same', 'free/others', 'free/others+same']
    """
    if not heads:
        raise ValueError("variants need at least one head by name, got none; gauge_heads makes two")
    made = []
    for head in heads:
        for name, against in AGAINST.items():
            made.append(Variant(f"{head}/{name}", head, against))
            made += [Variant(f"{head}/{name}+{p}", head, against, region, p) for p in paddings]
    first = heads[0]  # whose predictions stand for the baselines' Top-1
    made.append(Variant("feature_norm", first, kind="feature_norm"))
    made += [Variant(f"feature_norm+{p}", first, None, region, p, "feature_norm") for p in paddings]
    made.append(Variant("whole_image", first, kind="centre", fraction=1.0))
    made += [Variant(f"centre_{round(100 * f)}", first, kind="centre", fraction=f) for f in FRACTIONS]
    return made


def best_centre(heldout: Evidence) -> str:
    """The name of the centre box that hits most held-out images."""
    names = [f"centre_{round(100 * f)}" for f in FRACTIONS]
    scores = [localization_accuracy(torch.from_numpy(heldout.iou(n))).gt_known[0] for n in names]
    return names[int(torch.stack(scores).argmax())]


def boxes_at(maps: Tensor, image_size: int, thresholds: Sequence[float]) -> Tensor:
    """The box (N, 4) of each map (N, h, w) at a threshold of its own; x0 y0 x1 y1 in pixels."""
    made = [boxes_from_maps(m[None], image_size, [t])[0, 0] for m, t in zip(maps, thresholds, strict=True)]
    return torch.stack(made)  # a loop over the few images of a figure


def where_they_differ(first: np.ndarray, second: np.ndarray, count: int) -> list[int]:
    """The first `count` images that exactly one of two methods hits, filled up with the first of all.

    >>> where_they_differ(np.array([True, True, False]), np.array([True, False, False]), count=2)
    [1, 0]
    """
    differ = np.flatnonzero(first != second).tolist()
    return (differ + [i for i in range(len(first)) if i not in set(differ)])[:count]
