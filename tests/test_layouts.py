"""Readers: what the lists say is what comes out, and what they lack is an error when it is needed."""

from pathlib import Path

import pytest
import torch
from small_sets import CUB_IDS, write_cub, write_image, write_tiny
from torchvision import tv_tensors

from infocam_utils.images import Geometry, decode, prepare
from infocam_utils.layouts import CUB, TinyImageNet, box_transform


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
