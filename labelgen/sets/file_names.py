"""What to call photos in a file that others read: by paths that tell each from any other."""

from __future__ import annotations

import posixpath
from array import array
from collections.abc import Callable, Iterable

import numpy as np

from sum_factory.shared.names import printable
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.places import links_of


def names_of(photos: Callable[[], Iterable[PhotoFile]]) -> tuple[str, Callable[[PhotoFile], str]]:
    """Return a folder, and what names each photo relative to it. ``photos`` gives all of them, as often as it is asked.

    It is the folder that was labelled, as far as keys tell which; else one that all of their files and archives lie in.
    A photo in an archive has the name that it has there, where that tells it from all others; else the archive's name,
    without suffix, stands before it, as a folder that it may be unpacked to. Bytes of names that are not UTF-8, and
    control characters, are escaped: nobody could read the file else. Sixteen bytes are kept of each photo meanwhile.
    """
    root = _root(photos())
    in_several = _shared((_inside(photo, root), _file_and_member(photo)) for photo in photos())

    def plain(photo: PhotoFile) -> str:
        file, member = _file_and_member(photo)
        name = _inside(photo, root)
        if member and hash(name) in in_several:
            name = f"{posixpath.splitext(_relative(file, root))[0]}/{member}"
        return printable(name)

    alike = _shared((plain(photo), (photo.url, photo.member, photo.offset)) for photo in photos())

    def name(photo: PhotoFile) -> str:
        found = plain(photo)
        return f"{printable(photo.key)}{posixpath.splitext(found)[1]}" if hash(found) in alike else found

    return printable(root), name


def _shared(names: Iterable[tuple[str, object]]) -> frozenset[int]:
    """Return the hashes of names that photos of several places have."""
    hashes = array("q")
    for name, place in names:
        hashes.append(hash(name))
        hashes.append(hash(place))
    pairs = np.frombuffer(hashes, np.int64).reshape(-1, 2) if hashes else np.empty((0, 2), np.int64)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    same_name, same_place = (pairs[1:] == pairs[:-1]).T
    return frozenset(pairs[1:, 0][same_name & ~same_place].tolist())


def _file_and_member(photo: PhotoFile) -> tuple[str, str]:
    """Return the file that a photo is or lies in, and what it is called there, without what leads out of a folder."""
    *inner, file = links_of(photo.url)
    if file.startswith(("http://", "https://")):
        file = file.partition("?")[0]  # what is asked of a web server is no part of a name
    member = photo.member or next((link.partition("://")[2] for link in inner if "://" in link), "")
    return file, posixpath.normpath(f"/{member}").lstrip("/") if member else ""


def _inside(photo: PhotoFile, root: str) -> str:
    file, member = _file_and_member(photo)
    return member or _relative(file, root)


def _root(photos: Iterable[PhotoFile]) -> str:
    """Return the folder that all files lie in: with keys that say more, the one that these are relative to."""
    by_key: set[str | None] = set()
    folders: list[str] | None = None
    for photo in photos:
        file, member = _file_and_member(photo)
        if len(by_key) < 2:
            by_key.add(_without_key(file, photo.key if not member else ""))
        own = file.rpartition("/")[0].split("/")
        folders = own if folders is None else list(posixpath.commonprefix([folders, own]))
    if len(by_key) == 1 and (folder := by_key.pop()) is not None:
        return folder
    return "/".join(folders or [])


def _without_key(file: str, key: str) -> str | None:
    """Return the folder that a file has its key relative to, None if that is not to be seen."""
    stem = posixpath.splitext(file)[0]
    return stem.removesuffix(f"/{key}") if key and stem.endswith(f"/{key}") else None


def _relative(file: str, root: str) -> str:
    return file.removeprefix(f"{root}/") if root and file.startswith(f"{root}/") else file.lstrip("/")
