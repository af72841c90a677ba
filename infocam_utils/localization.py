"""From maps to boxes to localization scores.

Boxes are x0 y0 x1 y1 in pixels, half-open. A map is upsampled to the image, scaled to [0, 1] by its own
minimum and maximum, thresholded, and its largest 8-connected component gives the box, at all thresholds
at once.

The scores follow Choe et al. 2020 (arXiv 2001.07437, 2007.04178): GT-known and Top-1 localization,
MaxBoxAcc, MaxBoxAccV2 and PxAP. A threshold is a hyperparameter: `select_threshold` takes it from
held-out images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from infocam_utils.components import largest_component_boxes

_CHUNK_PIXELS = 1 << 22  # pixels upsampled at a time (16 MiB): memory does not grow with the number of maps


@dataclass(frozen=True)
class LocalizationResult:
    """Shares of images in [0, 1] at each of T thresholds."""

    gt_known: Tensor  # (T,) IoU reaches the criterion
    top1: Tensor | None  # (T,) and the predicted class is right; None where no predictions were given


def upsample_maps(maps: Tensor, image_size: int | tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Resize maps (B, h, w) to the image (B, H, W), as float32, pixel centres aligned.

    Raises
    ------
    ValueError
        If the shape is not (B, h, w), the size not positive, or the mode not ``bilinear`` or ``bicubic``.

    Examples
    --------
    >>> upsample_maps(torch.tensor([[[0.0, 1.0]]]), (1, 4))
    tensor([[[0.0000, 0.2500, 0.7500, 1.0000]]])
    """
    _check_maps(maps)
    if mode not in ("bilinear", "bicubic"):
        raise ValueError(f"mode must be 'bilinear' or 'bicubic', got {mode!r}")
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"image_size must be a positive side or (height, width), got {image_size!r}")
    return F.interpolate(maps.float()[:, None], size=size, mode=mode, align_corners=False)[:, 0]


def normalise_maps(maps: Tensor) -> Tensor:
    """Scale each map to [0, 1]: ``(m − min m) / (max m − min m)``; a constant map becomes zeros.

    Raises
    ------
    ValueError
        If the shape is not (B, H, W) or a map holds NaN or infinity.

    Examples
    --------
    >>> normalise_maps(torch.tensor([[[-1.0, 0.0, 3.0]], [[2.0, 2.0, 2.0]]])).tolist()
    [[[0.0, 0.25, 1.0]], [[0.0, 0.0, 0.0]]]
    """
    _check_maps(maps)
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    span = high - low
    bad = (
        (~torch.isfinite(span)).flatten().nonzero().flatten()
    )  # NaN and infinities survive min, max and difference
    if len(bad):
        raise ValueError(
            f"map {int(bad[0])} has NaN or infinite values (or a range beyond its dtype); "
            "check the network's features"
        )
    return (maps - low) / torch.where(span > 0, span, torch.ones_like(span))


def boxes_from_maps(
    maps: Tensor,
    image_size: int | tuple[int, int],
    thresholds: Tensor | Sequence[float],
    mode: str = "bilinear",
) -> Tensor:
    """Boxes of the largest component of each map above each threshold, all thresholds in one pass.

    Upsample, scale to [0, 1], keep pixels > threshold, take the largest 8-connected component by pixel
    count (among equals the first in raster order), return its bounding box.

    Parameters
    ----------
    maps : (B, h, w), signed
    image_size : H = W, or (H, W)
    thresholds : (T,) finite, in any order; a share of the map's range (compared in float32)
    mode : ``"bilinear"`` or ``"bicubic"``

    Returns
    -------
    (B, T, 4) float32 on the maps' device, pixels x0 y0 x1 y1, half-open; zeros where no pixel exceeds the
    threshold

    Raises
    ------
    ValueError
        On a wrong shape, NaN or infinite maps, or thresholds that are empty or not finite.

    Examples
    --------
    >>> maps = torch.zeros(1, 4, 4)
    >>> maps[0, 1:3, 2:] = torch.tensor([[0.4, 1.0], [0.4, 0.4]])
    >>> boxes_from_maps(maps, 4, [0.2, 0.5]).tolist()
    [[[2.0, 1.0, 4.0, 3.0], [3.0, 1.0, 4.0, 2.0]]]
    """
    levels = torch.as_tensor(thresholds, dtype=torch.float32).cpu()
    if levels.ndim != 1 or not len(levels) or not torch.isfinite(levels).all():
        raise ValueError(f"thresholds must be a non-empty list of finite numbers, got {thresholds!r}")
    ordered, position = levels.unique(return_inverse=True)
    _check_maps(maps)
    side = (image_size, image_size) if isinstance(image_size, int) else image_size
    boxes = []
    for chunk in maps.detach().split(max(1, _CHUNK_PIXELS // max(1, side[0] * side[1]))):
        values = normalise_maps(upsample_maps(chunk, image_size, mode))
        boxes.append(largest_component_boxes(values.cpu().numpy(), ordered.numpy()))
    return torch.from_numpy(np.concatenate(boxes)).float()[:, position].to(maps.device)  # (B, T, 4)


def iou_with_truth(boxes: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of predicted and true boxes, in float64 so that criteria compare exactly.

    Parameters
    ----------
    boxes : (B, T, 4)
    truth : (B, 4), or (B, M, 4) for images with several boxes: the best counts (pad with zero boxes)

    Returns
    -------
    (B, T) float64; boxes without area score 0

    Raises
    ------
    ValueError
        On shapes that do not fit, or boxes with x1 < x0, y1 < y0 or NaN.

    Examples
    --------
    >>> iou_with_truth(torch.tensor([[[0, 0, 2, 2], [1, 0, 3, 2]]]), torch.tensor([[0, 0, 2, 2]])).tolist()
    [[1.0, 0.3333333333333333]]
    """
    truth = truth[:, None] if truth.ndim == 2 else truth
    if boxes.ndim != 3 or boxes.shape[-1] != 4 or truth.ndim != 3 or truth.shape[::2] != (len(boxes), 4):
        raise ValueError(
            f"expected boxes (B, T, 4) and truth (B, 4) or (B, M, 4), got {tuple(boxes.shape)} and "
            f"{tuple(truth.shape)}"
        )
    for name, given in (("boxes", boxes), ("truth", truth)):
        bad = (~(given[..., 2:] >= given[..., :2])).any(-1).nonzero()
        if len(bad):
            row = tuple(bad[0].tolist())
            raise ValueError(
                f"{name}{list(row)} is {given[row].tolist()}: needs x0 <= x1 and y0 <= y1 in pixels "
                "(x0 y0 x1 y1, not x y w h)"
            )
    iou = box_iou(boxes.double(), truth.double())  # (B, T, M)
    return iou.nan_to_num(0.0).amax(-1)  # two boxes without area: 0 / 0


def localization_accuracy(
    iou: Tensor, correct: Tensor | None = None, criterion: float = 0.5
) -> LocalizationResult:
    """GT-known and Top-1 localization at every threshold: hits over count.

    Parameters
    ----------
    iou : (N, T) with the map of the true class
    correct : (N,) bool, the predicted class is the true one
    criterion : smallest IoU of a hit

    Raises
    ------
    ValueError
        On an empty or wrongly shaped input or a criterion outside (0, 1].

    Examples
    --------
    >>> result = localization_accuracy(torch.tensor([[0.6], [0.5], [0.2]]), torch.tensor([True, False, True]))
    >>> result.gt_known, result.top1
    (tensor([0.6667], dtype=torch.float64), tensor([0.3333], dtype=torch.float64))
    """
    _check_iou(iou, criterion)
    hit = iou >= criterion
    if correct is not None and correct.shape != iou.shape[:1]:
        raise ValueError(f"correct must have shape ({len(iou)},), got {tuple(correct.shape)}")
    top1 = None if correct is None else (hit & correct.bool()[:, None]).double().mean(0)
    return LocalizationResult(hit.double().mean(0), top1)


def max_box_acc(iou: Tensor, criteria: Sequence[float] = (0.5,)) -> Tensor:
    """MaxBoxAcc: the share of hits at the best threshold, for each criterion (len(criteria),).

    The threshold is chosen on the images that are scored: an oracle value (arXiv 2001.07437).

    Examples
    --------
    >>> max_box_acc(torch.tensor([[0.6, 0.4], [0.2, 0.8]]), (0.5, 0.3)).tolist()
    [0.5, 1.0]
    """
    return torch.stack([localization_accuracy(iou, criterion=c).gt_known.max() for c in criteria])


def max_box_acc_v2(iou: Tensor) -> float:
    """MaxBoxAccV2: MaxBoxAcc averaged over the criteria 0.3, 0.5 and 0.7 (arXiv 2007.04178).

    Here each map proposes one box.  The reference evaluation lets every component of a map propose one and
    counts the best, which can only be higher.

    Examples
    --------
    >>> round(max_box_acc_v2(torch.tensor([[0.6, 0.4], [0.2, 0.8]])), 6)
    0.666667
    """
    return float(max_box_acc(iou, (0.3, 0.5, 0.7)).mean())


def pxap(maps: Tensor, masks: Tensor, levels: int = 1000) -> float:
    """Pixel average precision: area under the pixel precision-recall curve over all images together.

    ``PxAP = Σ_l precision(t_l) · (recall(t_l) − recall(t_{l+1}))`` over the thresholds t_l = l / levels on
    maps in [0, 1] (arXiv 2001.07437); needs no box and no chosen threshold.

    Parameters
    ----------
    maps : (N, H, W) in [0, 1], for example from :func:`normalise_maps`
    masks : (N, H, W) bool, true on the object

    Raises
    ------
    ValueError
        On differing shapes, maps outside [0, 1], or masks without a single true pixel.

    Examples
    --------
    >>> round(pxap(torch.tensor([[[0.9, 0.6, 0.1]]]), torch.tensor([[[True, False, True]]])), 4)
    0.8333
    """
    if maps.shape != masks.shape or maps.ndim != 3 or not maps.numel():
        raise ValueError(
            f"maps and masks must both be (N, H, W), got {tuple(maps.shape)} and {tuple(masks.shape)}"
        )
    if not bool(((maps >= 0) & (maps <= 1)).all()):
        raise ValueError("maps must lie in [0, 1] and be finite; pass them through normalise_maps first")
    truth = masks.bool().flatten()
    if not truth.any():
        raise ValueError("masks mark no pixel as object, so recall is undefined")
    bins = (maps.flatten() * levels).floor().long()
    hits = torch.bincount(bins[truth], minlength=levels + 1).flip(0).double()  # by falling threshold
    shown = torch.bincount(bins, minlength=levels + 1).flip(0).double()
    precision = hits.cumsum(0) / shown.cumsum(0).clamp(min=1)
    return float((precision * hits).sum() / hits.sum())


def select_threshold(
    iou: Tensor, thresholds: Tensor | Sequence[float], correct: Tensor | None = None, criterion: float = 0.5
) -> int:
    """Index of the threshold with most hits on held-out images; the middle of the longest tied stretch.

    Parameters
    ----------
    iou : (N, T) of held-out images
    thresholds : (T,) increasing
    correct : (N,) bool; given, Top-1 localization is maximised instead of GT-known

    Raises
    ------
    ValueError
        If thresholds are not increasing or their number is not that of the columns.

    Examples
    --------
    >>> select_threshold(torch.tensor([[0.1, 0.6, 0.7, 0.8, 0.2]]), [0.1, 0.2, 0.3, 0.4, 0.5])
    2
    """
    levels = torch.as_tensor(thresholds)
    result = localization_accuracy(iou, correct, criterion)
    if levels.shape != iou.shape[1:] or bool((levels.diff() <= 0).any()):
        raise ValueError(
            f"thresholds must be {iou.shape[1]} increasing numbers, one per column of iou, "
            f"got {tuple(levels.shape)}"
        )
    score = result.gt_known if result.top1 is None else result.top1
    tied = np.flatnonzero((score == score.max()).numpy())
    stretches = np.split(tied, np.flatnonzero(np.diff(tied) > 1) + 1)
    longest = max(stretches, key=len)
    return int(longest[(len(longest) - 1) // 2])


def _check_maps(maps: Tensor) -> None:
    if maps.ndim != 3 or not maps.numel():
        raise ValueError(f"maps must have shape (B, h, w), none of them 0, got {tuple(maps.shape)}")
    if not maps.is_floating_point():
        raise TypeError(f"maps must be floating point, got {maps.dtype}; convert with .float()")


def _check_iou(iou: Tensor, criterion: float) -> None:
    if iou.ndim != 2 or not iou.numel():
        raise ValueError(f"iou must have shape (N, T), none of them 0, got {tuple(iou.shape)}")
    if not 0 < criterion <= 1:
        raise ValueError(f"criterion must be in (0, 1], got {criterion}")
