"""Drawn birds written as a folder in the layout of CUB-200-2011, for tests of what reads such folders."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from infocam_utils.data import minibirds


def write_cub_layout(
    folder: Path, train_per_class: int, test_per_class: int, seed: int, num_classes: int = 20, size: int = 64
) -> minibirds.Birds:
    """Write the birds and return them: image i, numbered from 1 by class and training images first.

    The pictures are JPEGs of full colour resolution, because the colours carry the information.
    """
    per_class = train_per_class + test_per_class
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    birds = minibirds.draw(labels, seed, num_classes=num_classes, size=size)
    folders = [f"{y + 1:03d}.{name}" for y, name in enumerate(minibirds.class_names(num_classes))]
    files = [f"{folders[y]}/{i + 1:06d}.jpg" for i, y in enumerate(labels.tolist())]
    for file, pixels in zip(files, birds.images, strict=True):
        (folder / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        picture.save(folder / "images" / file, quality=95, subsampling=0)
    tables = {
        "classes": folders,
        "images": files,
        "image_class_labels": [f"{y + 1}" for y in labels.tolist()],
        "train_test_split": [f"{i % per_class < train_per_class:d}" for i in range(len(labels))],
        "bounding_boxes": [
            f"{x0:.1f} {y0:.1f} {x1 - x0:.1f} {y1 - y0:.1f}" for x0, y0, x1, y1 in birds.boxes.tolist()
        ],
    }
    for name, lines in tables.items():
        numbered = [f"{number} {line}\n" for number, line in enumerate(lines, start=1)]
        (folder / f"{name}.txt").write_text("".join(numbered))
    return birds
