"""The localization experiment: two heads on one network, the ways to get a box, and how good the boxes are.

Adding one vector to every row of the class weights changes no softmax and no infoCAM, but every CAM: that
vector is the gauge. How large it is depends on the optimiser, not on the task. Two heads on the same features
make it visible: one with weight decay, whose rows sum to zero, and one trained by AdamW without.

Sets of images → heads → variants → evidence, a few numbers per image → rows. Thresholds and sizes of boxes
are chosen on held-out images, and two methods are compared on the same images only.
"""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from infocam_utils.cam import (
    Against,
    Padding,
    common_share,
    feature_norm_maps,
    info_cam,
    region_sum,
    with_common_vector,
    zero_sum,
)
from infocam_utils.classifiers.adapt import Classifier
from infocam_utils.classifiers.heads import fit_head, select_decay
from infocam_utils.classifiers.training import evaluating, pooled_features, state_digest
from infocam_utils.data.images import Geometry, ImageSet, crop_start, prepare
from infocam_utils.data.sets import Official, describe, load_images
from infocam_utils.data.splits import half_split, stratified_split
from infocam_utils.data.store import Draft, Store, atomic_write, code_digest, report_progress
from infocam_utils.experiments.recipe import Recipe, check_seeds, network, training_rows
from infocam_utils.information import Estimate, check_choice, class_prior, pointwise_mutual_information
from infocam_utils.localization import (
    boxes_from_maps,
    centre_boxes,
    iou_with_truth,
    max_box_acc_v2,
    select_threshold,
)
from infocam_utils.official import (
    official_box_transform,
    official_iou,
    official_running_average,
    official_threshold,
    official_tiny_boxes,
)

Sets = tuple[ImageSet, ImageSet, ImageSet]
Method = Literal["cam", "infocam", "feature_norm", "centre_box", "whole_image"]
Mode = Literal["bilinear", "bicubic"]

MAPS = ("cam", "infocam", "feature_norm")  # have a threshold; the other methods are boxes
CLASS_MAPS = ("cam", "infocam")  # depend on the head; the other methods are the same for every head
METRICS = ("gt_known", "top1_loc")
CRITERIA = (0.3, 0.5, 0.7)  # smallest IoU of a hit; 0.5 unless said otherwise
FRACTIONS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the image's side, candidates for the centre box
UNITS = 60_000  # IoU is kept as whole 60,000ths, rounded down: the CRITERIA are such numbers
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


# ---- ways to get a box


@dataclass(frozen=True)
class Variant:
    """A way to get a box.

    Attributes
    ----------
    method : "cam" and "infocam" (see `cam.info_cam`), or a baseline that knows no class: "feature_norm",
        "whole_image", or "centre_box", the middle `fraction` of the image's sides
    head : the classifier whose weights make the map and whose predictions count in Top-1; None where the box
        is the same for every head
    against, region, padding : see `cam.info_cam`; region=1 is no region sum
    mode : how the map is enlarged

    Raises
    ------
    ValueError : a combination that does not exist

    Examples
    --------
    >>> Variant("infocam", "free", "least_likely", region=3).columns()
    {'method': 'infocam', 'head': 'free', 'against': 'least_likely', 'region': 3, 'padding': 'same'}
    """

    method: Method
    head: str | None = None
    against: Against = None
    region: int = 1
    padding: Padding = "same"
    fraction: float = 1.0
    mode: Mode = "bilinear"

    def __post_init__(self) -> None:
        check_choice("method", self.method, get_args(Method))
        problem = None
        if (self.against is not None) != (self.method == "infocam"):
            problem = "infocam, and nothing else, is against a class"
        elif self.region != 1 and self.method not in MAPS:
            problem = f"only maps have a region sum: {', '.join(MAPS)}"
        elif self.region == 1 and self.padding != "same":
            problem = "without a region sum (region=1) there is nothing to pad; leave padding at 'same'"
        elif self.fraction != 1 and self.method != "centre_box":
            problem = "only centre_box has a fraction"
        if problem:
            raise ValueError(f"{problem}; got {self}")

    def columns(self) -> dict[str, Any]:
        """The columns of its rows; None is not applicable. A mode is named where it is not bilinear."""
        return {
            "method": self.method,
            "head": self.head,
            "against": self.against,
            "region": self.region if self.method in MAPS else None,
            "padding": self.padding if self.region > 1 else None,
            **({} if self.mode == "bilinear" else {"mode": self.mode}),
        }


def variants(heads: Sequence[str], region: int, paddings: Sequence[Padding] = ("same",)) -> list[Variant]:
    """CAM and the infoCAMs of every head, the feature norm, each with and without region sums; boxes.

    >>> [v.against for v in variants(["free"], region=3)][:4]
    [None, None, 'others', 'others']
    """
    if not heads:
        raise ValueError("variants need at least one head by name, got none; gauge_heads makes two")
    sums: list[dict[str, Any]] = [{}] + [{"region": region, "padding": p} for p in paddings if region > 1]
    made = [
        Variant("cam" if against is None else "infocam", head, against, **options)
        for head in heads
        for against in (None, *get_args(get_args(Against)[0]))
        for options in sums
    ]
    made += [Variant("feature_norm", **options) for options in sums]
    made += [Variant("whole_image"), *(Variant("centre_box", fraction=f) for f in FRACTIONS)]
    return made


def comparisons(methods: Sequence[Variant]) -> list[tuple[Variant, Variant]]:
    """Pairs whose difference is a row: unlike in one thing, of one head, at equal region and padding.

    infoCAM and the feature norm minus CAM; infoCAM against the least likely class minus the feature norm;
    every map with the region sum minus the same without; CAM, infoCAM against the least likely class, and the
    feature norm minus the centre box.

    >>> cam, least = Variant("cam", "free"), Variant("infocam", "free", "least_likely")
    >>> comparisons([cam, least]) == [(least, cam)]
    True
    """
    pairs = []
    for first in methods:
        if first.method not in MAPS:
            continue
        norm = replace(first, method="feature_norm", against=None)
        seconds = [replace(first, method="cam", against=None)]
        if first.against == "least_likely":
            seconds.append(norm)
        seconds.append(replace(first, region=1, padding="same"))
        if first.against in (None, "least_likely"):
            seconds.append(Variant("centre_box", first.head, mode=first.mode))
        pairs += [(first, second) for second in seconds if second != first and second in methods]
    return pairs


# ---- evidence: what every image says about every variant


@dataclass(frozen=True, eq=False)
class Evidence:
    """N images, V variants, T thresholds. Boxes are x0 y0 x1 y1, half-open, in pixels of the network's input.

    Raises
    ------
    ValueError : parts that do not fit together
    """

    variants: tuple[Variant, ...]
    heads: tuple[str, ...]
    sizes: tuple[int, int, int]  # sides of the stored image, after resizing, and of the crop
    ids: np.ndarray  # (N,) int64, the data set's own numbers
    labels: np.ndarray  # (N,) int64
    predictions: np.ndarray  # (heads, N) int64
    pmi: np.ndarray  # (heads, N) float32, estimated PMI at the label, nats
    truth: np.ndarray  # (N, 4) float32, clipped to the crop
    stored_truth: np.ndarray  # (N, 4) float32, in pixels of the stored images
    thresholds: np.ndarray  # (T,) float64, increasing
    units: np.ndarray  # (V, N, T) uint16, IoU in 1 / UNITS
    official_boxes: np.ndarray  # (V, N, 4) int16, at the official code's threshold of 0.2

    def __post_init__(self) -> None:
        _check_variants(self.variants, self.heads, self.thresholds)
        v, h, n, t = len(self.variants), len(self.heads), len(self.ids), len(self.thresholds)
        shapes = {"labels": (n,), "predictions": (h, n), "pmi": (h, n), "truth": (n, 4)}
        shapes |= {"stored_truth": (n, 4), "units": (v, n, t), "official_boxes": (v, n, 4)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, has {getattr(self, name).shape}")
        if not n:
            raise ValueError("evidence needs at least one image, got none")
        if self.units.dtype != np.uint16 or int(self.units.max()) > UNITS:
            raise ValueError(f"units must be uint16 and at most {UNITS}, got {self.units.dtype}")

    def __len__(self) -> int:
        return len(self.ids)

    def methods(self) -> dict[Variant, list[Variant]]:
        """What is reported, for every head, and the variants that are candidates for it.

        A centre box's sizes are candidates for one centre box; any other method is its only candidate.
        """
        found: dict[Variant, list[Variant]] = {}
        for variant in self.variants:
            for head in self.heads if variant.head is None else [variant.head]:
                of_head = replace(variant, head=head)
                found.setdefault(replace(of_head, fraction=1.0), []).append(of_head)
        return found

    def position(self, variant: Variant) -> int:
        """Position of a variant; one that is the same for every head may be asked for with any of them."""
        stored = variant if variant.method in CLASS_MAPS else replace(variant, head=None)
        if stored not in self.variants:
            raise ValueError(f"no {variant} in this evidence; there are {self.variants}")
        return self.variants.index(stored)

    def iou(self, variant: Variant) -> np.ndarray:
        """IoU (N, T) float64, rounded down to whole 60,000ths."""
        return self.units[self.position(variant)] / UNITS

    def hits(self, variant: Variant) -> np.ndarray:
        """(N, T) bool: the IoU is at least one half."""
        return self.units[self.position(variant)] >= UNITS // 2

    def correct(self, variant: Variant) -> np.ndarray:
        """(N,) bool: the variant's head predicts the label."""
        if variant.head not in self.heads:
            raise ValueError(f"{variant} needs a head whose predictions count: {', '.join(self.heads)}")
        return self.predictions[self.heads.index(variant.head)] == self.labels

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as arrays, for the store; `from_arrays` is the way back."""
        made = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _TEXT}
        text = {"variants": [asdict(v) for v in self.variants], "heads": self.heads, "sizes": self.sizes}
        return made | {"text": np.frombuffer(json.dumps(text).encode(), dtype=np.uint8)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Evidence:
        """The evidence whose `arrays` these are."""
        given = dict(arrays)
        text = json.loads(given.pop("text").tobytes())
        made = tuple(Variant(**v) for v in text["variants"])
        return cls(made, tuple(text["heads"]), tuple(text["sizes"]), **given)

    def save(self, path: str | Path) -> Path:
        """Write one compressed .npz file; a reader sees the old file or the new, never half of one."""
        # Neighbouring thresholds mostly give the same box: differences (modulo 2**16) compress far better.
        steps = np.diff(self.units, axis=2, prepend=np.uint16(0))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **self.arrays() | {"units": steps})  # type: ignore[arg-type]
        return atomic_write(path, buffer.getvalue())


_TEXT = ("variants", "heads", "sizes")


def load(path: str | Path) -> Evidence:
    """Read what `Evidence.save` wrote, and check that it is whole.

    Raises
    ------
    FileNotFoundError : there is no such file
    ValueError : the file is damaged, is something else, or its parts do not fit together
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no evidence at {path}; collect it first, or check the folder")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        arrays["units"] = np.cumsum(arrays["units"], axis=2, dtype=np.uint16)
        return Evidence.from_arrays(arrays)
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
    thresholds: Sequence[float] | Tensor,
    prior: Tensor,
    batch_size: int = 16,
    accelerator: str = "auto",
    precision: str = "32-true",
    store: Store | None = None,
) -> Evidence:
    """Run every image through the network once and score the boxes of all variants at all thresholds.

    Maps are those of the true label, as in the paper: GT-known needs them, and for Top-1 they are the
    maps of the predicted class wherever that can count.

    Parameters
    ----------
    model : supplies the features and the pooling; its own linear layer counts only if it is among the heads
    heads : linear layers on the pooled features, trained with the plain softmax, by name
    images : with boxes
    geometry : from stored images to the network's input; boxes are scored there
    variants : what to score; maps of a class name a head
    thresholds : (T,) increasing, shares of a map's range
    prior : (K,) class shares of the heads' training images, for the PMI estimate
    precision : of the features, see `training.evaluating`; maps are made in float32
    store : keeps the evidence, and gives it back when it was collected before

    Raises
    ------
    ValueError : no images or boxes, an unknown head, a variant given twice, thresholds out of order
    """
    if not len(images) or images.boxes is None:
        lacking = "no images" if not len(images) else "no boxes"
        raise ValueError(f"localization needs images with boxes; this set has {lacking}")
    levels = torch.as_tensor(thresholds, dtype=torch.float64)
    _check_variants(variants, list(heads), levels.numpy())
    resized, side = geometry.sizes(images.size)
    truth = geometry.boxes(images.boxes.float(), images.size)
    wanted = torch.cat([levels, torch.tensor([official_threshold(0.2)], dtype=torch.float64)])

    def make(_: Draft) -> dict[str, np.ndarray]:
        parts = []
        with evaluating(model, accelerator, precision) as device:
            layers = {name: copy.deepcopy(head).float().to(device) for name, head in heads.items()}
            for start in range(0, len(images), batch_size):
                rows = slice(start, start + batch_size)
                labels = images.labels[rows].to(device)
                pixels = prepare(images.pixels(rows).to(device), geometry)  # (B, 3, H, W)
                features = model.forward_features(pixels).float()  # (B, C, h, w)
                with torch.autocast(device.type, enabled=False):
                    logits = {name: layer(model.pool(features)) for name, layer in layers.items()}
                    weights = {name: layer.weight for name, layer in layers.items()}
                    boxes = [_boxes(v, features, weights, labels, logits, side, wanted) for v in variants]
                    every = torch.stack(list(logits.values()))  # (heads, B, K)
                    pmi = pointwise_mutual_information(every, prior, "softmax")
                index = labels.expand(len(every), -1)[..., None]  # (heads, B, 1)
                iou = np.stack([iou_with_truth(b[:, :-1], truth[rows]).numpy() for b in boxes])  # (V, B, T)
                official = np.stack([b[:, -1].numpy() for b in boxes]).astype(np.int16)  # (V, B, 4)
                at_label = pmi.gather(2, index)[..., 0].float().cpu().numpy()
                parts.append((every.argmax(2).cpu().numpy(), at_label, quantise(iou), official))
                report_progress("evidence", start + len(labels), len(images))
        predictions, pmis, units, official_boxes = (np.concatenate(p, 1) for p in zip(*parts, strict=True))
        assert images.boxes is not None
        return Evidence(
            variants=tuple(variants),
            heads=tuple(heads),
            sizes=(images.size, resized, side),
            ids=images.ids.numpy(),
            labels=images.labels.numpy(),
            predictions=predictions,
            pmi=pmis,
            truth=truth.numpy(),
            stored_truth=images.boxes.float().numpy(),
            thresholds=levels.numpy(),
            units=units,
            official_boxes=official_boxes,
        ).arrays()

    body = nn.Sequential(model.features, model.pool)
    key = {
        "images": images.key,
        "layers": repr(body),  # strides and dilations are not weights
        "network": state_digest(body),
        "heads": {name: state_digest(head) for name, head in heads.items()},
        "geometry": asdict(geometry),
        "variants": [asdict(v) for v in variants],
        "thresholds": levels.tolist(),
        "prior": prior.tolist(),
        "precision": precision,
        "code": code_digest("experiments.localize"),
    }
    return Evidence.from_arrays((Store() if store is None else store).get("evidence", key, make))


def _boxes(
    variant: Variant,
    features: Tensor,
    weights: Mapping[str, Tensor],
    labels: Tensor,
    logits: Mapping[str, Tensor],
    side: int,
    levels: Tensor,
) -> Tensor:
    """Boxes (B, T, 4) of one variant on the CPU, in whole pixels."""
    if variant.method not in MAPS:  # has no threshold: the same box at each
        box = centre_boxes(len(labels), side, variant.fraction).round()
        return box[:, None].repeat(1, len(levels), 1)
    if variant.head is None:
        maps = region_sum(feature_norm_maps(features), variant.region, variant.padding)
    else:
        of_head = weights[variant.head], labels, variant.against, logits[variant.head]
        maps = info_cam(features, *of_head, variant.region, variant.padding)
    return boxes_from_maps(maps, side, levels, variant.mode).cpu()


def _check_variants(variants: Sequence[Variant], heads: Sequence[str], thresholds: np.ndarray) -> None:
    if not variants or len(set(variants)) < len(variants):
        twice = [v for v in variants if list(variants).count(v) > 1]
        raise ValueError(f"at least one variant is needed and none twice, got {twice or 'none'}")
    for v in variants:
        if v.method in CLASS_MAPS and v.head not in heads:
            raise ValueError(f"{v} needs one of the heads {', '.join(heads)}")
        if v.method not in CLASS_MAPS and v.head is not None:
            raise ValueError(f"{v} is the same box for every head; leave head at None")
    if thresholds.ndim != 1 or not len(thresholds) or bool((np.diff(thresholds) <= 0).any()):
        raise ValueError(f"thresholds must be increasing numbers, got {thresholds.tolist()}")


@dataclass(frozen=True, eq=False)
class Run:
    """What a recipe and a seed gave: the network, its two heads, and the evidence of both sets of images."""

    seed: int
    network: Classifier
    heads: Mapping[str, nn.Linear]
    prior: Tensor
    held: Evidence
    scored: Evidence


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

    Parameters
    ----------
    images : of `sets`
    region, paddings : of the region sums
    thresholds : how many, equally spaced on [0, 0.98]
    """
    train, heldout, test = images
    if recipe.few is not None:
        train = train.subset(training_rows(recipe, train, seed, data_dir))
    store, model = Store(data_dir), network(recipe, seed, data_dir)
    features = pooled_features(
        model, train, geometry=recipe.geometry, precision=recipe.precision, store=store
    )
    heads = gauge_heads(features, train.labels, train.num_classes, seed)
    prior = class_prior(train.labels, train.num_classes)
    options: dict[str, Any] = {
        "geometry": recipe.geometry,
        "variants": variants(list(heads), region, paddings),
        "thresholds": torch.linspace(0, 0.98, thresholds),
        "prior": prior,
        "precision": recipe.precision,
        "store": store,
    }
    held, scored = (collect(model, heads, part, **options) for part in (heldout, test))
    return Run(seed, model, heads, prior, held, scored)


# ---- rows


def chosen(held: Evidence, method: Variant) -> tuple[Variant, int]:
    """The candidate and the index of its threshold that hit most held-out images (GT-known).

    Raises
    ------
    ValueError : the evidence has no such method
    """
    candidates = held.methods().get(method)
    if candidates is None:
        raise ValueError(f"no {method} in this evidence; there are {list(held.methods())}")
    levels = held.thresholds.tolist()
    picks = [(v, select_threshold(torch.from_numpy(held.iou(v)), levels)) for v in candidates]
    return max(picks, key=lambda pick: int(held.hits(pick[0])[:, pick[1]].sum()))


def localized(scored: Evidence, held: Evidence, method: Variant, metric: str = "gt_known") -> np.ndarray:
    """(N,) bool: images localized as chosen on the held-out ones ("top1_loc": and predicted right)."""
    check_choice("metric", metric, METRICS)
    _check_same_sweep(scored, held)
    candidate, index = chosen(held, method)
    hit = scored.hits(candidate)[:, index]
    return hit & scored.correct(candidate) if metric == "top1_loc" else hit


def bootstrap(
    table: np.ndarray, resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, low and high ends (M,) of 95 % intervals of M statistics (M, S, N), over N images and S seeds.

    Percentiles of resamples, each of N images and S seeds, both drawn with replacement. The images are shared
    by the seeds, so they are drawn once per resample (a crossed, not a nested, bootstrap); all statistics see
    the same draws. For a paired comparison pass the differences.

    Raises
    ------
    ValueError : an empty table, or one of another shape

    Examples
    --------
    >>> [ends.round(1).tolist() for ends in bootstrap(np.array([[[100.0, 0.0] * 200]]))]
    [[50.0], [45.0], [55.0]]
    """
    if table.ndim != 3 or not table.size:
        raise ValueError(f"table must be (statistics, seeds, images) and not empty, was {table.shape}")
    count, runs, images = table.shape
    rng = np.random.default_rng(seed)
    flat = table.reshape(count * runs, images).astype(np.float64).T
    drawn = np.empty((count, resamples))
    for start in range(0, resamples, 100):  # in blocks, so that 10,000 images stay at 8 MB
        size = min(100, resamples - start)
        weights = rng.multinomial(images, np.full(images, 1 / images), size=size)  # (block, N)
        per_run = (weights @ flat / images).reshape(size, count, runs).swapaxes(0, 1)  # (M, block, S)
        picked = rng.integers(runs, size=(size, runs))[None].repeat(count, 0)
        drawn[:, start : start + size] = np.take_along_axis(per_run, picked, axis=2).mean(2)
    means = table.reshape(count, -1).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    # Rounding alone can put a constant's mean outside its interval by one bit.
    return means, np.minimum(low, means), np.maximum(high, means)


def rows(
    scored: Sequence[Evidence], held: Sequence[Evidence], seeds: Sequence[int], setting: Mapping[str, Any]
) -> pd.DataFrame:
    """All numbers of an experiment: scores of each seed, then intervals and paired differences over seeds.

    Of each seed: `accuracy` and `mutual_information` (mean PMI estimate) of every head; of every method, at
    the held-out images' choice, `gt_known`, `top1_loc`, `threshold`; chosen on the scored images themselves,
    `oracle_gt_known`, `oracle_top1_loc` and `max_box_acc_v2`. Without seed: `gt_known` and `top1_loc` and
    their differences between the `comparisons`, on the same images, bootstrapped over images and seeds.

    Parameters
    ----------
    scored, held : evidence of each seed, all of the same images
    seeds : distinct
    setting : columns of every row, such as `Recipe.columns`

    Raises
    ------
    ValueError : different images, methods or thresholds; seeds that repeat or do not pair
    """
    check_seeds(seeds)
    if not len(scored) == len(held) == len(seeds):
        given = f"{len(scored)}, {len(held)} and {len(seeds)}"
        raise ValueError(f"need one scored and one held-out evidence for each seed, got {given}")
    for one, other in zip(scored, held, strict=True):
        _check_same_sweep(one, other)
    for part in (scored, held):
        if any(not np.array_equal(e.ids, part[0].ids) or e.variants != part[0].variants for e in part):
            raise ValueError("all seeds must share images, their order, and variants; collect them alike")
    methods = list(scored[0].methods())
    picks = [{method: chosen(e, method) for method in methods} for e in held]
    outcomes: dict[tuple[Variant, str], np.ndarray] = {}  # (S, N), in %
    for method in methods:
        hit = np.stack([e.hits(p[method][0])[:, p[method][1]] for e, p in zip(scored, picks, strict=True)])
        right = np.stack([e.correct(method) for e in scored])
        outcomes[method, "gt_known"], outcomes[method, "top1_loc"] = 100.0 * hit, 100.0 * (hit & right)
    made: list[dict[str, Any]] = []
    for s, (seed, test, pick) in enumerate(zip(seeds, scored, picks, strict=True)):
        made += [{"seed": seed} | row for row in _head_rows(test)]
        for method in methods:
            of_method = [_share(metric, outcomes[method, metric][s] / 100) for metric in METRICS]
            of_method += _oracle_rows(test, method, *pick[method])
            made += [method.columns() | {"seed": seed} | row for row in of_method]
    pairs = [(first, second, metric) for first, second in comparisons(methods) for metric in METRICS]
    differences = [outcomes[first, metric] - outcomes[second, metric] for first, second, metric in pairs]
    about = [method.columns() | {"metric": metric, "unit": "%"} for method, metric in outcomes]
    about += [
        first.columns()
        | {f"than_{name}": value for name, value in second.columns().items()}
        | {"metric": metric, "unit": "points"}
        for first, second, metric in pairs
    ]
    means, low, high = bootstrap(np.stack([*outcomes.values(), *differences]))
    for columns, value, least, most in zip(about, means, low, high, strict=True):
        measured = {"value": value, "stderr": (most - least) / 3.92, "n": len(scored[0])}
        made.append(columns | measured | {"low": least, "high": most, "interval": "bootstrap over images"})
    return _frame(made, setting)


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

    Where the data set's exact information is known also `pmi_correlation`, of estimated with exact PMI over
    the scored images, and one row of method "exact" with the `mutual_information`.
    """
    made: list[dict[str, Any]] = []
    for run in runs:
        exact = exact_pmi(recipe, run, data_dir)
        for (name, head), estimated in zip(run.heads.items(), run.scored.pmi, strict=True):
            about = {"head": name, "seed": run.seed, "unit": ""}
            made.append(about | {"metric": "common_share", "value": common_share(head.weight.detach())})
            if exact is not None:
                found, n = float(np.corrcoef(exact, estimated)[0, 1]), len(exact)
                measured = {"value": found, "stderr": (1 - found**2) / math.sqrt(n), "n": n}
                made.append(about | {"metric": "pmi_correlation"} | measured)
    size = float(runs[0].prior.numel())
    about = {"method": "exact", "metric": "classes", "unit": "", "value": size}
    made.append(about | {"stderr": 0.0, "low": size, "high": size, "interval": "exact"})
    known = describe(recipe.dataset, data_dir).exact
    if known is not None:
        value = known.mutual_information(runs[0].prior)
        about = {"method": "exact", "metric": "mutual_information", "unit": "nats", "value": value}
        made.append(about | {"stderr": 0.0, "low": value, "high": value, "interval": "exact"})
    return _frame(made, recipe.columns())


def threshold_transfer(
    scored: Evidence,
    held: Evidence,
    method: Variant,
    setting: Mapping[str, Any],
    *,
    sizes: Sequence[int] = (5, 10, 20, 50, 100, 200, 500, 1000),
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """GT-known against the number of held-out images that chose the threshold, column `images`.

    For each size that there are held-out images for, `draws` random subsets of them choose a threshold: mean
    over draws, and as `low` and `high` 2.5 and 97.5 % of them. The last row, `oracle_gt_known`, is the best
    threshold on the scored images.

    Raises
    ------
    ValueError : no size between 1 and the number of held-out images, a method that the evidence lacks
    """
    _check_same_sweep(scored, held)
    usable = [size for size in sizes if size <= len(held)]
    if not usable or min(usable) < 1:
        raise ValueError(f"sizes must lie in 1..{len(held)}, the held-out images, got {list(sizes)}")
    test = 100 * scored.hits(method).mean(0)  # (T,)
    pool, levels = torch.from_numpy(held.iou(method)), held.thresholds.tolist()
    rng, made = np.random.default_rng(seed), []
    about = method.columns() | {"unit": "%", "n": len(scored)}
    for size in usable:
        picked = (torch.from_numpy(rng.choice(len(held), size, replace=False)) for _ in range(draws))
        found = test[[select_threshold(pool[rows], levels) for rows in picked]]
        value, (low, high) = found.mean(), np.quantile(found, [0.025, 0.975])
        ends = {"low": min(low, value), "high": max(high, value), "interval": "draws of held-out images"}
        made.append(about | {"metric": "gt_known", "images": size, "value": value} | ends)
    return _frame([*made, about | {"metric": "oracle_gt_known", "value": test.max()}], setting)


def official_rows(
    scored: Evidence, variant: Variant, quirks: Official, setting: Mapping[str, Any], seed: int
) -> pd.DataFrame:
    """GT-known at the official threshold of 0.2 with each defect of the official code alone, and with all.

    Column `official` names what is switched on: "none", "unclamped_iou" (sides + 1 as well),
    "running_average" (of the running averages), "resize_minus_one" (floored shift and no clip as well),
    "boxes_as_xywh" where the data set's boxes are read so, "all". The order of images matters to the running
    average: it should be the official list's, sorted by class. `quirks` are the data set's, see `data.sets`.
    """
    stored, resized, side = scored.sizes
    boxes = torch.from_numpy(np.array(scored.official_boxes[scored.position(variant)])).double()  # (N, 4)
    truth = torch.from_numpy(np.array(scored.truth)).double()
    source = torch.from_numpy(np.array(scored.stored_truth)).double()
    pixel = torch.tensor([0.0, 0.0, 1.0, 1.0]).double()  # of originals of 64 pixels, where they are misread
    misread = official_tiny_boxes(source - pixel * (stored / 64))  # the list's corners are inclusive
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(1, keepdim=True)

    def shifted(given: Tensor) -> Tensor:
        return official_box_transform(given, (stored, stored), resized, side)

    def right(true: Tensor) -> Tensor:
        return iou_with_truth(boxes[:, None], true)[:, 0] >= 0.5

    def unclamped(true: Tensor) -> Tensor:  # (0, 0, 1, 1) is the official box of an empty map
        return official_iou(torch.where(empty, pixel, boxes), true) >= 0.5

    hits = {"none": right(truth), "unclamped_iou": unclamped(truth), "running_average": right(truth)}
    hits["resize_minus_one"] = right(shifted(source))
    if quirks.boxes_as_xywh:
        # The right transform, without the clip that the official code lacks.
        hits["boxes_as_xywh"] = right(misread * (resized / stored) - crop_start(resized, side))
    hits["all"] = unclamped(shifted(misread if quirks.boxes_as_xywh else source))
    made = []
    for name, hit in hits.items():
        row = _share("gt_known", hit.numpy())
        if name in ("running_average", "all"):
            row["value"] = 100 * official_running_average(hit, quirks.batch_size)
        made.append(variant.columns() | {"official": name, "seed": seed} | row)
    return _frame(made, setting)


def gauge_sweep(
    recipe: Recipe,
    run: Run,
    images: Sets,
    *,
    head: str = "decayed",
    lengths: Sequence[float] = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0),
    vectors: Sequence[int] = (0, 1, 2),
    against: Sequence[Against] = (None, "others", "least_likely"),
    data_dir: str | Path | None = None,
) -> pd.DataFrame:
    """GT-known with a random vector added to every row of a head's weights; its predictions stay the same.

    One row for each of the random `vectors` (seeds of `cam.with_common_vector`, column `vector`), each of the
    `lengths` in multiples of the rows' (column `common_length`) and each map. Thresholds are chosen anew on
    the held-out images each time.
    """
    _, heldout, test = images
    turned = [(vector, length) for vector in vectors for length in lengths]
    heads = {str(i): with_common_vector(run.heads[head], s, v) for i, (v, s) in enumerate(turned)}
    options: dict[str, Any] = {
        "geometry": recipe.geometry,
        "variants": [Variant("cam" if a is None else "infocam", i, a) for i in heads for a in against],
        "thresholds": run.held.thresholds.tolist(),
        "prior": run.prior,
        "precision": recipe.precision,
        "store": Store(data_dir),
    }
    held, scored = (collect(run.network, heads, part, **options) for part in (heldout, test))
    made = []
    for variant in scored.variants:
        vector, length = turned[int(str(variant.head))]
        about = variant.columns() | {"head": head, "vector": vector, "common_length": length}
        made.append(about | {"seed": run.seed} | _share("gt_known", localized(scored, held, variant)))
    return _frame(made, recipe.columns())


def _head_rows(scored: Evidence) -> list[dict[str, Any]]:
    made = []
    for head, predicted, pmi in zip(scored.heads, scored.predictions, scored.pmi, strict=True):
        found = Estimate.from_samples(torch.from_numpy(np.array(pmi)))
        made.append({"head": head} | _share("accuracy", predicted == scored.labels))
        about = {"head": head, "metric": "mutual_information", "unit": "nats"}
        made.append(about | {"value": found.value, "stderr": found.stderr, "n": found.n})
    return made


def _oracle_rows(scored: Evidence, method: Variant, candidate: Variant, index: int) -> list[dict[str, Any]]:
    hit = np.concatenate([scored.hits(v) for v in scored.methods()[method]], 1)  # (N, candidates * T)
    right = hit & scored.correct(method)[:, None]
    made = [
        _share("oracle_gt_known", hit[:, hit.mean(0).argmax()]),
        _share("oracle_top1_loc", right[:, right.mean(0).argmax()]),
    ]
    units = scored.units[scored.position(candidate)]
    at_best = [at[:, at.mean(0).argmax()] for at in (units >= round(c * UNITS) for c in CRITERIA)]
    v2 = _share("max_box_acc_v2", np.mean(at_best, 0))
    made.append(v2 | {"value": 100 * max_box_acc_v2(torch.from_numpy(scored.iou(candidate)))})
    if method.method in MAPS:
        made.append({"metric": "threshold", "unit": "", "value": float(scored.thresholds[index])})
    return made


def _share(metric: str, outcomes: np.ndarray) -> dict[str, Any]:
    """The mean of (N,) outcomes in [0, 1], in per cent, with its standard error."""
    n = len(outcomes)
    value, stderr = 100 * float(outcomes.mean()), 100 * float(outcomes.std()) / math.sqrt(n)
    return {"metric": metric, "unit": "%", "value": value, "stderr": stderr, "n": n}


def _frame(rows: Iterable[Mapping[str, Any]], setting: Mapping[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame([{**setting, **row} for row in rows])
    whole = [c for c in ("seed", "n", "region", "than_region", "images", "vector") if c in frame]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def _check_same_sweep(scored: Evidence, held: Evidence) -> None:
    if not np.array_equal(scored.thresholds, held.thresholds) or scored.variants != held.variants:
        raise ValueError(
            "scored and held-out evidence need the same variants and thresholds; collect them alike"
        )


# ---- for figures


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
