"""Drawn birds: exact quantities against plain loops, pictures against what they claim to show."""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_cub import write_cub_layout

from infocam_utils.data import minibirds
from infocam_utils.data.drawing import PARTS
from infocam_utils.data.minibirds import PROTOTYPES, Birds
from infocam_utils.data.sets import load_images

SKEWED = [0.3, 0.25, 0.2, 0.15, 0.1]


@pytest.fixture(scope="module")
def birds() -> Birds:
    return minibirds.draw(300, seed=5)


def enumerated(prior: list[float], epsilon: float) -> tuple[float, dict[tuple[str, str], float]]:
    """MI and the four Bayes accuracies by plain loops over the 576 combinations."""
    classes = range(len(prior))
    information = 0.0
    mass = {"map": [0.0] * len(prior), "ml": [0.0] * len(prior)}
    for combination in itertools.product(range(6), range(6), range(4), range(4)):
        likelihood = [
            math.prod(
                (1 - epsilon) * (value == PROTOTYPES[y][part]) + epsilon / (6, 6, 4, 4)[part]
                for part, value in enumerate(combination)
            )
            for y in classes
        ]
        evidence = sum(p * q for p, q in zip(prior, likelihood, strict=True))
        information += sum(p * q * math.log(q / evidence) for p, q in zip(prior, likelihood, strict=True))
        for rule, weights in (("map", prior), ("ml", [1.0] * len(prior))):
            scores = [w * q for w, q in zip(weights, likelihood, strict=True)]
            winners = [y for y in classes if math.isclose(scores[y], max(scores), rel_tol=1e-9)]
            for y in winners:
                mass[rule][y] += likelihood[y] / len(winners)
    accuracies = {}
    for rule, recalls in mass.items():
        accuracies[rule, "micro"] = sum(p * r for p, r in zip(prior, recalls, strict=True))
        accuracies[rule, "macro"] = sum(recalls) / len(recalls)
    return information, accuracies


def test_prototypes_differ_in_two_parts_and_names_are_unique() -> None:
    distance = (PROTOTYPES[:, None] != PROTOTYPES[None]).sum(-1)
    assert distance[~np.eye(20, dtype=bool)].min() == 2
    assert (distance == 2).sum() // 2 == 33
    assert PROTOTYPES.min() == 0
    assert (PROTOTYPES.max(0) < (6, 6, 4, 4)).all()
    assert len(set(minibirds.class_names())) == 20


@pytest.mark.parametrize(("prior", "epsilon"), [([0.05] * 20, 0.2), (SKEWED, 0.35), ([0.9, 0.1], 0.01)])
def test_exact_quantities_agree_with_plain_enumeration(prior: list[float], epsilon: float) -> None:
    information, accuracies = enumerated(prior, epsilon)
    options = {"num_classes": len(prior), "epsilon": epsilon}
    assert minibirds.mutual_information(prior, **options) == pytest.approx(information, abs=1e-12)
    for (rule, average), value in accuracies.items():
        got = minibirds.bayes_accuracy(prior, rule=rule, average=average, **options)
        assert got == pytest.approx(value, abs=1e-12)


def test_limits_of_noise() -> None:
    assert minibirds.mutual_information(epsilon=1.0) == pytest.approx(0, abs=1e-12)
    assert minibirds.bayes_accuracy(epsilon=1.0) == pytest.approx(1 / 20, abs=1e-12)
    assert minibirds.mutual_information(SKEWED, num_classes=5, epsilon=1e-9) == pytest.approx(
        -sum(p * math.log(p) for p in SKEWED), abs=1e-6
    )


def test_pmi_is_normalised_under_the_prior() -> None:
    attributes = torch.tensor(list(itertools.product(range(6), range(6), range(4), range(4))))
    pmi = minibirds.pointwise_mutual_information(attributes, SKEWED, num_classes=5)
    total = (pmi.exp() * torch.tensor(SKEWED, dtype=torch.float64)).sum(1)  # Σ_y p(y|a) = 1
    torch.testing.assert_close(total, torch.ones(576, dtype=torch.float64))


def test_mean_pmi_of_drawn_attributes_is_the_mutual_information() -> None:
    labels = torch.multinomial(torch.tensor(SKEWED), 800, replacement=True, generator=torch.manual_seed(0))
    birds = minibirds.draw(labels, seed=3, num_classes=5, epsilon=0.4, size=32)
    pmi = minibirds.pointwise_mutual_information(birds.attributes, SKEWED, num_classes=5, epsilon=0.4)
    own = pmi[torch.arange(800), birds.labels]
    truth = minibirds.mutual_information(SKEWED, num_classes=5, epsilon=0.4)
    assert abs(float(own.mean()) - truth) < 4 * float(own.std()) / 800**0.5


FIELDS = ("images", "masks", "labels", "attributes", "boxes", "part_boxes")


def same(ours: Birds, theirs: Birds) -> bool:
    return all(np.array_equal(np.asarray(getattr(ours, f)), np.asarray(getattr(theirs, f))) for f in FIELDS)


def test_image_does_not_depend_on_how_many_are_drawn(birds: Birds) -> None:
    first = Birds(**{field: getattr(birds, field)[:7] for field in FIELDS})
    assert same(minibirds.draw(7, seed=5), first)
    assert same(minibirds.draw(birds.labels[:7], seed=5), first)
    assert not np.array_equal(minibirds.draw(7, seed=6).images, first.images)


def test_labels_run_through_the_classes(birds: Birds) -> None:
    assert birds.labels.tolist() == [i % 20 for i in range(300)]
    assert minibirds.draw(6, seed=0, num_classes=4).labels.tolist() == [0, 1, 2, 3, 0, 1]


def test_boxes_are_tight_around_masks_and_contain_every_part(birds: Birds) -> None:
    for mask, (x0, y0, x1, y1) in zip(birds.masks, birds.boxes.int().tolist(), strict=True):
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert mask[y0:y1, [x0, x1 - 1]].any(0).all()
        assert mask[[y0, y1 - 1], x0:x1].any(1).all()
    box, parts = birds.boxes[:, None], birds.part_boxes
    assert (parts[..., :2] >= box[..., :2]).all()
    assert (parts[..., 2:] <= box[..., 2:]).all()
    sides = parts[..., 2:] - parts[..., :2]
    assert sides.min() >= 4  # every informative part is there and large enough to be seen
    assert birds.boxes.min() > 0
    assert birds.boxes.max() < 64


def test_birds_are_small_enough_to_be_worth_localising(birds: Birds) -> None:
    width, height = (birds.boxes[:, 2:] - birds.boxes[:, :2]).T
    assert 0.18 < float((width * height).mean()) / 64**2 < 0.27
    # Hits at IoU 0.5 of the best centred square; "always the whole picture" never hits.
    best = 0.0
    for side in range(26, 46, 2):
        low, high = 32 - side / 2, 32 + side / 2
        common = (birds.boxes[:, 2:].clamp(max=high) - birds.boxes[:, :2].clamp(min=low)).clamp(min=0).prod(1)
        best = max(best, float((common / (width * height + side**2 - common) >= 0.5).float().mean()))
    assert 0.25 < best < 0.42
    assert float((width * height / 64**2 >= 0.5).float().mean()) == 0


def test_colours_of_the_parts_can_be_read_off_the_picture(birds: Birds) -> None:
    """Nearest palette colour to the pixel in the part box that is nearest to any: no training, no mask."""
    for part, palette in enumerate(PARTS.values()):
        colours = np.array(list(palette.values()), np.float32)
        right = 0
        for image, boxes, attributes in zip(birds.images, birds.part_boxes, birds.attributes, strict=True):
            x0, y0, x1, y1 = boxes[part].int().tolist()
            x, y = (x0 + x1) // 2, (y0 + y1) // 2
            middle = image[:, y - 1 : y + 1, x - 1 : x + 1]
            distance = ((middle.reshape(3, -1).T[:, None] - colours) ** 2).sum(-1)  # (4 pixels, values)
            right += int(distance.min(0).argmin() == attributes[part])
        assert right / len(birds) > 0.9, (part, right)


def test_other_sizes_show_the_same_bird() -> None:
    small, large = minibirds.draw(5, seed=1), minibirds.draw(5, seed=1, size=128)
    assert large.images.shape == (5, 3, 128, 128)
    assert (small.boxes * 2 - large.boxes).abs().max() <= 6
    torch.testing.assert_close(small.attributes, large.attributes)


def test_birds_are_drawn_once_and_stay_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = minibirds.cached_birds(6, seed=2, data_dir=tmp_path)
    monkeypatch.setattr(minibirds, "render", None)  # drawing again would fail
    second = minibirds.cached_birds(6, seed=2, data_dir=tmp_path)
    assert isinstance(second.images, np.memmap)
    assert not second.images.flags.writeable
    monkeypatch.undo()
    assert same(first, minibirds.draw(6, seed=2))
    assert same(second, first)
    second.boxes.add_(1)  # a copy: the store keeps its own
    assert same(minibirds.cached_birds(6, seed=2, data_dir=tmp_path), first)


@pytest.mark.parametrize("change", [{"n": 7}, {"seed": 3}, {"n": [5, 4, 3, 2, 1, 0]}, {"size": 40}])
def test_stored_birds_are_those_that_were_asked_for(tmp_path: Path, change: dict[str, Any]) -> None:
    given = {"n": 6, "seed": 2}
    minibirds.cached_birds(**given, data_dir=tmp_path)
    assert same(minibirds.cached_birds(**given | change, data_dir=tmp_path), minibirds.draw(**given | change))


def test_other_drawing_code_draws_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minibirds.cached_birds(2, seed=2, data_dir=tmp_path)
    monkeypatch.setattr(minibirds, "code_digest", lambda module: f"another {module}")
    monkeypatch.setattr(minibirds, "render", None)
    with pytest.raises(TypeError, match="not callable"):
        minibirds.cached_birds(2, seed=2, data_dir=tmp_path)


def test_the_pictures_have_not_changed() -> None:
    """Published numbers stand on these birds. Another processor may round a few pixels differently."""
    birds = minibirds.draw(50, seed=0)
    assert zlib.crc32(birds.attributes.numpy().tobytes()) == 1498393386
    weights = np.arange(1, 51)[:, None, None, None] / 50  # so that the order counts
    means = (birds.images * weights).mean((0, 2, 3))
    np.testing.assert_allclose(means, [62.6982, 68.12, 58.9532], atol=2e-3)
    assert abs(int(birds.masks.sum()) - 19515) <= 3
    np.testing.assert_allclose(birds.boxes.sum(0), [766, 1023, 2402, 2372], atol=1)
    np.testing.assert_allclose(birds.part_boxes.sum((0, 1)), [5435, 5809, 7361, 7736], atol=2)


def test_birds_in_the_layout_of_cub_are_read_back(tmp_path: Path) -> None:
    birds = write_cub_layout(tmp_path / "birds", 3, 2, seed=4, num_classes=3)
    is_train = torch.tensor([True] * 3 + [False] * 2).repeat(3)
    for split, rows in (("train", is_train), ("test", ~is_train)):
        read = load_images(str(tmp_path / "birds"), split, tmp_path, size=64, need_boxes=True)
        assert torch.equal(read.labels, birds.labels[rows])
        assert torch.equal(read.boxes, birds.boxes[rows])
        assert np.abs(read.images.astype(np.float32) - birds.images[rows.numpy()]).mean() < 4


def test_progress_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFOCAM_PROGRESS", str(tmp_path / "progress"))
    minibirds.draw(2, seed=0)
    assert json.loads((tmp_path / "progress").read_text())["total"] == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: minibirds.draw(0, 0), "labels must be"),
        (lambda: minibirds.draw(-3, 0), "labels must be"),
        (lambda: minibirds.draw([], 0), "labels must be"),
        (lambda: minibirds.draw([0.5], 0), "integer"),
        (lambda: minibirds.draw([0, 20], 0), "labels must.*20"),
        (lambda: minibirds.draw(2, -1), "seed must be at least 0"),
        (lambda: minibirds.draw(2, 0, size=16), "size at least 32 pixels, were 0 and 16"),
        (lambda: minibirds.draw(2, 0, num_classes=21), "must be 2 to 20 for drawn birds, was 21"),
        (lambda: minibirds.draw(2, 0, epsilon=0.0), r"epsilon must be in \(0, 1\], was 0.0"),
        (lambda: minibirds.mutual_information([0.5, 0.5]), "prior has 2 entries, num_classes is 20"),
        (lambda: minibirds.bayes_accuracy(rule="mode"), "got 'mode'"),  # type: ignore[arg-type]
        (lambda: minibirds.bayes_accuracy(average="mode"), "got 'mode'"),  # type: ignore[arg-type]
        (lambda: minibirds.pointwise_mutual_information(torch.zeros(3, 4)), "integers, got"),
        (lambda: minibirds.pointwise_mutual_information(torch.zeros(3, 5, dtype=torch.int64)), r"\(3, 5\)"),
        (lambda: minibirds.pointwise_mutual_information(torch.tensor([[0, 0, 4, 0]])), r"\[0, 0, 4, 0\]"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(call: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()
