"""Drawn birds with boxes, masks and part boxes, whose information on their kind is known exactly.

`draw` makes them, `cached_birds` makes them once, `write_cub_layout` writes them as CUB-200-2011 is laid out.
What a class is, and PMI, I(X; Y) and the Bayes accuracy, is in `minibirds_design`; how a bird looks is in
`minibirds_drawing`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from infocam_utils.data import drawing as minibirds_drawing
from infocam_utils.data.drawing import PARTS, render
from infocam_utils.data.store import data_root, fingerprint, report_progress
from infocam_utils.information import Prior, check_prior

VALUES = tuple(len(colours) for colours in PARTS.values())  # (6, 6, 4, 4)
#: One row per class: values of crown, breast, wing bar and tail. Any two rows differ in two parts or more,
#: so one changed colour never makes another kind; the 33 pairs that differ in just two are the look-alikes.
#: Found by a greedy search in random order.
PROTOTYPES = np.array(
    [[4, 3, 0, 2], [5, 2, 1, 0], [1, 5, 1, 1], [2, 3, 3, 2], [1, 0, 0, 2], [0, 0, 2, 1], [2, 5, 0, 1],
     [0, 4, 1, 3], [0, 0, 0, 0], [4, 0, 0, 1], [4, 1, 1, 0], [4, 2, 1, 3], [2, 2, 3, 3], [1, 1, 3, 2],
     [0, 1, 3, 3], [5, 1, 3, 1], [1, 3, 2, 2], [5, 2, 2, 3], [3, 5, 2, 0], [2, 3, 2, 0]]
)  # fmt: skip
MAX_CLASSES = len(PROTOTYPES)


def check_design(num_classes: int, epsilon: float, prior: Prior | None) -> Tensor:
    """The prior over `num_classes`, uniform when None, as (K,) float64 that sums to 1."""
    if not 2 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"num_classes must be 2 to {MAX_CLASSES} for drawn birds, was {num_classes}")
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon must be in (0, 1], was {epsilon}; for hardly any noise pass 1e-6")
    if prior is None:
        return torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)
    prior = check_prior(prior).double()
    if len(prior) != num_classes:
        raise ValueError(f"prior has {len(prior)} entries, num_classes is {num_classes}; give one per class")
    return prior / prior.sum()


def _log_likelihood(attributes: Tensor, num_classes: int, epsilon: float) -> Tensor:
    """log p(attributes | y): (N, 4) -> (N, K) float64."""
    prototypes = torch.from_numpy(PROTOTYPES[:num_classes])
    chances = torch.tensor([epsilon / v for v in VALUES], dtype=torch.float64)
    agree = attributes[:, None, :] == prototypes  # (N, K, 4)
    return torch.where(agree, 1 - epsilon + chances, chances).log().sum(-1)


def _all_attributes() -> Tensor:
    return torch.cartesian_prod(*(torch.arange(v) for v in VALUES))  # (576, 4)


def pointwise_mutual_information(
    attributes: Tensor, prior: Prior | None = None, *, num_classes: int = MAX_CLASSES, epsilon: float = 0.2
) -> Tensor:
    """Exact PMI of every bird with every class, log p(a | y) − log Σ_j π_j p(a | j), in nats.

    Parameters
    ----------
    attributes : (N, 4) integers, as `Birds.attributes`
    prior : (K,) class shares, uniform when None

    Returns
    -------
    (N, K) float64

    Raises
    ------
    ValueError
        When attributes are not (N, 4) or out of range, or the design cannot be.

    >>> pmi = pointwise_mutual_information(torch.from_numpy(PROTOTYPES))  # each kind's own bird
    >>> bool((pmi.argmax(1) == torch.arange(20)).all())
    True
    """
    prior = check_design(num_classes, epsilon, prior)
    attributes = torch.as_tensor(attributes)
    if attributes.ndim != 2 or attributes.shape[1] != len(VALUES) or attributes.is_floating_point():
        raise ValueError(
            f"attributes must be (N, {len(VALUES)}) integers, were {tuple(attributes.shape)} of "
            f"{attributes.dtype}; pass birds.attributes"
        )
    wrong = ((attributes < 0) | (attributes >= torch.tensor(VALUES))).nonzero()
    if len(wrong):
        row, part = wrong[0].tolist()
        raise ValueError(
            f"attribute {part} ({list(PARTS)[part]}) of bird {row} is {int(attributes[row, part])}; "
            f"it must be in [0, {VALUES[part] - 1}]"
        )
    log_likelihood = _log_likelihood(attributes, num_classes, epsilon)
    return log_likelihood - (log_likelihood + prior.log()).logsumexp(1, keepdim=True)


def mutual_information(
    prior: Prior | None = None, *, num_classes: int = MAX_CLASSES, epsilon: float = 0.2
) -> float:
    """Exact I(attributes; Y) in nats, the sum over all 576 combinations; log K is its upper bound.

    >>> round(mutual_information(), 3)
    2.525
    """
    prior = check_design(num_classes, epsilon, prior)
    attributes = _all_attributes()
    joint = _log_likelihood(attributes, num_classes, epsilon).exp() * prior  # (576, K)
    pmi = pointwise_mutual_information(attributes, prior, num_classes=num_classes, epsilon=epsilon)
    return float((joint * pmi).sum())


def bayes_accuracy(
    prior: Prior | None = None,
    *,
    rule: Literal["map", "ml"] = "map",
    average: Literal["micro", "macro"] = "micro",
    num_classes: int = MAX_CLASSES,
    epsilon: float = 0.2,
) -> float:
    """Exact accuracy, in [0, 1], of the most probable ("map") or most likely ("ml") class given the colours.

    "micro" weights classes by the prior; "macro" is the mean of the classes' recalls. Classes that tie share
    the bird evenly.

    >>> round(bayes_accuracy(), 3)
    0.837
    """
    if rule not in ("map", "ml") or average not in ("micro", "macro"):
        raise ValueError(f"rule is 'map' or 'ml', average 'micro' or 'macro'; got {rule!r} and {average!r}")
    prior = check_design(num_classes, epsilon, prior)
    log_likelihood = _log_likelihood(_all_attributes(), num_classes, epsilon)
    score = log_likelihood + prior.log() if rule == "map" else log_likelihood  # (576, K)
    best = (score > score.amax(1, keepdim=True) - 1e-9).double()  # rounding must not decide between ties
    recalls = (best / best.sum(1, keepdim=True) * log_likelihood.exp()).sum(0)  # (K,)
    return float(recalls.mean() if average == "macro" else recalls @ prior)


def class_names(num_classes: int = MAX_CLASSES) -> list[str]:
    """Names that say the prototype's crown, breast and tail.

    >>> class_names()[0]
    'White_crowned_Black_breasted_Redtail'
    """
    crowns, breasts, _, tails = ([colour.capitalize() for colour in values] for values in PARTS.values())
    return [
        f"{crowns[a]}_crowned_{breasts[b]}_breasted_{tails[d]}tail" for a, b, _, d in PROTOTYPES[:num_classes]
    ]


Labels = int | Tensor | np.ndarray | Sequence[int]


@dataclass(frozen=True)
class Birds:
    """N drawn birds; boxes are x0, y0, x1, y1 in pixels, half-open. Arrays may be read-only maps of files.

    Attributes
    ----------
    images : (N, 3, S, S) uint8
    labels : (N,) int64
    attributes : (N, 4) int64, the value of crown, breast, wing bar and tail (see `PARTS` for its colour)
    boxes : (N, 4) float32
    masks : (N, S, S) bool, true on the bird
    part_boxes : (N, 4, 4) float32, one box per part in the order of `PARTS`
    """

    images: np.ndarray
    labels: Tensor
    attributes: Tensor
    boxes: Tensor
    masks: np.ndarray
    part_boxes: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def draw(
    n: Labels,
    seed: int,
    *,
    num_classes: int = MAX_CLASSES,
    epsilon: float = 0.2,
    size: int = 64,
    prior: Prior | None = None,
) -> Birds:
    """Draw `n` birds, or one for each of the labels given as `n`.

    Image i has a random generator of its own, made of `seed` and i: it is the same however many are drawn.
    Labels run through the classes in turn, or are independent draws from `prior` when that is given.

    Parameters
    ----------
    n : how many, or their labels (N,)
    seed : 0 or more
    num_classes : the first so many of the 20 kinds
    epsilon : chance in (0, 1] that a part's colour is drawn afresh instead of taken from the prototype
    size : side of the pictures in pixels, 32 or more
    prior : (K,) class shares to draw labels from

    Raises
    ------
    ValueError
        When there is nothing to draw, a label is not a class, or the design cannot be.

    >>> birds = draw(4, seed=0)
    >>> birds.images.shape, birds.labels, birds.part_boxes.shape
    ((4, 3, 64, 64), tensor([0, 1, 2, 3]), torch.Size([4, 4, 4]))
    """
    labels = _labels(n, seed, num_classes, epsilon, size, prior)
    birds = _birds(_allocate(labels, size, lambda _, shape, dtype: np.empty(shape, dtype)))
    _draw_into(birds, seed, epsilon)
    return birds


def _labels(n: Labels, seed: int, num_classes: int, epsilon: float, size: int, prior: Prior | None) -> Tensor:
    """The labels to draw, after everything that was asked for is checked."""
    shares = check_design(num_classes, epsilon, prior)
    if seed < 0 or size < 32:
        raise ValueError(f"seed must be at least 0 and size at least 32 pixels, were {seed} and {size}")
    labels = torch.arange(n) % num_classes if isinstance(n, int) and n > 0 else torch.as_tensor(n)
    if labels.ndim != 1 or len(labels) == 0 or labels.is_floating_point():
        raise ValueError(f"give a positive number of birds, or a (N,) vector of integer labels; n was {n!r}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must be in [0, {num_classes - 1}], were {low} to {high}")
    if isinstance(n, int) and prior is not None:
        chances = torch.tensor([np.random.default_rng([seed, i]).random() for i in range(n)])
        labels = torch.searchsorted(shares.cumsum(0)[:-1], chances.double(), right=True)
    return labels.long()


def _allocate(
    labels: Tensor, size: int, make: Callable[[str, tuple[int, ...], Any], np.ndarray]
) -> dict[str, np.ndarray]:
    """An array per field of `Birds`, with the labels filled in."""
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "images": ((3, size, size), np.uint8), "labels": ((), np.int64), "attributes": ((4,), np.int64),
        "boxes": ((4,), np.float32), "masks": ((size, size), np.bool_), "part_boxes": ((4, 4), np.float32),
    }  # fmt: skip
    arrays = {name: make(name, (len(labels), *shape), dtype) for name, (shape, dtype) in shapes.items()}
    arrays["labels"][:] = labels.numpy()
    return arrays


def _birds(arrays: dict[str, np.ndarray]) -> Birds:
    fields: dict[str, Any] = {
        name: array if name in ("images", "masks") else torch.from_numpy(array)
        for name, array in arrays.items()
    }
    return Birds(**fields)


def _draw_into(birds: Birds, seed: int, epsilon: float) -> None:
    for i, label in enumerate(birds.labels.tolist()):
        rng = np.random.default_rng([seed, i])
        chance = rng.random(9)  # the first one is the label's, whether it is used or not
        other = (chance[5:] * VALUES).astype(np.int64)
        attributes = np.where(chance[1:5] < epsilon, other, PROTOTYPES[label])
        drawing = render(attributes, rng, birds.images.shape[-1])
        birds.images[i], birds.masks[i] = drawing.image, drawing.mask
        birds.attributes[i] = torch.from_numpy(attributes)
        birds.boxes[i] = torch.tensor(drawing.box)
        birds.part_boxes[i] = torch.tensor(drawing.part_boxes)
        if i % 1000 == 0:
            report_progress("drawing birds", i, len(birds))


def cached_birds(
    n: int,
    seed: int,
    data_dir: str | Path | None = None,
    *,
    num_classes: int = MAX_CLASSES,
    epsilon: float = 0.2,
    size: int = 64,
    prior: Prior | None = None,
) -> Birds:
    """`draw`, kept in ``<data_root>/minibirds`` and mapped from there, read-only.

    Drawn once, also when two processes ask at once. Files whose checksum is wrong are drawn again; a change
    of the drawing code makes new files.

    >>> import tempfile
    >>> len(cached_birds(4, seed=0, data_dir=tempfile.mkdtemp()))
    4
    """
    labels = _labels(n, seed, num_classes, epsilon, size, prior)
    shares = None if prior is None else np.asarray(prior).tolist()
    key = json.dumps([n, seed, num_classes, epsilon, size, shares, _code()])
    folder = data_root(data_dir) / "minibirds" / hashlib.sha256(key.encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)

    def mapped(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.lib.format.open_memmap(draft / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)

    with FileLock(f"{folder}.lock"):
        if not _intact(folder):
            shutil.rmtree(folder, ignore_errors=True)
            draft = _empty_draft(folder)
            arrays = _allocate(labels, size, mapped)  # on disk, so that memory stays small
            _draw_into(_birds(arrays), seed, epsilon)
            del arrays  # flushed
            sums = {file.name: _checksum(file) for file in draft.glob("*.npy")}
            (draft / "checksums.json").write_text(json.dumps(sums))
            os.replace(draft, folder)
    files = {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in folder.glob("*.npy")}
    return _birds({name: f if name in ("images", "masks") else f.copy() for name, f in files.items()})


def _empty_draft(folder: Path) -> Path:
    """A folder to fill before it takes the place of `folder`; what a killed process left in it goes."""
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    return draft


def _intact(folder: Path) -> bool:
    try:
        sums = json.loads((folder / "checksums.json").read_text())
        return all(_checksum(folder / name) == value for name, value in sums.items())
    except (OSError, ValueError):
        return False


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _code() -> str:
    return fingerprint(__file__, minibirds_drawing)


def write_cub_layout(
    folder: str | Path,
    train_per_class: int,
    test_per_class: int,
    seed: int,
    *,
    num_classes: int = MAX_CLASSES,
    epsilon: float = 0.2,
    size: int = 64,
) -> Path:
    """Write drawn birds as a folder with the files and formats of CUB-200-2011, all or nothing.

    Images are numbered from 1, by class and within a class training images first; image i is bird i − 1 of
    ``draw(labels, seed)`` for the labels in that order. Part locations are the centres of the part boxes. A
    folder that already holds the same birds is left as it is.

    Raises
    ------
    FileExistsError
        When the folder holds something else.

    >>> import tempfile
    >>> folder = write_cub_layout(Path(tempfile.mkdtemp()) / "birds", 1, 1, seed=0, num_classes=2)
    >>> print((folder / "images.txt").read_text().splitlines()[0])
    1 001.White_crowned_Black_breasted_Redtail/White_crowned_Black_breasted_Redtail_000001.jpg
    """
    folder = Path(folder)
    per_class = train_per_class + test_per_class
    if min(train_per_class, test_per_class) < 0 or per_class == 0:
        raise ValueError(
            f"images per class must be 0 or more and not both 0, were {train_per_class} and {test_per_class}"
        )
    check_design(num_classes, epsilon, None)
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    wish = json.dumps([train_per_class, test_per_class, seed, num_classes, epsilon, size, _code()])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if folder.exists():
            note = folder / "minibirds.json"
            if note.is_file() and note.read_text() == wish:
                return folder
            raise FileExistsError(f"{folder} is there and is not these birds; remove it or name another")
        birds = draw(labels, seed, num_classes=num_classes, epsilon=epsilon, size=size)
        draft = _empty_draft(folder)
        _write_cub(
            draft,
            birds,
            class_names(num_classes),
            [i % per_class < train_per_class for i in range(len(labels))],
        )
        (draft / "minibirds.json").write_text(wish)
        os.replace(draft, folder)
    return folder


def _write_cub(folder: Path, birds: Birds, names: list[str], is_train: list[bool]) -> None:
    folders = [f"{y + 1:03d}.{name}" for y, name in enumerate(names)]
    for name in (*(f"images/{name}" for name in folders), "parts"):
        (folder / name).mkdir(parents=True)
    tables: dict[str, list[str]] = {
        "classes.txt": [f"{y + 1} {name}" for y, name in enumerate(folders)],
        "parts/parts.txt": [f"{p + 1} {name.replace('_', ' ')}" for p, name in enumerate(PARTS)],
    }
    for i, y in enumerate(birds.labels.tolist()):
        path = f"{folders[y]}/{names[y]}_{i + 1:06d}.jpg"
        picture = Image.fromarray(np.ascontiguousarray(birds.images[i].transpose(1, 2, 0)))
        # Subsampling would halve the resolution of the colours, and the colours carry the information.
        picture.save(folder / "images" / path, quality=95, subsampling=0)
        x0, y0, x1, y1 = birds.boxes[i].tolist()
        centres = (birds.part_boxes[i, :, :2] + birds.part_boxes[i, :, 2:]).div(2).tolist()
        for table, line in (
            ("images.txt", path),
            ("image_class_labels.txt", f"{y + 1}"),
            ("train_test_split.txt", f"{is_train[i]:d}"),
            ("bounding_boxes.txt", f"{x0:.1f} {y0:.1f} {x1 - x0:.1f} {y1 - y0:.1f}"),
            *(("parts/part_locs.txt", f"{p + 1} {x:.1f} {y:.1f} 1") for p, (x, y) in enumerate(centres)),
        ):
            tables.setdefault(table, []).append(f"{i + 1} {line}")
    for table, lines in tables.items():
        (folder / table).write_text("\n".join(lines) + "\n")
