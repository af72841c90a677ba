"""The imbalance experiment: counts by the rule, decisions against written-out rules, scores by hand."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from infocam_utils.data import minibirds
from infocam_utils.experiments import imbalance
from infocam_utils.experiments.imbalance import (
    LOG_PRIOR,
    ImbalancedTask,
    measure,
    posteriors,
    prior_sweep,
    scores,
    task,
)
from infocam_utils.experiments.recipe import recipe
from infocam_utils.information import accuracy, entropy, mutual_information, per_class_accuracy, recalls

DIGITS = recipe("digits", passes=2_000)


@pytest.fixture(scope="module")
def digits() -> ImbalancedTask:
    return task(DIGITS)


def made_up(task: ImbalancedTask, seeds=(0, 1)) -> dict[tuple[str | None, str, int], torch.Tensor]:
    """Logits that know the class, under much noise."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(task.test), task.test.num_classes)
    signal = 2 * torch.nn.functional.one_hot(task.test.labels, shape[1])
    names = [(setting, loss) for setting in (None, LOG_PRIOR) for loss in ("softmax", "pc")]
    return {
        (*name, seed): signal + torch.randn(shape, generator=generator) for name in names for seed in seeds
    }


def one(frame: pd.DataFrame, **columns) -> pd.Series:
    """The one row with these values; None selects a cell without one."""
    for name, value in columns.items():
        frame = frame[frame[name].isna() if value is None else frame[name] == value]
    assert len(frame) == 1, f"{len(frame)} rows with {columns}"
    return frame.iloc[0]


# --- the task


def test_rows_have_the_counts_of_the_rule_for_every_seed(digits):
    for seed in (None, 0, 1):
        counts = torch.bincount(digits.train.labels[digits.train_rows(seed)])
        assert counts.tolist() == [12, 120] * 5  # digits 0, 2, … are rare
    assert torch.bincount(digits.test.labels[digits.test_rows]).tolist() == [5, 50] * 5
    assert digits.minority.tolist() == [True, False] * 5
    assert (digits.recipe.few, digits.recipe.many) == (12, 120), "what was done is in the tables"


def test_seeds_choose_other_images_and_none_is_the_paper_list(digits):
    labels = digits.train.labels
    chosen = [digits.train_rows(seed) for seed in (None, 0, 1)]
    rare = [set(rows[labels[rows] == 0].tolist()) for rows in chosen]
    assert rare[0] == set((labels == 0).nonzero().flatten()[:12].tolist()), "the first twelve of the list"
    assert rare[1] != rare[2]
    assert torch.equal(digits.train_rows(3), digits.train_rows(3))


def test_the_recipe_may_ask_for_other_counts(digits):
    other = task(replace(DIGITS, few=5, many=50), limit=300)
    assert torch.bincount(other.train.labels[other.train_rows(0)]).tolist() == [5, 50] * 5
    assert other.prior(0).tolist() == pytest.approx([5 / 275, 50 / 275] * 5)
    assert len(other.test) == 300
    assert task(replace(DIGITS, many=50)).recipe.few == 12


def test_the_overview_says_what_there_is(digits):
    row = imbalance.overview(digits, 0).iloc[0]
    assert (row.classes, row.train_images, row.rare, row.common) == (10, 660, 12, 120)
    assert (row.test_training_shares, row.test_all) == (275, 539)
    assert row.largest_class == pytest.approx(100 * 120 / 660)
    assert row.log_k_minus_entropy == pytest.approx(math.log(10) - float(entropy(digits.prior(0))))


# --- decisions and scores


def test_posteriors_are_the_four_written_out_rules():
    generator = torch.Generator().manual_seed(0)
    g, f = torch.randn(2, 500, 5, generator=generator)
    prior = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])
    made = posteriors(g, f, prior)
    assert list(made) == ["softmax", "post_hoc", "pc", "pc_log_prior"]
    expected = [g.exp(), g.exp() / prior, f.exp(), f.exp() * prior]
    for (method, found), want in zip(made.items(), expected, strict=True):
        torch.testing.assert_close(found.exp(), want / want.sum(1, keepdim=True), msg=method)


def test_scores_of_predicting_the_common_classes_only(digits):
    labels = digits.test.labels
    predicted = torch.where(digits.minority[labels], (labels + 1) % 10, labels)  # rare images always wrong
    sure = torch.nn.functional.one_hot(predicted, 10).float().clamp_min(1e-6).log()
    found = {(row["test"], row["metric"]): row for row in scores(digits, sure)}
    assert found["all", "calibration_error"]["value"] == pytest.approx(
        100 * float(digits.minority[labels].float().mean())
    )
    rare_loss = float((-sure.take_along_dim(labels[:, None], 1))[digits.minority[labels]].mean())
    assert found["all", "negative_log_likelihood"]["value"] == pytest.approx(rare_loss / 2), "balanced"
    assert found["training_shares", "negative_log_likelihood"]["value"] == pytest.approx(rare_loss * 25 / 275)
    assert found["all", "rare_recall"]["value"] == 0
    assert found["all", "common_recall"]["value"] == 100
    assert found["all", "per_class_accuracy"]["value"] == 50
    assert found["training_shares", "per_class_accuracy"]["value"] == 50
    assert found["training_shares", "accuracy"]["value"] == pytest.approx(100 * 250 / 275)
    assert found["training_shares", "accuracy"]["n"] == 275
    rare = int(digits.minority[labels].sum())
    assert [found["all", f"{side}_recall"]["n"] for side in ("rare", "common")] == [rare, 539 - rare]


# --- the frame


def test_the_frame_holds_the_scores_and_readings_of_every_seed(digits):
    logits, seeds = made_up(digits), (0, 1)
    frame = measure(digits, seeds, logits)
    identity = ["method", "setting", "test", "metric", "seed"]
    assert not frame.duplicated(identity).any()
    assert len(frame) == 1 + len(seeds) * (4 * 9 + 2 * 5 + 3)
    assert (frame["dataset"] == "digits").all()
    assert (frame["few"] == 12).all()
    labels, rows, prior = digits.test.labels, digits.test_rows, digits.prior(1)
    predicted = (logits[None, "softmax", 1] - prior.log()).argmax(1)
    place = {"method": "post_hoc", "setting": None, "seed": 1}
    row = one(frame, **place, test="training_shares", metric="accuracy")
    share = accuracy(predicted[rows], labels[rows])
    assert (row["value"], row["n"], row["unit"]) == (100 * share, len(rows), "%")
    assert row["stderr"] == pytest.approx(100 * (share * (1 - share) / len(rows)) ** 0.5)
    row = one(frame, **place, test="all", metric="per_class_accuracy")
    assert row["value"] == 100 * per_class_accuracy(predicted, labels, 10)
    row = one(frame, **place, test="all", metric="rare_recall")
    assert row["value"] == 100 * float(recalls(predicted, labels, 10)[::2].mean())
    started = (logits[LOG_PRIOR, "softmax", 1] - prior.log()).argmax(1)
    row = one(frame, **place | {"setting": LOG_PRIOR}, test="all", metric="per_class_accuracy")
    assert row["value"] == 100 * per_class_accuracy(started, labels, 10)
    assert frame["stderr"][frame["metric"] != "calibration_error"].notna().all()
    assert frame[["low", "high", "interval"]][frame["seed"].notna()].isna().all(axis=None)
    classes = one(frame, metric="classes")
    assert (classes["value"], classes["interval"], classes["method"]) == (10, "exact", "exact")


def test_readings_are_of_the_test_images_in_training_shares(digits):
    logits = made_up(digits)
    frame = measure(digits, [0], logits)
    rows, prior = digits.test_rows, digits.prior(0)
    for method, loss in (("softmax", "softmax"), ("log_k_minus_ce", "softmax"), ("pc", "pc")):
        row = one(frame, method=method, metric="mutual_information", seed=0)
        found = mutual_information(logits[None, loss, 0][rows], digits.test.labels[rows], prior, method)
        assert (row["value"], row["stderr"], row["n"]) == (found.value, found.stderr, 275)
        assert (row["test"], row["unit"]) == ("training_shares", "nats")


def test_drawn_birds_have_their_bayes_values(tmp_path):
    birds = task(recipe("minibirds", tmp_path, train_limit=600), tmp_path, limit=600)
    logits = {key: value for key, value in made_up(birds).items() if key[0] is None}
    frame = measure(birds, [0, 1], logits)
    prior = birds.prior(0)
    exact = frame[frame["seed"].isna()]
    row = one(exact, method="exact", metric="mutual_information")
    assert row["value"] == row["low"] == row["high"] == minibirds.mutual_information(prior)
    row = one(exact, method="bayes_ml", metric="per_class_accuracy")
    assert row["value"] == 100 * minibirds.bayes_accuracy(prior, rule="ml", average="macro")
    assert one(exact, method="bayes_map", metric="accuracy")["value"] >= row["value"]
    assert (exact["stderr"] == 0).all()
    assert (exact["interval"] == "exact").all()


def test_equal_seeds_are_not_two_runs(digits):
    for call in (measure, prior_sweep, lambda task, seeds, _: imbalance.logits_of(task, seeds)):
        with pytest.raises(ValueError, match="seeds must be distinct"):
            call(digits, [0, 0], made_up(digits))


def test_the_sweep_ends_at_the_two_decisions(digits):
    logits = made_up(digits)
    sweep = prior_sweep(digits, [0, 1], logits, taus=(0.0, 1.0))
    frame = measure(digits, [0, 1], logits)
    for tau, method in ((0.0, "pc"), (1.0, "pc_log_prior")):
        for test, metric in (("training_shares", "accuracy"), ("all", "rare_recall")):
            place = {"seed": 1, "test": test, "metric": metric}
            expected = one(frame, method=method, setting=None, **place)
            assert one(sweep, tau=tau, **place)["value"] == expected["value"]
    assert sorted(prior_sweep(digits, [0], logits)["tau"].unique()) == pytest.approx(
        np.linspace(-0.5, 1.5, 21)
    )


def test_implied_recalls_invert_the_two_accuracies():
    rare, common = imbalance.implied_recalls(accuracy=89.73, per_class=87.69, rare=500, common=1496)
    assert (rare + common) / 2 == pytest.approx(87.69)
    assert (500 * rare + 1496 * common) / 1996 == pytest.approx(89.73)
    with pytest.raises(ValueError, match="one number"):
        imbalance.implied_recalls(90, 90, 10, 10)


# --- training


def test_trained_logits_beat_chance_and_come_back_from_the_store(tmp_path):
    small = task(DIGITS, tmp_path)
    first = imbalance.logits_of(small, [0])
    assert set(first) == {(setting, loss, 0) for setting in (None, LOG_PRIOR) for loss in ("softmax", "pc")}
    entries = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/network-*/entry.json")}
    assert len(entries) == 3
    common = ~small.minority[small.test.labels]
    for logits in first.values():
        assert logits.shape == (539, 10)
        assert (logits.argmax(1) == small.test.labels)[common].double().mean() > 0.5
    again = imbalance.logits_of(small, [0])
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert entries == {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/network-*/entry.json")}


def test_a_frozen_recipe_fits_a_convergent_head_that_both_losses_share(tmp_path):
    """With a free bias and a converged head, PC logits + log π are the softmax logits but for a constant."""
    frozen = task(replace(DIGITS, frozen=True, head_decay=1e-2), tmp_path)
    made = imbalance.logits_of(frozen, [0])
    prior, settings = frozen.prior(0), {setting for setting, _, _ in made}
    assert settings == {
        None,
        imbalance.DECAYED_BIAS,
        *imbalance.STOPPED,
        *(f"{s}, {LOG_PRIOR}" for s in imbalance.STOPPED),
    }

    def apart(setting: str | None) -> float:
        softmax = made[setting, "softmax", 0].log_softmax(1)
        corrected = (made[setting, "pc", 0] + prior.log()).log_softmax(1)
        return float((softmax - corrected).abs().max())

    assert apart(None) < 1e-3
    assert all(apart(setting) > 1e-2 for setting in settings - {None} if LOG_PRIOR not in str(setting))
    # From the log prior both losses see the same images from the same function: only AdamW's scale of the
    # steps of the bias, which is the same too, could part them.
    assert all(apart(setting) < 1e-3 for setting in settings if LOG_PRIOR in str(setting))
    assert list(tmp_path.glob("cache/features-*"))
    assert not list(tmp_path.glob("cache/network-*"))
