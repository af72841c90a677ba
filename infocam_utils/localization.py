"""From maps to boxes to localization scores.

Boxes are x0 y0 x1 y1 in pixels, half-open. A map is a bilinear surface through its coarse values: what
enlarging it to the image would show. A threshold is a share of the surface's range, and the box encloses the
largest connected part above it. All of that follows from the coarse values; nothing is enlarged.

The scores follow Choe et al. 2020 (arXiv 2001.07437, 2007.04178): GT-known and Top-1 localization,
MaxBoxAcc, MaxBoxAccV2 and PxAP. A threshold is a hyperparameter: `select_threshold` takes it from
held-out images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor
from torchvision.ops import box_iou


def _compiled(function: Callable[..., Any]) -> Any:
    """Compiled on the first call; the machine code is kept beside the package or in the user's cache.

    One thread, so that a process may fork afterwards; without the lock, so that callers may run several.
    """
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither place can be written
        return numba.njit(nogil=True)(function)


def centre_boxes(n: int, size: int | tuple[int, int], fraction: float) -> Tensor:
    """Centred boxes with ``fraction`` of each side: (n, 4) float32, x0 y0 x1 y1 in pixels.

    >>> centre_boxes(1, (100, 200), 0.7)  # height, width
    tensor([[ 30.,  15., 170.,  85.]])
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}; 0.7 covers half of the image")
    height, width = _sides(size, "size")
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")
    low, high = (1 - fraction) / 2, (1 + fraction) / 2
    return torch.tensor([width * low, height * low, width * high, height * high]).repeat(n, 1)


# The surface, compiled: loops in which a step depends on those before it. Nodes are the map's values v in
# raster order, w to a row. A cell lies between four of them, (a, b) above (c, d), and has side 1. The surface
# continues for half a cell beyond the outer nodes, constant outwards.
#
# Levels are visited from the highest down. At each, nodes rise above it and join the neighbours that are
# there, and then saddles rise and join the two nodes that they lie between: a union-find, in which a
# component's root is its first node. Areas only grow, so the largest component's last known area and the
# boxes of the others tell whether it still is the largest; only in doubt are areas computed.

_NEARLY = 1e-9  # what rounding may do to a position in pixels and, relatively, to an area


@_compiled
def _find(parent: np.ndarray, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@_compiled
def _mean_share(p0: float, p1: float, s0: float, s1: float) -> float:
    """``∫ p(u) / s(u) du`` over [0, 1] for p and s linear between their ends, 0 <= p <= s."""
    if (p0 == 0 and p1 == 0) or (p0 == s0 and p1 == s1):
        return 1.0 if p0 + p1 > 0 else 0.0
    if s0 > s1:
        p0, p1, s0, s1 = p1, p0, s1, s0
    if s0 <= 1e-15 * s1:
        return p1 / s1
    g = s1 / s0 - 1
    if g < 0.02:  # where the closed form cancels: the logarithm's series
        rising = 1 / 2 - g * (1 / 3 - g * (1 / 4 - g * (1 / 5 - g * (1 / 6 - g / 7))))
        whole = 1 - g * rising
    else:
        whole = np.log(s1 / s0) / g
        rising = (1 - whole) / g
    return (p0 * (whole - rising) + p1 * rising) / s0  # whole: ∫ s0 / s(u) du, rising: ∫ u s0 / s(u) du


@_compiled
def _cell_area(a: float, b: float, c: float, d: float, in_left: bool, in_right: bool) -> float:
    """Area above 0 of the component that holds what is above 0 on a cell's left side, its right, or both.

    The zeros of the top and bottom edges cut the cell into three pieces. If the middle one is not empty, it
    joins the others to one component. Within a piece top and bottom keep their signs, so the share of the
    height that is above 0 is that of positive values in absolute ones.
    """
    if min(min(a, b), min(c, d)) > 0:
        return 1.0
    x0 = a / (a - b) if (a > 0) != (b > 0) else 1.0
    x1 = c / (c - d) if (c > 0) != (d > 0) else 1.0
    x0, x1 = min(x0, x1), max(x0, x1)
    area = 0.0
    for start, stop, held in ((0.0, x0, in_left), (x0, x1, True), (x1, 1.0, in_right)):
        if held and start < stop:
            top0, top1 = a + (b - a) * start, a + (b - a) * stop
            low0, low1 = c + (d - c) * start, c + (d - c) * stop
            above0, above1 = max(top0, 0.0) + max(low0, 0.0), max(top1, 0.0) + max(low1, 0.0)
            area += (stop - start) * _mean_share(above0, above1, abs(top0) + abs(low0), abs(top1) + abs(low1))
    return area


@_compiled
def _area(v: np.ndarray, w: int, level: float, parent: np.ndarray, root: int, span: np.ndarray) -> float:
    """Area of a component in cells; span: columns and rows x0 y0 x1 y1 of its nodes."""
    h = len(v) // w
    area = 0.0
    for y in range(span[1] - 1, span[3] + 1):
        top, bottom = max(y, 0) * w, min(y + 1, h - 1) * w
        for x in range(span[0] - 1, span[2] + 1):
            left, right = max(x, 0), min(x + 1, w - 1)
            a, b = v[top + left] - level, v[top + right] - level
            c, d = v[bottom + left] - level, v[bottom + right] - level
            in_left = max(a, c) > 0 and _find(parent, left + (top if a > 0 else bottom)) == root
            in_right = max(b, d) > 0 and _find(parent, right + (top if b > 0 else bottom)) == root
            if in_left or in_right:
                sides = (1.0 if top < bottom else 0.5) * (1.0 if left < right else 0.5)
                area += sides * _cell_area(a, b, c, d, in_left, in_right)
    return area


@_compiled
def _extent(
    v: np.ndarray, w: int, level: float, parent: np.ndarray, root: int, span: np.ndarray
) -> tuple[float, float, float, float]:
    """Where a component ends, left, top, right and bottom, counted in nodes."""
    x0, y0, x1, y1 = span
    a, b, c, d = y0 * w + x0, y0 * w + x1, y1 * w + x0, y1 * w + x1  # the corners
    left = _reach(v, level, parent, root, range(a, c + 1, w), -1) if x0 > 0 else 0.5
    top = _reach(v, level, parent, root, range(a, b + 1), -w) if y0 > 0 else 0.5
    right = _reach(v, level, parent, root, range(b, d + 1, w), 1) if x1 < w - 1 else 0.5
    bottom = _reach(v, level, parent, root, range(c, d + 1), w) if d + w < len(v) else 0.5
    return x0 - left, y0 - top, x1 + right, y1 + bottom


@_compiled
def _reach(v: np.ndarray, level: float, parent: np.ndarray, root: int, line: range, outwards: int) -> float:
    """How far a component reaches beyond its outermost line of nodes: 1 would be the next line."""
    reach = 0.0
    for node in line:
        if v[node] > level and _find(parent, node) == root:
            reach = max(reach, (v[node] - level) / (v[node] - v[node + outwards]))
    return reach


@_compiled
def _snap(low: float, high: float, nodes: int, pixels: int) -> tuple[int, int]:
    """The pixels whose centres lie strictly between two positions among the nodes; or the nearest to them."""
    scale = pixels / nodes
    low, high = (low + 0.5) * scale - 0.5, (high + 0.5) * scale - 0.5
    first, stop = int(np.floor(low + _NEARLY)) + 1, int(np.ceil(high - _NEARLY))
    if first >= stop:
        middle = (low + high) / 2
        first, stop = int(np.ceil(middle - 0.5 - _NEARLY)), int(np.floor(middle + 0.5 + _NEARLY)) + 1
    return max(first, 0), min(stop, pixels)


@_compiled
def _surface_boxes(maps: np.ndarray, thresholds: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes (B, T, 4) of maps (B, h, w) that run from 0 to 1, at increasing thresholds."""
    count, h, w = maps.shape
    nodes, levels = h * w, len(thresholds)
    boxes = np.zeros((count, levels, 4), dtype=np.float32)
    # Events are a node i that rises above the level and nodes + i, the saddle of the cell that begins at i.
    first = np.empty(levels + 1, np.int64)  # [k]: the first event above just k thresholds
    after = np.empty(2 * nodes, np.int64)  # the event after it
    parent = np.empty(2 * nodes, np.int64)  # -1 while not above the level
    span = np.empty((2 * nodes, 4), np.int64)  # of a root: columns and rows x0 y0 x1 y1 of its nodes
    row, column = np.arange(nodes) // w, np.arange(nodes) % w
    for index in range(count):
        v = maps[index].reshape(-1)
        parent[:] = -1
        first[:] = -1
        for y in range(h - 1):
            for i in range(y * w, y * w + w - 1):
                a, b, c, d = v[i], v[i + 1], v[i + w], v[i + w + 1]
                if min(a, d) > max(b, c) or min(b, c) > max(a, d):
                    rank = np.searchsorted(thresholds, (a * d - b * c) / (a + d - b - c))
                    after[nodes + i] = first[rank]
                    first[rank] = nodes + i
        for i in range(nodes):  # nodes stand before saddles
            rank = np.searchsorted(thresholds, v[i])
            after[i] = first[rank]
            first[rank] = i
        components, best, largest = 0, -1, 0.0
        for t in range(levels - 1, -1, -1):
            event, level = first[t + 1], thresholds[t]
            while event >= 0:
                i = event if event < nodes else event - nodes
                y, x = row[i], column[i]
                if event < nodes:
                    ends = ((i - w, y > 0), (i + w, y < h - 1), (i - 1, x > 0), (i + 1, x < w - 1))
                else:
                    falls = v[i] > v[i + 1]
                    ends = ((i, falls), (i + w + 1, falls), (i + 1, not falls), (i + w, not falls))
                span[event, 0], span[event, 1], span[event, 2], span[event, 3] = x, y, x, y
                parent[event] = root = event
                components += 1
                for other, linked in ends:
                    if linked and parent[other] >= 0:
                        gone = _find(parent, other)
                        if gone != root:
                            root, gone = min(root, gone), max(root, gone)
                            parent[gone] = root
                            span[root, 0] = min(span[root, 0], span[gone, 0])
                            span[root, 1] = min(span[root, 1], span[gone, 1])
                            span[root, 2] = max(span[root, 2], span[gone, 2])
                            span[root, 3] = max(span[root, 3], span[gone, 3])
                            components -= 1
                best = root if best < 0 else best
                event = after[event]
            if components == 0:
                continue
            best = _find(parent, best)
            known = False
            for root in range(nodes if components > 1 else 0):
                if parent[root] == root and root != best:
                    x0, y0, x1, y1 = _extent(v, w, level, parent, root, span[root])
                    if (x1 - x0) * (y1 - y0) >= largest * (1 - _NEARLY):
                        if not known:
                            largest, known = _area(v, w, level, parent, best, span[best]), True
                        area = _area(v, w, level, parent, root, span[root])
                        equal = abs(area - largest) <= largest * _NEARLY
                        if (equal and root < best) or (not equal and area > largest):
                            best, largest = root, area
            left, top, right, bottom = _extent(v, w, level, parent, best, span[best])
            boxes[index, t, 0], boxes[index, t, 2] = _snap(left, right, w, width)
            boxes[index, t, 1], boxes[index, t, 3] = _snap(top, bottom, h, height)
    return boxes


def normalise_maps(maps: Tensor) -> Tensor:
    """Scale each map to [0, 1]: ``(m − min m) / (max m − min m)``; a constant map becomes zeros.

    A ValueError names a map that holds NaN or infinity.

    >>> normalise_maps(torch.tensor([[[-1.0, 0.0, 3.0]], [[2.0, 2.0, 2.0]]])).tolist()
    [[[0.0, 0.25, 1.0]], [[0.0, 0.0, 0.0]]]
    """
    _check_maps(maps)
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    span = high - low  # NaN and infinities survive minimum, maximum and difference
    bad = (~torch.isfinite(span)).flatten().nonzero()
    if len(bad):
        raise ValueError(f"map {int(bad[0])} has NaN or infinite values; check the network's features")
    return (maps - low) / torch.where(span > 0, span, torch.ones_like(span))


def boxes_from_maps(
    maps: Tensor,
    image_size: int | tuple[int, int],
    thresholds: Tensor | Sequence[float],
    mode: str = "bilinear",
) -> Tensor:
    """Boxes of the largest component of each map's surface above each threshold.

    The surface is bilinear between the map's values and constant beyond the outer ones; the pixels of torch's
    ``interpolate`` (``align_corners=False``) lie on it. A threshold t is the level ``min + t (max − min)``.
    What lies strictly above the level joins along the edge between neighbouring values, and across a cell
    (a, b; c, d) if its saddle ``(ad − bc) / (a + d − b − c)`` is above, too. The largest component has most
    area; among equals, the one whose first value in raster order is first. The box holds the pixels whose
    centres lie strictly between the ends of the component; where there are none, the pixel nearest to the
    middle (both of two as near). What lies within 1e-9 of a pixel's centre counts as on it, and areas within
    1e-9 of each other as equal. Image size costs neither time nor memory.

    Parameters
    ----------
    maps : (B, h, w), signed; computed in float64
    image_size : H = W, or (H, W)
    thresholds : (T,) in any order; a share of the map's range
    mode : ``"bilinear"``, or ``"bicubic"``, which is left to :func:`pixel_boxes`

    Returns
    -------
    (B, T, 4) float32 on the maps' device, pixels x0 y0 x1 y1, half-open; zeros where nothing lies above

    Raises
    ------
    ValueError : a wrong shape, size or mode, maps or thresholds that are not finite, no thresholds
    TypeError : maps that are not floating point

    Examples
    --------
    >>> maps = torch.zeros(1, 4, 4)
    >>> maps[0, 1:3, 2:] = torch.tensor([[0.4, 1.0], [0.4, 0.4]])
    >>> boxes_from_maps(maps, 8, [0.2, 0.5]).tolist()
    [[[4.0, 1.0, 8.0, 6.0], [5.0, 2.0, 8.0, 5.0]]]
    """
    if mode != "bilinear":
        return pixel_boxes(maps, image_size, thresholds, mode)
    height, width = _sides(image_size, "image_size")
    levels, position = _levels(thresholds).unique(return_inverse=True)
    _check_maps(maps)
    values = normalise_maps(maps.detach().to("cpu", torch.float64)).contiguous()
    boxes = _surface_boxes(values.numpy(), levels.numpy(), height, width)
    return torch.from_numpy(boxes)[:, position].to(maps.device)  # (B, T, 4)


def pixel_boxes(
    maps: Tensor,
    image_size: int | tuple[int, int],
    thresholds: Tensor | Sequence[float],
    mode: str = "bilinear",
) -> Tensor:
    """Boxes from pixels, with the arguments of :func:`boxes_from_maps`: enlarge, scale to [0, 1], label.

    Components are 8-connected, the largest has most pixels (among equals the first in raster order), and the
    range is that of the pixels. Slow, but good for any surface; a bilinear one's boxes are checked by it.

    >>> pixel_boxes(torch.eye(3)[None], 9, [0.6], mode="bicubic").tolist()
    [[[0.0, 0.0, 3.0, 3.0]]]
    """
    if mode not in ("bilinear", "bicubic"):
        raise ValueError(f"mode must be 'bilinear' or 'bicubic', got {mode!r}")
    side, levels = _sides(image_size, "image_size"), _levels(thresholds)
    _check_maps(maps)
    boxes = torch.zeros(len(maps), len(levels), 4)
    for b, map_ in enumerate(maps.detach()):  # one by one: memory does not grow with the number of maps
        exact = map_ if map_.dtype == torch.float64 else map_.float()
        pixels = F.interpolate(exact[None, None], size=side, mode=mode, align_corners=False)[0]
        values = normalise_maps(pixels)[0].cpu().numpy()
        for t, level in enumerate(levels.numpy().astype(values.dtype)):
            labels, count = ndimage.label(values > level, structure=np.ones((3, 3)))
            if count:
                largest = np.bincount(labels.ravel())[1:].argmax()  # labels run in raster order
                y, x = ndimage.find_objects(labels)[largest]
                boxes[b, t] = torch.tensor([x.start, y.start, x.stop, y.stop])
    return boxes.to(maps.device)


def iou_with_truth(boxes: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of predicted and true boxes, in float64 so that criteria compare exactly.

    ``boxes`` (B, T, 4) and ``truth`` (B, 4) give (B, T). Of several true boxes an image, (B, M, 4), the best
    counts (pad with zeros). Boxes without area score 0; x1 < x0, y1 < y0 and NaN raise a ValueError.

    >>> iou_with_truth(torch.tensor([[[0, 0, 2, 2], [1, 0, 3, 2]]]), torch.tensor([[0, 0, 2, 2]])).tolist()
    [[1.0, 0.3333333333333333]]
    """
    truth = truth[:, None] if truth.ndim == 2 else truth
    if boxes.ndim != 3 or boxes.shape[-1] != 4 or truth.ndim != 3 or truth.shape[::2] != (len(boxes), 4):
        shapes = f"{tuple(boxes.shape)} and {tuple(truth.shape)}"
        raise ValueError(f"expected boxes (B, T, 4) and truth (B, 4) or (B, M, 4), got {shapes}")
    for name, given in (("boxes", boxes), ("truth", truth)):
        bad = (~(given[..., 2:] >= given[..., :2])).any(-1).nonzero()
        if len(bad):
            row = tuple(bad[0].tolist())
            needs = "needs x0 <= x1 and y0 <= y1 in pixels (x0 y0 x1 y1, not x y w h)"
            raise ValueError(f"{name}{list(row)} is {given[row].tolist()}: {needs}")
    iou = box_iou(boxes.double(), truth.double())  # (B, T, M)
    return iou.nan_to_num(0.0).amax(-1)  # two boxes without area: 0 / 0


@dataclass(frozen=True)
class LocalizationResult:
    """Shares of images in [0, 1] at each of T thresholds."""

    gt_known: Tensor  # (T,) IoU reaches the criterion
    top1: Tensor | None  # (T,) and the predicted class is right; None where no predictions were given


def localization_accuracy(
    iou: Tensor, correct: Tensor | None = None, criterion: float = 0.5
) -> LocalizationResult:
    """GT-known and Top-1 localization at every threshold: hits over count.

    ``iou`` (N, T) is that of the true class's map; ``correct`` (N,) is true where that class is predicted;
    ``criterion`` in (0, 1] is the smallest IoU of a hit.

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

    >>> max_box_acc(torch.tensor([[0.6, 0.4], [0.2, 0.8]]), (0.5, 0.3)).tolist()
    [0.5, 1.0]
    """
    return torch.stack([localization_accuracy(iou, criterion=c).gt_known.max() for c in criteria])


def max_box_acc_v2(iou: Tensor) -> float:
    """MaxBoxAccV2: MaxBoxAcc averaged over the criteria 0.3, 0.5 and 0.7 (arXiv 2007.04178).

    Here each map proposes one box.  The reference evaluation lets every component of a map propose one and
    counts the best, which can only be higher.

    >>> round(max_box_acc_v2(torch.tensor([[0.6, 0.4], [0.2, 0.8]])), 6)
    0.666667
    """
    return float(max_box_acc(iou, (0.3, 0.5, 0.7)).mean())


def pxap(maps: Tensor, masks: Tensor, levels: int = 1000) -> float:
    """Pixel average precision: area under the pixel precision-recall curve over all images together.

    ``PxAP = Σ_l precision(t_l) · (recall(t_l) − recall(t_{l+1}))`` over the thresholds t_l = l / levels on
    maps in [0, 1] (arXiv 2001.07437); needs no box and no chosen threshold.

    ``masks`` (N, H, W) are true on the object. Maps outside [0, 1] and masks without a single true pixel are
    refused with a ValueError.

    >>> round(pxap(torch.tensor([[[0.9, 0.6, 0.1]]]), torch.tensor([[[True, False, True]]])), 4)
    0.8333
    """
    if maps.shape != masks.shape or maps.ndim != 3 or not maps.numel():
        shapes = f"{tuple(maps.shape)} and {tuple(masks.shape)}"
        raise ValueError(f"maps and masks must both be (N, H, W), got {shapes}")
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

    ``iou`` is (N, T), ``thresholds`` (T,) and increasing. With ``correct`` (N,), hits are those of Top-1
    localization instead of GT-known.

    >>> select_threshold(torch.tensor([[0.1, 0.6, 0.7, 0.8, 0.2]]), [0.1, 0.2, 0.3, 0.4, 0.5])
    2
    """
    levels = torch.as_tensor(thresholds)
    result = localization_accuracy(iou, correct, criterion)
    if levels.shape != iou.shape[1:] or bool((levels.diff() <= 0).any()):
        raise ValueError(f"thresholds must be {iou.shape[1]} increasing numbers, one per column of iou")
    score = result.gt_known if result.top1 is None else result.top1
    tied = np.flatnonzero((score == score.max()).numpy())
    longest = max(np.split(tied, np.flatnonzero(np.diff(tied) > 1) + 1), key=len)
    return int(longest[(len(longest) - 1) // 2])


def _sides(size: int | tuple[int, int], name: str) -> tuple[int, int]:
    """Height and width of an image that is given by one side or both."""
    given = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    whole = all(isinstance(side, int | np.integer) for side in given)
    if len(given) != 2 or not whole or min(given) < 1:
        raise ValueError(f"{name} must be a positive side or (height, width) in whole pixels, got {size!r}")
    return int(given[0]), int(given[1])


def _levels(thresholds: Tensor | Sequence[float]) -> Tensor:
    levels = torch.as_tensor(thresholds, dtype=torch.float64).cpu()
    if levels.ndim != 1 or not len(levels) or not torch.isfinite(levels).all():
        raise ValueError(f"thresholds must be a non-empty list of finite numbers, got {thresholds!r}")
    return levels


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
