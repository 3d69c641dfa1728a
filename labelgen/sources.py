"""Find images in folders, list files and tars (SA-1B's or WebDataset's), at local paths or fsspec URLs.

A source is listed once, when a run is planned, and every image gets a key that names it in the shard set: its path
without the extension, relative to the folder, the list or the tar. Images come in a fixed order, and each is at an
absolute path or a URL, however the source was spelled.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import fsspec

from sum_factory.shared.errors import SourceError
from sum_factory.shared.images import IMAGE_SUFFIXES
from sum_factory.shared.photo_files import photo_name
from sum_factory.shared.places import absolute, joined, parent_of, renamed
from sum_factory.shared.progress import track
from sum_factory.shared.store.refusals import explained

LIST_SUFFIXES = (".txt", ".lst", ".list")


@dataclass(frozen=True)
class ImageRef:
    """Where one image lies. ``offset`` and ``size`` are set for a member of a tar: its bytes inside it.

    ``stamp`` changes when the file does, as far as the file system tells without reading it.
    """

    key: str
    url: str
    member: str = ""
    offset: int = 0
    size: int | None = None
    stamp: str = ""

    @property
    def name(self) -> str:
        """What to call the image in a message."""
        return photo_name(self)


def list_images(sources: Iterable[str]) -> list[ImageRef]:
    """List the images of all sources, in order, with unique keys.

    A source is a folder (searched to any depth), a tar, a text file with one path or URL a line, an image, or a
    pattern with ``*`` of these. Names that start with a dot are skipped in folders and tars. Images that would have
    one key get ``~2``, ``~3``, ... in the order of the listing.
    Raises ``SourceError`` for a source that is missing or holds no image.
    """
    refs: list[ImageRef] = []
    for source in sources:
        listed = (ref for path in _expand(absolute(source)) for ref in _list_one(path))
        found = list(track(listed, f"listing {source}", "image"))
        if not found:
            raise SourceError(f"{source}: no images there; expected {', '.join(IMAGE_SUFFIXES)}, or tars of such files")
        refs += found
    return _with_unique_keys(refs)


def _expand(source: str) -> list[str]:
    with explained(source, source, SourceError):
        filesystem, path = fsspec.core.url_to_fs(source)
        if any(c in path for c in "*?[") and not filesystem.exists(path):
            matches = sorted(filesystem.glob(path))
            if not matches:
                raise SourceError(f"{source}: no file matches this pattern")
            return [renamed(source, path, match) for match in matches]
        if not filesystem.exists(path):
            raise SourceError(f"{source}: no such file or folder; check --images")
        return [source]


def _list_one(source: str) -> Iterator[ImageRef]:
    with explained(source, source, SourceError):
        filesystem, path = fsspec.core.url_to_fs(source)
        if filesystem.isdir(path):
            yield from _list_folder(source, filesystem, path)
        elif path.endswith(".tar"):
            yield from _list_tar(source, filesystem, path)
        elif path.endswith(LIST_SUFFIXES):
            yield from _list_file(source, filesystem, path)
        elif _is_image(path):
            yield _file_ref(source, PurePosixPath(path).stem, filesystem.info(path))
        else:
            raise SourceError(f"{source}: expected a folder, a .tar, a list ({', '.join(LIST_SUFFIXES)}) or an image")


def _list_folder(source: str, filesystem: Any, path: str) -> Iterator[ImageRef]:
    root = path.rstrip("/")
    for file, info in sorted(filesystem.find(root, detail=True).items()):
        relative = file.removeprefix(root).lstrip("/")
        if _is_hidden(relative):
            continue
        if _is_image(relative):
            yield _file_ref(joined(source, relative), str(PurePosixPath(relative).with_suffix("")), info)
        elif file.endswith(".tar"):
            yield from _list_tar(joined(source, relative), filesystem, file)


def _list_tar(source: str, filesystem: Any, path: str) -> Iterator[ImageRef]:
    stamp = _stamp(filesystem.info(path))
    try:
        with filesystem.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isfile() and _is_image(member.name) and not _is_hidden(member.name):
                    key = str(PurePosixPath(member.name).with_suffix(""))
                    yield ImageRef(key, source, member.name, member.offset_data, member.size, stamp)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # cut or damaged here, tarfile just stops
                raise tarfile.ReadError(f"no end mark at byte {tar.offset}")
    except tarfile.TarError as error:
        raise SourceError(f"{source}: not a whole, uncompressed tar ({error}); fetch it again") from error


def _list_file(source: str, filesystem: Any, path: str) -> Iterator[ImageRef]:
    folder = parent_of(source)
    text = filesystem.cat_file(path).decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        stands_alone = entry.startswith("/") or "://" in entry
        url = absolute(entry if stands_alone else joined(folder, entry))
        entry_filesystem, entry_path = fsspec.core.url_to_fs(url)
        if not entry_filesystem.exists(entry_path):
            raise SourceError(f"{source}, line {number}: {entry}: no such file")
        if entry_path.endswith(".tar"):
            yield from _list_tar(url, entry_filesystem, entry_path)
        else:
            plain = PurePosixPath(entry_path).stem if stands_alone else str(PurePosixPath(entry).with_suffix(""))
            yield _file_ref(url, plain, entry_filesystem.info(entry_path))


def _file_ref(url: str, key: str, info: dict[str, Any]) -> ImageRef:
    return ImageRef(key, url, size=info.get("size"), stamp=_stamp(info))


def _stamp(info: dict[str, Any]) -> str:
    changed = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified") or ""
    return f"{info.get('size')}:{changed}"


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_SUFFIXES)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") and part != ".." for part in PurePosixPath(path).parts)


def _as_utf8(name: str) -> str:
    """Return ``name`` with the bytes that are not UTF-8 escaped, as they may occur on Linux."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _with_unique_keys(refs: list[ImageRef]) -> list[ImageRef]:
    plain = [_as_utf8(ref.key) for ref in refs]
    taken = set(plain)
    seen: Counter[str] = Counter()
    unique = []
    for ref, first in zip(refs, plain, strict=True):
        seen[first] += 1
        key, ordinal = first, seen[first]
        while ordinal > 1 and (key := f"{first}~{ordinal}") in taken:
            ordinal += 1
        seen[first] = ordinal
        taken.add(key)
        unique.append(replace(ref, key=key))
    return unique
