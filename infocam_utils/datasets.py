"""The data sets: readers for the layouts in which they are published, and one door to all of them.

Nothing is downloaded here. A missing data set is an error that says which command gets it.
"""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infocam_utils import minibirds
from infocam_utils.downloads import how_to_get
from infocam_utils.images import ImageSet
from infocam_utils.layouts import CUB, TinyImageNet, box_transform, find_layout, image_set, spread
from infocam_utils.splits import RULES, ImbalanceRule, half_split, imbalanced_subset, stratified_split
from infocam_utils.storage import data_root

__all__ = [
    "CUB", "NAMES", "RULES", "ImbalanceRule", "TinyImageNet", "box_transform", "digits", "half_split",
    "imbalanced_subset", "load_images", "mnist", "stratified_split",
]  # fmt: skip

NAMES = ("digits", "minibirds", "mnist", "cub200", "tiny-imagenet")


def digits(split: str = "train", size: int = 32) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels enlarged to `size`; always there.

    The split is ours and fixed: 70 % of each digit train, 30 % test (scikit-learn names none).

    Examples
    --------
    >>> len(digits("train")), len(digits("test")), digits("test").images.shape[1:]
    (1258, 539, (3, 32, 32))
    """
    from sklearn.datasets import load_digits  # a second to import, and only needed here

    _check_split(split, "digits")
    table = load_digits()
    labels = torch.from_numpy(table.target).long()
    rows = stratified_split(labels, fraction=0.3, seed=0)[split == "test"]
    grey = np.round(table.images * (255 / 16)).astype(np.uint8)[rows.numpy()]
    return _grey_set(grey, labels[rows], rows, size)


def mnist(data_dir: str | Path | None = None, split: str = "train", size: int = 28) -> ImageSet:
    """MNIST's official training (60,000) or test (10,000) images, read through torchvision.

    The paper uses parts of the training images only, also for testing: see `RULES`.
    """
    from torchvision.datasets import MNIST

    _check_split(split, "mnist")
    root = data_root(data_dir) / "mnist"
    try:
        table = MNIST(root, train=split == "train", download=False)
    except RuntimeError:
        raise FileNotFoundError(f"MNIST is not under {root}. {how_to_get('mnist')}") from None
    return _grey_set(table.data.numpy(), table.targets.long(), torch.arange(len(table)), size)


def load_images(
    name: str | Path,
    split: str = "train",
    data_dir: str | Path | None = None,
    *,
    size: int | None = None,
    limit: int | None = None,
    need_boxes: bool = False,
) -> ImageSet:
    """The images of one split of a data set, decoded once and cached.

    Parameters
    ----------
    name : one of `NAMES`; or a folder, as a path or by its name under the data directory, that is in the CUB
        or the Tiny-ImageNet layout or holds a folder that is.
    split : "train" or "test" (drawn birds have "val" too).
    data_dir : where data sets and the cache lie; see `storage.data_root`.
    size : side in pixels to which images are squashed. Default: 64 for drawn birds and Tiny-ImageNet, 256 for
        CUB, 32 for digits, 28 for MNIST.
    limit : at most this many images, spread evenly over the list; drawn birds: the first ones.
    need_boxes : raise if the set has no boxes.

    Raises
    ------
    FileNotFoundError
        The set is not there; the message says which command gets it, its size and its licence.
    ValueError
        Unknown name, split or layout, or a file that cannot be decoded.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be a positive number of images or None, got {limit}")
    root = data_root(data_dir)
    if name in ("digits", "mnist"):
        small = digits(split, size or 32) if name == "digits" else mnist(data_dir, split, size or 28)
        if need_boxes:
            raise ValueError(f"{name} has no boxes; use minibirds, cub200 or tiny-imagenet")
        return small if limit is None else small.subset(spread(len(small), limit))
    if name == "minibirds":
        return _drawn_birds(split, data_dir, size or 64, limit)
    folder = root / name if (root / name).is_dir() else Path(name)
    if not folder.is_dir():
        if name in NAMES:
            raise FileNotFoundError(f"{name} is not under {root}. {how_to_get(str(name))}")
        near = difflib.get_close_matches(str(name), NAMES, n=1)
        raise FileNotFoundError(
            f"no data set {str(name)!r}: neither a folder, nor under {root}, nor one of "
            f"{', '.join(NAMES)}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    reader = TinyImageNet if find_layout(folder, "wnids.txt") else CUB
    listed = reader(folder, split, need_boxes=need_boxes)
    return listed.image_set(size or listed.default_size, root / "cache", limit)


def _drawn_birds(split: str, data_dir: str | Path | None, size: int, limit: int | None) -> ImageSet:
    plan = {"train": (18_000, 0), "val": (2_000, 1), "test": (2_000, 2)}  # how many, seed
    if split not in plan:
        raise ValueError(f"split of minibirds must be one of {', '.join(plan)}, got {split!r}")
    count, seed = plan[split]
    birds = minibirds.cached_birds(min(limit or count, count), seed, data_dir, size=size)
    images = np.asarray(birds.images)
    names = minibirds.class_names()
    return image_set(
        images,
        birds.labels,
        birds.boxes.float(),
        torch.arange(len(images)),
        names,
        list(range(1, len(names) + 1)),
    )


def _grey_set(grey: np.ndarray, labels: Tensor, ids: Tensor, size: int) -> ImageSet:
    """Digits (N, H, W) uint8 as an `ImageSet`, the one channel three times."""
    if grey.shape[-1] != size:
        grey = np.stack(
            [np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BILINEAR)) for one in grey]
        )
    images = np.repeat(grey[:, None], 3, axis=1)
    return image_set(images, labels, None, ids, [str(digit) for digit in range(10)], list(range(10)))


def _check_split(split: str, name: str) -> None:
    if split not in ("train", "test"):
        raise ValueError(
            f"split of {name} must be 'train' or 'test', got {split!r}; "
            "to hold images out of the training split use stratified_split"
        )
