"""Protocols: what each data set gets by default, seeds, the cache key, resuming, and choosing the decay."""

import dataclasses

import numpy as np
import pytest
import torch

from infocam_utils.classifiers import training
from infocam_utils.data.images import Geometry, ImageSet
from infocam_utils.experiments import recipe as protocols
from infocam_utils.experiments.recipe import Protocol, network, protocol, select_decay, untrained

HOW = Protocol("small_resnet", None, None, 16, Geometry(), frozen=False, passes=100, batch_size=16)


@pytest.fixture
def few() -> ImageSet:
    rng = np.random.default_rng(0)
    labels = torch.arange(40) % 4
    images = (rng.integers(0, 60, (40, 3, 16, 16)) + 60 * labels.numpy()[:, None, None, None]).astype(
        np.uint8
    )
    return ImageSet(images, labels, None, 4, list("abcd"), torch.arange(40), "few")


def test_defaults_follow_the_data_set():
    birds, digits = protocol("minibirds"), protocol("digits")
    assert (birds.backbone, birds.size, birds.frozen) == ("small_resnet", 64, False)
    assert digits.geometry.flip is False, "a mirrored digit is another digit or none"
    photos = protocol("some/folder/cub-40", weights="file.pt", stride=16)
    assert (photos.size, photos.geometry, photos.frozen) == (256, Geometry(256, 224), True)
    tiny = protocol("tiny-imagenet-20", weights="file.pt", frozen=False)
    assert (tiny.size, tiny.geometry, tiny.frozen) == (64, Geometry(224, 224), False)
    assert protocol("minibirds", passes=5).passes == 5


def test_mnist_takes_the_papers_network_and_its_eight_epochs():
    how = protocol("mnist")
    model = untrained(how, 10, 0)
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == 431_080 + 20 * 2 * 25  # three colour channels in
    assert (how.passes // 16_500, how.batch_size, how.optimizer) == (8, 64, "sgd")
    pixels, labels = np.zeros((20, 3, 28, 28), np.uint8), torch.arange(20) % 10
    zeros = ImageSet(pixels, labels, None, 10, list("0123456789"), labels, "zeros")
    assert training.predict(model, zeros, geometry=how.geometry).shape == (20, 10)


def test_fine_tuning_follows_the_papers_recipe():
    how = protocol("cub200", "vgg16_gap", frozen=False, adl=True, stride=16)
    assert (how.optimizer, how.schedule, how.head_lr, how.weight_decay) == ("sgd", "step", 10.0, 1e-4)
    assert how.label == "vgg16_gap with ADL, stride 16, trained"
    layers = [type(m).__name__ for m in untrained(dataclasses.replace(how, weights=None), 5, 0).modules()]
    assert layers.count("ADL") == 3


def test_the_seed_decides_the_start_and_nothing_else_moves():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second, other = untrained(HOW, 4, 0), untrained(HOW, 4, 0), untrained(HOW, 4, 1)
    assert torch.equal(torch.rand(1), expected), "the global generator must be as it was"
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert not torch.equal(first.linear.weight, other.linear.weight)


def test_every_setting_is_in_the_cache_key(few, tmp_path):
    network(few, HOW, cache_dir=tmp_path)
    for change in ({"lr": 1e-3}, {"passes": 200}, {"weight_decay": 0.0}, {"batch_size": 8}):
        before = len(list(tmp_path.glob("network-*.pt")))
        network(few, dataclasses.replace(HOW, **change), cache_dir=tmp_path)
        assert len(list(tmp_path.glob("network-*.pt"))) == before + 1, change
    for options in ({"kind": "pc"}, {"seed": 1}, {"log_prior_bias": True}):
        before = len(list(tmp_path.glob("network-*.pt")))
        network(few, HOW, cache_dir=tmp_path, **options)
        assert len(list(tmp_path.glob("network-*.pt"))) == before + 1, options


def test_an_interrupted_training_resumes_and_ends_with_the_same_bits(few, tmp_path, monkeypatch):
    whole = network(few, HOW, cache_dir=tmp_path / "whole").state_dict()
    epochs = []

    def stops(text: str, done: int, total: int) -> None:
        epochs.append(done)
        if done == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "report_progress", stops)
        with pytest.raises(KeyboardInterrupt):
            network(few, HOW, cache_dir=tmp_path / "cut")
    assert list((tmp_path / "cut").glob("checkpoint-*.pt")), "the finished epoch must be kept"
    monkeypatch.setattr(training, "report_progress", lambda text, done, total: epochs.append(done))
    resumed = network(few, HOW, cache_dir=tmp_path / "cut").state_dict()
    assert epochs == [1, 2], "two epochs in all: the first was not trained again"
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_frozen_network_is_not_trained(few, tmp_path):
    frozen = dataclasses.replace(HOW, frozen=True)
    made = network(few, frozen, cache_dir=tmp_path)
    assert torch.equal(made.linear.weight, untrained(frozen, 4, 0).linear.weight)
    assert not list(tmp_path.iterdir())


def test_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="'softmax' or 'pc'"):
        protocols.loss_of("hinge", torch.tensor([0.5, 0.5]))


def test_decay_is_chosen_where_a_plain_search_finds_it():
    """Pure noise wants the strongest decay; separable data without noise the weakest."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    noise = torch.randn(60, 20, generator=generator)
    assert select_decay(noise, labels, 3, candidates=(1e-3, 1.0)) == 1.0
    signal = torch.nn.functional.one_hot(labels, 3).float()
    assert select_decay(signal, labels, 3, candidates=(1e-3, 1.0)) == 1e-3


def test_pictures_show_what_the_network_sees(few):
    seen = protocols.visible(few, [3, 5], HOW)
    assert np.array_equal(seen.numpy(), few.images[[3, 5]])


def test_weights_may_be_named_as_they_lie_beside_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("INFOCAM_DATA", str(tmp_path))
    assert protocol("cub200", weights="mine.pt").weights == "mine.pt"
    (tmp_path / "mine.pt").write_bytes(b"")
    assert protocol("cub200", weights="mine.pt").weights == str(tmp_path / "mine.pt")
    assert protocol("cub200", weights="imagenet").weights == "imagenet"
