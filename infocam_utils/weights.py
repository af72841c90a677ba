"""Weights of a classifier, from torchvision or a local file: read without running code, checked by name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from infocam_utils.pooled import Classifier


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
