"""Recipes: what each data set gets by default, what is refused, and which networks share an entry."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from infocam_utils.cam import common_share
from infocam_utils.classifiers import training
from infocam_utils.classifiers.adapt import Classifier
from infocam_utils.classifiers.heads import fit_head
from infocam_utils.data.images import Geometry, ImageSet
from infocam_utils.data.store import Store
from infocam_utils.experiments import recipe as recipes
from infocam_utils.experiments.recipe import (
    Recipe,
    check_seeds,
    network,
    recipe,
    training_set,
    untrained,
    with_history,
)
from infocam_utils.information import PCSoftmaxLoss

SMALL = recipe("digits", train_limit=40, passes=80, batch_size=16)


def test_defaults_follow_the_data_set(tmp_path):
    birds, digits = recipe("minibirds"), recipe("digits")
    assert (birds.backbone, birds.size, birds.frozen, birds.weights) == ("small_resnet", 64, False, None)
    assert digits.flip is False, "a mirrored digit is another digit or none"
    photos, tiny = recipe("cub200", stride=16), recipe("tiny-imagenet", frozen=False)
    assert (photos.size, photos.geometry, photos.frozen) == (256, Geometry(256, 224), True)
    assert (tiny.size, tiny.geometry, tiny.frozen) == (64, Geometry(224, 224), False)
    assert (photos.columns()["weights"], photos.columns()["stride"]) == ("imagenet", 16)
    assert recipe("minibirds", passes=5, lr=None) == replace(birds, passes=5)
    assert recipe("cub200", weights="none").weights is None


def test_mnist_takes_the_papers_network_and_its_eight_epochs():
    mnist = recipe("mnist")
    model = untrained(mnist, 10, 0)
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == 431_080 + 20 * 2 * 25  # three colour channels in
    assert (mnist.passes // 16_500, mnist.batch_size, mnist.optimizer) == (8, 64, "sgd")
    assert untrained(replace(mnist, size=20), 10, 0)(torch.zeros(1, 3, 20, 20)).shape == (1, 10)
    assert mnist.columns()["stride"] is None


def test_fine_tuning_follows_the_papers_recipe():
    vgg = recipe("cub200", backbone="vgg16_gap", weights="none", frozen=False, adl=True, stride=16)
    assert (vgg.optimizer, vgg.schedule, vgg.head_lr, vgg.weight_decay) == ("sgd", "step", 10.0, 1e-4)
    layers = [type(module).__name__ for module in untrained(vgg, 5, 0).modules()]
    assert layers.count("ADL") == 3


def test_a_recipe_survives_json():
    for dataset in ("digits", "mnist", "cub200"):
        made = recipe(dataset, lr=1, head_decay=0)
        assert Recipe(**json.loads(json.dumps(asdict(made)))) == made
        assert json.dumps(asdict(made)) == json.dumps(asdict(recipe(dataset, lr=1.0, head_decay=0.0)))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batchsize": 3}, TypeError, "no field 'batchsize'; did you mean one of batch_size"),
        ({"zzz": 3}, TypeError, "one of dataset, backbone"),
        ({"lr": "1e-3"}, TypeError, "lr must be float, got '1e-3'"),
        ({"few": True}, TypeError, "few must be int or NoneType, got True"),
        ({"loss": "hinge"}, ValueError, "loss must be one of 'pc', 'softmax', got 'hinge'"),
        ({"precision": "8-true"}, ValueError, "precision must be one of"),
        ({"passes": 0}, ValueError, "passes must be above 0 .*, got 0"),
        ({"lr": float("inf")}, ValueError, "lr must be above 0 .* finite, got inf"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be above 0 .*, got -1"),
        ({"crop": 300}, ValueError, "crop"),
        ({"weights": "nowhere.pt"}, FileNotFoundError, r"no weights file nowhere\.pt.*'imagenet'"),
    ],
)
def test_what_cannot_be_is_refused_at_the_door(changes, error, message):
    with pytest.raises(error, match=message):
        recipe("digits", **changes)


def test_seeds_must_be_distinct():
    check_seeds([0, 2])
    for seeds in ([], [1, 0, 1]):
        with pytest.raises(ValueError, match="distinct, and at least one"):
            check_seeds(seeds)


def test_weights_may_be_named_as_they_lie_beside_the_data(tmp_path, monkeypatch):
    data, here = tmp_path / "data", tmp_path / "here"
    for folder in (data, here):
        folder.mkdir()
    monkeypatch.chdir(here)
    (data / "mine.pt").write_bytes(b"")
    assert recipe("cub200", data, weights="mine.pt").weights == str(data / "mine.pt")
    (here / "mine.pt").write_bytes(b"")
    assert recipe("cub200", data, weights="mine.pt").weights == str(here / "mine.pt")
    assert recipe("cub200", data, weights="mine.pt").columns()["weights"] == "mine"
    assert recipe("cub200", data, weights="imagenet").weights == "imagenet"


def test_a_relative_folder_is_looked_up_from_where_the_recipe_is_made(tmp_path, monkeypatch):
    for place in ("data/inside", "here/outside"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "images.txt").write_text("")
    monkeypatch.chdir(tmp_path / "here")
    outside, inside = (recipe(name, tmp_path / "data") for name in ("outside/", "inside"))
    monkeypatch.chdir(tmp_path)
    assert (Path(outside.dataset), inside.dataset) == (tmp_path / "here" / "outside", "inside")
    assert outside.columns()["dataset"] == "outside"
    with pytest.raises(FileNotFoundError, match="digits"):
        recipe("digitz", tmp_path / "data")


def test_the_training_set_is_whole_or_by_the_rule():
    assert len(training_set(SMALL, 0)) == 40
    chosen = [training_set(recipe("digits", few=5, many=50), seed) for seed in (0, 1)]
    for images in chosen:
        assert torch.bincount(images.labels).tolist() == [5, 50] * 5
    assert set(chosen[0].ids.tolist()) != set(chosen[1].ids.tolist())
    counts = torch.bincount(training_set(recipe("digits", few=5), 0).labels)
    whole = torch.bincount(training_set(recipe("digits"), 0).labels)
    assert counts[::2].tolist() == [5] * 5
    assert torch.equal(counts[1::2], whole[1::2]), "all of the common classes"
    with pytest.raises(ValueError, match="many=9 needs few"):
        training_set(recipe("digits", many=9), 0)


def test_counts_of_the_recipe_need_no_tenth_of_a_class():
    short = replace(SMALL, train_limit=60)
    assert torch.bincount(training_set(short, 0).labels).min() < 10
    assert torch.bincount(training_set(replace(short, few=1, many=2), 0).labels).tolist() == [1, 2] * 5


def test_the_seed_decides_the_start_and_nothing_else_moves():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second, other = (untrained(SMALL, 4, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected), "the global generator must be as it was"
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert not torch.equal(first.linear.weight, other.linear.weight)


# --- the store


@pytest.fixture
def entries(tmp_path, monkeypatch):
    """Networks in the store after `network`, whose training and images are stand-ins that cost nothing."""
    fitted: list[dict] = []
    pixels = {"of": "now"}

    def images(dataset, split, data_dir, *, size, limit):
        labels = torch.arange(100) % 10
        pictures = np.zeros((100, 3, 8, 8), np.uint8)
        names, key = list("0123456789"), f"{dataset} {pixels['of']}"
        return ImageSet(pictures, labels, None, 10, names, torch.arange(100), key)

    def model(recipe, num_classes, seed):
        return Classifier(nn.Conv2d(3, 4, 3), nn.Linear(4, num_classes))

    monkeypatch.setattr(recipes.sets, "load_images", images)
    monkeypatch.setattr(recipes, "untrained", model)
    monkeypatch.setattr(training, "fit", lambda model, train, loss, **options: fitted.append(options) or [])

    def count(*runs: tuple[Recipe, int]) -> int:
        for made, seed in runs:
            network(made, seed, tmp_path)
        return len(list(tmp_path.glob("cache/network-*/entry.json")))

    count.fitted, count.pixels = fitted, pixels
    return count


CHANGES = {
    "dataset": "minibirds",
    "backbone": "resnet18",
    "weights": "imagenet",
    "stride": 4,
    "adl": True,
    "size": 24,
    "resize": 32,
    "crop": 8,
    "flip": True,
    "few": 1,
    "many": 3,
    "train_limit": 39,
    "loss": "pc",
    "log_prior_bias": True,
    "frozen": True,
    "passes": 81,
    "batch_size": 8,
    "lr": 0.5,
    "head_lr": 2.0,
    "head_start": "zero",
    "weight_decay": 0.5,
    "optimizer": "sgd",
    "schedule": "constant",
    "batch_norm": "frozen",
    "head_optimizer": "adamw",
    "head_decay": 0.5,
    "precision": "bf16-mixed",
    "devices": 2,
}


@pytest.mark.parametrize("name", [field.name for field in fields(Recipe)])
def test_recipes_that_differ_in_one_field_share_no_entry(entries, name):
    how = replace(SMALL, few=2)
    changed = replace(how, **{name: CHANGES[name]})
    assert changed != how
    assert entries((how, 0), (how, 0)) == 1
    assert entries((changed, 0)) == (1 if name == "frozen" else 2)


def test_seed_images_code_and_the_content_of_the_weights_are_in_the_key(entries, tmp_path, monkeypatch):
    file = tmp_path / "weights.pt"
    file.write_bytes(b"first")
    how = replace(SMALL, weights=str(file))
    assert entries((how, 0), (how, 1)) == 2
    file.write_bytes(b"other")
    assert entries((how, 0)) == 3
    entries.pixels["of"] = "later"
    assert entries((how, 0)) == 4
    asked = []  # for the code of this module, and so of all it imports
    monkeypatch.setattr(recipes.store, "code_digest", lambda *modules: asked.append(modules) or "changed")
    assert entries((how, 0)) == 5
    assert asked == [("experiments.recipe",)]


def test_every_setting_of_training_reaches_it(entries):
    as_named = ("batch_size", "lr", "weight_decay", "optimizer", "schedule", "precision", "devices")
    as_named += ("batch_norm",)
    changes = {name: CHANGES[name] for name in (*as_named, "passes", "flip", "head_lr")}
    entries((replace(SMALL, **changes), 3))
    (options,) = entries.fitted
    assert options.pop("checkpoint").name.startswith("checkpoint-")
    assert options.pop("watch") is recipes._common_share
    expected = {name: CHANGES[name] for name in as_named} | {"geometry": Geometry(flip=True)}
    assert options == expected | {"epochs": 1, "lr_factors": {"linear": 2.0}, "seed": 3}


def test_an_interrupted_training_resumes_and_ends_with_the_same_bits(tmp_path, monkeypatch):
    whole = network(SMALL, 0, tmp_path / "whole").state_dict()
    epochs = []

    def stops(text: str, done: int, total: int) -> None:
        epochs.append(done)
        if done == total // 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "report_progress", stops)
        with pytest.raises(KeyboardInterrupt):
            network(SMALL, 0, tmp_path / "cut")
    assert list((tmp_path / "cut").glob("cache/checkpoint-*.pt")), "the finished epoch must be kept"
    monkeypatch.setattr(training, "report_progress", lambda text, done, total: epochs.append(done))
    resumed = network(SMALL, 0, tmp_path / "cut").state_dict()
    assert epochs == [1, 3, 4, 6], "two epochs in all: the first was not trained again"
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not list((tmp_path / "cut").glob("cache/checkpoint-*.pt"))
    again = network(SMALL, 0, tmp_path / "cut").state_dict()
    assert epochs == [1, 3, 4, 6], "from the store"
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_start_at_the_log_prior_is_trained_from_there(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "fit", lambda model, train, loss, **options: [])
    how = recipe("digits", few=5, many=50, log_prior_bias=True)
    bias = network(how, 0, tmp_path).linear.bias
    shares = torch.tensor([5.0, 50.0] * 5) / 275
    torch.testing.assert_close(bias, shares.log(), atol=1e-6, rtol=0)


def test_the_head_starts_as_the_recipe_says_and_its_gauge_is_followed(tmp_path, monkeypatch):
    """Without training: the head fitted on frozen features is `heads.fit_head`'s, and zero is zero."""
    how = replace(SMALL, head_decay=0.01, head_start="fitted", loss="pc", few=2)
    history = with_history(replace(how, passes=20, head_start="random"), 0, tmp_path)[1]
    trained = network(replace(how, passes=20, head_start="random"), 0, tmp_path)
    assert history[0] == pytest.approx(common_share(untrained(how, 10, 0).linear.weight.detach()))
    assert history[-1] == pytest.approx(common_share(trained.linear.weight.detach()))
    monkeypatch.setattr(training, "fit", lambda model, train, loss, **options: [])
    fitted, train = network(how, 0, tmp_path), training_set(how, 0)
    model, shares = untrained(how, 10, 0), torch.bincount(train.labels) / len(train)
    features = training.pooled_features(model, train, geometry=how.geometry, store=Store(tmp_path))
    loss = PCSoftmaxLoss(shares)
    expected = fit_head(features, train.labels, 10, loss, weight_decay=0.01, optimizer="lbfgs")
    torch.testing.assert_close(fitted.linear.weight, expected.weight)
    torch.testing.assert_close(fitted.linear.bias, expected.bias)
    zero, shown = with_history(replace(how, head_start="zero"), 0, tmp_path)
    assert not zero.linear.weight.any()
    assert not zero.linear.bias.any()
    assert np.isnan(shown).all() or not shown.any()
    assert len(with_history(replace(how, frozen=True), 0, tmp_path)[1]) == 0


def test_a_softmax_fitted_from_the_log_prior_is_pc_softmax_with_another_bias(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "fit", lambda model, train, loss, **options: [])
    how = replace(SMALL, head_start="fitted", head_optimizer="adamw", few=2)
    pc = network(replace(how, loss="pc"), 0, tmp_path).linear
    softmax = network(replace(how, log_prior_bias=True), 0, tmp_path).linear
    train = training_set(how, 0)
    shares = torch.bincount(train.labels) / len(train)
    torch.testing.assert_close(softmax.weight, pc.weight, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(softmax.bias, pc.bias + shares.log(), rtol=1e-3, atol=1e-4)
    plain = network(how, 0, tmp_path).linear
    assert (plain.bias - softmax.bias).abs().max() > 0.1


def test_precision_is_measured_or_exact(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "best_precision", lambda: "bf16-true")
    assert recipe("digits", precision="auto").precision == "bf16-true"
    assert recipe("digits", precision="32").precision == "32-true"
    assert recipe("digits").precision == "32-true", "the quick profile's records are exact"
    assert recipe("cub200", tmp_path, weights="none").precision == "bf16-true"
    with pytest.raises(ValueError, match="precision must be one of"):
        Recipe(**asdict(SMALL) | {"precision": "auto"})


def test_a_frozen_network_is_not_trained(tmp_path):
    frozen = replace(SMALL, frozen=True)
    made = network(frozen, 0, tmp_path)
    assert torch.equal(made.linear.weight, untrained(frozen, 10, 0).linear.weight)
    assert not list(tmp_path.iterdir())


def test_pictures_show_what_the_network_sees():
    images = training_set(SMALL, 0)
    assert np.array_equal(recipes.visible(images, [3, 5], SMALL).numpy(), images.images[[3, 5]])
