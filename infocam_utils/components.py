"""The largest connected component of a map at every threshold, found in one pass over its pixels.

Thresholding a map at T levels and labelling each result costs T passes. The components of all levels are
known from far less: let every pixel climb to a greater neighbour until it reaches a peak. The pixels that
end at one peak form a *basin*. A pixel above a threshold climbs only over pixels above it, so a basin cut at
any threshold stays in one piece, and two basins touch above a threshold exactly where a pair of adjacent
pixels, one of each, lies above it: below their *saddle*. Components at a threshold are therefore the basins
whose peak is above it, joined by the saddles above it; pixel counts and extents add up over a component's
basins. Nothing is approximated: a map with many peaks only has more basins.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

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
