"""One row of evidence per image: all that localization metrics need, collected in one pass over the network.

`collect` runs every image through the network once and draws the maps of all heads and variants from the
same features. What it keeps of an image is small: label, prediction and estimated PMI of each head, IoU
of each variant at each threshold. `infocam_utils.scores` turns that into numbers in seconds, without a
network.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infocam_utils.baselines import centre_boxes, feature_norm_maps
from infocam_utils.cam import Against, Padding, info_cam, region_sum
from infocam_utils.images import Geometry, ImageSet, prepare
from infocam_utils.inference import evaluating
from infocam_utils.information import Kind, pointwise_mutual_information
from infocam_utils.localization import boxes_from_maps, iou_with_truth
from infocam_utils.official import official_threshold
from infocam_utils.pooled import Classifier
from infocam_utils.storage import atomic_write, report_progress

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
