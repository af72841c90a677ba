"""Getting data sets: download, verify, unpack safely, and only then take their place.

Nothing runs unasked: only `get` opens a connection. Addresses, sizes and checksums are in the table of
`infocam_utils.data.sets`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pooch
import requests
from filelock import FileLock

from infocam_utils.data.sets import SETS, DataSet, megabytes
from infocam_utils.data.store import atomic_write, data_root

Progress = Callable[[int, int | None], None]  # bytes done, bytes in all (None where the server does not say)
_TIMEOUT = 60.0  # seconds without a byte
_CHUNK = 1 << 18
# What an archive that the table does not know may hold: photographs hardly shrink in one.
_MOST_FILES, _MOST_GROWTH, _ALWAYS_ALLOWED = 1_000_000, 20, 100_000_000


class _BadArchive(Exception):
    """What is wrong with an archive, as the end of a sentence; no ValueError, for pooch would try again."""


def status(data_dir: str | Path | None = None) -> list[dict[str, str]]:
    """One row per data set, and per further set that `get` has brought under another name.

    Keys: name, title, size, licence, purpose, path, state; state is "always there", "missing", "there,
    verified" or "there, not verified" (put there by hand).

    >>> [row["state"] for row in status("nowhere")]
    ['always there', 'always there', 'missing', 'missing', 'missing']
    """
    root = data_root(data_dir)
    records = {path.stem: record for path in sorted(root.glob("*.json")) if (record := _record(path))}
    rows = []
    for name, record in ({name: {} for name in SETS} | records).items():
        row = SETS[record.get("name", name)]
        if row.url is None:
            state = "always there"
        elif (root / name).is_dir():
            state = "there, verified" if record else "there, not verified"
        else:
            state = "missing"
        about = {"title": row.title, "licence": row.licence, "purpose": row.purpose}
        size = megabytes(record.get("bytes", row.bytes))
        rows.append({"name": name, "size": size, "path": str(root / name), "state": state} | about)
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

    A set that is there and verified is left as it is. What is checked: `sha256` if given; else the official
    size and MD5, unless `url` and `into` say that this is another archive; else the SHA-256 that the first
    download wrote to ``<into>.json`` beside the folder. Connections that fail are tried again by pooch.

    Parameters
    ----------
    url : http, https or file address of a mirror or of another archive (tar.gz or zip) of the same layout.
        For mnist the folder with the four files that torchvision names; it checks each by its MD5.
    sha256 : expected checksum of the archive, 64 hexadecimal digits.
    into : another name for the folder, for archives other than the official one.

    Raises
    ------
    ValueError
        Unknown name; a wrong size or checksum; an archive that is damaged, would write outside its folder or
        unpacks to more than its set can hold (the table's `unpacked` and `files`; for another archive 20
        times its size and a million files). Nothing is left of it, so that the next try starts anew.
    ConnectionError
        The server refuses or stops.
    FileExistsError
        A folder is in the way that `get` did not make, or the folder there holds another archive.
    OSError
        Not enough free space. An archive that is whole stays and is not fetched again.
    """
    row = SETS.get(name)
    if row is None or row.url is None:
        others = ", ".join(other.name for other in SETS.values() if other.url)
        raise ValueError(f"{name!r} cannot be downloaded; can be: {others}")
    address, folder, progress = url or row.url, into or name, progress or (lambda done, total: None)
    if urlsplit(address).scheme not in ("http", "https", "file"):
        raise ValueError(f"url must begin with http://, https:// or file://, got {address!r}")
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    if sha256 is not None and row.md5 is None:
        raise ValueError(f"{name} is several files, each checked by torchvision's MD5: leave sha256 out")
    if Path(folder).name != folder or folder.startswith(".") or folder in ({*SETS, "cache"} - {name}):
        raise ValueError(f"into must be a plain folder name and not another data set's, got {folder!r}")
    root = data_root(data_dir)
    target, record_file, workshop = root / folder, root / f"{folder}.json", root / ".downloads" / folder
    workshop.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{workshop}.lock"):
        record = _record(record_file)
        known = {"url": record.get("url"), "sha256": record.get("sha256")}
        asked = {"url": url or known["url"], "sha256": sha256.lower() if sha256 else known["sha256"]}
        if target.exists():
            if not record or asked != known:
                raise FileExistsError(
                    f"{target} holds {known['url'] or 'what was not put there by this command'}, not what is "
                    "asked for; use it as it is, move it away, or choose another folder with --into"
                )
            return target
        official = row if sha256 is None and (url is None or folder == name) else None
        archive = workshop / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}.archive"
        draft = workshop / "draft"
        shutil.rmtree(draft, ignore_errors=True)  # what a killed process has left
        draft.mkdir(parents=True)
        try:
            if row.md5 is None:
                found = _get_mnist(address, draft / "unpacked", progress)
            else:
                if not archive.exists():
                    os.replace(_fetch(address, draft, official, progress), archive)
                found = _verify(archive, official, asked["sha256"])
                _unpack(archive, draft / "unpacked", official)
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            same = row.md5 is None or found.get("md5") == row.md5  # else any archive of the same layout
            record = {"name": name, "url": address, **found, "official": same, "utc": now}
            atomic_write(record_file, json.dumps(record, indent=1) + "\n")
            os.replace(draft / "unpacked", target)  # last: without its record it would count as another's
            archive.unlink(missing_ok=True)
        except _BadArchive as error:
            archive.unlink(missing_ok=True)
            raise ValueError(
                f"{address} {error}. Nothing of it was kept; try again, give another --url or, if another "
                "archive is meant, its --sha256 or a folder with --into"
            ) from error
        finally:
            shutil.rmtree(draft if archive.exists() else workshop, ignore_errors=True)
    return target


def _fetch(url: str, folder: Path, official: DataSet | None, progress: Progress) -> Path:
    """Bring `url` into a file in the folder, which is there whole or not at all."""

    def download(url: str, file: str, _: pooch.Pooch) -> None:
        if urlsplit(url).scheme == "file":
            path = url2pathname(urlsplit(url).path)
            check(size := os.stat(path).st_size)
            shutil.copyfile(path, file)
            progress(size, size)
            return
        headers = {"Accept-Encoding": "identity", "User-Agent": "infocam"}
        with requests.get(url, stream=True, headers=headers, timeout=_TIMEOUT) as answer:
            if 400 <= answer.status_code < 500:  # pooch does not ask again: the answer would be the same
                raise ConnectionError(f"it answers {answer.status_code} {answer.reason}")
            answer.raise_for_status()
            total = int(answer.headers.get("Content-Length", 0))
            check(total)
            with open(file, "wb") as stream:
                for chunk in answer.iter_content(_CHUNK):
                    stream.write(chunk)
                    progress(stream.tell(), total or None)

    def check(size: int) -> None:
        """Refuse what cannot be right or does not fit; 0: unknown."""
        if official is not None:
            _check_size(size or official.bytes, official)
        _check_space(folder, official.bytes + official.unpacked if official else size * 5 // 2)

    pooch.get_logger().setLevel(logging.ERROR)
    fetcher = pooch.create(folder, "", registry={"archive": None}, urls={"archive": url}, retry_if_failed=2)
    try:
        return Path(fetcher.fetch("archive", downloader=download))
    except (OSError, ValueError) as error:  # ValueError: an answer that is not HTTP
        if _is_of_this_place(error):
            raise
        raise ConnectionError(
            f"{url} cannot be fetched ({error}); check the network, or give another address with --url "
            "(file:// works too)"
        ) from error


def _is_of_this_place(error: Exception) -> bool:
    """Whether it is the disk or its rights, and not what was fetched."""
    place = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
    return isinstance(error, OSError) and error.errno in place


def _check_size(size: int, official: DataSet) -> None:
    if size != official.bytes:
        raise _BadArchive(f"has {size} bytes, the official archive has {official.bytes}")


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{megabytes(needed)} are needed, but {megabytes(free)} are free in {folder}; make room or "
            "choose another data directory",
        )


def _verify(archive: Path, official: DataSet | None, sha256: str | None) -> dict[str, Any]:
    """Size and checksums of the file, which must be the official or the wanted ones."""
    size = archive.stat().st_size
    found = {kind: pooch.file_hash(str(archive), kind) for kind in ("sha256", "md5")}
    kind, wanted = "sha256", sha256
    if official is not None:
        _check_size(size, official)
        kind, wanted = "md5", official.md5
    if wanted not in (None, found[kind]):
        raise _BadArchive(f"has {kind} {found[kind]}, expected {wanted}: another archive, or damaged")
    checked = f"{kind} {wanted}" if wanted else "nothing known before: first download"
    return {"bytes": size, **found, "checked against": checked}


def _unpack(archive: Path, folder: Path, official: DataSet | None) -> None:
    """Unpack a tar.gz or zip file into the new folder, once all its members are known to be right."""

    def check(members: Iterable[tuple[str, int]]) -> None:
        most_bytes, most_files = _MOST_GROWTH * archive.stat().st_size + _ALWAYS_ALLOWED, _MOST_FILES
        if official is not None:
            most_bytes, most_files = official.unpacked, official.files
        total = 0
        for count, (name, size) in enumerate(members, start=1):
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive:
                raise _BadArchive(f"would write outside its folder: {name!r}")
            total += size
            if total > most_bytes or count > most_files:
                most = f"{megabytes(most_bytes)} or {most_files} files"
                raise _BadArchive(f"holds more than can be right: over {most}")
        _check_space(folder, total)

    folder.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                check((member.filename, member.file_size) for member in packed.infolist())
                packed.extractall(folder)
        else:
            with tarfile.open(archive, "r:gz") as tar:
                check((member.name, member.size) for member in tar)
                assert tar.fileobj is not None
                while tar.fileobj.read(1 << 20):  # to the checksum at the end, before which tarfile stops
                    pass
                tar.extractall(folder, filter="data")  # refuses devices and links that lead out
    except _BadArchive:
        raise
    except Exception as error:  # damage shows as any of a dozen kinds, from KeyError to OverflowError
        if _is_of_this_place(error):
            raise
        raise _BadArchive(f"cannot be unpacked ({type(error).__name__}: {error})") from error


def _get_mnist(address: str, folder: Path, progress: Progress) -> dict[str, Any]:
    """The four files where torchvision looks for them, by its own download and checksums."""
    from torchvision.datasets import MNIST

    # of the same name, because the folder is called by it
    source = type("MNIST", (MNIST,), {"mirrors": [address.rstrip("/") + "/"]})
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its own progress bar
            source(folder, download=True)
    except (RuntimeError, OSError) as error:
        if _is_of_this_place(error):
            raise
        text = " ".join(str(error).split())
        if "corrupted" in text:
            raise _BadArchive(f"has a file that is not the official one by its MD5 ({text})") from error
        raise ConnectionError(f"{text}; try later, or give another address with --url") from error
    packed = [folder / "MNIST" / "raw" / file for file, _ in MNIST.resources]
    size = sum(file.stat().st_size for file in packed)
    for file in packed:
        file.unlink()
    progress(size, size)
    return {"bytes": size, "checked against": "torchvision's md5 of each file"}


def _record(path: Path) -> dict[str, Any]:
    """What `get` has written beside a folder; empty where this is no such record."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        right = isinstance(content["url"], str) and isinstance(content["bytes"], int)
        return content if right and content["name"] in SETS else {}
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return {}
