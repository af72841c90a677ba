"""Critics, nearest neighbours, the mixtures' classifier and trivial boxes against what is known exactly."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from infocam_utils.cam import feature_norm_maps
from infocam_utils.estimators import critic_terms, nearest_neighbour_mi
from infocam_utils.experiments.mixtures import (
    MLPs,
    critic_estimate,
    fit_mlps,
    train_critics,
    train_mixture_classifier,
)
from infocam_utils.gaussians import GaussianMixture
from infocam_utils.information import log_pc_softmax, mutual_information
from infocam_utils.localization import centre_boxes, whole_image_boxes


@pytest.fixture(scope="module")
def drawn():
    mixture = GaussianMixture(1, balanced=False)
    x, y = mixture.sample(40_000, torch.Generator().manual_seed(0))
    return mixture, x, y


# --- critics


@pytest.mark.parametrize("kind", ["mine", "nwj", "infonce"])
@pytest.mark.parametrize("marginal", ["exact", "shuffle"])
def test_bounds_are_tight_at_the_exact_pmi(drawn, kind, marginal):
    mixture, x, y = drawn
    critic = mixture.pointwise_mutual_information(x)
    terms = critic_terms(critic, y, kind, marginal, mixture.prior)
    stderr = float(terms.std()) / len(terms) ** 0.5
    assert abs(float(terms.mean()) - mixture.mutual_information()) < 4 * stderr
    assert stderr < 0.01


@pytest.mark.parametrize("kind", ["mine", "nwj", "infonce"])
def test_bounds_are_below_for_a_wrong_critic(drawn, kind):
    mixture, x, y = drawn
    for wrong in (0.3, 1.5):
        critic = wrong * mixture.pointwise_mutual_information(x)
        assert (
            float(critic_terms(critic, y, kind, "exact", mixture.prior).mean()) < mixture.mutual_information()
        )


def test_mine_is_the_donsker_varadhan_value(drawn):
    mixture, x, y = drawn
    critic = x.double() * torch.linspace(-1, 1, 5)
    z = (mixture.prior * critic.exp()).sum(1)
    expected = critic[torch.arange(len(y)), y].mean() - z.mean().log()
    got = critic_terms(critic, y, "mine", "exact", mixture.prior).mean()
    assert float(got) == pytest.approx(float(expected), abs=1e-12)


def test_pc_softmax_dominates_mine_dominates_nwj(drawn):
    """Jensen: E log Z ≤ log E Z; and log u ≤ u − 1. For one critic, so at any point of training."""
    mixture, x, y = drawn
    critic = x.double() * torch.linspace(-1, 1, 5)
    pc = mutual_information(critic, y, mixture.prior).value
    mine = float(critic_terms(critic, y, "mine", "exact", mixture.prior).mean())
    nwj = float(critic_terms(critic, y, "nwj", "exact", mixture.prior).mean())
    assert nwj < mine < pc


def test_infonce_is_pc_softmax_with_the_batchs_prior():
    generator = torch.Generator().manual_seed(1)
    critic = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (50,), generator=generator)  # class 3 is absent from the batch
    pairwise = critic[:, labels]  # (B, B): T(x_i, y_j)
    expected = pairwise.diag() - (pairwise.logsumexp(1) - math.log(50))
    torch.testing.assert_close(critic_terms(critic, labels, "infonce"), expected)
    shares = torch.bincount(labels[:, None].flatten()) / 50
    torch.testing.assert_close(
        critic_terms(critic, labels, "infonce"),
        log_pc_softmax(critic[:, :3], shares).gather(1, labels[:, None])[:, 0],
    )


def test_summing_the_marginal_scatters_less_than_shuffling():
    mixture = GaussianMixture(10, balanced=False)
    values = {"exact": [], "shuffle": []}
    for seed in range(20):
        x, y = mixture.sample(2000, torch.Generator().manual_seed(seed))
        critic = mixture.pointwise_mutual_information(x)
        for marginal in values:
            terms = critic_terms(critic, y, "nwj", marginal, mixture.prior, seed)
            values[marginal].append(terms.mean())
    assert torch.stack(values["exact"]).std() < 0.5 * torch.stack(values["shuffle"]).std()


@pytest.mark.parametrize(("kind", "marginal"), [("mine", "shuffle"), ("nwj", "exact"), ("infonce", "exact")])
def test_trained_critics_find_most_of_the_information(drawn, kind, marginal):
    mixture, x_test, y_test = drawn
    x, y = mixture.sample(mixture.train_counts // 5, torch.Generator().manual_seed(3))
    estimate = critic_estimate(x, y, 5, x_test, y_test, kind, steps=150, seed=0, marginal=marginal)
    assert mixture.mutual_information() - 0.1 < estimate.value < mixture.mutual_information() + 0.03
    assert estimate.low < estimate.value < estimate.high


def test_permuted_labels_carry_no_information(drawn):
    _, x, y = drawn
    permuted = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(5))]
    half = len(x) // 2
    estimate = critic_estimate(x[:half], permuted[:half], 5, x[half:], permuted[half:], "nwj", steps=60)
    assert abs(estimate.value) < 0.02
    assert abs(nearest_neighbour_mi(x, permuted).value) < 0.02


def test_training_together_is_training_alone():
    mixture = GaussianMixture(2, counts=[200] * 5)
    draws = [mixture.sample(1000, torch.Generator().manual_seed(s)) for s in (0, 1)]
    x, y = torch.stack([x for x, _ in draws]), torch.stack([y for _, y in draws])
    both = train_critics(x, y, 5, "mine", "shuffle", seeds=[0, 1], steps=5, batch_size=100)
    alone = train_critics(x[1:], y[1:], 5, "mine", "shuffle", seeds=[1], steps=5, batch_size=100)
    torch.testing.assert_close(both[1](x[0]), alone[0](x[0]), rtol=0, atol=1e-5)


# --- the mixtures' classifier


@pytest.mark.parametrize("kind", ["softmax", "pc"])
def test_classifier_estimates_the_information(drawn, kind):
    mixture, x, y = drawn
    steps = []
    classifiers = train_mixture_classifier(
        mixture, kind, seeds=[0, 1], steps=150, on_step=lambda step, _: steps.append(step)
    )
    assert steps == list(range(1, 151))
    truth_here = mutual_information(mixture.pointwise_mutual_information(x), y, mixture.prior).value
    for classifier in (classifiers[0], classifiers[1]):
        estimate = mutual_information(classifier(x), y, mixture.prior, kind)
        assert truth_here - 0.02 < estimate.value < truth_here + 0.005


def test_losses_agree_on_a_balanced_mixture():
    mixture = GaussianMixture(2, counts=[400] * 5)
    softmax, pc = (train_mixture_classifier(mixture, kind, steps=10)[0] for kind in ("softmax", "pc"))
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


# --- nearest neighbours, boxes, maps


@pytest.mark.parametrize("dimension", [1, 10])
def test_nearest_neighbours_find_the_information(dimension):
    mixture = GaussianMixture(dimension, balanced=False)
    x, y = mixture.sample(20_000, torch.Generator().manual_seed(7))
    estimate = nearest_neighbour_mi(x, y)
    assert abs(estimate.value - mixture.mutual_information()) < 0.02
    assert estimate.low - 0.02 < mixture.mutual_information() < estimate.high + 0.02


def test_boxes_keep_x_and_y_apart():
    assert whole_image_boxes(2, (10, 30)).tolist() == [[0, 0, 30, 10]] * 2
    assert whole_image_boxes(0, 8).shape == (0, 4)
    box = centre_boxes(1, (10, 30), 0.5)[0]
    assert box.tolist() == [7.5, 2.5, 22.5, 7.5]


def test_feature_norm_is_the_euclidean_norm():
    features = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(feature_norm_maps(features), features.square().sum(1).sqrt())


X, Y = torch.zeros(10, 1), torch.zeros(10, dtype=torch.long)
REFUSED = [
    (
        lambda: critic_estimate(X, Y % 2, 1, X, Y, "dv"),
        r"kind must be one of 'mine', 'nwj', 'infonce', got 'dv'",
    ),
    (lambda: critic_estimate(X, Y, 1, X, Y, marginal="sum"), r"marginal must be one of"),
    (lambda: critic_estimate(X, Y + 3, 2, X, Y), r"labels must lie in \[0, 1\], got 3"),
    (lambda: critic_estimate(X, Y, 1, X, Y + 3), r"labels must lie in \[0, 0\], got 3"),
    (lambda: nearest_neighbour_mi(X, Y), r"at least 100 for each.*got \(10, 1\).*10 blocks"),
    (lambda: nearest_neighbour_mi(X[:, 0], Y), r"x must be \(N, d\)"),
    (lambda: centre_boxes(1, 64, 0.0), r"fraction must lie in \(0, 1\], got 0\.0"),
    (lambda: centre_boxes(-1, 64, 0.5), r"n must be at least 0.*got n=-1"),
    (lambda: whole_image_boxes(1, 0), r"at least 1 pixel.*0x0"),
    (lambda: feature_norm_maps(X), r"features must be \(B, C, H, W\), got \(10, 1\)"),
    (lambda: train_mixture_classifier(GaussianMixture(1), "PC"), r"'softmax', 'pc', got 'PC'"),
    (lambda: fit_mlps(X, Y, 2, cross_entropy, seeds=[0]), r"x must be \(S, N, d\).*got \(10, 1\)"),
    (lambda: fit_mlps(X[None], Y[None], 2, cross_entropy, seeds=[0], steps=0), r"must be positive, got 0"),
    (
        lambda: fit_mlps(X[None] * math.nan, Y[None], 2, cross_entropy, seeds=[0], steps=1),
        r"loss is nan.*lower lr",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
