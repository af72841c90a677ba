"""Identities, bounds and refusals of the information measures."""

import math
import re
import resource

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


def test_reductions_agree(batch):
    logits, labels, prior = batch
    none = PCSoftmaxLoss(prior, reduction="none")(logits, labels)
    assert none.shape == (B,)
    torch.testing.assert_close(PCSoftmaxLoss(prior, reduction="sum")(logits, labels), none.sum())
    torch.testing.assert_close(PCSoftmaxLoss(prior)(logits, labels), none.mean())


OPTIONS = [
    {},
    {"weight": torch.rand(K, generator=torch.Generator().manual_seed(4)).double()},
    {"ignore_index": 2},
    {"label_smoothing": 0.2},
    {"label_smoothing": 1.0, "ignore_index": 0},
    {"label_smoothing": 0.3, "ignore_index": 1, "weight": torch.arange(1.0, K + 1).double()},
]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS)
def test_options_mean_what_they_mean_to_cross_entropy(batch, options, reduction):
    """Cross-entropy of f + log π is linear in the log-softmax, from which log π_y then has to be taken."""
    logits, labels, prior = batch
    plain = torch.nn.CrossEntropyLoss(reduction=reduction, **options)
    given = options.get("ignore_index", -100)
    labels = torch.where(torch.arange(B) % 7 == 0, given, labels)
    # The loss of log-probabilities that are log π for all inputs: the part that log PC-softmax has besides.
    constant = plain(prior.log().expand(B, -1), labels)
    loss = PCSoftmaxLoss(prior, reduction, **options)
    expected = plain(logits + prior.log(), labels) - constant
    torch.testing.assert_close(loss(logits, labels), expected, rtol=1e-5, atol=1e-6)
    uniform = PCSoftmaxLoss([1 / K] * K, reduction, **options)
    even = plain(logits, labels) - plain(torch.zeros(B, K).double(), labels)
    torch.testing.assert_close(uniform(logits, labels), even, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        gradient(lambda f: uniform(f, labels).sum(), logits),
        gradient(lambda f: plain(f, labels).sum(), logits),
    )


def test_what_is_ignored_needs_no_class():
    logits, labels = torch.randn(3, 2), torch.tensor([1, -100, 0])
    loss = PCSoftmaxLoss([0.5, 0.5])
    torch.testing.assert_close(loss(logits, labels), loss(logits[[0, 2]], labels[[0, 2]]))
    assert loss(logits, torch.full((3,), -100)).isnan(), "as nn.CrossEntropyLoss has it"
    assert "ignore_index=9" in repr(PCSoftmaxLoss([0.5, 0.5], ignore_index=9, weight=torch.ones(2)))


def test_compiled_exported_and_mapped():
    prior, logits, labels = [0.2, 0.3, 0.5], torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, -100])
    loss = PCSoftmaxLoss(prior, label_smoothing=0.1)
    expected = loss(logits, labels)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits, labels), expected)
    exported = torch.export.export(loss, (logits, labels)).module()
    torch.testing.assert_close(exported(logits, labels), expected)
    each = torch.vmap(torch.func.grad(lambda f, y: loss(f[None], y[None])))(logits[:5], labels[:5])
    one = torch.func.grad(lambda f: loss(f[None], labels[3:4]))(logits[3])
    torch.testing.assert_close(each[3], one)


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


def test_half_precision_models_keep_small_shares():
    prior = torch.tensor([1 - 1e-8, 1e-8], dtype=torch.float64)
    model = torch.nn.Sequential(torch.nn.Linear(1, 2), PCSoftmaxLoss(prior))
    for dtype in (torch.float16, torch.bfloat16):
        loss = model.to(dtype)[1]
        assert model[0].weight.dtype == dtype
        logits = torch.tensor([[-20.0, 20.0]], dtype=dtype)
        assert float(loss(logits, torch.tensor([1]))) == pytest.approx(math.log(1e-8), abs=1e-4)
    assert model.float()[1].prior.dtype == torch.float32  # what can hold the shares is followed
    assert list(loss.state_dict()) == ["prior"]
    assert not list(loss.parameters())
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


def test_a_state_without_the_prior_may_leave_the_loss_its_own():
    loss = PCSoftmaxLoss([0.25, 0.75])
    assert loss.load_state_dict({}, strict=False).missing_keys == ["prior"]
    assert loss.prior.tolist() == [0.25, 0.75]


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


def test_estimate_interval_is_the_normal_one(batch):
    logits, labels, prior = batch
    estimate = mutual_information(logits, labels, prior)
    samples = log_pc_softmax(logits, prior)[torch.arange(B), labels].numpy()
    stderr = samples.std(ddof=1) / np.sqrt(B)
    assert estimate.n == B
    assert estimate.stderr == pytest.approx(stderr)
    assert estimate.high - estimate.value == pytest.approx(1.959964 * stderr, rel=1e-6)
    assert estimate.value - estimate.low == pytest.approx(1.959964 * stderr, rel=1e-6)
    one = mutual_information(logits[:1], labels[:1], prior)
    assert (one.n, one.low, one.high) == (1, -math.inf, math.inf)


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


def test_probabilities_and_arrays_say_the_same_as_logits(batch, tmp_path):
    logits, labels, prior = batch
    whole = mutual_information(logits, labels, prior, "softmax")
    probabilities = logits.softmax(1)
    for given in (probabilities, probabilities.numpy()):
        found = mutual_information(given, labels.numpy(), prior, "probabilities")
        assert (found.value, found.stderr) == pytest.approx((whole.value, whole.stderr), abs=1e-12)
    torch.testing.assert_close(
        pointwise_mutual_information(probabilities, prior, "probabilities"),
        pointwise_mutual_information(logits, prior, "softmax"),
    )
    new = torch.linspace(1, 2, K).double() / torch.linspace(1, 2, K).sum()
    torch.testing.assert_close(
        shift_prior(probabilities, prior, new, "probabilities"),
        shift_prior(logits, prior, new, "softmax").softmax(1),
    )
    np.save(tmp_path / "logits.npy", logits.numpy())
    mapped = np.load(tmp_path / "logits.npy", mmap_mode="r")
    assert mutual_information(mapped, labels.tolist(), prior, "softmax").value == pytest.approx(whole.value)
    zeros = torch.eye(2)
    assert pointwise_mutual_information(zeros, [0.5, 0.5], "probabilities").tolist() == [
        pytest.approx([math.log(2), -math.inf]),
        pytest.approx([-math.inf, math.log(2)]),
    ]


def test_a_million_pairs_of_a_thousand_classes_need_the_memory_of_a_chunk(tmp_path):
    """4 GB of logits that lie nowhere: one row, seen a million times."""
    row = np.random.default_rng(0).normal(size=(1, 1000)).astype(np.float32)
    logits = np.broadcast_to(row, (1_000_000, 1000))
    labels = np.zeros(1_000_000, dtype=np.int64)
    prior = torch.full((1000,), 1e-3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = mutual_information(logits, labels, prior)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert grown < 200_000, "4 GB were read"
    assert found.value == pytest.approx(float(log_pc_softmax(torch.from_numpy(row), prior)[0, 0]), abs=1e-5)


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
    assert class_prior(np.array([0, 1, 1, 1]), 2).tolist() == [0.25, 0.75]
    smoothed = class_prior(torch.tensor([2, 0, 2, 2]), 3, smoothing=1.0)
    assert smoothed.tolist() == pytest.approx([2 / 7, 1 / 7, 4 / 7])
    assert class_prior([0], 3, smoothing=1.0).tolist() == pytest.approx([1 / 2, 1 / 4, 1 / 4])


def test_entropy_of_the_papers_prior():
    assert float(entropy(torch.arange(1, 6) / 15)) == pytest.approx(1.4898, abs=5e-5)
    assert float(entropy([0.2] * 5)) == pytest.approx(math.log(5), abs=1e-12)


def test_shift_to_uniform(batch):
    logits, _, prior = batch
    pc = shift_prior(logits, prior, None, "pc")
    assert torch.equal(pc.argmax(1), logits.argmax(1))
    torch.testing.assert_close(pc, logits - math.log(K))
    softmax = shift_prior(logits + prior.log(), prior, None, "softmax")
    torch.testing.assert_close(softmax, pc)
    for kind in ("pc", "softmax"):  # the logits' own type, whatever the prior's
        assert shift_prior(logits.float(), prior, prior, kind).dtype == torch.float32
    mixed = shift_prior(logits, prior.float(), prior, "softmax")
    torch.testing.assert_close(mixed, logits, rtol=0, atol=1e-6)


def test_the_classes_are_the_last_of_any_number_of_axes(batch):
    logits, _, prior = batch
    posterior = logits.softmax(-1)
    for function in (
        lambda f: log_pc_softmax(f, prior),
        lambda f: pointwise_mutual_information(f, prior, "softmax"),
        lambda f: shift_prior(f, prior, None),
        lambda f: shift_prior(f.softmax(-1), prior, None, "probabilities"),
    ):
        rows = function(logits)
        torch.testing.assert_close(function(logits.view(2, 8, 4, K)), rows.view(2, 8, 4, K))
        torch.testing.assert_close(torch.stack([function(row) for row in logits]), rows)
    as_probabilities = pointwise_mutual_information(posterior.view(2, -1, K), prior, "probabilities")
    torch.testing.assert_close(
        as_probabilities.view(-1, K), pointwise_mutual_information(logits, prior, "softmax")
    )


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
    assert recalls(predictions, labels, 4).isnan().tolist() == [False, True, False, True]
    assert recalls(torch.zeros(2).long(), torch.tensor([0, 2]), 3)[2] == 0  # the last class, never predicted
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
            pointwise_mutual_information(logits, prior, kind)
        with pytest.raises(ValueError, match=message):
            shift_prior(logits, [1 / 3] * 3, prior, kind)
        with pytest.raises(ValueError, match=message):
            shift_prior(logits, prior, None, kind)


GOOD = torch.zeros(4, 3)
BAD_PAIRS = [
    (GOOD[:0], torch.zeros(0).long(), ValueError, r"got \(0, 3\); skip empty"),
    (GOOD, GOOD.long(), ValueError, r"got \(4, 3\) and \(4, 3\).*class numbers"),
    (GOOD, torch.zeros(3).long(), ValueError, r"got \(4, 3\) and \(3,\)"),
    (GOOD.expand(2, 4, 3), torch.zeros(2).long(), ValueError, r"flatten extra axes"),
    (GOOD, torch.tensor([0, 1, 3, 0]), ValueError, r"\[0, 2\], got 3; number the classes"),
    (GOOD, torch.tensor([0, -1, 2, 0]), ValueError, r"\[0, 2\], got -1"),
    (GOOD, torch.zeros(4), TypeError, r"labels must be an integer tensor, got torch\.float32"),
    (GOOD, torch.ones(4).bool(), TypeError, r"integer tensor, got torch\.bool"),
    (GOOD.long(), torch.zeros(4), TypeError, r"floating-point tensor, got torch\.int64"),
]


@pytest.mark.parametrize(("logits", "labels", "error", "message"), BAD_PAIRS)
def test_bad_pairs_are_refused(logits, labels, error, message):
    with pytest.raises(error, match=message):
        PCSoftmaxLoss([0.2, 0.3, 0.5])(logits, labels)
    with pytest.raises(error, match=message):
        mutual_information(logits, labels, [0.2, 0.3, 0.5])


@pytest.mark.parametrize("bad", [math.inf, -math.inf])
def test_one_infinite_logit_is_enough(bad):
    with pytest.raises(ValueError, match=rf"1 of 2 are not \(first: {bad}\)"):
        pointwise_mutual_information(torch.tensor([[0.0, bad]]), [0.5, 0.5])


def test_what_is_no_tensor_is_named_by_its_type():
    with pytest.raises(TypeError, match=r"floating-point tensor, got <class 'list'>"):
        log_pc_softmax([[0.0, 1.0]], [0.5, 0.5])
    for wrong in (np.zeros((2, 2, 2)), np.zeros(2), np.zeros((0, 2))):
        with pytest.raises(ValueError, match=r"logits must be|non-empty"):
            mutual_information(wrong, torch.zeros(len(wrong)).long(), [0.5, 0.5])
    with pytest.raises(TypeError, match=r"floating-point tensor, got torch\.int64"):
        mutual_information(np.zeros((2, 2), dtype=int), LABELS, [0.5, 0.5])


def test_one_class_says_nothing_and_whole_numbers_are_shares_too():
    """K = 1: whatever the logits, the label is known; and what is ignored has no class at all."""
    logits, labels = torch.tensor([[3.0], [-2.0]]), torch.tensor([0, -100])
    assert mutual_information(logits, torch.tensor([0, 0]), [1]).value == 0
    assert float(PCSoftmaxLoss([1])(logits, labels)) == 0
    assert torch.equal(log_pc_softmax(logits, torch.ones(1)), torch.zeros(2, 1))


def test_rows_do_not_share_a_scale():
    """Each row's largest logit is taken from that row: a large one elsewhere costs no digits."""
    small, prior = torch.tensor([[0.125, 1.25]]), [0.25, 0.75]
    both = log_pc_softmax(torch.cat([small, small + 2.0**22]), prior)
    assert torch.equal(both[:1], log_pc_softmax(small, prior))


def test_a_loss_says_its_options_and_keeps_its_logits_type():
    plain, weight = PCSoftmaxLoss([0.25, 0.75], "sum"), torch.ones(2, dtype=torch.float64)
    assert repr(plain) == "PCSoftmaxLoss(K=2, prior=0.25..0.75, reduction='sum')"
    full = PCSoftmaxLoss([0.25, 0.75], weight=weight, ignore_index=-1, label_smoothing=0.1)
    said = "reduction='mean', ignore_index=-1, label_smoothing=0.1, weight=..."
    assert repr(full) == f"PCSoftmaxLoss(K=2, prior=0.25..0.75, {said})"
    for loss in (plain, PCSoftmaxLoss([0.25, 0.75], weight=weight)):
        assert loss(LOGITS, LABELS).dtype == torch.float32


@pytest.mark.parametrize("labels", [[0, 1, 2, 0], np.zeros(4, dtype=int)])
def test_a_loss_takes_tensors_and_says_so(labels):
    kind = re.escape(str(getattr(labels, "dtype", type(labels))))
    with pytest.raises(TypeError, match=rf"integer tensor, got {kind}; use torch.as_tensor"):
        PCSoftmaxLoss([0.2, 0.3, 0.5])(GOOD, labels)


BAD = torch.tensor([[0.0, math.inf], [1.0, math.nan]])
LOGITS, LABELS, PRIOR = torch.zeros(2, 2), torch.tensor([0, 1]), [0.5, 0.5]
NOT_FINITE = r"finite, but 2 of 4 are not \(first: inf\).*learning rate"
REFUSED = [
    (lambda: pointwise_mutual_information(BAD, PRIOR), NOT_FINITE),
    (lambda: mutual_information(BAD, LABELS, PRIOR), NOT_FINITE),
    (lambda: mutual_information(-BAD, LABELS, PRIOR, "log_k_minus_ce"), NOT_FINITE.replace("inf", "-inf")),
    (lambda: shift_prior(BAD, PRIOR, None), NOT_FINITE),
    (
        lambda: pointwise_mutual_information(LOGITS, PRIOR, "sofmax"),
        "^kind must be one of .*'softmax', 'probabilities', got 'sofmax'",
    ),
    (
        lambda: mutual_information(LOGITS, LABELS, PRIOR, "ce"),
        "^kind must be one of .*'log_k_minus_ce', got 'ce'",
    ),
    (lambda: shift_prior(LOGITS, PRIOR, None, "log_k_minus_ce"), "kind must be one of"),
    (
        lambda: mutual_information(LOGITS, LABELS, PRIOR, "probabilities"),
        r"each row must sum to 1.*'softmax'",
    ),
    (lambda: shift_prior(-LOGITS - 1, PRIOR, None, "probabilities"), "must not be negative"),
    (lambda: mutual_information(torch.eye(2), LABELS.flip(0), PRIOR, "probabilities"), "pair 0 .*0.01 π"),
    (lambda: mutual_information(np.zeros((3, 2)), LABELS, PRIOR), r"got \(3, 2\) and \(2,\)"),
    (lambda: PCSoftmaxLoss(PRIOR, label_smoothing=1.5), r"lie in \[0, 1\], got 1\.5"),
    (lambda: PCSoftmaxLoss(PRIOR, weight=torch.ones(3)), r"finite and \(2,\), was \(3,\)"),
    (
        lambda: PCSoftmaxLoss(PRIOR, reduction="avg"),
        "^reduction must be one of 'mean', 'sum', 'none', got 'avg'",
    ),
    (lambda: class_prior(LABELS[:0], 3), r"non-empty \(N,\) vector, got shape \(0,\)"),
    (lambda: class_prior([0, 2], 3), r"0\.0 at class 1; .*smoothing > 0 if a class has no labels"),
    (lambda: class_prior([0, 1], 2, smoothing=-1), r"smoothing must be at least 0, got -1"),
    (lambda: class_prior([0, 1], 2, smoothing=math.nan), r"above 0, but is nan at class 0"),
    (lambda: accuracy(torch.zeros(2), torch.zeros(3)), r"must be \(N,\).* got \(2,\) and \(3,\); use argmax"),
    (lambda: accuracy(LABELS[:0], LABELS[:0]), r"one N > 0, got \(0,\)"),
    (lambda: recalls(LABELS[:1], LABELS, 2), r"one N > 0, got \(1,\) and \(2,\)"),
    (lambda: check_labels(torch.tensor([0, 3]), 3), r"lie in \[0, 2\], got 3; number the classes"),
    (lambda: Estimate.from_samples(torch.zeros(0)), r"at least 1 sample, got 0"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
