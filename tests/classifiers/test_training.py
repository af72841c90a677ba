"""Training: same seed same bits, resume without a trace, several processes as one, and what is refused."""

import copy
import json
import math
import os
import random
import re
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from infocam_utils.classifiers import training
from infocam_utils.classifiers.adapt import Classifier
from infocam_utils.classifiers.training import (
    SCHEDULES,
    fit,
    initialise_bias,
    pooled_features,
    predict,
    state_digest,
)
from infocam_utils.data.images import Geometry, ImageSet, prepare
from infocam_utils.data.store import Store
from infocam_utils.information import PCSoftmaxLoss, class_prior

CROP = Geometry(crop=12)
RECIPE = {"geometry": CROP, "epochs": 3, "lr": 0.01, "batch_size": 16, "accelerator": "cpu"}


def stripes(n: int = 50, seed: int = 0) -> ImageSet:
    """Noisy images whose class is the channel that is bright."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    pixels = rng.integers(0, 120, size=(n, 3, 16, 16))
    pixels[np.arange(n), labels] += 100
    images, numbers = pixels.astype(np.uint8), torch.arange(n)
    return ImageSet(images, torch.from_numpy(labels), None, 3, list("rgb"), numbers, f"stripes {n} {seed}")


def network(norm: bool = True, dropout: float = 0.0, seed: int = 0) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        middle = [nn.BatchNorm2d(8)] if norm else []
        body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), *middle, nn.ReLU())
        return Classifier(body, nn.Linear(8, 3), "tiny", dropout)


def test_learns_a_separable_set_and_predicts_in_order(monkeypatch):
    train, test, model = stripes(120), stripes(40, seed=1), network()
    losses = fit(model, train, **{**RECIPE, "epochs": 8})
    assert losses[-1] < losses[0] / 2
    assert len(losses) == 8
    logits = predict(model, test, geometry=CROP, accelerator="cpu")
    monkeypatch.setattr(training, "CPU_PIXELS", 7 * 12 * 12)
    sevens = predict(model, test, geometry=CROP, accelerator="cpu")
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


class Recorder(nn.Module):
    """Notes what a network meets, batch by batch."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.dropout, self.linear, self.seen = what, nn.Dropout(), nn.Linear(1, 3), []

    def forward(self, x):
        dropped = self.dropout(torch.ones(len(x)))
        self.seen += (dropped if self.what == "dropout" else x[:, 0, 0, 0]).tolist()
        return self.linear(x.mean((1, 2, 3))[:, None])


@pytest.mark.parametrize("what", ["order", "crops", "flips", "dropout"])
def test_the_seed_decides_order_crops_flips_and_dropout_and_every_epoch_has_its_own(what):
    """Each alone: images that differ all over show their order, images that are all alike show the rest."""
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, 1).repeat(48, 0)
    if what == "order":
        ramp = np.arange(48, dtype=np.uint8)[:, None, None, None].repeat(3, 1).repeat(16, 2).repeat(16, 3)
    train = ImageSet(ramp, torch.arange(48) % 3, None, 3, list("abc"), torch.arange(48), what)
    geometry = Geometry(crop=8 if what == "crops" else None, flip=what == "flips")
    passes = []
    for seed in (0, 0, 1):
        recorder = Recorder(what)
        fit(recorder, train, **{**RECIPE, "geometry": geometry, "epochs": 2}, seed=seed)
        assert len(recorder.seen) == 96
        passes.append((recorder.seen[:48], recorder.seen[48:]))
    first, again, other = passes
    assert first == again
    assert len({tuple(one) for one in (*first, *other)}) == 4
    if what == "order":
        assert sorted(first[0]) == sorted(first[1]), "an epoch is a permutation"


@pytest.mark.parametrize("seconds", [600, -1])  # a checkpoint after each epoch, after each step
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_resumed_run_gives_the_bits_of_an_uninterrupted_one(tmp_path, monkeypatch, optimizer, seconds):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", seconds)
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
    saved = torch.load(path, weights_only=True)
    assert (len(saved["values"]), saved["step"]) == (2, 0 if seconds > 0 else 2)
    fresh = network(dropout=0.3)
    assert fit(fresh, stripes(), **recipe, checkpoint=path) == expected
    assert state_digest(fresh) == state_digest(whole)
    monkeypatch.setattr(training._Steps, "epoch", lambda *_: pytest.fail("a finished run goes on"))
    assert fit(network(dropout=0.3), stripes(), **recipe, checkpoint=path) == expected


def test_progress_says_how_far_it_is_and_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("INFOCAM_PROGRESS", str(tmp_path / "progress"))
    fit(network(), stripes(), **RECIPE)
    lines = [json.loads(line) for line in (tmp_path / "progress").read_text().splitlines()]
    assert (lines[-1]["done"], lines[-1]["total"]) == (12, 12)
    assert re.fullmatch(r"training, epoch 3 of 3, loss \d\.\d{3}, 0 s left", lines[-1]["text"])
    assert [training._duration(s) for s in (99, 100, 5939, 5941)] == ["99 s", "2 min", "99 min", "1.7 h"]


def test_frozen_batch_statistics_stay_and_are_what_the_network_is_trained_with():
    start, frozen, adapted = network(), network(), network()
    start.features[1].running_mean.fill_(3.0)
    frozen.load_state_dict(start.state_dict())
    adapted.load_state_dict(start.state_dict())
    losses = fit(frozen, stripes(), **{**RECIPE, "lr": 1e-9}, batch_norm="frozen")
    fit(adapted, stripes(), **RECIPE)
    assert torch.equal(frozen.features[1].running_mean, start.features[1].running_mean)
    assert not torch.equal(adapted.features[1].running_mean, start.features[1].running_mean)
    logits = predict(start, replace(stripes(), key="same"), geometry=CROP, accelerator="cpu")
    expected = nn.functional.cross_entropy(logits, stripes().labels)
    assert losses[-1] == pytest.approx(float(expected), abs=0.05)  # its crops are random
    with pytest.raises(ValueError, match="batch_norm must be 'adapt' or 'frozen', was 'eval'"):
        fit(network(), stripes(), **RECIPE, batch_norm="eval")


def length_of_the_bias(model: nn.Module) -> float:
    return float(model.linear.bias.detach().norm())


def test_what_is_watched_is_returned_also_after_a_resume(tmp_path):
    model, path = network(), tmp_path / "run.pt"
    seen = fit(model, stripes(), **RECIPE, watch=length_of_the_bias, checkpoint=path)
    assert len(seen) == 3
    assert seen[-1] == length_of_the_bias(model)
    assert fit(network(), stripes(), **RECIPE, watch=length_of_the_bias, checkpoint=path) == seen
    with pytest.raises(ValueError, match="watch was 'length_of_the_bias', now None"):
        fit(network(), stripes(), **RECIPE, checkpoint=path)


def test_best_precision_follows_the_clock(monkeypatch):
    """A machine whose 16-bit products take a given share of the time of its 32-bit ones."""
    for share, expected in ((0.3, "bf16-mixed"), (0.9, "32-true"), (3.0, "32-true")):
        now = [0.0]

        def product(left, right, share=share, now=now):
            now[0] += share if left.dtype == right.dtype == torch.bfloat16 else 1.0
            return left

        monkeypatch.setattr(torch, "mm", product)
        monkeypatch.setattr(training.time, "perf_counter", lambda now=now: now[0])
        assert training.best_precision.__wrapped__("cpu") == expected


def test_checkpoint_of_another_training_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    fit(network(), stripes(), **RECIPE, checkpoint=path)
    of_another = r"run\.pt is of another training"
    with pytest.raises(ValueError, match=rf"{of_another} \(lr was 0\.01, now 0\.02\); delete it"):
        fit(network(), stripes(), **{**RECIPE, "lr": 0.02}, checkpoint=path)
    prior = class_prior(stripes().labels, 3)
    with pytest.raises(ValueError, match=rf"{of_another} \(loss was 'Cross.*now 'PCSoftmaxLoss"):
        fit(network(), stripes(), PCSoftmaxLoss(prior), **RECIPE, checkpoint=path)
    wider = network()
    wider.linear = nn.Linear(8, 4)
    strided = network()
    strided.features[0].stride = (1, 1)
    for start in (network(seed=1), wider, strided):  # other weights, other sizes, and the same weights
        before = state_digest(start)
        with pytest.raises(ValueError, match=rf"{of_another} \(initial_network was .*\); delete it"):
            fit(start, stripes(), **RECIPE, checkpoint=path)
        assert state_digest(start) == before


def test_damaged_checkpoint_is_refused_with_its_name_and_the_remedy(tmp_path):
    path, chance = tmp_path / "run.pt", random.Random(0)
    recipe = {**RECIPE, "epochs": 1}
    fit(network(), stripes(), **recipe, checkpoint=path)
    whole, expected = path.read_bytes(), network()
    fit(expected, stripes(), **recipe, checkpoint=path)
    damaged = [b"", b"some text", b"epoch 3\n" * 999, bytes(range(256)) * 40]
    damaged += [whole[: len(whole) * cut // 40] for cut in range(1, 40)]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.pt cannot be read whole.*; delete this checkpoint"):
            fit(network(), stripes(), **recipe, checkpoint=path)
    messages = []
    for _ in range(60):  # a flip is noticed, or it was in the padding between the parts
        content, model = bytearray(whole), network()
        content[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        try:
            fit(model, stripes(), **recipe, checkpoint=path)
            assert state_digest(model) == state_digest(expected)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert all("run.pt" in message for message in messages)
    for content in ([1, 2], {}, network().state_dict()):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"run\.pt is not a checkpoint; name another file"):
            fit(network(), stripes(), **recipe, checkpoint=path)


def test_two_processes_take_the_steps_of_one():
    """Without batch statistics and chance, shared batches, of odd sizes too, have the same gradient."""
    recipe = {**RECIPE, "geometry": Geometry(flip=False), "batch_size": 17, "optimizer": "sgd", "lr": 0.1}
    start, one, two = (network(norm=False) for _ in range(3))
    alone = fit(one, stripes(51), **recipe)
    shared = fit(two, stripes(51), **recipe, devices=2)
    for before, a, b in zip(start.parameters(), one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
        assert not torch.allclose(a, before, atol=1e-3)
    assert alone == pytest.approx(shared, abs=1e-5)


def test_torchrun_gives_every_process_the_same_weights(tmp_path):
    """Batch normalisation and augmentation differ between processes; what comes out must not.

    A second call in the same processes goes on from the checkpoint of the first, and at the end the group of
    processes is dissolved, without which they may abort.
    """
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
        import atexit, os, pathlib, sys
        import torch
        sys.path.insert(0, sys.argv[1])
        from test_training import RECIPE, network, stripes
        from infocam_utils.classifiers.training import fit, state_digest
        folder, rank = pathlib.Path(sys.argv[2]), os.environ["RANK"]
        ends = folder / f"end{rank}.txt"
        atexit.register(lambda: ends.write_text(f"group left: {torch.distributed.is_initialized()}"))
        lines = []
        for _ in range(2):
            model = network()
            losses = fit(model, stripes(), **RECIPE, checkpoint=folder / "run.pt")
            lines.append(f"{state_digest(model)} {losses} {os.environ['WORLD_SIZE']}")
        (folder / f"rank{rank}.txt").write_text("\\n".join(lines))
    """)
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, str(script), os.path.dirname(__file__), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ((tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    trained, resumed = first.splitlines()
    assert trained == resumed
    assert trained.endswith("2")
    assert state_digest(network()) not in trained
    assert [(tmp_path / f"end{rank}.txt").read_text() for rank in (0, 1)] == ["group left: False"] * 2


def test_an_error_in_one_of_several_processes_arrives():
    recipe = {**RECIPE, "lr": 1e30, "schedule": "constant"}
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match=r"FloatingPointError.*lower lr"):
        fit(network(norm=False), stripes(), **recipe, devices=2)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bfloat16_stays_near_float32_and_gives_float32_weights(precision, tmp_path):
    exact, mixed, again = network(), network(), network()
    reference = fit(exact, stripes(120), **RECIPE)
    losses = fit(mixed, stripes(120), **RECIPE, precision=precision, checkpoint=tmp_path / "run.pt")
    assert losses == pytest.approx(reference, abs=0.05)
    assert losses != reference
    assert all(p.dtype == torch.float32 for p in mixed.parameters())
    fit(again, stripes(120), **RECIPE, precision=precision, checkpoint=tmp_path / "run.pt")
    assert state_digest(again) == state_digest(mixed)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-mixed"])
def test_evaluation_in_16_bits_is_near_that_in_32_and_leaves_the_weights(precision, tmp_path):
    model, images, store = network(), stripes(120), Store(tmp_path)
    fit(model, images, **RECIPE)
    model.train().features[1].eval()
    common, before = {"geometry": CROP, "accelerator": "cpu"}, state_digest(model)
    for result in (predict, lambda *a, **k: pooled_features(*a, **k, store=store)):
        exact = result(model, images, **common)
        coarse = result(model, images, **common, precision=precision)
        assert coarse.dtype == torch.float32
        assert torch.allclose(coarse, exact, atol=0.05)
        assert not torch.equal(coarse, exact)
        assert (model.training, model.features[1].training, torch.is_grad_enabled()) == (True, False, True)
    assert state_digest(model) == before
    features = pooled_features(model, images, **common, store=store)
    assert torch.allclose(model.linear(features), predict(model, images, **common), atol=1e-5)
    with pytest.raises(ValueError, match=r"precision must be one of.*'32'"):
        predict(model, images, **common, precision="32")


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
    assert [SCHEDULES["step"](p) for p in (0, 0.34, 0.99)] == pytest.approx([1, 0.1, 0.01])
    assert SCHEDULES["constant"](0.9) == 1
    curve = [SCHEDULES["onecycle"](p / 100) for p in range(100)]
    assert max(curve) == curve[25] == 1
    assert max(curve[0] / 0.1, curve[-1] / 0.001) < 1


def test_set_smaller_than_the_batch_is_one_batch_and_an_empty_one_refused():
    recorder = Recorder("order")
    fit(recorder, stripes(5), **{**RECIPE, "batch_size": 64})
    assert len(recorder.seen) == 15
    with pytest.raises(ValueError, match="no images"):
        fit(network(), stripes().subset([]), **RECIPE)
    with pytest.raises(ValueError, match="no images"):
        predict(network(), stripes().subset([]), geometry=CROP)
    with pytest.raises(ValueError, match="no images"):
        pooled_features(network(), stripes().subset([]), geometry=CROP)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "at least 1.*0"),
        ({"batch_size": 0}, "at least 1"),
        ({"lr": math.nan}, "lr positive.*nan"),
        ({"weight_decay": -0.1}, "weight_decay not negative.*-0.1"),
        ({"optimizer": "adam"}, "optimizer must be one of.*'adam'"),
        ({"schedule": "cosine"}, "schedule one of.*'cosine'"),
        ({"precision": "16"}, "precision must be one of.*'16'"),
        ({"devices": 0}, "devices must be at least 1.*, 0,"),
        ({"lr_factors": {"layer4": 10.0}}, "called layer4.*parts are.*'linear'"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fit(network(), stripes(), **{**RECIPE, **change})


def test_labels_beyond_the_logits_are_refused_with_the_remedy():
    of_four = {"num_classes": 4, "class_names": list("rgbx"), "class_numbers": [1, 2, 3, 4]}
    four = replace(stripes(), **of_four, labels=torch.full((50,), 3))
    with pytest.raises(ValueError, match=r"up to 3 but.*shape \(13, 3\).*num_classes=4"):
        fit(network(), four, **RECIPE)


def test_a_loss_that_is_not_finite_stops_the_run_at_once():
    model = network(norm=False)
    with pytest.raises(FloatingPointError, match=r"epoch 1, step 2, at a learning rate of 1e\+30; lower lr"):
        fit(model, stripes(), **{**RECIPE, "lr": 1e30, "schedule": "constant"})
    assert all(p.requires_grad for p in model.parameters())


@pytest.fixture
def forwards(monkeypatch):
    """The row ranges that are run through a network, in order."""
    made, original = [], training._forward
    monkeypatch.setattr(training, "_forward", lambda *a: made.append(a[2]) or original(*a))
    return made


def test_an_interrupt_loses_at_most_a_piece_of_the_features(tmp_path, monkeypatch, forwards):
    monkeypatch.setattr(training, "PIECE", 20)
    model, images = network(), stripes(50)
    arguments = {"geometry": CROP, "accelerator": "cpu"}
    whole = pooled_features(model, images, **arguments, store=Store(tmp_path / "whole"))
    forwards.clear()

    def stops(text: str, done: int, total: int) -> None:
        if done == 40:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "report_progress", stops)
        with pytest.raises(KeyboardInterrupt):
            pooled_features(model, images, **arguments, store=Store(tmp_path))
    assert forwards == [range(20), range(20, 40)]
    assert torch.equal(pooled_features(model, images, **arguments, store=Store(tmp_path)), whole)
    assert forwards[2:] == [range(40, 50)]


def test_all_that_decides_the_features_is_in_their_key(tmp_path, monkeypatch, forwards):
    store, arguments = Store(tmp_path), {"geometry": CROP, "accelerator": "cpu"}
    first = pooled_features(network(), stripes(), **arguments, store=store)
    other_head = network()
    nn.init.zeros_(other_head.linear.weight)
    for model in (network(), other_head):
        assert torch.equal(pooled_features(model, stripes(), **arguments, store=store), first)
    assert len(forwards) == 1

    smaller = {"geometry": Geometry(crop=8)}
    strided, biased = network(), network()  # a stride has no weights
    strided.features[0].stride = (1, 1)
    nn.init.ones_(biased.features[0].bias)
    changes = [
        (network(), stripes(seed=1), {}),
        (network(), stripes(), smaller),
        (network(), stripes(), {"geometry": Geometry(resize=20, crop=12)}),
        (network(), stripes(), {"precision": "bf16-true"}),
        (strided, stripes(), {}),
        (biased, stripes(), {}),
    ]
    for model, images, change in changes:
        found = pooled_features(model, images, **{**arguments, **change}, store=store)
        assert not torch.equal(found, first), change
    alone = pooled_features(network(), stripes(), **{**arguments, **smaller}, store=Store(tmp_path / "alone"))
    assert torch.equal(pooled_features(network(), stripes(), **{**arguments, **smaller}, store=store), alone)

    asked = []
    forwards.clear()
    monkeypatch.setattr(training, "code_digest", lambda module: asked.append(module) or "after an edit")
    pooled_features(network(), stripes(), **arguments, store=store)
    assert len(forwards) == 1, "other code may give other features"
    assert [f"infocam_utils.{module}" for module in asked] == [training.__name__]


def test_bias_starts_at_the_log_prior_and_a_wrong_prior_is_refused():
    head = nn.Linear(4, 3)
    initialise_bias(head, torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64))
    assert torch.allclose(head.bias.softmax(0), torch.tensor([0.5, 0.25, 0.25]))
    bare = nn.Linear(4, 3, bias=False)
    for layer, prior in ((head, [1.0]), (head, [1.0, 0.0, 0.0]), (bare, [0.5, 0.25, 0.25])):
        with pytest.raises(ValueError, match="one positive entry for each of the 3 biases"):
            initialise_bias(layer, torch.tensor(prior))
