"""CAM and infoCAM: against a naive loop, and by the identities that make them maps of information."""

import math

import pytest
import torch
from torch import Tensor, nn

from infocam_utils.cam import (
    class_activation_maps,
    common_share,
    contrast_weights,
    feature_norm_maps,
    info_cam,
    region_sum,
    spread_maps,
    with_common_vector,
    zero_sum,
)

CPU = [torch.profiler.ProfilerActivity.CPU]
VARIANTS = (None, "others", "least_likely", "runner_up")
K, C = 7, 5


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """features, weight, bias, logits, labels; labels[0] is least likely, labels[1] likeliest."""
    torch.manual_seed(0)
    features = torch.randn(6, C, 4, 3, dtype=torch.float64)
    weight, bias = torch.randn(K, C, dtype=torch.float64), torch.randn(K, dtype=torch.float64)
    logits = features.mean((2, 3)) @ weight.T + bias
    labels = torch.randint(K, (6,))
    labels[0], labels[1] = logits[0].argmin(), logits[1].argmax()
    return features, weight, bias, logits, labels


def naive(features, weight, labels, against, logits, region, padding) -> Tensor:
    """The definition, cell by cell, in plain Python."""
    size, channels, height, width = features.shape
    before = region - 1 if padding == "full" else (region - 1) // 2
    grow = region - 1 if padding == "full" else 0
    out = torch.zeros(size, height + grow, width + grow, dtype=torch.float64)
    for image in range(size):
        label, others = int(labels[image]), [k for k in range(len(weight)) if k != int(labels[image])]
        chosen = {
            None: [],
            "others": others,
            "least_likely": [min(others, key=lambda k: float(logits[image, k]))],
            "runner_up": [max(others, key=lambda k: float(logits[image, k]))],
        }[against]
        cells = [[0.0] * width for _ in range(height)]
        for u in range(height):
            for v in range(width):
                for c in range(channels):
                    rival = sum(float(weight[k, c]) for k in chosen) / max(len(chosen), 1)
                    cells[u][v] += (float(weight[label, c]) - rival) * float(features[image, c, u, v])
        for u in range(height + grow):
            for v in range(width + grow):
                for du in range(region):
                    for dv in range(region):
                        if 0 <= u + du - before < height and 0 <= v + dv - before < width:
                            out[image, u, v] += cells[u + du - before][v + dv - before]
    return out


@pytest.mark.parametrize("against", VARIANTS)
@pytest.mark.parametrize(
    ("region", "padding"), [(1, "same"), (2, "same"), (3, "same"), (3, "full"), (4, "full")]
)
def test_info_cam_is_its_definition(batch, against, region, padding):
    features, weight, _, logits, labels = batch
    maps = info_cam(features, weight, labels, against, logits, region, padding)
    torch.testing.assert_close(maps, naive(features, weight, labels, against, logits, region, padding))


def test_class_activation_maps_are_the_einsum_and_their_means_the_logits(batch):
    features, weight, bias, logits, _ = batch
    maps = class_activation_maps(features, weight)
    torch.testing.assert_close(maps, torch.einsum("kc,bchw->bkhw", weight, features))
    torch.testing.assert_close(maps.mean((2, 3)) + bias, logits)
    last = features.to(memory_format=torch.channels_last)
    torch.testing.assert_close(class_activation_maps(last, weight), maps)


def test_classes_of_ones_choice_are_rivals(batch):
    features, weight, _, _, labels = batch
    for against, rows in ((3, weight[[3] * 6]), ([1, 4], weight[[1, 4]].mean(0).expand(6, -1))):
        expected = torch.einsum("bc,bchw->bhw", weight[labels] - rows, features)
        torch.testing.assert_close(info_cam(features, weight, labels, against), expected)
    own = torch.tensor([3, 1, 4, 1, 5, 2])
    for given in (own, own[:, None], torch.stack([own, own], 1)):
        expected = torch.einsum("bc,bchw->bhw", weight[labels] - weight[own], features)
        torch.testing.assert_close(info_cam(features, weight, labels, given), expected)
    torch.testing.assert_close(info_cam(features, weight, labels, labels), torch.zeros(6, 4, 3).double())
    all_others = torch.tensor([[k for k in range(K) if k != y] for y in labels.tolist()])
    mean = info_cam(features, weight, labels, "others")
    torch.testing.assert_close(info_cam(features, weight, labels, all_others), mean)


@pytest.mark.parametrize("against", VARIANTS[1:])
def test_completeness(batch, against):
    """The mean of the map plus the bias difference is f_y − f_rival, found here from the logits alone."""
    features, weight, bias, logits, labels = batch
    own = logits.gather(1, labels[:, None])[:, 0]
    rest = logits.masked_fill(nn.functional.one_hot(labels, K).bool(), math.nan)
    rival = {
        "others": rest.nanmean(1),
        "least_likely": rest.nan_to_num(math.inf).amin(1),
        "runner_up": rest.nan_to_num(-math.inf).amax(1),
    }[against]
    mean = info_cam(features, weight, labels, against, logits).mean((1, 2))
    bias_difference = contrast_weights(bias[:, None], labels, against, logits)[:, 0]
    torch.testing.assert_close(mean + bias_difference, own - rival)


def test_mean_of_others_is_a_multiple_of_cam_where_the_rows_sum_to_zero(batch):
    features, weight, _, _, labels = batch
    centred = weight - weight.mean(0)
    contrast = info_cam(features, centred, labels, "others")
    torch.testing.assert_close(contrast, K / (K - 1) * info_cam(features, centred, labels, None))
    # and that is infoCAM of the weight as it was
    torch.testing.assert_close(contrast, info_cam(features, weight, labels, "others"))


def test_nothing_of_the_caller_is_changed(batch):
    copies = [tensor.clone() for tensor in batch]
    for against in VARIANTS:
        info_cam(batch[0], batch[1], batch[4], against, batch[3], 2, "full")
    assert all(torch.equal(a, b) for a, b in zip(batch, copies, strict=True))


def test_vectors_of_several_heads_and_rivals_draw_all_maps_at_once(batch):
    features, weight, _, logits, labels = batch
    choices = [(head, against) for head in (weight, -2 * weight) for against in VARIANTS]
    vectors = torch.stack([contrast_weights(head, labels, against, logits) for head, against in choices])
    maps = torch.einsum("vbc,bchw->bvhw", vectors, features)
    for variant, (head, against) in enumerate(choices):
        torch.testing.assert_close(maps[:, variant], info_cam(features, head, labels, against, logits))


def test_full_region_sum_is_mass_times_area():
    maps = torch.rand(2, 5, 4, dtype=torch.float64)
    full = region_sum(maps, 4, "full")
    assert full.shape == (2, 8, 7)
    torch.testing.assert_close(full.sum((1, 2)), 16 * maps.sum((1, 2)))
    torch.testing.assert_close(full[:, 2:7, 2:6], region_sum(maps, 4, "same"))


def test_half_precision_features_meet_float_weights(batch):
    features, weight, _, _, labels = batch
    maps = info_cam(features.bfloat16(), weight.float(), labels)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps.double(), info_cam(features, weight, labels), rtol=0.05, atol=0.1)


def test_info_cam_does_not_draw_a_map_for_every_class():
    """K = 1,000 on 28x28: all maps would be 200 MB for this batch; no tensor on the way is 1 % of that."""
    features, weight = torch.zeros(64, 8, 28, 28), torch.zeros(1000, 8)
    with torch.profiler.profile(profile_memory=True, activities=CPU) as profile:
        info_cam(features, weight, torch.arange(64), "least_likely", torch.randn(64, 1000), 3)
    assert max(event.cpu_memory_usage for event in profile.events()) < 2e6


def test_class_activation_maps_allocate_their_result_only():
    features, weight = torch.zeros(4, 256, 28, 28), torch.zeros(1000, 256)
    with torch.profiler.profile(profile_memory=True, activities=CPU) as profile:
        maps = class_activation_maps(features, weight)
    size = maps.numel() * maps.element_size()
    allocated = [e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0]
    assert sum(allocated) == pytest.approx(size, rel=0.01)


BAD_INPUT = [
    ({"features": torch.zeros(6, C, 4)}, r"features must be \(B, C, h, w\).*\(6, 5, 4\)"),
    ({"features": torch.zeros(0, C, 4, 3)}, "not empty"),
    ({"weight": torch.zeros(K, C + 1)}, r"weight must be \(K, 5\).*\(7, 6\)"),
    ({"labels": torch.zeros(5).long()}, r"labels must be \(6,\)"),
    ({"labels": torch.zeros(6)}, "integer"),
    ({"labels": torch.full((6,), K)}, r"\[0, 6\], got 7"),
    ({"labels": torch.full((6,), -1)}, r"\[0, 6\], got -1"),
    ({"logits": None}, "pass logits=model"),
    ({"logits": torch.zeros(6, K + 1)}, r"\(6, 7\).*\(6, 8\)"),
    ({"logits": torch.diag(torch.tensor([0, 0, math.nan, 0, 0, 0, 0]))[:6]}, r"images \[2\].*not finite"),
    ({"against": "nearest"}, "'nearest'"),
    ({"against": K}, r"\[0, 6\], got 7"),
    ({"against": []}, "non-empty|integer"),
    ({"against": [0.5]}, "integer"),
    ({"against": torch.zeros(5).long()}, r"against must be \(6,\) or \(6, m\), was \(5,\)"),
    ({"weight": torch.zeros(1, C), "labels": torch.zeros(6).long(), "logits": None}, "2 classes"),
    ({"region": 0}, "region must be at least 1 cell, was 0"),
    ({"padding": "valid"}, "'same', 'full', got 'valid'"),
]


@pytest.mark.parametrize(("change", "message"), BAD_INPUT)
def test_bad_input_is_refused(batch, change, message):
    features, weight, _, logits, labels = batch
    given = {"features": features, "weight": weight, "labels": labels, "logits": logits}
    with pytest.raises((ValueError, TypeError), match=message):
        info_cam(**{**given, "against": "least_likely", **change})


def test_feature_norm_is_the_euclidean_norm(batch):
    features = batch[0]
    torch.testing.assert_close(feature_norm_maps(features), features.square().sum(1).sqrt())
    with pytest.raises(ValueError, match=r"\(B, C, h, w\).*not pooled, were \(6, 5\)"):
        feature_norm_maps(features.mean((2, 3)))


# ---- the gauge


@pytest.fixture
def head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(C, K)


def test_a_common_vector_moves_cam_and_neither_softmax_nor_infocam(head):
    features = torch.rand(3, C, 4, 4)
    pooled, labels = features.mean((2, 3)), torch.tensor([0, 3, 4])
    moved = with_common_vector(head, scale=2.0)
    before, after = head(pooled), moved(pooled)
    torch.testing.assert_close(before.softmax(1), after.softmax(1))
    for against in VARIANTS[1:]:
        first = info_cam(features, head.weight, labels, against, before)
        second = info_cam(features, moved.weight, labels, against, after)
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5)
    cams = [class_activation_maps(features, h.weight) for h in (head, moved)]
    assert (cams[0] - cams[1]).abs().max() > 0.1


def test_length_of_the_common_vector_is_what_was_asked(head):
    moved, before = with_common_vector(head, scale=3.0), head.weight.detach().clone()
    shift = moved.weight - before
    torch.testing.assert_close(shift, shift[:1].expand_as(shift), rtol=0, atol=1e-6)  # one for all classes
    assert float(shift[0].norm()) == pytest.approx(
        3.0 * float(before.square().sum(1).mean().sqrt()), rel=1e-5
    )
    assert torch.equal(with_common_vector(head, 0.0).weight, before)
    assert torch.equal(with_common_vector(head, 3.0, seed=0).weight, moved.weight)
    assert not torch.equal(with_common_vector(head, 3.0, seed=1).weight, moved.weight)


def test_zero_sum_changes_the_gauge_and_no_prediction(head):
    moved, pooled = zero_sum(head), torch.rand(6, C)
    assert common_share(moved.weight) < 1e-6 < common_share(head.weight.detach())
    torch.testing.assert_close(head(pooled).softmax(1), moved(pooled).softmax(1))
    assert not moved.weight.requires_grad
    assert head.weight.requires_grad
    assert zero_sum(nn.Linear(C, K, bias=False)).bias is None


def test_spread_is_the_standard_deviation_of_the_logits_and_knows_no_gauge():
    generator = torch.Generator().manual_seed(0)
    features, head = torch.randn(3, 6, 4, 5, generator=generator), nn.Linear(6, 7)
    weight = head.weight.detach()
    found = spread_maps(features, weight)
    expected = class_activation_maps(features.double(), weight.double()).std(1, correction=0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    moved = with_common_vector(head, 3.0).weight
    torch.testing.assert_close(spread_maps(features, moved), found, rtol=1e-3, atol=1e-4)
    # To second order twice the information that a place carries about the label under equal shares.
    small = 1e-2 * class_activation_maps(features.double(), weight.double())
    posterior = small.softmax(1)
    divergence = (posterior * (posterior * 7).log()).sum(1)
    torch.testing.assert_close(divergence, 0.5 * (1e-2 * expected).square(), rtol=0.05, atol=0)


def test_weights_that_are_zero_have_no_common_vector():
    assert common_share(torch.zeros(3, 2)) == 0


def test_the_common_share_of_known_rows():
    """Rows (3, 1) and (3, −1): the mean row (3, 0) has length 3, the rows √10."""
    assert common_share(torch.tensor([[3.0, 1.0], [3.0, -1.0]])) == pytest.approx(3 / math.sqrt(10))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 0)])
def test_the_finer_of_two_types_is_computed_in(batch, low, high):
    """Neither side's digits are lost: what float32 holds exactly gives float64's sums."""
    features, weight, _, _, labels = batch
    parts = [features.float().double(), weight.float().double()]
    exact = class_activation_maps(*parts), info_cam(*parts, labels)
    parts[low] = parts[low].float()
    assert parts[high].dtype == torch.float64
    for found, expected in zip((class_activation_maps(*parts), info_cam(*parts, labels)), exact, strict=True):
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_the_common_vector_has_the_heads_type():
    head = nn.Linear(3, 4).double()
    assert with_common_vector(head, 1.0).weight.dtype == torch.float64


def test_class_activation_maps_refuse_another_heads_weight():
    with pytest.raises(ValueError, match=r"weight must be \(K, 5\) for these features, was \(7, 4\)"):
        class_activation_maps(torch.zeros(1, 5, 2, 2), torch.zeros(7, 4))


def test_a_region_sum_keeps_the_size_unless_asked_and_labels_may_be_bytes(batch):
    features, weight, _, logits, labels = batch
    maps = info_cam(features, weight, labels)
    assert torch.equal(region_sum(maps, 3), region_sum(maps, 3, "same"))
    for kind in (torch.uint8, torch.int32):  # bytes would be a mask
        same = info_cam(features, weight, labels.to(kind), "runner_up", logits)
        assert torch.equal(same, info_cam(features, weight, labels, "runner_up", logits))
    with pytest.raises(ValueError, match=r"^against must be one of 'others', .* got 'nobody'"):
        info_cam(features, weight, labels, "nobody", logits)
