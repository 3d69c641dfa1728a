"""List photos in folders, list files and tars (SA-1B's or WebDataset's), at local paths or fsspec URLs.

Nothing of a photo is read: names, sizes and time stamps or ETags are those of the folder's or the store's listing, and
of a tar only the headers are read. Photos are given one by one, as they are found, in a fixed order: memory does not
grow with their number, but by the names in one local folder. Each is at an absolute path or a URL, however it was
spelled. Its key is its path without the extension, relative to the folder, the list or the tar.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sum_factory.labelgen.store_listing import listed_by_store
from sum_factory.labelgen.threads import GeneratorPool
from sum_factory.shared.errors import InputError
from sum_factory.shared.images import IMAGE_SUFFIXES
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.places import absolute, joined, parent_of, renamed, without_query
from sum_factory.shared.store.refusals import explained, is_remote

LIST_SUFFIXES = (".txt", ".lst", ".list")
TAR_BLOCK = 16_384
"""Bytes of a remote tar that are read for a header, and for what small members follow."""
TARS_AHEAD = 8
"""Remote tars whose headers are read at once."""

Reserve = Callable[[str], object]
_LOOKS_NUMBERED = re.compile(r".*~\d+", re.DOTALL)


class Keys:
    """Gives each photo a key that no other has: its own, or with ``~2``, ``~3``, ... behind it.

    ``known``, if given, says of which keys others have been told of before. Only hashes are kept.
    """

    def __init__(self, known: Callable[[str], bool] = lambda key: False) -> None:
        self._known = known
        self._taken: set[int] = set()
        self._reserved: set[int] = set()
        self._last: dict[int, int] = {}

    def reserve(self, key: str) -> None:
        """Leave a key to the photo whose own it is, which comes later."""
        self._reserved.add(hash(key))

    def is_free(self, key: str) -> bool:
        """Whether no photo has this key, by its own name or by a number."""
        return hash(key) not in self._taken and not self._known(key)

    def take(self, own: str) -> str:
        """Return the key of a photo whose own is ``own``."""
        key, ordinal = own, self._last.get(hash(own), 1)
        while not self.is_free(key) or (ordinal > 1 and hash(key) in self._reserved):
            ordinal += 1
            key = f"{own}~{ordinal}"
        if ordinal > 1:
            self._last[hash(own)] = ordinal
        self._taken.add(hash(key))
        return key


def list_photos(places: Iterable[str], reserve: Reserve = lambda key: None) -> Iterator[PhotoFile]:
    """Yield the photos of all places, in order, each with its own key: ``Keys`` tells equal ones apart.

    A place is a folder (searched to any depth), a tar, a text file with one path or URL a line, an image, or a
    pattern with ``*`` of these. Names that start with a dot are skipped in folders and tars. ``reserve`` is called with
    keys that look as if ``Keys`` had made them, before any photo of their folder is given.
    Raises ``InputError`` for a place that is missing, which is known before the first photo, or holds no image.
    """
    expanded = [(place, _expand(absolute(place))) for place in places]
    for place, matching in expanded:
        is_empty = True
        for photo in _list_places(matching, reserve):
            is_empty = False
            yield photo
        if is_empty:
            raise InputError(f"{place}: no images there; expected {', '.join(IMAGE_SUFFIXES)}, or tars of such files")


def _expand(place: str) -> list[str]:
    with explained(place, place, InputError):
        filesystem, path = fsspec.core.url_to_fs(place)
        if any(c in path for c in "*?[") and not filesystem.exists(path):
            matches = sorted(filesystem.glob(path))
            if not matches:
                raise InputError(f"{place}: no file matches this pattern")
            return [renamed(place, path, match) for match in matches]
        if not filesystem.exists(path):
            raise InputError(f"{place}: no such file or folder; check --images")
        return [place]


class _Tar(NamedTuple):
    """A tar whose members are to be listed: its URL, and what its file system says of it if that is known."""

    url: str
    info: Mapping[str, Any] | None = None


def _list_places(places: Iterable[str], reserve: Reserve) -> Iterator[PhotoFile]:
    """Yield the photos of places, in order; the headers of several remote tars are read at once."""
    waiting: deque[PhotoFile | _Tar | Future[list[PhotoFile]]] = deque()
    with GeneratorPool(TARS_AHEAD) as pool:
        for found in (found for place in places for found in _list_one(place, reserve)):
            if isinstance(found, _Tar) and is_remote(found.url):
                waiting.append(pool.submit(lambda tar: list(_list_tar(tar)), found))
            else:
                waiting.append(found)
            while waiting and (not isinstance(waiting[0], Future) or len(waiting) > TARS_AHEAD):
                yield from _photos_of(waiting.popleft())
        while waiting:
            yield from _photos_of(waiting.popleft())


def _photos_of(found: PhotoFile | _Tar | Future[list[PhotoFile]]) -> Iterable[PhotoFile]:
    if isinstance(found, Future):
        return found.result()
    return _list_tar(found) if isinstance(found, _Tar) else (found,)


def _list_one(place: str, reserve: Reserve) -> Iterator[PhotoFile | _Tar]:
    with explained(place, place, InputError):
        filesystem, path = fsspec.core.url_to_fs(place)
        if filesystem.isdir(path):
            yield from _list_folder(place, filesystem, path, reserve)
        elif (named := without_query(path)).endswith(".tar"):
            yield _Tar(place)
        elif named.endswith(LIST_SUFFIXES):
            yield from _list_file(place, filesystem, path)
        elif _is_image(named):
            yield _file(place, PurePosixPath(named).stem, filesystem.info(path))
        else:
            raise InputError(f"{place}: expected a folder, a .tar, a list ({', '.join(LIST_SUFFIXES)}) or an image")


def _list_folder(place: str, filesystem: Any, path: str, reserve: Reserve) -> Iterator[PhotoFile | _Tar]:
    before, _, after = joined(place, "\0").partition("\0")
    root = path.rstrip("/")
    is_local = isinstance(filesystem, LocalFileSystem)
    entries = _walk(root or "/", "", reserve) if is_local else listed_by_store(filesystem, root)
    for relative, info in entries:
        if _is_hidden(relative):
            continue
        url = f"{before}{relative}{after}"
        if _is_image(relative):
            yield _file(url, _without_suffix(relative), info)
        elif relative.endswith(".tar"):
            yield _Tar(url, info)


def _walk(folder: str, relative: str, reserve: Reserve) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the files below a local folder, by their names relative to the first one, in the order of these.

    Links to folders are not followed, links to files are.
    """
    with os.scandir(folder) as entries:
        names = [
            f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name
            for entry in entries
            if not entry.name.startswith(".")
        ]
    names.sort()
    for name in names:
        if "~" in name and _is_image(name) and _LOOKS_NUMBERED.fullmatch(own := _without_suffix(name)):
            reserve(_as_utf8(f"{relative}{own}"))
    for name in names:
        path = f"{folder.rstrip('/')}/{name}"
        if name.endswith("/"):
            yield from _walk(path[:-1], f"{relative}{name}", reserve)
        elif _is_image(name) or name.endswith(".tar"):
            try:
                yield f"{relative}{name}", _told_by_disk(path)
            except FileNotFoundError:  # it has been taken away since the folder was read
                continue


def _told_by_disk(path: str) -> dict[str, Any]:
    """Return size and time of a file. Of a link the size is that of what it points to, 0 if that is gone."""
    found = os.lstat(path)
    size = found.st_size
    if stat.S_ISLNK(found.st_mode):
        try:
            size = os.stat(path).st_size
        except OSError:
            size = 0
    return {"size": size, "mtime": found.st_mtime}


def _list_tar(tar: _Tar) -> Iterator[PhotoFile]:
    """Yield the photos of a tar: only its headers are read, what lies between is passed over."""
    with explained(tar.url, tar.url, InputError):
        filesystem, path = fsspec.core.url_to_fs(tar.url)
        stamp = _stamp(filesystem.info(path) if tar.info is None else tar.info)
        sparing = {"block_size": TAR_BLOCK, "cache_type": "readahead"} if is_remote(tar.url) else {}
        try:
            with filesystem.open(path, "rb", **sparing) as file, tarfile.open(fileobj=file, mode="r:") as members:
                while (member := members.next()) is not None:
                    members.members = []  # type: ignore[attr-defined]  # which would hold all of them
                    if member.isfile() and _is_image(member.name) and not _is_hidden(member.name):
                        key = _as_utf8(str(PurePosixPath(member.name).with_suffix("")))
                        yield PhotoFile(key, tar.url, member.name, member.offset_data, member.size, stamp)
                file.seek(members.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # cut or damaged: tarfile just stops
                    raise tarfile.ReadError(f"no end mark at byte {members.offset}")
        except tarfile.TarError as error:
            raise InputError(f"{tar.url}: not a whole, uncompressed tar ({error}); fetch it again") from error


def _list_file(place: str, filesystem: Any, path: str) -> Iterator[PhotoFile | _Tar]:
    folder = parent_of(place)
    text = filesystem.cat_file(path).decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        stands_alone = entry.startswith("/") or "://" in entry
        url = absolute(entry if stands_alone else joined(folder, entry))
        entry_filesystem, entry_path = fsspec.core.url_to_fs(url)
        if not entry_filesystem.exists(entry_path):
            raise InputError(f"{place}, line {number}: {entry}: no such file")
        named = without_query(entry_path)
        if named.endswith(".tar"):
            yield _Tar(url)
        else:
            own = entry if named == entry_path else entry.partition("?")[0]
            plain = PurePosixPath(named).stem if stands_alone else str(PurePosixPath(own).with_suffix(""))
            yield _file(url, plain, entry_filesystem.info(entry_path))


def _file(url: str, key: str, info: Mapping[str, Any]) -> PhotoFile:
    return PhotoFile(_as_utf8(key), url, size=info.get("size"), stamp=_stamp(info))


def _stamp(info: Mapping[str, Any]) -> str:
    changed = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified") or ""
    return f"{info.get('size')}:{changed}"


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_SUFFIXES)


def _is_hidden(path: str) -> bool:
    has_dot = path.startswith(".") or "/." in path
    return has_dot and any(part.startswith(".") and part != ".." for part in PurePosixPath(path).parts)


def _without_suffix(name: str) -> str:
    """Return a name of a file, with folders before it, without its extension."""
    return name[: name.rindex(".")]


def _as_utf8(name: str) -> str:
    """Return ``name`` with the bytes that are not UTF-8 escaped, as they may occur on Linux."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
