"""Read the bytes of a photo: a file, or a member of an uncompressed tar, at any fsspec URL."""

from __future__ import annotations

from typing import Protocol

import fsspec

from sum_factory.shared.errors import SourceError, UnreachableError
from sum_factory.shared.store.refusals import explained


class PhotoPlace(Protocol):
    """Where a photo lies: ``member``, if any, is the ``size`` bytes from ``offset`` of the tar at ``url``."""

    @property
    def url(self) -> str: ...

    @property
    def member(self) -> str: ...

    @property
    def offset(self) -> int: ...

    @property
    def size(self) -> int | None: ...


def photo_name(place: PhotoPlace) -> str:
    """Return what to call a photo in a message; bytes of a name that are not UTF-8 are escaped."""
    name = f"{place.url}::{place.member}" if place.member else place.url
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_bytes(place: PhotoPlace) -> bytes:
    """Read a photo's file.

    Raises ``SourceError`` if it is gone or not to be read, ``UnreachableError`` if its store or disk fails.
    """
    with explained(place.url, photo_name(place), SourceError, UnreachableError):
        filesystem, path = fsspec.core.url_to_fs(place.url)
        end = None if place.size is None or not place.member else place.offset + place.size
        return bytes(filesystem.cat_file(path, start=place.offset if place.member else None, end=end))
