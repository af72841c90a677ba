"""One door to all data sets: nothing is downloaded unasked, and a missing set says how to get it."""

import gzip
import os
import struct
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from small_sets import CUB_IDS, write_cub, write_image, write_tiny
from torchvision import tv_tensors

from infocam_utils.data import sets as datasets
from infocam_utils.data.images import Geometry, decode, prepare
from infocam_utils.data.sets import CUB, TinyImageNet, box_transform, digits, load_images, mnist
from infocam_utils.data.splits import imbalanced_subset


def test_cub_keeps_official_ids_and_class_numbers(tmp_path: Path) -> None:
    write_cub(tmp_path)
    train, test = CUB(tmp_path), CUB(tmp_path / "CUB_200_2011", "test")
    assert train.image_ids.tolist() == [3, 5, 11, 12]
    assert test.image_ids.tolist() == [8, 20]
    assert CUB(tmp_path, "all").image_ids.tolist() == sorted(CUB_IDS)
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert train.class_numbers == [1, 4]
    assert train.class_names == ["001.Auk", "004.Wren"]
    assert [path.name for path in train.paths] == ["a.jpg", "b.jpg", "d.jpg", "e.jpg"]
    assert train.boxes is not None
    assert train.boxes[1].tolist() == [5.0, 2.5, 15.0, 17.5]


def test_cub_gives_image_label_and_box(tmp_path: Path) -> None:
    write_cub(tmp_path)
    image, label, box = CUB(tmp_path)[2]
    assert isinstance(image, tv_tensors.Image)
    assert image.shape == (3, 20, 40)
    assert label == 1
    assert isinstance(box, tv_tensors.BoundingBoxes)
    assert box.canvas_size == (20, 40)
    assert box.tolist() == [[11.0, 2.5, 21.0, 17.5]]


@pytest.mark.parametrize("train", [False, True])
def test_transform_carries_the_box_along(tmp_path: Path, train: bool) -> None:
    root = write_cub(tmp_path)
    folder = CUB(root, transform=box_transform(Geometry(80, 60), train))
    plain = CUB(root)
    for index in range(len(folder)):
        image, _, box = folder[index]
        assert image.shape == (3, 60, 60)
        assert image.dtype == torch.float32
        x0, y0, x1, y1 = box[0].tolist()
        assert 0 <= x0 < x1 <= 60
        assert 0 <= y0 < y1 <= 60
        if not train:
            squashed = plain.boxes[index] * torch.tensor([80 / 40, 80 / 20]).repeat(2)
            torch.testing.assert_close(torch.tensor([x0, y0, x1, y1]), Geometry(80, 60).boxes(squashed, 80))
            square, _ = decode(folder.paths[index], 80)
            stored = prepare(torch.from_numpy(square)[None], Geometry(80, 60))[0]
            assert (image - stored).abs().mean() < 0.02  # rounding to 8 bits, and Pillow's bilinear weights


def test_without_boxes_all_works_until_they_are_needed(tmp_path: Path) -> None:
    root = write_cub(tmp_path, boxes=False)
    folder = CUB(root, transform=box_transform(Geometry(16)))
    assert folder.boxes is None
    assert folder[0][0].shape == (3, 16, 16)
    assert folder[0][2] is None
    assert folder.image_set(16, tmp_path / "cache").boxes is None
    with pytest.raises(FileNotFoundError, match=r"bounding_boxes\.txt is needed and not there"):
        CUB(root, need_boxes=True)
    (root / "bounding_boxes.txt").write_text("3 1 1 5 5\n11 1 1 5 5\n")
    assert CUB(root).boxes is None
    with pytest.raises(ValueError, match=r"bounding_boxes\.txt lacks 2 of 4 images, first id 5"):
        CUB(root, need_boxes=True)


def test_parts_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    root = write_cub(tmp_path)
    folder = CUB(root)
    with pytest.raises(FileNotFoundError, match=r"part_locs\.txt is not there: this folder has no part"):
        _ = folder.parts
    (root / "parts").mkdir()
    lines = [f"{image} {part} {image}.5 {part}.0 {part % 2}" for image in CUB_IDS for part in (1, 2)]
    (root / "parts" / "part_locs.txt").write_text("\n".join(lines))
    assert folder.parts.shape == (4, 2, 3)
    assert folder.parts[2].tolist() == [[11.5, 1.0, 1.0], [11.5, 2.0, 0.0]]
    (root / "parts" / "part_locs.txt").write_text("\n".join(lines[:-6]))
    with pytest.raises(ValueError, match=r"lacks parts of 2 images, the first with id 11"):
        _ = folder.parts


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("classes.txt", "1 001.Auk\n", r"classes\.txt does not name classes 4"),
        ("image_class_labels.txt", "3 1\n", r"image_class_labels\.txt lacks 3 of 4 images, first id 5"),
        (
            "image_class_labels.txt",
            "3 1\nfive 1\n",
            r"image_class_labels\.txt, line 2: expected a number and 1",
        ),
        ("image_class_labels.txt", "3\n", r"line 1: expected a number and 1 values, got '3'"),
        ("train_test_split.txt", "3 1\n", r"train_test_split\.txt lacks 5 of 6 images"),
        ("train_test_split.txt", "\n".join(f"{image} 0" for image in CUB_IDS), "no images in split 'train'"),
        (
            "bounding_boxes.txt",
            "\n".join(f"{image} 1 1 0 5" for image in CUB_IDS),
            "image 3 a box .*positive",
        ),
        (
            "bounding_boxes.txt",
            "\n".join(f"{image} 1 1 wide 5" for image in CUB_IDS),
            "not four numbers: .*wide",
        ),
    ],
)
def test_cub_names_the_file_that_is_wrong(tmp_path: Path, file: str, content: str, message: str) -> None:
    root = write_cub(tmp_path)
    (root / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        CUB(root)


def test_half_present_folders(tmp_path: Path) -> None:
    root = write_cub(tmp_path)
    with pytest.raises(ValueError, match="split must be 'train', 'test' or 'all', got 'val'"):
        CUB(root, "val")
    (root / "images" / "001.Auk" / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.jpg is named in the data set's lists but is not there"):
        CUB(root).image_set(8, tmp_path / "cache")
    (root / "classes.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"classes\.txt is needed"):
        CUB(root)
    with pytest.raises(FileNotFoundError, match=r"has no images\.txt, nor has a folder directly in it"):
        CUB(tmp_path / "nothing")


def test_image_set_scales_boxes_with_the_pixels(tmp_path: Path) -> None:
    folder = CUB(write_cub(tmp_path))
    stored = folder.image_set(10, tmp_path / "cache")
    assert stored.images.shape == (4, 3, 10, 10)
    assert stored.boxes is not None
    torch.testing.assert_close(stored.boxes[0], torch.tensor([3.0 / 4, 2.5 / 2, 13.0 / 4, 17.5 / 2]))
    assert stored.class_numbers == [1, 4]
    assert folder.image_set(10, tmp_path / "cache", limit=2).ids.tolist() == [3, 11]
    assert folder.image_set(10, tmp_path / "cache").key == stored.key
    (folder.root / "bounding_boxes.txt").unlink()
    assert CUB(folder.root).image_set(10, tmp_path / "cache").key != stored.key


def test_tiny_imagenet_boxes_become_half_open(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    train, val = TinyImageNet(tmp_path), TinyImageNet(tmp_path, "val")
    assert train.boxes is not None
    assert val.boxes is not None
    assert train.boxes[:2].tolist() == [[0, 10, 64, 63], [5, 5, 6, 21]]  # the thin one is one pixel wide
    assert val.boxes.tolist() == [[1, 2, 4, 5], [0, 0, 64, 64]]
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert val.labels.tolist() == [1, 0]
    assert train.class_names == ["wren", "auk"]
    assert TinyImageNet(tmp_path, "test").paths == val.paths


def test_tiny_imagenet_grey_images_are_rgb(tmp_path: Path) -> None:
    train = TinyImageNet(write_tiny(tmp_path))
    grey = train.image_set(64, tmp_path / "cache").images[1]
    assert (grey[0] == grey[1]).all()
    assert train[1][0].shape == (3, 64, 64)


def test_tiny_imagenet_lacking_things(tmp_path: Path) -> None:
    root = write_tiny(tmp_path)
    (root / "train" / "n02" / "n02_boxes.txt").unlink()
    (root / "words.txt").unlink()
    train = TinyImageNet(root)
    assert train.boxes is None
    assert [path.name for path in train.paths[:2]] == ["n02_0.JPEG", "n02_1.JPEG"]
    assert train.class_names == ["n02", "n01"]
    with pytest.raises(ValueError, match=r"2 images have no box, the first is .*n02_0\.JPEG"):
        TinyImageNet(root, need_boxes=True)
    with pytest.raises(ValueError, match="split must be 'train' or 'val'"):
        TinyImageNet(root, "all")
    for content, message in (
        ("val_0.JPEG\tn01\t1\t2\t3\n", "line 1: expected 6 values"),
        ("val_0.JPEG\tn01\t9\t2\t3\t4\n", r"box of val_0\.JPEG ends before it begins"),
        ("val_0.JPEG\tn77\t1\t2\t3\t4\n", r"wnids\.txt lacks: n77"),
        ("\n", "no images in split 'val'"),
    ):
        (root / "val" / "val_annotations.txt").write_text(content)
        with pytest.raises(ValueError, match=message):
            TinyImageNet(root, "val")
    (root / "val" / "val_annotations.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val_annotations\.txt is not there"):
        TinyImageNet(root, "val")
    (root / "wnids.txt").write_text("n02\nn01\nn99\n")
    with pytest.raises(FileNotFoundError, match=r"n99.images is not there, but wnids\.txt names its class"):
        TinyImageNet(root)


def test_box_transform_needs_a_size() -> None:
    with pytest.raises(ValueError, match="give Geometry a resize"):
        box_transform(Geometry())


def test_a_file_name_may_hold_spaces(tmp_path: Path) -> None:
    root = write_cub(tmp_path)
    write_image(root / "images" / "001.Auk" / "a b.jpg", 8, 8, 0)
    lists = (root / "images.txt").read_text().replace("001.Auk/a.jpg", "001.Auk/a b.jpg")
    (root / "images.txt").write_text(lists)
    assert CUB(root)[0][0].shape == (3, 8, 8)


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
