"""Networks of the form features → global average pooling → one linear layer, by name, and their weights."""

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
from torchvision.models import vgg

from infocam_utils.classifiers.adapt import Classifier, adapt
from infocam_utils.data.images import IMAGENET_MEAN, IMAGENET_STD
from infocam_utils.data.store import file_digest

STRIDES: dict[str, tuple[int, ...]] = {  # the first is the backbone's own
    "small_resnet": (8, 4),
    "resnet18": (32, 16, 8, 4),
    "resnet50": (32, 16, 8, 4),
    "vgg16_gap": (16,),
    "mobilenet_v2": (32, 16),
    "efficientnet_lite0": (32,),  # of timm, an optional extra, as are the next two
    "efficientnet_lite1": (32,),
    "efficientnet_lite2": (32,),
    "paper_mnist_cnn": (),  # no map: one cell, whatever the image's size
}
ADL_PLACES: dict[str, dict[str, dict[str, float]]] = {  # thresholds by the layers that they follow
    "vgg16_gap": {"": {"16": 0.8, "23": 0.8, "29": 0.8}},  # pool3, pool4 and conv5_3 with its ReLU
    "resnet50": {"layer3": {"0": 0.9}, "layer4": {"0": 0.9, "2": 0.9}},
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


def _add_adl(layers: nn.Sequential, thresholds: Mapping[str, float]) -> None:
    """Put an ADL behind the named layers; all keep their names, which are those in weight files."""
    children = list(layers.named_children())
    del layers[:]
    for name, layer in children:
        layers.add_module(name, layer)
        if name in thresholds:
            layers.add_module(f"adl{name}", ADL(thresholds[name]))


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        first = _convolution(inputs, outputs, 3, stride)
        self.body = nn.Sequential(*first, nn.ReLU(inplace=True), *_convolution(outputs, outputs, 3))
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(*_convolution(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs)


def _small_resnet(num_classes: int, stride: int) -> Classifier:
    last = stride // 4  # the paper's drawn 64-pixel birds: 8x8 maps at stride 8, 16x16 at stride 4
    stem = (*_convolution(3, 16, 3, 2), nn.ReLU(inplace=True))
    blocks = (_Residual(16, 32, 2), _Residual(32, 32, 1), _Residual(32, 64, last), _Residual(64, 64, 1))
    features = nn.Sequential(*stem, *blocks, *_convolution(64, 128, 1), nn.ReLU(inplace=True))
    model = Classifier(features, nn.Linear(128, num_classes), "small_resnet")
    return model.to(memory_format=torch.channels_last)  # a third faster on CPUs


def _resnet(name: str, stock: torchvision.models.ResNet, num_classes: int, stride: int) -> Classifier:
    if stride in (16, 4):  # as in the paper: no stride in layer4, and no dilation in its place
        for layer in stock.layer4.modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
    if stride <= 8:  # a stem for small images, which cannot spare the first two halvings
        stock.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        stock.maxpool = nn.Identity()
    parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    features = nn.Sequential(OrderedDict((part, getattr(stock, part)) for part in parts))
    stock.fc = nn.Linear(stock.fc.in_features, num_classes)
    return Classifier(features, stock.fc, name)


def _vgg16_gap(num_classes: int) -> Classifier:
    # Not cut from torchvision's VGG16, of which 90 % are linear layers; the layer numbers are its own.
    features = vgg.make_layers(vgg.cfgs["D"][:-1])
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


class _FromMinusOneToOne(nn.Module):
    """Images normalised by ImageNet's mean and deviation → the range [−1, 1] of their pixels."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("scale", 2 * std, persistent=False)
        self.register_buffer("shift", 2 * mean - 1, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def _timm_model(name: str) -> nn.Module:
    try:
        import timm  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ImportError(
            f"{name} comes from timm, which is not installed: pip install 'infocam[timm]'"
        ) from None
    return timm.create_model(f"tf_{name}", pretrained=False)


def _efficientnet_lite(stock: Any, num_classes: int, name: str) -> Classifier:
    first, last = (stock.conv_stem, stock.bn1), (stock.conv_head, stock.bn2)
    features = nn.Sequential(_FromMinusOneToOne(), *first, *stock.blocks, *last)
    stock.classifier = nn.Linear(stock.num_features, num_classes)
    return Classifier(features, stock.classifier, name, dropout=0.2)


def _paper_mnist_cnn(num_classes: int, image_size: int) -> Classifier:
    side = ((image_size - 4) // 2 - 4) // 2
    if side < 1:
        raise ValueError(f"image_size must be at least 16, was {image_size}; enlarge the images")
    first = (nn.Conv2d(3, 20, 5), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2))
    dense = (nn.Flatten(), nn.Linear(50 * side * side, 500), nn.ReLU())
    features = nn.Sequential(*first, *second, *dense, nn.Unflatten(1, (-1, 1, 1)))  # to maps of one cell
    return Classifier(features, nn.Linear(500, num_classes), "paper_mnist_cnn")


def weights_digest(weights: str | Path | None) -> str:
    """What identifies weights in a cache key: `none`, `imagenet`, or the sha256 of the file.

    Examples
    --------
    >>> weights_digest(None)
    'none'
    """
    return file_digest(weights) if weights not in (None, "imagenet") else str(weights).lower()


def read_saved(path: Path, remedy: str) -> Any:
    """What `torch.save` wrote to `path`, on the CPU; no code in it is run.

    The checksums are compared first, since torch compares none.

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
        message = f"{path} cannot be read whole and without running code ({reason}); {remedy}"
        raise ValueError(message) from error


def _read_state(weights: str | Path, backbone: str) -> dict[str, Tensor]:
    if weights == "imagenet":
        if backbone in ("small_resnet", "paper_mnist_cnn"):
            raise ValueError(f"{backbone} has no ImageNet weights; pass weights=None or a local file")
        if backbone.startswith("efficientnet_lite"):
            import timm  # type: ignore[import-not-found, unused-ignore]

            try:
                return timm.create_model(f"tf_{backbone}", pretrained=True).state_dict()
            except Exception as error:  # of the hub's client, of many kinds
                remedy = "download it elsewhere and pass weights=<local file>"
                raise RuntimeError(f"timm cannot fetch tf_{backbone} ({error}); {remedy}") from error
        stock_name = {"vgg16_gap": "vgg16"}.get(backbone, backbone.removeprefix("torchvision:"))
        entry = torchvision.models.get_model_weights(stock_name)["IMAGENET1K_V1"]
        try:
            state = entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except OSError as error:  # what urllib raises without a network
            remedy = "download it elsewhere and pass weights=<local file>"
            raise RuntimeError(f"cannot fetch {entry.url} ({error}); {remedy}") from error
    elif Path(weights).is_file():
        state = read_saved(Path(weights), "get it again, or save one with torch.save(model.state_dict(), …)")
    else:
        raise FileNotFoundError(f"no weights file {weights}; pass None, 'imagenet' or a state dict's path")
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        found = ", ".join(map(str, state))[:80] if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise ValueError(f"{weights} holds {found}, not tensors by name; save the state dict within it alone")
    # torchvision's DenseNet files are older than their layers' names
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.", r"\1", name): value for name, value in state.items()}


def _load_state(model: Classifier, stock: nn.Module | None, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict under the classifier's names or the stock model's, but for a head of another size.

    `stock` is the torchvision model that `model` was cut from and shares its tensors with, if there is one.
    """
    own, random = model.state_dict(keep_vars=True), []  # prefixes of what stays as it is
    if "linear.weight" not in state:  # the stock model's names: the same tensors, found by identity
        names = {id(tensor): name for name, tensor in own.items()}
        theirs = {} if stock is None else stock.state_dict(keep_vars=True)
        ours = {name: names[id(tensor)] for name, tensor in theirs.items() if id(tensor) in names}
        state = {ours.get(name, name): tensor for name, tensor in state.items()}
        if model.name == "vgg16_gap":  # a stock VGG16 has linear layers instead of conv6
            state = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
            random.append("features.conv6.")
    if len(state.get("linear.weight", ())) != model.num_classes:
        random.append("linear.")
    state |= {name: own[name] for name in own if name.startswith(tuple(random))}
    # older files lack the batch counters, which nothing here uses
    state = {name: own[name] for name in own if name.endswith("num_batches_tracked")} | state
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = f"{str(error)[:400]}; is it of another backbone or stride?"
        raise ValueError(f"{source} does not fit {model.name}: {reason}") from error


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
        `vgg16_gap`, `mobilenet_v2`, `efficientnet_lite0` to 2 of timm (an optional extra; its padding is
        TensorFlow's), `torchvision:NAME` for any torchvision model of this form, or
        `paper_mnist_cnn` (432 thousand parameters), whose features are one cell, since it does not pool
    num_classes : K, at least 2
    weights : None (random, from torch's global generator), `imagenet` (torchvision's IMAGENET1K_V1), or a
        file with a state dict of the torchvision model or of this classifier. A head for another number of
        classes is left out and stays random.
    stride : pixels per map cell; None for the backbone's own, the first of `STRIDES`. ResNets at 16 are the
        paper's (4x4 maps at 64 pixels, 14x14 at 224): layer4 without stride, undilated; at 8 or 4 they have
        a 3x3 stem without pooling, for training on small images. MobileNetV2 at 16 is dilated instead, so
        that pretrained filters sample what they were trained on.
    image_size : if given, checked to leave a map of at least 2x2 cells; it decides the layers of
        `paper_mnist_cnn`, 28 pixels unless given
    adl : insert attention-based dropout at the paper's positions (`vgg16_gap`, `resnet50`)

    Raises
    ------
    ValueError : unknown backbone, impossible stride, ADL elsewhere, a file that does not fit
    FileNotFoundError : no such weights file
    RuntimeError : the pretrained weights cannot be downloaded
    ImportError : timm is not installed

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
        raise ValueError(f"{backbone} rescales its input; build it in torchvision, then adapt(model)")
    strides = STRIDES.get(backbone, ())
    if stride is not None and stride not in strides:
        offered = ", ".join(map(str, strides)) or "None, its own"
        raise ValueError(f"{backbone} has no stride {stride}; offered: {offered}")
    if adl and backbone not in ADL_PLACES:
        raise ValueError(f"ADL is defined for {' and '.join(ADL_PLACES)}, not for {backbone}; pass adl=False")
    cell = stride or next(iter(STRIDES.get(backbone, (32,))), 1)
    if image_size is not None and image_size < 2 * cell:
        raise ValueError(f"image_size {image_size} leaves no 2x2 map; it must be at least {2 * cell}")

    stock: nn.Module | None = None
    if backbone == "small_resnet":
        model = _small_resnet(num_classes, cell)
    elif backbone == "vgg16_gap":
        model = _vgg16_gap(num_classes)
    elif backbone == "paper_mnist_cnn":
        model = _paper_mnist_cnn(num_classes, image_size or 28)
    else:
        of_timm, name = backbone.startswith("efficientnet_lite"), backbone.removeprefix("torchvision:")
        stock = _timm_model(name) if of_timm else torchvision.models.get_model(name, weights=None)
        if backbone == "mobilenet_v2":
            model = _mobilenet_v2(stock, num_classes, cell)
        elif of_timm:
            model = _efficientnet_lite(stock, num_classes, backbone)
        elif backbone in STRIDES:
            model = _resnet(backbone, stock, num_classes, cell)
        else:
            model = adapt(stock)
            head = next(name for name, module in stock.named_modules() if module is model.linear)
            model.linear, model.name = nn.Linear(model.linear.in_features, num_classes), backbone
            stock.set_submodule(head, model.linear)
    for part, thresholds in (ADL_PLACES[backbone] if adl else {}).items():
        _add_adl(model.features.get_submodule(part), thresholds)  # type: ignore[arg-type]
    if weights is not None:
        _load_state(model, stock, _read_state(weights, backbone), f"{weights}")
    return model
