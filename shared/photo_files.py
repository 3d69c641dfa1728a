"""The file of a photo: where it lies, and its bytes. A file, or a member of an uncompressed tar, at any fsspec URL.

fsspec is imported where bytes are read, as most who ask for a plan read none.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
import zipfile
import zlib
from dataclasses import dataclass

from sum_factory.shared.credentials import without_credentials
from sum_factory.shared.deadlines import seconds_for, within
from sum_factory.shared.errors import ImageError, InputError, UnreachableError
from sum_factory.shared.names import printable
from sum_factory.shared.store.refusals import explained

MAX_BYTES = 2 << 30
"""Larger files are not read: that is more than any photo of so many pixels as are taken has, compressed or not."""
CHANGED = (
    "changed since the run was planned; to label it, restore the file, delete the manifest of its unit and run again"
)
_OF_ONE_NAME = (errno.ELOOP, errno.ENAMETOOLONG)
"""Errors of a disk that say something of a name and what it points to, and nothing of the disk."""
_NOT_UNPACKED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""What is raised for a member of a zip that is damaged, encrypted, or compressed in a way that is not known."""


@dataclass(frozen=True, slots=True)
class PhotoFile:
    """What a listing tells of a photo. ``key`` names it in the shard set.

    ``size`` is that of the file in bytes, None if its store does not say. ``member``, if any, names it in the tar at
    ``url``: its bytes are the ``size`` from ``offset`` on. ``stamp`` changes when the file, or the tar, does, as far as
    its file system tells without reading it.
    """

    key: str
    url: str
    member: str = ""
    offset: int = 0
    size: int | None = None
    stamp: str = ""

    @property
    def name(self) -> str:
        """What to call the photo in a message: without credentials; whatever is no plain character is escaped."""
        url = without_credentials(self.url)
        return printable(f"{url}::{self.member}" if self.member else url)


def read_bytes(photo: PhotoFile) -> bytes:
    """Read a photo's file.

    Raises ``InputError`` if it is gone or not to be read, ``ImageError`` if it is no regular file, or too large to be a
    photo's, and ``UnreachableError`` if its store or disk fails, or does not answer in time.
    """
    return _read(photo, 0)


def read_listed(photo: PhotoFile) -> bytes:
    """Read a photo's file, which has just been listed.

    Raises as ``read_bytes``, and ``ImageError`` if what is there is not what was listed: a file of another size, or a
    tar in which this member does not begin here any more.
    """
    if not photo.member:
        data = _read(photo, 0)
        if photo.size is not None and len(data) != photo.size:
            raise ImageError(f"{photo.name}: {CHANGED}")
        return data
    data = _read(photo, tarfile.BLOCKSIZE)
    header, data = data[: tarfile.BLOCKSIZE], data[tarfile.BLOCKSIZE :]
    if len(data) != photo.size or not _is_header_of(header, photo):
        raise ImageError(f"{photo.name}: {CHANGED}")
    return data


def _read(photo: PhotoFile, before: int) -> bytes:
    """Read the bytes of a photo; of a member of a tar also as many right ``before`` it."""
    from sum_factory.shared.places import is_local, store_of

    assert photo.size is not None or not photo.member, "a tar's header tells it"
    start = photo.offset - before if photo.member else None
    end = photo.offset + (photo.size or 0) if photo.member else None
    with explained(photo.url, photo.name, InputError, UnreachableError):
        _require_sane(photo.size, photo.name)

        def read() -> bytes:
            if is_local(photo.url):
                size = _require_regular(photo.url, photo.name)
                _require_sane(photo.size if photo.member else size, photo.name)
            return _read_part(photo.url, start, end)

        try:
            return within(seconds_for(photo.size), store_of(photo.url), read)
        except _NOT_UNPACKED as error:
            if not photo.url.startswith("zip://"):
                raise
            raise ImageError(f"{photo.name}: cannot be unpacked ({error}); pack it again, or leave it out") from error


def _read_part(url: str, start: int | None, end: int | None) -> bytes:
    from sum_factory.shared.places import opened

    filesystem, path = opened(url)
    if end is None:
        return bytes(filesystem.cat_file(path))
    data = bytes(filesystem.cat_file(path, start=start, end=end))
    if len(data) > end - (start or 0):
        raise OSError("its server gives no parts of files, only whole ones; fetch it, and give the copy")
    return data


def _require_regular(url: str, name: str) -> int:
    """Return the size of a file on a disk.

    Raises ``ImageError`` for what is no regular file: it might never end, or not even open.
    """
    from sum_factory.shared.places import opened

    try:
        told = os.stat(opened(url)[1])
    except OSError as error:
        if error.errno in _OF_ONE_NAME:
            raise ImageError(f"{name}: cannot be opened ({error.strerror}); leave it out") from error
        raise
    if not stat.S_ISREG(told.st_mode):
        raise ImageError(f"{name}: not a regular file; leave it out")
    return told.st_size


def _require_sane(size: int | None, name: str) -> None:
    if size is not None and size > MAX_BYTES:
        raise ImageError(f"{name}: {size} bytes, and photos of more than {MAX_BYTES} bytes are not read; leave it out")


def _is_header_of(block: bytes, photo: PhotoFile) -> bool:
    """Whether a block is the header of this member."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return header.size == photo.size and (header.name == photo.member or not is_told_in_full(photo.member))


def is_told_in_full(member: str) -> bool:
    """Whether the header of a member has all of its name: a long one, or one that is not ASCII, it has in part."""
    return member.isascii() and len(member) < tarfile.LENGTH_NAME


def is_readable(photo: PhotoFile) -> bool:
    """Whether a first byte can be read of the file that a photo is, or is a member of."""
    from sum_factory.shared.places import is_local, store_of

    def read() -> bytes:
        if is_local(photo.url):
            _require_regular(photo.url, photo.name)
        return _read_part(photo.url, 0, 1)

    try:
        return bool(within(seconds_for(1), store_of(photo.url), read))
    except Exception:  # whatever it is: it cannot be read
        return False
