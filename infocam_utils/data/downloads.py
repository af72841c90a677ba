"""Getting data sets: download, verify, unpack safely, and only then take their place.

Nothing runs unasked: only `get` opens a connection. Addresses, sizes and checksums are in the table of
`infocam_utils.data.sets`.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import io
import json
import logging
import os
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
_RETRIES = 2
_TIMEOUT = 60.0  # seconds without a byte
_CHUNK = 1 << 18
# What an archive that the table does not know may hold: photographs hardly shrink in one.
_MOST_FILES, _MOST_GROWTH, _ALWAYS_ALLOWED = 1_000_000, 20, 100_000_000
_PLACE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def status(data_dir: str | Path | None = None) -> list[dict[str, str]]:
    """One row per data set, and per further set that `get` has brought under another name.

    Keys: name, title, size, licence, purpose, path, state; state is "always there", "missing", "there,
    verified" or "there, not verified" (put there by hand).

    >>> [row["state"] for row in status("nowhere")]
    ['always there', 'always there', 'missing', 'missing', 'missing']
    """
    root = data_root(data_dir)
    records = {path.stem: _record(path) for path in sorted(root.glob("*.json"))}
    rows = []
    for name in [*SETS, *(stem for stem in records if stem not in SETS)]:
        record = records.get(name, {})
        if name not in SETS and not record:
            continue  # some other JSON file
        row = SETS[record.get("name", name)]
        if row.url is None:
            state = "always there"
        elif (root / name).is_dir():
            state = "there, verified" if record else "there, not verified"
        else:
            state = "missing"
        rows.append(
            {
                "name": name,
                "title": row.title,
                "size": megabytes(record.get("bytes", row.bytes)),
                "licence": row.licence,
                "purpose": row.purpose,
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

    A set that is there and verified is left as it is. What is checked: `sha256` if given; else the official
    size and MD5, unless `url` and `into` say that this is another archive; else the SHA-256 that the first
    download wrote to ``<into>.json`` beside the folder. Connections that fail are tried again by pooch.

    Parameters
    ----------
    name : a name in `SETS` with an address.
    data_dir : see `data_root`.
    url : http, https or file address of a mirror or of another archive (tar.gz or zip) of the same layout.
        For mnist the folder with the four files that torchvision names; it checks each by its MD5.
    sha256 : expected checksum of the archive, 64 hexadecimal digits.
    progress : called with bytes done and bytes in all (or None) while downloading.
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
        Not enough free space. An archive that is verified stays and is not fetched again.
    """
    row = _downloadable(name)
    address, folder = url or str(row.url), into or name
    if urlsplit(address).scheme not in ("http", "https", "file"):
        raise ValueError(f"url must begin with http://, https:// or file://, got {address!r}")
    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    if sha256 is not None and row.md5 is None:
        raise ValueError(f"{name} is several files, each checked by torchvision's MD5: leave sha256 out")
    if Path(folder).name != folder or folder.startswith(".") or folder in ({*SETS, "cache"} - {name}):
        raise ValueError(f"into must be a plain folder name and not another data set's, got {folder!r}")
    root = data_root(data_dir)
    target, record_file = root / folder, root / f"{folder}.json"
    workshop = root / ".downloads" / folder
    workshop.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{workshop}.lock"):
        record = _record(record_file)
        if target.exists():
            _check_present(target, record, url, sha256)
            return target
        workshop.mkdir(exist_ok=True)
        archive = workshop / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}.archive"
        _sweep(workshop, archive)
        unpacked = workshop / "unpacked"
        try:
            if row.md5 is None:
                found = _get_mnist(address, unpacked, progress)
            else:
                official = sha256 is None and (url is None or folder == name)
                _fetch(address, archive, row if official else None, progress)
                known = ("md5", row.md5) if official else ("sha256", sha256 or record.get("sha256"))
                found = _verify(archive, address, row.bytes if official else None, *known)
                growth = _MOST_GROWTH * found["bytes"] + _ALWAYS_ALLOWED
                _unpack(
                    archive, unpacked, *((row.unpacked, row.files) if official else (growth, _MOST_FILES))
                )
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            record = {"name": name, "url": address, **found, "utc": now}
            atomic_write(record_file, json.dumps(record, indent=1) + "\n")
            os.replace(unpacked, target)  # last: a folder without its record would count as somebody else's
            archive.unlink(missing_ok=True)
        finally:
            _sweep(workshop, archive)
            with contextlib.suppress(OSError):  # not empty
                workshop.rmdir()
    return target


def _unpack(archive: Path, folder: Path, most_bytes: int, most_files: int) -> None:
    """Unpack a tar.gz or zip file into the new folder `folder`; remove the file if it is a bad one."""
    folder.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                members = [(member.filename, member.file_size) for member in packed.infolist()]
                _check_members(members, most_bytes, most_files, folder)
                packed.extractall(folder)
        else:
            with tarfile.open(archive, "r:gz") as tar:
                inside = ((member.name, member.size) for member in tar)
                _check_members(inside, most_bytes, most_files, folder)
                assert tar.fileobj is not None
                while tar.fileobj.read(1 << 20):  # to the checksum at the end, before which tarfile stops
                    pass
                tar.extractall(folder, filter="data")  # refuses devices and links that lead out
    except Exception as error:  # damage shows as any of a dozen kinds, from KeyError to OverflowError
        if isinstance(error, OSError) and error.errno in _PLACE_ERRORS:
            raise
        why = f"is truncated, damaged, encrypted or no archive ({type(error).__name__}: {error})"
        if isinstance(error, _BadArchive):
            why = str(error)
        elif isinstance(error, tarfile.FilterError):
            why = f"would write outside its folder: {error}"
        archive.unlink()
        raise ValueError(f"the archive {why}. It was removed; get it from its owners") from error


class _BadArchive(Exception):
    """What is wrong with an archive, as the end of a sentence."""


def _check_members(
    members: Iterable[tuple[str, int]], most_bytes: int, most_files: int, folder: Path
) -> None:
    """Names, count and total size of an archive's members, before anything is written."""
    total = 0
    for count, (name, size) in enumerate(members, start=1):
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive:
            raise _BadArchive(f"would write outside its folder: {name!r}")
        total += size
        if total > most_bytes or count > most_files:
            raise _BadArchive(
                f"holds more than can be right: over {megabytes(most_bytes)} or {most_files} files"
            )
    _check_space(folder.parent, total)


def _fetch(url: str, file: Path, official: DataSet | None, progress: Progress | None) -> None:
    """Bring `url` into `file`, which is there whole or not at all."""
    pooch.get_logger().setLevel(logging.ERROR)
    fetcher = pooch.create(
        file.parent, "", registry={file.name: None}, urls={file.name: url}, retry_if_failed=_RETRIES
    )
    meter = _Meter(url, file.parent, official, progress)
    try:
        fetcher.fetch(file.name, downloader=meter.download)
    except _WrongSize as error:
        raise ValueError(str(error)) from error
    except (requests.RequestException, ValueError) as error:  # ValueError: an answer that is not HTTP
        raise ConnectionError(
            f"{url} cannot be fetched ({error}), tried {1 + _RETRIES} times; check the network, or give "
            "another address with --url (file:// works too)"
        ) from error


class _WrongSize(Exception):
    """No ValueError, after which pooch would try again."""


class _Meter:
    """A progress bar as pooch takes one, which also refuses what cannot be right or does not fit."""

    def __init__(self, url: str, folder: Path, official: DataSet | None, progress: Progress | None) -> None:
        self.url, self.folder, self.official, self.progress = url, folder, official, progress
        self.done, self._total = 0, 0

    def download(self, url: str, output_file: str, fetcher: pooch.Pooch) -> None:
        self.done = 0
        if urlsplit(url).scheme == "file":
            try:
                self.total = os.stat(path := url2pathname(urlsplit(url).path)).st_size
                shutil.copyfile(path, output_file)
            except (FileNotFoundError, IsADirectoryError) as error:
                raise ConnectionError(f"{url} cannot be fetched ({error})") from error
            self.update(self.total)
            return
        headers = {"Accept-Encoding": "identity", "User-Agent": "infocam"}
        bring = pooch.HTTPDownloader(self, _CHUNK, headers=headers, timeout=_TIMEOUT)
        try:
            bring(url, output_file, fetcher)
        except requests.HTTPError as error:
            response = error.response
            if response is None or response.status_code >= 500:
                raise
            raise ConnectionError(  # which pooch does not try again: the server would say the same
                f"{url} answers {response.status_code} {response.reason}; try later, or give another address "
                "with --url"
            ) from error

    @property
    def total(self) -> int:
        return self._total

    @total.setter
    def total(self, total: int) -> None:  # what the server announces, 0 for nothing
        self._total = total
        if self.official is not None and total not in (0, self.official.bytes):
            raise _WrongSize(_wrong_size(self.url, total, self.official.bytes))
        size = total or (self.official.bytes if self.official else 0)
        _check_space(self.folder, size + (self.official.unpacked if self.official else size * 3 // 2))

    def update(self, count: int) -> None:
        self.done = min(self.done + count, self._total) if self._total else self.done + count
        if self.progress is not None:
            self.progress(self.done, self._total or None)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        pass


def _wrong_size(url: str, found: int, wanted: int) -> str:
    return (
        f"{url} has {found} bytes, the official archive has {wanted}. If another archive is meant, give its "
        "--sha256, or a folder name with --into"
    )


def _verify(archive: Path, url: str, size: int | None, kind: str, wanted: str | None) -> dict[str, Any]:
    """Size and checksums of the file; removes it and raises if they are not the wanted ones."""
    count = archive.stat().st_size
    found = {name: pooch.file_hash(str(archive), name) for name in ("sha256", "md5")}
    if size not in (None, count):
        archive.unlink()
        raise ValueError(_wrong_size(url, count, size or 0))
    if wanted is not None and wanted.lower() != found[kind]:
        archive.unlink()
        raise ValueError(
            f"{url} has {kind} {found[kind]}, expected {wanted.lower()}: not the archive that is meant, "
            "or damaged on its way. The file was removed; try again or give another --url"
        )
    checked = f"{kind} {wanted.lower()}" if wanted else "nothing known before: first download"
    return {"bytes": count, **found, "checked against": checked}


def _get_mnist(address: str, folder: Path, progress: Progress | None) -> dict[str, Any]:
    """The four files where torchvision looks for them, by its own download and checksums."""
    from torchvision.datasets import MNIST

    # of the same name, because the folder is called by it
    source = type("MNIST", (MNIST,), {"mirrors": [address.rstrip("/") + "/"]})
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its own progress bar
            source(folder, download=True)
    except (RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _PLACE_ERRORS:
            raise
        text = " ".join(str(error).split())
        if "corrupted" in text:
            raise ValueError(f"{address}: a file is not the official one by its MD5 ({text})") from error
        raise ConnectionError(f"{text}; try later, or give another address with --url") from error
    packed = [folder / "MNIST" / "raw" / file for file, _ in MNIST.resources]
    size = sum(file.stat().st_size for file in packed)
    for file in packed:
        file.unlink()
    if progress is not None:
        progress(size, size)
    return {"bytes": size, "checked against": "torchvision's md5 of each file"}


def _downloadable(name: str) -> DataSet:
    if name not in SETS:
        near = difflib.get_close_matches(name, SETS, n=1)
        raise ValueError(
            f"unknown data set {name!r}"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + f" Known: {', '.join(SETS)}"
        )
    if SETS[name].url is None:
        raise ValueError(f"{name} needs no download: it is always there")
    return SETS[name]


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
            f"{megabytes(needed)} are needed, but {megabytes(free)} are free in {folder}; make room or "
            "choose another data directory",
        )


def _sweep(workshop: Path, keep: Path) -> None:
    """Remove what an interrupted download or unpacking has left, but a verified archive."""
    for path in workshop.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path != keep:
            path.unlink(missing_ok=True)


def _record(path: Path) -> dict[str, Any]:
    """What `get` has written beside a folder; empty where this is no such record."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    shape = {"name": str, "url": str, "bytes": int}
    if not isinstance(content, dict) or not all(isinstance(content.get(k), t) for k, t in shape.items()):
        return {}
    return content if content["name"] in SETS else {}
