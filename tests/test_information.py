"""Identities, bounds and refusals of the information measures."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from infocam_utils import information
from infocam_utils.information import (
    Estimate,
    PCSoftmaxLoss,
    accuracy,
    check_labels,
    class_prior,
    entropy,
    log_pc_softmax,
    mutual_information,
    per_class_accuracy,
    pointwise_mutual_information,
    recalls,
    shift_prior,
)

K, B = 7, 64


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(B, K, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, K, (B,), generator=generator)
    prior = torch.arange(1.0, K + 1, dtype=torch.float64) / 28
    return logits, labels, prior


def gradient(loss, logits):
    logits = logits.clone().requires_grad_()
    loss(logits).backward()
    return logits.grad


# --- PC-softmax and its loss


def test_log_pc_softmax_is_its_definition(batch):
    logits, _, prior = batch
    s = logits.exp() / (prior * logits.exp()).sum(1, keepdim=True)
    torch.testing.assert_close(log_pc_softmax(logits, prior), s.log(), rtol=0, atol=1e-12)


def test_prior_weighted_pc_softmax_sums_to_one(batch):
    logits, _, prior = batch
    total = (prior * log_pc_softmax(logits, prior).exp()).sum(-1)
    torch.testing.assert_close(total, torch.ones(B, dtype=torch.float64), rtol=0, atol=1e-12)


def test_loss_is_logit_adjustment_plus_a_constant(batch):
    logits, labels, prior = batch

    def adjusted(f):
        return cross_entropy(f + prior.log(), labels)

    pc = PCSoftmaxLoss(prior)
    expected = adjusted(logits) + prior.log()[labels].mean()
    torch.testing.assert_close(pc(logits, labels), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        gradient(lambda f: pc(f, labels), logits), gradient(adjusted, logits), rtol=0, atol=1e-15
    )


def test_loss_is_balanced_softmax_on_counts(batch):
    logits, labels, prior = batch
    counts = prior * 2800
    weighted = counts * logits.exp()
    balanced = -(weighted / weighted.sum(1, keepdim=True)).log()[torch.arange(B), labels]
    pc = PCSoftmaxLoss(prior, reduction="none")(logits, labels)
    torch.testing.assert_close(pc - prior.log()[labels], balanced, rtol=0, atol=1e-12)


def test_scaling_the_prior_shifts_the_loss_and_leaves_the_gradient(batch):
    logits, labels, prior = batch
    loss, scaled = PCSoftmaxLoss(prior), PCSoftmaxLoss(prior)
    scaled.prior.mul_(7)  # past the door, which insists on a sum of 1
    assert float(scaled(logits, labels) - loss(logits, labels)) == pytest.approx(math.log(7), abs=1e-12)
    torch.testing.assert_close(
        gradient(lambda f: scaled(f, labels), logits), gradient(lambda f: loss(f, labels), logits)
    )


def test_loss_is_minus_the_estimate(batch):
    logits, labels, prior = batch
    estimate = mutual_information(logits, labels, prior, kind="pc")
    assert float(PCSoftmaxLoss(prior)(logits, labels)) == pytest.approx(-estimate.value, abs=1e-12)


def test_uniform_prior_makes_it_cross_entropy_minus_log_k(batch):
    logits, labels, _ = batch
    uniform = torch.full((K,), 1 / K, dtype=torch.float64)
    pc = PCSoftmaxLoss(uniform)(logits, labels)
    torch.testing.assert_close(pc, cross_entropy(logits, labels) - math.log(K), rtol=0, atol=1e-12)


def test_reductions_agree(batch):
    logits, labels, prior = batch
    none = PCSoftmaxLoss(prior, reduction="none")(logits, labels)
    assert none.shape == (B,)
    torch.testing.assert_close(PCSoftmaxLoss(prior, reduction="sum")(logits, labels), none.sum())
    torch.testing.assert_close(PCSoftmaxLoss(prior)(logits, labels), none.mean())


def test_gradcheck(batch):
    logits, labels, prior = batch
    small = logits[:5].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: PCSoftmaxLoss(prior)(f, labels[:5]), small)
    assert torch.autograd.gradcheck(lambda f: log_pc_softmax(f, prior), small)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_stable_at_huge_logits(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    prior, labels = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0, 2])
    exact = torch.stack([-prior[0].log(), -prior[1:].sum().log()])
    chosen = log_pc_softmax(logits, prior).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(chosen.float(), exact, rtol=0, atol=1e-6)
    PCSoftmaxLoss(prior)(logits, labels).backward()
    assert bool(logits.grad.isfinite().all())


def test_large_common_offset_keeps_the_priors_digits():
    logits, prior = torch.tensor([[0.25, -1.0, 2.0]]), torch.tensor([0.001, 0.2, 0.799])
    offset = log_pc_softmax(logits + 2.0**13, prior)
    torch.testing.assert_close(offset, log_pc_softmax(logits, prior), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(16, 10_000, generator=generator).to(dtype)
    labels = torch.randint(0, 10_000, (16,), generator=generator)
    loss = PCSoftmaxLoss(torch.full((10_000,), 1e-4))
    with torch.autocast("cpu", dtype=dtype):
        half = loss(logits, labels)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss(logits.double(), labels).float(), rtol=1e-5, atol=1e-5)


def test_ten_thousand_classes_train_with_a_steep_prior():
    prior = torch.arange(1.0, 10_001, dtype=torch.float64)
    loss = PCSoftmaxLoss(prior / prior.sum())
    logits = torch.zeros(4, 10_000, requires_grad=True)
    value = loss(logits, torch.tensor([0, 1, 5000, 9999]))
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-5)
    assert bool(logits.grad.isfinite().all())


def test_prior_is_a_buffer_that_moves_and_saves():
    loss = PCSoftmaxLoss([0.25, 0.75])
    assert list(loss.state_dict()) == ["prior"]
    assert loss.float().prior.dtype == torch.float32
    assert not list(loss.parameters())


def test_half_precision_models_keep_small_shares():
    prior = torch.tensor([1 - 1e-8, 1e-8], dtype=torch.float64)
    model = torch.nn.Sequential(torch.nn.Linear(1, 2), PCSoftmaxLoss(prior))
    for dtype in (torch.float16, torch.bfloat16):
        loss = model.to(dtype)[1]
        assert model[0].weight.dtype == dtype
        logits = torch.tensor([[-20.0, 20.0]], dtype=dtype)
        assert float(loss(logits, torch.tensor([1]))) == pytest.approx(math.log(1e-8), abs=1e-4)
    assert model.float()[1].prior.dtype == torch.float32  # what can hold the shares is followed
    again = PCSoftmaxLoss([0.5, 0.5])
    again.load_state_dict(loss.state_dict())
    torch.testing.assert_close(again.prior, prior)


def test_a_prior_that_was_rounded_to_zero_is_not_loaded():
    loss = torch.nn.Sequential(PCSoftmaxLoss([0.5, 0.5]))
    rounded = {"0.prior": torch.tensor([1 - 1e-8, 1e-8]).half()}
    with pytest.raises(ValueError, match=r"above 0, but is 0\.0 at class 1; class_prior"):
        loss.load_state_dict(rounded)
    assert loss[0].prior.tolist() == [0.5, 0.5]


# --- PMI and MI


def test_pmi_under_a_uniform_prior_is_log_k_plus_log_softmax(batch):
    logits, _, _ = batch
    expected = math.log(K) + logits.log_softmax(-1)
    for kind in ("pc", "softmax"):
        pmi = pointwise_mutual_information(logits, [1 / K] * K, kind)
        torch.testing.assert_close(pmi, expected, rtol=0, atol=1e-12)


def test_softmax_logits_are_pc_logits_plus_log_prior(batch):
    logits, _, prior = batch
    pc = pointwise_mutual_information(logits, prior, "pc")
    softmax = pointwise_mutual_information(logits + prior.log(), prior, "softmax")
    torch.testing.assert_close(pc, softmax, rtol=0, atol=1e-12)


def finite_channel():
    """A joint over 6 points and 3 classes, all of its pairs as a weighted sample."""
    joint = torch.rand(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.05
    joint /= joint.sum()
    prior = joint.sum(0)
    information = float((joint * (joint / (joint.sum(1, keepdim=True) * prior)).log()).sum())
    return joint, prior, information


def test_exact_posterior_attains_the_mutual_information():
    joint, prior, information = finite_channel()
    pmi = pointwise_mutual_information((joint / joint.sum(1, keepdim=True)).log(), prior, "softmax")
    assert float((joint * pmi).sum()) == pytest.approx(information, abs=1e-12)


def test_any_logits_stay_below_the_mutual_information():
    joint, prior, information = finite_channel()
    generator = torch.Generator().manual_seed(3)
    for scale in (0.1, 1.0, 10.0):
        logits = scale * torch.randn(200, 6, 3, generator=generator, dtype=torch.float64)
        for kind in ("pc", "softmax"):
            bounds = (joint * pointwise_mutual_information(logits, prior, kind)).sum((1, 2))
            assert float(bounds.max()) < information


def test_bias_of_log_k_minus_ce_is_log_k_minus_the_labels_code_length(batch):
    logits, labels, prior = batch
    biased = mutual_information(logits, labels, prior, "log_k_minus_ce").value
    corrected = mutual_information(logits, labels, prior, "softmax").value
    code_length = -float(prior.log()[labels].mean())
    assert biased - corrected == pytest.approx(math.log(K) - code_length, abs=1e-12)
    assert biased == pytest.approx(math.log(K) - float(cross_entropy(logits, labels)), abs=1e-12)


def test_bias_is_log_k_minus_entropy_when_labels_follow_the_prior(batch):
    logits, _, prior = batch
    labels = torch.repeat_interleave(torch.arange(K), torch.arange(1, K + 1))  # shares exactly the prior
    few = logits[: len(labels)]
    bias = mutual_information(few, labels, prior, "log_k_minus_ce").value
    bias -= mutual_information(few, labels, prior, "softmax").value
    assert bias == pytest.approx(math.log(K) - float(entropy(prior)), abs=1e-12)
    assert bias > 0


def test_estimate_interval_is_the_normal_one(batch):
    logits, labels, prior = batch
    estimate = mutual_information(logits, labels, prior)
    samples = log_pc_softmax(logits, prior)[torch.arange(B), labels].numpy()
    stderr = samples.std(ddof=1) / np.sqrt(B)
    assert estimate.n == B
    assert estimate.stderr == pytest.approx(stderr)
    assert estimate.high - estimate.value == pytest.approx(1.959964 * stderr, rel=1e-6)
    assert estimate.value - estimate.low == pytest.approx(1.959964 * stderr, rel=1e-6)


def test_interval_covers_a_known_mean_nineteen_times_in_twenty():
    generator = torch.Generator().manual_seed(4)
    draws = [Estimate.from_samples(torch.randn(200, generator=generator)) for _ in range(500)]
    covered = sum(e.low < 0 < e.high for e in draws) / 500
    assert 0.92 < covered < 0.98


def test_one_pair_has_an_infinite_interval():
    estimate = mutual_information(torch.zeros(1, 2), torch.tensor([0]), [0.5, 0.5])
    assert estimate.n == 1
    assert estimate.low == -math.inf
    assert estimate.high == math.inf


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is made while it is on."""

    def __init__(self, given):
        super().__init__()
        self.given, self.bytes = given.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() != self.given:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize("kind", ["pc", "softmax", "log_k_minus_ce"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_beside_the_logits_is_a_chunk_of_rows(kind, dtype, monkeypatch):
    monkeypatch.setattr(information, "CHUNK", 10_000)
    logits = torch.randn(2500, 400, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels, prior = torch.arange(2500) % 400, torch.arange(1.0, 401) / 80_200
    for given in (logits, logits[:, :200]):  # the second is not contiguous
        classes = given.shape[1]
        share = prior[:classes] / prior[:classes].sum()
        with Largest(given) as made:
            mutual_information(given, labels % classes, share, kind)
        assert 20_000 <= made.bytes <= 40_000  # a chunk in float32, or all labels; the logits are 2 or 4 MB


@pytest.mark.parametrize("kind", ["pc", "softmax", "log_k_minus_ce"])
def test_reading_in_chunks_is_the_formula_at_once(batch, kind, monkeypatch):
    logits, labels, prior = batch
    biased = {"pc": logits - (prior * logits.exp()).sum(1, keepdim=True).log()}
    biased["softmax"] = logits.log_softmax(1) - prior.log()
    biased["log_k_minus_ce"] = logits.log_softmax(1) + math.log(K)
    expected = Estimate.from_samples(biased[kind][torch.arange(B), labels])
    for chunk in (1, 3 * K, 10**6):  # one row, three rows, all rows at a time
        monkeypatch.setattr(information, "CHUNK", chunk)
        found = mutual_information(logits, labels, prior, kind)
        assert (found.value, found.stderr) == pytest.approx((expected.value, expected.stderr), abs=1e-12)
        assert found.n == B


@pytest.mark.parametrize("sizes", [(1, 1), (1, 7), (7, 1), (2, 3), (500, 40)])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_a_sum_of_estimates_is_the_estimate_of_all_samples(sizes, offset):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(n, generator=generator, dtype=torch.float64) for n in sizes)
    pooled = Estimate.from_samples(first) + Estimate.from_samples(second + offset)
    whole = Estimate.from_samples(torch.cat([first, second + offset]))
    assert pooled.n == whole.n
    for name in ("value", "stderr", "low", "high"):
        assert getattr(pooled, name) == pytest.approx(getattr(whole, name), rel=1e-12, abs=1e-12), name


def test_a_set_read_in_batches_gives_the_estimate_of_the_set(batch):
    logits, labels, prior = batch
    first, *rest = (mutual_information(logits[i : i + 9], labels[i : i + 9], prior) for i in range(0, B, 9))
    for part in rest:
        first = first + part
    whole = mutual_information(logits, labels, prior)
    assert (first.value, first.stderr, first.n) == pytest.approx((whole.value, whole.stderr, B), abs=1e-12)
    with pytest.raises(TypeError, match="unsupported operand"):
        whole + 1.0


def test_finite_logits_of_any_size_give_finite_values():
    """The difference of two float32 numbers may be none; the log-probability of the last class is −6e38."""
    logits, prior = torch.tensor([[3e38, -3e38], [0.0, 0.0]]), [0.5, 0.5]
    exact = float(logits[0, 1].double() - logits[0, 0].double())
    for kind in ("pc", "softmax"):
        pmi = pointwise_mutual_information(logits, prior, kind)
        assert float(pmi[0, 1]) == pytest.approx(exact)
    for kind in ("pc", "softmax", "log_k_minus_ce"):
        estimate = mutual_information(logits, torch.tensor([1, 0]), prior, kind)
        assert estimate.value == pytest.approx(exact / 2)
        assert math.isfinite(estimate.high)
    assert pointwise_mutual_information(logits / 2, prior).dtype == torch.float32  # where it suffices


# --- prior, prediction, accuracies


def test_class_prior_counts_and_smooths():
    labels = torch.tensor([2, 0, 2, 2])
    torch.testing.assert_close(
        class_prior(labels[:, None].flatten(), 3, smoothing=1.0).tolist(), [2 / 7, 1 / 7, 4 / 7]
    )
    assert class_prior(np.array([0, 1, 1, 1]), 2).tolist() == [0.25, 0.75]


def test_class_prior_names_absent_classes():
    with pytest.raises(ValueError, match=r"classes 1, 4 absent from the 4 labels.*smoothing > 0"):
        class_prior(torch.tensor([0, 2, 3, 0]), 5)
    with pytest.raises(ValueError, match=r"class 1 absent"):
        class_prior(torch.tensor([0, 2]), 3)
    with pytest.raises(ValueError, match=r"\(98 in all\)"):
        class_prior(torch.tensor([0, 99]), 100)


def test_entropy_of_the_papers_prior():
    assert float(entropy(torch.arange(1, 6) / 15)) == pytest.approx(1.4898, abs=5e-5)
    assert float(entropy([0.2] * 5)) == pytest.approx(math.log(5), abs=1e-12)


def test_shift_to_the_training_prior_gives_the_trained_posterior(batch):
    logits, _, prior = batch
    torch.testing.assert_close(shift_prior(logits, prior, prior, "softmax"), logits)
    torch.testing.assert_close(shift_prior(logits, prior, prior, "pc"), logits + prior.log())


def test_shift_to_uniform(batch):
    logits, _, prior = batch
    pc = shift_prior(logits, prior, None, "pc")
    assert torch.equal(pc.argmax(1), logits.argmax(1))
    softmax = shift_prior(logits + prior.log(), prior, None, "softmax")
    torch.testing.assert_close(softmax, pc)


def test_shifted_posterior_is_bayes_rule_under_the_new_prior():
    joint, prior, _ = finite_channel()
    likelihood, new = joint / prior, torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
    expected = likelihood * new / (likelihood * new).sum(1, keepdim=True)
    posterior = joint / joint.sum(1, keepdim=True)
    torch.testing.assert_close(shift_prior(posterior.log(), prior, new, "softmax").softmax(1), expected)
    torch.testing.assert_close(shift_prior(likelihood.log(), prior, new, "pc").softmax(1), expected)


def test_accuracies_agree_with_scikit_learn(batch):
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

    logits, labels, _ = batch
    predictions = (logits + 4 * torch.nn.functional.one_hot(labels, K)).argmax(1)
    assert accuracy(predictions, labels) == pytest.approx(accuracy_score(labels, predictions))
    assert per_class_accuracy(predictions, labels, K) == pytest.approx(
        balanced_accuracy_score(labels, predictions)
    )
    expected = recall_score(labels, predictions, average=None, labels=range(K))
    np.testing.assert_allclose(recalls(predictions, labels, K), expected)


def test_a_class_without_samples_has_no_recall_and_no_weight():
    predictions, labels = torch.tensor([0, 0, 2]), torch.tensor([0, 2, 2])
    assert recalls(predictions, labels, 3).isnan().tolist() == [False, True, False]
    assert per_class_accuracy(predictions, labels, 3) == pytest.approx(0.75)


# --- refusals: value, bound, remedy

BAD_PRIORS = [
    ([0.5, 0.5, 0.0], r"above 0, but is 0\.0 at class 2; class_prior"),
    ([0.7, 0.5, -0.2], r"above 0, but is -0\.2 at class 2; class_prior"),
    ([0.5, float("nan"), 0.5], r"above 0, but is nan at class 1; class_prior"),
    ([0.5, float("inf"), 0.5], r"finite and above 0, but is inf at class 1"),
    ([0.5, 0.5, 0.5], r"sum to 1 within 0\.001, got 1\.5; divide by the sum"),
    ([[0.5, 0.5]], r"floating \(K,\) vector, got \(1, 2\)"),
    ([], r"floating \(K,\) vector, got \(0,\)"),
    (torch.tensor([1, 2, 3]), r"got \(3,\) of torch\.int64"),
    ([0.5, 0.5], r"prior has 2 classes but the logits have 3; use the prior"),
]


@pytest.mark.parametrize(("prior", "message"), BAD_PRIORS)
def test_bad_priors_are_refused(prior, message):
    logits, labels = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match=message):
        log_pc_softmax(logits, prior)
    with pytest.raises(ValueError, match=message):
        PCSoftmaxLoss(prior)(logits, labels)
    for kind in ("pc", "softmax", "log_k_minus_ce"):
        with pytest.raises(ValueError, match=message):
            mutual_information(logits, labels, prior, kind)
    for kind in ("pc", "softmax"):
        with pytest.raises(ValueError, match=message):
            shift_prior(logits, [1 / 3] * 3, prior, kind)


BAD_PAIRS = [
    (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), ValueError, r"got \(0, 3\); skip empty"),
    (torch.zeros(4, 3), torch.zeros(4, 3), ValueError, r"got \(4, 3\) and \(4, 3\).*class numbers"),
    (torch.zeros(4, 3), torch.zeros(3, dtype=torch.long), ValueError, r"got \(4, 3\) and \(3,\)"),
    (torch.zeros(2, 4, 3), torch.zeros(2, dtype=torch.long), ValueError, r"flatten extra axes"),
    (torch.zeros(4, 3), torch.tensor([0, 1, 3, 0]), ValueError, r"\[0, 2\], got 3; number the classes"),
    (torch.zeros(4, 3), torch.tensor([0, -1, 2, 0]), ValueError, r"\[0, 2\], got -1"),
    (torch.zeros(4, 3), torch.zeros(4), TypeError, r"labels must be integers, got torch\.float32"),
    (
        torch.zeros(4, 3, dtype=torch.long),
        torch.zeros(4),
        TypeError,
        r"floating-point tensor, got torch\.int64",
    ),
]


@pytest.mark.parametrize(("logits", "labels", "error", "message"), BAD_PAIRS)
def test_bad_pairs_are_refused(logits, labels, error, message):
    with pytest.raises(error, match=message):
        PCSoftmaxLoss([0.2, 0.3, 0.5])(logits, labels)
    with pytest.raises(error, match=message):
        mutual_information(logits, labels, [0.2, 0.3, 0.5])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_logits_are_refused_where_a_value_is_reported(bad):
    logits, labels, prior = torch.tensor([[0.0, bad], [1.0, 2.0]]), torch.tensor([0, 1]), [0.5, 0.5]
    for call in (
        lambda: pointwise_mutual_information(logits, prior),
        lambda: mutual_information(logits, labels, prior),
        lambda: mutual_information(logits, labels, prior, "log_k_minus_ce"),
        lambda: shift_prior(logits, prior, None),
    ):
        with pytest.raises(ValueError, match=r"finite, but 1 of 4 are not \(first: .*learning rate"):
            call()


def test_unknown_names_are_refused():
    logits, labels, prior = torch.zeros(1, 2), torch.tensor([0]), [0.5, 0.5]
    with pytest.raises(ValueError, match=r"kind must be one of 'pc', 'softmax', got 'sofmax'"):
        pointwise_mutual_information(logits, prior, "sofmax")
    with pytest.raises(ValueError, match=r"'log_k_minus_ce', got 'ce'"):
        mutual_information(logits, labels, prior, "ce")
    with pytest.raises(ValueError, match=r"kind must be one of"):
        shift_prior(logits, prior, None, "log_k_minus_ce")
    with pytest.raises(ValueError, match=r"reduction must be one of 'mean', 'sum', 'none', got 'avg'"):
        PCSoftmaxLoss(prior, reduction="avg")


def test_labels_and_predictions_are_checked():
    with pytest.raises(ValueError, match=r"non-empty \(N,\) vector, got shape \(0,\)"):
        class_prior(torch.zeros(0, dtype=torch.long), 3)
    with pytest.raises(ValueError, match=r"smoothing must be finite and at least 0, got -1"):
        class_prior([0, 1], 2, smoothing=-1)
    with pytest.raises(ValueError, match=r"one length, got \(2,\) and \(3,\); predict with"):
        accuracy(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"got shape \(0,\)"):
        recalls(torch.zeros(0), torch.zeros(0, dtype=torch.long), 2)
    with pytest.raises(ValueError, match=r"lie in \[0, 2\], got 3; number the classes"):
        check_labels(torch.tensor([0, 3]), 3)
    with pytest.raises(TypeError, match=r"must be integers, got torch\.bool"):
        check_labels(torch.tensor([True]), 3)
    with pytest.raises(TypeError, match=r"labels must be a tensor, got list; convert"):
        mutual_information(torch.zeros(2, 2), [0, 1], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"at least 1 sample, got 0"):
        Estimate.from_samples(torch.zeros(0))
