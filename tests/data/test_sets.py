"""The table of data sets and the one door to them: what is refused, and how a missing one is got."""

import gzip
import os
import socket
import struct
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_sets import CUB_IDS, write_cub, write_image, write_tiny

from infocam_utils.data import minibirds
from infocam_utils.data.sets import CUB, SETS, TinyImageNet, describe, load_images, locate, short_name
from infocam_utils.data.splits import ImbalanceRule, half_split, imbalanced_subset
from infocam_utils.data.store import Store
from infocam_utils.experiments.recipe import Recipe


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


def test_without_boxes_all_works_until_they_are_needed(tmp_path: Path) -> None:
    root = write_cub(tmp_path, boxes=False)
    folder = CUB(root)
    assert folder.boxes is None
    assert folder.image_set(16, Store(tmp_path)).boxes is None
    with pytest.raises(ValueError, match=r"bounding_boxes\.txt is missing or lacks boxes: 4 of 4 images"):
        CUB(root, need_boxes=True)
    (root / "bounding_boxes.txt").write_text("3 1 1 5 5\n11 1 1 5 5\n")
    assert CUB(root).boxes is None
    with pytest.raises(ValueError, match=r"lacks boxes: 2 of 4 images have none, first .*b\.jpg"):
        CUB(root, need_boxes=True)


ALL = sorted(CUB_IDS)
SPLIT = "\n".join(f"{image} {int(CUB_IDS[image][1] not in 'cf')}" for image in ALL)
LABELS, BOXES = "image_class_labels.txt", "bounding_boxes.txt"
WRONG = [
    ("classes.txt", "1 001.Auk\n", r"classes\.txt does not name classes \[4\]"),
    ("classes.txt", "1 001.Auk\n4 004.Wren\n4 004.Tit\n", r"classes\.txt has two lines for id 4"),
    ("classes.txt", "\n", r"classes\.txt is empty; expected lines of id, name"),
    (LABELS, "3 1\n", r"image_class_labels\.txt lacks 3 of 4 images, first id 5"),
    (LABELS, "3 1\nfive 1\n", r"labels\.txt, line 2: expected id, label with spaces .* 'five 1'"),
    (LABELS, "\n3\n", r"labels\.txt, line 2: expected id, label .* got '3'"),
    (LABELS, "3 1\n²  1\n", r"labels\.txt, line 2: expected id, label .* got '²  1'"),
    (LABELS, "3 1\n5 1\n3 4\n", r"image_class_labels\.txt has two lines for id 3"),
    ("train_test_split.txt", "3 1\n", r"train_test_split\.txt lacks 5 of 6 images"),
    ("train_test_split.txt", "\n".join(f"{image} 0" for image in ALL), "no images in split 'train'"),
    ("train_test_split.txt", SPLIT.replace("5 1", "5 2"), r"split\.txt, line 2: expected id, train .* '5 2'"),
    ("train_test_split.txt", SPLIT.replace("5 1", "5 true"), r"split\.txt, line 2: .* '5 true'"),
    ("train_test_split.txt", SPLIT + "\n3 0", r"train_test_split\.txt has two lines for id 3"),
    ("images.txt", "3 001.Auk/a.jpg\n5 001.Auk/b.jpg\n3 001.Auk/c.jpg", "two lines for id 3"),
    ("images.txt", "3 001.Auk/a.jpg\n5 001.Auk/a.jpg", r"lists 001\.Auk/a\.jpg under several ids: \[3, 5\]"),
    (BOXES, "".join(f"{i} 1 1 5 5\n" for i in [*ALL, 5]), "has two lines for id 5"),
    *(
        (BOXES, "\n".join(f"{image} {box}" for image in ALL), message)
        for box, message in (
            ("1 1 0 5", r"bounding_boxes\.txt gives image 3, a\.jpg, the box 1 1 1 6 .*expected x1 > x0"),
            ("1 1 5 -5", "gives image 3, .* the box 1 1 6 -4 .*y1 > y0"),
            ("1 1 1e99 5", r"boxes\.txt, line 1: "),
            ("1 1 wide 5", r"boxes\.txt, line 1: expected id, x, y, width, height .* got '3 1 1 wide 5'"),
            ("nan 1 5 5", r"boxes\.txt, line 1: expected id, x, y, width, height .* got '3 nan 1 5 5'"),
            ("1 1 inf 5", r"boxes\.txt, line 1: "),
            ("1 1 5", r"boxes\.txt, line 1: "),
            ("1 1 5 5 5", r"boxes\.txt, line 1: "),
        )
    ),
]


@pytest.mark.parametrize(("file", "content", "message"), WRONG)
def test_cub_names_the_file_that_is_wrong(tmp_path: Path, file: str, content: str, message: str) -> None:
    root = write_cub(tmp_path)
    (root / file).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        CUB(root)


@pytest.mark.parametrize("file", ["images.txt", "classes.txt", "bounding_boxes.txt"])
def test_a_list_that_is_no_utf8_is_named(tmp_path: Path, file: str) -> None:
    root = write_cub(tmp_path)
    (root / file).write_bytes((root / file).read_bytes() + "99 Küste".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{file} is not UTF-8 text .*; save it as UTF-8"):
        CUB(root)


@pytest.mark.parametrize("box", ["40 0 5 5", "0 20 5 5", "-5 0 5 5", "0 -9 5 8.5"])
def test_a_cub_box_wholly_outside_its_image_is_refused(tmp_path: Path, box: str) -> None:
    root = write_cub(tmp_path)
    lines = (root / "bounding_boxes.txt").read_text().splitlines()
    edit = [f"11 {box}" if line.startswith("11 ") else line for line in lines]
    (root / "bounding_boxes.txt").write_text("\n".join(edit))
    message = r"bounding_boxes\.txt gives image 11, d\.jpg, the box .*, wholly outside its 40 x 20 pixels"
    with pytest.raises(ValueError, match=message):
        load_images(root, "train", tmp_path, size=8)
    load_images(root, "test", tmp_path, size=8)


def test_a_box_may_reach_beyond_its_image(tmp_path: Path) -> None:
    root = write_cub(tmp_path)
    (root / "bounding_boxes.txt").write_text("".join(f"{image} -2 -3 45 30\n" for image in CUB_IDS))
    boxes = load_images(root, "train", tmp_path, size=20).boxes
    assert boxes is not None
    assert boxes[0].tolist() == [-1.0, -3.0, 21.5, 27.0]


def test_a_tiny_box_wholly_outside_its_image_is_refused(tmp_path: Path) -> None:
    root = write_tiny(tmp_path)
    lines = "val_0.JPEG\tn01\t1\t2\t3\t4\nval_1.JPEG\tn02\t70\t70\t80\t80\n"
    (root / "val" / "val_annotations.txt").write_text(lines)
    message = r"annotations\.txt gives image 1, val_1\.JPEG, the box 70 70 81 81 .*outside its 64 x 64 pixels"
    with pytest.raises(ValueError, match=message):
        load_images(root, "val", tmp_path)
    (root / "train" / "n01" / "n01_boxes.txt").write_text("n01_1.JPEG\t64\t0\t64\t9\n")
    with pytest.raises(ValueError, match=r"n01_boxes\.txt gives image 2, n01_1\.JPEG, .*wholly outside"):
        load_images(root, "train", tmp_path)


def test_half_present_folders(tmp_path: Path) -> None:
    root = write_cub(tmp_path)
    with pytest.raises(
        ValueError, match="split of the CUB layout must be one of train, test, all, got 'val'"
    ):
        CUB(root, "val")
    (root / "images" / "001.Auk" / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.jpg is named in the data set's lists but is not there"):
        CUB(root).image_set(8, Store(tmp_path))
    (root / "classes.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"classes\.txt is needed"):
        CUB(root)
    with pytest.raises(FileNotFoundError, match=r"has no images\.txt, nor has a folder in it"):
        CUB(tmp_path / "nothing")


def test_image_set_scales_boxes_with_the_pixels(tmp_path: Path) -> None:
    folder = CUB(write_cub(tmp_path))
    stored = folder.image_set(10, Store(tmp_path))
    assert stored.images.shape == (4, 3, 10, 10)
    assert stored.boxes is not None
    torch.testing.assert_close(stored.boxes[0], torch.tensor([3.0 / 4, 2.5 / 2, 13.0 / 4, 17.5 / 2]))
    assert stored.class_numbers == [1, 4]
    assert folder.image_set(10, Store(tmp_path), limit=2).ids.tolist() == [3, 11]
    assert folder.image_set(10, Store(tmp_path)).key == stored.key
    (folder.root / "bounding_boxes.txt").unlink()
    assert CUB(folder.root).image_set(10, Store(tmp_path)).key != stored.key


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
    grey = train.image_set(64, Store(tmp_path)).images[1]
    assert (grey[0] == grey[1]).all()


def test_tiny_imagenet_lacking_things(tmp_path: Path) -> None:
    root = write_tiny(tmp_path)
    (root / "train" / "n02" / "n02_boxes.txt").unlink()
    (root / "words.txt").unlink()
    train = TinyImageNet(root)
    assert train.boxes is None
    assert [path.name for path in train.paths[:2]] == ["n02_0.JPEG", "n02_1.JPEG"]
    assert train.class_names == ["n02", "n01"]
    with pytest.raises(ValueError, match=r"n02_boxes\.txt is missing .*: 2 of 4 .*n02_0\.JPEG"):
        TinyImageNet(root, need_boxes=True)
    with pytest.raises(ValueError, match="Tiny-ImageNet layout must be one of train, val, test, got 'all'"):
        TinyImageNet(root, "all")
    for content, message in (
        ("val_0.JPEG\tn01\t1\t2\t3\n", "line 1: expected file, label, x0, y0, x1, y1 with tabs between"),
        (
            "val_0.JPEG\tn01\t9\t2\t3\t4\n",
            r"val_annotations\.txt gives image 0, val_0\.JPEG, the box 9 2 4 5",
        ),
        ("val_0.JPEG\tn01\t-1\t2\t3\t4\n", "line 1: expected file, label, x0"),
        ("val_0.JPEG\tn01\t1\t2\t3\t4\n" * 2, r"val_annotations\.txt has two lines for file val_0\.JPEG"),
        ("val_0.JPEG\tn77\t1\t2\t3\t4\n", r"wnids\.txt does not name classes \['n77'\]"),
        ("\n", r"val_annotations\.txt is empty; expected lines of file, label"),
    ):
        (root / "val" / "val_annotations.txt").write_text(content)
        with pytest.raises(ValueError, match=message):
            TinyImageNet(root, "val")
    (root / "val" / "val_annotations.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val_annotations\.txt is needed and not there"):
        TinyImageNet(root, "val")
    (root / "wnids.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"wnids\.txt is empty"):
        TinyImageNet(root)
    (root / "wnids.txt").write_text("n02\nn01\nn02\n")
    with pytest.raises(ValueError, match=r"wnids\.txt has two lines for wnid n02"):
        TinyImageNet(root)
    (root / "wnids.txt").write_text("n02\nn01\nn99\n")
    with pytest.raises(FileNotFoundError, match=r"n99_boxes\.txt is needed and not there"):
        TinyImageNet(root)


def test_a_file_name_may_hold_spaces(tmp_path: Path) -> None:
    root = write_cub(tmp_path)
    write_image(root / "images" / "001.Auk" / "a b.jpg", 8, 8, 0)
    lists = (root / "images.txt").read_text().replace("001.Auk/a.jpg", "001.Auk/a b.jpg")
    (root / "images.txt").write_text(lists)
    assert CUB(root).paths[0].name == "a b.jpg"
    assert len(load_images(root, "train", tmp_path, size=8)) == 4


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a data set was downloaded unasked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_digits_are_all_there_and_the_halves_apart() -> None:
    train, test = load_images("digits", "train"), load_images("digits", "test")
    assert sorted(torch.cat([train.ids, test.ids]).tolist()) == list(range(1797))
    share = torch.bincount(test.labels) / (torch.bincount(train.labels) + torch.bincount(test.labels))
    assert torch.all((share - 0.3).abs() < 0.01)
    assert train.class_numbers == list(range(10))
    small = load_images("digits", "train", size=8)
    assert small.images.max() == 255
    from sklearn.datasets import load_digits

    assert np.abs(small.images[:, 0] / 255 - load_digits().images[small.ids] / 16).max() < 0.002
    assert train.key != test.key != small.key


@pytest.mark.parametrize(
    ("name", "size"), [("cub200", "1.15 GB"), ("tiny-imagenet", "248 MB"), ("mnist", "12 MB")]
)
def test_a_missing_set_says_how_to_get_it(tmp_path: Path, name: str, size: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"`infocam data get {name}` \({size}; .+\)"):
        load_images(name, "test", tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_names_and_splits(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no data set 'cub2000'.*did you mean 'cub200'"):
        load_images("cub2000", data_dir=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images\.txt or wnids\.txt, .*no whole data set"):
        load_images("empty", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no data set 'empt'.*did you mean 'empty'"):
        describe("empt", tmp_path)
    with pytest.raises(ValueError, match="got an empty name"):
        describe("", tmp_path)
    (tmp_path / "mnist").mkdir()
    for name in ("digits", "mnist", "minibirds"):
        with pytest.raises(ValueError, match=f"split of {name} must be .* got 'half'"):
            load_images(name, "half", tmp_path)
    for name in SETS:
        with pytest.raises(ValueError, match="limit must be a positive number or None, got 0"):
            load_images(name, data_dir=tmp_path, limit=0)
    with pytest.raises(ValueError, match="size must be a positive number or None, got 0"):
        load_images("digits", size=0)
    with pytest.raises(ValueError, match=r"digits has no boxes; .*: minibirds, cub200, tiny-imagenet"):
        load_images("digits", need_boxes=True)


def test_folders_by_path_by_parent_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_cub(tmp_path / "data" / "my-birds")
    write_tiny(tmp_path / "data" / "tiny-imagenet")
    data, here = tmp_path / "data", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    places = (root, str(root), root.parent, f"{root.parent}/", "my-birds", "my-birds/", "../data/my-birds")
    assert {locate(place, data).resolve() for place in places[2:]} == {root.parent}
    assert all(locate(place, data).is_absolute() for place in places)
    assert {short_name(place) for place in places[2:]} == {"my-birds"}
    assert short_name(".") == "here"
    assert len({load_images(place, "train", data, size=16).key for place in places}) == 1
    tiny = load_images("tiny-imagenet", "test", data)
    assert (tiny.size, tiny.num_classes, len(tiny)) == (64, 2, 2)
    assert load_images("my-birds", "test", data).size == 256
    monkeypatch.setenv("INFOCAM_DATA", str(data))
    assert locate("my-birds") == data / "my-birds"
    (here / "my-birds").mkdir()  # a name is one under the data directory first; "./" means here
    assert locate("my-birds") == data / "my-birds"
    assert locate("./my-birds") == here / "my-birds"
    (root / "bounding_boxes.txt").unlink()
    with pytest.raises(ValueError, match=r"bounding_boxes\.txt is missing"):
        load_images("my-birds", data_dir=data, need_boxes=True)


def test_a_folder_has_the_row_of_its_layout_and_an_official_name_its_own(tmp_path: Path) -> None:
    assert describe(write_cub(tmp_path / "a"), tmp_path) is SETS["cub200"]
    assert describe("a", tmp_path) is SETS["cub200"]
    write_tiny(tmp_path / "b")
    assert describe("b/", tmp_path) is SETS["tiny-imagenet"]
    for name in SETS:  # there or not, so that a run can be planned
        assert describe(name, tmp_path) is SETS[name]
        assert locate(name, tmp_path) == tmp_path / name


# What the results on record were made with.
RECIPES = """
field           digits        minibirds     mnist            cub200        tiny-imagenet
backbone        small_resnet  small_resnet  paper_mnist_cnn  mobilenet_v2  mobilenet_v2
weights         None          None          None             imagenet      imagenet
stride          None          None          None             None          None
adl             False         False         False            False         False
size            16            64            28               256           64
resize          None          None          None             256           224
crop            None          None          None             224           224
flip            False         True          False            True          True
few             None          None          None             None          None
many            None          None          None             None          None
train_limit     None          None          None             None          None
loss            softmax       softmax       softmax          softmax       softmax
log_prior_bias  False         False         False            False         False
frozen          False         False         False            True          True
passes          20000         36000         132000           60000         60000
batch_size      64            64            64               64            64
lr              0.01          0.01          0.002            0.001         0.001
head_lr         1.0           1.0           1.0              10.0          10.0
head_start      random        random        random           random        random
weight_decay    0.01          0.01          0.0              0.0001        0.0001
optimizer       adamw         adamw         sgd              sgd           sgd
schedule        onecycle      onecycle      constant         step          step
batch_norm      adapt         adapt         adapt            adapt         adapt
head_optimizer  lbfgs         lbfgs         lbfgs            lbfgs         lbfgs
head_decay      None          None          None             None          None
precision       32-true       32-true       32-true          auto          auto
devices         1             1             1                1             1
"""


def test_recipe_defaults_are_of_every_field_but_the_data_set() -> None:
    names, *lines = (line.split() for line in RECIPES.strip().splitlines())
    for column, name in enumerate(names[1:], start=1):
        assert {key: str(value) for key, value in SETS[name].recipe.items()} == {
            line[0]: line[column] for line in lines
        }
    assert names[1:] == list(SETS)
    assert {line[0] for line in lines} == {field.name for field in fields(Recipe)} - {"dataset"}


def test_the_imbalance_rules() -> None:
    labels = torch.arange(3).repeat_interleave(torch.tensor([200, 128, 150]))
    tenth = {"digits": "even", "minibirds": "odd"}
    for name, side in tenth.items():
        assert SETS[name].train_rule(labels) == SETS[name].test_rule(labels) == ImbalanceRule(12, 120, side)
        with pytest.raises(ValueError, match="fewer than 10 images"):
            SETS[name].train_rule(torch.arange(4))
    for name in ("cub200", "tiny-imagenet"):
        assert SETS[name].train_rule(labels) == ImbalanceRule(10, None, "odd")
        assert SETS[name].test_rule(labels) == ImbalanceRule(5, 15, "odd")
    row = SETS["mnist"]
    assert row.test_from == "train"
    assert row.train_rule(labels) == ImbalanceRule(300, 3000, "even", 0, (0, 40_000))
    assert row.test_rule(labels) == replace(row.train_rule(labels), pool=(40_000, 50_000))


def test_the_drawn_birds_own_their_exact_information(tmp_path: Path) -> None:
    row = SETS["minibirds"]
    assert row.attributes is not None
    assert row.exact is minibirds
    for split in ("val", "test"):
        images = load_images("minibirds", split, tmp_path, limit=12)
        pmi = row.exact.pointwise_mutual_information(row.attributes(split, tmp_path, 12))
        assert pmi.shape == (12, 20)
        # an image's own class explains its attributes far better than another
        assert (pmi.gather(1, images.labels[:, None]).mean() - pmi.mean()) > 2
    assert [name for name, other in SETS.items() if other.exact] == ["minibirds"]


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
    table = load_images("mnist", "test", tmp_path)
    assert table.images.shape == (30, 3, 28, 28)
    assert (table.images[:, 0] == table.images[:, 2]).all()
    assert table.labels.tolist() == list(range(10)) * 3
    assert table.class_numbers == list(range(10))
    assert load_images("mnist", "train", tmp_path, size=32).size == 32
    assert load_images("mnist", "train", tmp_path, limit=3).ids.tolist() == [0, 10, 20]
    raw = tmp_path / "mnist" / "MNIST" / "raw"
    for file in raw.iterdir():  # packed files alone are not enough: nothing may be unpacked behind one's back
        (raw / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    with pytest.raises(FileNotFoundError, match="infocam data get mnist"):
        load_images("mnist", "test", tmp_path)


NONE = torch.tensor([])
CUB_TRAIN, CUB_TEST = SETS["cub200"].train_rule(NONE), SETS["cub200"].test_rule(NONE)


def _real(name: str) -> Path:
    folder = Path(os.environ.get("INFOCAM_DATA", "nowhere")) / name
    if not folder.is_dir():
        pytest.skip(f"INFOCAM_DATA names no folder that holds {name}")
    return folder


def test_the_whole_cub_gives_the_papers_lists() -> None:
    train, test = (CUB(_real("cub200"), split, need_boxes=True) for split in ("train", "test"))
    assert (len(train), len(test), len(train.class_names)) == (5994, 5794, 200)
    for folder, rule, count in ((train, CUB_TRAIN, 3997), (test, CUB_TEST, 1996)):
        kept = imbalanced_subset(folder.labels, rule, folder.image_ids, folder.class_numbers)
        assert len(kept) == count
    assert [len(half) for half in half_split(test.labels)] == [2916, 2878]


def test_the_40_photo_classes() -> None:
    root = _real("cub-40-photos")
    train, test = (CUB(root, split, need_boxes=True) for split in ("train", "test"))
    assert (len(train), len(test), len(train.class_names)) == (1200, 1108, 40)
    kept = imbalanced_subset(train.labels, CUB_TRAIN, train.image_ids, train.class_numbers)
    counts = torch.bincount(train.labels[kept])
    odd = torch.tensor(train.class_numbers) % 2 == 1
    assert set(counts[odd].tolist()) == {10}
    assert set(counts[~odd].tolist()) <= {29, 30}


def test_the_whole_tiny_imagenet() -> None:
    root = _real("tiny-imagenet")
    train, val = (TinyImageNet(root, split, need_boxes=True) for split in ("train", "val"))
    assert torch.bincount(train.labels).tolist() == [500] * 200
    assert torch.bincount(val.labels).tolist() == [50] * 200
    for boxes in (train.boxes, val.boxes):
        assert (boxes.min(), boxes.max()) == (0, 64)
    assert [len(half) for half in half_split(val.labels)] == [5000, 5000]
