"""The localization metrics as the paper's released code computes them, defects included.

These exist for one purpose: a table can show, defect by defect, how far each moves the number. Use
`infocam_utils.localization` for every result of one's own. What is replicated is the behaviour of the
official repository's `info_cam` folder (commit 5c77c0b): unclamped intersections with one pixel added to
every side, averages of running averages, Tiny-ImageNet boxes read as x y w h, and a box transform for an
image one pixel smaller than it is.
"""

import math

import numpy as np
import torch
from torch import Tensor


def official_iou(boxes: Tensor, truth: Tensor) -> Tensor:
    """IoU over inclusive pixels (sides + 1) whose negative overlaps are not clamped to 0.

    Boxes are (..., 4) x0 y0 x1 y1, broadcast against each other. Two that are apart in x *and* y have two
    negative overlaps; their product counts as an intersection, and the "IoU" can exceed 1.

    >>> round(float(official_iou(torch.tensor([100, 100, 200, 200]), torch.tensor([0, 0, 1, 1]))), 2)
    15.98
    """
    boxes, truth = _as_boxes("boxes", boxes), _as_boxes("truth", truth)
    low, high = torch.maximum(boxes, truth)[..., :2], torch.minimum(boxes, truth)[..., 2:]
    intersection = (high - low + 1).prod(-1)  # (...)
    areas = (boxes[..., 2:] - boxes[..., :2] + 1).prod(-1) + (truth[..., 2:] - truth[..., :2] + 1).prod(-1)
    return intersection / (areas - intersection)


def inclusive_iou(boxes: Tensor, truth: Tensor, side: int) -> Tensor:
    """IoU as published numbers have it, by the field's evaluator (wsolevaluation, Choe et al. 2020).

    Of half-open boxes (..., 4) x0 y0 x1 y1 in an image of `side` pixels the ends are cut to ``side − 1``, the
    true boxes are cut to whole pixels, and then all ends count as inclusive: every side is a pixel longer.

    >>> shifted = torch.tensor([0.9, 0.9, 10.9, 10.9])
    >>> round(float(inclusive_iou(torch.tensor([0, 0, 10, 10]), shifted, 224)), 3)
    1.0
    """
    boxes, truth = _as_boxes("boxes", boxes).clone(), _as_boxes("truth", truth).trunc()
    boxes[..., 2:] = boxes[..., 2:].clamp(max=side - 1)
    low, high = torch.maximum(boxes, truth)[..., :2], torch.minimum(boxes, truth)[..., 2:]
    intersection = (high - low + 1).clamp(min=0).prod(-1)
    areas = (boxes[..., 2:] - boxes[..., :2] + 1).prod(-1) + (truth[..., 2:] - truth[..., :2] + 1).prod(-1)
    return intersection / (areas - intersection)


def official_running_average(hits: Tensor, batch_size: int) -> float:
    """``(1/N) Σ_b n_b · (hits up to batch b / images up to batch b)``: early images count many times over.

    Hits are (N,) bool or numbers in the order of the file list; the last batch may be smaller.

    >>> official_running_average(torch.tensor([1, 1, 0, 0]), 2)
    0.75
    """
    if hits.ndim != 1 or len(hits) == 0:
        raise ValueError(f"hits must be (N,) with N at least 1, got {tuple(hits.shape)}; score images first")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}; the official ones are 30 to 1280")
    n = len(hits)
    ends = torch.arange(batch_size, n + batch_size, batch_size, dtype=torch.float64).clamp(max=n)
    sizes = ends.diff(prepend=torch.zeros(1, dtype=torch.float64))
    # An image counts in the running average of its own batch and in all later ones.
    later = (sizes / ends).flip(0).cumsum(0).flip(0)
    weights = later.repeat_interleave(sizes.long()).to(hits.device)  # (N,)
    return float(hits.double() @ weights) / n


def official_tiny_boxes(boxes: Tensor) -> Tensor:
    """Tiny-ImageNet's inclusive x0 y0 x1 y1, taken for x y w h: the "box" x0, y0, x0 + x1, y0 + y1.

    >>> official_tiny_boxes(torch.tensor([6, 25, 55, 51])).tolist()
    [6.0, 25.0, 61.0, 76.0]
    """
    boxes = _as_boxes("boxes", boxes)
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)


def official_box_transform(boxes: Tensor, image_size: tuple[float, float], resize: int, crop: int) -> Tensor:
    """Boxes in original pixels (..., 4) to network pixels, by a resize to ``resize − 1`` and a floored shift.

    ``x / W · (resize − 1) − floor((resize − 1 − crop) / 2)``, not clipped to the crop. For 64-pixel images
    without a crop the shift is −1: every box moves by one pixel. The image size is (width, height).

    >>> official_box_transform(torch.tensor([0.0, 0.0, 64.0, 32.0]), (64, 64), resize=64, crop=64).tolist()
    [1.0, 1.0, 64.0, 32.5]
    """
    if min(image_size) <= 0 or not 0 < crop <= resize:
        raise ValueError(f"need image size > 0 and 0 < crop <= resize, got {image_size}, {crop}, {resize}")
    side = resize - 1
    shift = math.floor((side - crop) / 2)
    size = torch.tensor([*image_size, *image_size], dtype=torch.float64)
    return _as_boxes("boxes", boxes) * (side / size) - shift


def official_threshold(threshold: float) -> float:
    """The threshold on a map in [0, 1] that the official 8-bit pipeline applies for ``threshold``.

    It colours ``floor(256 v)`` with the colour map *cubehelix*, converts to grey, and keeps grey >
    ``int(255 t)``. Asked for 0.2, that keeps values from 52/256 up. The number just below is returned,
    for use with ``>``.

    >>> round(official_threshold(0.2), 6)
    0.203125
    """
    from matplotlib import colormaps  # slow to import, and needed here alone

    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), got {threshold}; it is a share of the map's range")
    colours = (colormaps["cubehelix"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    grey = np.rint(colours @ np.array([0.299, 0.587, 0.114]))
    least = np.flatnonzero(grey > int(threshold * 255))[0] / 256
    return float(np.nextafter(np.float32(least), np.float32(0)))  # maps are float32


def _as_boxes(name: str, boxes: Tensor) -> Tensor:
    if boxes.shape[-1:] != (4,):
        raise ValueError(f"{name} must have shape (..., 4) as x0 y0 x1 y1, got {tuple(boxes.shape)}")
    return boxes.double()
