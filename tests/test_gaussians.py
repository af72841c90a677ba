"""The mixtures' exact values against adaptive quadrature, Monte Carlo and published figures."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import infocam_utils.gaussians as gaussians
from infocam_utils.gaussians import GaussianMixture
from infocam_utils.information import accuracy, entropy, mutual_information, per_class_accuracy

# dimension -> mutual information, MAP micro, ML micro, MAP macro, ML macro; computed independently
BALANCED = {
    1: (1.0314, 0.7462, 0.7462, 0.7462, 0.7462),
    2: (1.3003, 0.8742, 0.8742, 0.8742, 0.8742),
    5: (1.5544, 0.9797, 0.9797, 0.9797, 0.9797),
    10: (1.6058, 0.9987, 0.9987, 0.9987, 0.9987),
}
IMBALANCED = {
    1: (1.0224, 0.7986, 0.7779, 0.7177, 0.7462),
    2: (1.2393, 0.8988, 0.8899, 0.8617, 0.8742),
    5: (1.4449, 0.9835, 0.9823, 0.9779, 0.9797),
    10: (1.4868, 0.9990, 0.9989, 0.9986, 0.9987),
}
CASES = [(d, True, BALANCED[d]) for d in BALANCED] + [(d, False, IMBALANCED[d]) for d in IMBALANCED]


@pytest.mark.parametrize(("dimension", "balanced", "expected"), CASES)
def test_exact_values_of_the_eight_mixtures(dimension, balanced, expected):
    mixture = GaussianMixture(dimension, balanced)
    values = [mixture.mutual_information()]
    values += [
        mixture.bayes_accuracy(rule, average) for average in ("micro", "macro") for rule in ("map", "ml")
    ]
    assert values == pytest.approx(expected, abs=6e-5)


def adaptive_quadrature(means, prior):
    """I(X; Y) of a one-dimensional mixture as H(X) − H(X|Y), integrated by scipy between the means."""

    def minus_p_log_p(t):
        p = float(prior @ np.exp(-((t - means) ** 2) / 2)) / math.sqrt(2 * math.pi)
        return -p * math.log(p) if p > 0 else 0.0

    edges = [means.min() - 14, *np.sort(np.unique(means)), means.max() + 14]
    parts = (quad(minus_p_log_p, a, b, epsabs=1e-13, epsrel=1e-13, limit=400)[0] for a, b in pairwise(edges))
    return sum(parts) - 0.5 * math.log(2 * math.pi * math.e)


@pytest.mark.parametrize("dimension", [1, 2, 5, 10])
@pytest.mark.parametrize("balanced", [True, False])
def test_quadrature_error_is_below_1e_8(dimension, balanced, monkeypatch):
    mixture = GaussianMixture(dimension, balanced)
    value = mixture.mutual_information()
    projected = mixture.means[:, 0].numpy() * math.sqrt(dimension)
    assert value == pytest.approx(adaptive_quadrature(projected, mixture.prior.numpy()), abs=1e-10)
    monkeypatch.setattr(gaussians, "GRID", np.linspace(-14, 14, 8001))
    assert value == pytest.approx(mixture.mutual_information(), abs=1e-11)


@pytest.mark.parametrize("separation", [0.0, 0.01, 1.0, 8.0, 1e3])
def test_two_classes_from_no_to_all_information(separation):
    mixture = GaussianMixture(1, means=[0.0, separation], counts=[1, 3])
    value, ceiling = mixture.mutual_information(), float(entropy(mixture.prior))
    if separation == 0:
        assert value == pytest.approx(0, abs=1e-12)
    elif separation == 0.01:  # small signal: half the variance of the mean
        assert value == pytest.approx(0.01**2 * 3 / 16 / 2, rel=1e-3)
    elif separation == 1e3:
        assert value == pytest.approx(ceiling, abs=1e-12)
    assert value <= ceiling + 1e-12


def test_two_class_bayes_accuracy_is_the_normal_tail():
    for gap in (0.3, 1.0):
        mixture = GaussianMixture(4, means=torch.tensor([[0.0] * 4, [gap] * 4]), counts=[1, 1])
        assert mixture.bayes_accuracy() == pytest.approx(0.5 * math.erfc(-gap / math.sqrt(2)), abs=1e-7)


def test_a_swamped_class_is_never_predicted():
    mixture = GaussianMixture(1, means=[-0.1, 0.0, 0.1], counts=[1000, 1, 1000])
    assert mixture.bayes_accuracy("map", "macro") == pytest.approx(
        GaussianMixture(1, means=[-0.1, 0.1], counts=[1000, 1000]).bayes_accuracy() * 2 / 3, abs=1e-12
    )
    same = GaussianMixture(1, means=[0.0, 0.0], counts=[2, 3])
    assert same.bayes_accuracy("map") == pytest.approx(0.6)
    assert same.bayes_accuracy("ml") == pytest.approx(0.4)  # a tie goes to the first class, as argmax does


def test_exact_values_do_not_depend_on_rotation_or_offset():
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(3, generator=generator, dtype=torch.float64)
    direction /= direction.norm()
    steps = torch.tensor([0.0, 2.0, -2.0, 4.0, -4.0], dtype=torch.float64)
    means = steps[:, None] * direction + torch.tensor([5.0, -3.0, 100.0])
    turned, plain = GaussianMixture(3, balanced=False, means=means), GaussianMixture(1, balanced=False)
    assert turned.mutual_information() == pytest.approx(plain.mutual_information(), abs=1e-12)
    assert turned.bayes_accuracy() == pytest.approx(plain.bayes_accuracy(), abs=1e-12)
    x, y = turned.sample(2000, generator)
    projected = (x.double() - torch.tensor([5.0, -3.0, 100.0])) @ direction
    torch.testing.assert_close(
        turned.pointwise_mutual_information(x),
        plain.pointwise_mutual_information(projected[:, None]),
        rtol=0,
        atol=1e-10,
    )
    assert y.dtype == torch.int64
    assert x.dtype == torch.float32


@pytest.mark.parametrize("balanced", [True, False])
def test_sample_agrees_with_the_exact_values(balanced):
    mixture = GaussianMixture(2, balanced)
    x, y = mixture.sample(200_000, torch.Generator().manual_seed(1))
    pmi = mixture.pointwise_mutual_information(x)
    estimate = mutual_information(pmi, y, mixture.prior)  # exact PMI is a fixed point of PC-softmax
    assert abs(estimate.value - mixture.mutual_information()) < 4 * estimate.stderr
    for rule, scores in (("ml", pmi), ("map", pmi + mixture.prior.log())):
        right = scores.argmax(1)
        assert accuracy(right, y) == pytest.approx(mixture.bayes_accuracy(rule), abs=0.004)
        macro = per_class_accuracy(right, y, 5)
        assert macro == pytest.approx(mixture.bayes_accuracy(rule, "macro"), abs=0.006)


def test_pmi_is_density_ratio_by_scipy():
    from scipy.stats import multivariate_normal

    means = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])  # not on a line
    mixture = GaussianMixture(2, means=means, counts=[1, 2, 3])
    x, _ = mixture.sample(50, torch.Generator().manual_seed(2))
    densities = np.stack([multivariate_normal(m, np.eye(2)).pdf(x.numpy()) for m in means], 1)
    expected = np.log(densities / (densities @ mixture.prior.numpy())[:, None])
    np.testing.assert_allclose(mixture.pointwise_mutual_information(x), expected, atol=1e-9)


def test_sample_by_counts_and_by_number():
    mixture = GaussianMixture(3, balanced=False)
    assert mixture.train_counts.tolist() == [5000, 10000, 15000, 20000, 25000]
    x, y = mixture.sample([2, 0, 1, 0, 3], torch.Generator().manual_seed(0))
    assert torch.bincount(y, minlength=5).tolist() == [2, 0, 1, 0, 3]
    assert x.shape == (6, 3)
    noise = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(x, mixture.means.float()[y] + noise)
    one, again = (mixture.sample(1000, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one[1], again[1])
    assert torch.equal(one[0], again[0])
    assert len(mixture.sample(1)[1]) == 1
    assert GaussianMixture(3).train_counts.tolist() == [10_000] * 5  # balanced unless said otherwise
    shares = torch.bincount(mixture.sample(60_000, torch.Generator().manual_seed(0))[1]) / 60_000
    torch.testing.assert_close(shares.double(), mixture.prior, rtol=0, atol=0.01)


REFUSED = [
    (lambda: GaussianMixture(0), r"dimension must be at least 1, got 0"),
    (lambda: GaussianMixture(2, means=[[0.0], [1.0]]), r"shape \(K, 2\).*got \(2, 1\); give one row"),
    (lambda: GaussianMixture(1, means=[0.0]), r"K at least 2"),
    (lambda: GaussianMixture(1, means=[0.0, math.nan]), r"means must be finite"),
    (lambda: GaussianMixture(1, counts=[1, 2]), r"5 integers of at least 1, got \[1, 2\]"),
    (lambda: GaussianMixture(1, counts=[1, 2, 3, 4, 0]), r"at least 1, got \[1, 2, 3, 4, 0\]"),
    (lambda: GaussianMixture(1).sample(0), r"n must be at least 1, got 0"),
    (lambda: GaussianMixture(1).sample([1, -1, 1, 1, 1]), r"at least 0, got \[1, -1"),
    (lambda: GaussianMixture(2).pointwise_mutual_information(torch.zeros(4, 3)), r"\(N, 2\).*got \(4, 3\)"),
    (
        lambda: GaussianMixture(1).pointwise_mutual_information(torch.tensor([[math.nan]])),
        r"x must be finite",
    ),
    (lambda: GaussianMixture(1).bayes_accuracy("mpa"), r"rule must be one of 'map', 'ml', got 'mpa'"),
    (lambda: GaussianMixture(1).bayes_accuracy(average="mean"), r"average must be one of 'micro', 'macro'"),
    (lambda: GaussianMixture(2, means=np.eye(3)[:, :2]).mutual_information(), r"on one line.*large sample"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
