"""From maps to boxes to localization scores.

Boxes are x0 y0 x1 y1 in pixels, half-open. A map is upsampled to the image, scaled to [0, 1] by its own
minimum and maximum, thresholded, and its largest 8-connected component gives the box, at all thresholds
at once.

The scores follow Choe et al. 2020 (arXiv 2001.07437, 2007.04178): GT-known and Top-1 localization,
MaxBoxAcc, MaxBoxAccV2 and PxAP. A threshold is a hyperparameter: `select_threshold` takes it from
held-out images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou


def whole_image_boxes(n: int, size: int | tuple[int, int]) -> Tensor:
    """The whole image as the box of each of n images: (n, 4) float32, x0 y0 x1 y1 in pixels.

    >>> whole_image_boxes(1, (48, 64))  # height, width
    tensor([[ 0.,  0., 64., 48.]])
    """
    return centre_boxes(n, size, 1.0)


def centre_boxes(n: int, size: int | tuple[int, int], fraction: float) -> Tensor:
    """Centred boxes with ``fraction`` of each side: (n, 4) float32, x0 y0 x1 y1 in pixels.

    >>> centre_boxes(1, 100, 0.7)
    tensor([[15., 15., 85., 85.]])
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}; 0.7 covers half of the image")
    height, width = (size, size) if isinstance(size, int) else size
    if n < 0 or min(height, width) < 1:
        raise ValueError(f"n must be at least 0 and sides at least 1 pixel, got n={n}, size={height}x{width}")
    low, high = (1 - fraction) / 2, (1 + fraction) / 2
    return torch.tensor([width * low, height * low, width * high, height * high]).repeat(n, 1)


_CELLS = 1 << 14  # cells of the table that counts thresholds; a power of two, so that value * _CELLS is exact
_DIAGONALS = np.array([[-1, -1, 1, 1], [-1, 1, -1, 1]])


class _Basins(NamedTuple):
    """Pixels by the peak they climb to. A run is a stretch of a row that climbs to one local maximum."""

    peaks: np.ndarray  # (basins,) pixel index
    of_run: np.ndarray  # (runs,) basin
    summits: np.ndarray  # (runs,) pixel index of the run's maximum
    lengths: np.ndarray  # (runs,) pixels
    of_pixel: np.ndarray  # (H, W) basin, in the smallest integer type that holds it


def largest_component_boxes(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Bounding boxes of the largest 8-connected component of ``values > t``, for every map and threshold.

    The largest component has most pixels; among equals, the one whose first pixel in raster order is first.

    Parameters
    ----------
    values : float32 (B, H, W), in [0, 1]
    thresholds : float32 (T,), strictly increasing

    Returns
    -------
    int64 (B, T, 4), pixels x0 y0 x1 y1, half-open; zeros where no value exceeds the threshold

    Examples
    --------
    >>> row = np.array([[[0.9, 0.2, 0.6, 0.6]]], dtype=np.float32)
    >>> largest_component_boxes(row, np.array([0.1, 0.5, 0.8], dtype=np.float32)).tolist()
    [[[0, 0, 4, 1], [2, 0, 4, 1], [0, 0, 1, 1]]]
    """
    table = _threshold_table(thresholds)
    # Image by image: the work arrays of one stay in the processor's cache, and merging basins is sequential.
    return np.stack([_sweep(v, _thresholds_below(v, thresholds, table), len(thresholds)) for v in values])


def _sweep(values: np.ndarray, level: np.ndarray, thresholds: int) -> np.ndarray:
    """Boxes (T, 4) of one map (H, W), whose pixels lie above threshold t exactly where ``level > t``."""
    basins = _basins(values)
    parent, death = _merge(basins, level, thresholds)
    key, area, extents = _extents(basins, level, thresholds)

    # A node is a basin at a threshold. Below the saddle at which another basin absorbs it, it counts for that
    # one, which may itself be absorbed: pointer jumping finds the component of all nodes at once.
    steps = np.arange(thresholds)
    up = np.where(steps < death[:, None], parent[:, None], np.arange(len(parent))[:, None])
    up = _follow((up * thresholds + steps).reshape(-1))

    size = np.bincount(up, weights=area.reshape(-1), minlength=up.size).reshape(area.shape)  # exact to 2**53
    best = size.max(axis=0)
    leads = (size == best) & (best > 0)  # the basins that name the largest components
    if np.count_nonzero(leads) > np.count_nonzero(best):  # several are equally large
        first = np.full(len(parent) * (thresholds + 1), values.size)
        np.minimum.at(first, key, np.arange(values.size))
        first = _from_above(first.reshape(len(parent), -1))
        origin = np.full(up.size, values.size)
        np.minimum.at(origin, up, first.reshape(-1))
        origin = np.where(leads, origin.reshape(area.shape), values.size)
        leads &= origin == origin.min(axis=0)

    member = leads.reshape(-1)[up].reshape(area.shape)
    boxes = np.where(member, extents, values.size).min(axis=1)  # (4, T)
    boxes[2:] *= -1
    boxes[:, best == 0] = 0
    return boxes.T


def _threshold_table(thresholds: np.ndarray) -> np.ndarray:
    """How many thresholds lie strictly below any value of each cell of [0, 1]; −1 where one is within."""
    edges = np.append(np.arange(_CELLS + 1) / _CELLS, np.inf).astype(np.float32)
    below = np.searchsorted(thresholds, edges, side="left")
    table = np.where(below[1:] > below[:-1], -1, below[:-1])
    return table.astype(np.min_scalar_type(-len(thresholds) - 1))


def _thresholds_below(values: np.ndarray, thresholds: np.ndarray, table: np.ndarray) -> np.ndarray:
    """How many thresholds lie strictly below each value: from the table, or for a few pixels by search."""
    flat = values.reshape(-1)
    cell = torch.from_numpy(flat * np.float32(_CELLS)).to(torch.int32)
    below = torch.from_numpy(table).index_select(0, cell).numpy()
    open_ = np.flatnonzero(below < 0)
    below[open_] = np.searchsorted(thresholds, flat[open_], side="left")
    return below.reshape(values.shape)


def _follow(up: np.ndarray) -> np.ndarray:
    """Where chains of pointers end, by pointer jumping: as many rounds as the longest chain has bits."""
    while True:
        further = up[up]
        if np.array_equal(further, up):
            return up
        up = further


def _basins(values: np.ndarray) -> _Basins:
    """Let every pixel climb: along its row first, then from the row's local maxima to the rows beside it.

    A step leads to a neighbour that is greater, or equal and earlier in raster order: there are no cycles.
    The pixels of a row that climb to one local maximum are adjacent: only these runs are kept and followed.
    """
    height, width = values.shape
    flat = values.reshape(-1)  # neighbours in a row are neighbours here, except across the ends of rows
    east = np.zeros(flat.size, dtype=bool)  # the step leads east; otherwise west, unless that is no ascent
    np.greater(flat[1:], flat[:-1], out=east[:-1])
    east[width - 1 :: width] = False
    begins = np.ones(flat.size, dtype=bool)
    np.greater(east[1:], east[:-1], out=begins[1:])  # a valley: the pixel before does not climb east
    begins[::width] = True
    reached = begins.copy()
    reached[1:] |= east[:-1]
    starts, summits = np.flatnonzero(begins), np.flatnonzero(reached > east)
    lengths = np.diff(starts, append=flat.size)
    run = np.repeat(np.arange(len(starts), dtype=np.int32), lengths)  # (H*W,)

    up, ends = np.arange(len(summits)), np.arange(len(summits))  # ends: no greater neighbour found yet
    for shift in (-width, width):
        source = summits[ends]
        other, own = flat.take(source + shift, mode="clip"), flat[source]
        if shift < 0:
            climbs = (other >= own) & (source >= width)
        else:
            climbs = (other > own) & (source < flat.size - width)
        up[ends[climbs]] = run[source[climbs] + shift]
        ends = ends[~climbs]
    y, x = np.divmod(summits[ends][:, None], width)  # few are left to look along the diagonals
    y, x = y + _DIAGONALS[0], x + _DIAGONALS[1]  # (n, 4)
    target = np.where((y >= 0) & (y < height) & (x >= 0) & (x < width), y * width + x, summits[ends][:, None])
    other, own = flat[target], flat[summits[ends]][:, None]
    climbs = (other > own) | ((other == own) & (target < summits[ends][:, None]))
    found, first = climbs.any(axis=1), climbs.argmax(axis=1)
    up[ends[found]] = run[target[found, first[found]]]
    ends = ends[~found]
    name = np.zeros(len(up), dtype=np.int64)
    name[ends] = np.arange(len(ends))
    of_run = name[_follow(up)]
    of_pixel = np.repeat(of_run.astype(np.min_scalar_type(len(ends))), lengths).reshape(height, width)
    return _Basins(summits[ends], of_run, summits, lengths, of_pixel)


def _merge(basins: _Basins, level: np.ndarray, thresholds: int) -> tuple[np.ndarray, np.ndarray]:
    """The basin that absorbs each basin, and the level of the saddle below which it does (0: never)."""
    basin, count = basins.of_pixel, len(basins.peaks)
    height, width = level.shape
    border = np.zeros((4, height, width), dtype=bool)
    np.not_equal(basin[:, :-1], basin[:, 1:], out=border[0, :, :-1])
    np.not_equal(basin[:-1], basin[1:], out=border[1, :-1])
    np.not_equal(basin[:-1, :-1], basin[1:, 1:], out=border[2, :-1, :-1])
    np.not_equal(basin[:-1, 1:], basin[1:, :-1], out=border[3, :-1, 1:])
    at = [np.flatnonzero(b) for b in border]
    here, shift = np.concatenate(at), np.repeat([1, width, width + 1, width - 1], [len(i) for i in at])
    there = here + shift
    basin, level = basin.reshape(-1), level.reshape(-1)
    pair = basin[here].astype(np.int64) * count + basin[there]
    saddle = np.minimum(level[here], level[there])
    if count * count <= level.size:  # keep the highest saddle of each pair: in a matrix, or by sorting
        highest = np.zeros(count * count, dtype=level.dtype)
        np.maximum.at(highest, pair, saddle)
        pair = np.flatnonzero(highest)
        saddle = highest[pair]
    else:
        pair, saddle = np.divmod(np.unique(pair * (thresholds + 1) + saddle), thresholds + 1)
        last = np.append(pair[1:] != pair[:-1], True)
        pair, saddle = pair[last], saddle[last]

    # Kruskal's algorithm, from the highest saddle down; the basin with the higher peak absorbs the other. A
    # loop over pairs of basins, since each step depends on all before it.
    order = np.argsort(-saddle, kind="stable")
    peak_level = level[basins.peaks].tolist()
    root, parent, death = list(range(count)), list(range(count)), [0] * count
    a, b = np.divmod(pair[order], count)
    for i, j, s in zip(a.tolist(), b.tolist(), saddle[order].tolist(), strict=True):
        while root[i] != i:
            root[i] = i = root[root[i]]
        while root[j] != j:
            root[j] = j = root[root[j]]
        if i != j:
            young, old = (i, j) if peak_level[i] < peak_level[j] else (j, i)
            root[young] = parent[young] = old
            death[young] = s
    return np.array(parent), np.array(death)


def _extents(
    basins: _Basins, level: np.ndarray, thresholds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixel keys (H*W,), and of every basin above every threshold: pixels (basins, T), x0 y0 −x1 −y1."""
    height, width = level.shape
    shape = (len(basins.peaks), thresholds)
    base = basins.of_run * (thresholds + 1)
    key = np.repeat(base, basins.lengths)
    key += level.reshape(-1)
    area = np.bincount(key, minlength=shape[0] * (thresholds + 1)).reshape(shape[0], -1)
    area = area[:, :0:-1].cumsum(axis=1)[:, ::-1]

    # A basin reaches into a row above a threshold exactly if one of the row's summits does; into a column, if
    # the greatest pixel of one of the column's stretches in that basin does.
    rows, row_key = basins.summits // width, base + level.reshape(-1)[basins.summits]
    basin, level = np.ascontiguousarray(basins.of_pixel.T), np.ascontiguousarray(level.T)
    basin, level = basin.reshape(-1), level.reshape(-1)
    begins = np.ones(basin.size, dtype=bool)
    np.not_equal(basin[1:], basin[:-1], out=begins[1:])
    begins[::height] = True
    starts = np.flatnonzero(begins)
    columns = starts // height
    column_key = basin[starts].astype(np.int64) * (thresholds + 1)
    column_key += np.maximum.reduceat(level, starts)
    sides = ((column_key, columns), (row_key, rows), (column_key, ~columns), (row_key, ~rows))  # ~n: −1 − n
    found = np.full((4, shape[0] * (thresholds + 1)), level.size, dtype=np.int32)
    for side, (where, value) in zip(found, sides, strict=True):
        np.minimum.at(side, where, value.astype(np.int32))
    return key, area, _from_above(found.reshape(4, shape[0], -1))


def _from_above(least: np.ndarray) -> np.ndarray:
    """Of pixels with exactly c thresholds below (…, T + 1), to pixels above threshold t, which have c > t."""
    return np.minimum.accumulate(least[..., :0:-1], axis=-1)[..., ::-1]  # (…, T)


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
