"""A page that draws CAM beside infoCAM: the features of a few images and a head's weights are in it.

No kernel, no network and no other file: a browser multiplies features and weights as the gauge slider moves.
"""

from __future__ import annotations

import base64
import html
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from IPython.display import HTML
from PIL import Image
from torch import Tensor, nn

from infocam_utils.cam import with_common_vector
from infocam_utils.data.store import atomic_write, output_root

PAGE = Path(__file__).with_suffix(".html")
ROOM = 130_000  # bytes of features, a third more as text: the page stays below 300 KB


def payload(
    pictures: Tensor,
    features: Tensor,
    head: nn.Linear,
    labels: Sequence[int],
    boxes: Tensor,
    names: Sequence[str],
    threshold: float,
) -> dict[str, Any]:
    """What the page knows: of the first of N images as many as `ROOM` bytes of features hold, one at least.

    Parameters
    ----------
    pictures : (N, 3, H, W) uint8
    features : (N, C, h, w), kept in 256 steps from each image's smallest to its largest
    head : the linear layer (K, C) behind their mean
    labels, boxes : (N,) and (N, 4) x0 y0 x1 y1 in pixels of the pictures
    names : of the classes
    threshold : share of a map's range at which the page starts

    >>> one = payload(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.ones(1, 2, 2, 2), nn.Linear(2, 3),
    ...               [0], torch.tensor([[0.0, 0.0, 4.0, 4.0]]), ["a", "b", "c"], 0.3)
    >>> one["shape"], one["images"][0]["box"]
    ([2, 2, 2], [0.0, 0.0, 4.0, 4.0])
    """
    images = []
    count = max(1, min(len(pictures), ROOM // features[0].numel()))
    for i in range(count):
        maps, jpeg = features[i].float(), io.BytesIO()
        Image.fromarray(pictures[i].permute(1, 2, 0).numpy()).save(jpeg, format="jpeg", quality=90)
        low, high = float(maps.min()), float(maps.max())
        scale = (high - low) / 255 or 1.0
        steps = ((maps - low) / scale).round().to(torch.uint8)
        images.append(
            {
                "picture": _text(jpeg.getvalue()),
                "features": _text(steps.numpy().tobytes()),
                "low": low,
                "scale": scale,
                "label": int(labels[i]),
                "box": [float(v) for v in boxes[i]],
            }
        )
    vector = with_common_vector(head, 1.0).weight[0] - head.weight[0]
    weights = {"weight": head.weight, "bias": head.bias, "vector": vector}
    return {
        "images": images,
        "shape": list(features.shape[1:]),
        "side": pictures.shape[-1],
        **{name: _text(value.detach().float().numpy().tobytes()) for name, value in weights.items()},
        "names": [name.replace("_", " ") for name in names],
        "threshold": threshold,
    }


def page(known: dict[str, Any]) -> str:
    """The page as one HTML text."""
    data = json.dumps(known, ensure_ascii=False).replace("</", "<\\/")
    return PAGE.read_text(encoding="utf-8").replace("/*DATA*/null", data)


def save(known: dict[str, Any], name: str, output_dir: str | Path | None = None) -> HTML:
    """Write ``<out>/figures/<name>.html``; the page in a frame, for a notebook to show."""
    text = page(known)
    atomic_write(output_root(output_dir) / "figures" / f"{name}.html", text)
    inside, style = html.escape(text, quote=True), "width: 100%; height: 62rem; border: 0"
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # IPython recommends an address, which srcdoc has none of
        return HTML(f'<iframe srcdoc="{inside}" title="CAM beside infoCAM" style="{style}"></iframe>')


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
