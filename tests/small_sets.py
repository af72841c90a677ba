"""Small folders in the published layouts, written by tests."""

from pathlib import Path

import numpy as np
from PIL import Image

CUB_IDS = {3: (1, "a"), 5: (1, "b"), 8: (1, "c"), 11: (4, "d"), 12: (4, "e"), 20: (4, "f")}  # id: class, file
CUB_NAMES = {1: "001.Auk", 4: "004.Wren"}


def write_image(path: Path, width: int, height: int, seed: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, format="JPEG", quality=95)


def write_cub(folder: Path, boxes: bool = True) -> Path:
    """Classes 1 and 4, ids with gaps; the third image of each class is a test image; 40 x 20 pixels."""
    root = folder / "CUB_200_2011"
    for number, (kind, file) in enumerate(CUB_IDS.values()):
        write_image(root / "images" / CUB_NAMES[kind] / f"{file}.jpg", 40, 20, number)
    # written in descending order: nothing promises that the lists are sorted
    order = sorted(CUB_IDS, reverse=True)
    table = {
        "images.txt": [f"{i} {CUB_NAMES[CUB_IDS[i][0]]}/{CUB_IDS[i][1]}.jpg" for i in order],
        "image_class_labels.txt": [f"{i} {CUB_IDS[i][0]}" for i in order],
        "classes.txt": [f"{number} {name}" for number, name in CUB_NAMES.items()],
        "train_test_split.txt": [f"{i} {int(CUB_IDS[i][1] not in 'cf')}" for i in order],
    }
    if boxes:
        table["bounding_boxes.txt"] = [f"{i} {i}.0 2.5 10.0 15.0" for i in order]
    for name, lines in table.items():
        (root / name).write_text("\n".join(lines) + "\n")
    return root


def write_tiny(folder: Path) -> Path:
    """Two classes, two training images and one validation image each; one of them grey, one box thin."""
    root = folder / "tiny-imagenet-200"
    for label, wnid in enumerate(("n02", "n01")):
        for number in range(2):
            file = root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG"
            write_image(file, 64, 64, number, "L" if number else "RGB")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(
            f"{wnid}_0.JPEG\t0\t10\t63\t62\n{wnid}_1.JPEG\t5\t5\t5\t20\n"
        )
        write_image(root / "val" / "images" / f"val_{label}.JPEG", 64, 64, 10 + label)
    (root / "wnids.txt").write_text("n02\nn01")
    (root / "words.txt").write_text("n01\tauk, seabird\nn02\twren\nn03\tnot here\n")
    (root / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn01\t1\t2\t3\t4\nval_1.JPEG\tn02\t0\t0\t63\t63\n"
    )
    return root
