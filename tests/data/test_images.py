"""Images: decoded once for each content and never altered silently; pixels and boxes move alike."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_sets import write_image
from torchvision import tv_tensors
from torchvision.transforms import v2

from infocam_utils.data import images
from infocam_utils.data.images import Geometry, ImageSet, decode, decoded, prepare
from infocam_utils.data.store import Store


def image_set(**changes: object) -> ImageSet:
    pixels = np.arange(4 * 3 * 8 * 8).astype(np.uint8).reshape(4, 3, 8, 8)
    given = {"images": pixels, "labels": torch.arange(4) % 2, "ids": torch.arange(4) + 10, "key": "k"}
    given |= {"boxes": torch.rand(4, 4), "num_classes": 2, "class_names": ["a", "b"]}
    return ImageSet(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((4, 3, 8, 8), np.float32)}, "uint8"),
        ({"images": np.zeros((4, 3, 8, 9), np.uint8)}, "uint8 .N, 3, S, S"),
        ({"labels": torch.tensor([0, 1])}, r"equally many, got \[4, 2, 4, 4\]"),
        ({"boxes": torch.zeros(3, 4)}, r"equally many, got \[4, 4, 4, 3\]"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, r"labels must lie in 0..1, got 0..2"),
        ({"class_names": ["a"]}, r"must agree, got \[2, 1, 2\]"),
    ],
)
def test_an_image_set_refuses_what_does_not_fit(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_set(**changes)


def test_subset_keeps_order_and_changes_the_key() -> None:
    whole = image_set()
    part = whole.subset(torch.tensor([3, 0]))
    assert part.ids.tolist() == [13, 10]
    assert np.array_equal(part.images, whole.images[[3, 0]])
    assert torch.equal(part.boxes, whole.boxes[[3, 0]])
    assert len({whole.key, part.key, whole.subset([0, 3]).key}) == 3
    assert torch.equal(whole.pixels([3, 0]), torch.from_numpy(whole.images[[3, 0]]))
    assert len(whole.subset([])) == 0
    with pytest.raises(IndexError, match="index 4 is out of bounds"):
        whole.subset([0, 4])


def test_pixels_of_a_read_only_memory_map_can_be_written() -> None:
    mapped = image_set()
    mapped.images.flags.writeable = False
    mapped.pixels(slice(0, 2)).add_(1)
    assert np.array_equal(mapped.images, image_set().images)


@pytest.mark.parametrize(
    ("stored", "resize", "crop"), [(64, 64, 64), (256, 256, 224), (100, 61, 50), (64, 224, 221), (50, 31, 24)]
)
def test_boxes_move_as_torchvision_moves_them(stored: int, resize: int, crop: int) -> None:
    corners = torch.rand(200, 2, 2, dtype=torch.float64) * stored
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    theirs = v2.Compose(
        [v2.Resize((resize, resize)), v2.CenterCrop(crop), v2.ClampBoundingBoxes(clamping_mode="hard")]
    )(tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(stored, stored)))
    torch.testing.assert_close(
        Geometry(resize, crop).boxes(boxes, stored), torch.as_tensor(theirs.data), atol=1e-4, rtol=0
    )  # theirs is computed in float32


def test_pixels_move_as_boxes_do() -> None:
    box = torch.tensor([[10.0, 4.0, 30.0, 28.0]])
    picture = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    picture[:, :, 4:28, 10:30] = 255
    geometry = Geometry(resize=64, crop=48)
    bright = prepare(picture, geometry)[0, 0] > 0
    rows, columns = torch.nonzero(bright.any(1)).flatten(), torch.nonzero(bright.any(0)).flatten()
    found = [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]
    assert found == geometry.boxes(box, 32)[0].tolist()


def test_prepare_equals_the_torchvision_pipeline() -> None:
    batch = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    theirs = v2.functional.to_dtype(batch, torch.float32, scale=True)
    theirs = v2.Compose([v2.Resize((30, 30), antialias=True), v2.CenterCrop(24)])(theirs)
    theirs = v2.functional.normalize(theirs, images.IMAGENET_MEAN, images.IMAGENET_STD)
    torch.testing.assert_close(prepare(batch, Geometry(30, 24)), theirs, atol=1e-4, rtol=0)


def _coordinates(count: int, side: int) -> torch.Tensor:
    """Images whose first channel is the row and whose second is the column."""
    grid = torch.arange(side, dtype=torch.uint8)
    rows, columns = torch.meshgrid(grid, grid, indexing="ij")
    return torch.stack([rows, columns, columns]).expand(count, 3, side, side)


@pytest.mark.parametrize("flip", [True, False])
def test_training_takes_a_random_crop_and_mirrors_half(flip: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    out = prepare(_coordinates(400, 12), Geometry(None, 8, flip), train=True, generator=generator)
    mean, std = (torch.tensor(c)[:, None, None] * 255 for c in (images.IMAGENET_MEAN, images.IMAGENET_STD))
    out = out * std + mean
    rows, columns = out[:, 0].round().long(), out[:, 1].round().long()
    step = columns[:, 0, 1] - columns[:, 0, 0]
    assert set(step.tolist()) == ({1, -1} if flip else {1})
    if flip:
        assert 0.4 < (step == -1).float().mean() < 0.6
    top, left = rows[:, 0, 0], columns.amin(dim=(1, 2))
    assert set(top.tolist()) == set(left.tolist()) == {0, 1, 2, 3, 4}
    assert torch.equal(rows, (top[:, None] + torch.arange(8))[:, :, None].expand(-1, 8, 8))
    ascending = torch.where(step[:, None] == 1, torch.arange(8), torch.arange(7, -1, -1))
    assert torch.equal(columns, (left[:, None] + ascending)[:, None, :].expand(-1, 8, 8))


def test_the_same_generator_gives_the_same_crops() -> None:
    first, second, other = (
        prepare(_coordinates(20, 12), Geometry(None, 8), train=True, generator=torch.manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_geometry_and_prepare_refuse_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"must be positive .* got Geometry\(resize=0, "):
        Geometry(resize=0)
    with pytest.raises(ValueError, match="crop of 10 pixels does not fit into 9"):
        Geometry(9, 10).sizes(64)
    with pytest.raises(ValueError, match="crop of 10 pixels does not fit into 8"):
        prepare(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), Geometry(crop=10))
    for wrong in (
        torch.zeros(1, 3, 8, 8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(1, 3, 8, 4, dtype=torch.uint8),
    ):
        with pytest.raises(ValueError, match="images must be uint8"):
            prepare(wrong, Geometry())
    empty = torch.zeros(0, 3, 8, 8, dtype=torch.uint8)
    assert prepare(empty, Geometry(16, 8), train=True).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1"])
def test_every_mode_of_8_bits_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.jpg" if mode in ("L", "CMYK") else "x.png")
    Image.new("RGB", (6, 4), (255, 255, 255)).convert(mode).save(path)
    pixels, shape = decode(path)
    assert pixels.shape == (3, 4, 6)
    assert shape == (6, 4)
    assert pixels.min() > 250


def test_grey_palette_and_opaque_pixels_keep_their_values(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    grey, opaque = colours[..., 0], np.dstack([colours, np.full((8, 8), 255, np.uint8)])
    palette = Image.fromarray(grey).convert("P", palette=Image.Palette.ADAPTIVE)
    for image, expected in (
        (Image.fromarray(grey), np.dstack([grey] * 3)),
        (Image.fromarray(opaque), colours),
        (palette, np.asarray(palette.convert("RGB"))),
    ):
        image.save(tmp_path / "x.png")
        np.testing.assert_array_equal(decode(tmp_path / "x.png")[0], expected.transpose(2, 0, 1))


@pytest.mark.parametrize(("mode", "file"), [("RGBA", "x.png"), ("LA", "x.png"), ("RGBA", "x.tif")])
def test_transparent_pixels_show_white_and_not_what_they_hide(tmp_path: Path, mode: str, file: str) -> None:
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (2, 0, 4, 2))  # black as well
    image.convert(mode).save(tmp_path / file)
    assert decode(tmp_path / file)[0][:, 0].tolist() == [[0, 0, 255, 255]] * 3


def test_a_transparent_palette_entry_shows_white_and_half_transparency_is_mixed(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=1)
    assert decode(tmp_path / "p.png")[0][:, 0].tolist() == [[10, 255], [20, 255], [30, 255]]
    Image.new("RGBA", (1, 1), (0, 100, 200, 51)).save(tmp_path / "half.png")  # 20 % of the colour
    assert decode(tmp_path / "half.png")[0].ravel().tolist() == [204, 224, 244]


@pytest.mark.parametrize(
    ("largest", "kind", "file"),
    [(65535, "u2", "x.png"), (65535, "u2", "x.tif"), (2**31 - 1, "i4", "x.tif"), (1, "f4", "x.tif")],
)
def test_more_than_8_bits_are_refused_and_not_clipped(
    tmp_path: Path, largest: int, kind: str, file: str
) -> None:
    Image.fromarray(np.linspace(0, largest, 64).reshape(8, 8).astype(kind)).save(tmp_path / file)
    with pytest.raises(ValueError, match=rf"{file} has more than 8 bits a channel .*scale them to 0\.\.255"):
        decode(tmp_path / file, 4)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "in" / f"{n}.jpg" for n in range(6)]
    for number, path in enumerate(paths):
        write_image(path, 30 + number, 20, number)
    return paths


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "data")


def test_decoded_squashes_once_and_reads_back(
    files: list[Path], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, shapes, key = decoded(files, 16, store)
    assert pixels.shape == (6, 3, 16, 16)
    assert shapes.tolist() == [[30 + n, 20] for n in range(6)]
    with Image.open(files[2]) as one:
        expected = np.asarray(one.resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(pixels[2], expected)
    monkeypatch.setattr(images, "decode", None)  # a second call must not decode
    again, _, same = decoded(files, 16, store)
    assert same == key
    assert np.array_equal(again, pixels)
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 0


def test_the_key_is_the_content_not_the_place_the_name_or_the_time(
    files: list[Path], store: Store, tmp_path: Path
) -> None:
    key = decoded(files, 8, store)[2]
    moved = [tmp_path / "elsewhere" / f"{number}.other" for number in range(6)]
    for path, copy in zip(files, moved, strict=True):
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
    assert decoded(moved, 8, store)[2] == key
    assert decoded(files, 9, store)[2] != key
    assert decoded(files[::-1], 8, store)[2] != key
    assert decoded(files[:5], 8, store)[2] != key


def _bitmap(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def test_files_of_equal_names_lengths_and_times_do_not_share_an_entry(tmp_path: Path, store: Store) -> None:
    dark, bright = ([_bitmap(tmp_path / root / "in" / "a.bmp", v)] for root, v in (("x", 10), ("y", 200)))
    first, second = decoded(dark, 8, store), decoded(bright, 8, store)
    assert (first[0].mean(), second[0].mean()) == (10, 200)
    assert first[2] != second[2]
    edited = decoded([_bitmap(dark[0], 11)], 8, store)
    assert edited[0].mean() == 11
    assert edited[2] != first[2]


def test_other_code_decodes_again_under_the_same_key(
    files: list[Path], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = decoded(files, 8, store)
    monkeypatch.setattr(images, "code_digest", lambda module: f"another {module}")
    monkeypatch.setattr(images, "decode", lambda path, size: (7, (1, 1)))
    after = decoded(files, 8, store)
    assert after[0].min() == after[0].max() == 7
    assert after[2] == before[2]


@pytest.mark.parametrize("damage", ["truncated", "empty", "not a jpeg", "missing", "a folder"])
def test_a_bad_file_is_named_and_leaves_nothing(files: list[Path], store: Store, damage: str) -> None:
    bad = files[3]
    content = {"truncated": bad.read_bytes()[:700], "empty": b"", "not a jpeg": b"<html>404</html>"}
    bad.unlink()
    if damage == "a folder":
        bad.mkdir()
    elif damage != "missing":
        bad.write_bytes(content[damage])
    with pytest.raises((ValueError, FileNotFoundError), match=r"3\.jpg .*unpack"):
        decoded(files, 16, store)
    assert not [path for path in store.folder.glob("*") if path.is_dir()]
    if damage == "a folder":
        bad.rmdir()
    write_image(bad, 30, 20, 3)
    assert len(decoded(files, 16, store)[0]) == 6


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [(images, "decode", KeyboardInterrupt()), (os, "posix_fallocate", OSError(errno.ENOSPC, "full"))],
)
def test_an_interrupt_and_a_full_disk_leave_nothing_behind(
    files: list[Path], store: Store, monkeypatch: pytest.MonkeyPatch, owner, name: str, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(owner, name, fail, raising=False)
    with pytest.raises(type(error)):
        decoded(files, 16, store)
    assert [path.suffix for path in store.folder.iterdir()] == [".lock"]
