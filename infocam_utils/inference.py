"""Logits and pooled features of many images: batched, on the best device, cached in pieces."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from infocam_utils import images as images_module
from infocam_utils import models as models_module
from infocam_utils import pooled as pooled_module
from infocam_utils.images import Geometry, ImageSet, prepare
from infocam_utils.models import Classifier, evaluation_mode
from infocam_utils.storage import cached, fingerprint, report_progress

PIECE = 10_000  # images whose features are cached in one file: an interrupt loses at most these
CPU_PIXELS, GPU_PIXELS = 400_000, 12_800_000  # input pixels per batch unless told otherwise


def quiet_fabric() -> None:
    """Keep Lightning Fabric from announcing processes and precision on stderr, in notebooks above all."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


@contextmanager
def evaluating(model: nn.Module, accelerator: str = "auto") -> Iterator[torch.device]:
    """The model on the best device, in evaluation mode, without gradients; afterwards as it was.

    Its convolutions are laid out channels last, a quarter faster for MobileNetV2 on a CPU; they stay so.

    >>> model = nn.Linear(2, 2)
    >>> with evaluating(model, "cpu") as device:
    ...     (device.type, model.training)
    ('cpu', False)
    >>> model.training
    True
    """
    home = next(model.parameters()).device
    quiet_fabric()
    device = Fabric(accelerator=accelerator, devices=1).device
    try:
        with evaluation_mode(model), torch.no_grad():
            model.to(device).to(memory_format=torch.channels_last)
            yield device
    finally:
        model.to(home)


def predict(
    model: nn.Module,
    images: ImageSet,
    *,
    geometry: Geometry,
    batch_size: int | None = None,
    accelerator: str = "auto",
) -> Tensor:
    """Logits (N, K) float32 on the CPU, in the order of `images`, from the centre crop of `geometry`.

    `batch_size` follows the input's size unless given: on a CPU large batches are slow, since the memory of
    their maps is returned to the system and cleared again in every layer.

    Raises
    ------
    ValueError
        For an empty set of images.

    >>> import numpy as np
    >>> pixels, number = np.zeros((5, 3, 8, 8), dtype=np.uint8), torch.arange(5)
    >>> five = ImageSet(pixels, number, None, 5, list("abcde"), number, "example")
    >>> predict(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), five, geometry=Geometry(crop=4)).shape
    torch.Size([5, 2])
    """
    with evaluating(model, accelerator) as device:
        return _forward(model, images, range(len(images)), geometry, batch_size, device)


def pooled_features(
    model: Classifier,
    images: ImageSet,
    *,
    geometry: Geometry,
    batch_size: int | None = None,
    accelerator: str = "auto",
    cache_dir: Path | None = None,
) -> Tensor:
    """What the linear layer sees, (N, C) float32 on the CPU: made once and cached.

    The cache is keyed by the images, the network's layers and weights below the linear layer, the geometry
    and the code, and written 10,000 images at a time: a long run that is interrupted goes on where it was.

    Raises
    ------
    ValueError
        For an empty set of images.
    """
    body = nn.Sequential(model.features, model.pool)
    key = {
        "images": images.key,
        "network": model.name,
        "layers": hashlib.sha256(repr(body).encode()).hexdigest(),  # strides and dilations are not weights
        "weights": state_digest(body),
        "geometry": asdict(geometry),
        "code": fingerprint(images_module, models_module, pooled_module, Path(__file__)),
    }
    pieces = []
    for first in range(0, max(len(images), 1), PIECE):  # an empty set reaches the error of _forward
        rows = range(first, min(first + PIECE, len(images)))

        def make(rows: range = rows) -> dict[str, Tensor]:
            with evaluating(body, accelerator) as device:
                return {"features": _forward(body, images, rows, geometry, batch_size, device)}

        where = {**key, "rows": [rows.start, rows.stop]}
        pieces.append(cached("features", where, make, cache_dir)["features"])
        report_progress(f"features of {model.name}", rows.stop, len(images))
    return torch.cat(pieces)


def state_digest(module: nn.Module) -> str:
    """sha256 over names and values of all parameters and buffers, for cache keys.

    >>> layer = nn.Linear(2, 2)
    >>> before = state_digest(layer)
    >>> nn.init.zeros_(layer.bias) is layer.bias and state_digest(layer) == before
    False
    """
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _forward(
    module: nn.Module,
    images: ImageSet,
    rows: range,
    geometry: Geometry,
    batch_size: int | None,
    device: torch.device,
) -> Tensor:
    if not rows:
        raise ValueError("there are no images; check the split and the classes asked for")
    if batch_size is None:
        budget = CPU_PIXELS if device.type == "cpu" else GPU_PIXELS
        batch_size = max(1, budget // geometry.sizes(images.size)[1] ** 2)
    outputs = []
    for first in rows[::batch_size]:
        pixels = images.pixels(slice(first, min(first + batch_size, rows.stop))).to(device)
        outputs.append(module(prepare(pixels, geometry)).float().cpu())
    return torch.cat(outputs)
