"""Downloads against a web server on loopback: whole, interrupted, resumed, refused, damaged, hostile."""

import errno
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from small_sets import write_cub, write_tiny
from torchvision.datasets import MNIST

from infocam_utils.data import downloads
from infocam_utils.data.downloads import SOURCES, get, status
from infocam_utils.data.sets import CUB, TinyImageNet, load_images


class Site:
    """What the server serves and how it misbehaves."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.mark: str | None = '"one"'
        self.ranges = True
        self.cut: int | None = None  # bytes after which nothing more comes
        self.hang = 0.0  # seconds until the connection is closed then
        self.asked: list[str | None] = []  # the Range header of each request
        self.address = ""


@pytest.fixture
def site() -> Iterator[Site]:
    place = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            place.asked.append(asked)
            body = place.files.get(self.path)
            if body is None:
                self.send_error(404)
                return
            start = 0
            if asked and place.ranges and self.headers.get("If-Range") == place.mark:
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
                if start >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            if place.mark:
                self.send_header("ETag", place.mark)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start:] if place.cut is None else body[start : place.cut])
            self.wfile.flush()
            time.sleep(place.hang)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    place.address = f"http://127.0.0.1:{server.server_port}"
    yield place
    server.shutdown()
    server.server_close()


def packed(folder: Path, kind: str) -> bytes:
    """The archive of a folder, under its own name, as its owners would pack it."""
    archive = shutil.make_archive(str(folder.parent / "packed"), kind, folder.parent, folder.name)
    return Path(archive).read_bytes()


@pytest.fixture
def cub(site: Site, tmp_path: Path) -> str:
    site.files["/CUB_200_2011.tgz"] = packed(write_cub(tmp_path / "source"), "gztar")
    return site.address + "/CUB_200_2011.tgz"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def left(data: Path) -> list[str]:
    """Everything in the data directory but locks."""
    return sorted(
        str(path.relative_to(data)) for path in data.rglob("*") if path.is_file() and path.suffix != ".lock"
    )


def state(data: Path, name: str) -> str:
    return next(row["state"] for row in status(data) if row["name"] == name)


def test_a_whole_run_with_the_cub_layout(site: Site, cub: str, tmp_path: Path) -> None:
    data, seen = tmp_path / "data", []
    checksum = sha256(site.files["/CUB_200_2011.tgz"])
    folder = get("cub200", data, cub, checksum.upper(), lambda done, total: seen.append((done, total)))
    assert folder == data / "cub200"
    size = len(site.files["/CUB_200_2011.tgz"])
    assert seen[-1] == (size, size)
    assert len(CUB(folder)) == 4
    assert load_images("cub200", "train", data, size=8).boxes is not None
    record = json.loads((data / "cub200.json").read_text())
    assert record["sha256"] == checksum
    assert record["checked against"] == f"sha256 {checksum}"
    assert not any((data / ".downloads").glob("*.part*"))
    get("cub200", data, cub, checksum)  # there and verified: no second request
    assert len(site.asked) == 1
    assert state(data, "cub200") == "there, verified"


def test_a_whole_run_with_the_tiny_imagenet_layout(site: Site, tmp_path: Path) -> None:
    site.files["/tiny.zip"] = packed(write_tiny(tmp_path / "source"), "zip")
    folder = get("tiny-imagenet", tmp_path / "data", site.address + "/tiny.zip", into="tiny-2")
    assert len(TinyImageNet(folder)) == 4
    assert state(tmp_path / "data", "tiny-2") == "there, verified"


def test_unpacking_again_keeps_what_was_cached(site: Site, tmp_path: Path) -> None:
    for kind, write, name in (("zip", write_tiny, "tiny-imagenet"), ("gztar", write_cub, "cub200")):
        site.files["/a"] = packed(write(tmp_path / kind), kind)
        keys = set()
        for data in (tmp_path / "one", tmp_path / "two"):
            get(name, data, site.address + "/a", into="small")
            keys.add(load_images("small", "train", data, size=8).key)
            shutil.rmtree(data)
        assert len(keys) == 1


@pytest.mark.parametrize("way", ["stops", "interrupted"])
def test_a_download_goes_on_where_it_stopped(
    site: Site, cub: str, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_CHUNK", 700)
    data, content = tmp_path / "data", site.files["/CUB_200_2011.tgz"]
    if way == "stops":
        site.cut = 1000
        with pytest.raises(ConnectionError, match=rf"stopped after 1000 of {len(content)} bytes.*is kept in"):
            get("cub200", data, cub, into="small")
    else:

        def interrupt(done: int, total: int | None) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            get("cub200", data, cub, into="small", progress=interrupt)
    part = next((data / ".downloads").glob("small@*.part"))
    begun = part.stat().st_size
    assert part.read_bytes() == content[:begun] != b""
    assert not (data / "small").exists()
    assert state(data, "cub200") == "missing"  # cub200 itself was not asked for
    site.cut = None
    folder = get("cub200", data, cub, into="small", sha256=sha256(content))
    assert len(CUB(folder)) == 4
    assert site.asked == [None, f"bytes={begun}-"]


def test_a_server_that_falls_silent(
    site: Site, cub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_TIMEOUT", 0.2)
    site.cut, site.hang = 1000, 1.0
    with pytest.raises(ConnectionError, match=r"stopped after 1000 of \d+ bytes \(timed out\)"):
        get("cub200", tmp_path / "data", cub, into="small")
    site.cut, site.hang = None, 0.0
    assert len(CUB(get("cub200", tmp_path / "data", cub, into="small"))) == 4
    assert site.asked == [None, "bytes=1000-"]


def test_an_interrupt_while_unpacking_keeps_the_archive(
    site: Site, cub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extractall", interrupt)
        with pytest.raises(KeyboardInterrupt):
            get("cub200", tmp_path / "data", cub, into="small")
    assert not list((tmp_path / "data").glob("**/CUB_200_2011"))
    get("cub200", tmp_path / "data", cub, into="small")
    assert len(site.asked) == 1


def test_status_tells_of_a_download_that_has_begun(site: Site, cub: str, tmp_path: Path) -> None:
    site.cut = 100
    with pytest.raises(ConnectionError):
        get("cub200", tmp_path / "data", cub, sha256="0" * 64)
    assert state(tmp_path / "data", "cub200") == "partly downloaded"


@pytest.mark.parametrize("change", ["no ranges", "no mark", "weak mark", "another file", "shorter file"])
def test_what_cannot_be_resumed_starts_anew(site: Site, cub: str, tmp_path: Path, change: str) -> None:
    data, content = tmp_path / "data", site.files["/CUB_200_2011.tgz"]
    site.mark = {"no mark": None, "weak mark": 'W/"one"'}.get(change, '"one"')
    site.cut = len(content) - 10
    with pytest.raises(ConnectionError, match="stopped after"):
        get("cub200", data, cub, into="small")
    site.cut, site.ranges = None, change != "no ranges"
    if change == "another file":
        site.mark = '"two"'
        content = site.files["/CUB_200_2011.tgz"] = packed(write_cub(tmp_path / "other", False), "gztar")
    elif change == "shorter file":  # than what is here already: the server answers 416
        next((data / ".downloads").glob("small@*.part")).write_bytes(content + b"more")
    assert len(CUB(get("cub200", data, cub, into="small", sha256=sha256(content)))) == 4


def test_a_wrong_checksum_removes_the_file(site: Site, cub: str, tmp_path: Path) -> None:
    found = sha256(site.files["/CUB_200_2011.tgz"])
    with pytest.raises(ValueError, match=rf"has sha256 {found}, expected {'0' * 64}"):
        get("cub200", tmp_path / "data", cub, "0" * 64)
    assert left(tmp_path / "data") == []


def test_the_official_size_and_checksum_are_checked(
    site: Site, cub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"offers \d+ bytes, the official archive has 1150585339.*--into"):
        get("cub200", tmp_path / "data", cub)
    assert left(tmp_path / "data") == []
    size = len(site.files["/CUB_200_2011.tgz"])
    official = SOURCES["cub200"]
    fake = downloads.Source(official.licence, official.purpose, cub, size, 1000, official.md5)
    monkeypatch.setitem(SOURCES, "cub200", fake)
    with pytest.raises(ValueError, match=f"expected {official.md5}"):
        get("cub200", tmp_path / "data")
    right = hashlib.md5(site.files["/CUB_200_2011.tgz"]).hexdigest()
    monkeypatch.setitem(SOURCES, "cub200", downloads.Source("l", "p", cub, size, 1000, right))
    get("cub200", tmp_path / "data")
    assert json.loads((tmp_path / "data" / "cub200.json").read_text())["checked against"] == f"md5 {right}"


def test_the_first_download_sets_the_checksum_for_the_next(site: Site, cub: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.rmtree(get("cub200", data, cub, into="small"))
    site.files["/CUB_200_2011.tgz"] = packed(write_cub(tmp_path / "other", boxes=False), "gztar")
    with pytest.raises(ValueError, match="not the archive that is meant"):
        get("cub200", data, cub, into="small")


@pytest.mark.parametrize("kind", ["gztar", "zip"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "a web page"])
def test_a_damaged_archive_leaves_nothing(site: Site, tmp_path: Path, kind: str, damage: str) -> None:
    content = packed(write_cub(tmp_path / "source"), kind)
    middle = len(content) // 2
    site.files["/a"] = {
        "truncated": content[:middle],
        "a web page": b"<html>please log in</html>",
        "flipped": content[:middle] + bytes(99) + content[middle + 99 :],
    }[damage]
    with pytest.raises(ValueError, match="truncated, damaged or no archive"):
        get("cub200", tmp_path / "data", site.address + "/a", into="small")
    assert left(tmp_path / "data") == []


def _hostile(kind: str, name: str) -> bytes:
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("good/file", "x")
            archive.writestr(name, "x")
        return stream.getvalue()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo(name if kind == "tar" else "good/link")
        if kind != "tar":
            member.type = tarfile.SYMTYPE if kind == "symlink" else tarfile.LNKTYPE
            member.linkname = name
        archive.addfile(member, io.BytesIO(b""))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("tar", "../evil"),
        ("tar", "/evil"),
        ("tar", "good/../../evil"),
        ("zip", "../evil"),
        ("zip", "/evil"),
        ("zip", "..\\evil"),
        ("zip", "C:\\evil"),
        ("symlink", "../../evil"),
        ("symlink", "/etc"),
        ("hardlink", "../../evil"),
    ],
)
def test_an_archive_that_escapes_is_refused(site: Site, tmp_path: Path, kind: str, name: str) -> None:
    site.files["/a"] = _hostile(kind, name)
    with pytest.raises(ValueError, match="would write outside its folder"):
        get("cub200", tmp_path / "data", site.address + "/a", into="small")
    assert left(tmp_path) == []


@pytest.mark.parametrize("when", ["before", "while unpacking"])
def test_no_space_is_said_up_front(
    site: Site, cub: str, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([1000] if when == "before" else [10**12, 1000])
    usage = type("Usage", (), {})

    def disk_usage(_: Path) -> object:
        free = usage()
        free.free = next(answers)
        return free

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(OSError, match=r"MB are (needed|free).*make room") as caught:
        get("cub200", tmp_path / "data", cub, into="small")
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert not (tmp_path / "data" / "small").exists()
    get("cub200", tmp_path / "data", cub, into="small")
    assert len(site.asked) == (2 if when == "before" else 1)  # what had come was not fetched again


def test_404_and_an_address_without_a_server(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match=r"answers 404 Not Found; try later, or .* --url"):
        get("cub200", tmp_path / "data", site.address + "/nothing.tgz", into="small")
    with pytest.raises(ConnectionError, match="cannot be reached"):
        get("cub200", tmp_path / "data", "http://127.0.0.1:9/x.tgz", into="small")
    with pytest.raises(ConnectionError, match=r"cannot be reached .*No such file"):
        get("cub200", tmp_path / "data", (tmp_path / "none.tgz").as_uri(), into="small")
    assert left(tmp_path / "data") == []


def test_a_file_address(tmp_path: Path) -> None:
    packed(write_cub(tmp_path / "source"), "gztar")
    address = (tmp_path / "source" / "packed.tar.gz").as_uri()
    folder = get("cub200", tmp_path / "data", address, into="small")
    assert len(CUB(folder, "test")) == 2


def test_a_folder_put_there_by_hand_is_left_alone(site: Site, cub: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "cub200").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="was not put there by this command"):
        get("cub200", data, cub, "0" * 64)
    assert state(data, "cub200") == "there, not verified"
    get("cub200", data, cub, into="small")
    with pytest.raises(FileExistsError, match="not what is asked for"):
        get("cub200", data, cub, "0" * 64, into="small")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cub20",), "unknown data set 'cub20'; did you mean 'cub200'?"),
        (("digits",), "digits needs no download"),
        (("cub200", None, "ftp://example.org/x"), "url must begin with"),
        (("cub200", None, None, "abc"), "sha256 must be 64 hexadecimal digits, got 'abc'"),
        (("cub200", None, None, None, None, "../x"), "into must be a plain folder name"),
        (("cub200", None, None, None, None, "mnist"), "into must be a plain folder name"),
        (("cub200", None, None, None, None, "cache"), "into must be a plain folder name"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_happens(
    arguments: tuple, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFOCAM_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(message)):
        get(*arguments)
    assert not list(tmp_path.iterdir())


def test_two_who_want_the_same_download_once(site: Site, cub: str, tmp_path: Path) -> None:
    def work() -> None:
        get("cub200", tmp_path / "data", cub, into="small")

    both = [threading.Thread(target=work) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(site.asked) == 1
    assert len(CUB(tmp_path / "data" / "small")) == 4


def test_mnist_lies_where_torchvision_looks(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = np.arange(3, dtype=np.uint8)
    plain = {
        "images": b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (3, 28, 28)) + bytes(3 * 784),
        "labels": b"\0\0\x08\x01" + (3).to_bytes(4, "big") + digits.tobytes(),
    }
    resources = []
    for file, _ in MNIST.resources:
        body = gzip.compress(plain["images" if "images" in file else "labels"], mtime=0)
        site.files[f"/m/{file}"] = body
        resources.append((file, hashlib.md5(body).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)
    site.cut = 10
    with pytest.raises(ConnectionError, match="stopped after 10 of"):
        get("mnist", tmp_path / "data", site.address + "/m/")
    assert state(tmp_path / "data", "mnist") == "partly downloaded"
    site.cut = None
    get("mnist", tmp_path / "data", site.address + "/m/")
    assert load_images("mnist", "test", tmp_path / "data").labels.tolist() == [0, 1, 2]
    assert load_images("mnist", "train", tmp_path / "data").images.shape == (3, 3, 28, 28)
    shutil.rmtree(tmp_path / "data")
    site.files[f"/m/{resources[2][0]}"] = b"damaged"
    with pytest.raises(ValueError, match=f"expected {resources[2][1]}"):
        get("mnist", tmp_path / "data", site.address + "/m/")
    with pytest.raises(FileNotFoundError):
        load_images("mnist", "test", tmp_path / "data")


ARCHIVES = [
    (
        "cub200",
        "CUB_200_2011-40-classes-photos.tgz",
        CUB,
        {"train": 1200, "test": 1108},
        "99b27a8c8a3e5e447fa14176d0b0e43677bd0e5d803c965b83bf5b75c3cc305e",
    ),
    (
        "tiny-imagenet",
        "tiny-imagenet-200-20-classes.zip",
        TinyImageNet,
        {"train": 10_000, "val": 1_000},
        "f097c5cf1a277cd0c38603c13660bbf15c0918665ad7fe025d119c8ac8717a08",
    ),
]


@pytest.mark.parametrize(("name", "file", "reader", "counts", "checksum"), ARCHIVES)
def test_the_real_archives(
    site: Site, tmp_path: Path, name: str, file: str, reader: type, counts: dict[str, int], checksum: str
) -> None:
    archive = Path(os.environ.get("INFOCAM_DATA", "nowhere")) / file
    if not archive.is_file():
        pytest.skip(f"INFOCAM_DATA names no folder that holds {file}")
    content = archive.read_bytes()
    site.files[f"/{file}"], site.cut = content, len(content) // 2
    with pytest.raises(ConnectionError, match="stopped after"):
        get(name, tmp_path, f"{site.address}/{file}", checksum, into="part")
    site.cut = None
    folder = get(name, tmp_path, f"{site.address}/{file}", checksum, into="part")
    assert site.asked == [None, f"bytes={len(content) // 2}-"]
    for split, count in counts.items():
        assert len(reader(folder, split, need_boxes=True)) == count
