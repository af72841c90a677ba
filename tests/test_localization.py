"""Boxes against an independent implementation; scores against closed forms and scikit-learn."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from sklearn.metrics import average_precision_score
from torch import Tensor

from infocam_utils import localization as components
from infocam_utils.localization import (
    boxes_from_maps,
    iou_with_truth,
    localization_accuracy,
    max_box_acc,
    max_box_acc_v2,
    normalise_maps,
    pxap,
    select_threshold,
    upsample_maps,
)


def labelled_boxes(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """One labelling per map and threshold; most pixels, then the first pixel in raster order."""
    boxes = np.zeros((len(values), len(thresholds), 4), dtype=np.int64)
    for b, t in np.ndindex(boxes.shape[:2]):
        labels, count = ndimage.label(values[b] > thresholds[t], structure=np.ones((3, 3)))
        if count:
            pixels = [np.flatnonzero(labels == c) for c in range(1, count + 1)]
            largest = min(pixels, key=lambda p: (-len(p), p[0]))
            y, x = np.divmod(largest, values.shape[2])
            boxes[b, t] = x.min(), y.min(), x.max() + 1, y.max() + 1
    return boxes


def random_values(seed: int) -> Iterator[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    height, width, count = (int(n) for n in (*rng.integers(1, 26, 2), rng.integers(1, 4)))
    coarse = torch.rand(count, 1, 4, 5, generator=generator)
    yield "noise", rng.random((count, height, width))
    yield "few values", rng.integers(0, 4, (count, height, width)) / 3
    yield "binary", rng.integers(0, 2, (count, height, width)).astype(float)
    for mode in ("bilinear", "nearest"):
        yield mode, F.interpolate(coarse, size=(height, width), mode=mode)[:, 0].numpy()
    yield "bicubic", F.interpolate(coarse, size=(height, width), mode="bicubic")[:, 0].clamp(0, 1).numpy()


@pytest.mark.parametrize("seed", range(40))
def test_components_equal_labelling(seed: int) -> None:
    for kind, made in random_values(seed):
        values = made.astype(np.float32)
        # thresholds equal to pixel values, outside the range, and closer together than any table resolves
        own = values.reshape(-1)[:3]
        near = np.nextafter(own, np.float32(2))
        others = [-0.5, 0, 1 / 3, 1, 1.5, *np.random.default_rng(seed).random(6)]
        thresholds = np.unique(np.concatenate([others, own, near]).astype(np.float32))
        found = components.largest_component_boxes(values, thresholds)
        np.testing.assert_array_equal(found, labelled_boxes(values, thresholds), err_msg=kind)


@pytest.mark.parametrize("size", [(7, 7), (14, 14), (64, 64)])
def test_boxes_at_working_size_equal_labelling(size: tuple[int, int]) -> None:
    maps = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    thresholds = torch.arange(0, 1, 0.11)
    values = normalise_maps(upsample_maps(maps, 224)).numpy()
    expected = labelled_boxes(values, thresholds.numpy())
    np.testing.assert_array_equal(boxes_from_maps(maps, 224, thresholds).numpy(), expected)


def spiral(side: int) -> np.ndarray:
    """One 4-connected path of rising values around a wall of zeros: the longest possible climb."""
    value, seen = np.zeros((side, side)), np.zeros((side, side), dtype=bool)
    y = x = step = 0
    dy, dx = 0, 1
    while True:
        step += 1
        value[y, x] = step
        seen[y, x] = True
        for _ in range(2):
            ahead, beyond = (y + dy, x + dx), (y + 2 * dy, x + 2 * dx)
            inside = 0 <= ahead[0] < side and 0 <= ahead[1] < side and not seen[ahead]
            free = not (0 <= beyond[0] < side and 0 <= beyond[1] < side and seen[beyond])
            if inside and free:
                y, x = ahead
                break
            dy, dx = dx, -dy
        else:
            return value / step


@pytest.mark.parametrize("turn", range(4))
def test_long_climbs(turn: int) -> None:
    values = np.rot90(spiral(23), turn)[None].astype(np.float32).copy()
    thresholds = np.linspace(0, 1, 20, dtype=np.float32)
    np.testing.assert_array_equal(
        components.largest_component_boxes(values, thresholds), labelled_boxes(values, thresholds)
    )


def test_diagonal_neighbours_connect() -> None:
    maps = torch.eye(5)[None]
    assert boxes_from_maps(maps, 5, [0.5]).tolist() == [[[0.0, 0.0, 5.0, 5.0]]]
    assert boxes_from_maps(maps.flip(-1), 5, [0.5]).tolist() == [[[0.0, 0.0, 5.0, 5.0]]]


def test_opposite_borders_do_not_connect() -> None:
    maps = torch.zeros(2, 3, 4)
    maps[0, 0, 3] = maps[0, 1, 0] = maps[0, 1, 1] = 1.0  # end of one row, start of the next
    maps[1, 0, 0] = maps[0, 2, 3] = 1.0  # end of one map, start of the next
    assert boxes_from_maps(maps, (3, 4), [0.5]).tolist() == [[[0.0, 1.0, 2.0, 2.0]], [[0.0, 0.0, 1.0, 1.0]]]


def test_larger_component_wins_and_ties_go_to_the_first_pixel() -> None:
    maps = torch.zeros(1, 3, 9)
    maps[0, 0, 8] = maps[0, 1, 0] = 1.0
    assert boxes_from_maps(maps, (3, 9), [0.5])[0, 0].tolist() == [8.0, 0.0, 9.0, 1.0]
    maps[0, 1, 1] = 0.9
    assert boxes_from_maps(maps, (3, 9), [0.5])[0, 0].tolist() == [0.0, 1.0, 2.0, 2.0]
    assert boxes_from_maps(maps, (3, 9), [0.95])[0, 0].tolist() == [8.0, 0.0, 9.0, 1.0]


def test_thresholds_in_any_order_and_repeated() -> None:
    maps = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(2))
    boxes = boxes_from_maps(maps, 30, [0.7, 0.1, 0.7])
    torch.testing.assert_close(boxes, boxes_from_maps(maps, 30, [0.1, 0.7])[:, [1, 0, 1]])


def test_batch_split_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.randn(5, 7, 7, generator=torch.Generator().manual_seed(3))
    whole = boxes_from_maps(maps, 50, [0.2, 0.5])
    monkeypatch.setattr("infocam_utils.localization._CHUNK_PIXELS", 2 * 50 * 50)
    assert torch.equal(boxes_from_maps(maps, 50, [0.2, 0.5]), whole)
    assert torch.equal(torch.cat([boxes_from_maps(m[None], 50, [0.2, 0.5]) for m in maps]), whole)


def test_scale_and_shift_do_not_move_boxes() -> None:
    maps = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(4)).double()
    boxes = boxes_from_maps(maps, 32, [0.2, 0.6])
    assert torch.equal(boxes_from_maps(1024 * maps, 32, [0.2, 0.6]), boxes)
    assert torch.equal(boxes_from_maps(maps.flip(-1), 32, [0.6])[..., [2, 0]], 32 - boxes[:, 1:, [0, 2]])


def test_constant_map_gives_zero_boxes() -> None:
    assert boxes_from_maps(torch.full((1, 4, 4), -3.0), 8, [0.0, 0.5]).tolist() == [[[0.0] * 4] * 2]
    assert boxes_from_maps(torch.full((1, 4, 4), -3.0), 8, [-0.1]).tolist() == [[[0.0, 0.0, 8.0, 8.0]]]


def test_boxes_shrink_inside_the_image_for_one_hill() -> None:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    hill = torch.exp(-((x - 12) ** 2 + (y - 20) ** 2) / 50)[None]
    boxes = boxes_from_maps(hill, 32, torch.linspace(0.05, 0.95, 19))[0]
    assert bool((boxes[1:, :2] >= boxes[:-1, :2]).all())
    assert bool((boxes[1:, 2:] <= boxes[:-1, 2:]).all())
    assert boxes[-1].tolist() == [11.0, 19.0, 14.0, 22.0]  # exp(-2/50) = 0.96 > 0.95 > exp(-4/50)


def test_normalise_and_upsample() -> None:
    maps = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(5))
    scaled = normalise_maps(maps)
    torch.testing.assert_close(scaled.amax((1, 2)), torch.ones(3))
    torch.testing.assert_close(scaled.amin((1, 2)), torch.zeros(3))
    torch.testing.assert_close(upsample_maps(maps, (5, 6)), maps)
    assert upsample_maps(maps.bfloat16(), 9, mode="bicubic").dtype == torch.float32


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
    better = torch.stack([steps, 1 - steps / 2], 1)
    assert float(max_box_acc(better)[0]) == 1.0


def test_pxap_equals_average_precision() -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 1001, (3, 20, 20))
    masks = rng.random(levels.shape) < levels / 1500 + 0.1
    maps = torch.from_numpy(levels).double() / 1000 + 1e-9
    expected = average_precision_score(masks.ravel(), levels.ravel())
    assert pxap(maps.clamp(max=1.0), torch.from_numpy(masks)) == pytest.approx(expected, abs=1e-9)
    assert pxap(torch.from_numpy(masks).float(), torch.from_numpy(masks)) == 1.0
    assert pxap(torch.zeros(3, 20, 20), torch.from_numpy(masks)) == pytest.approx(masks.mean())


def test_selected_threshold_is_the_middle_of_the_longest_best_stretch() -> None:
    thresholds = torch.linspace(0, 0.9, 10)
    hits = torch.tensor([0, 1, 0, 1, 1, 1, 1, 1, 0, 1]).double()
    assert select_threshold(hits[None], thresholds) == 5
    counts = torch.tensor([[0.6, 0.6, 0.0], [0.6, 0.6, 0.6], [0.0, 0.6, 0.6]])
    assert select_threshold(counts, [0.1, 0.2, 0.3]) == 1
    assert select_threshold(counts, [0.1, 0.2, 0.3], torch.tensor([True, False, False])) == 0


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
    bad(lambda: boxes_from_maps(maps, 0, [0.5]), "image_size must be a positive side")
    bad(lambda: boxes_from_maps(maps, 6, []), "non-empty list of finite numbers")
    bad(lambda: boxes_from_maps(maps, 6, [float("nan")]), "finite numbers")
    bad(lambda: boxes_from_maps(maps, 6, [0.5], mode="cubic"), "'bilinear' or 'bicubic', got 'cubic'")
    good: Tensor = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
    bad(lambda: iou_with_truth(good, torch.zeros(2, 4)), r"boxes \(B, T, 4\) and truth")
    bad(lambda: iou_with_truth(good, torch.tensor([[5.0, 0.0, 1.0, 1.0]])), r"truth\[0, 0\].*not x y w h")
    bad(lambda: iou_with_truth(good * float("nan"), good[0]), r"boxes\[0, 0\] is \[nan")
    bad(lambda: localization_accuracy(iou[0]), r"shape \(N, T\)")
    bad(lambda: localization_accuracy(iou, torch.ones(3)), r"correct must have shape \(4,\), got \(3,\)")
    bad(lambda: localization_accuracy(iou, criterion=50), r"\(0, 1\], got 50")
    bad(lambda: pxap(maps, maps[:1] > 0), r"\(N, H, W\)")
    bad(lambda: pxap(maps + 1, maps > 0), "normalise_maps")
    bad(lambda: pxap(maps, maps > 2), "no pixel")
    bad(lambda: select_threshold(iou, [0.5, 0.4]), "2 increasing numbers")
    bad(lambda: select_threshold(iou, [0.5]), "one per column")
