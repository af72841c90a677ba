"""Figures: what they show is what the table says, and every saved one says in words what it shows."""

import base64
import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

mpl.use("Agg")

from infocam_utils.experiments import figures


@pytest.fixture(autouse=True)
def _close():
    with mpl.rc_context():
        figures.use_style()
        yield
    plt.close("all")


def dots(ax) -> list[tuple[float, float]]:
    """Positions of all dots that have an error bar or could have one."""
    return [tuple(map(float, np.ravel(c.lines[0].get_xydata()))) for c in ax.containers]


def bars(ax) -> list[np.ndarray]:
    """The ends of every error bar."""
    return [np.array(part.get_segments()[0]) for c in ax.containers for part in c.lines[2]]


def test_a_saved_figure_carries_its_alternative_text_and_nothing_of_the_moment(tmp_path):
    table = pd.DataFrame({"label": ["a"], "value": [2.0], "low": [1.5], "high": [2.5]})
    for name in ("one", "two"):
        figures.save(figures.intervals(table, "%"), name, alt="Ours is twice theirs, µ.", output_dir=tmp_path)
    first, second = (tmp_path / "figures" / f"{name}.png" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert image.info["Description"] == "Ours is twice theirs, µ."
        assert "Software" not in image.info


def test_a_figure_goes_to_the_runs_output(tmp_path, monkeypatch):
    monkeypatch.setenv("INFOCAM_OUTPUT", str(tmp_path))
    figures.save(plt.figure(), "x", alt="Empty.")
    assert (tmp_path / "figures" / "x.png").exists()


def test_a_figure_without_alternative_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'x' needs an alternative text"):
        figures.save(plt.figure(), "x", alt=" ", output_dir=tmp_path)


def test_intervals_draw_the_given_ends_and_no_bar_for_no_interval():
    table = pd.DataFrame(
        {
            "label": ["known", "single seed"],
            "value": [50.0, 40.0],
            "low": [48.0, math.nan],
            "high": [53.0, math.nan],
            "paper": [55.8, math.nan],
        }
    )
    (ax,) = figures.intervals(table, "Top-1 Loc, %").axes
    assert dots(ax) == [(50.0, 0.0), (40.0, 1.0)]
    (bar,) = bars(ax)
    assert bar[:, 0].tolist() == [48.0, 53.0]
    diamonds = [line for line in ax.lines if line.get_marker() == "D" and len(line.get_xdata())]
    assert [float(line.get_xdata()[0]) for line in diamonds] == [55.8]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["known", "single seed"]


def test_intervals_of_several_panels_and_kinds_are_told_apart():
    table = pd.DataFrame({"label": list("abc"), "value": [1.0, 2.0, 3.0], "low": 0.0, "high": 4.0})
    table = table.assign(part=["x", "x", "y"], head=["free", None, "free"])
    fig = figures.intervals(table, "points", panel="part", colour="head", zero="better")
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["x", "y"]
    assert [len(dots(ax)) for ax in fig.axes] == [2, 1]
    legend = [text.get_text() for text in fig.legends[0].get_texts()]
    assert legend == ["free", "no head"]
    assert fig.axes[-1].get_xlabel().endswith("better →")


def test_differences_have_a_panel_a_claim_and_a_line_a_setting():
    made = [("one", "birds", "free", 1.0), ("one", "birds", "own", 2.0), ("two", "digits", None, -3.0)]
    table = pd.DataFrame(made, columns=["claim", "label", "head", "value"])
    table = table.assign(low=table["value"] - 1, high=table["value"] + 1)
    fig = figures.differences(table, "points", zero="as claimed", columns=2)
    left, right = fig.axes
    assert [ax.get_title(loc="left") for ax in (left, right)] == ["one", "two"]
    (first, upper), (second, lower) = dots(left)
    assert (first, second) == (1.0, 2.0)
    assert -0.5 < upper < lower < 0.5, "two heads of one setting, side by side"
    assert dots(right) == [(-3.0, pytest.approx(1, abs=0.5))]
    assert [label.get_text() for label in left.get_yticklabels()] == ["birds", "digits"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["free head", "own head", "no head"]


def test_the_picture_says_hit_or_miss_by_its_iou():
    rng = np.random.default_rng(0)
    iou = [[0.8, 0.2], [0.6, 0.6]]
    boxes = np.tile([1.0, 1.0, 5.0, 5.0], (2, 2, 1))
    picture, maps = rng.integers(0, 256, (3, 8, 8), dtype=np.uint8), rng.normal(size=(2, 2, 4, 4))
    truth, shares, names = [0, 0, 4, 4], [0.7, 0.2, 0.1], ["Red_bird", "b", "c"]
    fig = figures.hero(picture, maps, boxes, iou, truth, shares, [0.0, 4.0], names)
    titles = [ax.get_title() for ax in fig.axes]
    assert titles[1:3] == [
        "weights as trained\nCAM: IoU 0.80, hit",
        "+ 4 v in every class\nCAM: IoU 0.20, miss",
    ]
    assert titles[4:] == ["infoCAM: IoU 0.60, hit"] * 2
    assert [text.get_text() for text in fig.axes[3].texts][-1] == "Red bird", "the likeliest on top"


def test_an_empty_table_is_refused():
    for draw in (figures.intervals, lambda table, _: figures.differences(table, "points", "better")):
        with pytest.raises(ValueError, match="no row to draw"):
            draw(pd.DataFrame({"label": [], "value": []}), "%")


def test_values_by_dimension_stand_at_their_value_beside_the_truth():
    made = [("balanced", 1, 1.0), ("imbalanced", 1, 1.1), ("imbalanced", 2, 1.2)]
    table = pd.DataFrame(made, columns=["shares", "dimension", "value"]).assign(label="ours")
    truth = pd.concat([table, table.iloc[:1].assign(dimension=2)])
    left, right = figures.by_dimension(table, "nats", truth=truth).axes
    assert [y for _, y in dots(left)] == [1.0]
    assert [y for _, y in dots(right)] == [1.1, 1.2]
    assert [x for x, _ in dots(right)] == [0.0, 1.0]


def test_rules_put_dots_at_their_rule_and_bayes_as_bars():
    made = [
        ("accuracy", r, label, v)
        for r, label, v in [("map", "Bayes", 80), ("map", "softmax", 79), ("ml", "softmax", 77)]
    ]
    table = pd.DataFrame(made, columns=["metric", "rule", "label", "value"])
    ax = figures.rules(table).axes[0]
    assert [(round(x), y) for x, y in dots(ax)] == [(0, 79.0), (1, 77.0)]
    (bar,) = [c for c in ax.collections if c.get_segments() and c.get_segments()[0][0][1] == 80]
    assert bar is not None


def test_learning_curves_are_means_over_seeds():
    curves = pd.DataFrame({"dimension": 1, "label": "MINE", "step": [20, 20, 40, 40], "seed": [0, 1, 0, 1]})
    ax = figures.learning_curves(curves.assign(error=[-0.2, -0.1, -0.05, -0.03])).axes[0]
    line = next(line for line in ax.lines if line.get_label() == "MINE")
    assert line.get_ydata() == pytest.approx([-0.15, -0.04])


def test_pmi_along_a_line_has_both_curves_of_every_class():
    x = np.linspace(-1, 1, 5)
    (ax,) = figures.pmi_along_line(x, x**2, np.zeros((5, 2)), np.ones((5, 2)), "title").axes
    assert sorted({float(line.get_ydata()[0]) for line in ax.lines}) == [0.0, 1.0]
    assert len(ax.lines) == 4


def test_recall_plane_has_a_dot_per_seed_and_the_mean():
    made = [
        ("d", "PC", s, m, v + s) for s in (0, 2) for m, v in (("common_recall", 90.0), ("rare_recall", 50.0))
    ]
    table = pd.DataFrame(made, columns=["dataset", "label", "seed", "metric", "value"])
    ax = figures.recall_plane(table).axes[0]
    seeds, mean, *_ = ax.lines
    for (low, high), values in ((ax.get_xlim(), (90, 92)), (ax.get_ylim(), (50, 52))):
        assert low < values[0] < values[1] < high < low + 10  # the points fill what is seen
    assert seeds.get_xydata().tolist() == [[90.0, 50.0], [92.0, 52.0]]
    assert mean.get_xydata().tolist() == [[91.0, 51.0]]


def test_trade_off_stars_the_best_and_marks_a_setting():
    table = pd.DataFrame({"dataset": "d", "tau": [0.0, 0.5, 1.0], "seed": 0, "value": [60.0, 80.0, 70.0]})
    table = table.assign(test="training_shares", metric="accuracy")
    other = table.assign(test="all", metric="per_class_accuracy", value=[3.0, 2.0, 1.0])
    (ax,) = figures.trade_off(pd.concat([table, other]), tau=0.9).axes
    stars = [
        line.get_xydata()[0].tolist()
        for line in ax.lines
        if line.get_marker() == "*" and len(line.get_xdata())
    ]
    assert stars == [[0.5, 80.0], [0.0, 3.0]]
    marked = [line.get_xydata()[0].tolist() for line in ax.lines if line.get_marker() == "o"]
    assert marked == [[1.0, 70.0], [1.0, 1.0]]


def test_localization_curve_marks_the_chosen_and_the_best_threshold():
    curves = {"CAM": [[10.0, 40.0, 20.0], [20.0, 50.0, 30.0]]}
    (ax,) = figures.localization_curve([0.1, 0.2, 0.3], curves, {"CAM": 2}).axes
    (chosen,) = [
        line.get_xydata()[0].tolist()
        for line in ax.lines
        if line.get_marker() == "o" and len(line.get_xdata())
    ]
    (best,) = [
        line.get_xydata()[0].tolist()
        for line in ax.lines
        if line.get_marker() == "*" and len(line.get_xdata())
    ]
    assert chosen == [0.3, 25.0]
    assert best == [0.2, 45.0]


def test_gauge_curve_is_the_mean_over_vectors():
    table = pd.DataFrame({"label": "CAM", "common_length": [0.0, 0.0, 4.0, 4.0], "vector": [0, 1, 0, 1]})
    (ax,) = figures.gauge_curve(table.assign(value=[70.0, 70.0, 40.0, 50.0])).axes
    assert ax.lines[0].get_ydata() == pytest.approx([70.0, 45.0])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "4"]


def test_transfer_curve_ends_in_the_oracle():
    table = pd.DataFrame({"label": "CAM", "images": [5, 10, None], "value": [50.0, 55.0, 60.0]})
    (ax,) = figures.transfer_curve(table.assign(low=[40.0, 50.0, None], high=[60.0, 58.0, None])).axes
    assert ax.lines[0].get_ydata() == pytest.approx([50.0, 55.0])
    assert ax.lines[1].get_ydata() == [60.0, 60.0]


def test_gallery_draws_boxes_at_their_pixels_and_one_scale_a_row():
    images = np.full((2, 3, 8, 8), 127, np.uint8)
    maps = np.array([[[[-2.0, 1.0]], [[0.0, 0.5]]], [[[0.0, 3.0]], [[-1.0, 0.0]]]])
    boxes = [[[1, 2, 5, 7]] * 2, [[0, 0, 8, 4]] * 2]
    fig = figures.gallery(images, maps, boxes, [[0.3, 0.5]] * 2, [[0, 0, 8, 8]] * 2, ("CAM", "infoCAM"))
    panels = [ax for ax in fig.axes if ax.images]
    titles = [ax.get_title() for ax in panels[2:]]
    assert titles == [f"{m}: IoU {s}" for m in ("CAM", "infoCAM") for s in ("0.30, miss", "0.50, hit")]
    assert [ax.images[1].get_clim() for ax in panels[2:]] == [(-2.0, 2.0)] * 2 + [(-3.0, 3.0)] * 2
    true, ours = panels[2].patches
    assert (ours.get_x(), ours.get_y(), ours.get_width(), ours.get_height()) == (1, 2, 4, 5)
    assert true.get_width() == 8
    assert len(panels[0].patches) == 1  # a picture shows the true box alone
    bars = [ax for ax in fig.axes if not ax.images and "nats" in ax.get_ylabel()]
    assert [ax.get_ylabel() for ax in bars] == ["CAM, nats", "infoCAM, nats"]


def test_gallery_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\)"):
        figures.gallery(np.zeros((2, 8, 8)), [], [], [], [], ())


def test_a_shown_figure_is_the_file_at_half_its_size_with_its_alternative_text(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: "a shell")
    monkeypatch.setattr("IPython.display.display", shown.append)
    figures.save(plt.figure(figsize=(4, 2)), "x", "Nothing yet.", tmp_path)
    (image,) = shown
    data, metadata = image._repr_mimebundle_()[0]["image/png"], image._repr_mimebundle_()[1]["image/png"]
    with Image.open(tmp_path / "figures" / "x.png") as file:
        assert metadata["width"] == file.width // 2
    assert metadata["alt"] == "Nothing yet."
    assert base64.b64decode(data) == (tmp_path / "figures" / "x.png").read_bytes()
    assert not plt.get_fignums()  # or the notebook would show it twice


def test_information_fills_the_entropy_and_overshoots_by_what_shares_differ():
    one = {"title": "t", "position": [0.0, 1.0], "densities": np.ones((2, 3)), "value": 0.5, "entropy": 0.9}
    _, bottom = figures.information([one]).axes
    ends = [(round(bar.get_x(), 6), round(bar.get_x() + bar.get_width(), 6)) for bar in bottom.patches]
    assert ends == [(0, 0.5), (0.5, 0.9), (0, 0.5), (0.5, round(0.5 + math.log(3) - 0.9, 6))]
    assert len(figures.information([one], naive=False).axes[1].patches) == 2


def test_pmi_curves_mark_the_ceiling_of_every_class():
    x, pmi = np.linspace(-1, 1, 5), np.array([[0.1, -2.0]] * 5)
    _, bottom = figures.pmi_curves(x, np.ones((5, 2)), pmi, [0.75, 0.25], ["a", "b"]).axes
    ceilings = [collection.get_segments()[0][0][1] for collection in bottom.collections]
    assert ceilings == pytest.approx([-math.log(0.75), -math.log(0.25)])


def test_bounds_and_bias_name_what_they_draw():
    (ax,) = figures.bounds([0.5, 1.0], {"A": [0.2, 0.4], "B": [0.1, 0.4]}, 0.4).axes
    names = [text.get_text() for text in ax.texts]
    assert {"A", "B"} < set(names)
    heights = [text.xy[1] for text in ax.texts if text.get_text() in "AB"]
    assert abs(heights[0] - heights[1]) >= 0.12  # curves that end together keep their names apart
    (ax,) = figures.bias([1, 3], [0.0, 0.1], {"a split": (3, 0.1)}).axes
    assert "a split: 0.10 nats" in [text.get_text() for text in ax.texts]


def test_pmi_scatter_tells_the_correlation():
    exact = np.array([0.0, 1.0, 2.0])
    (ax,) = figures.pmi_scatter(exact, 2 * exact).axes
    assert ax.get_title().endswith("correlation 1.00")
