"""The figures: one message each, intervals drawn, colours that colour-blind readers can tell apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from infocam_utils.data.store import output_root, replacing

PALETTE = sns.color_palette("colorblind")
OURS, PAPER = PALETTE[0], PALETTE[1]
MARKERS = "osD^v"
Row = tuple[str, float | None, float | None, float, float]  # label, reference, ours, low, high


def use_style() -> None:
    """Set the house style: light grid, colour-blind palette, small inline figures."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({"figure.dpi": 72, "savefig.dpi": 110, "figure.constrained_layout.use": True,
                         "axes.titlesize": "medium", "legend.frameon": False})  # fmt: skip


def save(fig: Figure, name: str, alt: str, output_dir: str | Path | None = None) -> None:
    """Write ``<out>/figures/<name>.png`` with `alt` inside it, as its PNG description.

    Raises
    ------
    ValueError
        Without an alternative text: a figure that some readers cannot see must say what it shows.
    """
    if not alt.strip():
        raise ValueError(f"figure {name!r} needs an alternative text that says what it shows")
    with replacing(output_root(output_dir) / "figures" / f"{name}.png") as path:
        # Without the Software entry the same figure gives the same bytes under another matplotlib patch.
        fig.savefig(path, format="png", metadata={"Description": alt, "Software": None})


def _interval(ax: Axes, x: float, y: float, low: float, high: float, horizontal: bool, **style: Any) -> None:
    """A dot with its interval; an infinite interval is no interval."""
    error = [[x - low], [high - x]] if horizontal else [[y - low], [high - y]]
    known = math.isfinite(low) and math.isfinite(high)
    bars: dict[str, Any] = {"xerr" if horizontal else "yerr": error} if known else {}
    ax.errorbar(x, y, fmt=style.pop("fmt", "o"), capsize=3, **bars, **style)


def interval_plot(
    rows: Sequence[Row],
    xlabel: str,
    reference: str = "paper",
    ax: Axes | None = None,
) -> Figure:
    """Dots with interval bars, one row each: (label, reference or None, our value or None, low, high)."""
    if not rows:
        raise ValueError("interval_plot needs at least one row, got none")
    if ax is None:
        _, ax = plt.subplots(figsize=(7, 0.8 + 0.45 * len(rows)))
    for row, (_, stated, value, low, high) in enumerate(rows):
        if stated is not None:
            ax.plot(stated, row, "D", color=PAPER, label=reference)
        if value is not None:
            _interval(ax, value, row, low, high, True, color=OURS, label="ours, 95 % interval")
    ax.set_yticks(range(len(rows)), [label for label, *_ in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(xlabel)
    _legend_once(ax)
    return _figure(ax)


def scorecard(judged: Sequence[Any]) -> Figure:
    """The claims that state a number (`claims.Judged`): the paper's and ours, one panel per unit."""
    units: dict[str, list[Row]] = {}
    for claim, findings in ((row.claim, row.findings) for row in judged if row.claim.paper is not None):
        rows = units.setdefault(claim.unit, [])
        ours = [f for f in findings if f.value is not None]
        if not ours:
            rows.append((claim.id, claim.paper, None, math.nan, math.nan))
        for f in ours:
            label = f"{claim.id}\n{f.dataset}, {f.profile}"
            rows.append((label, claim.paper, f.value.value, f.value.low, f.value.high))
    return _panels(units)


def differences(judged: Sequence[Any]) -> Figure:
    """The paired differences that decide directions, right of zero where the claim holds, by unit."""
    units: dict[str, list[Row]] = {}
    for claim, findings in ((row.claim, row.findings) for row in judged):
        for f in findings:
            if f.direction is not None:
                label = f"{claim.id} · {f.dataset} · {f.what}"
                row = (label, None, f.direction.value, f.direction.low, f.direction.high)
                units.setdefault(f.direction.unit, []).append(row)
    fig = _panels(units)
    for ax in fig.axes:
        ax.axvline(0, color="grey", linestyle=":")
    return fig


def _panels(units: Mapping[str, Sequence[Row]]) -> Figure:
    if not units:
        raise ValueError("no record to draw: run the notebooks that the claims name")
    heights = [len(rows) for rows in units.values()]
    lines = max(row[0].count("\n") for rows in units.values() for row in rows) + 1
    size = (9, 1 + (0.1 + 0.22 * lines) * sum(heights) + 0.5 * len(units))
    fig, axes = plt.subplots(len(units), 1, figsize=size, height_ratios=heights, squeeze=False)
    for ax, (unit, rows) in zip(axes[:, 0], units.items(), strict=True):
        interval_plot(rows, unit or "no unit", ax=ax)
    return fig


def localization_curve(
    thresholds: Any,
    curves: Mapping[str, Any],
    chosen: Mapping[str, int],
    ylabel: str = "GT-known Loc, %",
) -> Figure:
    """Localization accuracy over the map's threshold, with the chosen and the best threshold marked.

    Parameters
    ----------
    thresholds : (T,) share of the map's range.
    curves : method to accuracies (T,), or (seeds, T) drawn as mean and range.
    chosen : method to the index of the threshold that held-out data chose; the best on test is the oracle.
    """
    fig, ax = plt.subplots(figsize=(7, 4))
    x = np.asarray(thresholds)
    for number, (method, values) in enumerate(curves.items()):
        y = np.atleast_2d(np.asarray(values, dtype=float))  # (S, T)
        mean, color = y.mean(0), PALETTE[number % len(PALETTE)]
        ax.plot(x, mean, color=color, label=method)
        if len(y) > 1:
            ax.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.15, linewidth=0)
        if method in chosen:
            ax.plot(x[chosen[method]], mean[chosen[method]], "o", color=color)
        best = int(mean.argmax())
        ax.plot(x[best], mean[best], "*", color=color, markerfacecolor="white", markersize=12)
    ax.plot([], [], "o", color="grey", label="threshold from held-out data")
    ax.plot([], [], "*", color="grey", markerfacecolor="white", markersize=12, label="oracle: best on test")
    ax.set(xlabel="threshold, share of the map's range", ylabel=ylabel)
    ax.legend(fontsize="small")
    return fig


def gauge_curve(lengths: Sequence[float], scores: Mapping[str, Sequence[float]]) -> Figure:
    """GT-known of each method against the length of a vector common to all class weights."""
    fig, ax = plt.subplots(figsize=(6, 3.5))
    for number, (method, values) in enumerate(scores.items()):
        ax.plot(range(len(lengths)), values, marker=MARKERS[number % 5], color=PALETTE[number], label=method)
    ax.set_xticks(range(len(lengths)), [f"{length:g}" for length in lengths])
    ax.set(xlabel="length of the common vector, in row norms", ylabel="GT-known Loc, %")
    ax.legend(fontsize="small")
    return fig


def transfer_curve(transfer: Mapping[str, Any]) -> Figure:
    """GT-known against the number of images that chose the threshold: mean, 95 % of choices, oracle.

    Parameters
    ----------
    transfer : method to a table with columns images, gt_known, low, high, oracle, in per cent.
    """
    fig, ax = plt.subplots(figsize=(6, 3.5))
    for number, (method, found) in enumerate(transfer.items()):
        color = PALETTE[number]
        ax.plot(found["images"], found["gt_known"], marker="o", color=color, label=method)
        ax.fill_between(found["images"], found["low"], found["high"], color=color, alpha=0.15, linewidth=0)
        ax.axhline(found["oracle"].iloc[0], color=color, linestyle=":")
    ax.plot([], [], color="grey", linestyle=":", label="oracle")
    ax.set(xscale="log", xlabel="held-out images used", ylabel="GT-known Loc, %")
    ax.legend(fontsize="small")
    return fig


def gallery(
    images: Any,
    maps: Any | None = None,
    boxes: Any | None = None,
    truths: Any | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 6,
) -> Figure:
    """Images with the map over them, our box (dashed) and the true box (solid).

    Parameters
    ----------
    images : (N, 3, H, W) uint8
    maps : (N, h, w); each is stretched over its image, bright is high
    boxes, truths : (N, 4) x0 y0 x1 y1 in pixels
    """
    pictures = np.asarray(images)
    if pictures.ndim != 4 or pictures.shape[1] != 3 or len(pictures) == 0:
        raise ValueError(f"images must be (N, 3, H, W) with N > 0, were {pictures.shape}")
    count, _, height, width = pictures.shape
    columns = min(columns, count)
    lines = math.ceil(count / columns)
    fig, axes = plt.subplots(lines, columns, figsize=(1.6 * columns, 1.8 * lines), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for i, ax in zip(range(count), axes.flat, strict=False):
        ax.imshow(pictures[i].transpose(1, 2, 0), extent=(0, width, height, 0))
        if maps is not None:
            ax.imshow(np.asarray(maps[i], dtype=float), extent=(0, width, height, 0), cmap="inferno",
                      alpha=0.45, interpolation="bilinear")  # fmt: skip
        for group, color, line in ((truths, "white", "-"), (boxes, PALETTE[9], "--")):
            if group is not None:
                x0, y0, x1, y1 = (float(v) for v in group[i])
                ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=color, ls=line, lw=2))
        if titles is not None:
            ax.set_title(titles[i], fontsize="x-small")
    return fig


def recall_plane(points: Mapping[str, Mapping[str, tuple[Any, Any]]]) -> Figure:
    """Recall of rare over that of common classes, a panel per data set; small dots are seeds, large means.

    Parameters
    ----------
    points : data set to method to (common, rare), each with one value per seed, in per cent.
    """
    fig, axes = plt.subplots(1, len(points), figsize=(4.5 * len(points), 4), squeeze=False)
    for ax, (name, methods) in zip(axes[0], points.items(), strict=True):
        for number, (method, (common, rare)) in enumerate(methods.items()):
            style: dict[str, Any] = {"color": PALETTE[number], "marker": MARKERS[number % 5], "linestyle": ""}
            ax.plot(common, rare, markersize=4, alpha=0.5, **style)
            ax.plot(np.mean(common), np.mean(rare), markersize=10, label=method, **style)
        ax.set(title=name, xlabel="recall of common classes, %")
    axes[0, 0].set(ylabel="recall of rare classes, %")
    axes[0, 0].legend(fontsize="small")
    return fig


def trade_off(sweeps: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Accuracy and per-class accuracy along the weight of the log prior, mean and range over seeds.

    Parameters
    ----------
    sweeps : data set to "tau" (T,), "accuracy" and "per_class_accuracy_all" (seeds, T), in per cent.
    """
    fig, axes = plt.subplots(1, len(sweeps), figsize=(4.5 * len(sweeps), 3.5), squeeze=False)
    measures = {
        "accuracy": "accuracy, training shares",
        "per_class_accuracy_all": "per-class accuracy",
    }
    for ax, (name, sweep) in zip(axes[0], sweeps.items(), strict=True):
        for number, (key, label) in enumerate(measures.items()):
            y, color = np.asarray(sweep[key]), PALETTE[number]
            ax.plot(sweep["tau"], y.mean(0), color=color, label=label)
            ax.fill_between(sweep["tau"], y.min(0), y.max(0), color=color, alpha=0.15, linewidth=0)
            ax.plot(sweep["tau"][y.mean(0).argmax()], y.mean(0).max(), "*", color=color, markersize=12)
        ax.set(title=name, xlabel="τ, weight of log prior")
    axes[0, 0].set(ylabel="%")
    axes[0, 0].legend(fontsize="small")
    return fig


def pmi_scatter(exact: Any, estimated: Mapping[str, Any]) -> Figure:
    """Estimated against exact PMI of single images, one panel per method, with the identity line."""
    x = np.asarray(exact, dtype=float).ravel()
    fig, axes = plt.subplots(1, len(estimated), figsize=(4.5 * len(estimated), 4), squeeze=False, sharey=True)
    for number, (ax, (method, values)) in enumerate(zip(axes[0], estimated.items(), strict=True)):
        y = np.asarray(values, dtype=float).ravel()
        ax.scatter(x, y, s=8, alpha=0.4, color=PALETTE[number], linewidth=0, rasterized=True)
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        ax.plot(ends, ends, color="grey", linestyle=":")
        ax.set(title=f"{method}: r = {np.corrcoef(x, y)[0, 1]:.2f}", xlabel="exact PMI, nats")
    axes[0, 0].set(ylabel="estimated PMI, nats")
    return fig


def _legend_once(ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        *zip(*{b: (a, b) for a, b in zip(handles, labels, strict=True)}.values(), strict=True),
        fontsize="small",
    )


def _figure(ax: Axes) -> Figure:
    fig = ax.get_figure()
    assert isinstance(fig, Figure)
    return fig
