"""The localization experiment: two heads on one network, the ways to get a box, and how good the boxes are.

Adding one vector to every row of the class weights changes no softmax and no infoCAM, but every CAM: that
vector is the gauge. How large it is depends on the optimiser, not on the task. Two heads on the same features
make it visible: one with weight decay, whose rows sum to zero, and one trained by AdamW without.

Sets of images → heads → variants → evidence, a few numbers per image → rows. Thresholds and sizes of boxes
are chosen on held-out images, and two methods are compared on the same images only.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from infocam_utils import cam, localization, official
from infocam_utils.cam import Padding, Rival
from infocam_utils.classifiers.adapt import Classifier
from infocam_utils.classifiers.heads import fit_head, select_decay
from infocam_utils.classifiers.training import evaluating, pooled_features, state_digest
from infocam_utils.data.images import Geometry, ImageSet, crop_start, prepare
from infocam_utils.data.sets import Official, describe, load_images, spread
from infocam_utils.data.splits import half_split, stratified_split
from infocam_utils.data.store import Draft, Store, atomic_write, code_digest, report_progress, tensors
from infocam_utils.experiments import rows as rows_of
from infocam_utils.experiments.recipe import Recipe, check_seeds, training_rows, with_history
from infocam_utils.experiments.second_layer import SecondLayer, forward_both, position_of
from infocam_utils.experiments.second_layer import fit as fit_second_layer
from infocam_utils.experiments.second_layer import product as times_surprise
from infocam_utils.information import Estimate, check_choice, class_prior, pointwise_mutual_information

Sets = tuple[ImageSet, ImageSet, ImageSet]
Method = Literal["cam", "infocam", "spread", "feature_norm", "centre_box", "whole_image"]

CLASS_MAPS = ("cam", "infocam", "spread")  # depend on the head; the other methods are the same for every head
MAPS = (*CLASS_MAPS, "feature_norm")  # have a threshold; the other methods are boxes
FRACTIONS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the image's side, candidates for the centre box
UNITS = 60_000  # IoU is kept as whole 60,000ths, rounded down; the criteria 0.3, 0.5, 0.7 are such numbers
STEPS = 2_000  # of AdamW at least, on sets however small: it moves each weight by 0.001 a step
LARGE = 20_000  # images beyond which a convergent head takes too long


# ---- sets of images and heads


def sets(recipe: Recipe, data_dir: str | Path | None = None, limit: int | None = None) -> Sets:
    """Images to train on, to choose thresholds on, and to score; the last two with boxes.

    A set of images that has a validation split keeps it. Otherwise the labelled test images are split by the
    paper's even/odd rule within each class (2,916 and 2,878 of CUB, 5,000 and 5,000 of Tiny-ImageNet).
    `limit` keeps that many of each of the last two.
    """
    name, options = recipe.dataset, dict[str, Any](size=recipe.size, need_boxes=True)
    train = load_images(name, "train", data_dir, size=recipe.size, limit=recipe.train_limit)
    if describe(name, data_dir).heldout == "val":
        held, test = (load_images(name, s, data_dir, limit=limit, **options) for s in ("val", "test"))
        return train, held, test
    labelled = load_images(name, "test", data_dir, limit=None if limit is None else 2 * limit, **options)
    first, second = half_split(labelled.labels)
    return train, labelled.subset(first), labelled.subset(second)


def gauge_heads(features: Tensor, labels: Tensor, num_classes: int, seed: int) -> dict[str, nn.Linear]:
    """Two linear heads on the same features (N, C): "decayed" and "free".

    Both are trained on a random 80 % of the images of each class, drawn from the seed, so that intervals over
    seeds hold for the choice of images. "decayed": L-BFGS to convergence with the weight decay that predicts
    the other 20 % best. Beyond 20,000 images that takes too long; then "decayed" is an AdamW head put into
    the gauge that decay leads to, by `cam.zero_sum`. "free": AdamW without decay, from PyTorch's usual start.
    """
    rows, unseen = stratified_split(labels, 0.2, seed)
    seen = features[rows], labels[rows], num_classes
    if len(rows) > LARGE:
        # AdamW's decay alone leaves the common vector as large as it was, relative to the rows
        decayed = cam.zero_sum(fit_head(*seen, weight_decay=0.01, epochs=20, lr=1e-3, seed=seed))
    else:
        decay = select_decay(features, labels, num_classes, seed=seed, split=(rows, unseen))
        decayed = fit_head(*seen, weight_decay=decay, optimizer="lbfgs", tolerance=1e-4)
    epochs = max(20, math.ceil(STEPS / math.ceil(len(rows) / 256)))
    return {"decayed": decayed, "free": fit_head(*seen, optimizer="adamw", epochs=epochs, lr=1e-3, seed=seed)}


# ---- ways to get a box


@dataclass(frozen=True)
class Variant:
    """A way to get a box: a map (see `cam.info_cam`), or a box that knows no class.

    `head` is the classifier whose weights make the map and whose predictions count in Top-1, None where the
    box is the same for every head. A centre box is the middle `fraction` of the image's sides. With
    `second_layer` the map is multiplied by the surprise of a finer layer, see `second_layer.product`, and has
    no region sum. Raises ValueError for a combination that does not exist.

    >>> Variant("infocam", "free", "least_likely", region=3).columns()
    {'method': 'infocam', 'head': 'free', 'against': 'least_likely', 'region': 3, 'padding': 'same',
     'second_layer': None}
    """

    method: Method
    head: str | None = None
    against: Rival | None = None
    region: int = 1
    padding: Padding = "same"
    fraction: float = 1.0
    second_layer: bool = False

    def __post_init__(self) -> None:
        check_choice("method", self.method, get_args(Method))
        if (
            (self.against is None) == (self.method == "infocam")
            or (self.region != 1 and self.method not in MAPS)
            or (self.region == 1 and self.padding != "same")
            or (self.fraction != 1 and self.method != "centre_box")
            or (self.second_layer and (self.method not in MAPS or self.region != 1))
        ):
            raise ValueError(
                "only infocam is against a class, only maps have a region sum, only that has a padding other "
                "than 'same', only centre_box has a fraction, and only maps without region sum have a second "
                f"layer; got {self}"
            )

    def columns(self) -> dict[str, Any]:
        """The columns of its rows; None is not applicable."""
        return {
            "method": self.method,
            "head": self.head,
            "against": self.against,
            "region": self.region if self.method in MAPS and not self.second_layer else None,
            "padding": self.padding if self.region > 1 else None,
            "second_layer": "surprise" if self.second_layer else None,
        }


def variants(
    heads: Sequence[str], region: int, paddings: Sequence[Padding] = ("same",), second: bool = False
) -> list[Variant]:
    """CAM, the infoCAMs and the spread of every head, the feature norm, with and without region sums; boxes.

    With `second` also CAM, infoCAM against the least likely class, the spread and the norm times the surprise
    of a second layer.

    >>> [v.against for v in variants(["free"], region=3)][:4]
    [None, None, 'others', 'others']
    """
    sums: list[dict[str, Any]] = [{}] + [{"region": region, "padding": p} for p in paddings if region > 1]
    rivals: tuple[Rival | None, ...] = (None, "others", "least_likely", "runner_up")
    made = [Variant("infocam" if a else "cam", h, a, **s) for h, a, s in product(heads, rivals, sums)]
    made += [Variant("spread", h, **s) for h, s in product(heads, sums)]
    made += [Variant("feature_norm", **s) for s in sums]
    if second:
        plain = [v for v in made if v.region == 1 and v.against in (None, "least_likely")]
        made += [replace(v, second_layer=True) for v in plain]
    return [*made, Variant("whole_image"), *(Variant("centre_box", fraction=f) for f in FRACTIONS)]


def comparisons(methods: Sequence[Variant]) -> list[tuple[Variant, Variant]]:
    """Pairs whose difference is a row: unlike in one thing, of one head, at equal region and padding.

    infoCAM, the spread and the feature norm minus CAM; infoCAM against the least likely class and the spread
    minus the feature norm; every map with the region sum minus the same without; CAM, infoCAM against the
    least likely class, the spread and the feature norm minus the centre box. Maps with a second layer, all
    alike, and each minus CAM and the feature norm with the region sum, the best that these do without one.

    >>> cam, least = Variant("cam", "free"), Variant("infocam", "free", "least_likely")
    >>> comparisons([cam, least]) == [(least, cam)]
    True
    """
    pairs = []
    for first in (m for m in methods if m.method in MAPS):
        seconds = [replace(first, method="cam", against=None)]
        if first.against == "least_likely" or first.method == "spread":
            seconds.append(replace(first, method="feature_norm", against=None))
        seconds.append(replace(first, region=1, padding="same", second_layer=False))
        if first.second_layer:
            sums = [m for m in methods if m.region > 1 and m.head == first.head]
            seconds += [m for m in sums if m.method in ("cam", "feature_norm")]
        if first.against in (None, "least_likely"):
            seconds.append(Variant("centre_box", first.head))
        pairs += [(first, second) for second in seconds if second != first and second in methods]
    return pairs


# ---- evidence: what every image says about every variant


@dataclass(frozen=True, eq=False)
class Evidence:
    """N images, V variants, T thresholds; raises ValueError for parts that do not fit together.

    Boxes are x0 y0 x1 y1, half-open, in pixels of the network's input.
    """

    variants: tuple[Variant, ...]
    heads: tuple[str, ...]
    sizes: tuple[int, int, int]  # sides of the stored image, after resizing, and of the crop
    thresholds: np.ndarray  # (T,) float64, increasing
    ids: np.ndarray  # (N,) int64, the data set's own numbers
    labels: np.ndarray  # (N,) int64
    truth: np.ndarray  # (N, 4) float32, clipped to the crop
    stored_truth: np.ndarray  # (N, 4) float32, in pixels of the stored images
    predictions: np.ndarray  # (heads, N) int64
    pmi: np.ndarray  # (heads, N) float32, estimated PMI at the label, nats
    units: np.ndarray  # (V, N, T) uint16, IoU in 1 / UNITS
    official_boxes: np.ndarray  # (V, N, 4) int16, at the official code's threshold of 0.2

    def __post_init__(self) -> None:
        v, h, n, t = len(self.variants), len(self.heads), len(self.ids), len(self.thresholds)
        shapes = {"labels": (n,), "predictions": (h, n), "pmi": (h, n), "truth": (n, 4)}
        shapes |= {"stored_truth": (n, 4), "units": (v, n, t), "official_boxes": (v, n, 4)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, has {getattr(self, name).shape}")
        if self.units.dtype != np.uint16 or int(self.units.max()) > UNITS:
            raise ValueError(f"units must be uint16 and at most {UNITS}, got {self.units.dtype}")

    def __len__(self) -> int:
        return len(self.ids)

    def methods(self) -> list[Variant]:
        """What is reported: every variant for every head, the centre boxes of all sizes as one."""
        of_heads = [(v, head) for v in self.variants for head in ([v.head] if v.head else self.heads)]
        return list(dict.fromkeys(replace(v, head=head, fraction=1.0) for v, head in of_heads))

    def candidates(self, method: Variant) -> list[Variant]:
        """What held-out images choose from: centre boxes of all sizes, any other method itself."""
        boxes = [v for v in self.variants if v.method == method.method == "centre_box"]
        return boxes or [method]

    def position(self, variant: Variant) -> int:
        """Position of a variant; one that is the same for every head may be asked for with any of them."""
        stored = variant if variant.method in CLASS_MAPS else replace(variant, head=None)
        if stored not in self.variants:
            raise ValueError(f"no {variant} in this evidence; there are {self.variants}")
        return self.variants.index(stored)

    def iou(self, variant: Variant) -> np.ndarray:
        """IoU (N, T) float64, rounded down to whole 60,000ths."""
        return self.units[self.position(variant)] / UNITS

    def hits(self, variant: Variant, criterion: float = 0.5) -> np.ndarray:
        """(N, T) bool: the IoU reaches the criterion."""
        return self.units[self.position(variant)] >= round(criterion * UNITS)

    def save(self, path: str | Path) -> Path:
        """Write one compressed .npz file; a reader sees the old file or the new, never half of one."""
        # Neighbouring thresholds mostly give the same box: differences (modulo 2**16) compress far better.
        steps = np.diff(self.units, axis=2, prepend=np.uint16(0))
        text = json.dumps([asdict(v) for v in self.variants])
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **vars(self) | {"variants": text, "units": steps})
        return atomic_write(path, buffer.getvalue())


def load(path: str | Path) -> Evidence:
    """Read what `Evidence.save` wrote; raises ValueError where it is damaged or something else."""
    content = io.BytesIO(Path(path).read_bytes())
    try:
        with np.load(content, allow_pickle=False) as file:
            parts: dict[str, Any] = dict(file)
        parts |= {name: tuple(parts[name].tolist()) for name in ("heads", "sizes")}
        parts["variants"] = tuple(Variant(**v) for v in json.loads(str(parts["variants"])))
        parts["units"] = np.cumsum(parts["units"], axis=2, dtype=np.uint16)
        return Evidence(**parts)
    except Exception as error:  # what zipfile, zlib and NumPy raise on damage has no common type and no end
        raise ValueError(f"{path} is not a whole evidence file ({error}); collect it again") from error


def quantise(iou: np.ndarray) -> np.ndarray:
    """IoU in [0, 1] as whole 60,000ths, rounded down, uint16: "at least 0.3, 0.5 or 0.7" stays as it was.

    >>> quantise(np.array([0.0, 0.3, 0.499995, 0.5, 2 / 3, 0.7, 1.0])).tolist()
    [0, 18000, 29999, 30000, 40000, 42000, 60000]
    """
    return np.floor(np.asarray(iou, dtype=np.float64) * UNITS).astype(np.uint16)


def collect(
    model: Classifier,
    heads: Mapping[str, nn.Linear],
    images: ImageSet,
    *,
    geometry: Geometry,
    variants: Sequence[Variant],
    thresholds: Sequence[float],
    prior: Tensor,
    store: Store,
    batch_size: int = 16,
    accelerator: str = "auto",
    precision: str = "32-true",
    second: SecondLayer | None = None,
) -> Evidence:
    """Run every image through the network once and score the boxes of all variants at all thresholds.

    Maps are those of the true label, as in the paper: GT-known needs them, and for Top-1 they are the maps of
    the predicted class wherever that can count. The model supplies the features, computed in `precision` (see
    `training.evaluating`), and the pooling; `heads` are linear layers on the pooled features, trained with
    the plain softmax under the class shares `prior` (K,). Boxes are scored in the network's input, to which
    `geometry` leads; `thresholds` (T,) are increasing shares of a map's range. What the store has is not
    collected again. Raises ValueError without images, boxes or heads, and for an unknown head, a variant
    given twice, and thresholds out of order. `second` is what variants with a second layer need.
    """
    if not len(images) or images.boxes is None:
        lacking = "boxes" if len(images) else "images"
        raise ValueError(f"localization needs images with boxes; this set has no {lacking}")
    if not heads or not variants or len(set(variants)) < len(variants):
        given = f"{list(heads)} and {list(variants)}"
        raise ValueError(f"need at least one head and one variant, and no variant twice, got {given}")
    for variant in variants:
        allowed = list(heads) if variant.method in CLASS_MAPS else [None]
        if variant.head not in allowed:
            raise ValueError(f"head must be one of {allowed} for {variant}")
    if second is None and any(variant.second_layer for variant in variants):
        raise ValueError("variants with a second layer need it; pass second=second_layer_of(...)")
    levels = np.array(thresholds, dtype=np.float64)
    if levels.ndim != 1 or not len(levels) or (np.diff(levels) <= 0).any():
        raise ValueError(f"thresholds must be increasing numbers, got {thresholds}")
    resized, side = geometry.sizes(images.size)
    stored_truth = images.boxes.float()
    truth = geometry.boxes(stored_truth, images.size)
    wanted = torch.tensor([*levels, official.official_threshold(0.2)], dtype=torch.float64)

    def make(_: Draft) -> dict[str, np.ndarray]:
        parts = []
        with evaluating(model, accelerator, precision) as device:
            layers = {name: copy.deepcopy(head).float().to(device) for name, head in heads.items()}
            for start in range(0, len(images), batch_size):
                rows = slice(start, start + batch_size)
                labels = images.labels[rows].to(device)
                pixels = prepare(images.pixels(rows).to(device), geometry)  # (B, 3, H, W)
                if second is None:
                    features, distance = model.forward_features(pixels).float(), None  # (B, C, h, w)
                else:
                    middle, features = forward_both(model, second.position, pixels)
                    features = features.float()
                with torch.autocast(device.type, enabled=False):
                    if second is not None:
                        distance = second.distance(middle.float())
                    pooled = model.pool(features)
                    of_heads = {name: (layer.weight, layer(pooled)) for name, layer in layers.items()}
                    boxes = [_boxes(v, features, labels, of_heads, distance, side, wanted) for v in variants]
                    logits = torch.stack([found for _, found in of_heads.values()])  # (heads, B, K)
                    pmi = pointwise_mutual_information(logits, prior, "softmax")
                at_label = pmi.take_along_dim(labels[None, :, None], 2)[..., 0].float().cpu().numpy()
                iou = np.stack([localization.iou_with_truth(b[:, :-1], truth[rows]) for b in boxes])
                at_official = np.stack([b[:, -1] for b in boxes]).astype(np.int16)  # (V, B, 4)
                parts.append((logits.argmax(2).cpu().numpy(), at_label, quantise(iou), at_official))
                report_progress("evidence", start + len(labels), len(images))
        names = ("predictions", "pmi", "units", "official_boxes")
        return {name: np.concatenate(p, 1) for name, p in zip(names, zip(*parts, strict=True), strict=True)}

    key = {
        "images": images.key,
        "network": state_digest(nn.Sequential(model.features, model.pool)),
        "heads": {name: state_digest(head) for name, head in heads.items()},
        "geometry": asdict(geometry),
        "variants": [asdict(v) for v in variants],
        "thresholds": levels.tolist(),
        "prior": prior.tolist(),
        "precision": precision,
        "code": code_digest("experiments.localize"),
    }
    if second is not None:
        parts = (second.mean.numpy().tobytes(), second.whitening.numpy().tobytes())
        key["second"] = [second.position, *(hashlib.sha256(part).hexdigest() for part in parts)]
    measured = store.get("evidence", key, make)
    of_images = (t.numpy() for t in (images.ids, images.labels, truth, stored_truth))
    sizes = (images.size, resized, side)
    return Evidence(tuple(variants), tuple(heads), sizes, levels, *of_images, **measured)


def _boxes(
    variant: Variant,
    features: Tensor,
    labels: Tensor,
    heads: Mapping[str, tuple[Tensor, Tensor]],
    distance: Tensor | None,
    side: int,
    levels: Tensor,
) -> Tensor:
    """Boxes (B, T, 4) of one variant on the CPU, in whole pixels; of each head its weight and its logits."""
    region = variant.region, variant.padding
    if variant.method not in MAPS:  # has no threshold: the same box at each
        box = localization.centre_boxes(len(labels), side, variant.fraction).round()
        return box[:, None].expand(-1, len(levels), -1)
    if variant.head is None:
        maps = cam.region_sum(cam.feature_norm_maps(features), *region)
    elif variant.method == "spread":
        maps = cam.region_sum(cam.spread_maps(features, heads[variant.head][0]), *region)
    else:
        weight, logits = heads[variant.head]
        maps = cam.info_cam(features, weight, labels, variant.against, logits, *region)
    if variant.second_layer and distance is not None:
        maps = times_surprise(maps, distance)
    return localization.boxes_from_maps(maps, side, levels).cpu()


@dataclass(frozen=True, eq=False)
class Run:
    """What a recipe and a seed gave: the network, its heads, and the evidence of both sets of images.

    `history` is the common share of the network's own class weights at the start and after each epoch of
    training, empty for a frozen network.
    """

    seed: int
    network: Classifier
    history: np.ndarray
    heads: Mapping[str, nn.Linear]
    prior: Tensor
    held: Evidence
    scored: Evidence


def second_layer_of(
    model: Classifier, train: ImageSet, *, geometry: Geometry, precision: str, store: Store, limit: int = 600
) -> SecondLayer | None:
    """The second layer of a network, its Gaussian from `limit` training images; None where it has none."""
    with evaluating(model, precision=precision) as device:
        position = position_of(model, geometry.sizes(train.size)[1])
        if position is None:
            return None

        def make(_: Draft) -> dict[str, Tensor]:
            rows = spread(len(train), limit).split(32)
            middles = (
                forward_both(model, position, prepare(train.pixels(r).to(device), geometry))[0] for r in rows
            )
            layer = fit_second_layer(position, middles)
            return {"mean": layer.mean, "whitening": layer.whitening}

        key = {
            "images": train.key,
            "network": state_digest(model.features),
            "geometry": asdict(geometry),
            "precision": precision,
            "limit": limit,
            "code": code_digest("experiments.second_layer"),
        }
        return SecondLayer(position, **tensors(store.get("second_layer", key, make)))


def evidence(
    recipe: Recipe,
    seed: int,
    images: Sets,
    *,
    region: int,
    paddings: Sequence[Padding] = ("same",),
    thresholds: int = 50,
    data_dir: str | Path | None = None,
) -> Run:
    """The whole experiment for one seed: network → features → heads → evidence; from the store what is there.

    `images` are those of `sets`; there are `thresholds` levels, equally spaced on [0, 0.98]. A network that
    is trained has two heads more: "own", its linear layer as training left it, and "own_zero_sum", the same
    classifier in the gauge where the class weights sum to zero.
    """
    train, store = images[0], Store(data_dir)
    if recipe.few is not None:
        train = train.subset(training_rows(recipe, train, seed, data_dir))
    model, history = with_history(recipe, seed, data_dir)
    how: dict[str, Any] = {"geometry": recipe.geometry, "precision": recipe.precision, "store": store}
    heads = gauge_heads(pooled_features(model, train, **how), train.labels, train.num_classes, seed)
    if not recipe.frozen:
        heads |= {"own": model.linear, "own_zero_sum": cam.zero_sum(model.linear)}
    second = second_layer_of(model, train, **how)
    how["variants"] = variants(list(heads), region, paddings, second is not None)
    how["thresholds"] = torch.linspace(0, 0.98, thresholds).tolist()
    how["prior"] = class_prior(train.labels, train.num_classes)
    held, scored = (collect(model, heads, part, **how, second=second) for part in images[1:])
    return Run(seed, model, history, heads, how["prior"], held, scored)


# ---- rows


def chosen(held: Evidence, method: Variant) -> tuple[Variant, int]:
    """The candidate and the index of its threshold that hit most held-out images (GT-known)."""
    levels = held.thresholds.tolist()
    ious = {v: torch.from_numpy(held.iou(v)) for v in held.candidates(method)}
    picks = [(v, localization.select_threshold(iou, levels)) for v, iou in ious.items()]
    return max(picks, key=lambda pick: int(held.hits(pick[0])[:, pick[1]].sum()))


def localized(scored: Evidence, held: Evidence, method: Variant) -> np.ndarray:
    """(N,) bool: images that a method hits (GT-known), as chosen on the held-out ones."""
    _check_alike(scored, held)
    candidate, index = chosen(held, method)
    return scored.hits(candidate)[:, index]


def bootstrap(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, low and high ends (M,) of 95 % intervals of M statistics (M, S, N), over N images and S seeds.

    Percentiles of 2,000 resamples, each of N images and S seeds, both drawn with replacement. The images are
    shared by the seeds, so they are drawn once per resample (a crossed, not a nested, bootstrap); all
    statistics see the same draws. For a paired comparison pass the differences. Raises ValueError for an
    empty table, or one of another shape.

    >>> [ends.round(1).tolist() for ends in bootstrap(np.array([[[100.0, 0.0] * 200]]))]
    [[50.0], [45.0], [55.0]]
    """
    if table.ndim != 3 or not table.size:
        raise ValueError(f"table must be (statistics, seeds, images) and not empty, was {table.shape}")
    count, runs, images = table.shape
    rng = np.random.default_rng(0)
    flat = table.reshape(count * runs, images).astype(np.float64).T
    drawn = []
    for _ in range(20):  # blocks of 100 resamples, so that 10,000 images stay at 8 MB
        weights = rng.multinomial(images, np.full(images, 1 / images), size=100)  # (100, N)
        per_run = (weights @ flat / images).reshape(100, count, runs).swapaxes(0, 1)  # (M, 100, S)
        picked = rng.integers(runs, size=(1, 100, runs))
        drawn.append(np.take_along_axis(per_run, picked, axis=2).mean(2))
    means = table.reshape(count, -1).mean(1)
    low, high = np.quantile(np.concatenate(drawn, 1), [0.025, 0.975], axis=1)
    # Rounding alone can put a constant's mean outside its interval by one bit.
    return means, np.minimum(low, means), np.maximum(high, means)


def rows(
    scored: Sequence[Evidence], held: Sequence[Evidence], seeds: Sequence[int], setting: Mapping[str, Any]
) -> pd.DataFrame:
    """All numbers of an experiment: scores of each seed, then intervals and paired differences over seeds.

    Of each seed: `accuracy` and `mutual_information` (mean PMI estimate) of every head; of every method, at
    the held-out images' choice, `gt_known`, `top1_loc`, `threshold`; chosen on the scored images themselves,
    `oracle_gt_known`, `oracle_top1_loc` and `max_box_acc_v2`. Without seed: `gt_known` and `top1_loc` and
    their differences between the `comparisons`, on the same images, bootstrapped over images and seeds; and
    as `gt_known_all` and `top1_loc_all` over scored and held-out images together, each part by the choice of
    the other. `setting` holds columns of every row, such as `Recipe.columns`. Raises ValueError for different
    images, methods or thresholds, and seeds that repeat or do not pair.
    """
    check_seeds(seeds)
    if not len(scored) == len(held) == len(seeds):
        given = f"{len(scored)}, {len(held)} and {len(seeds)}"
        raise ValueError(f"need one scored and one held-out evidence for each seed, got {given}")
    _check_alike(*scored, *held)
    if any(not np.array_equal(e.ids, part[0].ids) for part in (scored, held) for e in part):
        raise ValueError("all seeds must share images and their order; collect them alike")
    methods = scored[0].methods()
    outcomes = defaultdict[tuple[Variant, str], list[np.ndarray]](list)  # of each seed (N,) bool
    made: list[dict[str, Any]] = []
    for seed, test, other in zip(seeds, scored, held, strict=True):
        correct: dict[str | None, np.ndarray] = {}  # by head (N,)
        held_correct = dict(zip(other.heads, other.predictions == other.labels, strict=True))
        for head, predicted, pmi in zip(test.heads, test.predictions, test.pmi, strict=True):
            correct[head] = predicted == test.labels
            found = Estimate.from_samples(torch.from_numpy(np.array(pmi)))
            of_head = [_share("accuracy", correct[head]), rows_of.information(found)]
            made += [{"seed": seed, "head": head} | row for row in of_head]
        for method in methods:
            candidate, index = chosen(other, method)
            hit, right = test.hits(candidate)[:, index], correct[method.head]
            outcomes[method, "gt_known"].append(hit)
            outcomes[method, "top1_loc"].append(hit & right)
            both = np.concatenate([hit, localized(other, test, method)])
            outcomes[method, "gt_known_all"].append(both)
            both_right = np.concatenate([right, held_correct[str(method.head)]])
            outcomes[method, "top1_loc_all"].append(both & both_right)
            every = np.concatenate([test.hits(v) for v in test.candidates(method)], 1)  # (N, candidates · T)
            v2 = np.mean([_best(test.hits(candidate, c)) for c in (0.3, 0.5, 0.7)], 0)
            exact_v2 = 100 * localization.max_box_acc_v2(torch.from_numpy(test.iou(candidate)))
            of_method = [
                _share("gt_known", hit),
                _share("top1_loc", hit & right),
                _share("oracle_gt_known", _best(every)),
                _share("oracle_top1_loc", _best(every & right[:, None])),
                _share("max_box_acc_v2", v2) | {"value": exact_v2},
            ]
            if method.method in MAPS:
                level = float(test.thresholds[index])
                of_method.append({"metric": "threshold", "unit": "", "value": level})
            made += [method.columns() | {"seed": seed} | row for row in of_method]
    shares = {key: 100.0 * np.stack(of_seeds) for key, of_seeds in outcomes.items()}  # (S, N), in %
    for end in ("", "_all"):
        metrics = [f"{metric}{end}" for metric in ("gt_known", "top1_loc")]
        single = {key: share for key, share in shares.items() if key[1] in metrics}
        pooled = [method.columns() | {"metric": metric, "unit": "%"} for method, metric in single]
        table = list(single.values())
        for first, second in comparisons(methods) if not end else []:
            than = {f"than_{name}": value for name, value in second.columns().items()}
            for metric in metrics:
                pooled.append(first.columns() | than | {"metric": metric, "unit": "points"})
                table.append(shares[first, metric] - shares[second, metric])
        n = table[0].shape[1]
        for columns, value, low, high in zip(pooled, *bootstrap(np.stack(table)), strict=True):
            ends = {"low": low, "high": high, "interval": "bootstrap over images"}
            made.append(columns | {"value": value, "stderr": (high - low) / 3.92, "n": n} | ends)
    return rows_of.frame(made, setting)


def _best(hits: np.ndarray) -> np.ndarray:
    """The column of (N, T) with most hits."""
    return hits[:, hits.mean(0).argmax()]


def exact_pmi(recipe: Recipe, run: Run, data_dir: str | Path | None = None) -> np.ndarray | None:
    """Exact PMI (N,) of the scored images with their labels, nats, under the run's prior; None if unknown."""
    row = describe(recipe.dataset, data_dir)
    if row.exact is None or row.attributes is None:
        return None
    attributes = row.attributes("test", data_dir, len(run.scored))
    exact = row.exact.pointwise_mutual_information(attributes, run.prior).numpy()
    return exact[np.arange(len(exact)), run.scored.labels]


def head_rows(recipe: Recipe, runs: Sequence[Run], data_dir: str | Path | None = None) -> pd.DataFrame:
    """What is said of heads alone: `common_share`, how much of the weights is gauge, for every head and seed.

    Of the head "own" also at the start of training and after each `epoch`.
    Where the data set's exact information is known also `pmi_correlation`, of estimated with exact PMI over
    the scored images. Of method "exact": the number of `classes` and, where known, `mutual_information`.
    """
    made: list[dict[str, Any]] = []
    for run in runs:
        for epoch, share in enumerate(run.history):
            if math.isfinite(share):  # weights that start at zero have none
                about = {"head": "own", "seed": run.seed, "epoch": epoch, "unit": ""}
                made.append(about | {"metric": "common_share", "value": share})
        exact = exact_pmi(recipe, run, data_dir)
        for (name, head), estimated in zip(run.heads.items(), run.scored.pmi, strict=True):
            about = {"head": name, "seed": run.seed, "unit": ""}
            made.append(about | {"metric": "common_share", "value": cam.common_share(head.weight.detach())})
            if exact is not None:
                found, n = float(np.corrcoef(exact, estimated)[0, 1]), len(exact)
                measured = {"value": found, "stderr": (1 - found**2) / math.sqrt(n), "n": n}
                made.append(about | {"metric": "pmi_correlation"} | measured)
    prior, known = runs[0].prior, describe(recipe.dataset, data_dir).exact
    facts = [("classes", "", float(len(prior)))]
    if known is not None:
        facts.append(("mutual_information", "nats", known.mutual_information(prior)))
    made += [rows_of.exact("exact", *fact) for fact in facts]
    return rows_of.frame(made, recipe.columns())


def threshold_transfer(
    scored: Evidence, held: Evidence, method: Variant, setting: Mapping[str, Any]
) -> pd.DataFrame:
    """GT-known against the number of held-out images that chose the threshold, column `images`.

    For each size that there are held-out images for, 200 random subsets choose a threshold: mean over
    draws, and as `low` and `high` 2.5 and 97.5 % of them. The last row, `oracle_gt_known`, is the best
    threshold on the scored images.
    """
    _check_alike(scored, held)
    test = 100 * scored.hits(method).mean(0)  # (T,)
    pool, levels = torch.from_numpy(held.iou(method)), held.thresholds.tolist()
    rng, made = np.random.default_rng(0), []
    about = method.columns() | {"unit": "%", "n": len(scored)}
    sizes = (5, 10, 20, 50, 100, 200, 500, 1000)
    for size in (s for s in sizes if s <= len(held)):
        picked = (torch.from_numpy(rng.choice(len(held), size, replace=False)) for _ in range(200))
        found = test[[localization.select_threshold(pool[rows], levels) for rows in picked]]
        value, (low, high) = found.mean(), np.quantile(found, [0.025, 0.975])
        ends = {"low": min(low, value), "high": max(high, value), "interval": "draws of held-out images"}
        made.append(about | {"metric": "gt_known", "images": size, "value": value} | ends)
    return rows_of.frame([*made, about | {"metric": "oracle_gt_known", "value": test.max()}], setting)


def official_rows(
    scored: Evidence, variant: Variant, quirks: Official, setting: Mapping[str, Any], seed: int
) -> pd.DataFrame:
    """GT-known and Top-1 Loc at the official threshold of 0.2 with each official defect alone, and with all.

    Top-1 is by the predictions of the variant's head. Column `official` names what is switched on: "none",
    "unclamped_iou" (sides + 1 as well), "running_average" (of the running averages), "resize_minus_one"
    (floored shift and no clip as well), "boxes_as_xywh" where the data set's boxes are read so, "all";
    and "inclusive_boxes", not a defect but the convention of the field's evaluator, `official.inclusive_iou`.
    The order of images matters to the running average: it should be the official list's, sorted by class.
    `quirks` are the data set's, see `data.sets`.
    """
    stored, resized, side = scored.sizes
    boxes = torch.from_numpy(np.array(scored.official_boxes[scored.position(variant)])).double()  # (N, 4)
    truth, source = (torch.from_numpy(np.array(t)).double() for t in (scored.truth, scored.stored_truth))
    pixel = torch.tensor([0.0, 0.0, 1.0, 1.0]).double()  # of originals of 64 pixels, where they are misread
    misread = official.official_tiny_boxes(source - pixel * (stored / 64))  # the list's corners are inclusive
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(1, keepdim=True)
    moved = partial(official.official_box_transform, image_size=(stored, stored), resize=resized, crop=side)
    cases = {  # true boxes, whether the IoU is unclamped, whether running averages are averaged
        "none": (truth, False, False),
        "unclamped_iou": (truth, True, False),
        "running_average": (truth, False, True),
        "resize_minus_one": (moved(source), False, False),
        # The right transform, without the clip that the official code lacks.
        "boxes_as_xywh": (misread * (resized / stored) - crop_start(resized, side), False, False),
        "all": (moved(misread if quirks.boxes_as_xywh else source), True, True),
        "inclusive_boxes": (truth, False, False),  # the field's convention, no defect of this code
    }
    if not quirks.boxes_as_xywh:
        del cases["boxes_as_xywh"]
    made, right = [], scored.predictions[scored.heads.index(str(variant.head))] == scored.labels
    for name, (true, unclamped, averaged) in cases.items():
        if unclamped:  # (0, 0, 1, 1) is the official box of an empty map
            iou = official.official_iou(torch.where(empty, pixel, boxes), true)
        elif name == "inclusive_boxes":
            iou = official.inclusive_iou(boxes, true, side)
        else:
            iou = localization.iou_with_truth(boxes[:, None], true)[:, 0]
        known = iou >= 0.5
        for metric, hits in (("gt_known", known), ("top1_loc", known & torch.from_numpy(right))):
            row = _share(metric, hits.numpy())
            if averaged:
                row["value"] = 100 * official.official_running_average(hits, quirks.batch_size)
            made.append(variant.columns() | {"official": name, "seed": seed} | row)
    return rows_of.frame(made, setting)


def gauge_sweep(recipe: Recipe, run: Run, images: Sets, data_dir: str | Path | None = None) -> pd.DataFrame:
    """GT-known with a random vector added to every row of the decayed head's weights; predictions stay.

    One row for each of three random vectors (column `vector`, the seed of `cam.with_common_vector`), each
    length in multiples of the rows' (column `common_length`) and each map: CAM, infoCAM against the others
    and against the least likely class. Thresholds are chosen anew on the held-out images each time.
    """
    turned = {f"{v} {s}": (v, s) for v, s in product((0, 1, 2), (0.0, 0.25, 0.5, 1.0, 2.0, 4.0))}
    heads = {name: cam.with_common_vector(run.heads["decayed"], s, v) for name, (v, s) in turned.items()}
    rivals: tuple[Rival | None, ...] = (None, "others", "least_likely")
    how: dict[str, Any] = {"geometry": recipe.geometry, "precision": recipe.precision}
    how |= {"store": Store(data_dir), "thresholds": run.held.thresholds.tolist(), "prior": run.prior}
    how["variants"] = [Variant("infocam" if a else "cam", h, a) for h, a in product(heads, rivals)]
    held, scored = (collect(run.network, heads, part, **how) for part in images[1:])
    made = []
    for variant in scored.variants:
        vector, length = turned[str(variant.head)]
        about = variant.columns() | {"head": "decayed", "vector": vector, "common_length": length}
        made.append(about | {"seed": run.seed} | _share("gt_known", localized(scored, held, variant)))
    return rows_of.frame(made, recipe.columns())


def gauge_example(
    recipe: Recipe, run: Run, images: Sets, lengths: Sequence[float] = (0.0, 1.0, 4.0), among: int = 300
) -> dict[str, Any]:
    """One scored image under the decayed head and under the same with common vectors of growing length.

    The one `among` the first scored images that CAM and infoCAM against the least likely class both hit as
    trained, that infoCAM still hits with the longest vector, and that CAM then misses by most; the first
    image where there is none. With its `index`, `maps` (2, L, h, w) of both methods, `boxes` (2, L, 4) and
    `iou` (2, L) at the thresholds that held-out images chose as trained, `truth` (4,) and the `probabilities`
    (K,), alike for all lengths.
    """
    heads = [cam.with_common_vector(run.heads["decayed"], length) for length in lengths]
    rivals: tuple[Rival | None, ...] = (None, "least_likely")
    rows = range(min(among, len(images[2])))
    with evaluating(run.network) as device, torch.inference_mode():
        pixels = prepare(images[2].pixels(rows).to(device), recipe.geometry)
        features = run.network.forward_features(pixels).float().cpu()
        pooled = features.mean((2, 3))
    labels, side = images[2].labels[: len(rows)], recipe.geometry.sizes(images[2].size)[1]
    assert images[2].boxes is not None
    truth = recipe.geometry.boxes(images[2].boxes[: len(rows)].float(), images[2].size)
    found, boxes = [], []
    for against in rivals:
        _, level = chosen(run.held, Variant("infocam" if against else "cam", "decayed", against))
        maps = [
            cam.info_cam(features, head.weight.cpu(), labels, against, head.cpu()(pooled)) for head in heads
        ]
        found.append(torch.stack(maps, 1))  # (N, L, h, w)
        at = [run.held.thresholds[level]]
        boxes.append(torch.stack([localization.boxes_from_maps(m, side, at)[:, 0] for m in maps], 1))
    drawn = torch.stack(boxes, 1)  # (N, 2, L, 4)
    iou = localization.iou_with_truth(drawn.flatten(1, 2), truth).view(drawn.shape[:3])
    wanted = (iou[:, :, 0] >= 0.5).all(1) & (iou[:, 0, -1] < 0.5) & (iou[:, 1, -1] >= 0.5)
    i = int(iou[:, 0, -1].where(wanted, 2.0).argmin())
    return {
        "index": i,
        "maps": torch.stack(found, 1)[i],
        "boxes": drawn[i],
        "iou": iou[i],
        "truth": truth[i],
        "probabilities": heads[0](pooled[i]).softmax(0),
    }


def _share(metric: str, outcomes: np.ndarray) -> dict[str, Any]:
    """The mean of (N,) outcomes in [0, 1], in per cent, with its standard error."""
    n = len(outcomes)
    value, stderr = 100 * float(outcomes.mean()), 100 * float(outcomes.std()) / math.sqrt(n)
    return {"metric": metric, "unit": "%", "value": value, "stderr": stderr, "n": n}


def _check_alike(*given: Evidence) -> None:
    first = given[0]
    if any(e.variants != first.variants or not np.array_equal(e.thresholds, first.thresholds) for e in given):
        raise ValueError("all evidence must have the same variants and thresholds; collect it alike")


# ---- for figures


def boxes_at(maps: Tensor, image_size: int, thresholds: Sequence[float]) -> Tensor:
    """The box (N, 4) of each map (N, h, w) at a threshold of its own; x0 y0 x1 y1 in pixels."""
    pairs = zip(maps, thresholds, strict=True)  # the few of a figure
    return torch.cat([localization.boxes_from_maps(m[None], image_size, [t])[0] for m, t in pairs])


def where_they_differ(first: np.ndarray, second: np.ndarray, count: int) -> list[int]:
    """The first `count` images that exactly one of two methods hits, filled up with the first of all.

    >>> where_they_differ(np.array([True, True, False]), np.array([True, False, False]), count=2)
    [1, 0]
    """
    # A stable sort: the images that differ first, each group in its own order.
    return np.argsort(first == second, kind="stable")[:count].tolist()
