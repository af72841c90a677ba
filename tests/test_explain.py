"""InfoCAM of any network: completeness, the gauge, the network's own logits; and pictures of what it says."""

import json
import math
import re

import numpy as np
import pytest
import torch
import torchvision
from families import ONE_SIZE, TIMM, TORCHVISION, families
from PIL import Image
from torch import Tensor, nn

from infocam_utils import InfoCAM
from infocam_utils.cam import contrast_weights, info_cam, region_sum
from infocam_utils.classifiers.adapt import Classifier
from infocam_utils.classifiers.anatomy import anatomy
from infocam_utils.classifiers.backbones import classifier
from infocam_utils.explain import COLOURS, Explanation, read_images, stock_classifier

K = 7


class Frozen(nn.Module):
    """A user's own network with a frozen batch norm, functional pooling and control flow of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Linear(8, K)
        self.norm.running_var.fill_(4.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        return self.out(x.mean((2, 3)) if x.sum() > 0 else x.mean((2, 3)) + 1)


class Normed(nn.Module):
    """Mean, layer norm with its own scale and shift, linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 3, 2), nn.LayerNorm(8), nn.Linear(8, K)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.conv(x).mean((2, 3))))


def hidden() -> nn.Module:
    """A hidden layer between the mean and the logits."""
    pooled = nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*pooled, nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, K))


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def heads(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def moved(model: nn.Module) -> nn.Module:
    """The network with one vector added to every row of its last linear layer's weights."""
    with torch.no_grad():
        heads(model)[-1].weight.add_(torch.randn(heads(model)[-1].in_features))
    return model


# ---- every family: the way, the model's own logits, completeness, the gauge


def tried(model: nn.Module, way: str, sizes: list[int]) -> None:
    torch.manual_seed(1)
    last = heads(model)[-1:]
    for linear in last:  # some start at zero
        nn.init.normal_(linear.weight, std=0.1)
    for size in sizes:
        images, labels = torch.randn(2, 3, size, size), torch.tensor([0, 3])
        cam = InfoCAM(model.eval(), against=[1, 2])
        found = cam(images, labels)
        assert found.way == way
        with torch.inference_mode():
            own = model(images)
        torch.testing.assert_close(found.logits, own, rtol=1e-3, atol=1e-4)
        odds = own[[0, 1], [0, 3]] - own[:, [1, 2]].mean(1)
        torch.testing.assert_close(found.log_odds, odds, rtol=1e-3, atol=1e-4)
        if way != "gradient":  # completeness, to the precision of sums of both signs
            scale = float(found.maps.abs().mean()) + float(odds.abs().max())
            assert float(found.residual.abs().max()) < 1e-4 * scale
        if last:
            again = cam_of_moved = InfoCAM(moved(model), against=[1, 2])(images, labels)
            assert cam_of_moved.way == way
            torch.testing.assert_close(
                again.maps, found.maps, rtol=1e-3, atol=1e-4 * float(found.maps.abs().max())
            )


@pytest.mark.parametrize(("name", "way"), families(TORCHVISION))
def test_torchvision(name: str, way: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=K)
    tried(model, way, [224] if name.startswith(tuple(ONE_SIZE)) else [96, 128, 160])


@pytest.mark.parametrize(("name", "way"), families(TIMM))
def test_timm(name: str, way: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is optional (pip install 'infocam[timm]')")
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=K)
    own = model.default_cfg["input_size"][-1]
    tried(model, way, [own] if name.startswith(tuple(ONE_SIZE)) else [128, 160, 224])


# ---- exactness, by the definitions


@pytest.mark.parametrize("make", [lambda: classifier("small_resnet", K), Frozen, Normed])
@pytest.mark.parametrize("against", [None, "others", "least_likely", "runner_up", 2])
def test_completeness_and_equality_with_the_definition(make, against):
    torch.manual_seed(0)
    model, images = make().double(), torch.randn(3, 3, 64, 48)
    found = InfoCAM(model, against)(images)
    model.eval()
    logits = model(images.double())
    torch.testing.assert_close(found.logits, logits.detach())
    assert torch.equal(found.labels, logits.argmax(1))
    odds = contrast_weights(logits.T, found.labels, against, logits).diagonal()
    torch.testing.assert_close(found.maps.mean((1, 2)) + found.offset, odds.detach(), rtol=1e-9, atol=1e-9)
    assert found.residual.abs().max() < 1e-9
    if isinstance(model, Frozen):
        features = model.norm(model.conv(images.double())).relu()
        expected = info_cam(features, model.out.weight, found.labels, against, logits)
        torch.testing.assert_close(found.maps, expected.detach())


def test_within_one_image_a_layer_norm_is_affine():
    torch.manual_seed(0)
    model, image = Normed().double(), torch.randn(1, 3, 16, 16).double()
    found = InfoCAM(model, against=1)(image, 0)
    with torch.no_grad():
        features = model.conv(image)
        mean = features.mean((2, 3))[:, :, None, None]
        shifted = (features - mean.mean(1)) / (mean.var(1, correction=0) + model.norm.eps).sqrt()
        row = (model.out.weight[0] - model.out.weight[1]) * model.norm.weight
        torch.testing.assert_close(found.maps, torch.einsum("c,bchw->bhw", row, shifted))
    assert found.way == "norm"


def test_the_gradient_is_infocam_where_infocam_is_exact():
    torch.manual_seed(0)
    model, images = torchvision.models.resnet18(num_classes=K).eval(), torch.randn(2, 3, 96, 96)
    exact, other = (InfoCAM(model, "runner_up", layer=layer)(images) for layer in (None, "layer4"))
    assert (exact.way, other.way, other.layer) == ("linear", "gradient", "layer4")
    torch.testing.assert_close(other.maps, exact.maps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.residual, exact.offset, rtol=1e-3, atol=1e-4)  # all it lacks are biases


def test_the_gradient_way_is_grad_cam_of_the_difference_without_relu():
    torch.manual_seed(0)
    model, images = hidden().eval(), torch.randn(2, 3, 20, 20)
    found = InfoCAM(model, against=2)(images, 1)
    features = model[:2](images).detach().requires_grad_()
    logits = model[2:](features)
    (slope,) = torch.autograd.grad((logits[:, 1] - logits[:, 2]).sum(), features)
    expected = (slope.mean((2, 3), keepdim=True) * features).sum(1) * features.shape[2] * features.shape[3]
    torch.testing.assert_close(found.maps, expected.detach())
    torch.testing.assert_close(found.residual, found.log_odds - found.maps.mean((1, 2)))
    assert found.between[-3:] == ("4 (Linear)", "5 (Tanh)", "6 (Linear)")


def test_pooling_that_leaves_cells_out_is_not_taken_for_the_mean():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 32, 32), nn.ReLU(), nn.AvgPool2d(7), nn.Flatten(), nn.Linear(8, K))
    cam = InfoCAM(model, against=1)
    assert cam(torch.randn(2, 3, 224, 224), 0).way == "linear"
    found = cam(torch.randn(2, 3, 256, 256), 0)
    assert found.way == "gradient"
    assert found.residual.abs().max() > 1e-3, "said, not hidden"
    assert cam(torch.randn(2, 3, 224, 224), 0).way == "linear"


@pytest.mark.parametrize("size", [100, 20])
def test_an_average_over_a_part_of_the_map_stays_with_the_features(size):
    torch.manual_seed(0)
    tail = nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, K)
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), *tail)
    found = InfoCAM(model)(torch.randn(4, 3, size, size))
    assert found.maps.shape[1] == size // 8
    assert found.residual.abs().max() < 1e-5


# ---- the caller's network


@pytest.mark.parametrize("make", [Frozen, Normed, hidden])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(make, fails):
    model = make().train()
    next(m for m in model.modules() if not list(m.children())).eval()  # a frozen layer comes back frozen
    before, state = modes(model), {k: v.clone() for k, v in model.state_dict().items()}
    cam = InfoCAM(model)
    if fails:
        with pytest.raises(ValueError, match=r"\[0, 6\], got 9"):
            cam(torch.randn(1, 3, 16, 16), 9)
    else:
        found = cam(torch.randn(2, 3, 16, 16))
        found.maps.sub_(1.0)  # an ordinary tensor, without gradient
        assert not found.maps.requires_grad
        assert not found.maps.is_inference()
    assert modes(model) == before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()


def test_one_pass_a_batch_after_the_first_of_a_size():
    model, seen = Frozen(), []
    cam = InfoCAM(model)
    handle = model.conv.register_forward_hook(lambda _, images, out: seen.append(len(out)))
    cam(torch.randn(2, 3, 16, 16))
    assert seen == [1, 2]
    cam(torch.randn(2, 3, 16, 16))
    assert seen == [1, 2, 2]
    cam(torch.randn(2, 3, 16, 17))
    handle.remove()
    assert seen == [1, 2, 2, 1, 2]


def test_a_replaced_head_is_used_and_another_structure_noticed():
    torch.manual_seed(0)
    images, model = torch.randn(2, 3, 64, 64), torchvision.models.resnet18(num_classes=K)
    cam = InfoCAM(model)
    cam(images)
    model.fc = nn.Linear(512, 4)
    found = cam(images)
    torch.testing.assert_close(found.logits, model.eval()(images).detach())
    assert found.residual.abs().max() < 1e-4
    model.fc = nn.Sequential(nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 4))
    assert cam(images).way == "gradient"


@pytest.mark.parametrize(
    "other",
    [
        lambda net, x: net.out(net.conv(x).amax((2, 3))),
        lambda net, x: net.out(net.conv(x).mean((2, 3))).tanh(),
    ],
)
def test_a_network_that_computes_a_batch_otherwise_than_few_images_is_refused(other):
    class Moody(Frozen):
        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.conv(x).mean((2, 3))) if len(x) < 3 else other(self, x)

    cam = InfoCAM(Moody())
    assert cam(torch.randn(2, 3, 16, 16)).way == "linear"
    with pytest.raises(RuntimeError, match="Moody computes the images of one batch in different ways; pass"):
        cam(torch.randn(3, 3, 16, 16))


def test_a_network_has_its_own_transform_and_may_have_no_parameters():
    """Its weights a buffer: the gradient's way, in the images' own type and place."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.ReLU()
            self.register_buffer("weight", torch.randn(K, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.features(x).mean((2, 3)) @ self.weight.T

    torch.manual_seed(0)
    model, photo = Fixed(), Image.new("RGB", (30, 20), "red")
    found = InfoCAM(model, 1, layer="features", transform=lambda picture: torch.ones(3, 4, 4))(photo, 0)
    assert found.images.tolist() == torch.ones(1, 3, 4, 4).tolist()
    odds = (model.weight[0] - model.weight[1]).sum()
    torch.testing.assert_close(found.log_odds, odds[None])
    torch.testing.assert_close(found.maps, odds.expand(1, 4, 4))


def test_sums_over_regions_take_either_padding_and_refuse_another_before_any_image():
    torch.manual_seed(0)
    model, images = Frozen(), torch.randn(2, 3, 16, 16)
    plain = InfoCAM(model, 1)(images, 0)
    for padding in ("same", "full"):
        summed = InfoCAM(model, 1, region=3, padding=padding)(images, 0)
        torch.testing.assert_close(summed.maps, region_sum(plain.maps, 3, padding))
        torch.testing.assert_close(summed.residual, plain.residual)
    with pytest.raises(ValueError, match="padding must be one of"):
        InfoCAM(model, padding="valid")


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"elementwise_affine": False}])
def test_a_layer_norm_may_lack_scale_and_shift(options):
    model = Normed().double()
    model.norm = nn.LayerNorm(8, dtype=torch.float64, **options)
    found = InfoCAM(model, 1)(torch.randn(2, 3, 16, 16), [0, 2])
    assert found.way == "norm"
    assert found.maps.dtype == found.offset.dtype == torch.float64
    torch.testing.assert_close(found.maps.mean((1, 2)) + found.offset, found.log_odds)


def test_a_linear_layer_without_bias_leaves_nothing_outside_the_map():
    pooled = nn.Conv2d(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    found = InfoCAM(nn.Sequential(*pooled, nn.Linear(8, K, bias=False)), 1)(torch.randn(2, 3, 16, 16), [0, 2])
    assert found.offset.tolist() == [0, 0]
    torch.testing.assert_close(found.maps.mean((1, 2)), found.log_odds)


@pytest.mark.parametrize("make", [lambda: torchvision.models.resnet18(num_classes=K), hidden])
def test_a_head_that_starts_at_zero_gives_maps_of_zeros(make):
    model = make()
    nn.init.zeros_(heads(model)[-1].weight)
    nn.init.zeros_(heads(model)[-1].bias)
    assert not InfoCAM(model)(torch.randn(1, 3, 64, 64)).maps.any()


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: nn.Sequential(m, nn.Identity())])
def test_wrapped_networks_are_as_they_are_inside(wrap):
    torch.manual_seed(0)
    model, images = Frozen(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(InfoCAM(wrap(model))(images).maps, InfoCAM(model)(images).maps)


@pytest.mark.parametrize("make", [Frozen, Normed, hidden])
def test_dtype_layout_splits_and_autocast(make):
    torch.manual_seed(0)
    model, images = make(), torch.randn(5, 3, 32, 32)
    cam = InfoCAM(model, "others", region=3)
    whole = cam(images)
    parts = torch.cat([cam(part).maps for part in images.split(2)])
    torch.testing.assert_close(parts, whole.maps)
    torch.testing.assert_close(cam(images.to(memory_format=torch.channels_last)).maps, whole.maps)
    with torch.autocast("cpu", torch.bfloat16):
        fast = cam(images)
    assert fast.way == whole.way
    assert (fast.maps.float() - whole.maps).abs().max() < 0.05 * whole.maps.abs().max()
    assert InfoCAM(model.double())(images).maps.dtype in (torch.float64, torch.float32)


def test_networks_without_maps_or_logits_are_refused_with_the_remedy():
    images = torch.randn(1, 3, 8, 8)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, K))
    with pytest.raises(ValueError, match=r"no maps of more than one cell.*layer=.*1, 2, 3"):
        InfoCAM(flat)(images)
    with pytest.raises(ValueError, match=r"no layer 'features'; it has, for instance, conv"):
        InfoCAM(Frozen(), layer="features")(images)
    with pytest.raises(ValueError, match=r"layer 'out' has no maps"):
        InfoCAM(Frozen(), layer="out")(images)
    with pytest.raises(ValueError, match=r"logits \(B, K\), returned \(1, 4, 6, 6\)"):
        InfoCAM(nn.Conv2d(3, 4, 3))(images)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, was dict"):
        InfoCAM({})
    with pytest.raises(ValueError, match="not finite"):
        InfoCAM(Frozen())(torch.full((1, 3, 8, 8), math.inf))
    with pytest.raises(ValueError, match="region must be at least 1"):
        InfoCAM(Frozen(), region=0)


def test_anatomy_finds_tokens_of_oblong_images():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.cls, self.out = (
                nn.Conv2d(3, 8, 4, 4),
                nn.Parameter(torch.ones(1, 1, 8)),
                nn.Linear(8, K),
            )

        def forward(self, x: Tensor) -> Tensor:
            tokens = torch.cat([self.cls.expand(len(x), -1, -1), self.patch(x).flatten(2).mT], 1)
            return self.out(tokens[:, 1:].mean(1))

    images = torch.randn(2, 3, 24, 40)
    found = anatomy(Tokens().eval(), images)
    assert (found.way, found.layout.grid) == ("linear", (6, 10))
    assert InfoCAM(Tokens())(images).maps.shape == (2, 6, 10)


# ---- classes


def test_classes_by_name_number_list_and_tensor():
    torch.manual_seed(0)
    names = ["robin", "sparrow", "wren", "finch", "crow", "jay", "jay"]
    model, images = Frozen(), torch.randn(3, 3, 16, 16)
    by_number = InfoCAM(model, against=[1, 2])(images, [0, 0, 3])
    by_name = InfoCAM(model, against=["sparrow", "wren"], classes=names)(images, ["robin", "robin", "finch"])
    torch.testing.assert_close(by_name.maps, by_number.maps)
    assert by_name.question(2) == "finch against sparrow, wren"
    own = InfoCAM(model, against=torch.tensor([4, 3, 2]), classes=names)(images, torch.tensor([0, 1, 1]))
    assert [own.question(i) for i in range(3)] == [
        "robin against crow",
        "sparrow against finch",
        "sparrow against wren",
    ]
    from_array = InfoCAM(model, against=np.array([4, 3, 2]))(images, np.array([0, 1, 1]))
    torch.testing.assert_close(from_array.maps, own.maps)
    alone = InfoCAM(model, against=4)(images[:1], 0)
    torch.testing.assert_close(own.maps[:1], alone.maps)
    for against, words in ((None, "robin"), ("others", "robin against all others")):
        assert InfoCAM(model, against, classes=names)(images, "robin").question(0) == words
    runner = InfoCAM(model, "runner_up")(images)
    second = runner.logits.topk(2).indices[:, 1].tolist()
    assert [row[0] for row in runner.rivals] == second
    for given, message in (
        ("rob", r"no class 'rob'; did you mean 'robin'"),
        ("jay", r"'jay' is the name of classes \[5, 6\]"),
        ("emu", "no class 'emu'; see classes"),
        ("ROBIN", "no class 'ROBIN'; did you mean 'robin'?"),
    ):
        with pytest.raises(ValueError, match=message):
            InfoCAM(model, given, classes=names)
    four = [f"wren {k}" for k in range(4)] + names[:3]
    with pytest.raises(ValueError, match=r"did you mean 'wren \d', 'wren \d', 'wren \d'\?$"):
        InfoCAM(model, "wren 9", classes=four)
    assert InfoCAM(model, against=np.int64(4))(images[:1], 0).question(0) == "class 0 against class 4"
    with pytest.raises(ValueError, match=r"neither 'others', .* nor a class; pass classes="):
        InfoCAM(model, "robin")
    with pytest.raises(TypeError, match="a number or a name"):
        InfoCAM(model, 0.5)
    with pytest.raises(ValueError, match=r"one for each of 3 images, were \(2,\)"):
        InfoCAM(model)(images, [0, 1])
    with pytest.raises(ValueError, match="2 classes for 7 logits"):
        InfoCAM(model, classes=["a", "b"])(images)


# ---- pictures


def test_images_come_as_tensors_arrays_pictures_and_paths(tmp_path):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((torch.from_numpy(array) / 255 - mean) / std).movedim(-1, 1)
    torch.testing.assert_close(read_images(array), expected)
    torch.testing.assert_close(read_images(torch.from_numpy(array).movedim(-1, 1)), expected)
    pictures = [Image.fromarray(one) for one in array]
    middle = expected[:, :, 16:240, 16:240]  # 256 stay, and the middle 224 are taken
    torch.testing.assert_close(read_images(pictures), middle)
    pictures[0].save(tmp_path / "one.png")
    torch.testing.assert_close(read_images(tmp_path / "one.png"), middle[:1])
    theirs = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    for size in ((300, 200), (500, 375)):
        photo = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).resize(
            (size[1] * 2, size[0] * 2)
        )
        assert read_images(photo).shape == (1, 3, 224, 224)
        assert (read_images(photo) - theirs(photo)).abs().mean() < 0.15, "torchvision's geometry"
    assert read_images(pictures, transform=theirs).shape == (2, 3, 224, 224)
    with pytest.raises(FileNotFoundError, match=r"no picture .*none\.png"):
        read_images(tmp_path / "none.png")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"broken.png is no picture"):
        read_images(str(tmp_path / "broken.png"))
    for shape in ((1, 8, 3, 3), (1, 4, 8, 3), (1, 3, 8, 3)):  # the last is taken for channels first
        odd = torch.randint(0, 256, shape, dtype=torch.uint8)
        first = odd if shape[1] == 3 else odd.movedim(-1, 1)
        shown = (first / 255 - mean[:, None, None]) / std[:, None, None]
        torch.testing.assert_close(read_images(odd), shown)
    for bad in (torch.zeros(3, 8, 8), torch.zeros(0, 3, 8, 8), torch.zeros(1, 3, 8, 8).long()):
        given = re.escape(f"were {tuple(bad.shape)} of {bad.dtype}")
        with pytest.raises(ValueError, match=rf"images must be \(B, 3, H, W\), .*{given}"):
            read_images(bad)
    sizes = [torch.zeros(3, 9, 8), torch.zeros(3, 8, 8)]
    with pytest.raises(ValueError, match=r"images must come to one size, got \[\(3, 8, 8\), \(3, 9, 8\)\]"):
        read_images(pictures, transform=lambda picture: sizes.pop())
    with pytest.raises(TypeError, match="a PIL image or a path, was int"):
        read_images([3])


def test_an_explanation_knows_its_picture_and_says_what_it_shows(tmp_path):
    torch.manual_seed(0)
    array = np.zeros((3, 64, 64, 3), dtype=np.uint8)
    array[:, 20:40, 10:30, 0] = 255
    names = [f"bird {k}" for k in range(K)]
    found = InfoCAM(Classifier(nn.Conv2d(3, 8, 8, 8), nn.Linear(8, K)), 2, classes=names)(array, 1)
    np.testing.assert_array_equal(found.pictures(), array)
    (said,) = found[:1].sentences()
    odds, mean, offset = (float(t[0]) for t in (found.log_odds, found.maps.mean((1, 2)), found.offset))
    parts = f"{odds:+.2f} nats = mean of the map {mean:+.2f} + difference of biases {offset:+.2f}"
    assert said == f"bird 1 against bird 2: log odds {parts}"
    over = found.overlay()
    assert over.shape == (3, 64, 64, 3)
    strongest = divmod(int(found.maps[0].abs().argmax()), 8)
    pixel = over[0, strongest[0] * 8 + 4, strongest[1] * 8 + 4].astype(int)
    assert (pixel[0] > pixel[2]) == bool(found.maps[0].flatten()[found.maps[0].abs().argmax()] > 0)
    box = found.boxes(0.5)
    assert box.shape == (3, 4)
    for part, name in ((found[:1], "one.png"), (found, "all.svg"), (found[[2, 0]], "two.pdf")):
        assert part.save(tmp_path / name).stat().st_size > 2000
    titles = [part.show(title="Why?").get_suptitle() for part in (found[:1], found)]
    assert titles == ["Why?"] * 2
    assert found[:1].show().get_suptitle() == said
    fig = found[:1].show()
    fig.canvas.draw()
    texts = [text.get_text() for text in fig.findobj(lambda a: hasattr(a, "get_text"))]
    assert "nats at this place" in texts
    assert "probability, %" in texts
    assert any("bird 2" in text for text in texts)
    grey = InfoCAM(nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)))
    assert grey(torch.randn(1, 1, 12, 12)).overlay().shape == (1, 12, 12, 3)
    hidden_said = InfoCAM(hidden(), 0)(array, 1).sentences()[0]
    assert "what the map does not hold" in hidden_said


def stated(images: Tensor | None = None, **changes) -> Explanation:
    """Two explanations by the way "gradient" whose every number is known."""
    values = {
        "maps": torch.tensor([[[1.0, -2.0, 0.5], [0.0, 4.0, 0.0]], [[-1.0, 0.0, 0.0], [0.0, 0.0, 0.5]]]),
        "logits": torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.0, 2.0]]),
        "labels": torch.tensor([0, 2]),
        "log_odds": torch.tensor([3.0, 1.0]),
        "offset": torch.tensor([0.5, 0.0]),
        "residual": torch.tensor([0.25, 2.0]),
        "images": torch.zeros(2, 3, 4, 6) if images is None else images,
        "rivals": ((1, 2), (0,)),
        "plain": False,
        "way": "gradient",
        "layer": "features",
        "classes": ("robin", "sparrow", "wren"),
    }
    return Explanation(**values | changes)


def test_what_is_said_adds_up():
    found = stated()
    assert found.sentences() == [
        "robin against sparrow, wren: log odds +3.00 nats = mean of the map +2.25 + difference of biases "
        "+0.50 + what the map does not hold +0.25",
        "wren against robin: log odds +1.00 nats = mean of the map -1.00 + what the map does not hold +2.00",
    ]
    cam = stated(plain=True, way="linear", residual=torch.zeros(2), rivals=((), ()), classes=None)
    assert cam.sentences() == [
        "class 0: logit +3.00 nats = mean of the map +2.50 + difference of biases +0.50",
        "class 2: logit +1.00 nats = mean of the map +1.00",
    ]
    assert found.facts(0) == {
        "class": "robin",
        "against": ["sparrow", "wren"],
        "probability": pytest.approx(math.exp(3) / (math.exp(3) + math.exp(1) + 1)),
        "log_odds": 3.0,
        "mean_of_map": 2.25,
        "offset": 0.5,
        "residual": 0.25,
        "way": "gradient",
        "layer": "features",
        "box": [2.0, 2.0, 4.0, 4.0],  # the level is 1: half way from −2 up to 4, three quarters from 4 to 0
        "input": [4, 6],
    }


def test_some_of_the_images_are_taken_with_all_that_is_theirs():
    found = stated()
    for rows in ([1], slice(1, None), [-1], (1,)):
        (part,) = (found[rows],)
        assert len(part) == 1
        assert part.rivals == ((0,),)
        assert part.sentences() == found.sentences()[1:]
        assert torch.equal(part.maps, found.maps[1:])
    assert found[[1, 0]].rivals == found[(1, 0)].rivals == ((0,), (1, 2))


@pytest.mark.parametrize(
    ("low", "high", "stretched"),
    [
        (0.1, 0.9, False),
        (0.02, 1.0, False),
        (-0.04, 1.04, False),  # rounding of the normalisation: cut off, not stretched
        (-0.5, 0.9, True),
        (0.1, 1.5, True),
        (2.0, 2.5, True),  # a range below 1
        (-3.0, 5.0, True),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_as_they_were_or_stretched_from_black_to_white(low, high, stretched, channels):
    """Each on its own; both lie in one batch with an image that was normalised."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    if channels == 1:
        mean, std = mean.mean()[None], std.mean()[None]
    ramp = torch.linspace(0, 1, channels * 6).view(channels, 2, 3)
    wanted = torch.stack([low + (high - low) * ramp, ramp])
    found = stated((wanted - mean[:, None, None]) / std[:, None, None]).pictures()
    shown = torch.stack([ramp if stretched else wanted[0].clamp(0, 1), ramp]).expand(2, 3, 2, 3) * 255
    assert found.shape == (2, 2, 3, 3)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(float) - shown.movedim(1, -1).numpy()).max() < 0.51


def test_an_overlay_is_grey_where_the_map_is_zero_and_coloured_as_far_as_it_is_not():
    """By the formula: grey between 0.2 and 0.95, three quarters of colour at the strongest."""
    picture = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    found = stated(read_images((picture * 255).byte()))
    blue, red = np.array(COLOURS[0]), np.array(COLOURS[1])
    over, pictures = found.overlay(), found.pictures()
    fine = torch.nn.functional.interpolate(found.maps[:, None], (4, 6), mode="bilinear")[:, 0]
    assert over.dtype == np.uint8
    for b, y, x in np.ndindex(2, 4, 6):
        share = float(fine[b, y, x]) / float(found.maps[b].abs().max())
        grey = 0.2 + 0.75 * pictures[b, y, x].mean() / 255
        strength, colour = 0.75 * abs(share), red if share > 0 else blue
        expected = 255 * (grey * (1 - strength) + colour * strength)
        assert np.abs(over[b, y, x] - expected).max() < 0.51
    assert np.array_equal(
        stated(found.images, maps=found.maps / 100).overlay(), over
    )  # each on its own scale
    nothing = stated(maps=torch.zeros(2, 2, 3)).overlay()
    assert (nothing == nothing[..., :1]).all()


def test_a_figure_has_a_place_for_every_map_and_bars_of_probabilities(tmp_path, monkeypatch):
    found = stated()
    one, five = found[:1].show(), found[[0, 1, 0, 1, 0]].show()
    assert one.get_size_inches().tolist() == [10.5, 3.6]
    assert found.show().get_size_inches().tolist() == pytest.approx([6.8, 3.3])
    assert five.get_size_inches().tolist() == pytest.approx([13.6, 6.6])  # four in a row
    bars = one.axes[2]
    probabilities = (100 * found.logits[0].softmax(0)).tolist()
    assert [bar.get_width() for bar in bars.patches] == pytest.approx(probabilities[::-1])
    assert [text.get_text() for text in bars.get_yticklabels()] == ["wren", "sparrow", "robin"]
    colours = [(*COLOURS[0], 1.0), (*COLOURS[0], 1.0), (*COLOURS[1], 1.0)]  # the rivals', and the class's
    assert [bar.get_facecolor() for bar in bars.patches] == colours
    asked = []
    monkeypatch.setattr(Explanation, "show", lambda self, *options: asked.append(options) or one)
    found.save(tmp_path / "one.png", 0.3, "Why?")
    found.save(tmp_path / "one.png")
    assert asked == [(0.3, "Why?"), (0.5, None)]
    assert Image.open(tmp_path / "one.png").size == (1575, 540)  # 150 dots an inch


def test_a_picture_is_cut_to_its_middle_and_comes_in_rgb(tmp_path):
    """256 by 263 stay as they are: of 39 rows too many 19 go above."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (263, 256, 3), dtype=np.uint8))
    torch.testing.assert_close(
        read_images(photo), read_images(np.array(photo)[None, 19 : 19 + 224, 16 : 16 + 224])
    )
    wide = photo.transpose(Image.Transpose.ROTATE_90)
    torch.testing.assert_close(
        read_images(wide), read_images(np.array(wide)[None, 16 : 16 + 224, 19 : 19 + 224])
    )
    for mode in ("L", "RGBA", "P"):
        other = photo.convert(mode)
        other.save(tmp_path / f"{mode}.png")
        for given in (other, tmp_path / f"{mode}.png"):
            torch.testing.assert_close(read_images(given), read_images(other.convert("RGB")))


# ---- the command


def test_a_network_of_a_library_comes_with_names_and_transform(tmp_path, monkeypatch):
    """Of torchvision, with its own classes or others; "imagenet" asks for its weights, a file for none."""
    asked = []
    get = torchvision.models.get_model

    def get_model(name, **options):
        asked.append((name, options))
        return get(name, **options | ({"weights": None} if options["weights"] is not None else {}))

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    own = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    torch.manual_seed(0)
    torch.save(get("shufflenet_v2_x0_5").state_dict(), tmp_path / "weights.pt")
    for weights in ("imagenet", tmp_path / "weights.pt"):
        model, names, transform = stock_classifier("shufflenet_v2_x0_5", weights)
        assert names == own.meta["categories"]
        assert repr(transform) == repr(own.transforms())
        assert not model.training
    saved = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert asked == [
        ("shufflenet_v2_x0_5", {"weights": own}),
        ("shufflenet_v2_x0_5", {"weights": None, "num_classes": 1000}),
    ]
    with pytest.raises(
        ValueError, match=r"^torchvision has no classifier 'qq'; did you mean \w+, \w+, \w+\?$"
    ):
        stock_classifier("qq", "imagenet")
    with pytest.raises(ValueError, match=r"^other has no classifier 'resnet18'"):
        stock_classifier("other:resnet18", "imagenet")


def test_a_network_of_timm_comes_with_its_weights(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm", reason="timm is optional (pip install 'infocam[timm]')")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "w.pt")
    model, names, transform = stock_classifier("timm:test_resnet", tmp_path / "w.pt", ["a", "b", "c"])
    saved = torch.load(tmp_path / "w.pt", weights_only=True)
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert (names, transform) == (["a", "b", "c"], None)
    asked = []
    monkeypatch.setattr(timm, "create_model", lambda name, **o: asked.append((name, o)) or model)
    _, names, _ = stock_classifier("timm:test_resnet", "imagenet")
    assert asked == [("test_resnet", {"pretrained": True, "num_classes": 1000})]
    assert names == torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    with pytest.raises(ValueError, match=r"^timm has no classifier 'test_resnett'; did you mean test_resnet"):
        stock_classifier("timm:test_resnett", "imagenet")


@pytest.fixture
def stock(tmp_path):
    """A network of torchvision's with random weights and two photos."""
    torch.manual_seed(0)
    model = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "birds.txt").write_text("robin\nsparrow\nwren\n")
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.png"):
        Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path, model


def command(folder, *words):
    from click.testing import CliRunner

    from infocam_utils.reproduce.cli import cli

    options = ["--model", "shufflenet_v2_x0_5", "--weights", str(folder / "weights.pt")]
    return CliRunner().invoke(
        cli, ["explain", *options, "--classes", str(folder / "birds.txt"), *map(str, words)]
    )


def test_a_photo_is_explained_by_the_command(stock):
    folder, model = stock
    out = folder / "out.png"
    result = command(folder, folder / "a.jpg", "--class", "robin", "--against", "sparrow", "-o", out)
    assert result.exit_code == 0, result.output
    assert "robin against sparrow: log odds" in result.output
    assert Image.open(out).size[0] > 1000
    result = command(folder, folder / "a.jpg", folder / "b.png", "--json", "-o", folder / "all")
    found = json.loads(result.stdout)
    assert [row["photo"] for row in found] == [str(folder / "a.jpg"), str(folder / "b.png")]
    assert all((folder / "all" / f"{name}.png").is_file() for name in "ab")
    transform = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.transforms()
    with torch.inference_mode():
        logits = model.eval()(transform(Image.open(folder / "a.jpg"))[None])[0]
    top = logits.topk(2)
    assert found[0]["log_odds"] == pytest.approx(float(top.values[0] - top.values[1]), abs=1e-5)
    assert found[0]["class"] == ["robin", "sparrow", "wren"][int(top.indices[0])]
    assert found[0]["mean_of_map"] + found[0]["offset"] == pytest.approx(found[0]["log_odds"], abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.jpg"], "there is no picture none.jpg"),
        (["a.jpg", "--class", "robbin"], "no class 'robbin'; did you mean 'robin'"),
        (["a.jpg", "--class", "7"], r"\[0, 2\], got 7"),
        (["birds.txt"], "no picture that can be read"),
        (["a.jpg", "--model", "shufflenet"], "no classifier 'shufflenet'; did you mean shufflenet_v2"),
        (["a.jpg", "--weights", "lost.pt"], "no weights file lost.pt"),
        (["a.jpg", "--model", "resnet18"], r"holds no weights of resnet18 with 3 classes: .*Missing key"),
    ],
)
def test_what_cannot_be_explained_is_one_line(stock, monkeypatch, words, message):
    folder, _ = stock
    monkeypatch.chdir(folder)
    result = command(folder, *words)
    assert result.exit_code == 2
    assert re.search(message, result.output), result.output
    assert "Traceback" not in result.output
    with pytest.raises(ValueError, match=r"without weights explains nothing; .*'imagenet', which"):
        stock_classifier("resnet18", None)
