"""Networks of the form features → global average pooling → one linear layer, by name, and their weights.

The small residual network of the drawn birds, the paper's VGG16-GAP, ResNet-50 and MNIST network,
MobileNetV2, and any torchvision model of this form.
"""

from __future__ import annotations

import difflib
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from infocam_utils.classifiers.adapt import Classifier, adapt
from infocam_utils.data.store import file_digest

STRIDES: dict[str, tuple[int, ...]] = {  # the first is the backbone's own
    "small_resnet": (8, 4),
    "resnet18": (32, 16, 8, 4),
    "resnet50": (32, 16, 8, 4),
    "vgg16_gap": (16,),
    "mobilenet_v2": (32, 16),
    "paper_mnist_cnn": (),  # no map: one cell, whatever the image's size
}


class ADL(nn.Module):
    """Attention-based dropout layer (Choe & Shim, 2019): hides or stresses the strongest positions.

    With attention `a` the channel mean, training multiplies the maps by the mask `a < threshold · max a` of
    each image with probability `rate`, else by `sigmoid(a)`; one draw per batch. Identity at evaluation.

    Examples
    --------
    >>> x = torch.tensor([[[[1.0, 2.0]]]])
    >>> ADL(0.8, rate=1.0)(x), ADL(0.8).eval()(x)
    (tensor([[[[1., 0.]]]]), tensor([[[[1., 2.]]]]))
    """

    def __init__(self, threshold: float, rate: float = 0.75) -> None:
        super().__init__()
        self.threshold, self.rate = threshold, rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        attention = x.mean(1, keepdim=True)  # (B, 1, h, w)
        drop = (attention < self.threshold * attention.amax((2, 3), keepdim=True)).to(x.dtype)
        return x * torch.where(torch.rand((), device=x.device) < self.rate, drop, attention.sigmoid())


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        norm, relu = nn.BatchNorm2d(outputs), nn.ReLU(True)
        second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.body = nn.Sequential(first, norm, relu, second, nn.BatchNorm2d(outputs))
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.skip = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def _small_resnet(num_classes: int, stride: int) -> Classifier:
    last = stride // 4  # the paper's drawn 64-pixel birds: 8x8 maps at stride 8, 16x16 at stride 4
    stem = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    blocks = [_Residual(16, 32, 2), _Residual(32, 32, 1), _Residual(32, 64, last), _Residual(64, 64, 1)]
    top = [nn.Conv2d(64, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(inplace=True)]
    features = nn.Sequential(*stem, *blocks, *top)
    model = Classifier(features, nn.Linear(128, num_classes), "small_resnet")
    return model.to(memory_format=torch.channels_last)  # a third faster on CPUs


def _after(layers: nn.Sequential, additions: Mapping[str, float]) -> nn.Sequential:
    """Put an ADL of the given threshold behind the named layers, whose names must stay as in weight files."""
    named: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in layers.named_children():
        named[name] = layer
        if name in additions:
            named[f"adl{name}"] = ADL(additions[name])
    return nn.Sequential(named)


def _resnet(
    stock: torchvision.models.ResNet, num_classes: int, stride: int, name: str, adl: bool
) -> Classifier:
    if stride in (16, 4):  # as in the paper: no stride in layer4, and no dilation in its place
        first = stock.layer4[0]
        strided = first.conv2 if isinstance(first, torchvision.models.resnet.Bottleneck) else first.conv1
        strided.stride = first.downsample[0].stride = (1, 1)
    if stride <= 8:  # a stem for small images, which cannot spare the first two halvings
        stock.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        stock.maxpool = nn.Identity()
    if adl:
        stock.layer3 = _after(stock.layer3, {"0": 0.9})
        stock.layer4 = _after(stock.layer4, {"0": 0.9, "2": 0.9})
    parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    features = nn.Sequential(OrderedDict((part, getattr(stock, part)) for part in parts))
    stock.fc = nn.Linear(stock.fc.in_features, num_classes)
    return Classifier(features, stock.fc, name)


def _vgg16_gap(num_classes: int, adl: bool) -> Classifier:
    # Not cut from torchvision's VGG16, of which 90 % are linear layers; the layer numbers are its own.
    features, channels = nn.Sequential(), 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        if width == 0:
            features.append(nn.MaxPool2d(2))
        else:
            features.extend([nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)])
            channels = width
    if adl:  # behind pool3, pool4 and conv5_3 with its ReLU
        features = _after(features, {"16": 0.8, "23": 0.8, "29": 0.8})
    features.add_module("conv6", nn.Conv2d(512, 1024, 3, padding=1))
    features.add_module("relu6", nn.ReLU(inplace=True))
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return Classifier(features, nn.Linear(1024, num_classes), "vgg16_gap")


def _mobilenet_v2(stock: torchvision.models.MobileNetV2, num_classes: int, stride: int) -> Classifier:
    if stride == 16:
        # Without the last halving, later filters must step twice as far to see what they saw in training.
        halved = False
        for layer in stock.features[14:].modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                if halved:
                    layer.dilation = layer.padding = (2, 2)
                halved = halved or layer.stride == (2, 2)
                layer.stride = (1, 1)
    stock.classifier[1] = nn.Linear(stock.last_channel, num_classes)
    return Classifier(stock.features, stock.classifier[1], "mobilenet_v2", dropout=0.2)


def _paper_mnist_cnn(num_classes: int, image_size: int) -> Classifier:
    side = ((image_size - 4) // 2 - 4) // 2
    if side < 1:
        raise ValueError(f"image_size must be at least 16, was {image_size}; enlarge the images")
    first = [nn.Conv2d(3, 20, 5), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)]
    dense = [nn.Flatten(), nn.Linear(50 * side * side, 500), nn.ReLU()]
    features = nn.Sequential(*first, *second, *dense)
    linear = nn.Linear(500, num_classes)
    features.append(nn.Unflatten(1, (-1, 1, 1)))  # as maps of one cell
    return Classifier(features, linear, "paper_mnist_cnn")


def _weights_file(weights: str | Path) -> Path:
    if not Path(weights).is_file():
        raise FileNotFoundError(f"no weights file {weights}; pass None, 'imagenet' or a state dict's path")
    return Path(weights)


def weights_digest(weights: str | Path | None) -> str:
    """What identifies weights in a cache key: `none`, `imagenet`, or the sha256 of the file.

    Examples
    --------
    >>> weights_digest(None)
    'none'
    """
    if weights is None or weights == "imagenet":
        return str(weights).lower()
    return file_digest(_weights_file(weights))


def read_saved(path: Path, remedy: str) -> Any:
    """What `torch.save` wrote to `path`, on the CPU; no code in it is run.

    The checksums are compared first, since torch compares none; files of torch before 1.6 have none.

    Raises
    ------
    ValueError : the file is damaged or of another kind; the message ends in `remedy`

    Examples
    --------
    >>> read_saved(Path("nowhere.pt"), "train again")
    Traceback (most recent call last):
    ValueError: nowhere.pt cannot be read whole and without running code (FileNotFoundError: ...); train again
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"wrong checksum of {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # there are as many ways to fail as wrong files
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise ValueError(
            f"{path} cannot be read whole and without running code ({reason}); {remedy}"
        ) from error


def _read_state(weights: str | Path, backbone: str) -> dict[str, Tensor]:
    if weights == "imagenet":
        if backbone in ("small_resnet", "paper_mnist_cnn"):
            raise ValueError(f"{backbone} has no ImageNet weights; pass weights=None or a local file")
        stock_name = {"vgg16_gap": "vgg16"}.get(backbone, backbone.removeprefix("torchvision:"))
        entry = torchvision.models.get_model_weights(stock_name)["IMAGENET1K_V1"]
        try:
            return _today(entry.get_state_dict(progress=False, check_hash=True, weights_only=True))
        except OSError as error:  # what urllib raises without a network
            raise RuntimeError(
                f"cannot fetch {entry.url} ({error}); download it elsewhere and pass weights=<local file>"
            ) from error
    path = _weights_file(weights)
    state = read_saved(path, "get it again, or save one with torch.save(model.state_dict(), path)")
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}; save torch.save(model.state_dict(), path)")
    if not all(isinstance(value, Tensor) for value in state.values()):
        found = ", ".join(map(str, state))[:80]
        raise ValueError(f"{path} holds {found}, not tensors by name; save the state dict within it alone")
    return _today(state)


def _today(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # torchvision's DenseNet files are older than their layers' names
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.", r"\1", name): value for name, value in state.items()}


def _load_state(model: Classifier, stock: nn.Module | None, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict under the classifier's names or the stock model's, but for a head of another size.

    `stock` is the torchvision model that `model` was cut from and shares its tensors with, if there is one.
    """
    own = model.state_dict(keep_vars=True)
    if "linear.weight" not in state:  # the stock model's names: the same tensors, found by identity
        names = {id(tensor): name for name, tensor in own.items()}
        stock_state = {} if stock is None else stock.state_dict(keep_vars=True)
        translate = {name: names[id(tensor)] for name, tensor in stock_state.items() if id(tensor) in names}
        state = {translate.get(name, name): tensor for name, tensor in state.items()}
        if model.name == "vgg16_gap":  # a stock VGG16 has linear layers instead of conv6
            state = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
            state |= {name: own[name].detach() for name in own if name.startswith("features.conv6.")}
    if "linear.weight" not in state or len(state["linear.weight"]) != model.num_classes:
        state |= {name: own[name].detach() for name in own if name.startswith("linear.")}
    # older files lack the batch counters, which nothing here uses
    state = {name: own[name].detach() for name in own if name.endswith("num_batches_tracked")} | state
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    misfit = [name for name in own if name in state and state[name].shape != own[name].shape]
    if missing or unexpected or misfit:
        raise ValueError(
            f"{source} does not fit {model.name}: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}, {len(misfit)} of another shape {misfit[:3]}; "
            "is it of another backbone or stride?"
        )
    model.load_state_dict(state)


def classifier(
    backbone: str,
    num_classes: int,
    weights: str | Path | None = None,
    stride: int | None = None,
    image_size: int | None = None,
    adl: bool = False,
) -> Classifier:
    """Build a classifier of the form features → pool → linear.

    Parameters
    ----------
    backbone : `small_resnet` (180 thousand parameters, for 64-pixel images), `resnet18`, `resnet50`,
        `vgg16_gap`, `mobilenet_v2`, `torchvision:NAME` for any torchvision model of this form, or
        `paper_mnist_cnn` (432 thousand parameters), whose features are one cell, since it does not pool
    num_classes : K, at least 2
    weights : None (random, from torch's global generator), `imagenet` (torchvision's IMAGENET1K_V1, which
        torchvision downloads), or a local file with a state dict of the torchvision model or of this
        classifier. A head for another number of classes is left out and stays random.
    stride : pixels per map cell; None for the backbone's own, the first of `STRIDES`. The paper's ResNet-50
        has 16 (4x4 maps at 64 pixels, 14x14 at 224): layer4 without stride, undilated. MobileNetV2 at 16 is
        dilated instead, so that pretrained filters sample what they were trained on. ResNets at 8 or 4 have a
        3x3 stem without pooling, for training on small images.
    image_size : if given, checked to leave a map of at least 2x2 cells; it decides the layers of
        `paper_mnist_cnn`, 28 pixels unless given
    adl : insert attention-based dropout at the paper's positions (`vgg16_gap`, `resnet50`)

    Raises
    ------
    ValueError : unknown backbone, impossible stride, ADL elsewhere, a file that does not fit
    FileNotFoundError : no such weights file
    RuntimeError : the pretrained weights cannot be downloaded

    Examples
    --------
    >>> model = classifier("small_resnet", num_classes=20)
    >>> model.forward_features(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 128, 8, 8])
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, was {num_classes}")
    stock_names = [f"torchvision:{name}" for name in torchvision.models.list_models(torchvision.models)]
    if backbone not in STRIDES and backbone not in stock_names:
        near = difflib.get_close_matches(backbone, [*STRIDES, *stock_names]) or list(STRIDES)
        raise ValueError(f"unknown backbone {backbone!r}; did you mean {', '.join(near)}?")
    if backbone in ("torchvision:googlenet", "torchvision:inception_v3"):
        raise ValueError(
            f"{backbone} rescales its input if pretrained; build it in torchvision, then adapt(model)"
        )
    if stride is not None and stride not in STRIDES.get(backbone, ()):
        offered = ", ".join(map(str, STRIDES.get(backbone, ()))) or "None, its own"
        raise ValueError(f"{backbone} has no stride {stride}; offered: {offered}")
    if adl and backbone not in ("vgg16_gap", "resnet50"):
        raise ValueError(f"ADL is defined for vgg16_gap and resnet50, not for {backbone}; pass adl=False")
    cell = stride or next(iter(STRIDES.get(backbone, (32,))), 1)
    if image_size is not None and image_size < 2 * cell:
        raise ValueError(
            f"image_size {image_size} leaves no 2x2 map at stride {cell}; use at least {2 * cell}"
        )

    stock: nn.Module | None = None
    if backbone == "small_resnet":
        model = _small_resnet(num_classes, cell)
    elif backbone == "vgg16_gap":
        model = _vgg16_gap(num_classes, adl)
    elif backbone == "paper_mnist_cnn":
        model = _paper_mnist_cnn(num_classes, image_size or 28)
    else:
        stock = torchvision.models.get_model(backbone.removeprefix("torchvision:"), weights=None)
        if backbone == "mobilenet_v2":
            model = _mobilenet_v2(stock, num_classes, cell)
        elif backbone in STRIDES:
            model = _resnet(stock, num_classes, cell, backbone, adl)
        else:
            model = adapt(stock)
            head = next(name for name, module in stock.named_modules() if module is model.linear)
            model.linear, model.name = nn.Linear(model.linear.in_features, num_classes), backbone
            stock.set_submodule(head, model.linear)
    if weights is not None:
        _load_state(model, stock, _read_state(weights, backbone), f"{weights}")
    return model
