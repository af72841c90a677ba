"""The data sets: readers for the layouts in which they are published, and one door to all of them.

Nothing is downloaded here. A missing data set is an error that says which command gets it.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from infocam_utils.data import minibirds
from infocam_utils.data.downloads import how_to_get
from infocam_utils.data.images import IMAGENET_MEAN, IMAGENET_STD, Geometry, ImageSet, decode, decoded
from infocam_utils.data.splits import stratified_split
from infocam_utils.data.store import data_root


class ListedImages(Dataset):
    """Image files with labels and, where the data set has them, one box each (x0 y0 x1 y1, half-open)."""

    default_size = 224
    paths: list[Path]
    labels: Tensor
    boxes: Tensor | None
    class_names: list[str]
    class_numbers: list[int]
    image_ids: Tensor
    transform: Callable[..., Any] | None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, int, tv_tensors.BoundingBoxes | None]:
        pixels, (width, height) = decode(self.paths[index])
        image = tv_tensors.Image(torch.from_numpy(pixels))
        box = (
            None
            if self.boxes is None
            else tv_tensors.BoundingBoxes(
                self.boxes[index : index + 1], format="XYXY", canvas_size=(height, width)
            )
        )
        if self.transform is not None and box is not None:
            image, box = self.transform(image, box)
        elif self.transform is not None:
            image = self.transform(image)
        return image, int(self.labels[index]), box

    def image_set(self, size: int, cache_dir: Path, limit: int | None = None) -> ImageSet:
        """All images squashed to `size` x `size` (boxes along), decoded once into `cache_dir`.

        `limit` keeps that many images, spread evenly over the list and so over the classes.
        """
        rows = spread(len(self), limit)
        images, shapes, key = decoded([self.paths[row] for row in rows], size, cache_dir)
        boxes = None
        if self.boxes is not None:
            boxes = self.boxes[rows] * (size / torch.from_numpy(shapes).float()).repeat(1, 2)
        return image_set(
            images, self.labels[rows], boxes, self.image_ids[rows], self.class_names, self.class_numbers, key
        )


class CUB(ListedImages):
    """CUB-200-2011 in its official folder layout, or any folder of that layout.

    Fewer classes, gaps in the ids, missing boxes and missing parts are fine until what is missing is needed.
    Labels are 0..K-1 in the order of the class numbers; the official numbers stay in `class_numbers`.

    Parameters
    ----------
    root : the folder with ``images.txt``, or the folder around it.
    split : "train", "test" or "all", by ``train_test_split.txt``.
    transform : torchvision v2 transform, called with image and box (with the image alone without boxes).
    need_boxes : raise now if an image has no box.

    Attributes
    ----------
    paths, labels, image_ids : of the N images, in image-id order.
    boxes : float32 (N, 4), x0 y0 x1 y1 half-open in pixels of the file, or None where some are missing.
    class_names, class_numbers : of the K classes.
    """

    default_size = 256

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transform: Callable[..., Any] | None = None,
        need_boxes: bool = False,
    ) -> None:
        if split not in ("train", "test", "all"):
            raise ValueError(
                f"split must be 'train', 'test' or 'all', got {split!r}; to hold images out of "
                "the training split use stratified_split, for the paper's halves half_split"
            )
        self.root, self.transform = _folder(root, "images.txt"), transform
        names, label_file = _table(self.root / "classes.txt", 1), self.root / "image_class_labels.txt"
        files = _table(self.root / "images.txt", 1)
        numbers = _table(label_file, 1)
        chosen = sorted(files)
        if split != "all":
            trains = _table(self.root / "train_test_split.txt", 1)
            _require(trains, chosen, self.root / "train_test_split.txt")
            chosen = [image for image in chosen if (trains[image][0] == "1") == (split == "train")]
        if not chosen:
            raise ValueError(f"{self.root} has no images in split {split!r}")
        _require(numbers, chosen, label_file)
        self.class_numbers = sorted(names)
        label_of = {str(number): label for label, number in enumerate(self.class_numbers)}
        unnamed = sorted({numbers[image][0] for image in chosen} - set(label_of))
        if unnamed:
            raise ValueError(f"{self.root / 'classes.txt'} does not name classes {', '.join(unnamed[:5])}")
        self.class_names = [names[number][0] for number in self.class_numbers]
        self.paths = [self.root / "images" / files[image][0] for image in chosen]
        self.labels = torch.tensor([label_of[numbers[image][0]] for image in chosen])
        self.image_ids = torch.tensor(chosen)
        self.boxes = self._read_boxes(need_boxes)

    def _read_boxes(self, needed: bool) -> Tensor | None:
        path = self.root / "bounding_boxes.txt"
        table = _table(path, 4) if needed or path.exists() else {}
        ids = self.image_ids.tolist()
        if needed:
            _require(table, ids, path)
        elif any(image not in table for image in ids):
            return None
        try:
            corner, extent = torch.tensor([[float(v) for v in table[image]] for image in ids]).split(2, dim=1)
        except ValueError as error:
            raise ValueError(f"{path} has a box that is not four numbers: {error}") from error
        if not bool((extent > 0).all()):
            first = torch.nonzero(~(extent > 0).all(1)).flatten()[0]
            raise ValueError(
                f"{path} gives image {ids[first]} a box of width and height "
                f"{extent[first].tolist()}; both must be positive"
            )
        return torch.cat([corner, corner + extent], dim=1)

    @property
    def parts(self) -> Tensor:
        """Part locations, float32 (N, P, 3): x, y in pixels of the file, and 1 where visible, else 0."""
        path = self.root / "parts" / "part_locs.txt"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is not there: this folder has no part locations; "
                "use one that has them, or do without parts"
            )
        rows = np.loadtxt(path, dtype=np.float64, ndmin=2)
        number = {image: row for row, image in enumerate(self.image_ids.tolist())}
        located = torch.full((len(self), int(rows[:, 1].max()), 3), float("nan"))
        for image, part, x, y, visible in rows:
            if int(image) in number:
                located[number[int(image)], int(part) - 1] = torch.tensor([x, y, visible])
        if bool(located.isnan().any()):
            lacking = self.image_ids[located.isnan().flatten(1).any(1)].tolist()
            raise ValueError(f"{path} lacks parts of {len(lacking)} images, the first with id {lacking[0]}")
        return located


class TinyImageNet(ListedImages):
    """Tiny-ImageNet in its official folder layout, or a folder with some of its classes.

    The release writes a box as its first and last pixel, x0 y0 x1 y1 inclusive; here 1 is added to x1 and
    y1, so a box that has "no width" there is one pixel wide here. Such boxes are kept: hardly any map can hit
    them, but leaving them out would change the count. Labels follow ``wnids.txt``. Grey-scale files become
    RGB. `image_ids` are positions in the list of the split.

    Parameters
    ----------
    root : the folder with ``wnids.txt``, or the folder around it.
    split : "train" or "val"; the labelled validation images serve as the test set ("test" means them too).
    transform, need_boxes : as for `CUB`.
    """

    default_size = 64

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transform: Callable[..., Any] | None = None,
        need_boxes: bool = False,
    ) -> None:
        if split not in ("train", "val", "test"):
            raise ValueError(f"split must be 'train' or 'val' (also called 'test'), got {split!r}")
        self.root, self.transform = _folder(root, "wnids.txt"), transform
        wnids = (self.root / "wnids.txt").read_text().split()
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        rows = self._train_rows(wnids) if split == "train" else self._val_rows(labels)
        if not rows:
            raise ValueError(f"{self.root} has no images in split {split!r}")
        self.paths, self.labels = [row[0] for row in rows], torch.tensor([labels[row[1]] for row in rows])
        self.image_ids = torch.arange(len(rows))
        boxless = [row[0] for row in rows if not row[2]]
        if boxless and need_boxes:
            raise ValueError(
                f"{len(boxless)} images have no box, the first is {boxless[0]}: "
                f"<wnid>_boxes.txt is missing in its folder; get the official archive"
            )
        self.boxes = None if boxless else self._half_open(rows)
        self.class_numbers = list(range(1, len(wnids) + 1))
        words_file = self.root / "words.txt"
        words = (
            dict(line.split("\t", 1) for line in words_file.read_text().splitlines() if "\t" in line)
            if words_file.exists()
            else {}
        )
        self.class_names = [words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]

    def _train_rows(self, wnids: list[str]) -> list[tuple[Path, str, list[str]]]:
        rows: list[tuple[Path, str, list[str]]] = []
        for wnid in wnids:
            images, listing = (self.root / "train" / wnid / part for part in ("images", f"{wnid}_boxes.txt"))
            if listing.exists():
                rows += [(images / line[0], wnid, line[1:]) for line in _tabbed(listing, 5)]
            elif images.is_dir():
                rows += [(path, wnid, []) for path in sorted(images.iterdir())]
            else:
                raise FileNotFoundError(
                    f"{images} is not there, but wnids.txt names its class; unpack the archive again"
                )
        return rows

    def _val_rows(self, labels: dict[str, int]) -> list[tuple[Path, str, list[str]]]:
        listing = self.root / "val" / "val_annotations.txt"
        if not listing.exists():
            raise FileNotFoundError(f"{listing} is not there; unpack the archive again")
        rows = [(self.root / "val" / "images" / name, wnid, box) for name, wnid, *box in _tabbed(listing, 6)]
        strange = sorted({row[1] for row in rows} - set(labels))
        if strange:
            raise ValueError(f"{listing} has classes that wnids.txt lacks: {', '.join(strange[:5])}")
        return rows

    def _half_open(self, rows: list[tuple[Path, str, list[str]]]) -> Tensor:
        boxes = torch.tensor([[float(value) for value in row[2]] for row in rows])
        reversed_ = torch.nonzero((boxes[:, 2:] < boxes[:, :2]).any(1)).flatten().tolist()
        if reversed_:
            raise ValueError(
                f"the box of {rows[reversed_[0]][0].name} ends before it begins: "
                f"{boxes[reversed_[0]].tolist()}; expected x0 y0 x1 y1 inclusive"
            )
        return boxes + torch.tensor([0.0, 0.0, 1.0, 1.0])


def box_transform(geometry: Geometry, train: bool = False) -> v2.Compose:
    """The torchvision v2 transform of `geometry` for images with boxes: what `prepare` does, per image.

    Squash, crop (centred, or random with a flip for training), float32, ImageNet mean and standard deviation.
    Boxes are carried along and clipped to the crop.

    Examples
    --------
    >>> image = tv_tensors.Image(torch.zeros(3, 40, 80, dtype=torch.uint8))
    >>> box = tv_tensors.BoundingBoxes([[0, 0, 40, 40]], format="XYXY", canvas_size=(40, 80))
    >>> box_transform(Geometry(32, 16))(image, box)[1].tolist()
    [[0, 0, 8, 16]]
    """
    if geometry.resize is None:
        raise ValueError("files have different sizes: give Geometry a resize, in pixels")
    resized, side = geometry.sizes(geometry.resize)
    crop = [v2.RandomCrop(side), v2.RandomHorizontalFlip()] if train else [v2.CenterCrop(side)]
    return v2.Compose(
        [
            v2.Resize((resized, resized), antialias=True),
            *crop,
            v2.ClampBoundingBoxes(clamping_mode="hard"),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def image_set(
    images: np.ndarray,
    labels: Tensor,
    boxes: Tensor | None,
    ids: Tensor,
    names: list[str],
    numbers: list[int],
    pixels_key: str | None = None,
) -> ImageSet:
    """An `ImageSet` with the key of its content; `pixels_key` stands for the pixels if they have one."""
    if pixels_key is None:
        pixels_key = hashlib.sha256(images.tobytes()).hexdigest()
    digest = hashlib.sha256(f"{pixels_key} {names} {numbers}".encode())
    for part in (labels.long(), ids.long(), boxes):
        digest.update(b"none" if part is None else part.contiguous().numpy().tobytes())
    return ImageSet(images, labels.long(), boxes, len(names), names, ids.long(), digest.hexdigest(), numbers)


def spread(count: int, limit: int | None) -> Tensor:
    """At most `limit` of `count` indices, evenly spaced, ascending."""
    return torch.arange(count) if limit is None or limit >= count else torch.arange(limit) * count // limit


def find_layout(folder: Path, marker: str) -> Path | None:
    """`folder` or the one folder directly in it that has the file `marker`."""
    return next(
        (path.parent for path in (folder / marker, *sorted(folder.glob(f"*/{marker}"))) if path.is_file()),
        None,
    )


def _folder(root: str | Path, marker: str) -> Path:
    found = find_layout(Path(root), marker)
    if found is None:
        raise FileNotFoundError(
            f"{root} has no {marker}, nor has a folder directly in it: not a whole data "
            "set of the CUB layout (images.txt) or Tiny-ImageNet layout (wnids.txt)"
        )
    return found


def _table(path: Path, columns: int) -> dict[int, list[str]]:
    """A file of lines "<id> <value> ..." as id -> values."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is needed and not there; get the official archive or write it")
    table: dict[int, list[str]] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        # the last value may hold spaces: a file name
        values = line.split(maxsplit=columns)
        if not values:
            continue
        if len(values) != columns + 1 or not values[0].isdigit():
            raise ValueError(f"{path}, line {number}: expected a number and {columns} values, got {line!r}")
        table[int(values[0])] = values[1:]
    return table


def _tabbed(path: Path, columns: int) -> list[list[str]]:
    rows = [line.split("\t") for line in path.read_text().splitlines() if line.strip()]
    for number, row in enumerate(rows, start=1):
        if len(row) != columns or not all(value.strip().isdigit() for value in row[-4:]):
            raise ValueError(
                f"{path}, line {number}: expected {columns} values with tabs between, the last "
                f"four a box of whole pixels, got {row}"
            )
    return rows


def _require(table: dict[int, list[str]], images: list[int], path: Path) -> None:
    missing = [image for image in images if image not in table]
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} of {len(images)} images, first id {missing[0]}")


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
