"""What to call photos in a file that others read: by paths that tell each from any other."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from sum_factory.shared.names import printable
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.places import links_of


def names_of(photos: Sequence[PhotoFile]) -> tuple[str, list[str]]:
    """Return a folder, and the name of each photo relative to it, in their order.

    It is the folder that was labelled, as far as keys tell which; else one that all of their files and archives lie in.
    A photo in an archive has the name that it has there, where that tells it from all others; else the archive's name,
    without suffix, stands before it, as a folder that it may be unpacked to. Bytes of names that are not UTF-8, and
    control characters, are escaped: nobody could read the file else.
    """
    whole = [_file_and_member(photo) for photo in photos]
    root = _root([(file, photo.key if not member else "") for photo, (file, member) in zip(photos, whole, strict=True)])
    inside = [member or _relative(file, root) for file, member in whole]
    places: dict[str, set[tuple[str, str]]] = {}
    for name, place in zip(inside, whole, strict=True):
        places.setdefault(name, set()).add(place)
    names = [
        name if len(places[name]) == 1 or not member else f"{posixpath.splitext(_relative(file, root))[0]}/{member}"
        for name, (file, member) in zip(inside, whole, strict=True)
    ]
    return printable(root), _told_apart([printable(name) for name in names], photos)


def _told_apart(names: list[str], photos: Sequence[PhotoFile]) -> list[str]:
    """Give photos of several places whose names are equal after all those of their keys, which no two share."""
    places: dict[str, set[tuple[str, str, int]]] = {}
    for name, photo in zip(names, photos, strict=True):
        places.setdefault(name, set()).add((photo.url, photo.member, photo.offset))
    return [
        name if len(places[name]) == 1 else f"{printable(photo.key)}{posixpath.splitext(name)[1]}"
        for name, photo in zip(names, photos, strict=True)
    ]


def _file_and_member(photo: PhotoFile) -> tuple[str, str]:
    """Return the file that a photo is or lies in, and what it is called there, without what leads out of a folder."""
    *inner, file = links_of(photo.url)
    if file.startswith(("http://", "https://")):
        file = file.partition("?")[0]  # what is asked of a web server is no part of a name
    member = photo.member or next((link.partition("://")[2] for link in inner if "://" in link), "")
    return file, posixpath.normpath(f"/{member}").lstrip("/") if member else ""


def _root(files: Sequence[tuple[str, str]]) -> str:
    """Return the folder that all files lie in: with keys that say more, the one that these are relative to."""
    by_key = {_without_key(file, key) for file, key in files}
    if len(by_key) == 1 and (folder := by_key.pop()) is not None:
        return folder
    folders = [file.rpartition("/")[0].split("/") for file, _ in files]
    return "/".join(posixpath.commonprefix(folders)) if folders else ""


def _without_key(file: str, key: str) -> str | None:
    """Return the folder that a file has its key relative to, None if that is not to be seen."""
    stem = posixpath.splitext(file)[0]
    return stem.removesuffix(f"/{key}") if key and stem.endswith(f"/{key}") else None


def _relative(file: str, root: str) -> str:
    return file.removeprefix(f"{root}/") if root and file.startswith(f"{root}/") else file.lstrip("/")
