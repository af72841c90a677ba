"""The localization experiment: heads that differ in gauge alone, the map variants, the sets of images.

Adding one vector to every row of the class weights changes no softmax and no infoCAM, but every CAM: that
vector is the gauge. How large it is depends on the optimiser, not on the task. Two heads on the same features
make it visible: one with weight decay, whose rows sum to zero, and one trained by AdamW without.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infocam_utils.cam import zero_sum, Against, Padding, feature_norm_maps, info_cam, region_sum
from infocam_utils.classifiers.adapt import Classifier
from infocam_utils.classifiers.heads import fit_head
from infocam_utils.classifiers.training import evaluating
from infocam_utils.data.images import Geometry, ImageSet, crop_start, prepare
from infocam_utils.data.sets import load_images
from infocam_utils.data.splits import half_split, stratified_split
from infocam_utils.data.store import atomic_write, report_progress
from infocam_utils.experiments.recipe import select_decay
from infocam_utils.information import Kind, pointwise_mutual_information
from infocam_utils.localization import (
    boxes_from_maps,
    centre_boxes,
    iou_with_truth,
    localization_accuracy,
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
from infocam_utils.reproduce.results import Record, bootstrap

UNITS = 60_000  # IoU is kept as whole 60,000ths, rounded down: 0.3, 0.5 and 0.7 are such numbers


@dataclass(frozen=True)
class Variant:
    """A way to get a box; `head` names the classifier whose weights and predictions it uses.

    `kind` is "cam" (CAM and the infoCAM family, see `cam.info_cam`), or a baseline that knows no class:
    "feature_norm", or "centre", the middle `fraction` of the image (1.0: the whole image).
    """

    name: str
    head: str
    against: Against = None
    region: int = 1
    padding: Padding = "same"
    kind: Literal["cam", "feature_norm", "centre"] = "cam"
    fraction: float = 1.0
    mode: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True, eq=False)
class Evidence:
    """N images, V variants, T thresholds. Boxes are x0 y0 x1 y1, half-open, in pixels of the network's input.

    Examples
    --------
    >>> rows = example_evidence()
    >>> rows.iou("CAM")  # two images, three thresholds
    array([[0.75, 0.5 , 0.25],
           [0.5 , 0.5 , 1.  ]])
    >>> rows.correct("CAM")
    array([ True, False])
    """

    variants: tuple[Variant, ...]
    heads: tuple[str, ...]
    ids: np.ndarray  # (N,) int64, the data set's own numbers
    labels: np.ndarray  # (N,) int64
    predictions: np.ndarray  # (heads, N) int64
    pmi: np.ndarray  # (heads, N) float32, estimated PMI at the label, nats
    truth: np.ndarray  # (N, 4) float32, clipped to the crop
    thresholds: np.ndarray  # (T,) float64, increasing
    units: np.ndarray  # (V, N, T) uint16, IoU in 1 / UNITS
    box_thresholds: np.ndarray  # (P,) float64
    boxes: np.ndarray  # (V, N, P, 4) int16
    stored_boxes: np.ndarray  # (N, 4) float32, truth in pixels of the stored images
    sizes: tuple[int, int, int]  # sides of the stored image, after resizing, and of the crop

    def __post_init__(self) -> None:
        v, h, n = len(self.variants), len(self.heads), len(self.ids)
        t, p = len(self.thresholds), len(self.box_thresholds)
        expected = {"labels": (n,), "predictions": (h, n), "pmi": (h, n), "truth": (n, 4), "units": (v, n, t),
                    "boxes": (v, n, p, 4), "stored_boxes": (n, 4)}  # fmt: skip
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, has {getattr(self, name).shape}")
        if self.units.dtype != np.uint16 or (self.units.size and self.units.max() > UNITS):
            raise ValueError(f"units must be uint16 and at most {UNITS}, got {self.units.dtype}")
        _check_variants(self.variants, self.heads, self.thresholds)

    def __len__(self) -> int:
        return len(self.ids)

    def index(self, variant: str) -> int:
        """Position of a variant by its name."""
        names = [v.name for v in self.variants]
        if variant not in names:
            raise ValueError(f"no variant {variant!r}; there are {', '.join(names)}")
        return names.index(variant)

    def iou(self, variant: str) -> np.ndarray:
        """IoU (N, T) float64 of a variant, rounded down to whole 60,000ths."""
        return self.units[self.index(variant)] / UNITS

    def correct(self, variant: str) -> np.ndarray:
        """(N,) whether the variant's head predicts the label."""
        head = self.heads.index(self.variants[self.index(variant)].head)
        return self.predictions[head] == self.labels

    def subset(self, rows: np.ndarray | Sequence[int]) -> Evidence:
        """The evidence of some images, by position; for example one half of the paper's even/odd split."""
        rows = np.asarray(rows)
        first = {name: getattr(self, name)[rows] for name in ("ids", "labels", "truth", "stored_boxes")}
        second = {name: getattr(self, name)[:, rows] for name in ("predictions", "pmi", "units", "boxes")}
        return replace(self, **first, **second)

    def save(self, path: str | Path) -> Path:
        """Write one compressed .npz file; a reader sees the old file or the new, never half of one."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _TEXT}
        # Neighbouring thresholds mostly give the same box: differences (modulo 2**16) compress far better.
        arrays["units"] = np.diff(self.units, axis=2, prepend=np.uint16(0))
        text = {"variants": [asdict(v) for v in self.variants], "heads": self.heads, "sizes": self.sizes}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, text=np.array(json.dumps(text)), **arrays)
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
        text = json.loads(str(arrays.pop("text")))
        arrays["units"] = np.cumsum(arrays["units"], axis=2, dtype=np.uint16)
        variants = tuple(Variant(**v) for v in text["variants"])
        return Evidence(variants, tuple(text["heads"]), sizes=tuple(text["sizes"]), **arrays)
    except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a whole evidence file ({error}); collect it again") from error


def quantise(iou: np.ndarray) -> np.ndarray:
    """IoU in [0, 1] as whole 60,000ths, rounded down, uint16: "at least 0.3, 0.5 or 0.7" stays as it was.

    >>> quantise(np.array([0.0, 0.3, 0.5, 2 / 3, 0.7, 1.0])).tolist()
    [0, 18000, 30000, 40000, 42000, 60000]
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
    kind: Kind = "softmax",
    box_thresholds: Sequence[float] | None = None,
    batch_size: int = 16,
    accelerator: str = "auto",
) -> Evidence:
    """Run every image through the network once and score the boxes of all variants at all thresholds.

    Maps are those of the true label, as in the paper: GT-known needs them, and for Top-1 they are the
    maps of the predicted class wherever that can count.

    Parameters
    ----------
    model : supplies the features and the pooling; its own linear layer counts only if it is among the heads
    heads : linear layers on the pooled features, by name
    images : with boxes
    geometry : from stored images to the network's input; boxes are scored there
    variants : what to score; each names a head
    thresholds : (T,) increasing, shares of a map's range
    prior, kind : of the PMI estimate, see `information.pointwise_mutual_information`
    box_thresholds : where the boxes themselves are kept; by default the official code's 0.2

    Raises
    ------
    ValueError : no images or boxes, an unknown head, variants of the same name, thresholds out of order
    """
    if not len(images) or images.boxes is None:
        raise ValueError("localization needs images with boxes; this set has "
                         f"{'no images' if not len(images) else 'no boxes'}")  # fmt: skip
    levels = torch.as_tensor(thresholds, dtype=torch.float64)
    kept = torch.tensor(box_thresholds or [official_threshold(0.2)], dtype=torch.float64)
    _check_variants(variants, list(heads), levels.numpy())
    resized, side = geometry.sizes(images.size)
    truth = geometry.boxes(images.boxes.float(), images.size)
    predictions, pmi, units, boxes = [], [], [], []
    with evaluating(model, accelerator) as device:
        layers = {name: (h.weight.detach().to(device), h.bias) for name, h in heads.items()}
        for start in range(0, len(images), batch_size):
            rows = slice(start, start + batch_size)
            labels = images.labels[rows].to(device)
            pixels = prepare(images.pixels(rows).to(device), geometry)  # (B, 3, H, W)
            features = model.forward_features(pixels)  # (B, C, h, w)
            pooled = model.pool(features)  # (B, C)
            logits = {
                name: F.linear(pooled, w, None if b is None else b.detach().to(device))
                for name, (w, b) in layers.items()
            }
            predictions.append(torch.stack([g.argmax(1) for g in logits.values()]).cpu())  # (heads, B)
            at_label = [pointwise_mutual_information(g, prior, kind).gather(1, labels[:, None])[:, 0]
                        for g in logits.values()]  # fmt: skip
            pmi.append(torch.stack(at_label).float().cpu())
            found = torch.stack(
                [
                    _boxes(
                        v,
                        features,
                        layers[v.head][0],
                        labels,
                        logits[v.head],
                        side,
                        torch.cat([levels, kept]),
                    )
                    for v in variants
                ]
            ).cpu()  # (V, B, T + P, 4)
            iou = torch.stack([iou_with_truth(b, truth[rows]) for b in found[:, :, : len(levels)]])
            units.append(quantise(iou.numpy()))
            boxes.append(found[:, :, len(levels) :].numpy().astype(np.int16))
            report_progress("evidence", start + len(labels), len(images))
    return Evidence(
        tuple(variants), tuple(heads), images.ids.numpy(), images.labels.numpy(), torch.cat(predictions,
        1).numpy(), torch.cat(pmi, 1).numpy(), truth.numpy(), levels.numpy(), np.concatenate(units, 1),
        kept.numpy(), np.concatenate(boxes, 1), images.boxes.float().numpy(), (images.size, resized,
        side),
    )  # fmt: skip


def _boxes(
    variant: Variant,
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    logits: Tensor,
    side: int,
    levels: Tensor,
) -> Tensor:
    """Boxes (B, T, 4) of one variant, in whole pixels."""
    if variant.kind == "centre":  # has no threshold: the same box at each
        return centre_boxes(len(labels), side, variant.fraction).round()[:, None].repeat(1, len(levels), 1)
    if variant.kind == "feature_norm":
        maps = region_sum(feature_norm_maps(features), variant.region, variant.padding)
    else:
        maps = info_cam(features, weight, labels, variant.against, logits, variant.region, variant.padding)
    return boxes_from_maps(maps, side, levels, variant.mode).cpu()


def _check_variants(variants: Sequence[Variant], heads: Sequence[str], thresholds: np.ndarray) -> None:
    names = [v.name for v in variants]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"variants need names of their own and at least one is needed, got {names}")
    for v in variants:
        if v.head not in heads:
            raise ValueError(f"variant {v.name!r} uses head {v.head!r}; the heads are {', '.join(heads)}")
    if thresholds.ndim != 1 or not len(thresholds) or bool((np.diff(thresholds) <= 0).any()):
        raise ValueError(f"thresholds must be increasing numbers, got {thresholds.tolist()}")


def example_evidence() -> Evidence:
    """Two images, one variant: for doctests and for a first look at the format."""
    truth = np.array([[0, 0, 4, 4], [0, 0, 4, 4]], dtype=np.float32)
    return Evidence(
        (Variant("CAM", "head"),), ("head",), np.array([7, 9]), np.array([0, 1]), np.array([[0, 0]]),
        np.zeros((1, 2), dtype=np.float32), truth, np.array([0.2, 0.4, 0.6]),
        quantise(np.array([[[0.75, 0.5, 0.25], [0.5, 0.5, 1.0]]])), np.array([0.2]),
        np.array([[[[0, 0, 4, 3]], [[0, 0, 4, 2]]]], dtype=np.int16), truth, (4, 4, 4),
    )  # fmt: skip


METRICS = ("gt_known", "top1_loc")


def table(evidence: Evidence, heldout: Evidence, criterion: float = 0.5) -> pd.DataFrame:
    """All variants by all metrics, in %; one threshold per variant, the held-out images' best for GT-known.

    Columns: accuracy, threshold, gt_known and top1_loc there, then oracle_threshold, oracle_gt_known,
    oracle_top1_loc and max_box_acc_v2 (these four chosen on the scored images).

    Examples
    --------
    >>> from infocam_utils.evidence import example_evidence
    >>> rows = example_evidence()
    >>> table(rows, rows)[["accuracy", "threshold", "gt_known", "top1_loc", "max_box_acc_v2"]]
             accuracy  threshold  gt_known  top1_loc  max_box_acc_v2
    variant
    CAM          50.0        0.2     100.0      50.0       83.333333
    """
    _check_same_sweep(evidence, heldout)
    rows = []
    for variant in evidence.variants:
        iou, correct = _tensors(evidence, variant.name)
        result = localization_accuracy(iou, correct, criterion)
        assert result.top1 is not None
        chosen = _threshold(heldout, variant.name, criterion)
        oracle = select_threshold(iou, evidence.thresholds.tolist(), criterion=criterion)
        rows.append({
            "variant": variant.name,
            "accuracy": 100 * float(correct.double().mean()),
            "threshold": float(evidence.thresholds[chosen]),
            "gt_known": 100 * float(result.gt_known[chosen]),
            "top1_loc": 100 * float(result.top1[chosen]),
            "oracle_threshold": float(evidence.thresholds[oracle]),
            "oracle_gt_known": 100 * float(result.gt_known[oracle]),
            "oracle_top1_loc": 100 * float(result.top1.max()),
            "max_box_acc_v2": 100 * max_box_acc_v2(iou),
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("variant")


def hits(
    evidence: Evidence, heldout: Evidence, variant: str, metric: str = "gt_known", criterion: float = 0.5
) -> np.ndarray:
    """(N,) bool: images a variant localizes at its held-out threshold (`top1_loc`: and predicts right)."""
    _check_same_sweep(evidence, heldout)
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    hit = evidence.iou(variant)[:, _threshold(heldout, variant, criterion)] >= criterion
    return hit & evidence.correct(variant) if metric == "top1_loc" else hit


def interval(
    name: str,
    evidences: Sequence[Evidence],
    heldouts: Sequence[Evidence],
    variant: str,
    reference: str | None = None,
    *,
    metric: str = "gt_known",
    criterion: float = 0.5,
    seeds: Sequence[int] = (),
    tolerance: float = 0.0,
) -> Record:
    """A variant's score, or its lead over `reference` on the same images, with a bootstrap interval, in %.

    One evidence per seed, all of the same images; images and seeds are drawn anew (`records.bootstrap`).
    Thresholds stay those of the held-out images.

    Raises
    ------
    ValueError : no evidence, different images, an unknown variant or metric

    Examples
    --------
    >>> from infocam_utils.evidence import example_evidence
    >>> rows = example_evidence()
    >>> interval("birds/top1", [rows], [rows], "CAM", metric="top1_loc").value
    50.0
    """
    if not evidences or len(evidences) != len(heldouts):
        raise ValueError(f"need one held-out evidence each, got {len(evidences)} and {len(heldouts)}")
    if any(not np.array_equal(e.ids, evidences[0].ids) for e in evidences):
        raise ValueError("the evidences are of different images or in another order; seeds must share images")
    per_image = []
    for evidence, heldout in zip(evidences, heldouts, strict=True):
        score = hits(evidence, heldout, variant, metric, criterion).astype(np.float64)
        if reference is not None:
            score -= hits(evidence, heldout, reference, metric, criterion)
        per_image.append(100 * score)
    return bootstrap(name, per_image, unit="%", seeds=seeds, tolerance=tolerance)


def threshold_transfer(
    evidence: Evidence,
    heldout: Evidence,
    variant: str,
    sizes: Sequence[int] = (5, 10, 20, 50, 100, 200, 500),
    draws: int = 200,
    criterion: float = 0.5,
    seed: int = 0,
) -> pd.DataFrame:
    """GT-known (%) against the number of held-out images that chose the threshold.

    For each size, `draws` random subsets of the held-out images choose a threshold. Columns: images,
    gt_known (mean over draws), low, high (2.5 and 97.5 % of draws), oracle (best threshold on the scored
    images).

    Examples
    --------
    >>> from infocam_utils.evidence import example_evidence
    >>> rows = example_evidence()
    >>> threshold_transfer(rows, rows, "CAM", sizes=[2], draws=3).iloc[0].tolist()
    [2.0, 100.0, 100.0, 100.0, 100.0]
    """
    _check_same_sweep(evidence, heldout)
    test = 100 * (evidence.iou(variant) >= criterion).mean(0)  # (T,)
    pool = torch.from_numpy(heldout.iou(variant))
    rng, curve = np.random.default_rng(seed), []
    for size in sizes:
        if not 0 < size <= len(heldout):
            raise ValueError(f"sizes must lie in 1..{len(heldout)}, the held-out images, got {size}")
        picks = (torch.from_numpy(rng.choice(len(heldout), size, replace=False)) for _ in range(draws))
        chosen = [select_threshold(pool[p], heldout.thresholds.tolist(), criterion=criterion) for p in picks]
        low, high = np.quantile(test[chosen], [0.025, 0.975])
        curve.append((size, test[chosen].mean(), low, high, test.max()))
    return pd.DataFrame(curve, columns=["images", "gt_known", "low", "high", "oracle"])


def official_rows(
    evidence: Evidence, variant: str, *, batch_size: int, tiny: bool = False, position: int = 0
) -> pd.DataFrame:
    """What each defect of the official code, alone, does to GT-known (%) at a kept threshold (0.2).

    Rows: the correct value; then each defect alone; then all together; columns gt_known and change. The
    order of images matters to the running average: it should be the official list's, sorted by class.

    Parameters
    ----------
    batch_size : of the official run (PAPER.md section 3.4)
    tiny : whether boxes are read as x y w h, as Tiny-ImageNet's are
    position : which of `evidence.box_thresholds`

    Examples
    --------
    >>> from infocam_utils.evidence import example_evidence
    >>> official_rows(example_evidence(), "CAM", batch_size=1).round(1)["gt_known"].to_dict()
    ... # doctest: +ELLIPSIS
    {'correct': 100.0, 'unclamped IoU, sides + 1': 100.0, ...}
    """
    stored, resized, side = evidence.sizes
    boxes = torch.from_numpy(evidence.boxes[evidence.index(variant)][:, position]).double()  # (N, 4)
    truth = torch.from_numpy(evidence.truth).double()
    source = torch.from_numpy(evidence.stored_boxes).double()
    pixel = torch.tensor([0.0, 0.0, 1.0, 1.0]).double() * (stored / 64)  # of a 64-pixel original
    misread = official_tiny_boxes(source - pixel)  # the list has inclusive corners

    def exact(given: Tensor) -> Tensor:  # the right transform, without the clip that the official code lacks
        return given * (resized / stored) - crop_start(resized, side)

    def shifted(given: Tensor) -> Tensor:
        return official_box_transform(given, (stored, stored), resized, side)

    def right(found: Tensor, true: Tensor) -> Tensor:
        return iou_with_truth(found[:, None], true)[:, 0]

    def unclamped(found: Tensor, true: Tensor) -> Tensor:
        empty = (found[:, 2:] <= found[:, :2]).any(1, keepdim=True)  # the official box of an empty map
        return official_iou(torch.where(empty, torch.tensor([0.0, 0.0, 1.0, 1.0]).double(), found), true)

    def share(iou: Tensor) -> float:
        return 100 * float((iou >= 0.5).double().mean())

    def running(iou: Tensor) -> float:
        return 100 * official_running_average(iou >= 0.5, batch_size)

    rows = {
        "correct": share(right(boxes, truth)),
        "unclamped IoU, sides + 1": share(unclamped(boxes, truth)),
        "average of running averages": running(right(boxes, truth)),
        "resize − 1, floored shift, no clip": share(right(boxes, shifted(source))),
    }
    if tiny:
        rows["boxes read as x y w h"] = share(right(boxes, exact(misread)))
    rows["all together"] = running(unclamped(boxes, shifted(misread if tiny else source)))
    change = {name: value - rows["correct"] for name, value in rows.items()}
    return pd.DataFrame({"gt_known": rows, "change": change})


def _tensors(evidence: Evidence, variant: str) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(evidence.iou(variant)), torch.from_numpy(evidence.correct(variant))


def _threshold(heldout: Evidence, variant: str, criterion: float) -> int:
    return select_threshold(
        torch.from_numpy(heldout.iou(variant)), heldout.thresholds.tolist(), criterion=criterion
    )


def _check_same_sweep(evidence: Evidence, heldout: Evidence) -> None:
    if not len(evidence) or not len(heldout):
        raise ValueError(f"evidence and held-out evidence need images, have {len(evidence)}, {len(heldout)}")
    if not np.array_equal(evidence.thresholds, heldout.thresholds):
        raise ValueError("evidence and held-out evidence were collected with different thresholds")


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
