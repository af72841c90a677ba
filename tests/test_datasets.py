"""One door to all data sets: nothing is downloaded unasked, and a missing set says how to get it."""

import gzip
import os
import struct
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from small_sets import write_cub, write_tiny

from infocam_utils import datasets
from infocam_utils.datasets import digits, imbalanced_subset, load_images, mnist


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a data set was downloaded unasked")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_digits_are_all_there_and_the_halves_apart() -> None:
    train, test = digits("train"), digits("test")
    assert sorted(torch.cat([train.ids, test.ids]).tolist()) == list(range(1797))
    share = torch.bincount(test.labels) / (torch.bincount(train.labels) + torch.bincount(test.labels))
    assert torch.all((share - 0.3).abs() < 0.01)
    assert train.class_numbers == list(range(10))
    small = digits("train", size=8)
    assert small.images.max() == 255
    from sklearn.datasets import load_digits

    assert np.abs(small.images[:, 0] / 255 - load_digits().images[small.ids] / 16).max() < 0.002
    assert train.key != test.key != small.key


SIZES = {"cub200": "1.15 GB", "tiny-imagenet": "248 MB", "mnist": "12 MB"}


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_a_missing_set_says_how_to_get_it(tmp_path: Path, name: str, size: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"`infocam data get {name}` \({size}; .+\)"):
        load_images(name, "test", tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_names_and_splits(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no data set 'cub2000'.*did you mean 'cub200'"):
        load_images("cub2000", data_dir=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="not a whole data set of the CUB layout"):
        load_images("empty", data_dir=tmp_path)
    for name in ("digits", "mnist", "minibirds"):
        with pytest.raises(ValueError, match=f"split of {name} must be .* got 'half'"):
            load_images(name, "half", tmp_path)
    with pytest.raises(ValueError, match="limit must be a positive number of images or None, got 0"):
        load_images("digits", limit=0)
    with pytest.raises(ValueError, match="digits has no boxes"):
        load_images("digits", need_boxes=True)


def test_folders_by_path_by_parent_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cub(tmp_path / "my-birds")
    write_tiny(tmp_path / "tiny-imagenet")
    keys = {
        load_images(place, "train", tmp_path, size=16).key
        for place in (root, str(root), tmp_path / "my-birds", "my-birds")
    }
    assert len(keys) == 1
    tiny = load_images("tiny-imagenet", "test", tmp_path)
    assert (tiny.size, tiny.num_classes, len(tiny)) == (64, 2, 2)
    assert load_images("my-birds", "test", tmp_path).size == 256
    monkeypatch.setenv("INFOCAM_DATA", str(tmp_path))
    assert load_images("my-birds", size=16).key in keys
    (root / "bounding_boxes.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"bounding_boxes\.txt is needed"):
        load_images("my-birds", data_dir=tmp_path, need_boxes=True)


def test_limit_spreads_over_the_classes() -> None:
    some = load_images("digits", "test", limit=100)
    assert len(some) == 100
    assert len(torch.unique(some.labels)) == 10
    assert len(load_images("digits", "test", limit=10_000)) == 539


def test_drawn_birds_differ_between_the_splits(tmp_path: Path) -> None:
    sets = {split: load_images("minibirds", split, tmp_path, limit=12) for split in ("train", "val", "test")}
    assert len({one.key for one in sets.values()}) == 3
    for one in sets.values():
        assert one.images.shape == (12, 3, 64, 64)
        assert one.boxes is not None
        assert one.num_classes == 20
    assert load_images("minibirds", "val", tmp_path, limit=12).key == sets["val"].key


def _write_mnist(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    grey = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    images = struct.pack(">iiii", 2051, count, 28, 28) + grey.tobytes()
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, count) + labels.tobytes())


def test_mnist_is_read_through_torchvision(tmp_path: Path) -> None:
    _write_mnist(tmp_path / "mnist" / "MNIST" / "raw", 30)
    table = mnist(tmp_path, "test")
    assert table.images.shape == (30, 3, 28, 28)
    assert (table.images[:, 0] == table.images[:, 2]).all()
    assert table.labels.tolist() == list(range(10)) * 3
    assert table.class_numbers == list(range(10))
    assert mnist(tmp_path, size=32).size == 32
    raw = tmp_path / "mnist" / "MNIST" / "raw"
    for file in raw.iterdir():  # packed files alone are not enough: nothing may be unpacked behind one's back
        (raw / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    with pytest.raises(FileNotFoundError, match="infocam data get mnist"):
        mnist(tmp_path, "test")


def test_every_public_name_is_exported() -> None:
    assert all(hasattr(datasets, name) for name in datasets.__all__)


def _real(name: str) -> Path:
    folder = Path(os.environ.get("INFOCAM_DATA", "nowhere")) / name
    if not folder.is_dir():
        pytest.skip(f"INFOCAM_DATA names no folder that holds {name}")
    return folder


def test_the_whole_cub_gives_the_papers_lists() -> None:
    train, test = (datasets.CUB(_real("cub200"), split, need_boxes=True) for split in ("train", "test"))
    assert (len(train), len(test), len(train.class_names)) == (5994, 5794, 200)
    for folder, rule, count in ((train, "paper_cub_train", 3997), (test, "paper_cub_test", 1996)):
        kept = imbalanced_subset(folder.labels, rule, folder.image_ids, folder.class_numbers)
        assert len(kept) == count
    assert [len(half) for half in datasets.half_split(test.labels)] == [2916, 2878]


def test_the_40_photo_classes() -> None:
    root = _real("cub-40-photos")
    train, test = (datasets.CUB(root, split, need_boxes=True) for split in ("train", "test"))
    assert (len(train), len(test), len(train.class_names)) == (1200, 1108, 40)
    kept = imbalanced_subset(train.labels, "paper_cub_train", train.image_ids, train.class_numbers)
    counts = torch.bincount(train.labels[kept])
    odd = torch.tensor(train.class_numbers) % 2 == 1
    assert set(counts[odd].tolist()) == {10}
    assert set(counts[~odd].tolist()) <= {29, 30}


def test_the_whole_tiny_imagenet() -> None:
    root = _real("tiny-imagenet")
    train, val = (datasets.TinyImageNet(root, split, need_boxes=True) for split in ("train", "val"))
    assert torch.bincount(train.labels).tolist() == [500] * 200
    assert torch.bincount(val.labels).tolist() == [50] * 200
    for boxes in (train.boxes, val.boxes):
        assert (boxes.min(), boxes.max()) == (0, 64)
    assert [len(half) for half in datasets.half_split(val.labels)] == [5000, 5000]
