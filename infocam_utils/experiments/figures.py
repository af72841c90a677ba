"""The figures: functions of tables, one message each, intervals drawn, colours for colour-blind readers too.

A table is tidy (one row a number) and brings the words to be shown in a column `label`; `low` and `high` are
drawn where they are known.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from infocam_utils.data.store import output_root, replacing

PALETTE = sns.color_palette("colorblind")
MARKERS = "osD^vPX"

HIT, MISS = "#009e73", "#d55e00"  # of boxes, apart for every eye


def use_style() -> None:
    """Set the house style: light grid, colour-blind palette, sharp figures, tables that are not cut."""
    for option, value in {"max_colwidth": None, "max_columns": None, "max_rows": 200, "width": 200}.items():
        pd.set_option(f"display.{option}", value)
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update(
        {
            "figure.dpi": 96,
            "savefig.dpi": 2 * 96,  # twice what a page shows
            "savefig.bbox": "tight",  # a title may be wider than its panel
            "savefig.pad_inches": 0.03,
            "figure.constrained_layout.use": True,
            "axes.titlesize": "medium",
            "figure.titlesize": "medium",
            "figure.titleweight": "bold",
            "legend.frameon": False,
            "legend.fontsize": "small",
        }
    )


def save(fig: Figure, name: str, alt: str, output_dir: str | Path | None = None) -> None:
    """Write ``<out>/figures/<name>.png``, with `alt` as its PNG description, and show it in a notebook.

    What is shown is the file, at half its resolution and no wider than a page; its metadata hold `alt` too.

    Raises
    ------
    ValueError
        Without an alternative text: a figure that some readers cannot see must say what it shows.
    """
    from IPython.core.getipython import get_ipython
    from IPython.display import Image, display

    if not alt.strip():
        raise ValueError(f"figure {name!r} needs an alternative text that says what it shows")
    # Without the Software entry the same figure gives the same bytes under another matplotlib patch.
    picture = io.BytesIO()
    fig.savefig(picture, format="png", metadata={"Description": alt, "Software": None})
    plt.close(fig)
    with replacing(output_root(output_dir) / "figures" / f"{name}.png") as path:
        path.write_bytes(picture.getvalue())
    if get_ipython() is not None:
        wide = int.from_bytes(picture.getvalue()[16:20], "big")  # of the PNG's header
        display(Image(picture.getvalue(), width=min(wide // 2, 960), alt=alt))


def _interval(ax: Axes, row: Mapping[Any, Any], at: float, horizontal: bool = True, **style: Any) -> None:
    """A dot with its interval; an unknown interval is no interval."""
    value, low, high = (float(row.get(c, math.nan)) for c in ("value", "low", "high"))
    bars: dict[str, Any] = {}
    if math.isfinite(low) and math.isfinite(high):
        bars = {"xerr" if horizontal else "yerr": [[value - low], [high - value]]}
    x, y = (value, at) if horizontal else (at, value)
    ax.errorbar(x, y, capsize=3, **bars, **style)


def intervals(
    table: pd.DataFrame,
    xlabel: str,
    *,
    colour: str | None = None,
    panel: str | None = None,
    zero: str | None = None,
    band: float | None = None,
) -> Figure:
    """One row a line: its `label`, and its value with its interval.

    Parameters
    ----------
    table : with columns label, value, low, high, and a column `paper` for a published value beside it
    colour, panel : columns that choose the colour, with a legend, and the panel
    zero : what it means to lie right of 0; draws a line there
    band : half the width of a grey band around 0

    Raises
    ------
    ValueError
        For an empty table.
    """
    if table.empty:
        raise ValueError("there is no row to draw: run the notebooks that the claims name")
    parts = [("", table)] if panel is None else list(table.groupby(panel, sort=False))
    heights = [len(part) + 1 for _, part in parts]  # a line alone leaves no room for a title
    size = (10.5, 0.6 + 0.6 * len(parts) + 0.25 * sum(heights))
    fig, axes = plt.subplots(len(parts), 1, figsize=size, height_ratios=heights, squeeze=False)
    kinds = [] if colour is None else list(dict.fromkeys(table[colour].fillna("no head")))
    for ax, (title, part) in zip(axes[:, 0], parts, strict=True):
        for at, row in enumerate(part.to_dict("records")):
            number = 0 if colour is None else kinds.index(row[colour] if pd.notna(row[colour]) else "no head")
            _interval(ax, row, at, color=PALETTE[number], fmt=MARKERS[number])
            if pd.notna(row.get("paper")):
                ax.plot(row["paper"], at, "D", color="0.35", fillstyle="none")
        ax.set_yticks(range(len(part)), part["label"], fontsize="small")
        ax.set(ylim=(len(part) - 0.5, -0.5))
        ax.locator_params(axis="x", nbins=5)
        ax.set_title(title, loc="left", fontsize="small")
        if band is not None:
            ax.axvspan(-band, band, color="0.5", alpha=0.15, lw=0)
        if zero is not None or band is not None:
            ax.axvline(0, color="0.3", lw=1)
    axes[-1, 0].set_xlabel(xlabel if zero is None else f"{xlabel}      {zero} →")
    for number, kind in enumerate(kinds):
        axes[0, 0].plot([], [], MARKERS[number], color=PALETTE[number], label=kind)
    if "paper" in table and table["paper"].notna().any():
        axes[0, 0].plot([], [], "D", color="0.35", fillstyle="none", label="paper")
    handles, names = axes[0, 0].get_legend_handles_labels()
    if handles:
        fig.legend(handles, names, loc="outside lower center", ncols=len(names))
    return fig


def differences(table: pd.DataFrame, xlabel: str, zero: str, columns: int = 3) -> Figure:
    """A panel a claim, a line a setting, a colour a head: paired differences with their intervals.

    Parameters
    ----------
    table : with columns claim, label, head, value, low, high
    zero : what it means to lie right of 0

    Raises
    ------
    ValueError
        For an empty table.
    """
    if table.empty:
        raise ValueError("there is no row to draw: run the notebooks that the claims name")
    kinds = list(dict.fromkeys(table["head"].fillna("no head")))
    claims = list(dict.fromkeys(table["claim"]))
    lines = [claims[i : i + columns] for i in range(0, len(claims), columns)]
    labels = [list(dict.fromkeys(table[table["claim"].isin(line)]["label"])) for line in lines]
    heights = [len(names) + 2 for names in labels]
    size = (11, 0.8 + 0.2 * sum(heights))
    fig, axes = plt.subplots(
        len(lines), columns, figsize=size, height_ratios=heights, sharey="row", squeeze=False
    )
    for ax in axes.flat[len(claims) :]:
        ax.axis("off")
    for i, claim in enumerate(claims):
        ax, names = axes.flat[i], labels[i // columns]
        for row in table[table["claim"] == claim].to_dict("records"):
            number = kinds.index(row["head"] if pd.notna(row["head"]) else "no head")
            at = names.index(row["label"]) + 0.22 * (number - (len(kinds) - 1) / 2)
            style = {"color": PALETTE[number], "fmt": MARKERS[number], "markersize": 3.5, "lw": 1.2}
            _interval(ax, row, at, **style)
        ax.set_yticks(range(len(names)), names, fontsize=7)
        ax.set(ylim=(len(names) - 0.4, -0.6))
        ax.tick_params(axis="x", labelsize=8)
        ax.axvline(0, color="0.3", lw=1)
        ax.set_title(textwrap.fill(claim, 34), loc="left", fontsize=8)
    for ax in axes[-1][: len(lines[-1])]:
        ax.set_xlabel(f"{xlabel}, {zero} →", fontsize=8)
    for number, kind in enumerate(kinds):
        axes[0, 0].plot(
            [],
            [],
            MARKERS[number],
            color=PALETTE[number],
            label=f"{kind} head".replace("no head head", "no head"),
        )
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside lower center", ncols=len(names))
    return fig


def _end_labels(ax: Axes, ends: Sequence[tuple[float, float, str, Any]], gap: float) -> None:
    """Names at the right ends of curves, (x, y, name, colour) each, moved apart to `gap` at least."""
    order = sorted(ends, key=lambda end: end[1])
    heights: list[float] = []
    for _, y, _, _ in order:
        heights.append(max(y, heights[-1] + gap) if heights else y)
    for (x, _, name, colour), height in zip(order, heights, strict=True):
        ax.annotate(name, (x, height), (6, 0), textcoords="offset points", color=colour, va="center")


def pmi_curves(
    position: Any, densities: Any, pmi: Any, shares: Sequence[float], names: Sequence[str]
) -> Figure:
    """Class densities times shares, and below them the PMI of every class with its ceiling −log π.

    Parameters
    ----------
    position : (G,); densities, pmi : (G, K), nats; shares, names : (K,)
    """
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(7.9, 5.2), sharex=True, height_ratios=(2, 3))
    x, heights, values = (np.asarray(v) for v in (position, densities, pmi))
    for k, (share, name) in enumerate(zip(shares, names, strict=True)):
        at = int(heights[:, k].argmax())
        top.plot(x, heights[:, k], color=PALETTE[k])
        style: dict[str, Any] = {"ha": "center", "fontsize": 9, "color": PALETTE[k]}
        text = f"{name}\nshare {share:.2f}"
        top.annotate(text, (x[at], heights[at, k]), (0, 3), textcoords="offset points", **style)
        bottom.plot(x, values[:, k], color=PALETTE[k])
        peak = int(values[:, k].argmax())
        reach = values[:, k] > values[peak, k] - 0.6
        bottom.hlines(-math.log(share), x[reach].min(), x[reach].max(), color=PALETTE[k], ls=":", lw=1.5)
    top.set(ylabel="share × density", ylim=(0, 1.55 * heights.max()))
    bottom.axhspan(0, 3.2, color=PALETTE[2], alpha=0.08, lw=0)
    bottom.axhline(0, color="0.3", lw=1)
    bottom.text(x[0], 0.15, " x speaks for the class", fontsize=9, va="bottom")
    bottom.text(x[0], -0.2, " and against it", fontsize=9, va="top")
    bottom.set(ylim=(-8, 3.2), xlabel="x", ylabel="PMI(x, y), nats")
    fig.suptitle("The rarer a class, the more a point can say for it (dotted: the ceiling −log π)")
    return fig


def bounds(confidence: Any, curves: Mapping[str, Any], truth: float) -> Figure:
    """Lower bounds on the mutual information, in nats, against the confidence of the logits."""
    fig, ax = plt.subplots(figsize=(7.9, 3.9))
    ends = []
    for number, (name, values) in enumerate(curves.items()):
        ax.plot(confidence, values, ("-", "--", ":")[number % 3], color=PALETTE[number], lw=2)
        ends.append((float(confidence[-1]), max(float(values[-1]), -0.45), name, PALETTE[number]))
    ax.axhline(truth, color="0.3", lw=1, dashes=(6, 3))
    ax.text(float(confidence[0]), truth + 0.02, "I(X; Y), by quadrature", va="bottom")
    ax.plot(1, truth, "o", color="0.3")
    _end_labels(ax, ends, 0.12)
    ax.set(xlabel="confidence β of the logits", ylabel="bound, nats", ylim=(-0.5, 1.25))
    ax.set_title("All touch the truth at the exact logits; PC-softmax forgives wrong ones most", loc="left")
    return fig


def bias(ratios: Any, excess: Any, marks: Mapping[str, tuple[float, float]]) -> Figure:
    """The excess log K − H(Y), nats, against the ratio of class sizes; marks are (ratio, excess) by name."""
    fig, ax = plt.subplots(figsize=(7.9, 3.6))
    ax.plot(ratios, excess, lw=2)
    for name, (ratio, height) in marks.items():
        ax.plot(ratio, height, "o", color=PALETTE[1])
        ax.annotate(f"{name}: {height:.2f} nats", (ratio, height), (8, -12), textcoords="offset points")
    ax.axhline(math.log(2), color="0.3", lw=1, ls="--")
    ax.annotate("log 2, the most there can be", (1, math.log(2)), xytext=(2, -14), textcoords="offset points")
    ax.set_xscale("log")
    ax.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    ax.set(xlabel="size of the large classes in sizes of the small ones", ylabel="log K − H(Y), nats")
    ax.set_title("What log K − CE reports for nothing, whatever the classifier", loc="left")
    return fig


def information(settings: Sequence[Mapping[str, Any]], naive: bool = True) -> Figure:
    """Class densities, and below them the entropy of the label: what x tells of it and what it leaves.

    Parameters
    ----------
    settings : one column each, with `title`, `position` (G,), `densities` (G, K) times shares, `value` and
        `entropy` in nats
    naive : whether to draw log K − CE of the exact classifier too
    """
    fig, axes = plt.subplots(
        2, len(settings), figsize=(7.9, 3.6), height_ratios=(3, 2), squeeze=False, sharex="row", sharey="row"
    )
    for (top, bottom), one in zip(axes.T, settings, strict=True):
        value, entropy = float(one["value"]), float(one["entropy"])
        heights = np.asarray(one["densities"])
        classes = heights.shape[1]
        for k in range(classes):
            top.fill_between(one["position"], heights[:, k], color=PALETTE[k], alpha=0.4, lw=0)
        top.set(yticks=[], xlabel="x")
        top.set_title(one["title"], fontsize=9)
        bottom.barh(1, value, color=PALETTE[0])
        bottom.barh(1, entropy - value, left=value, color="0.85")
        if naive:
            bottom.barh(0, value, color=PALETTE[0], alpha=0.4)
            excess = math.log(classes) - entropy
            bottom.barh(0, excess, left=value, color=PALETTE[1], hatch="//", edgecolor="white")
        bottom.axvline(math.log(classes), color="0.3", lw=1, ls="--")
        bottom.set_title(f"I = {value:.2f}, H(Y|X) = {entropy - value:.2f} nats", fontsize=9)
        bottom.set(xlim=(0, 1.05 * math.log(classes)), xlabel="nats; dashed: log K")
        bottom.set_yticks([1, 0][: 1 + naive], ["H(Y)", "log K − CE"][: 1 + naive])
        bottom.grid(False)
    return fig


def by_dimension(
    table: pd.DataFrame, ylabel: str, *, truth: pd.DataFrame | None = None, band: float | None = None
) -> Figure:
    """Values against the dimension of the data, a panel for each `shares`, a colour for each label.

    Parameters
    ----------
    truth : columns shares, dimension, value; drawn as bars
    band : half the width of a grey band around 0
    """
    panels = list(dict.fromkeys(table["shares"]))
    dimensions = sorted(set(table["dimension"]))
    labels = list(dict.fromkeys(table["label"]))
    fig, axes = plt.subplots(1, len(panels), figsize=(7.9, 3.6), sharey=True, squeeze=False)
    for ax, shares in zip(axes[0], panels, strict=True):
        part = table[table["shares"] == shares]
        if truth is not None:
            known = truth[truth["shares"] == shares].set_index("dimension")["value"]
            for i, d in enumerate(dimensions):
                name = "quadrature" if i == 0 else None
                ax.hlines(known[d], i - 0.35, i + 0.35, color="0.3", lw=2, label=name)
        for row in part.to_dict("records"):
            number = labels.index(row["label"])
            shift = 0.24 * (number - (len(labels) - 1) / 2)
            style: dict[str, Any] = {"color": PALETTE[number], "fmt": MARKERS[number]}
            _interval(ax, row, dimensions.index(row["dimension"]) + shift, horizontal=False, **style)
        if band is not None:
            ax.axhspan(-band, band, color="0.5", alpha=0.15, lw=0)
            ax.axhline(0, color="0.3", lw=1)
        ax.set_xticks(range(len(dimensions)), [str(d) for d in dimensions])
        ax.set(title=f"{shares} classes", xlabel="dimension d")
    for number, label in enumerate(labels):
        axes[0, 0].plot([], [], MARKERS[number], color=PALETTE[number], label=label)
    axes[0, 0].set(ylabel=ylabel)
    axes[0, 0].legend(loc="best")
    return fig


def rules(table: pd.DataFrame) -> Figure:
    """Accuracy and per-class accuracy under two decision rules: bars are Bayes, dots what was learned.

    Parameters
    ----------
    table : columns metric, rule ("map" or "ml"), label, value, low, high; the label "Bayes" is drawn as a bar
    """
    names = {"accuracy": "accuracy", "per_class_accuracy": "per-class accuracy"}
    labels = [label for label in dict.fromkeys(table["label"]) if label != "Bayes"]
    fig, axes = plt.subplots(1, 2, figsize=(7.9, 3.6), sharey=True)
    for ax, (metric, title) in zip(axes, names.items(), strict=True):
        part = table[table["metric"] == metric]
        for row in part.to_dict("records"):
            at = ("map", "ml").index(row["rule"])
            if row["label"] == "Bayes":
                ax.hlines(row["value"], at - 0.35, at + 0.35, color="0.3", lw=2)
                continue
            number = labels.index(row["label"])
            style: dict[str, Any] = {"color": PALETTE[number], "fmt": MARKERS[number]}
            _interval(ax, row, at + 0.24 * (number - (len(labels) - 1) / 2), horizontal=False, **style)
        ax.set_xticks([0, 1], ["for the training shares", "for equal shares"])
        ax.set(title=title, xlim=(-0.6, 1.6))
    for number, label in enumerate(labels):
        axes[0].plot([], [], MARKERS[number], color=PALETTE[number], label=label)
    axes[0].plot([], [], color="0.3", lw=2, label="Bayes")
    axes[0].set(ylabel="%")
    axes[0].legend(loc="best")
    return fig


def learning_curves(curves: pd.DataFrame, limits: tuple[float, float] = (-0.32, 0.06)) -> Figure:
    """Error against training steps: mean and range over seeds, a panel for each dimension.

    Parameters
    ----------
    curves : columns dimension, label, step, seed, error (nats)
    """
    dimensions = sorted(set(curves["dimension"]))
    fig, axes = plt.subplots(1, len(dimensions), figsize=(7.9, 3.6), sharey=True, squeeze=False)
    styles = ("-", "--", "-.", ":", (0, (5, 1)))
    for ax, d in zip(axes[0], dimensions, strict=True):
        part = curves[curves["dimension"] == d]
        for number, (label, curve) in enumerate(part.groupby("label", sort=False)):
            error = curve.groupby("step")["error"].agg(["mean", "min", "max"])
            color = PALETTE[number % len(PALETTE)]
            marker = "o" if len(error) == 1 else None
            ax.plot(
                error.index, error["mean"], ls=styles[number % 5], marker=marker, color=color, label=label
            )
            ax.fill_between(error.index, error["min"], error["max"], color=color, alpha=0.15, lw=0)
        ax.axhspan(-0.02, 0.02, color="0.5", alpha=0.15, lw=0)
        ax.axhline(0, color="0.3", lw=1)
        ax.set(title=f"imbalanced, d = {d}", xlabel="training steps", ylim=limits)
    axes[0, 0].set(ylabel="estimate − truth, nats")
    axes[0, -1].legend(loc="lower right")
    return fig


def pmi_along_line(position: Any, density: Any, exact: Any, estimated: Any, title: str) -> Figure:
    """Estimated PMI of every class (solid) and the exact one (dashed) along a line, over the data's density.

    Parameters
    ----------
    position, density : (G,); exact, estimated : (G, K), nats
    """
    fig, ax = plt.subplots(figsize=(7.9, 3.4))
    x, height = np.asarray(position), np.asarray(density)
    ax.fill_between(x, -8, -8 + 4 * height / height.max(), color="0.85", lw=0, label="density of the data")
    for k in range(np.asarray(exact).shape[1]):
        ax.plot(x, np.asarray(estimated)[:, k], color=PALETTE[k], label=f"class {k}")
        ax.plot(x, np.asarray(exact)[:, k], "--", color=PALETTE[k], lw=1)
    ax.set(ylim=(-8, 3.2), xlabel="position along the line of the means", ylabel="PMI, nats", title=title)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def recall_plane(table: pd.DataFrame) -> Figure:
    """Recall of rare over that of common classes, a panel per data set; small dots are seeds, large means.

    Parameters
    ----------
    table : columns dataset, label, seed, metric ("rare_recall" or "common_recall"), value in per cent
    """
    panels = list(dict.fromkeys(table["dataset"]))
    fig, axes = plt.subplots(1, len(panels), figsize=(7.9, 4.6), squeeze=False)
    for ax, name in zip(axes[0], panels, strict=True):
        part = table[table["dataset"] == name]
        ends = part.groupby(["label", "metric"])["value"].mean().unstack()
        if {"softmax", "PC-softmax"} <= set(ends.index):
            to, start = (ends.loc[label] for label in ("PC-softmax", "softmax"))
            arrow = {"arrowstyle": "->", "color": "0.4", "lw": 1.5, "shrinkA": 9, "shrinkB": 9}
            ax.annotate("", tuple(to), tuple(start), arrowprops=arrow)
        for number, (label, rows) in enumerate(part.groupby("label", sort=False)):
            points = rows.pivot(index="seed", columns="metric", values="value")
            style: dict[str, Any] = {"color": PALETTE[number], "marker": MARKERS[number], "ls": ""}
            ax.plot(points["common_recall"], points["rare_recall"], markersize=4, alpha=0.5, **style)
            mean = points.mean()
            ax.plot(mean["common_recall"], mean["rare_recall"], markersize=10, label=label, **style)
        ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())  # of the points, not of the lines to come
        for total in range(0, 201, 5):  # along a line the mean of both recalls is the same
            ax.axline((total, 0), slope=-1, color="0.9", lw=0.8, zorder=0)
        ax.set(title=name, xlabel="recall of common classes, %")
    axes[0, 0].plot([], [], "o", color="0.5", markersize=4, alpha=0.5, label="one seed")
    axes[0, 0].set(ylabel="recall of rare classes, %")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def trade_off(table: pd.DataFrame, tau: float | None = None) -> Figure:
    """Accuracy and per-class accuracy along the weight τ of the log prior: mean and range over seeds.

    Parameters
    ----------
    table : columns dataset, tau, seed, test, metric, value in per cent
    tau : a setting to mark
    """
    panels = list(dict.fromkeys(table["dataset"]))
    fig, axes = plt.subplots(1, len(panels), figsize=(7.9, 3.8), squeeze=False)
    measures = {
        ("training_shares", "accuracy"): "accuracy, training shares",
        ("all", "per_class_accuracy"): "per-class accuracy",
    }
    for ax, name in zip(axes[0], panels, strict=True):
        for number, ((test, metric), label) in enumerate(measures.items()):
            rows = table[(table["dataset"] == name) & (table["test"] == test) & (table["metric"] == metric)]
            curve, color = rows.groupby("tau")["value"].agg(["mean", "min", "max"]), PALETTE[number]
            ax.plot(curve.index, curve["mean"], color=color, label=label)
            ax.fill_between(curve.index, curve["min"], curve["max"], color=color, alpha=0.15, lw=0)
            best = curve["mean"].idxmax()
            ax.plot(best, curve["mean"][best], "*", color=color, markersize=12)
            if tau is not None:
                near = curve.index[np.abs(curve.index - tau).argmin()]
                ax.plot(near, curve["mean"][near], "o", color=color, markersize=9)
        for at in (0, 1):
            ax.axvline(at, color="0.6", lw=1, ls=":")
        ax.set(title=name, xlabel="τ, weight of the log prior")
    axes[0, 0].plot([], [], "*", color="0.5", label="best τ")
    axes[0, 0].set(ylabel="%")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def localization_curve(thresholds: Any, curves: Mapping[str, Any], chosen: Mapping[str, int]) -> Figure:
    """GT-known over the map's threshold, the one that held-out images chose and the best on test marked.

    Parameters
    ----------
    thresholds : (T,) share of the map's range
    curves : label to GT-known (seeds, T) in per cent, drawn as mean and range
    chosen : label to the index of the threshold that held-out images chose
    """
    fig, ax = plt.subplots(figsize=(7.9, 4))
    x = np.asarray(thresholds)
    for number, (label, values) in enumerate(curves.items()):
        y = np.atleast_2d(np.asarray(values, dtype=float))  # (S, T)
        mean, color = y.mean(0), PALETTE[number % len(PALETTE)]
        ax.plot(x, mean, color=color, label=label)
        ax.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.15, lw=0)
        ax.plot(x[chosen[label]], mean[chosen[label]], "o", color=color)
        best = int(mean.argmax())
        ax.plot(x[best], mean[best], "*", color=color, markerfacecolor="white", markersize=12)
    ax.plot([], [], "o", color="grey", label="threshold from held-out images")
    ax.plot([], [], "*", color="grey", markerfacecolor="white", markersize=12, label="oracle: best on test")
    ax.set(xlabel="threshold, share of the map's range", ylabel="GT-known Loc, %")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def gauge_curve(table: pd.DataFrame) -> Figure:
    """GT-known against the length of a vector common to all class weights: mean and range over vectors.

    Parameters
    ----------
    table : columns label, common_length, vector, value in per cent
    """
    fig, ax = plt.subplots(figsize=(7.9, 3.6))
    lengths = sorted(set(table["common_length"]))
    for number, (label, rows) in enumerate(table.groupby("label", sort=False)):
        curve, color = rows.groupby("common_length")["value"].agg(["mean", "min", "max"]), PALETTE[number]
        at = [lengths.index(length) for length in curve.index]
        ax.plot(at, curve["mean"], marker=MARKERS[number], color=color, label=label)
        ax.fill_between(at, curve["min"], curve["max"], color=color, alpha=0.2, lw=0)
    ax.set_xticks(range(len(lengths)), [f"{length:g}" for length in lengths])
    ax.set(xlabel="length of the common vector, in lengths of the class weights", ylabel="GT-known Loc, %")
    ax.legend(loc="best")
    return fig


def transfer_curve(table: pd.DataFrame) -> Figure:
    """GT-known against the number of images that chose the threshold: mean, 95 % of choices, oracle.

    Parameters
    ----------
    table : columns label, images (empty: the oracle), value, low, high in per cent
    """
    fig, ax = plt.subplots(figsize=(7.9, 3.6))
    for number, (label, rows) in enumerate(table.groupby("label", sort=False)):
        color, found = PALETTE[number], rows[rows["images"].notna()]
        x = found["images"].astype(int)
        ax.plot(x, found["value"], marker=MARKERS[number], color=color, label=label)
        ax.fill_between(x, found["low"], found["high"], color=color, alpha=0.15, lw=0)
        for value in rows[rows["images"].isna()]["value"]:
            ax.axhline(value, color=color, ls=":")
    ax.plot([], [], color="grey", ls=":", label="oracle: best on test")
    sizes = sorted(set(table["images"].dropna().astype(int)))
    ax.set_xscale("log")
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.minorticks_off()
    ax.set(xlabel="held-out images that chose the threshold", ylabel="GT-known Loc, %")
    ax.legend(loc="best")
    return fig


def gallery(
    images: Any, maps: Any, boxes: Any, iou: Any, truths: Any, methods: Sequence[str], title: str = ""
) -> Figure:
    """A row of pictures, and a row a method: in grey under their maps, blue below zero and red above.

    The box of the map is dashed, the true one solid; a colour bar a row, white at zero.

    Parameters
    ----------
    images : (N, 3, H, W) uint8
    maps : (M, N, h, w), signed, in nats
    boxes : (M, N, 4), iou : (M, N), truths : (N, 4); x0 y0 x1 y1 in pixels
    methods : (M,) names
    """
    pictures = np.asarray(images)
    if pictures.ndim != 4 or pictures.shape[1] != 3 or len(pictures) == 0:
        raise ValueError(f"images must be (N, 3, H, W) with N > 0, were {pictures.shape}")
    count, _, height, width = pictures.shape
    size = (2.3 * count, 2.45 * (1 + len(methods)))
    fig, axes = plt.subplots(1 + len(methods), count, figsize=size, squeeze=False)
    extent = (0, width, height, 0)
    for i, ax in enumerate(axes[0]):
        ax.imshow(pictures[i].transpose(1, 2, 0), extent=extent)
        _box(ax, truths[i], "black", "-")
    for row, (name, values) in enumerate(zip(methods, maps, strict=True), 1):
        reach = float(np.abs(np.asarray(values)).max()) or 1.0
        for i, ax in enumerate(axes[row]):
            drawn = _under_map(ax, pictures[i], values[i], reach)
            share, hit = float(iou[row - 1][i]), float(iou[row - 1][i]) >= 0.5
            _box(ax, truths[i], "black", "-")
            _box(ax, boxes[row - 1][i], HIT if hit else MISS, "--")
            ax.set_title(f"{name}: IoU {share:.2f}, {'hit' if hit else 'miss'}", fontsize=9)
        fig.colorbar(drawn, ax=axes[row].tolist(), label=f"{name}, nats", shrink=0.8, pad=0.01)
    for ax in axes.flat:
        ax.axis("off")
    fig.suptitle(title)
    return fig


def _under_map(ax: Axes, picture: np.ndarray, values: Any, reach: float) -> Any:
    """The picture (3, H, W) in grey under its map (h, w), which is white at zero and full at ± `reach`."""
    extent = (0, picture.shape[2], picture.shape[1], 0)
    ax.imshow(picture.mean(0), extent=extent, cmap="gray", vmin=-60, vmax=255)
    style: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach, "interpolation": "bilinear"}
    return ax.imshow(np.asarray(values, dtype=float), extent=extent, alpha=0.6, **style)


def _box(ax: Axes, box: Any, colour: str, line: str) -> None:
    x0, y0, x1, y1 = (float(v) for v in box)
    ax.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=colour, ls=line, lw=2.5))


def hero(
    picture: Any,
    maps: Any,
    boxes: Any,
    iou: Any,
    truth: Any,
    probabilities: Any,
    lengths: Sequence[float],
    names: Sequence[str],
) -> Figure:
    """A picture under CAM and infoCAM as a common vector grows, and what the classifier says all along.

    Parameters
    ----------
    picture : (3, H, W) uint8
    maps, boxes, iou, truth, probabilities : see `localize.gauge_example`
    lengths : of the vector, in multiples of the class weights' own
    names : of the classes
    """
    fig, axes = plt.subplots(2, 1 + len(lengths), figsize=(11, 6), layout="constrained")
    title = "Same classifier, same predictions: CAM loses the bird, infoCAM does not move"
    fig.suptitle(title, fontweight="bold", fontsize="large")
    pixels, extent = np.asarray(picture), (0, picture.shape[2], picture.shape[1], 0)
    axes[0, 0].imshow(pixels.transpose(1, 2, 0), extent=extent)
    axes[0, 0].set_title("the picture\n")
    values = np.asarray(probabilities, dtype=float)
    top = np.argsort(-values)[:3][::-1]
    axes[1, 0].barh(range(3), 100 * values[top], color=["0.75", "0.75", PALETTE[0]], height=0.4)
    axes[1, 0].set(
        xlim=(0, 100), ylim=(-0.4, 2.7), yticks=[], xlabel="%", title="probabilities, in all columns"
    )
    axes[1, 0].grid(False)
    for at, k in enumerate(top):
        axes[1, 0].text(1, at + 0.27, names[k].replace("_", " "), fontsize=8)
    for row, method in enumerate(("CAM", "infoCAM")):
        for column, length in enumerate(lengths):
            ax, values = axes[row, 1 + column], np.asarray(maps[row][column], dtype=float)
            _under_map(ax, pixels, values, float(np.abs(values).max()) or 1.0)
            share, hit = float(iou[row][column]), float(iou[row][column]) >= 0.5
            _box(ax, truth, "black", "-")
            _box(ax, boxes[row][column], HIT if hit else MISS, "--")
            above = f"{f'+ {length:g} v in every class' if length else 'weights as trained'}\n" * (row == 0)
            ax.set_title(f"{above}{method}: IoU {share:.2f}, {'hit' if hit else 'miss'}")
    for ax in (axes[0, 0], *axes[:, 1:].flat):
        ax.axis("off")
    return fig


def pmi_scatter(exact: Any, estimated: Any) -> Figure:
    """Estimated against exact PMI of single images, with the identity line and the correlation."""
    x, y = (np.asarray(values, dtype=float).ravel() for values in (exact, estimated))
    fig, ax = plt.subplots(figsize=(6.5, 5))
    ax.scatter(x, y, s=8, alpha=0.3, color=PALETTE[0], linewidth=0, rasterized=True)
    ends = [min(x.min(), y.min()), max(x.max(), y.max())]
    ax.plot(ends, ends, color="grey", ls=":")
    ax.set(
        title=f"The PMI of single images: correlation {np.corrcoef(x, y)[0, 1]:.2f}",
        xlabel="exact PMI, nats",
        ylabel="estimated PMI, nats",
    )
    return fig
