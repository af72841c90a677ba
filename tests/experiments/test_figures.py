"""Figures: what they show is what was given, and every saved one says in words what it shows."""

import math
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

mpl.use("Agg")

from infocam_utils.experiments import figures as plotting
from infocam_utils.reproduce import report as reports
from infocam_utils.reproduce.claims import Finding
from infocam_utils.reproduce.results import Record


@pytest.fixture(autouse=True)
def _close():
    with mpl.rc_context():
        plotting.use_style()
        yield
    plt.close("all")


def test_a_saved_figure_carries_its_alternative_text_and_nothing_of_the_moment(tmp_path):
    for name in ("one", "two"):
        fig = plotting.interval_plot([("a", 1.0, 2.0, 1.5, 2.5)], "%")
        plotting.save(fig, name, alt="Ours is twice the paper's, µ.", output_dir=tmp_path)
    first, second = (tmp_path / "figures" / f"{name}.png" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    assert reports.figure_caption(first) == "Ours is twice the paper's, µ."
    with Image.open(first) as image:
        assert "Software" not in image.info
        assert image.info["dpi"][0] == pytest.approx(110, abs=0.1)


def test_a_figure_goes_to_the_runs_output(tmp_path, monkeypatch):
    monkeypatch.setenv("INFOCAM_OUTPUT", str(tmp_path))
    plotting.save(plt.figure(), "x", alt="Empty.")
    assert (tmp_path / "figures" / "x.png").exists()


def test_a_figure_without_alternative_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'x' needs an alternative text"):
        plotting.save(plt.figure(), "x", alt=" ", output_dir=tmp_path)


def test_interval_plot_draws_the_given_ends_and_no_bar_for_no_interval():
    fig = plotting.interval_plot(
        [
            ("a", 55.8, 50.0, 48.0, 53.0),
            ("b", None, 40.0, -math.inf, math.inf),
            ("c", 1.0, None, math.nan, math.nan),
        ],
        "Top-1 Loc, %",
    )
    (ax,) = fig.axes
    bars = [line.get_segments()[0] for c in ax.containers if c.has_xerr for line in c.lines[2]]
    assert [segment[:, 0].tolist() for segment in bars] == [[48.0, 53.0]]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a", "b", "c"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["paper", "ours, 95 % interval"]
    with pytest.raises(ValueError, match="at least one row"):
        plotting.interval_plot([], "%")


def test_scorecard_has_a_panel_per_unit():
    def row(name, paper, unit, *values):
        findings = [
            SimpleNamespace(value=Record("v", v, v - 1, v + 1, unit), dataset="d", profile="quick")
            for v in values
        ]
        return SimpleNamespace(claim=SimpleNamespace(id=name, paper=paper, unit=unit), findings=findings)

    fig = plotting.scorecard(
        [row("loc", 55.8, "%", 50.0, 52.0), row("mi", 0.0, "nats"), row("direction", None, "%", 3.0)]
    )
    assert [ax.get_xlabel() for ax in fig.axes] == ["%", "nats"]
    assert [len(ax.get_yticklabels()) for ax in fig.axes] == [2, 1]
    with pytest.raises(ValueError, match="no record to draw"):
        plotting.scorecard([row("direction", None, "%", 3.0)])


def test_differences_stand_beside_a_line_at_zero():
    record = Record("d/a_minus_b/hits", 3.0, 1.0, 5.0, "%")
    found = Finding("d", "quick", None, record, "direction only")
    nothing = Finding("d", "quick", None, None, "not attempted")
    (ax,) = plotting.differences(
        [SimpleNamespace(claim=SimpleNamespace(id="x"), findings=[found, nothing])]
    ).axes
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["x · d · a − b"]
    assert any(list(line.get_xdata()) == [0, 0] for line in ax.lines)


def test_recall_plane_has_every_seed_and_the_mean():
    (ax,) = plotting.recall_plane({"birds": {"softmax": ([80, 90], [40, 60])}}).axes
    seeds, mean = ax.lines
    assert list(zip(seeds.get_xdata(), seeds.get_ydata(), strict=True)) == [(80, 40), (90, 60)]
    assert (mean.get_xdata()[0], mean.get_ydata()[0]) == (85, 50)


def test_trade_off_marks_the_best_of_each_measure():
    curve = {"tau": np.array([0.0, 0.5, 1.0]), "accuracy": np.array([[1, 2, 3.0]]),
             "per_class_accuracy_all": np.array([[3, 2, 1.0], [5, 2, 1.0]])}  # fmt: skip
    (ax,) = plotting.trade_off({"birds": curve}).axes
    stars = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() == "*"]
    assert stars == [(1.0, 3.0), (0.0, 4.0)]


def test_localization_curve_marks_the_chosen_and_the_best_threshold():
    curves = {"CAM": torch.tensor([[10.0, 30.0, 20.0], [12.0, 34.0, 24.0]])}
    (ax,) = plotting.localization_curve([0.1, 0.2, 0.3], curves, {"CAM": 2}).axes
    marks = {
        line.get_marker(): (line.get_xdata(), line.get_ydata())
        for line in ax.lines
        if len(line.get_xdata()) == 1
    }
    assert marks["o"] == ([0.3], [22.0])
    assert marks["*"] == ([0.2], [32.0])


def test_gauge_curve_has_a_line_per_method_over_the_lengths():
    (ax,) = plotting.gauge_curve([0.0, 0.5], {"CAM": [50.0, 40.0], "infoCAM": [55.0, 55.0]}).axes
    assert [list(line.get_ydata()) for line in ax.lines] == [[50.0, 40.0], [55.0, 55.0]]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "0.5"]


def test_transfer_curve_draws_the_oracle_as_a_line():
    found = pd.DataFrame(
        {"images": [5, 50], "gt_known": [40.0, 50], "low": [30, 45], "high": [50, 52], "oracle": 53.0}
    )
    (ax,) = plotting.transfer_curve({"CAM": found}).axes
    assert list(ax.lines[0].get_ydata()) == [40.0, 50.0]
    assert list(ax.lines[1].get_ydata()) == [53.0, 53.0]
    assert ax.get_xscale() == "log"


def test_gallery_draws_both_boxes_at_their_pixels():
    images = torch.zeros(3, 3, 20, 10, dtype=torch.uint8)
    boxes = torch.tensor([[1.0, 2.0, 5.0, 8.0]] * 3)
    fig = plotting.gallery(images, torch.rand(3, 4, 4), boxes, boxes + 1, titles=["a", "b", "c"], columns=2)
    assert len(fig.axes) == 4
    truth, ours = fig.axes[0].patches
    assert (truth.get_xy(), truth.get_width(), truth.get_height()) == ((2.0, 3.0), 4.0, 6.0)
    assert (ours.get_xy(), ours.get_linestyle()) == ((1.0, 2.0), "--")
    assert fig.axes[2].get_title() == "c"
    assert all(image.get_extent() == [0, 10, 20, 0] for image in fig.axes[0].images)
    with pytest.raises(ValueError, match=r"were \(3, 20, 10\)"):
        plotting.gallery(images[0])


def test_pmi_scatter_states_the_correlation():
    exact = np.array([0.0, 1.0, 2.0, 3.0])
    fig = plotting.pmi_scatter(exact, {"PC": 2 * exact + 1, "softmax": -exact})
    assert [ax.get_title() for ax in fig.axes] == ["PC: r = 1.00", "softmax: r = -1.00"]


def test_the_palette_can_be_told_apart_in_grey_or_by_marker():
    assert len({tuple(np.round(color, 3)) for color in plotting.PALETTE}) == 10
