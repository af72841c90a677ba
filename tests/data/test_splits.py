"""Splits: the paper's counts, on lists with the official numbers of images per class."""

import numpy as np
import pytest
import torch
from torch import Tensor

from infocam_utils.data.sets import SETS
from infocam_utils.data.splits import ImbalanceRule, half_split, imbalanced_subset, stratified_split

NONE = torch.tensor([])
CUB_TRAIN, CUB_TEST = SETS["cub200"].train_rule(NONE), SETS["cub200"].test_rule(NONE)
MNIST_TRAIN, MNIST_TEST = SETS["mnist"].train_rule(NONE), SETS["mnist"].test_rule(NONE)


def official_train() -> Tensor:
    """194 classes with 30 images and 6 with 29; of the six, labels 125, 189 and 195 are even folders."""
    counts = torch.full((200,), 30)
    counts[[125, 189, 195, 0, 10, 20]] = 29
    assert int(counts.sum()) == 5994
    return torch.repeat_interleave(torch.arange(200), counts)


def official_test() -> Tensor:
    """148 classes with 30, 29 with 29, 23 with less, folder 006 with 11: 5,794 images."""
    rest = [11] + [19] * 3 + [21] * 5 + [24] * 13 + [28]
    counts = torch.tensor([30] * 5 + rest[:1] + [30] * 143 + [29] * 29 + rest[1:])
    assert counts.tolist()[5] == 11
    assert len(counts) == 200
    assert int(counts.sum()) == 5794
    return torch.repeat_interleave(torch.arange(200), counts)


def test_imbalanced_cub_train_has_the_papers_3997_images() -> None:
    labels = official_train()
    kept = imbalanced_subset(labels, CUB_TRAIN)
    counts = torch.bincount(labels[kept])
    assert len(kept) == 3997
    assert set(counts[0::2].tolist()) == {10}  # odd folder numbers are even labels
    assert int(counts[1::2].sum()) == 2997
    assert sorted(counts[1::2].tolist())[:4] == [29, 29, 29, 30]
    prior = counts / counts.sum()
    excess = np.log(200) + float((prior * prior.log()).sum())
    assert excess == pytest.approx(0.1306, abs=5e-5)  # log K - H(Y)


def test_imbalanced_cub_test_has_the_papers_1996_images() -> None:
    labels = official_test()
    counts = torch.bincount(labels[imbalanced_subset(labels, CUB_TEST)])
    assert counts[0::2].tolist() == [5] * 100
    assert counts[5] == 11
    assert int(counts.sum()) == 1996


def test_the_rule_goes_by_class_numbers_and_by_ids() -> None:
    labels = torch.repeat_interleave(torch.arange(3), 20)
    numbers = [2, 4, 7]  # labels 0 and 1 are majority classes, although label 0 would be number 1
    counts = torch.bincount(labels[imbalanced_subset(labels, CUB_TRAIN, class_numbers=numbers)])
    assert counts.tolist() == [20, 20, 10]
    backwards = torch.arange(60).flip(0)
    kept = imbalanced_subset(labels, CUB_TRAIN, ids=backwards, class_numbers=numbers)
    assert kept.tolist() == list(range(59, 49, -1)) + list(range(39, -1, -1))


def test_imbalanced_mnist_has_16500_training_images() -> None:
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 10, 60_000))
    train, test = (imbalanced_subset(labels, rule) for rule in (MNIST_TRAIN, MNIST_TEST))
    assert torch.bincount(labels[train]).tolist() == [300, 3000] * 5
    assert len(train) == 16_500
    assert int(train.max()) < 40_000 <= int(test.min())
    assert int(test.max()) < 50_000
    counts = torch.bincount(labels[test])
    assert counts[0::2].tolist() == [300] * 5
    assert counts[1::2].tolist() == torch.bincount(labels[40_000:50_000])[1::2].tolist()


def test_own_rules() -> None:
    labels = torch.arange(3).repeat(5)
    some = imbalanced_subset(labels, ImbalanceRule(1, 4, minority=[2]))
    assert torch.bincount(labels[some]).tolist() == [4, 1, 4]
    most = imbalanced_subset(labels, ImbalanceRule(2, None, "even"))
    assert torch.bincount(labels[most]).tolist() == [5, 2, 5]
    assert imbalanced_subset(labels, ImbalanceRule(1, 1, "even", 0)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.tensor([]).long(), CUB_TRAIN), "non-empty"),
        ((torch.tensor([0.5]), CUB_TRAIN), "integers"),
        ((torch.tensor([0, -1]), CUB_TRAIN), "least -1"),
        ((torch.tensor([0, 1]), CUB_TRAIN, torch.tensor([1])), "2 labels need as many ids, got 1"),
        ((torch.tensor([0, 1]), CUB_TRAIN, None, [1]), "label 1 has no class number"),
        ((torch.tensor([0, 1]), MNIST_TEST), "walks images 40000 to 49999 .* got only 2"),
    ],
)
def test_imbalanced_subset_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        imbalanced_subset(*arguments)


def test_rules_refuse_what_keeps_nothing() -> None:
    with pytest.raises(ValueError, match="few=0"):
        ImbalanceRule(0, 3)
    with pytest.raises(ValueError, match="'odd', 'even' or class numbers, got 'even numbers'"):
        ImbalanceRule(1, 3, "even numbers")


def test_half_split_has_the_papers_2878_test_images() -> None:
    validation, test = half_split(official_test())
    assert (len(validation), len(test)) == (2916, 2878)
    tiny = half_split(torch.arange(200).repeat_interleave(50))
    assert [len(half) for half in tiny] == [5000, 5000]


def test_half_split_alternates_within_each_class() -> None:
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 7, 200))
    even, odd = half_split(labels)
    for label in range(7):
        places = torch.nonzero(labels == label).flatten()
        assert even[labels[even] == label].tolist() == places[0::2].tolist()
        assert odd[labels[odd] == label].tolist() == places[1::2].tolist()


def test_stratified_split_holds_the_share_of_every_class() -> None:
    counts = torch.tensor([100, 10, 2, 0, 3])
    labels = torch.repeat_interleave(torch.arange(5), counts)[torch.randperm(115)]
    kept, held = stratified_split(labels, 0.2, seed=3)
    assert torch.bincount(labels[held], minlength=5).tolist() == [20, 2, 1, 0, 1]
    assert sorted(torch.cat([kept, held]).tolist()) == list(range(115))
    assert torch.equal(held, stratified_split(labels, 0.2, seed=3)[1])
    assert not torch.equal(held, stratified_split(labels, 0.2, seed=4)[1])
    assert torch.bincount(labels[stratified_split(labels, 0.99, seed=0)[0]]).tolist() == [1, 1, 1, 0, 1]


def test_stratified_split_is_uniform_over_the_images() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    times = sum(torch.bincount(stratified_split(labels, 0.25, seed)[1], minlength=8) for seed in range(2000))
    assert torch.all((times / 2000 - 0.25).abs() < 0.05)  # 5 standard errors


def test_stratified_split_refuses() -> None:
    with pytest.raises(ValueError, match="fraction must lie strictly between 0 and 1, got 1"):
        stratified_split(torch.tensor([0, 0]), 1.0, 0)
    with pytest.raises(ValueError, match=r"classes \[1\] have one image only"):
        stratified_split(torch.tensor([0, 0, 1]), 0.5, 0)
