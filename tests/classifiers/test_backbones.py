"""Every backbone is features → mean → linear, takes its weights from files, and is refused when it is not."""

import hashlib
import random
import sys
import urllib.error

import pytest
import torch
import torchvision
from torch import Tensor, nn

from infocam_utils.classifiers.adapt import evaluation_mode
from infocam_utils.classifiers.backbones import ADL, STRIDES, classifier, weights_digest
from infocam_utils.data.images import IMAGENET_MEAN, IMAGENET_STD


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("backbone", "stride", "size", "shape"),
    [
        ("small_resnet", None, 64, (128, 8, 8)),
        ("small_resnet", 4, 64, (128, 16, 16)),
        ("resnet18", None, 64, (512, 2, 2)),
        ("resnet18", 16, 64, (512, 4, 4)),
        ("resnet18", 8, 32, (512, 4, 4)),
        ("resnet18", 4, 32, (512, 8, 8)),
        ("resnet50", 16, 64, (2048, 4, 4)),  # the official Tiny-ImageNet network
        ("vgg16_gap", None, 64, (1024, 4, 4)),
        ("mobilenet_v2", None, 64, (1280, 2, 2)),
        ("mobilenet_v2", 16, 64, (1280, 4, 4)),
        ("torchvision:shufflenet_v2_x0_5", None, 64, (1024, 2, 2)),
        ("paper_mnist_cnn", None, 28, (500, 1, 1)),
    ],
)
def test_backbones_are_features_mean_linear(backbone, stride, size, shape):
    torch.manual_seed(0)
    model = classifier(backbone, 6, stride=stride, image_size=size if ":" not in backbone else None).eval()
    x = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        features = model.forward_features(x)
        assert features.shape == (1, *shape)
        torch.testing.assert_close(model(x), model.linear(features.mean((2, 3))))
    assert model.num_classes == model.linear.out_features == 6
    assert model.name == backbone


def test_sizes_of_the_networks_of_paper_and_prototype():
    assert 170_000 < parameters(classifier("small_resnet", 20)) < 190_000
    channels = 3  # of images; the paper's have one
    of_the_paper = (25 * channels + 1) * 20 + 501 * 50 + 801 * 500 + 501 * 10
    assert parameters(classifier("paper_mnist_cnn", 10)) == of_the_paper
    stock = torchvision.models.resnet50()
    assert parameters(classifier("resnet50", 1000, stride=16)) == parameters(stock)
    convolutions = 14_714_688  # those of torchvision's VGG16
    assert parameters(classifier("vgg16_gap", 200)) == convolutions + (9 * 512 + 1) * 1024 + 1025 * 200


def test_mobilenet_at_stride_16_samples_what_it_was_trained_on():
    """Every second cell of the dilated map is the stock network's, borders included: only cells are added."""
    torch.manual_seed(0)
    coarse = classifier("mobilenet_v2", 5)
    fine = classifier("mobilenet_v2", 5, stride=16)
    fine.load_state_dict(coarse.state_dict())
    for size in (64, 97):
        x = torch.randn(1, 3, size, size)
        with evaluation_mode(coarse, fine), torch.inference_mode():
            torch.testing.assert_close(fine.forward_features(x)[:, :, ::2, ::2], coarse.forward_features(x))


def test_resnet_at_stride_16_has_no_dilation_as_in_the_paper():
    model = classifier("resnet50", 5, stride=16)
    convolutions = [m for m in model.features.layer4.modules() if isinstance(m, nn.Conv2d)]
    assert {m.stride for m in convolutions} == {m.dilation for m in convolutions} == {(1, 1)}


@pytest.mark.parametrize("backbone", ["small_resnet", "paper_mnist_cnn"])
def test_same_seed_same_network(backbone):
    networks = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        networks.append(classifier(backbone, 5).state_dict())
    first, same, other = networks
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["linear.weight"], other["linear.weight"])


def test_the_papers_mnist_network_is_made_for_one_size_of_image():
    assert STRIDES["paper_mnist_cnn"] == ()
    for size in (16, 32):
        model = classifier("paper_mnist_cnn", 4, image_size=size)
        assert model(torch.zeros(1, 3, size, size)).shape == (1, 4)
    with pytest.raises(ValueError, match="at least 16, was 15"):
        classifier("paper_mnist_cnn", 4, image_size=15)


# ---- ADL


def test_adl_hides_the_strongest_positions_or_weighs_them():
    torch.manual_seed(0)
    x = torch.rand(4, 3, 5, 5)
    attention = x.mean(1, keepdim=True)
    strongest = attention >= 0.8 * attention.amax((2, 3), keepdim=True)
    dropped = ADL(0.8, rate=1.0)(x)
    assert torch.equal(dropped, x.masked_fill(strongest, 0.0))
    torch.testing.assert_close(ADL(0.8, rate=0.0)(x), x / (1 + (-attention).exp()))
    layer = ADL(0.8)
    drops = sum(bool((layer(x) == 0).any()) for _ in range(400))
    assert drops / 400 == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 400) ** 0.5)


@pytest.mark.parametrize(
    ("backbone", "count", "threshold", "before"),
    [
        ("vgg16_gap", 3, 0.8, {"adl16": "16", "adl23": "23", "adl29": "29"}),
        (
            "resnet50",
            3,
            0.9,
            {"layer3.adl0": "layer3.0", "layer4.adl0": "layer4.0", "layer4.adl2": "layer4.2"},
        ),
    ],
)
def test_adl_sits_where_the_paper_has_it_and_is_the_identity_at_evaluation(
    backbone, count, threshold, before
):
    plain, dropping = classifier(backbone, 4), classifier(backbone, 4, adl=True)
    layers = {name: m for name, m in dropping.features.named_modules() if isinstance(m, ADL)}
    assert len(layers) == count
    assert {(m.threshold, m.rate) for m in layers.values()} == {(threshold, 0.75)}
    for name, previous in before.items():
        folder, _, _ = name.rpartition(".")
        siblings = [k for k, _ in dropping.features.get_submodule(folder).named_children()]
        assert siblings[siblings.index(name.rpartition(".")[2]) - 1] == previous.rpartition(".")[2]
    if backbone == "vgg16_gap":
        kinds = [type(plain.features.get_submodule(k)) for k in before.values()]
        assert kinds == [nn.MaxPool2d, nn.MaxPool2d, nn.ReLU]
    dropping.load_state_dict(plain.state_dict())  # no weights of its own, and no key renamed
    x = torch.randn(1, 3, 64, 64)
    with evaluation_mode(plain, dropping), torch.inference_mode():
        assert torch.equal(plain(x), dropping(x))
    with torch.inference_mode():
        x = torch.randn(2, 3, 64, 64)
        assert not torch.equal(dropping.train().forward_features(x), dropping.eval().forward_features(x))


# ---- weights


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2", "torchvision:shufflenet_v2_x0_5"])
def test_weights_of_the_stock_model(backbone, tmp_path):
    torch.manual_seed(0)
    stock = torchvision.models.get_model(backbone.removeprefix("torchvision:"), num_classes=9)
    path = tmp_path / "stock.pt"
    old = {k: v for k, v in stock.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(old, path)
    same, other = classifier(backbone, 9, weights=path), classifier(backbone, 4, weights=str(path))
    x = torch.randn(1, 3, 64, 64)
    with evaluation_mode(stock, same, other), torch.inference_mode():
        torch.testing.assert_close(same(x), stock(x))
        torch.testing.assert_close(other.forward_features(x), same.forward_features(x))
        assert other(x).shape == (1, 4)


def test_vgg16_gap_takes_the_convolutions_of_vgg16_and_makes_the_rest(tmp_path):
    model = classifier("vgg16_gap", 4, adl=True)
    names = [k for k in model.state_dict() if k.startswith("features.") and "conv6" not in k]
    with torch.device("meta"):
        stock = torchvision.models.vgg16(num_classes=9).state_dict()
    assert names == [k for k in stock if k.startswith("features.")]
    generator = torch.Generator().manual_seed(0)
    state = {k: torch.randn(stock[k].shape, generator=generator) for k in names}
    torch.save(state | {"classifier.0.weight": torch.zeros(2)}, tmp_path / "vgg16.pt")
    loaded = classifier("vgg16_gap", 4, weights=tmp_path / "vgg16.pt", adl=True).state_dict()
    assert all(torch.equal(loaded[k], state[k]) for k in names)


@pytest.mark.parametrize("backbone", ["small_resnet", "mobilenet_v2", "paper_mnist_cnn"])
def test_weights_of_a_trained_classifier(backbone, tmp_path):
    torch.manual_seed(0)
    trained = classifier(backbone, 5)
    torch.save(trained.state_dict(), tmp_path / "own.pt")
    again = classifier(backbone, 5, weights=tmp_path / "own.pt").state_dict()
    assert all(torch.equal(again[k], v) for k, v in trained.state_dict().items())
    wider = classifier(backbone, 7, weights=tmp_path / "own.pt")
    assert wider.linear.out_features == 7
    assert torch.equal(next(wider.features.parameters()), next(trained.features.parameters()))


def test_densenet_files_with_their_old_names(tmp_path):
    torch.manual_seed(0)
    stock = torchvision.models.densenet121(num_classes=4)
    rename = {k: k.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") for k in stock.state_dict()}
    torch.save({rename[k]: v for k, v in stock.state_dict().items()}, tmp_path / "old.pt")
    model = classifier("torchvision:densenet121", 4, weights=tmp_path / "old.pt")
    x = torch.randn(1, 3, 64, 64)
    with evaluation_mode(stock, model), torch.inference_mode():
        torch.testing.assert_close(model(x), stock(x))


def test_imagenet_weights_come_from_torchvision_or_the_message_names_the_way_out(monkeypatch):
    asked = []

    def offline(url: str, **options: object) -> dict[str, Tensor]:
        asked.append((url, options))
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    for backbone, file in [("vgg16_gap", "vgg16-397923af.pth"), ("resnet18", "resnet18-f37072fd.pth")]:
        with pytest.raises(RuntimeError, match=rf"{file}.*no network.*weights=<local file>"):
            classifier(backbone, 5, weights="imagenet")
    assert all(options["weights_only"] and options["check_hash"] for _, options in asked)
    for backbone in ("small_resnet", "paper_mnist_cnn"):
        with pytest.raises(ValueError, match=f"{backbone} has no ImageNet weights"):
            classifier(backbone, 5, weights="imagenet")


def test_files_that_do_not_fit_are_refused(tmp_path):
    state = classifier("small_resnet", 5).state_dict()
    path = tmp_path / "weights.pt"
    first = next(iter(state))
    damaged = {
        r"does not fit small_resnet.*Missing.*features\.0\.weight": {
            k: v for k, v in state.items() if k != first
        },
        r"Unexpected.*\"extra\".*another backbone or stride": {**state, "extra": torch.zeros(1)},
        "size mismatch for features.0.weight": {**state, first: torch.zeros(1)},
        "holds epoch, model, not tensors": {"epoch": 3, "model": state},
        "holds a Tensor": torch.zeros(3),
        "without running code": nn.Linear(1, 1),  # a pickled object
    }
    for message, content in damaged.items():
        torch.save(content, path)
        with pytest.raises(ValueError, match=f"(?s){message}"):
            classifier("small_resnet", 5, weights=path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt; pass None"):
        classifier("small_resnet", 5, weights=tmp_path / "nowhere.pt")


def test_damaged_weights_are_refused_by_name(tmp_path):
    """Cut anywhere, or with a bit turned in any tensor, of which torch itself does not complain."""
    path, chance = tmp_path / "weights.pt", random.Random(0)
    state = classifier("small_resnet", 5).state_dict()
    torch.save(state, path)
    whole = path.read_bytes()
    damaged = [b"", b"not a file of torch", *(whole[: len(whole) * cut // 20] for cut in range(1, 20))]
    for tensor in state.values():
        values = bytes(tensor.untyped_storage())
        if whole.count(values) == 1:  # which the constant ones of batch normalisation are not
            flipped = bytearray(whole)
            flipped[whole.index(values) + chance.randrange(len(values))] ^= 1 << chance.randrange(8)
            damaged.append(bytes(flipped))
    assert len(damaged) > 30
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"weights\.pt cannot be read whole.*; get it again"):
            classifier("small_resnet", 5, weights=path)


def test_weights_digest_is_of_the_content(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"abc")
    assert weights_digest(tmp_path / "a.pt") == hashlib.sha256(b"abc").hexdigest()
    assert (weights_digest(None), weights_digest("imagenet")) == ("none", "imagenet")
    (tmp_path / "a.pt").write_bytes(b"abd")  # the same name and length
    assert weights_digest(tmp_path / "a.pt") == hashlib.sha256(b"abd").hexdigest()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet_18", 5), "did you mean resnet18"),
        (("torchvision:regnet_y_400", 5), "torchvision:regnet_y_400mf"),
        (("small_resnet", 1), "at least 2, was 1"),
        (("mobilenet_v2", 5, None, 8), "no stride 8; offered: 32, 16"),
        (("torchvision:resnet34", 5, None, 16), "offered: None"),
        (("resnet50", 5, None, 16, 31), "image_size 31.*at least 32"),
        (("resnet18", 5, None, None, None, True), "ADL is defined for vgg16_gap and resnet50"),
        (("torchvision:googlenet", 5), "adapt"),
        (("torchvision:squeezenet1_1", 5), "does not end in one nn.Linear"),
    ],
)
def test_impossible_classifiers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        classifier(*arguments)


def test_efficientnet_lite_is_timms_with_the_scaling_inside(tmp_path):
    """On images normalised as all others are; its weights are read under timm's names."""
    timm = pytest.importorskip("timm", reason="timm is an optional extra")
    torch.manual_seed(0)
    stock, images = timm.create_model("tf_efficientnet_lite0", num_classes=6).eval(), torch.rand(2, 3, 65, 65)
    torch.save(stock.state_dict(), tmp_path / "lite.pt")
    model = classifier("efficientnet_lite0", 6, tmp_path / "lite.pt").eval()
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        expected = stock(images * 2 - 1)
        torch.testing.assert_close(model((images - mean) / std), expected, atol=1e-4, rtol=1e-4)
    assert model.forward_features(images).shape == (2, 1280, 3, 3)
    again = classifier("efficientnet_lite0", 4, tmp_path / "lite.pt")
    assert again.linear.out_features == 4
    assert torch.equal(again.features[1].weight, model.features[1].weight)


def test_without_timm_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'infocam\[timm\]'"):
        classifier("efficientnet_lite0", 6)
