"""Gauge: what a common vector changes and what it cannot, and the sets of the localization experiment."""

import pytest
import torch
from torch import nn

from infocam_utils import gauge
from infocam_utils.cam import class_activation_maps, info_cam
from infocam_utils.evidence import example_evidence


@pytest.fixture
def head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 5)


def test_a_common_vector_moves_cam_and_neither_softmax_nor_infocam(head):
    features = torch.rand(3, 8, 4, 4)
    pooled, labels = features.mean((2, 3)), torch.tensor([0, 3, 4])
    moved = gauge.with_common_vector(head, scale=2.0)
    before, after = head(pooled), moved(pooled)
    assert torch.allclose(before.softmax(1), after.softmax(1), atol=1e-6)
    for against in ("others", "least_likely", "runner_up"):
        first = info_cam(features, head.weight, labels, against, before)
        second = info_cam(features, moved.weight, labels, against, after)
        assert torch.allclose(first, second, atol=1e-5), against
    cams = [class_activation_maps(features, h.weight) for h in (head, moved)]
    assert (cams[0] - cams[1]).abs().max() > 0.1


def test_length_of_the_common_vector_is_what_was_asked(head):
    moved = gauge.with_common_vector(head, scale=3.0)
    shift = moved.weight - head.weight.detach()
    assert torch.allclose(shift, shift[:1].expand_as(shift), atol=1e-6), "the same for every class"
    rows = head.weight.detach().square().sum(1).mean().sqrt()
    assert float(shift[0].norm()) == pytest.approx(3.0 * float(rows), rel=1e-5)
    assert torch.equal(gauge.with_common_vector(head, 0.0).weight, head.weight)


def test_zero_sum_changes_the_gauge_and_no_prediction(head):
    moved, pooled = gauge.zero_sum(head), torch.rand(6, 8)
    assert gauge.common_share(moved.weight) < 1e-6 < gauge.common_share(head.weight.detach())
    assert torch.allclose(head(pooled).softmax(1), moved(pooled).softmax(1), atol=1e-6)


def test_large_sets_get_a_zero_sum_head_too(monkeypatch):
    monkeypatch.setattr(gauge, "LARGE", 100)
    labels = torch.arange(200) % 4
    features = torch.randn(200, 16) + 3 * nn.functional.one_hot(labels, 16)
    heads = gauge.gauge_heads(features, labels, 4, seed=0)
    assert gauge.common_share(heads["decayed"].weight) < 1e-6


def test_the_two_heads_differ_in_gauge_as_said():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    features = torch.randn(200, 16, generator=generator) + 3 * nn.functional.one_hot(labels, 16)
    heads = gauge.gauge_heads(features, labels, 4, seed=0)
    assert gauge.common_share(heads["decayed"].weight.detach()) < 1e-5
    assert gauge.common_share(heads["free"].weight.detach()) > 0.05
    for head in heads.values():
        assert (head(features).argmax(1) == labels).double().mean() > 0.9
    again = gauge.gauge_heads(features, labels, 4, seed=0)
    assert torch.equal(heads["free"].weight, again["free"].weight)


def test_variants_have_names_of_their_own_and_all_combinations():
    made = gauge.variants(["decayed", "free"], region=4, paddings=["same", "full"])
    names = [v.name for v in made]
    assert len(set(names)) == len(names) == 2 * 4 * 3 + 3 + 1 + len(gauge.FRACTIONS)
    full = next(v for v in made if v.name == "free/least_likely+full")
    assert (full.head, full.against, full.region, full.padding) == ("free", "least_likely", 4, "full")


def test_drawn_birds_have_three_disjoint_sets_with_boxes(tmp_path):
    train, heldout, test = gauge.localization_sets("minibirds", tmp_path, limit=40, train_limit=60)
    assert (len(train), len(heldout), len(test)) == (60, 40, 40)
    assert heldout.boxes is not None
    assert test.boxes is not None
    assert not (heldout.images[:, None] == test.images[None]).all((2, 3, 4)).any()


def test_boxes_at_gives_each_map_its_own_threshold():
    ramp = torch.linspace(0, 1, 8).expand(8, 8)
    boxes = gauge.boxes_at(torch.stack([ramp, ramp]), 8, [0.2, 0.8])
    assert boxes[:, 2].tolist() == [8, 8]
    assert boxes[0, 0] < boxes[1, 0]


def test_best_centre_needs_its_variants():
    with pytest.raises(ValueError, match="no variant 'centre_40'"):
        gauge.best_centre(example_evidence())


def test_variants_without_a_head_are_refused():
    with pytest.raises(ValueError, match="at least one head"):
        gauge.variants([], region=3)
