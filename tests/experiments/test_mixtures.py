"""The synthetic experiment: networks, critics and the frame against what is known of the mixtures."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from infocam_utils.estimators import critic_terms, nearest_neighbour_mi
from infocam_utils.experiments import mixtures
from infocam_utils.experiments.mixtures import Estimator, MLPs, Synthetic, fit_mlps, held_out, measure, train
from infocam_utils.gaussians import GaussianMixture
from infocam_utils.information import accuracy, entropy, mutual_information, shift_prior


@pytest.fixture(scope="module")
def drawn() -> tuple[GaussianMixture, torch.Tensor, torch.Tensor]:
    mixture = GaussianMixture(1, balanced=False)
    return mixture, *held_out(mixture, 0, 15_000)


# --- networks


@pytest.mark.parametrize(
    "critic", [Estimator("mine", "shuffle"), Estimator("nwj", "exact"), Estimator("infonce", "exact")]
)
def test_trained_critics_find_most_of_the_information(drawn, critic):
    mixture, x_test, y_test = drawn
    small = GaussianMixture(1, counts=mixture.train_counts // 5)
    outputs = train(small, critic, seeds=[3], steps=150)[0](x_test)
    estimate = critic.read(outputs, y_test, mixture.prior)
    assert mixture.mutual_information() - 0.1 < estimate.value < mixture.mutual_information() + 0.03
    assert estimate.low < estimate.value < estimate.high


def test_permuted_labels_carry_no_information(drawn):
    mixture, x, y = drawn
    permuted = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(5))]
    half, nwj = len(x) // 2, Estimator("nwj", "exact")
    critic = fit_mlps(x[None, :half], permuted[None, :half], 5, nwj.loss(mixture.prior), seeds=[0], steps=60)
    assert abs(nwj.read(critic[0](x[half:]), permuted[half:], mixture.prior).value) < 0.02
    assert abs(nearest_neighbour_mi(x, permuted).value) < 0.02


def test_training_together_is_training_alone():
    mixture, x = GaussianMixture(2, counts=[1_000] * 5), torch.randn(50, 2)
    both, alone = (train(mixture, Estimator("mine", "shuffle"), seeds=s, steps=5) for s in ([0, 1], [1]))
    torch.testing.assert_close(both[1](x), alone[0](x), rtol=0, atol=1e-5)
    assert not torch.allclose(both[0](x), both[1](x), atol=1e-2)


@pytest.mark.parametrize("kind", ["softmax", "pc"])
def test_classifier_estimates_the_information(drawn, kind):
    mixture, x, y = drawn
    steps = []
    classifiers = train(
        mixture, Estimator(kind), seeds=[0, 1], steps=150, on_step=lambda step, _: steps.append(step)
    )
    assert steps == list(range(1, 151))
    truth_here = mutual_information(mixture.pointwise_mutual_information(x), y, mixture.prior).value
    for classifier in (classifiers[0], classifiers[1]):
        estimate = mutual_information(classifier(x), y, mixture.prior, kind)
        assert truth_here - 0.02 < estimate.value < truth_here + 0.005


def test_losses_agree_on_a_balanced_mixture():
    mixture = GaussianMixture(2, counts=[400] * 5)
    softmax, pc = (train(mixture, Estimator(kind), seeds=[0], steps=10)[0] for kind in ("softmax", "pc"))
    x, _ = mixture.sample(100, torch.Generator().manual_seed(0))
    torch.testing.assert_close(softmax(x), pc(x), rtol=0, atol=1e-4)


def test_one_network_of_a_stack_is_the_same_stack():
    mlps = MLPs(3, 5, seeds=[0, 1])
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mlps(x)[1], mlps[1](x))
    layers = [torch.nn.Linear(i, o) for i, o in ((3, 100), (100, 100), (100, 100), (100, 5))]
    for layer, weight, bias in zip(layers, mlps.weights, mlps.biases, strict=True):
        layer.load_state_dict({"weight": weight[1].T, "bias": bias[1, 0]})
    relu = torch.nn.ReLU()
    plain = torch.nn.Sequential(layers[0], relu, layers[1], relu, layers[2], relu, layers[3])
    torch.testing.assert_close(mlps[1](x), plain(x))
    assert float(mlps.weights[1].detach().abs().max()) <= 0.1  # nn.Linear's bound for 100 inputs


# --- the experiment


@pytest.fixture(scope="module")
def found() -> Synthetic:
    return measure([0, 1], [1, 2], steps=20, critic_steps=20, test_samples=3_000)


def values(frame: pd.DataFrame, **columns) -> list[float]:
    """Values with these columns, by seed."""
    for name, value in columns.items():
        frame = frame[frame[name] == value]
    return frame.sort_values("seed")["value"].tolist()


def test_held_out_pairs_have_the_exact_shares():
    mixture = GaussianMixture(2, balanced=False)
    x, y = held_out(mixture, 0, 1_000)
    assert torch.bincount(y).tolist() == [66, 132, 198, 264, 330]
    train, _ = mixture.sample(mixture.train_counts, torch.Generator().manual_seed(0))
    assert not torch.isin(x[:, 0], train[:, 0]).all(), "not the training draw"
    with pytest.raises(ValueError, match="n must be at least 15"):
        held_out(mixture, 0, 14)


def test_truths_are_the_mixtures_own():
    frame = mixtures.truths([1, 5]).assign(seed=0)
    assert (frame["stderr"] == 0).all()
    assert (frame["interval"] == "exact").all()
    place = {"shares": "imbalanced", "dimension": 5}
    mixture = GaussianMixture(5, balanced=False)
    assert values(frame, **place, metric="mutual_information") == [mixture.mutual_information()]
    recall = 100 * mixture.bayes_accuracy("ml", "macro")
    assert values(frame, **place, method="bayes_ml", metric="per_class_accuracy") == [recall]
    gap = values(frame, **place, metric="log_k_minus_entropy")[0]
    assert gap == pytest.approx(math.log(5) - float(entropy(mixture.prior)))


def test_every_number_of_the_frame_is_named_once(found):
    columns = ["shares", "dimension", "method", "rule", "marginal", "metric", "seed"]
    assert not found.frame.duplicated(columns).any()
    measured = found.frame[found.frame["seed"].notna()]
    assert (measured["stderr"] > 0).all()
    assert (measured["n"] > 0).all()
    assert measured[["low", "high", "interval"]].isna().all(axis=None)
    assert set(measured.loc[measured["dimension"].isna(), "metric"]) == {"worst_error", "mean_error"}
    assert set(found.networks) == {
        (shares, d, loss)
        for shares in ("balanced", "imbalanced")
        for d in (1, 2)
        for loss in ("softmax", "pc")
    }


def test_rows_are_what_the_networks_say(found):
    mixture = GaussianMixture(2, balanced=False)
    place = {"shares": "imbalanced", "dimension": 2}
    for i, seed in enumerate((0, 1)):
        x, y = held_out(mixture, seed, 3_000)
        f = found.networks["imbalanced", 2, "pc"][i](x)
        estimate = mutual_information(f, y, mixture.prior, "pc").value
        assert values(found.frame, **place, method="pc", metric="mutual_information")[i] == estimate
        error = values(found.frame, **place, method="pc", metric="error")[i]
        assert error == estimate - mixture.mutual_information()
        chosen = shift_prior(f, mixture.prior, mixture.prior, "pc").argmax(1)
        by_map = values(found.frame, **place, method="pc", rule="map", metric="accuracy")[i]
        assert by_map == 100 * accuracy(chosen, y)


def test_log_k_minus_ce_is_too_high_by_log_k_minus_the_entropy(found):
    for shares, gap in (("balanced", 0.0), ("imbalanced", 0.11968759)):
        high, fair = (
            values(found.frame, shares=shares, dimension=1, method=method, metric="mutual_information")
            for method in ("log_k_minus_ce", "softmax")
        )
        assert np.subtract(high, fair) == pytest.approx([gap, gap], abs=1e-6)


def test_summaries_are_over_the_dimensions(found):
    place = {"shares": "imbalanced", "method": "softmax"}
    errors = [values(found.frame, **place, dimension=d, metric="error") for d in (1, 2)]
    assert values(found.frame, **place, metric="worst_error") == np.abs(errors).max(0).tolist()
    assert values(found.frame, **place, metric="mean_error") == pytest.approx(np.mean(errors, axis=0))


def test_curves_end_where_training_does(found):
    curves = found.curves
    assert set(curves["method"]) == {"pc", "mine", "nwj", "infonce"}
    assert (curves["shares"] == "imbalanced").all()
    assert curves[curves["method"] == "pc"]["step"].max() == 20
    mixture = GaussianMixture(1, balanced=False)
    x, y = held_out(mixture, 3_001, 5_000)
    exact = mixture.pointwise_mutual_information(x).gather(1, y[:, None]).mean()
    estimate = mutual_information(found.networks["imbalanced", 1, "pc"][1](x), y, mixture.prior).value
    last = curves.query("method == 'pc' and dimension == 1 and step == 20 and seed == 1")
    assert last["error"].tolist() == pytest.approx([estimate - float(exact)], abs=1e-9)
    assert (curves["seconds"] > 0).all()
    assert len(values(found.frame, dimension=1, metric="training_time")) == 5


def test_critics_are_read_as_their_bound(drawn):
    mixture, x, y = drawn
    outputs = torch.randn(len(x), 5, generator=torch.Generator().manual_seed(0))
    terms = critic_terms(outputs.double(), y, "mine", "shuffle", mixture.prior)
    assert Estimator("mine", "shuffle").read(outputs, y, mixture.prior).value == float(terms.mean())


def test_an_error_arrives_when_it_stays():
    steps = {"step": [20, 40, 60, 80], "seconds": [1.0, 2.0, 3.0, 4.0]}
    columns = {"dimension": 1, "method": "mine", "marginal": "exact"}
    curves = pd.concat(
        [
            pd.DataFrame(columns | steps | {"seed": 0, "error": [0.5, 0.01, 0.08, 0.00]}),
            pd.DataFrame(columns | steps | {"seed": 1, "error": [0.5, 0.03, 0.06, -0.04]}),
        ]
    )
    assert mixtures.arrivals(curves, (0.6, 0.05, 0.01))["seconds"].tolist()[:2] == [1.0, 4.0]
    assert math.isnan(mixtures.arrivals(curves, (0.01,))["seconds"].iloc[0])


X, Y = torch.zeros(10, 1), torch.zeros(10, dtype=torch.long)
REFUSED = [
    (
        lambda: train(GaussianMixture(1), Estimator("dv", "exact"), seeds=[0]),
        r"kind must be one of .*got 'dv'",
    ),
    (lambda: train(GaussianMixture(1), Estimator("mine", "sum"), seeds=[0]), r"marginal must be one of"),
    (lambda: train(GaussianMixture(1), Estimator("PC"), seeds=[0]), r"loss must be one of .*got 'PC'"),
    (lambda: fit_mlps(X, Y, 2, cross_entropy, seeds=[0]), r"x must be \(S, N, d\).*got \(10, 1\)"),
    (lambda: fit_mlps(X[None], Y[None], 2, cross_entropy, seeds=[0], steps=0), r"steps at least 1.* 0$"),
    (lambda: measure([1, 1], [1]), r"seeds must be distinct"),
    (lambda: fit_mlps(X[None] * math.nan, Y[None], 2, cross_entropy, seeds=[0], steps=1), r"loss is nan"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
