"""CAM and infoCAM: against a naive loop, and by the identities that make them maps of information."""

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn

from infocam_utils.cam import (
    InfoCAM,
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
from infocam_utils.classifiers.adapt import Classifier, adapt
from infocam_utils.classifiers.backbones import classifier

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


# ---- the context manager


class Frozen(nn.Module):
    """A user's own network, not a `Classifier`, with a frozen batch norm and functional pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Linear(8, K)
        self.norm.running_var.fill_(4.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.conv(x)).relu().mean((2, 3)))


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("kind", ["classifier", "stock", "user"])
def test_info_cam_of_a_model(kind):
    torch.manual_seed(0)
    model = {
        "classifier": lambda: classifier("small_resnet", K),
        "stock": lambda: torchvision.models.resnet18(num_classes=K),
        "user": Frozen,
    }[kind]()
    images = torch.randn(3, 3, 64, 64)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with InfoCAM(model, against="others", region=2, padding="full") as cam:
        output = cam(images)
        given = cam(images, labels=[1, 2, 3])
        expected = model(images)
    torch.testing.assert_close(output.logits, expected)
    assert torch.equal(output.labels, expected.argmax(1))
    assert given.labels.tolist() == [1, 2, 3]
    # completeness through the region sum: full padding multiplies the mass by the area of the region
    cells = (output.maps.shape[1] - 1) * (output.maps.shape[2] - 1)
    for result in (output, given):
        own = expected.gather(1, result.labels[:, None])[:, 0]
        contrast = own - (expected.sum(1) - own) / (K - 1)
        bias = contrast_weights(linear.bias[:, None], result.labels, "others")[:, 0]
        torch.testing.assert_close(result.maps.sum((1, 2)) / 4 / cells + bias, contrast)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = Frozen().train()
    model.norm.eval()  # a frozen layer must come back frozen
    before, state = modes(model), {k: v.clone() for k, v in model.state_dict().items()}
    cam = InfoCAM(model)
    assert modes(model) == before
    passes = []
    handle = model.conv.register_forward_hook(lambda _, images, out: passes.append(len(out)))
    if fails:
        with pytest.raises(ValueError, match="floating"), cam:
            cam(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    else:
        with cam:
            assert not any(modes(model))
            output = cam(torch.randn(2, 3, 16, 16))
            output.maps.sub_(1.0)  # an ordinary tensor, without gradient
            assert passes == [2, 1]  # images of each forward pass: at a new size one is seen by the model too
            cam(torch.randn(2, 3, 16, 16))
            assert passes == [2, 1, 2]
            cam(torch.randn(2, 3, 16, 17))
            assert passes == [2, 1, 2, 2, 1]
        assert not output.maps.requires_grad
        assert not output.maps.is_inference()
    handle.remove()
    assert modes(model) == before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(RuntimeError, match="inside its block"):
        cam(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("size", [100, 20])
def test_logits_are_the_models_own_at_odd_maps(size):
    """At 224 pixels the map has 56 cells a side, which halve; at 100 and 20 it has 25 and 5, which do not."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, K),
    )
    nn.init.normal_(model[5].weight)
    images = torch.randn(64, 3, size, size)
    with InfoCAM(model) as cam, torch.inference_mode():
        output, own = cam(images), model(images)
    torch.testing.assert_close(output.logits, own)
    assert torch.equal(output.labels, own.argmax(1))


def window(model: nn.Module) -> nn.Module:
    """A pooling window that covers the map of a 224-pixel image, as networks of one size have it."""
    return nn.Sequential(model, nn.AvgPool2d(7), nn.Flatten(), nn.Linear(8, K))


@pytest.mark.parametrize("images", [1, 3])
def test_sizes_at_which_the_pooling_leaves_cells_out_are_refused(images):
    torch.manual_seed(0)
    model = window(nn.Sequential(nn.Conv2d(3, 8, 32, 32), nn.ReLU()))
    with InfoCAM(model) as cam:
        assert cam(torch.randn(images, 3, 224, 224)).maps.shape == (images, 7, 7)
        for _ in range(2):  # a refused size stays refused
            with pytest.raises(
                ValueError, match=r"\(3, 256, 256\).*mean of its maps \(off.*AdaptiveAvgPool2d"
            ):
                cam(torch.randn(images, 3, 256, 256))
        with pytest.raises(ValueError, match=r"fails on images of \(3, 448, 448\).*size it was made for"):
            cam(torch.randn(images, 3, 448, 448))  # 2x2 windows, for which the linear layer is too small
        assert cam(torch.randn(images, 3, 224, 224)).maps.shape == (images, 7, 7)


def test_another_rounding_of_batches_is_not_taken_for_another_pooling():
    class Noisy(nn.Module):
        """Rounds batches otherwise than single images, as reduced precision does."""

        def forward(self, x: Tensor) -> Tensor:
            return x * (1 + 0.01 * (x.shape[0] > 1))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Noisy(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, K))
    with InfoCAM(model) as cam:
        assert cam(torch.randn(2, 3, 16, 16)).logits.shape == (2, K)


@pytest.mark.parametrize("fails", [False, True])
def test_nested_blocks_end_one_by_one(fails):
    model = Frozen().train()
    cam, images = InfoCAM(model), torch.randn(1, 3, 16, 16)
    before = modes(model)
    with cam:
        if fails:
            with pytest.raises(ValueError, match="floating"), cam:
                cam(images.byte())
        else:
            with cam:
                cam(images)
        assert not any(modes(model))
        cam(images)  # the outer block is still open
    assert modes(model) == before
    with pytest.raises(RuntimeError, match="inside its block"):
        cam(images)


def test_a_replaced_head_is_used_or_refused():
    torch.manual_seed(0)
    images, other = torch.randn(2, 3, 64, 64), nn.Linear(512, 4)
    stock = torchvision.models.resnet18(num_classes=K)
    own = adapt(torchvision.models.resnet18(num_classes=K))
    first, second = InfoCAM(stock), InfoCAM(own)
    stock.fc = other
    with pytest.raises(RuntimeError, match=r"layers of ResNet were replaced.*make a new InfoCAM"), first:
        first(images)
    with InfoCAM(stock) as cam:
        assert cam(images).logits.shape == (2, 4)
    own.linear = other  # of a `Classifier` the head is a part by name
    with second:
        torch.testing.assert_close(second(images).logits, own(images))
    stock.fc.weight = nn.Parameter(torch.zeros(4, 512))  # new weights in the same layer
    with cam:
        torch.testing.assert_close(cam(images).logits, other.bias.detach().expand(2, 4))


def test_a_head_that_starts_at_zero_gives_maps_of_zeros():
    model = torchvision.models.resnet18(num_classes=K)
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    with InfoCAM(model) as cam:
        assert not cam(torch.randn(1, 3, 64, 64)).maps.any()


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_models_are_refused(wrap):
    with pytest.raises(ValueError, match=r"cannot be traced.*build Classifier\(features, linear\)"):
        InfoCAM(wrap(Frozen()))


def test_images_follow_the_model_in_dtype_and_layout():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    with InfoCAM(classifier("small_resnet", K).double()) as cam:
        output, last = cam(images), cam(images.to(memory_format=torch.channels_last))
    assert output.maps.dtype == torch.float64
    torch.testing.assert_close(last.maps, output.maps)


def test_batches_split_alike():
    torch.manual_seed(0)
    images = torch.randn(5, 3, 64, 64)
    with InfoCAM(classifier("small_resnet", K), region=3) as cam:
        whole, parts = cam(images), [cam(part) for part in images.split(2)]
    torch.testing.assert_close(torch.cat([part.maps for part in parts]), whole.maps)


def test_images_models_and_options_that_do_not_fit():
    model = Classifier(nn.Conv2d(3, 4, 3), nn.Linear(4, 3))
    for options in ({"against": "all"}, {"region": -1}, {"padding": "none"}):  # before any image
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
            InfoCAM(model, **options)
    with pytest.raises(ValueError, match=r"does not end in one nn.Linear.*Classifier"):
        InfoCAM(torchvision.models.squeezenet1_1())
    with InfoCAM(model) as cam:
        for images in (torch.zeros(3, 8, 8), torch.zeros(0, 3, 8, 8)):
            with pytest.raises(ValueError, match="images must be"):
                cam(images)
        with pytest.raises(ValueError, match=r"\[0, 2\], got 3"):
            cam(torch.zeros(1, 3, 8, 8), labels=[3])
        with pytest.raises(ValueError, match="not finite"):
            cam(torch.full((1, 3, 8, 8), math.inf))


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
