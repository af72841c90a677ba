"""Boxes against pixels, exact cases and symmetries; scores against closed forms and scikit-learn."""

import itertools
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, ndimage
from sklearn.metrics import average_precision_score
from torch import Tensor

from infocam_utils import localization
from infocam_utils.localization import (
    boxes_from_maps,
    centre_boxes,
    iou_with_truth,
    localization_accuracy,
    max_box_acc,
    max_box_acc_v2,
    normalise_maps,
    pixel_boxes,
    pxap,
    select_threshold,
)

LEVELS = np.concatenate([np.linspace(0.03, 0.97, 25), [0.25, 1 / 3, 0.5, 2 / 3, 0.75]])


def pixels_above(values: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of the largest components of pixels; the runner-up's area as a share."""
    boxes, runner_up = np.zeros((len(values), len(levels), 4)), np.zeros((len(values), len(levels)))
    for b, t in np.ndindex(boxes.shape[:2]):
        labels, count = ndimage.label(values[b] > levels[t], structure=np.ones((3, 3)))
        if count:
            areas = np.bincount(labels.ravel())[1:]
            y, x = ndimage.find_objects(labels)[areas.argmax()]
            boxes[b, t] = x.start, y.start, x.stop, y.stop
            runner_up[b, t] = np.sort(areas)[-2] / areas.max() if count > 1 else 0
    return boxes, runner_up


def on_surface(maps: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The surface's pixels, the range being the nodes'."""
    return F.interpolate(normalise_maps(maps.double())[:, None], size=size, mode="bilinear")[:, 0].numpy()


def hills(count: int, h: int, w: int, generator: torch.Generator) -> Tensor:
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    centre = torch.tensor([h, w]) * torch.rand(count, 3, 1, 1, 2, generator=generator)
    width = (0.1 + 0.3 * torch.rand(count, 3, 1, 1, generator=generator)) * max(h, w)
    height = torch.rand(count, 3, 1, 1, generator=generator)
    distance = (torch.stack([y, x], -1) - centre).square().sum(-1)
    return (height * torch.exp(-distance / (2 * width**2))).sum(1)


def maps_of(kind: str, h: int, w: int, generator: torch.Generator) -> Tensor:
    if kind == "hills":
        return hills(4, h, w, generator)
    if kind == "noise":
        return torch.rand(4, h, w, generator=generator)
    values = {"plateaus": 5, "binary": 2}[kind]
    return torch.randint(0, values, (4, h, w), generator=generator) / (values - 1)


# What is left over: gaps, bridges and points of the surface narrower than a pixel, and areas nearly equal. At
# t = 0.5 the saddles of binary maps lie on the level: pixels join there, the surface does not. Settled: boxes
# that hardly move when the threshold does, with a runner-up that is clearly smaller.
@pytest.mark.parametrize(
    ("kind", "share", "clear_share"),
    [("hills", 0.99, 1.0), ("noise", 0.95, 0.995), ("plateaus", 0.94, 0.99), ("binary", 0.93, 0.99)],
)
def test_boxes_lie_within_a_pixel_of_pixels(kind: str, share: float, clear_share: float) -> None:
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    near: list[np.ndarray] = []
    clear: list[np.ndarray] = []
    for _ in range(40):
        h, w, across, down = (int(n) for n in (*rng.integers(1, 14, 2), *rng.integers(8, 18, 2)))
        maps, size = maps_of(kind, h, w, generator), (h * down, w * across)
        boxes = boxes_from_maps(maps, size, LEVELS).numpy()
        expected, runner_up = pixels_above(on_surface(maps, size), LEVELS)
        distance = np.abs(boxes - expected).max(-1)
        around = [boxes_from_maps(maps, size, LEVELS + step).numpy() for step in (-0.04, 0.04)]
        settled = np.all([np.abs(box - boxes).max(-1) <= 2 for box in around], axis=0) & (runner_up < 0.95)
        near.append(distance.ravel() <= 1)
        clear.append(distance[settled] <= 1)
    assert np.concatenate(near).mean() >= share
    assert np.concatenate(clear).mean() >= clear_share
    assert np.concatenate(clear).size > 500


@pytest.mark.parametrize("size", [7, 8, 50, 256])
def test_one_hill_is_found_to_the_pixel_at_every_size(size: int) -> None:
    y, x = torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij")
    hill = torch.exp(-((x - 2.2) ** 2 / 3 + (y - 4.1) ** 2 / 5))[None]
    levels = np.linspace(0.01, 0.85, 20)
    boxes, _ = pixels_above(on_surface(hill, (size, size)), levels)
    np.testing.assert_allclose(boxes_from_maps(hill, size, levels).numpy(), boxes, atol=1)


def test_pixels_follow_torch_interpolate_at_crossings() -> None:
    # 0 1 enlarged to 4 pixels is 0, 1/4, 3/4, 1: a threshold on a pixel leaves it out, one below takes it in
    row = torch.tensor([[[0.0, 1.0]]])
    starts = boxes_from_maps(row, (3, 4), [-0.1, 0.0, 0.2, 0.25, 0.7, 0.75, 0.8, 1.0])[0]
    assert starts[:, 0].tolist() == [0, 1, 1, 2, 2, 3, 3, 0]
    assert starts[:, 2].tolist() == [4, 4, 4, 4, 4, 4, 4, 0]
    assert starts[:, 3].tolist() == [3, 3, 3, 3, 3, 3, 3, 0]
    assert torch.equal(starts, pixel_boxes(row, (3, 4), [-0.1, 0.0, 0.2, 0.25, 0.7, 0.75, 0.8, 1.0])[0])


def test_diagonals_join_at_the_saddle() -> None:
    # the saddle is (0.9 * 0.8 − 0.2 * 0) / (0.9 + 0.8 − 0.2 − 0) = 0.48; above it, the corner of 0.9 ends at
    # 0.41 / 0.7 of the way to 0.2 and at 0.41 / 0.9 of the way to 0, which are pixels 108.07 and 95.06
    cell, levels = torch.tensor([[[0.9, 0.2], [0.0, 0.8]]], dtype=torch.float64), [0.47 / 0.9, 0.49 / 0.9]
    assert boxes_from_maps(cell, 200, levels).tolist() == [[[0, 0, 200, 200], [0, 0, 109, 96]]]
    assert boxes_from_maps(cell.flip(-1), 200, levels).tolist() == [[[0, 0, 200, 200], [91, 0, 200, 96]]]


def test_a_saddle_on_the_level_does_not_join() -> None:
    assert boxes_from_maps(torch.eye(2)[None], 8, [0.5 - 1e-6, 0.5]).tolist() == [
        [[0, 0, 8, 8], [0, 0, 4, 4]]
    ]
    corner = boxes_from_maps(torch.eye(2)[None].flip(-1), 8, [0.5])
    assert corner.tolist() == [[[4, 0, 8, 4]]]
    assert corner.dtype == torch.float32


@pytest.mark.parametrize("growth", [1e-9, 1e-3, 0.01, 0.0199, 0.0201, 0.5, 100.0])
def test_mean_of_a_ratio_of_lines_to_eleven_digits(growth: float) -> None:
    """Above and below where the closed form gives way to a series; from either end, and to a zero."""
    s0, s1 = 0.7, 0.7 * (1 + growth)
    for p0, p1 in ((0.0, 0.6), (0.5, 0.0), (0.3, 0.7)):
        ratio = integrate.quad(
            lambda u, p=p0, q=p1: (p + (q - p) * u) / (s0 + (s1 - s0) * u), 0, 1, epsabs=0, epsrel=1e-13
        )[0]
        assert localization._mean_share(p0, p1, s0, s1) == pytest.approx(ratio, rel=2e-11)
        assert localization._mean_share(p1, p0, s1, s0) == pytest.approx(ratio, rel=2e-11)
    assert localization._mean_share(0.0, 0.4, 0.0, 0.5) == pytest.approx(0.8)
    assert localization._mean_share(0.0, 0.0, 0.3, 0.5) == 0
    assert localization._mean_share(0.3, 0.5, 0.3, 0.5) == 1


def test_area_of_a_cell_equals_integration() -> None:
    rng = np.random.default_rng(0)
    cases = [*rng.normal(size=(300, 4)), *rng.integers(-2, 3, (100, 4)).astype(float)]
    for a, b, c, d in cases:

        def height(x: float, a: float = a, b: float = b, c: float = c, d: float = d) -> float:
            top, bottom = a + (b - a) * x, c + (d - c) * x
            if top > 0 and bottom > 0:
                return 1.0
            high, low = max(top, bottom), min(top, bottom)
            return high / (high - low) if high > 0 else 0.0

        breaks = [v / (v - u) for v, u in ((a, b), (c, d)) if v * u < 0]
        expected = integrate.quad(height, 0, 1, points=breaks or None, limit=200)[0]
        left, right = max(a, c) > 0, max(b, d) > 0
        assert localization._cell_area(a, b, c, d, left, right) == pytest.approx(expected, abs=1e-6)
        if max(a, d) <= 0 < min(b, c) or max(b, c) <= 0 < min(a, d):
            one_by_one = [localization._cell_area(a, b, c, d, side, not side) for side in (True, False)]
            if (a * d - b * c) / (a + d - b - c) <= 0:  # apart
                assert sum(one_by_one) == pytest.approx(expected, abs=1e-6)


def test_largest_has_most_area_and_equals_go_to_the_first_node() -> None:
    maps = torch.zeros(1, 3, 9)
    maps[0, 0, 8] = maps[0, 2, 0] = 1.0  # two corners of the image, alike
    assert boxes_from_maps(maps, (30, 90), [0.45])[0, 0].tolist() == [80, 0, 90, 10]
    maps[0, 2, 1] = 0.9
    assert boxes_from_maps(maps, (30, 90), [0.45])[0, 0].tolist() == [0, 20, 20, 30]
    assert boxes_from_maps(maps, (30, 90), [0.95])[0, 0].tolist() == [0, 25, 10, 30]  # half-way to 0.9
    # within the map four corners of cells, each 1/2 − ln 2 / 2: 0.61 cells; in the image's corner one such,
    # with two strips of 1/4 and the quarter of a cell beyond the outer nodes: 0.90 cells
    corner = torch.zeros(1, 5, 5)
    corner[0, 1, 1] = corner[0, 4, 4] = 1.0
    assert boxes_from_maps(corner, 50, [0.5])[0, 0].tolist() == [40, 40, 50, 50]


def test_one_broad_node_outweighs_six_steep_ones() -> None:
    maps = torch.zeros(1, 9, 9, dtype=torch.float64)
    maps[0, 1:3, 1:4] = 1.0  # two whole cells and a rim of 0.1: 2.62 cells
    maps[0, 5:8, 5:8] = 0.89
    maps[0, 6, 6] = 1.0  # four times 1 − (1 + ln 11) / 11: 2.76 cells
    assert boxes_from_maps(maps, 90, [0.9]).tolist() == [[[56, 56, 74, 74]]]


def test_a_box_never_vanishes_while_something_is_above() -> None:
    peak = torch.zeros(1, 9, 9)
    peak[0, 3, 5] = 1.0
    assert boxes_from_maps(peak, 9, [0.999, 1.0]).tolist() == [[[5, 3, 6, 4], [0, 0, 0, 0]]]
    assert boxes_from_maps(peak, 4, [0.999]).tolist() == [[[2, 1, 3, 2]]]  # between pixels, at 1.06 and 1.94
    assert boxes_from_maps(peak[:, 1:6, 3:8], 10, [0.999]).tolist() == [[[4, 4, 6, 6]]]  # two are as near


@pytest.mark.parametrize("kind", ["hills", "noise"])
def test_boxes_follow_symmetries(kind: str) -> None:
    generator = torch.Generator().manual_seed(4)
    for h, w in itertools.product((1, 2, 7, 12), (1, 3, 8)):
        maps = maps_of(kind, h, w, generator).double()
        boxes = boxes_from_maps(maps, (90, 70), LEVELS)
        assert torch.equal(boxes_from_maps(3.7 * maps - 11, (90, 70), LEVELS), boxes)
        mirrored = boxes_from_maps(maps.flip(-1), (90, 70), LEVELS)
        left_right = torch.stack([70 - boxes[..., 2], boxes[..., 1], 70 - boxes[..., 0], boxes[..., 3]], -1)
        found = boxes[..., 2:].any(-1, keepdim=True)
        assert torch.equal(mirrored, torch.where(found, left_right, boxes))
        assert torch.equal(boxes_from_maps(maps.mT, (70, 90), LEVELS), boxes[..., [1, 0, 3, 2]])


def test_thresholds_in_any_order_repeated_and_one_by_one() -> None:
    maps = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(2))
    levels = torch.rand(50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    boxes = boxes_from_maps(maps, 30, levels)
    assert torch.equal(boxes_from_maps(maps, 30, levels[[7, 1, 7]]), boxes[:, [7, 1, 7]])
    for t, level in enumerate(levels.tolist()):
        assert torch.equal(boxes_from_maps(maps, 30, [level])[:, 0], boxes[:, t])
    assert torch.equal(torch.cat([boxes_from_maps(m[None], 30, levels) for m in maps]), boxes)


def test_precision_of_the_map_is_kept() -> None:
    maps = torch.full((1, 4, 4), 1e8, dtype=torch.float64)
    maps[0, 1, 2] += 1
    expected = boxes_from_maps(maps - 1e8, 16, [0.5])
    assert expected.tolist() == [[[8, 4, 12, 8]]]
    assert torch.equal(boxes_from_maps(maps, 16, [0.5]), expected)
    assert torch.equal(pixel_boxes(maps, 16, [0.5]), pixel_boxes(maps - 1e8, 16, [0.5]))
    assert torch.equal(boxes_from_maps((maps - 1e8).bfloat16(), 16, [0.5]), expected)


def test_constant_map_gives_zero_boxes() -> None:
    for boxes in (boxes_from_maps, pixel_boxes):
        assert boxes(torch.full((1, 4, 4), -3.0), 8, [0.0, 0.5]).tolist() == [[[0.0] * 4] * 2]
        assert boxes(torch.full((1, 4, 4), -3.0), 8, [-0.1]).tolist() == [[[0.0, 0.0, 8.0, 8.0]]]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_pixel_boxes_label_the_enlarged_map(mode: str) -> None:
    maps = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(5))
    levels = torch.linspace(0, 0.95, 12)
    boxes = pixel_boxes(maps, (40, 60), levels, mode)
    enlarged = normalise_maps(F.interpolate(maps[:, None], size=(40, 60), mode=mode)[:, 0]).numpy()
    assert np.array_equal(boxes, pixels_above(enlarged, levels.numpy())[0])
    if mode == "bicubic":
        assert torch.equal(boxes_from_maps(maps, (40, 60), levels, mode), boxes)


def test_pixels_above_a_level_are_those_of_the_maps_own_precision() -> None:
    """A pixel on the level does not lie above it, and corners join."""
    tie = torch.tensor([[[0.0, 0.3, 1.0]]])
    assert pixel_boxes(tie, (1, 3), [0.3]).tolist() == [[[2, 0, 3, 1]]]
    diagonal = torch.eye(2)[None]
    assert pixel_boxes(diagonal, 2, [0.5]).tolist() == [[[0, 0, 2, 2]]]
    coarse = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(pixel_boxes(coarse, 40, [0.3, 0.6]), pixel_boxes(coarse.float(), 40, [0.3, 0.6]))


def test_compiled_without_a_place_to_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = localization.numba.njit

    def read_only(*functions: Callable[..., object], **options: bool) -> Callable[..., object]:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return compile_(*functions, **options)

    monkeypatch.setattr("infocam_utils.localization.numba.njit", read_only)
    assert localization._compiled(lambda x: x + 1)(2) == 3


def test_normalise() -> None:
    scaled = normalise_maps(torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(5))).flatten(1)
    assert scaled.amax(1).tolist() == [1.0] * 3
    assert scaled.amin(1).tolist() == [0.0] * 3


def test_centre_boxes_have_the_fraction_of_each_side() -> None:
    assert centre_boxes(2, (40, 60), 0.5).tolist() == [[15, 10, 45, 30]] * 2
    assert centre_boxes(1, 9, 1.0).tolist() == [[0, 0, 9, 9]]
    assert centre_boxes(0, 9, 0.5).shape == (0, 4)


def test_iou_against_counted_pixels() -> None:
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 12, (30, 3, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 8, corner.shape)], -1)
    canvas = np.zeros((30, 3, 20, 20), dtype=bool)
    for i, j in np.ndindex(30, 3):
        x0, y0, x1, y1 = boxes[i, j]
        canvas[i, j, y0:y1, x0:x1] = True
    common = (canvas[:, :2] & canvas[:, 2:]).sum((2, 3))
    either = (canvas[:, :2] | canvas[:, 2:]).sum((2, 3))
    iou = iou_with_truth(torch.from_numpy(boxes[:, :2]), torch.from_numpy(boxes[:, 2]))
    np.testing.assert_allclose(iou.numpy(), common / np.maximum(either, 1))


def test_iou_takes_the_best_of_several_boxes() -> None:
    truth = torch.tensor([[[0, 0, 2, 2], [5, 5, 9, 9], [0, 0, 0, 0]]])
    boxes = torch.tensor([[[5, 5, 9, 7], [0, 0, 2, 2], [3, 3, 4, 4], [0, 0, 0, 0]]])
    assert iou_with_truth(boxes, truth).tolist() == [[0.5, 1.0, 0.0, 0.0]]


def test_iou_exactly_on_a_criterion_counts() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 7.0, 1.0]], [[0.0, 0.0, 3.0, 1.0]]])
    iou = iou_with_truth(boxes, torch.tensor([[0.0, 0.0, 10.0, 1.0]] * 2))
    assert localization_accuracy(iou, criterion=0.7).gt_known.tolist() == [0.5]
    assert localization_accuracy(iou, criterion=0.3).gt_known.tolist() == [1.0]


def test_top1_never_exceeds_gt_known_or_accuracy() -> None:
    generator = torch.Generator().manual_seed(6)
    iou, correct = torch.rand(200, 9, generator=generator), torch.rand(200, generator=generator) < 0.6
    result = localization_accuracy(iou, correct)
    assert result.top1 is not None
    assert bool((result.top1 <= torch.minimum(result.gt_known, correct.double().mean())).all())
    # independent draws: the share of both is the product of the shares, within four standard errors
    assert float((result.top1 - result.gt_known * 0.6).abs().max()) < 4 * (0.3 * 0.7 / 200) ** 0.5
    torch.testing.assert_close(localization_accuracy(iou, torch.ones(200)).top1, result.gt_known)


def test_max_box_acc_of_uniform_ious() -> None:
    steps = (torch.arange(1000) + 0.5) / 1000
    iou = torch.stack([steps, steps / 2], 1)  # share >= c is 1 - c and 1 - 2c
    torch.testing.assert_close(max_box_acc(iou, (0.3, 0.5, 0.7)), torch.tensor([0.7, 0.5, 0.3]).double())
    assert max_box_acc_v2(iou) == pytest.approx(0.5)
    assert max_box_acc_v2(steps[:, None] ** 2) == pytest.approx(
        sum(float((steps**2 >= c).double().mean()) for c in (0.3, 0.5, 0.7)) / 3
    )
    better = torch.stack([steps, 1 - steps / 2], 1)
    assert float(max_box_acc(better)[0]) == 1.0


def test_pxap_equals_average_precision() -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 1001, (3, 20, 20))
    masks = rng.random(levels.shape) < levels / 1500 + 0.1
    maps = torch.from_numpy(levels).double() / 1000 + 1e-9
    expected = average_precision_score(masks.ravel(), levels.ravel())
    assert pxap(maps.clamp(max=1.0), torch.from_numpy(masks)) == pytest.approx(expected, abs=1e-9)
    assert pxap(maps / 2, torch.from_numpy(masks), levels=2000) == pytest.approx(expected, abs=1e-9)
    assert pxap(torch.from_numpy(masks).float(), torch.from_numpy(masks)) == 1.0
    close = torch.tensor([[[0.4994, 0.4999, 0.1]]]), torch.tensor([[[False, True, False]]])
    assert [pxap(*close), pxap(*close, levels=10_000)] == [0.5, 1.0]  # a thousandth is the resolution
    assert pxap(torch.zeros(3, 20, 20), torch.from_numpy(masks)) == pytest.approx(masks.mean())


def test_selected_threshold_is_the_middle_of_the_longest_best_stretch() -> None:
    thresholds = torch.linspace(0, 0.9, 10)
    hits = torch.tensor([0, 1, 0, 1, 1, 1, 1, 1, 0, 1]).double()
    assert select_threshold(hits[None], thresholds) == 5
    counts = torch.tensor([[0.6, 0.6, 0.0], [0.6, 0.6, 0.6], [0.0, 0.6, 0.6]])
    assert select_threshold(counts, [0.1, 0.2, 0.3]) == 1
    assert select_threshold(counts, [0.1, 0.2, 0.3], torch.tensor([True, False, False])) == 0
    parted = torch.tensor([1, 0, 1, 0, 1, 1, 1, 1]).double()  # by gaps of one
    assert select_threshold(parted[None], thresholds[:8]) == 5
    halves = torch.tensor([[0.6, 0.4]] * 2 + [[0.1, 0.4]])
    assert [select_threshold(halves, [0.1, 0.2], criterion=c) for c in (0.5, 0.4)] == [0, 1]


def bad(call: object, match: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=match):
        call()  # type: ignore[operator]


def test_bad_input() -> None:
    maps, iou = torch.rand(2, 3, 3), torch.rand(4, 2)
    nan, infinite = maps.clone(), maps.clone()
    nan[1, 0, 0], infinite[0, 0, 0] = float("nan"), float("inf")
    bad(lambda: boxes_from_maps(nan, 6, [0.5]), "map 1 has NaN")
    bad(lambda: boxes_from_maps(infinite, 6, [0.5]), "map 0 has NaN or infinite")
    bad(lambda: boxes_from_maps(maps[0], 6, [0.5]), r"shape \(B, h, w\).*\(3, 3\)")
    bad(lambda: boxes_from_maps(maps[:0], 6, [0.5]), r"\(0, 3, 3\)")
    bad(lambda: boxes_from_maps(maps.long(), 6, [0.5]), "floating point, got torch.int64", TypeError)
    for size in (0, (8,), (8, 8, 8), 8.0, (8, 8.5), (0, 8), "8"):
        for boxes in (boxes_from_maps, pixel_boxes):
            bad(
                lambda b=boxes, s=size: b(maps, s, [0.5]),
                r"image_size must be a positive side or \(height, w",
            )
    assert torch.equal(boxes_from_maps(maps, np.int64(8), [0.5]), boxes_from_maps(maps, (8, 8), [0.5]))
    bad(lambda: centre_boxes(1, (8,), 0.5), r"size must be a positive side or \(height, width\)")
    bad(lambda: centre_boxes(-1, 8, 0.5), "n must be at least 0, got -1")
    for fraction in (70, 1.5, 0):
        bad(lambda f=fraction: centre_boxes(1, 8, f), rf"\(0, 1\], got {fraction}")
    bad(lambda: boxes_from_maps(maps, 6, []), "non-empty list of finite numbers")
    bad(lambda: boxes_from_maps(maps, 6, [float("nan")]), "finite numbers")
    bad(lambda: boxes_from_maps(maps, 6, [0.5], mode="cubic"), "'bilinear' or 'bicubic', got 'cubic'")
    good: Tensor = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
    for boxes_, truth in (
        (good, torch.zeros(2, 4)),
        (good[0], torch.zeros(1, 4)),
        (good[..., :3], torch.zeros(1, 4)),
        (torch.zeros(1, 1, 2, 4), torch.zeros(1, 4)),
        (good, torch.zeros(4)),
        (good, torch.zeros(1, 1, 1, 4)),
        (good, torch.zeros(1, 1, 3)),
    ):
        shapes = rf"boxes \(B, T, 4\) and truth .* got {re.escape(f'{tuple(boxes_.shape)} and ')}"
        bad(lambda b=boxes_, t=truth: iou_with_truth(b, t), shapes)
    bad(
        lambda: iou_with_truth(good, torch.tensor([[5.0, 0.0, 1.0, 1.0]])),
        r"truth\[0, 0\] is \[5.0, 0.0, 1.0, 1.0\]: needs x0 <= x1 and y0 <= y1 in pixels .*not x y w h\)$",
    )
    several = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 3)[None]
    several[0, 2, 1] = 5
    bad(lambda: iou_with_truth(several, good[0]), r"boxes\[0, 2\] is")
    bad(lambda: iou_with_truth(good * float("nan"), good[0]), r"boxes\[0, 0\] is \[nan")
    bad(lambda: localization_accuracy(iou[0]), r"shape \(N, T\)")
    bad(lambda: localization_accuracy(iou, torch.ones(3)), r"correct must have shape \(4,\), got \(3,\)")
    for criterion in (50, 1.5, 0):
        bad(lambda c=criterion: localization_accuracy(iou, criterion=c), rf"\(0, 1\], got {criterion}")
    assert localization_accuracy(torch.ones(1, 1), criterion=1).gt_known.tolist() == [1.0]
    bad(lambda: pxap(maps, maps[:1] > 0), r"\(N, H, W\), got \(2, 3, 3\) and \(1, 3, 3\)")
    bad(lambda: pxap(maps[0], maps[0] > 0), r"\(N, H, W\), got \(3, 3\)")
    bad(lambda: pxap(maps[:0], maps[:0] > 0), r"\(N, H, W\), got \(0, 3, 3\)")
    bad(lambda: pxap(maps + 1, maps > 0), "normalise_maps")
    bad(lambda: pxap(maps, maps > 2), "no pixel")
    bad(lambda: select_threshold(iou, [0.5, 0.4]), "2 increasing numbers")
    bad(lambda: select_threshold(iou, [0.5, 0.5]), "2 increasing numbers")
    bad(lambda: select_threshold(iou, [0.5]), "one per column")
