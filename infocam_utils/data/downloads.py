"""Getting data sets: resume, verify, unpack safely, and only then take their place.

This module knows addresses, sizes, checksums and licences, not what is inside. Nothing runs unasked: only
`get` opens a connection.
"""

from __future__ import annotations

import calendar
import difflib
import errno
import gzip
import hashlib
import http.client
import json
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from infocam_utils.data.store import atomic_write, data_root


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar.gz or zip file into `folder`, which is made anew.

    Modification times are kept, so what is cached by them stays valid after unpacking again.

    Raises
    ------
    ValueError
        A member would be written outside the folder (absolute path, "..", a link that leads out), or the
        archive is truncated or damaged. Nothing is left of it, neither unpacked nor packed.
    OSError
        Not enough free space; the archive is kept.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    whole = False
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder)
        else:
            _unpack_tar(archive, folder)
        whole = True
    except tarfile.FilterError as error:
        _remove(archive)
        raise ValueError(
            f"{archive.name} would write outside its folder: {error}. It was removed; get the "
            "archive from its owners"
        ) from error
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error) as error:
        _remove(archive)
        raise ValueError(
            f"{archive.name} is truncated, damaged or no archive ({error}). It was removed; download it again"
        ) from error
    finally:
        if not whole:
            shutil.rmtree(folder, ignore_errors=True)


def _unpack_tar(archive: Path, folder: Path) -> None:
    with tarfile.open(archive, "r:gz") as tar:
        members = tar.getmembers()
        assert tar.fileobj is not None
        while tar.fileobj.read(1 << 20):  # to the end, where the checksum is: tarfile itself stops before it
            pass
        for member in members:
            _check_name(archive, member.name)
        _check_room(folder, sum(member.size for member in members))
        tar.extractall(folder, members, filter="data")  # refuses devices and links that lead out


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        members = packed.infolist()
        for member in members:
            _check_name(archive, member.filename)
        _check_room(folder, sum(member.file_size for member in members))
        for member in members:
            written = packed.extract(member, folder)
            moment = calendar.timegm((*member.date_time, 0, 0, 0))  # zip files name no time zone
            os.utime(written, (moment, moment))


def _check_name(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive:
        _remove(archive)
        raise ValueError(
            f"{archive.name} would write outside its folder: {name!r}. It was removed; get the "
            "archive from its owners"
        )


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"unpacked it takes {needed / 1e6:.0f} MB, but {free / 1e6:.0f} MB are "
            f"free in {folder.parent}; make room or choose another data directory",
        )


def _remove(archive: Path) -> None:
    archive.unlink(missing_ok=True)
    archive.with_name(archive.name + ".json").unlink(missing_ok=True)


Progress = Callable[[int, int | None], None]  # bytes done, bytes in all (None where the server does not say)
_CHUNK = 1 << 18
_TIMEOUT = 60.0  # seconds without a byte


@dataclass(frozen=True)
class Source:
    """Where a data set comes from. `url` None: nothing to download. `unpacked`: bytes on disk."""

    licence: str
    purpose: str
    url: str | None = None
    size: int = 0
    unpacked: int = 0
    md5: str | None = None


# Sizes and checksums of the two archives: as published and as many independent readers of them state them.
SOURCES = {
    "digits": Source("CC BY 4.0 (UCI)", "PC-softmax on imbalanced real data, always there"),
    "minibirds": Source("this package's", "drawn birds with exact mutual information, boxes and masks"),
    "mnist": Source(
        "CC BY-SA 3.0",
        "the paper's imbalanced MNIST",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        11_594_722,
        66_000_000,
    ),
    "cub200": Source(
        "non-commercial research only (Wah et al., CNS-TR-2011-001)",
        "the paper's imbalanced CUB, localization on birds",
        "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
        1_150_585_339,
        1_300_000_000,
        "97eceeb196236b17998738112f37df78",
    ),
    "tiny-imagenet": Source(
        "non-commercial research only (ImageNet's terms)",
        "localization on 64-pixel photographs",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        248_100_043,
        550_000_000,
        "90528d7ca1a48142e341f4ef8d21d0de",
    ),
}


def how_to_get(name: str) -> str:
    """The sentence for an error about a missing set: the command, the size and the licence.

    >>> print(how_to_get("tiny-imagenet"))
    Get it with `infocam data get tiny-imagenet` (248 MB; non-commercial research only (ImageNet's terms)).
    """
    source = SOURCES[name]
    return f"Get it with `infocam data get {name}` ({_megabytes(source.size)}; {source.licence})."


def status(data_dir: str | Path | None = None) -> list[dict[str, str]]:
    """One row per data set, and per further set that `get` has brought under another name.

    Keys: name, size, licence, purpose, path, state; state is "always there", "missing", "partly downloaded",
    "there, verified" or "there, not verified" (put there by hand).

    >>> [row["state"] for row in status("nowhere")]
    ['always there', 'always there', 'missing', 'missing', 'missing']
    """
    root = data_root(data_dir)
    rows = []
    names = [*SOURCES, *sorted({path.stem for path in root.glob("*.json")} - set(SOURCES))]
    for name in names:
        record = _read_json(root / f"{name}.json")
        source = SOURCES.get(name) or SOURCES[record["name"]]
        if source.url is None:
            state = "always there"
        elif (root / name).is_dir():
            state = "there, verified" if record else "there, not verified"
        elif any((root / ".downloads").glob(f"{name}@*.part")):
            state = "partly downloaded"
        else:
            state = "missing"
        rows.append(
            {
                "name": name,
                "size": _megabytes(record.get("bytes", source.size)),
                "licence": source.licence,
                "purpose": source.purpose,
                "path": str(root / name),
                "state": state,
            }
        )
    return rows


def get(
    name: str,
    data_dir: str | Path | None = None,
    url: str | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
    into: str | None = None,
) -> Path:
    """Download, verify and unpack one data set; return its folder ``<data_root>/<into or name>``.

    A set that is there and verified is left as it is. An interrupted download goes on where it stopped, if
    the server can and the file is still the same. What is checked: `sha256` if given; else the official size
    and MD5, unless `url` and `into` say that this is another archive; else the SHA-256 that the first
    download wrote to ``<into>.json`` beside the folder.

    Parameters
    ----------
    name : a key of `SOURCES` with an address.
    data_dir : see `storage.data_root`.
    url : http, https or file address of a mirror or of another archive of the same layout. For mnist the
        folder with the four files, ending in "/".
    sha256 : expected checksum of the archive, 64 hexadecimal digits.
    progress : called with bytes done and bytes in all (or None) while downloading.
    into : another name for the folder, for archives other than the official one.

    Raises
    ------
    ValueError
        Unknown name, a wrong size or checksum, an archive that is damaged or would write outside.
    ConnectionError
        The server refuses or stops; what has come is kept, and the next call goes on from there.
    FileExistsError
        A folder is in the way that `get` did not make, or the folder there holds another archive.
    OSError
        Not enough free space.
    """
    source = _source(name)
    address = url or source.url
    assert address is not None
    if urlsplit(address).scheme not in ("http", "https", "file"):
        raise ValueError(f"url must begin with http://, https:// or file://, got {address!r}")
    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    folder = into or name
    if Path(folder).name != folder or folder.startswith(".") or folder in ({*SOURCES, "cache"} - {name}):
        raise ValueError(f"into must be a plain folder name and not another data set's, got {folder!r}")
    root = data_root(data_dir)
    workshop = root / ".downloads"
    workshop.mkdir(parents=True, exist_ok=True)
    target, record_file = root / folder, root / f"{folder}.json"
    with FileLock(workshop / f"{folder}.lock"):
        record = _read_json(record_file)
        if target.exists():
            _check_present(target, record, url, sha256)
            return target
        unpacked = workshop / f"{folder}.unpacking"
        if name == "mnist":
            parts, found = _get_mnist(address, folder, workshop, unpacked, progress)
        else:
            official = url is None or into is None or into == name
            part = workshop / f"{folder}@{Path(urlsplit(address).path).name}.part"
            parts = [part]
            if official and sha256 is None:
                check = ("md5", source.md5)
                download(address, part, source.size, source.unpacked, progress)
            else:
                check = ("sha256", sha256.lower() if sha256 else record.get("sha256"))
                download(address, part, progress=progress)
            found = _verify(part, address, *check)
            unpack(part, unpacked)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        record = {"name": name, "url": address, **found, "utc": now}
        atomic_write(record_file, json.dumps(record, indent=1) + "\n")
        os.replace(unpacked, target)  # last: a folder without its record would count as somebody else's
        for part in parts:
            _discard(part)
    return target


def download(
    url: str,
    part: Path,
    size: int | None = None,
    unpacked: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Bring the whole of `url` into the file `part`, going on from what it holds already.

    Beside it lies ``<part>.json`` with the address and the server's mark of this version (ETag or date); the
    rest is asked for on condition that the mark still holds, else the server sends everything anew.
    """
    notes_file = part.with_name(part.name + ".json")
    notes = _read_json(notes_file)
    if notes.get("url") != url or not part.exists():
        notes = {}
    start = part.stat().st_size if notes else 0
    if notes and start == notes["total"]:
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "infocam"}
    if start and notes["mark"]:
        headers |= {"Range": f"bytes={start}-", "If-Range": notes["mark"]}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the server's file ends before ours: it is another one
            _discard(part)
            return download(url, part, size, unpacked, progress)
        raise ConnectionError(
            f"{url} answers {error.code} {error.reason}; try later, or give another address with --url"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"{url} cannot be reached ({error}); check the network, or give another "
            "address with --url (file:// works too)"
        ) from error
    with response:
        if response.status != 206:
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        if size is not None and total is not None and total != size:
            raise ValueError(
                f"{url} offers {total} bytes, the official archive has {size}. If another "
                "archive is meant, give its --sha256, or a folder name with --into"
            )
        expected = total or size or 0
        _check_space(part.parent, expected - start + (unpacked or int(1.5 * expected)))
        mark = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if mark and mark.startswith("W/"):  # a weak mark may not be used for ranges
            mark = response.headers.get("Last-Modified")
        done, trouble = start, "the server closed the connection"
        with open(part, "ab" if start else "wb") as stream:  # what is stale goes before the new mark comes
            atomic_write(notes_file, json.dumps({"url": url, "mark": mark, "total": total}))
            while True:
                try:
                    chunk = response.read1(_CHUNK)  # what is there: nothing is lost if the rest never comes
                except (OSError, http.client.HTTPException) as error:
                    chunk, trouble = b"", str(error) or type(error).__name__
                if not chunk:
                    break
                stream.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
    if (total or size) not in (None, done):
        raise ConnectionError(
            f"{url} stopped after {done} of {total or size} bytes ({trouble}); what has "
            f"come is kept in {part}, the same command goes on from there"
        )


def _verify(part: Path, url: str, kind: str, wanted: str | None) -> dict[str, Any]:
    """Size and checksums of the file; removes it and raises if that of `kind` is not the wanted one."""
    digests = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    with open(part, "rb") as stream:
        while chunk := stream.read(1 << 20):
            for digest in digests.values():
                digest.update(chunk)
    found = {name: digest.hexdigest() for name, digest in digests.items()}
    if wanted is not None and wanted != found[kind]:
        _discard(part)
        raise ValueError(
            f"{url} has {kind} {found[kind]}, expected {wanted}: not the archive that is meant, "
            "or damaged on its way. The file was removed; try again or give another --url"
        )
    checked = f"{kind} {wanted}" if wanted else "nothing known before: first download"
    return {"bytes": part.stat().st_size, **found, "checked against": checked}


def _get_mnist(
    address: str, folder: str, workshop: Path, unpacked: Path, progress: Progress | None
) -> tuple[list[Path], dict[str, Any]]:
    """The four files that torchvision names, by its checksums, unpacked where torchvision looks for them."""
    from torchvision.datasets import MNIST

    raw = unpacked / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    parts = [workshop / f"{folder}@{file}.part" for file, _ in MNIST.resources]
    total = 0
    for part, (file, md5) in zip(parts, MNIST.resources, strict=True):
        download(address + file, part, progress=progress)
        total += _verify(part, address + file, "md5", md5)["bytes"]
        with gzip.open(part) as packed, open(raw / Path(file).stem, "wb") as plain:
            shutil.copyfileobj(packed, plain)
    return parts, {"bytes": total, "checked against": "torchvision's md5 of each file"}


def _source(name: str) -> Source:
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1)
        raise ValueError(
            f"unknown data set {name!r}"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + f" Known: {', '.join(SOURCES)}"
        )
    if SOURCES[name].url is None:
        raise ValueError(f"{name} needs no download: it is always there")
    return SOURCES[name]


def _check_present(target: Path, record: dict[str, Any], url: str | None, sha256: str | None) -> None:
    if not record:
        raise FileExistsError(
            f"{target} is there but was not put there by this command; use it as it is, or "
            "move it away, or choose another folder with --into"
        )
    if (url and url != record["url"]) or (sha256 and sha256.lower() != record.get("sha256")):
        raise FileExistsError(
            f"{target} holds {record['url']} (sha256 {record.get('sha256')}), not what is "
            "asked for; move it away, or choose another folder with --into"
        )


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{_megabytes(needed)} are needed for the download and unpacking, but "
            f"{_megabytes(free)} are free in {folder}; make room or choose another directory",
        )


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(part.name + ".json").unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _megabytes(count: int) -> str:
    if count == 0:
        return "no download"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
