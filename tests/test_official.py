"""Official-compatibility metrics: the figures that were established for the released code."""

import numpy as np
import pytest
import torch

from infocam_utils.localization import iou_with_truth
from infocam_utils.official import (
    inclusive_iou,
    official_box_transform,
    official_iou,
    official_running_average,
    official_threshold,
    official_tiny_boxes,
)


def test_disjoint_boxes_score_above_one() -> None:
    far = torch.tensor([100, 100, 200, 200])
    corner = torch.tensor([0, 0, 1, 1])
    # overlap 1 - 100 + 1 = -98 in both axes; areas 101² and 2²
    assert float(official_iou(far, corner)) == pytest.approx(98**2 / (101**2 + 4 - 98**2))
    assert float(official_iou(far, corner)) == pytest.approx(15.98, abs=0.005)
    assert float(iou_with_truth(far[None, None], corner[None])) == 0.0


def test_overlapping_boxes_agree_with_exact_iou_of_inclusive_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(0, 20, (200, 2, 2), generator=generator)
    boxes = torch.cat([start, start + torch.randint(20, 40, (200, 2, 2), generator=generator)], -1)
    half_open = boxes + torch.tensor([0, 0, 1, 1])
    exact = iou_with_truth(half_open[:, :1], half_open[:, 1])[:, 0]
    torch.testing.assert_close(official_iou(boxes[:, 0], boxes[:, 1]), exact)


@pytest.mark.parametrize(
    ("n", "batch", "first", "last"),
    [  # CUB VGG, CUB ResNet, Tiny ResNet, Tiny VGG: images and batch sizes of the official scripts
        (2878, 30, 5.15, 0.010),
        (2878, 128, 3.71, 0.022),
        (5000, 640, 2.70, 0.104),
        (5000, 1280, 2.07, 0.23),
    ],
)
def test_weights_of_first_and_last_batch(n: int, batch: int, first: float, last: float) -> None:
    # the average is linear in the hits, so a single hit shows its image's weight
    images = [0, n - 1, *range(0, n, batch)]
    hits = torch.nn.functional.one_hot(torch.tensor(images), n)
    weights = n * torch.tensor([official_running_average(hit, batch) for hit in hits])
    assert float(weights[0]) == pytest.approx(first, abs=0.005)
    assert float(weights[1]) == pytest.approx(last, rel=0.05)
    sizes = torch.full((len(images) - 2,), batch)
    sizes[-1] = n - batch * (len(sizes) - 1)
    assert float(weights[2:] @ sizes.float()) == pytest.approx(n, rel=1e-5)


def test_running_average_is_the_loop_it_stands_for() -> None:
    hits = torch.rand(103, generator=torch.Generator().manual_seed(1)) < 0.4
    total = seen = correct = 0.0
    for batch in hits.split(10):
        correct += float(batch.sum())
        seen += len(batch)
        total += len(batch) * correct / seen
    assert official_running_average(hits, 10) == pytest.approx(total / 103)
    assert official_running_average(hits, 1) == pytest.approx(
        float((hits.double().cumsum(0) / torch.arange(1, 104)).mean())
    )
    assert official_running_average(hits, 103) == pytest.approx(float(hits.double().mean()))


def test_tiny_boxes_read_as_width_and_height() -> None:
    inclusive = torch.tensor([[6, 25, 55, 51], [0, 0, 63, 63]])
    torch.testing.assert_close(official_tiny_boxes(inclusive)[0], torch.tensor([6, 25, 61, 76]).double())
    # only a box that starts at the origin survives the confusion
    torch.testing.assert_close(official_tiny_boxes(inclusive)[1], inclusive[1].double())


def test_box_transform() -> None:
    # CUB: side 255, shift floor(31 / 2) = 15
    moved = official_box_transform(torch.tensor([60.0, 27.0, 385.0, 331.0]), (500, 335), resize=256, crop=224)
    expected = [60 / 500 * 255 - 15, 27 / 335 * 255 - 15, 385 / 500 * 255 - 15, 331 / 335 * 255 - 15]
    assert moved.tolist() == pytest.approx(expected, rel=1e-14)
    unit = official_box_transform(torch.ones(4), (1, 1), resize=1, crop=1)  # the smallest there is
    assert unit.tolist() == [1.0] * 4
    # Tiny-ImageNet: floor(-0.5) = -1 moves every box by a pixel
    assert official_box_transform(torch.zeros(4), (64, 64), resize=64, crop=64).tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("asked", "kept"),
    [(0.0, 2), (0.1, 26), (0.15, 39), (0.2, 52), (0.25, 64), (0.3, 77), (0.35, 91), (0.4, 104), (0.5, 128)],
)
def test_threshold_of_the_eight_bit_pipeline(asked: float, kept: int) -> None:
    values = torch.arange(257) / 256
    above = values > official_threshold(asked)
    assert int(above.nonzero()[0]) == kept
    assert official_threshold(asked) == float(np.nextafter(np.float32(kept / 256), np.float32(0)))


def test_boxes_come_in_any_number_of_axes() -> None:
    start = torch.arange(24.0).view(2, 3, 2, 2)
    boxes, truth = torch.cat([start[..., 0, :], start[..., 0, :] + 9], -1), torch.tensor([1.0, 2, 8, 12])
    functions = (
        lambda b: official_iou(b, truth),
        lambda b: inclusive_iou(b, truth, 30),
        official_tiny_boxes,
        lambda b: official_box_transform(b, (40, 50), 60, 50),
    )
    for function in functions:
        one_by_one = torch.stack([torch.stack([function(box) for box in row]) for row in boxes])
        torch.testing.assert_close(function(boxes), one_by_one)


REFUSED = [
    (lambda good: official_iou(torch.zeros(3), good), r"^boxes must have shape \(\.\.\., 4\).*\(3,\)"),
    (lambda good: official_iou(good, torch.zeros(2)), r"^truth must have shape"),
    (lambda good: inclusive_iou(torch.zeros(3), good, 5), r"^boxes must have shape"),
    (lambda good: inclusive_iou(good, torch.zeros(2), 5), r"^truth must have shape"),
    (lambda good: official_tiny_boxes(torch.zeros(3)), r"^boxes must have shape"),
    (lambda good: official_box_transform(torch.zeros(3), (9, 9), 8, 8), r"^boxes must have shape"),
    (lambda good: official_running_average(torch.zeros(0), 3), r"hits must be \(N,\).*got \(0,\)"),
    (lambda good: official_running_average(torch.zeros(5), 0), "batch_size must be at least 1, got 0"),
    (lambda good: official_box_transform(good, (64, 64), resize=64, crop=65), "crop <= resize"),
    (lambda good: official_box_transform(good, (64, 64), resize=64, crop=0), "0 < crop"),
    (lambda good: official_box_transform(good, (64, 0), resize=64, crop=64), "image size > 0"),
    (lambda good: official_threshold(1.5), r"threshold must be in \[0, 1\), got 1.5"),
    (lambda good: official_threshold(1.0), r"threshold must be in \[0, 1\), got 1.0"),
    (lambda good: official_threshold(-0.1), r"threshold must be in \[0, 1\), got -0.1"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_bad_input(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(4))


def test_inclusive_iou_counts_the_pixels_of_the_fields_evaluator() -> None:
    """By masks: pixels x0..x1 and y0..y1, ends counted, in an image of 30; boxes have exclusive ends."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(0, 15, (300, 2, 2), generator=generator).double()
    boxes = torch.cat([start, start + torch.randint(1, 17, (300, 2, 2), generator=generator)], -1)
    truth = boxes[:, 1] + torch.rand(300, 4, generator=generator, dtype=torch.float64) * 0.999
    for box, true, found in zip(boxes[:, 0], truth, inclusive_iou(boxes[:, 0], truth, 30), strict=True):
        masks = []
        for x0, y0, x1, y1 in ([*box[:2].tolist(), *box[2:].clamp(max=29).tolist()], true.tolist()):
            mask = torch.zeros(64, 64, dtype=torch.bool)
            mask[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1] = True
            masks.append(mask)
        expected = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
        assert float(found) == pytest.approx(float(expected))
    exact = iou_with_truth(boxes[:, :1].float(), truth.float())[:, 0]
    assert (inclusive_iou(boxes[:, 0], truth, 1000) >= exact - 0.15).all()
