"""Images in memory: decoded once, cropped and normalised on the device.

Photographs are decoded and squashed to one size a single time into a memory-mapped uint8 array; from
there a batch is one copy, and resizing, cropping, flipping and normalising happen on the device.
`Geometry` describes that resizing and cropping once, for the pixels and for the boxes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from infocam_utils.data.store import Draft, Store, code_digest, file_digest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size with their labels and boxes.

    Attributes
    ----------
    images : uint8 array (N, 3, S, S), possibly a read-only memory map.
    labels : int64 (N,), values in 0..num_classes-1.
    boxes : float32 (N, 4) or None; x0 y0 x1 y1, half-open, in pixels of the stored S x S images.
    class_names : K names, in label order.
    ids : int64 (N,), the data set's own number of each image.
    key : hash of the content, for cache keys.
    class_numbers : the data set's own K class numbers, in label order (for CUB the folder numbers, by
        which the imbalance rule goes); 1..K unless given.

    >>> grey = np.full((4, 3, 8, 8), 127, dtype=np.uint8)
    >>> four = ImageSet(grey, torch.tensor([0, 1, 0, 1]), None, 2, ["a", "b"], torch.arange(4), "demo")
    >>> len(four.subset([1, 3])), four.subset([1, 3]).labels.tolist(), four.class_numbers
    (2, [1, 1], [1, 2])
    """

    images: np.ndarray
    labels: Tensor
    boxes: Tensor | None
    num_classes: int
    class_names: list[str]
    ids: Tensor
    key: str
    class_numbers: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.class_numbers:
            object.__setattr__(self, "class_numbers", list(range(1, self.num_classes + 1)))
        _check_images(self.images, np.uint8)
        counts = [len(each) for each in (self.images, self.labels, self.ids, self.boxes) if each is not None]
        if len({*counts}) > 1:
            raise ValueError(f"images, labels, ids and boxes must be equally many, got {counts}")
        counts = [self.num_classes, len(self.class_names), len(self.class_numbers)]
        if len({*counts}) > 1:
            raise ValueError(f"num_classes, class_names and class_numbers must agree, got {counts}")
        if len(self) and not 0 <= self.labels.min() <= self.labels.max() < self.num_classes:
            low, high = int(self.labels.min()), int(self.labels.max())
            raise ValueError(f"labels must lie in 0..{self.num_classes - 1}, got {low}..{high}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        """Side S of the stored images, in pixels."""
        return self.images.shape[-1]

    def pixels(self, indices: Sequence[int] | Tensor | slice) -> Tensor:
        """The chosen images as a writable uint8 tensor (n, 3, S, S), copied out of the memory map."""
        rows = indices if isinstance(indices, slice) else np.asarray(indices, dtype=np.int64)
        return torch.from_numpy(np.array(self.images[rows]))

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """The images at `indices`, in that order (copied into memory), all classes kept."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        key = hashlib.sha256(self.key.encode() + rows.numpy().tobytes()).hexdigest()
        images, labels, ids = self.images[rows.numpy()], self.labels[rows], self.ids[rows]
        boxes = None if self.boxes is None else self.boxes[rows]
        return replace(self, images=images, labels=labels, boxes=boxes, ids=ids, key=key)


def _check_images(images: np.ndarray | Tensor, uint8: object) -> None:
    shape = tuple(images.shape)
    if images.dtype != uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise ValueError(f"images must be uint8 (N, 3, S, S), got {images.dtype} {shape}")


@dataclass(frozen=True)
class Geometry:
    """From a stored square image to the network's input: squash to `resize`, then crop `crop` centred.

    None keeps the size that is there. `flip` lets training mirror images; it is off for what has a reading
    direction, such as digits.

    >>> Geometry(resize=256, crop=224).boxes(torch.tensor([[0., 0., 64., 128.]]), stored_size=128)
    tensor([[  0.,   0., 112., 224.]])
    """

    resize: int | None = None
    crop: int | None = None
    flip: bool = True

    def __post_init__(self) -> None:
        if any(side is not None and side < 1 for side in (self.resize, self.crop)):
            raise ValueError(f"resize and crop must be positive numbers of pixels or None, got {self}")

    def sizes(self, stored_size: int) -> tuple[int, int]:
        """Side after resizing and side of the network's input, in pixels."""
        resized = self.resize or stored_size
        if self.crop is not None and self.crop > resized:
            raise ValueError(f"a crop of {self.crop} pixels does not fit into {resized}; raise the resize")
        return resized, self.crop or resized

    def boxes(self, boxes: Tensor, stored_size: int) -> Tensor:
        """Boxes (..., 4) of stored images in pixels of the centre crop, clipped to it.

        A box that lies wholly outside the crop ends with no area: no map can hit it.
        """
        resized, side = self.sizes(stored_size)
        return (boxes * (resized / stored_size) - crop_start(resized, side)).clamp(0, side)


def crop_start(resized: int, side: int) -> int:
    """First row and column of the centre crop, rounded as torchvision's CenterCrop does."""
    return round((resized - side) / 2)


def prepare(
    images: Tensor, geometry: Geometry, train: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """Network input from stored images: resize, crop, and ImageNet mean and standard deviation.

    Images are uint8 (B, 3, S, S) on any device, where the work is done; the result is float32
    (B, 3, crop, crop). Evaluation takes the centre crop, training a random crop and a random flip, drawn
    from a CPU `generator` so that a seed means the same on every device.

    >>> prepare(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), Geometry(24, 16)).shape
    torch.Size([2, 3, 16, 16])
    """
    _check_images(images, torch.uint8)
    resized, side = geometry.sizes(images.shape[-1])
    pixels = images
    if resized != images.shape[-1]:
        # antialias matters when shrinking; the uint8 range is kept by bilinear weights
        pixels = interpolate(images.float(), size=(resized, resized), mode="bilinear", antialias=True)
    if train:
        pixels = _random_crop_and_flip(pixels, side, geometry.flip, generator)
    else:
        start = crop_start(resized, side)
        pixels = pixels[..., start : start + side, start : start + side]
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).mul_(255)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=images.device).mul_(255)[:, None, None]
    return pixels.float().sub_(mean).div_(std)  # in place: what is float here was made here


def _random_crop_and_flip(pixels: Tensor, side: int, flip: bool, generator: torch.Generator | None) -> Tensor:
    """Each image's square of `side` from a random start, half of them mirrored if `flip`."""
    room = pixels.shape[-1] - side
    starts = torch.randint(0, room + 1, (2, len(pixels)), generator=generator)
    flipped = torch.rand(len(pixels), generator=generator) < (0.5 if flip else 0.0)
    if room and len(pixels):
        # slices are views and stacking them is one copy: five times faster on a CPU than one gather
        places = zip(pixels, *starts.tolist(), strict=True)
        pixels = torch.stack([image[:, y : y + side, x : x + side] for image, y, x in places])
    pixels = pixels[..., :side, :side]  # of no images
    return torch.where(flipped.to(pixels.device)[:, None, None, None], pixels.flip(-1), pixels)


def decode(path: str | Path, size: int | None = None) -> tuple[np.ndarray, tuple[int, int]]:
    """One image file as RGB uint8 (3, H, W), squashed to `size` x `size` if given, and its (width, height).

    Grey-scale, palette and CMYK images become RGB; transparent pixels show white, not the colour that is
    hidden in them. Orientation tags are not followed, so boxes stay in the stored pixels.

    Raises
    ------
    FileNotFoundError
        When the file is missing.
    ValueError
        With the file's name when it is unreadable, truncated, or has more than 8 bits a channel.
    """
    with _naming(path), Image.open(path) as image:
        shape = image.size
        if image.mode.startswith(("I", "F")):
            raise ValueError(
                f"{path} has more than 8 bits a channel (mode {image.mode}), and nothing says which of its "
                "values is white; scale them to 0..255 and save the image with 8 bits"
            )
        rgb = image.convert("RGBA" if image.has_transparency_data else "RGB")
        if rgb.mode == "RGBA":
            rgb = Image.alpha_composite(Image.new("RGBA", shape, "white"), rgb).convert("RGB")
        if size is not None and shape != (size, size):
            rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1)), shape


@contextlib.contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Let every trouble with a file name it and say what to do."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is named in the data set's lists but is not there; unpack the archive again"
        ) from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be decoded ({error}); get or unpack the data set again") from error


def decoded(paths: Sequence[Path], size: int, store: Store) -> tuple[np.ndarray, np.ndarray, str]:
    """All files squashed to `size`, decoded once: images, shapes and key.

    Images are a read-only memory map of the store, uint8 (N, 3, size, size); shapes the files' own widths and
    heights, int64 (N, 2); the key a sha256 over `size` and the files' content in their order. Names, places
    and times do not count, so a copy is not decoded again and an edited file is.
    """
    # hashlib and Pillow release the interpreter lock while they work, so threads are enough
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        key = hashlib.sha256(f"{size}\n".encode() + b"".join(pool.map(_digest, paths))).hexdigest()

        def make(draft: Draft) -> None:
            images = draft.empty("images", (len(paths), 3, size, size), np.uint8)
            shapes = draft.empty("shapes", (len(paths), 2), np.int64)

            def fill(index: int) -> None:
                images[index], shapes[index] = decode(paths[index], size)

            list(pool.map(fill, range(len(paths))))  # a failure cancels what has not begun

        arrays = store.get("images", {"content": key, "code": code_digest("data.images")}, make)
    return arrays["images"], np.array(arrays["shapes"]), key


def _digest(path: Path) -> bytes:
    with _naming(path):
        return bytes.fromhex(file_digest(path))
