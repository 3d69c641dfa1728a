"""The file of a photo: where it lies, and its bytes. A file, or a member of an uncompressed tar, at any fsspec URL.

fsspec is imported where bytes are read, as most who ask for a plan read none.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass

from sum_factory.shared.credentials import without_credentials
from sum_factory.shared.errors import ImageError, InputError, UnreachableError
from sum_factory.shared.store.refusals import explained

CHANGED = (
    "changed since the run was planned; to label it, restore the file, delete the manifest of its unit and run again"
)


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
        """What to call the photo in a message: without credentials; bytes of a name that are not UTF-8 are escaped."""
        url = without_credentials(self.url)
        name = f"{url}::{self.member}" if self.member else url
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_bytes(photo: PhotoFile) -> bytes:
    """Read a photo's file.

    Raises ``InputError`` if it is gone or not to be read, ``UnreachableError`` if its store or disk fails.
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
    import fsspec

    with explained(photo.url, photo.name, InputError, UnreachableError):
        filesystem, path = fsspec.core.url_to_fs(photo.url)
        if not photo.member:
            return bytes(filesystem.cat_file(path))
        assert photo.size is not None, "a tar's header tells it"
        return bytes(filesystem.cat_file(path, start=photo.offset - before, end=photo.offset + photo.size))


def _is_header_of(block: bytes, photo: PhotoFile) -> bool:
    """Whether a block is the header of this member. A name too long for it, or not ASCII, it tells only in part."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    told_in_full = photo.member.isascii() and len(photo.member) <= tarfile.LENGTH_NAME
    return header.size == photo.size and (header.name == photo.member or not told_in_full)
