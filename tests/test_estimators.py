"""Critics and nearest neighbours against what is known exactly of the mixtures."""

import math

import pytest
import torch

from infocam_utils.estimators import check_estimator, critic_terms, nearest_neighbour_mi
from infocam_utils.gaussians import GaussianMixture
from infocam_utils.information import PCSoftmaxLoss, entropy, log_pc_softmax, mutual_information


@pytest.fixture(scope="module")
def drawn():
    mixture = GaussianMixture(1, balanced=False)
    x, y = mixture.sample(40_000, torch.Generator().manual_seed(0))
    return mixture, x, y


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


def test_scatter_of_mines_terms_is_that_of_its_value(drawn):
    """The value is no mean of independent terms; the jackknife knows its standard error all the same."""
    mixture, x, y = drawn
    n, critic = 2000, x[:2000].double() * torch.linspace(-1, 1, 5)
    joint, z = critic[torch.arange(n), y[:n]], (mixture.prior * critic.exp()).sum(1)
    without = (joint.sum() - joint) / (n - 1) - ((z.sum() - z) / (n - 1)).log()
    jackknife = float(without.std()) * (n - 1) / n**0.5
    terms = critic_terms(critic, y[:n], "mine", "exact", mixture.prior)
    assert float(terms.std()) / n**0.5 == pytest.approx(jackknife, rel=0.02)


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
            values[marginal].append(critic_terms(critic, y, "nwj", marginal, mixture.prior).mean())
    assert torch.stack(values["exact"]).std() < 0.5 * torch.stack(values["shuffle"]).std()


@pytest.mark.parametrize("dimension", [1, 10])
def test_nearest_neighbours_find_the_information(dimension):
    mixture = GaussianMixture(dimension, balanced=False)
    x, y = mixture.sample(20_000, torch.Generator().manual_seed(7))
    estimate = nearest_neighbour_mi(x, y)
    assert abs(estimate.value - mixture.mutual_information()) < 0.02
    assert estimate.low - 0.02 < mixture.mutual_information() < estimate.high + 0.02


def test_neighbours_read_the_direction_in_which_the_means_lie():
    """A coordinate without information changes nothing, however the other is scaled."""
    mixture = GaussianMixture(1, balanced=False)
    x, y = mixture.sample(20_000, torch.Generator().manual_seed(7))
    noise = torch.randn(len(x), 1, generator=torch.Generator().manual_seed(8))
    wide = torch.cat([noise, 100 * x], 1)
    assert nearest_neighbour_mi(wide, y).value == pytest.approx(nearest_neighbour_mi(x, y).value, abs=0.01)


def test_permuted_labels_carry_no_information(drawn):
    mixture, x, y = drawn
    permuted = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(5))]
    assert abs(nearest_neighbour_mi(x, permuted).value) < 0.02
    critic = mixture.pointwise_mutual_information(x)
    for kind in ("mine", "nwj", "infonce"):
        assert float(critic_terms(critic, permuted, kind, "exact", mixture.prior).mean()) < 0


def test_a_shuffled_marginal_is_one_fixed_permutation_of_the_batch():
    critic, labels = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)), torch.arange(50) % 4
    other = labels[torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    rows = torch.arange(50)
    expected = critic[rows, labels] + 1 - critic[rows, other].exp()
    torch.testing.assert_close(critic_terms(critic, labels, "nwj", "shuffle"), expected)


def test_infonce_knows_no_prior_but_the_batchs_and_the_critics_type_is_kept():
    critic, labels = torch.randn(50, 3, generator=torch.Generator().manual_seed(1)), torch.arange(50) % 3
    prior = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    own = critic_terms(critic, labels, "infonce")
    assert torch.equal(critic_terms(critic, labels, "infonce", "shuffle", prior), own)
    assert critic_terms(critic, labels, "nwj", prior=prior).dtype == torch.float32


def test_nearest_neighbours_are_scikit_learns_on_the_axis_of_the_means(drawn):
    """Values with ties, which its noise breaks, in its order; and the scatter of ten parts."""
    from sklearn.feature_selection import mutual_info_classif

    x, y = (drawn[1][:1000] * 4).round() / 4, drawn[2][:1000]
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))

    def value(rows, sign):
        points = sign * x[rows].double().numpy()
        return float(mutual_info_classif(points, y[rows].numpy(), n_neighbors=3, random_state=0)[0])

    found = nearest_neighbour_mi(x, y)
    assert any(found.value == pytest.approx(value(order, sign), abs=1e-12) for sign in (1, -1))
    parts = [torch.tensor([value(order[i::10], sign) for i in range(10)]) for sign in (1, -1)]
    assert any(found.stderr == pytest.approx(float(part.std()) / math.sqrt(10), rel=1e-5) for part in parts)
    assert found.n == 1000


def test_where_the_means_lie_does_not_depend_on_where_the_origin_is(drawn):
    _, x, y = drawn
    beside = torch.cat([x, torch.randn(len(x), 1, generator=torch.Generator().manual_seed(8))], 1)
    expected = nearest_neighbour_mi(beside[:20_000], y[:20_000]).value
    moved = beside + torch.tensor([0.0, 100.0])
    assert nearest_neighbour_mi(moved[:20_000], y[:20_000]).value == pytest.approx(expected, abs=1e-3)


X, Y = torch.zeros(10, 1), torch.zeros(10, dtype=torch.long)
REFUSED = [
    (lambda: critic_terms(X, Y, "dv"), r"kind must be one of 'mine', 'nwj', 'infonce', got 'dv'"),
    (lambda: critic_terms(X, Y, "nwj", "sum"), r"marginal must be one of 'exact', 'shuffle', got 'sum'"),
    (lambda: critic_terms(X[:, 0], Y, "nwj"), r"critic must be \(N, K\).*got \(10,\) and \(10,\)"),
    (lambda: critic_terms(X, Y[:4], "nwj"), r"labels \(N,\), got \(10, 1\) and \(4,\)"),
    (lambda: critic_terms(X, Y + 3, "nwj"), r"labels must lie in \[0, 0\], got 3"),
    (lambda: nearest_neighbour_mi(X, Y), r"N at least 1000, got \(10, 1\) and \(10,\)"),
    (lambda: nearest_neighbour_mi(X[:, 0], Y), r"x must be \(N, d\)"),
    (lambda: nearest_neighbour_mi(torch.zeros(2000), torch.zeros(2000)), r"got \(2000,\) and \(2000,\)"),
    (lambda: nearest_neighbour_mi(torch.zeros(2000, 1), Y), r"got \(2000, 1\) and \(10,\)"),
    (lambda: nearest_neighbour_mi(torch.zeros(999, 1), torch.zeros(999)), r"N at least 1000, got \(999, 1\)"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_wrong_with_a_reading_is_named():
    """Readings and losses with one fault each; what has none stands in the example of `check_estimator`."""

    def pc(f, y, prior):
        return mutual_information(f, y, prior, "pc")

    def plain(f, y, prior):
        return torch.nn.functional.cross_entropy(f, y)

    def named(estimate, loss=None, kind="softmax"):
        return {problem.split(":")[0] for problem in check_estimator(estimate, loss, kind)}

    assert named(lambda f, y, prior: mutual_information(f, y, prior, "softmax").value, plain) == set()
    assert named(lambda f, y, prior: pc(f, y, prior).value, plain, "pc") == {"gradient, unbalanced"}
    assert named(lambda f, y, prior: 2 * pc(f, y, prior).value, kind="pc") >= {
        "truth, balanced",
        "bound, balanced",
    }
    unnormalised = named(lambda f, y, prior: float(f[torch.arange(len(y)), y].mean()), kind="pc")
    assert {"shift, balanced", "shift, unbalanced"} <= unnormalised
    exact = named(lambda f, y, prior: pc(f, y, prior).value, lambda f, y, p: PCSoftmaxLoss(p)(f, y), "pc")
    assert exact == set()
    with pytest.raises(ValueError, match=r"^kind must be one of"):
        check_estimator(plain, kind="logits")


def test_what_is_wrong_is_said_in_numbers():
    """With the tolerance of four standard errors of the exact PMI."""
    log_k = check_estimator(lambda f, y, prior: mutual_information(f, y, prior, "log_k_minus_ce").value)
    mixture = GaussianMixture(1, balanced=False)
    x, y = mixture.sample(40_000, torch.Generator().manual_seed(0))
    pmi = mixture.pointwise_mutual_information(x)[torch.arange(len(y)), y]
    value = math.log(5) + float((pmi + mixture.prior[y].log()).mean())
    error = 4 * float(pmi.std()) / 200
    shares = float(entropy(torch.bincount(y) / len(y)))
    assert log_k == [
        f"truth, unbalanced: {value:.4f} nats instead of {mixture.mutual_information():.4f} ± {error:.4f}",
        f"bound, unbalanced: {math.log(5):.4f} nats, though H(Y) is {shares:.4f}",
    ]
    logits = mixture.pointwise_mutual_information(x).requires_grad_()
    (slope,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, y), logits)
    left = float((slope.sum(0) / slope.abs().sum()).abs().max())
    (problem,) = check_estimator(
        lambda f, y, prior: mutual_information(f, y, prior).value,
        lambda f, y, prior: torch.nn.functional.cross_entropy(f, y),
        "pc",
    )
    assert problem == f"gradient, unbalanced: {left:.3f} of it is left at the exact posterior"
