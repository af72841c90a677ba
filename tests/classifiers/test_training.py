"""Training: same seed same bits, resume without a trace, several processes as one, and what is refused."""

import copy
import json
import math
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from infocam_utils.classifiers import training as inference
from infocam_utils.classifiers.adapt import Classifier
from infocam_utils.classifiers.training import (
    _rate,
    evaluating,
    fit,
    initialise_bias,
    pooled_features,
    predict,
    state_digest,
)
from infocam_utils.data.images import Geometry, ImageSet, prepare
from infocam_utils.information import PCSoftmaxLoss, class_prior

CROP = Geometry(crop=12)
RECIPE = {"geometry": CROP, "epochs": 3, "lr": 0.01, "batch_size": 16, "accelerator": "cpu"}


def stripes(n: int = 50, seed: int = 0) -> ImageSet:
    """Noisy images whose class is the channel that is bright."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    pixels = rng.integers(0, 120, size=(n, 3, 16, 16))
    pixels[np.arange(n), labels] += 100
    return ImageSet(pixels.astype(np.uint8), torch.from_numpy(labels), None, 3, list("rgb"), torch.arange(n),
                    f"stripes {n} {seed}")  # fmt: skip


def network(norm: bool = True, dropout: float = 0.0) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        middle = [nn.BatchNorm2d(8)] if norm else []
        body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), *middle, nn.ReLU())
        return Classifier(body, nn.Linear(8, 3), "tiny", dropout)


def test_learns_a_separable_set_and_predicts_in_order():
    train, test, model = stripes(120), stripes(40, seed=1), network()
    history = fit(model, train, **{**RECIPE, "epochs": 8})
    assert history.losses[-1] < history.losses[0] / 2
    assert (history.samples, len(history.losses)) == (8 * 120, 8)
    logits = predict(model, test, geometry=CROP, accelerator="cpu")
    sevens = predict(model, test, geometry=CROP, accelerator="cpu", batch_size=7)
    assert torch.allclose(sevens, logits, atol=1e-5)
    assert (logits.argmax(1) == test.labels).float().mean() > 0.95
    with torch.no_grad():
        direct = model(prepare(test.pixels(range(40)), CROP))
    assert torch.allclose(logits, direct, atol=1e-5)


def test_same_seed_same_bits_whatever_the_global_generator():
    digests = []
    for seed, outside in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(outside)
        before = torch.get_rng_state()
        model = network(dropout=0.3)
        fit(model, stripes(), **RECIPE, seed=seed)
        digests.append(state_digest(model))
        assert torch.equal(before, torch.get_rng_state())
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_resumed_run_gives_the_bits_of_an_uninterrupted_one(tmp_path, monkeypatch, optimizer):
    recipe = {**RECIPE, "epochs": 4, "optimizer": optimizer, "weight_decay": 0.01, "seed": 5}
    whole, parts, path = network(dropout=0.3), network(dropout=0.3), tmp_path / "run.pt"
    expected = fit(whole, stripes(), **recipe)

    calls = []

    class Interrupted(nn.CrossEntropyLoss):
        def forward(self, logits, labels):
            calls.append(1)
            if len(calls) == 11:  # in the third of four epochs, which has four batches like each
                raise KeyboardInterrupt
            return super().forward(logits, labels)

    Interrupted.__name__ = "CrossEntropyLoss"
    with pytest.raises(KeyboardInterrupt):
        fit(parts, stripes(), Interrupted(), **recipe, checkpoint=path)
    assert len(torch.load(path, weights_only=True)["losses"]) == 2
    fresh = network(dropout=0.3)
    history = fit(fresh, stripes(), **recipe, checkpoint=path)
    assert state_digest(fresh) == state_digest(whole)
    assert (history.losses, history.samples) == (expected.losses, expected.samples)
    monkeypatch.setattr("infocam_utils.classifiers.training._epoch", lambda *_: pytest.fail("a finished run goes on"))
    assert fit(network(dropout=0.3), stripes(), **recipe, checkpoint=path) == history


def test_checkpoint_of_other_settings_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    fit(network(), stripes(), **RECIPE, checkpoint=path)
    with pytest.raises(ValueError, match=r"other settings \(\{'lr': '0.01, now 0.02'\}\); delete"):
        fit(network(), stripes(), **{**RECIPE, "lr": 0.02}, checkpoint=path)
    prior = class_prior(stripes().labels, 3)
    with pytest.raises(ValueError, match="PCSoftmaxLoss"):
        fit(network(), stripes(), PCSoftmaxLoss(prior), **RECIPE, checkpoint=path)


def test_two_processes_take_the_steps_of_one():
    """Without batch statistics and chance, shared batches, of odd sizes too, have the same gradient."""
    recipe = {**RECIPE, "geometry": Geometry(flip=False), "batch_size": 17, "optimizer": "sgd", "lr": 0.1}
    start, one, two = (network(norm=False) for _ in range(3))
    alone = fit(one, stripes(51), **recipe)
    shared = fit(two, stripes(51), **recipe, devices=2)
    for before, a, b in zip(start.parameters(), one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
        assert not torch.allclose(a, before, atol=1e-3)
    assert alone.losses == pytest.approx(shared.losses, abs=1e-5)


def test_torchrun_gives_every_process_the_same_weights(tmp_path):
    """Batch normalisation and augmentation differ between processes; what comes out must not."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
        import os, pathlib, sys
        sys.path.insert(0, sys.argv[1])
        from test_training import RECIPE, network, stripes
        from infocam_utils.inference import state_digest
        from infocam_utils.training import fit
        model = network()
        history = fit(model, stripes(), **RECIPE, checkpoint=pathlib.Path(sys.argv[2]) / "run.pt")
        text = f"{state_digest(model)} {history.losses} {os.environ['WORLD_SIZE']}"
        (pathlib.Path(sys.argv[2]) / f"rank{os.environ['RANK']}.txt").write_text(text)
    """)
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, str(script), os.path.dirname(__file__), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ((tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    assert first.endswith("2")
    assert state_digest(network()) not in first


def test_bfloat16_stays_near_float32_and_keeps_float32_weights():
    exact, mixed = network(), network()
    reference = fit(exact, stripes(120), **RECIPE).losses
    losses = fit(mixed, stripes(120), **RECIPE, precision="bf16-mixed").losses
    assert losses == pytest.approx(reference, abs=0.05)
    assert losses != reference
    assert all(p.dtype == torch.float32 for p in mixed.parameters())


def test_train_only_leaves_the_rest_untouched_and_wanting_gradients():
    model = network()
    before, head = state_digest(model.features), model.linear.weight.clone()
    fit(model, stripes(), **RECIPE, train_only="linear")
    assert state_digest(model.features) == before  # batch statistics too
    assert not torch.equal(model.linear.weight, head)
    assert all(p.requires_grad for p in model.parameters())
    assert not model.training


def test_learning_rate_factor_and_decay_by_group():
    """One step of SGD from a zero momentum moves by lr · (1 + 0.9) · gradient; decay spares the biases."""
    train, start = stripes(8), network(norm=False)
    recipe = {"geometry": Geometry(flip=False), "epochs": 1, "lr": 1e-3, "accelerator": "cpu"}
    recipe |= {"optimizer": "sgd", "schedule": "constant"}
    nn.CrossEntropyLoss()(start(prepare(train.pixels(range(8)), Geometry())), train.labels).backward()
    moved = copy.deepcopy(start)
    fit(moved, train, **recipe, lr_factors={"linear": 10.0}, weight_decay=0.5)
    for (name, old), new in zip(start.named_parameters(), moved.parameters(), strict=True):
        rate = 1e-2 if name.startswith("linear") else 1e-3
        gradient = old.grad + (0.5 * old.detach() if old.ndim > 1 else 0)
        assert torch.allclose(new - old, -rate * 1.9 * gradient, atol=2e-7), name


def test_schedules():
    assert [_rate("step", p) for p in (0, 0.34, 0.99)] == pytest.approx([1, 0.1, 0.01])
    assert _rate("constant", 0.9) == 1
    curve = [_rate("onecycle", p / 100) for p in range(100)]
    assert max(curve) == curve[25] == 1
    assert max(curve[0] / 0.1, curve[-1] / 0.001) < 1


def test_set_smaller_than_the_batch_is_one_batch_and_an_empty_one_refused():
    assert fit(network(), stripes(5), **{**RECIPE, "batch_size": 64}).samples == 15
    with pytest.raises(ValueError, match="training set is empty"):
        fit(network(), stripes().subset([]), **RECIPE)
    with pytest.raises(ValueError, match="no images"):
        predict(network(), stripes().subset([]), geometry=CROP)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "at least 1.*0"),
        ({"batch_size": 0}, "at least 1"),
        ({"lr": math.nan}, "lr positive.*nan"),
        ({"weight_decay": -0.1}, "weight_decay not negative.*-0.1"),
        ({"optimizer": "adam"}, "optimizer must be one of.*'adam'"),
        ({"schedule": "cosine"}, "schedule one of.*'cosine'"),
        ({"train_only": "head"}, "called head.*parts are.*'linear'"),
        ({"lr_factors": {"layer4": 10.0}}, "called layer4"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fit(network(), stripes(), **{**RECIPE, **change})


def test_labels_beyond_the_logits_are_refused_with_the_remedy():
    four = replace(stripes(), num_classes=4, class_names=list("rgbx"), class_numbers=[1, 2, 3, 4],
                   labels=torch.full((50,), 3))  # fmt: skip
    with pytest.raises(ValueError, match=r"up to 3 but.*shape \(13, 3\).*num_classes=4"):
        fit(network(), four, **RECIPE)


def test_a_loss_that_is_not_finite_stops_the_run_at_once():
    model = network(norm=False)
    with pytest.raises(FloatingPointError, match=r"epoch 1, step 2, at a learning rate of 1e\+30; lower lr"):
        fit(model, stripes(), **{**RECIPE, "lr": 1e30, "schedule": "constant"})
    assert all(p.requires_grad for p in model.parameters())


def test_progress_is_reported_each_epoch(tmp_path, monkeypatch):
    monkeypatch.setenv("INFOCAM_PROGRESS", str(tmp_path / "progress.jsonl"))
    fit(network(), stripes(), **RECIPE)
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [(line["done"], line["total"]) for line in lines] == [(1, 3), (2, 3), (3, 3)]


def test_pooled_features_are_what_the_linear_layer_sees(tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "PIECE", 20)
    model, images = network().train(), stripes(50)
    found = pooled_features(model, images, geometry=CROP, accelerator="cpu", cache_dir=tmp_path)
    assert (found.shape, found.dtype, model.training) == ((50, 8), torch.float32, True)
    logits = predict(model, images, geometry=CROP, accelerator="cpu")
    assert torch.allclose(model.linear(found), logits, atol=1e-5)
    pieces = sorted(tmp_path.glob("*.pt"))
    assert len(pieces) == 3

    # As after an interrupt: one piece is gone, and only that one is made again.
    pieces[1].unlink()
    made = []
    original = inference._forward
    monkeypatch.setattr(inference, "_forward", lambda *a: made.append(1) or original(*a))
    again = pooled_features(model, images, geometry=CROP, accelerator="cpu", cache_dir=tmp_path)
    assert len(made) == 1
    assert torch.equal(again, found)
    # The linear layer does not matter to the features, anything before it does.
    nn.init.zeros_(model.linear.weight)
    pooled_features(model, images, geometry=CROP, accelerator="cpu", cache_dir=tmp_path)
    assert len(made) == 1
    nn.init.ones_(model.features[0].bias)
    changed = pooled_features(model, images, geometry=CROP, accelerator="cpu", cache_dir=tmp_path)
    assert len(made) == 4
    assert not torch.equal(changed, found)


def test_evaluating_restores_modes_after_an_exception():
    model, seen = network(), []
    model.features[1].eval()

    def failing():
        with evaluating(model, "cpu"):
            seen.extend([model.training, torch.is_grad_enabled()])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        failing()
    assert seen == [False, False]
    assert (model.training, model.features[1].training, torch.is_grad_enabled()) == (True, False, True)


def test_bias_starts_at_the_log_prior_and_a_wrong_prior_is_refused():
    head = nn.Linear(4, 3)
    initialise_bias(head, torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64))
    assert torch.allclose(head.bias.softmax(0), torch.tensor([0.5, 0.25, 0.25]))
    bare = nn.Linear(4, 3, bias=False)
    for layer, prior in ((head, [1.0]), (head, [1.0, 0.0, 0.0]), (bare, [0.5, 0.25, 0.25])):
        with pytest.raises(ValueError, match="one positive entry for each of the 3 biases"):
            initialise_bias(layer, torch.tensor(prior))


def test_a_stride_without_weights_of_its_own_is_in_the_cache_key(tmp_path):
    """A network at stride 16 has the weights of the one at stride 32; its features are others."""
    images, found = stripes(8), []
    for stride in (1, 2):
        torch.manual_seed(0)
        features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=stride), nn.ReLU())
        model = Classifier(features, nn.Linear(8, 2), "same name")
        found.append(pooled_features(model, images, geometry=CROP, accelerator="cpu", cache_dir=tmp_path))
    assert not torch.allclose(found[0], found[1])
