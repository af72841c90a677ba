"""Unpacking an archive that is not trusted: nothing outside its folder, nothing half done."""

from __future__ import annotations

import calendar
import errno
import gzip
import os
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath


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
