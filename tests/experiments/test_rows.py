"""Rows: the standard error that they promise is the one that fresh images show."""

import numpy as np
import pytest
import torch

from infocam_utils.experiments import rows
from infocam_utils.gaussians import GaussianMixture
from infocam_utils.information import entropy, mutual_information


def test_standard_errors_are_the_spread_over_fresh_test_images():
    rng = np.random.default_rng(0)
    counts, right = np.array([5, 30, 200]), np.array([0.3, 0.6, 0.9])
    labels = torch.from_numpy(np.repeat(np.arange(3), counts))
    recall, share, promised = [], [], []
    for _ in range(2_000):
        hit = torch.from_numpy(rng.random(len(labels))) < torch.from_numpy(right)[labels]
        predicted = torch.where(hit, labels, (labels + 1) % 3)
        first, second = rows.accuracies(predicted, labels, 3)
        share.append(first["value"])
        recall.append(second["value"])
        promised.append(second["stderr"] ** 2)
    # √(r(1 − r)/n) of a class with five images is low by √(4/5): its recall is estimated from them too.
    variances = right * (1 - right) / counts
    assert np.std(recall) == pytest.approx(100 * variances.sum() ** 0.5 / 3, rel=0.05)
    assert np.mean(promised) == pytest.approx(1e4 / 9 * (variances * (counts - 1) / counts).sum(), rel=0.03)
    p = (right * counts).sum() / counts.sum()
    assert np.std(share) <= 100 * (p * (1 - p) / counts.sum()) ** 0.5 * 1.05  # strata only make it smaller
    without = rows.accuracies(labels[5:], labels[5:], 3)[1]
    assert without["value"] == 100, "a class without images"


def test_readings_are_the_three_estimates_of_their_own_logits():
    mixture = GaussianMixture(1, balanced=False)
    x, y = mixture.sample(mixture.train_counts // 100, torch.Generator().manual_seed(0))  # in the shares of π
    pmi = mixture.pointwise_mutual_information(x)
    logits = {"softmax": pmi + mixture.prior.log(), "pc": pmi}
    made = {row["method"]: row["value"] for row in rows.readings(logits, y, mixture.prior)}
    assert made["pc"] == pytest.approx(mutual_information(pmi, y, mixture.prior).value)
    assert made["softmax"] == pytest.approx(made["pc"])
    assert made["log_k_minus_ce"] - made["softmax"] == pytest.approx(
        np.log(5) - float(entropy(mixture.prior))
    )


def test_a_frame_keeps_whole_numbers_whole_and_shares_its_setting():
    frame = rows.frame([{"seed": 1, "value": 0.5}, rows.exact("exact", "classes", "", 5.0)], {"dataset": "d"})
    assert frame["seed"].dtype == "Int64"
    assert frame["dataset"].tolist() == ["d", "d"]
    assert (frame["low"].iloc[1], frame["high"].iloc[1], frame["stderr"].iloc[1]) == (5.0, 5.0, 0.0)
