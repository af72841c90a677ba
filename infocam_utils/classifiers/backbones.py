"""Backbones for classifiers of the form features → global average pooling → one linear layer.

The small residual network of the drawn birds, the paper's VGG16-GAP and ResNet-50, MobileNetV2, and any
torchvision model of this form, with their weights; and the paper's MNIST network, which is of another.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from infocam_utils.classifiers.adapt import Classifier, adapt


def _weights_file(weights: str | Path) -> Path:
    if not Path(weights).is_file():
        raise FileNotFoundError(f"no weights file {weights}; pass None, 'imagenet' or a state dict's path")
    return Path(weights)


def read_state(weights: str | Path, backbone: str) -> dict[str, Tensor]:
    """Read the state dict of `weights` (see `classifier`), with the names of today's torchvision.

    Raises
    ------
    FileNotFoundError, ValueError : no such file, or not a state dict
    RuntimeError : the pretrained weights cannot be downloaded

    Examples
    --------
    >>> read_state("nowhere.pt", "resnet18")
    Traceback (most recent call last):
    FileNotFoundError: no weights file nowhere.pt; pass None, 'imagenet' or a state dict's path
    """
    if weights == "imagenet":
        stock_name = {"vgg16_gap": "vgg16"}.get(backbone, backbone.removeprefix("torchvision:"))
        if backbone == "small_resnet":
            raise ValueError("small_resnet has no ImageNet weights; pass weights=None or a local file")
        entry = torchvision.models.get_model_weights(stock_name)["IMAGENET1K_V1"]
        try:
            return _today(entry.get_state_dict(progress=False, check_hash=True, weights_only=True))
        except OSError as error:  # what urllib raises without a network
            raise RuntimeError(
                f"cannot fetch {entry.url} ({error}); download it elsewhere and pass weights=<local file>"
            ) from error
    path = _weights_file(weights)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load fails in as many ways as there are wrong files
        raise ValueError(
            f"{path} is not a state dict that can be read without running code ({type(error).__name__}); "
            "save one with torch.save(model.state_dict(), path)"
        ) from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}; save torch.save(model.state_dict(), path)")
    if not all(isinstance(value, Tensor) for value in state.values()):
        found = ", ".join(map(str, state))[:80]
        raise ValueError(f"{path} holds {found}, not tensors by name; save the state dict within it alone")
    return _today(state)


def _today(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # torchvision's DenseNet files are older than their layers' names
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.", r"\1", name): value for name, value in state.items()}


def load_state(model: Classifier, stock: nn.Module | None, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict under the classifier's names or the stock model's, but for a head of another size.

    Parameters
    ----------
    model : the classifier, changed in place
    stock : the torchvision model it was cut from, which shares its tensors; None if there was none
    state : by name
    source : what the message calls it

    Raises
    ------
    ValueError : tensors missing, unexpected or of another shape

    Examples
    --------
    >>> model = Classifier(nn.Conv2d(3, 4, 3), nn.Linear(4, 2))
    >>> load_state(model, None, Classifier(nn.Conv2d(3, 4, 3), nn.Linear(4, 9)).state_dict(), "a file")
    >>> model.num_classes
    2
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


def weights_digest(weights: str | Path | None) -> str:
    """What identifies weights in a cache key: `none`, `imagenet`, or the sha256 of the file.

    Examples
    --------
    >>> weights_digest(None)
    'none'
    """
    if weights is None or weights == "imagenet":
        return str(weights).lower()
    with _weights_file(weights).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


STRIDES: dict[str, tuple[int, ...]] = {  # the first is the backbone's own
    "small_resnet": (8, 4),
    "resnet18": (32, 16, 8, 4),
    "resnet50": (32, 16, 8, 4),
    "vgg16_gap": (16,),
    "mobilenet_v2": (32, 16),
}


class ADL(nn.Module):
    """Attention-based dropout layer (PAPER.md section 3.3): hides or stresses the strongest positions.

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
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.skip = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def _small_resnet(num_classes: int, stride: int) -> Classifier:
    last = stride // 4  # the paper's drawn 64-pixel birds: 8x8 maps at stride 8, 16x16 at stride 4
    features = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        _Residual(16, 32, 2), _Residual(32, 32, 1), _Residual(32, 64, last), _Residual(64, 64, 1),
        nn.Conv2d(64, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(inplace=True),
    )  # fmt: skip
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
        `vgg16_gap`, `mobilenet_v2`, or `torchvision:NAME` for any torchvision model of this form
    num_classes : K, at least 2
    weights : None (random, from torch's global generator), `imagenet` (torchvision's IMAGENET1K_V1, which
        torchvision downloads), or a local file with a state dict of the torchvision model or of this
        classifier. A head for another number of classes is left out and stays random.
    stride : pixels per map cell; None for the backbone's own, the first of `STRIDES`. The paper's ResNet-50
        has 16 (4x4 maps at 64 pixels, 14x14 at 224): layer4 without stride, undilated. MobileNetV2 at 16 is
        dilated instead, so that pretrained filters sample what they were trained on. ResNets at 8 or 4 have a
        3x3 stem without pooling, for training on small images.
    image_size : if given, checked to leave a map of at least 2x2 cells
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
    cell = stride or STRIDES.get(backbone, (32,))[0]
    if image_size is not None and image_size < 2 * cell:
        raise ValueError(
            f"image_size {image_size} leaves no 2x2 map at stride {cell}; use at least {2 * cell}"
        )

    stock: nn.Module | None = None
    if backbone == "small_resnet":
        model = _small_resnet(num_classes, cell)
    elif backbone == "vgg16_gap":
        model = _vgg16_gap(num_classes, adl)
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
        load_state(model, stock, read_state(weights, backbone), f"{weights}")
    return model


def paper_mnist_cnn(num_classes: int = 10, in_channels: int = 1, image_size: int = 28) -> nn.Sequential:
    """The paper's MNIST network (PAPER.md section 2.1), 431 thousand parameters; no pooling head, so no maps.

    Examples
    --------
    >>> paper_mnist_cnn()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    side = ((image_size - 4) // 2 - 4) // 2
    if side < 1:
        raise ValueError(f"image_size must be at least 16, was {image_size}; enlarge the images")
    return nn.Sequential(
        nn.Conv2d(in_channels, 20, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(50 * side * side, 500), nn.ReLU(), nn.Linear(500, num_classes),
    )  # fmt: skip
