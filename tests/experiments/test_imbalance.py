"""The imbalance experiment: counts by the rule, decisions against written-out rules, scores by hand."""

import numpy as np
import pytest
import torch

from infocam_utils.data.images import ImageSet
from infocam_utils.data.splits import ImbalanceRule
from infocam_utils.experiments import imbalance
from infocam_utils.experiments import recipe as protocols
from infocam_utils.experiments.imbalance import (
    ImbalancedTask,
    decisions,
    imbalance_scores,
    implied_recalls,
    prior_sweep,
)


def blocks(per_class: int, classes: int = 4, size: int = 16) -> ImageSet:
    """Images whose mean brightness tells the class, with noise."""
    labels = torch.arange(per_class * classes) % classes
    rng = np.random.default_rng(0)
    level = (40 + 50 * labels.numpy())[:, None, None, None]
    images = (level + rng.integers(-20, 20, (len(labels), 3, size, size))).clip(0, 255).astype(np.uint8)
    names = [f"class {k}" for k in range(classes)]
    return ImageSet(images, labels, None, classes, names, torch.arange(len(labels)), f"blocks-{per_class}")


@pytest.fixture
def task() -> ImbalancedTask:
    return ImbalancedTask(
        "blocks", blocks(40), blocks(20), ImbalanceRule(4, 40, "odd"), ImbalanceRule(2, 20, "odd")
    )


def test_rows_have_the_counts_of_the_rule_for_every_seed(task):
    for seed in (None, 0, 1):
        counts = torch.bincount(task.train.labels[task.train_rows(seed)])
        assert counts.tolist() == [4, 40, 4, 40]  # class numbers 1 and 3 are odd
    assert torch.bincount(task.test.labels[task.test_rows]).tolist() == [2, 20, 2, 20]
    assert task.minority.tolist() == [True, False, True, False]


def test_seeds_choose_other_images_and_none_is_the_paper_list(task):
    rare = [
        set(task.train_rows(s)[task.train.labels[task.train_rows(s)] == 0].tolist()) for s in (None, 0, 1)
    ]
    assert rare[0] == {0, 4, 8, 12}  # the first four of class 0 in the list's order
    assert rare[1] != rare[2]
    assert torch.equal(task.train_rows(3), task.train_rows(3))


def test_prior_is_the_share_of_kept_images(task):
    assert task.prior(0).tolist() == pytest.approx([4 / 88, 40 / 88, 4 / 88, 40 / 88])


def test_decisions_are_the_four_written_out_rules():
    generator = torch.Generator().manual_seed(0)
    g, f = torch.randn(2, 500, 5, generator=generator)
    prior = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])
    made = decisions(g, f, prior)
    assert list(made) == list(imbalance.METHODS)
    expected = [g.argmax(1), (g - prior.log()).argmax(1), f.argmax(1), (f + prior.log()).argmax(1)]
    for (name, predicted), want in zip(made.items(), expected, strict=True):
        assert torch.equal(predicted, want), name


def test_scores_of_predicting_the_common_classes_only(task):
    labels = task.test.labels
    predicted = torch.where(task.minority[labels], (labels + 1) % 4, labels)  # rare images always wrong
    scores = imbalance_scores(predicted, task)
    assert scores["minority_recall"] == 0
    assert scores["majority_recall"] == 100
    assert scores["per_class_accuracy"] == scores["per_class_accuracy_all"] == 50
    assert scores["accuracy"] == pytest.approx(100 * 40 / 44)


def test_sweep_ends_at_the_two_decisions(task):
    generator = torch.Generator().manual_seed(1)
    f = torch.randn(len(task.test), 4, generator=generator)
    sweep = prior_sweep({0: f}, task, taus=(0.0, 1.0))
    for place, predicted in enumerate((f.argmax(1), (f + task.prior(0).log()).argmax(1))):
        scores = imbalance_scores(predicted, task)
        assert sweep["accuracy"][0, place] == pytest.approx(scores["accuracy"])
        assert sweep["per_class_accuracy_all"][0, place] == pytest.approx(scores["per_class_accuracy_all"])


def test_implied_recalls_invert_the_two_accuracies():
    rare, common = implied_recalls(accuracy=89.73, per_class=87.69, rare=500, common=1496)
    assert (rare + common) / 2 == pytest.approx(87.69)
    assert (500 * rare + 1496 * common) / 1996 == pytest.approx(89.73)
    with pytest.raises(ValueError, match="one number"):
        implied_recalls(90, 90, 10, 10)


@pytest.mark.parametrize("kind", ["softmax", "pc"])
def test_trained_logits_beat_chance_and_come_back_from_the_cache(task, kind, tmp_path):
    how = protocols.Protocol(
        "small_resnet", None, None, 16, protocols.Geometry(), frozen=False, passes=1_000, batch_size=32
    )
    first = imbalance.imbalanced_logits(task, how, kind, 0, cache_dir=tmp_path)
    assert first.shape == (80, 4)
    assert (first.argmax(1) == task.test.labels)[~task.minority[task.test.labels]].double().mean() > 0.5
    networks = list(tmp_path.glob("network-*.pt"))
    assert len(networks) == 1
    assert not list(tmp_path.glob("checkpoint-*"))
    stamp = networks[0].stat().st_mtime_ns
    again = imbalance.imbalanced_logits(task, how, kind, 0, cache_dir=tmp_path)
    assert torch.equal(first, again)
    assert networks[0].stat().st_mtime_ns == stamp


def test_frozen_protocol_fits_a_convergent_head_that_both_losses_share(task, tmp_path):
    """With a free bias and a converged head, PC logits + log π are the softmax logits but for a constant."""
    how = protocols.Protocol(
        "small_resnet", None, None, 16, protocols.Geometry(), frozen=True, passes=1_000, head_decay=1e-2
    )
    made = {k: imbalance.imbalanced_logits(task, how, k, 0, cache_dir=tmp_path) for k in ("softmax", "pc")}
    prior = task.prior(0)
    softmax, corrected = made["softmax"].log_softmax(1), (made["pc"] + prior.log()).log_softmax(1)
    assert (softmax - corrected).abs().max() < 1e-3
    assert list(tmp_path.glob("features-*.pt"))
    assert not list(tmp_path.glob("network-*"))


def test_digits_are_always_there_and_imbalanced_ten_to_one():
    task = imbalance.imbalanced_task("digits", few=5, many=50)
    counts = torch.bincount(task.train.labels[task.train_rows(0)])
    assert counts.tolist() == [5, 50] * 5


@pytest.mark.parametrize("options", [{"few": 0}, {"many": 0}, {"few": -1}])
def test_a_class_without_images_is_refused_and_not_replaced_by_the_default(options):
    with pytest.raises(ValueError, match="few and many must be positive"):
        imbalance.imbalanced_task("digits", **options)
