"""Linear heads: an independent implementation, exact identities of the class weights, and what is refused."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from infocam_utils.classifiers.heads import DECAYS, fit_head, select_decay
from infocam_utils.information import PCSoftmaxLoss, class_prior


@pytest.fixture(scope="module")
def data():
    """600 points of 5 classes in 12 dimensions, non-negative as pooled features are; imbalanced 3:1."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 3, 4, 4]).repeat(60)
    centres = torch.randn(5, 12, generator=generator)
    return (centres[labels] + 1.5 * torch.randn(600, 12, generator=generator)).relu(), labels


def test_lbfgs_agrees_with_scikit_learn(data):
    x, y = data
    head = fit_head(x, y, 5, weight_decay=0.01, optimizer="lbfgs", tolerance=1e-8)
    reference = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-9, max_iter=5000)
    reference.fit(x.double().numpy(), y.numpy())
    assert torch.allclose(head.weight.double(), torch.from_numpy(reference.coef_), atol=1e-5)
    bias = torch.from_numpy(reference.intercept_)
    assert torch.allclose(head.bias.double() - head.bias.mean(), bias - bias.mean(), atol=1e-5)


def test_a_decayed_bias_is_the_weight_of_a_feature_that_is_one(data):
    x, y = data
    options = {"weight_decay": 0.05, "optimizer": "lbfgs", "tolerance": 1e-8}
    head = fit_head(x.double(), y, 5, decay_bias=True, **options)
    reference = LogisticRegression(C=1 / (0.05 * len(x)), tol=1e-9, max_iter=5000, fit_intercept=False)
    reference.fit(torch.cat([x, torch.ones(len(x), 1)], 1).double().numpy(), y.numpy())
    found = torch.cat([head.weight, head.bias[:, None]], 1).detach()
    assert torch.allclose(found, torch.from_numpy(reference.coef_), atol=1e-5)
    plain = fit_head(x.double(), y, 5, **options)
    assert head.bias.norm() < 0.9 * (plain.bias - plain.bias.mean()).norm()


def test_adamw_starts_its_bias_at_the_log_prior_and_decays_it_on_request(data):
    x, y = data
    prior = class_prior(y, 5).float()
    still = {"lr": 1e-12, "epochs": 1}
    assert torch.allclose(fit_head(x, y, 5, log_prior=prior.log(), **still).bias, prior.log(), atol=1e-5)
    large = {"log_prior": 100 * prior.log(), "weight_decay": 0.5, "lr": 0.1, "epochs": 1}
    shrunk = fit_head(x, y, 5, **large, decay_bias=True)
    kept = fit_head(x, y, 5, **large)
    assert shrunk.bias.norm() < 0.99 * kept.bias.norm()


@pytest.mark.parametrize("kind", ["softmax", "pc"])
def test_lbfgs_class_weights_sum_to_zero(data, kind):
    x, y = data
    loss = PCSoftmaxLoss(class_prior(y, 5)) if kind == "pc" else None
    head = fit_head(x.double(), y, 5, loss, weight_decay=1e-3, optimizer="lbfgs")
    assert head.weight.abs().max() > 0.1
    assert head.weight.sum(0).abs().max() < 1e-13
    # Summed over the classes the gradient of the loss is 0: at the optimum λ ΣW = 0 wherever one starts.
    logits = head(x.double())
    slope = torch.autograd.grad((loss or nn.CrossEntropyLoss())(logits, y), logits)[0]
    assert torch.allclose(slope.T @ x.double(), -1e-3 * head.weight, atol=1e-6)


def test_adamw_without_decay_leaves_a_common_vector(data):
    x, y = data
    head = fit_head(x, y, 5, lr=0.1, epochs=60, seed=1)
    common = head.weight.mean(0)
    assert common.norm() > 0.1 * head.weight.norm(dim=1).mean()
    moved = head(x) - x @ common[:, None]  # the same vector taken from every row: the same posterior
    assert torch.allclose(moved.softmax(1), head(x).softmax(1), atol=1e-5)


def test_converged_softmax_and_pc_heads_are_one_model(data):
    """With a bias that is not decayed: equal weights, and PC-softmax's bias is softmax's less log π."""
    x, y = data
    prior = class_prior(y, 5)
    plain = fit_head(x.double(), y, 5, weight_decay=0.01, optimizer="lbfgs", tolerance=1e-8)
    loss = PCSoftmaxLoss(prior)
    pc = fit_head(x.double(), y, 5, loss, weight_decay=0.01, optimizer="lbfgs", tolerance=1e-8)
    assert torch.allclose(plain.weight, pc.weight, atol=1e-6)
    shift = plain.bias - pc.bias - prior.log()
    assert torch.allclose(shift, shift.mean().expand(5), atol=1e-6)


def test_adamw_approaches_the_optimum_and_repeats_its_bits(data):
    x, y = data
    best = fit_head(x, y, 5, optimizer="lbfgs")
    loss = nn.CrossEntropyLoss()
    heads = [fit_head(x, y, 5, lr=0.1, epochs=60, seed=s) for s in (0, 0, 1)]
    assert 0 <= loss(heads[0](x), y) - loss(best(x), y) < 0.005
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)


def test_global_generator_is_left_alone(data):
    before = torch.get_rng_state()
    fit_head(*data, 5, epochs=1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(600, 12, 2)}, r"were \(600, 12, 2\).*pool"),
        ({"features": torch.zeros(0, 12), "labels": torch.zeros(0, dtype=torch.int64)}, "N at least 1"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"\(3,\)"),
        ({"features": torch.full((600, 12), math.nan)}, "finite"),
        ({"num_classes": 3}, r"0\.\.2, were 0\.\.4"),
        ({"lr": 0.0}, "lr positive.*0.0"),
        ({"weight_decay": -1.0}, "weight_decay not negative.*-1"),
        ({"epochs": 0}, "at least 1"),
        ({"optimizer": "adam"}, "adamw.*lbfgs.*'adam'"),
    ],
)
def test_bad_input_is_refused(data, change, message):
    arguments = {"features": data[0], "labels": data[1], "num_classes": 5, **change}
    with pytest.raises(ValueError, match=message):
        fit_head(**arguments)


def test_failures_name_the_remedy(data):
    x, y = data
    with pytest.raises(ValueError, match=r"iterations at a largest gradient .* scale the features"):
        fit_head(x * 1e6, y, 5, optimizer="lbfgs", tolerance=1e-12)
    with pytest.raises(FloatingPointError, match=r"epoch 1, step 2.*lower lr"):
        fit_head(x * 1e30, y, 5, lr=1e30, epochs=2)


def test_decay_is_chosen_where_a_plain_search_finds_it(data):
    """Pure noise wants the strongest decay, separable data without noise the weakest."""
    labels = torch.arange(60) % 3
    noise = torch.randn(60, 20, generator=torch.Generator().manual_seed(0))
    assert select_decay(noise, labels, 3, candidates=(1e-3, 1.0)) == 1.0
    signal = nn.functional.one_hot(labels, 3).float()
    assert select_decay(signal, labels, 3, candidates=(1.0, 1e-3)) == 1e-3

    x, y = data
    chosen = torch.arange(600) % 3 > 0
    rows, unseen = chosen.nonzero()[:, 0], (~chosen).nonzero()[:, 0]
    scores = []
    for decay in DECAYS:
        head = LogisticRegression(C=1 / (decay * len(rows)), tol=1e-9, max_iter=5000)
        head.fit(x[rows].double().numpy(), y[rows].numpy())
        logits = torch.from_numpy(head.decision_function(x[unseen].double().numpy()))
        scores.append(float(nn.functional.cross_entropy(logits, y[unseen])))
    best = DECAYS[scores.index(min(scores))]
    assert select_decay(x, y, 5, split=(rows, unseen)) == best
