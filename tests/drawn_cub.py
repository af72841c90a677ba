"""Drawn birds written as a folder in the layout of CUB-200-2011, for tests of what reads such folders."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from infocam_utils.data import minibirds


def write_cub_layout(
    folder: Path,
    train_per_class: int | Sequence[int],
    test_per_class: int | Sequence[int],
    seed: int,
    num_classes: int = 20,
    size: int = 64,
    canvas: tuple[int, int] | None = None,
) -> minibirds.Birds:
    """Write the birds and return them: image i, numbered from 1 by class and training images first.

    Beyond 20 classes the same kinds come again in another tint. On a `canvas` (width, height) a picture and
    its box are stretched. The pictures are JPEGs of full colour resolution, because the colours carry the
    information.
    """
    counts = [
        [given] * num_classes if isinstance(given, int) else list(given)
        for given in (train_per_class, test_per_class)
    ]
    each = torch.tensor(counts)  # (2, K)
    labels = torch.arange(num_classes).repeat_interleave(each.sum(0))
    kinds = min(num_classes, 20)
    birds = minibirds.draw(labels % kinds, seed, num_classes=kinds, size=size)
    names = minibirds.class_names(kinds)
    folders = [
        f"{y + 1:03d}.{names[y % kinds]}" + f"_{y // kinds}" * (y >= kinds) for y in range(num_classes)
    ]
    files = [f"{folders[y]}/{i + 1:06d}.jpg" for i, y in enumerate(labels.tolist())]
    stretch = np.ones(2) if canvas is None else np.array(canvas) / size
    for file, y, pixels in zip(files, labels.tolist(), birds.images, strict=True):
        (folder / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        again = y // kinds  # 0 to 9, in bits: red, green, and two of blue
        tint = 1 - np.array([0.4 * (again % 2), 0.4 * (again // 2 % 2), 0.3 * (again // 4)])
        coloured = (pixels.transpose(1, 2, 0) * tint).round().astype(np.uint8)
        picture = Image.fromarray(np.ascontiguousarray(coloured))
        picture = picture if canvas is None else picture.resize(canvas, Image.Resampling.BILINEAR)
        picture.save(folder / "images" / file, quality=95, subsampling=0)
    train = torch.cat(
        [torch.arange(total) < first for first, total in zip(each[0], each.sum(0), strict=True)]
    )
    boxes = birds.boxes.numpy() * np.tile(stretch, 2)
    tables = {
        "classes": folders,
        "images": files,
        "image_class_labels": [f"{y + 1}" for y in labels.tolist()],
        "train_test_split": [f"{int(of_train)}" for of_train in train],
        "bounding_boxes": [
            f"{x0:.1f} {y0:.1f} {x1 - x0:.1f} {y1 - y0:.1f}" for x0, y0, x1, y1 in boxes.tolist()
        ],
    }
    for name, lines in tables.items():
        numbered = [f"{number} {line}\n" for number, line in enumerate(lines, start=1)]
        (folder / f"{name}.txt").write_text("".join(numbered))
    return birds
