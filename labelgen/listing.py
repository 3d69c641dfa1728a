"""List photos in folders, list files, zips and tars (SA-1B's or WebDataset's), at local paths or fsspec URLs.

Nothing of a photo is read: names, sizes and time stamps or ETags are those of the folder's or the store's listing, and
of a tar only the headers are read. Photos are given one by one, as they are found, in a fixed order. Memory holds one
hash a photo, so that no two get the same key, and the names in the local folder that is being walked. Each is at an
absolute path or a URL, however it was spelled. Its key is its path without the extension, relative to the folder, the
list, the zip or the tar.
"""

from __future__ import annotations

import codecs
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from sum_factory.labelgen.disk_listing import DiskWalk
from sum_factory.labelgen.keys import Reserve, is_hidden, key_of, safe_path
from sum_factory.labelgen.passed_over import PassedOver
from sum_factory.labelgen.store_listing import (
    DIRECTORY,
    IRREGULAR,
    LOOKED_AT_ONCE,
    Told,
    ask,
    listed_by_store,
    look_at,
    look_at_files,
    open_place,
)
from sum_factory.labelgen.tar_listing import Tar, list_tar
from sum_factory.shared.deadlines import LIST_SECONDS, seconds_for
from sum_factory.shared.errors import InputError
from sum_factory.shared.images import IMAGE_SUFFIXES
from sum_factory.shared.names import printable
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.places import CHAIN, absolute, is_local, joined, links_of, name_in, parent_of, renamed
from sum_factory.shared.store.refusals import is_remote
from sum_factory.shared.threads import GeneratorPool

LIST_SUFFIXES = (".txt", ".lst", ".list")
TAR_SUFFIX, ZIP_SUFFIX = ".tar", ".zip"
PACKED_SUFFIXES = (
    *(f".tar.{packer}" for packer in ("gz", "bz2", "xz", "zst", "lz4", "z")),
    *(".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".7z", ".rar"),
)
"""Archives in which no photo can be read without unpacking all before it, or not at all."""
PACKED = "an archive in which photos cannot be read one by one; unpack it, or pack the photos as .tar or .zip"
TARS_AHEAD = 8
"""Remote tars whose headers are read at once."""
LIST_BYTES = 1 << 30
"""Bytes of a list file, at most: a longer file is not a list."""
NAMED_AGAIN = "are in a zip in front of another of the same name, which alone can be read"
ENCRYPTED = 0x1
"""The flag of a member of a zip that needs a password."""

Found = PhotoFile | Tar


def list_photos(
    places: Iterable[str], reserve: Reserve = lambda key: None, passed_over: PassedOver | None = None
) -> Iterator[PhotoFile]:
    """Yield the photos of all places, in order, each with the key that its name gives.

    Two photos may have the same key; ``Keys`` then adds a number.

    A place is a folder (searched to any depth), a tar or zip, a text file with one path or URL per line, an image, or a
    pattern with ``*`` of these. Names that start with a dot are skipped in folders and archives. ``reserve`` is called
    with keys that look as if ``Keys`` had made them, before any photo of their folder is given; ``passed_over`` counts
    what is no photo. Raises ``InputError`` for a place that is missing, which is known before the first photo, or that
    holds no image, or when a store does not answer.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    passed_over.clear()
    places = list(places)
    if not all(place.strip() for place in places):
        raise InputError("--images: an empty path; is a variable of the shell not set?")
    expanded = [(place, _expand(absolute(place))) for place in places]
    for place, matching in expanded:
        is_empty, of_place = True, _Listing(reserve, passed_over)
        for photo in of_place.photos(matching):
            is_empty = False
            yield photo
        if is_empty:
            expected = f"expected {', '.join(IMAGE_SUFFIXES)}, or tars or zips of such files"
            raise InputError("; ".join([f"{printable(place)}: no images there; {expected}", *passed_over.notes()]))


def _expand(place: str) -> list[str]:
    name = printable(place)
    filesystem, path = open_place(place)
    is_pattern = any(c in path for c in "*?[")
    if is_pattern and look_at(place) is None:
        matches = sorted(ask(place, lambda: filesystem.glob(path), LIST_SECONDS))
        if not matches:
            raise InputError(f"{name}: no file matches this pattern")
        return [renamed(place, path, match) for match in matches]
    if not is_pattern and not _is_there(place):
        raise InputError(f"{name}: no such file or folder; check --images")
    return [place]


def _is_there(place: str) -> bool:
    if look_at(place) is not None:
        return True
    # A store has no folders: it may tell of nothing at a place below which there are files.
    filesystem, path = open_place(place)
    return not is_local(place) and bool(ask(place, lambda: filesystem.exists(path)))


class _Listing:
    """Lists the photos of places."""

    def __init__(self, reserve: Reserve, passed_over: PassedOver) -> None:
        self.reserve, self.passed_over = reserve, passed_over
        self._of_tar = partial(list_tar, is_photo=is_photo, stamp_of=_stamp, passed_over=passed_over)

    def photos(self, places: Iterable[str]) -> Iterator[PhotoFile]:
        """Yield the photos of places, in order; the headers of several remote tars are read at once."""
        waiting: deque[Found | Future[list[PhotoFile]]] = deque()
        with GeneratorPool(TARS_AHEAD) as pool:
            for found in (found for place in places for found in self._list_one(place)):
                if isinstance(found, Tar) and is_remote(found.url):
                    waiting.append(pool.submit(lambda tar: list(self._of_tar(tar)), found))
                else:
                    waiting.append(found)
                while waiting and (not isinstance(waiting[0], Future) or len(waiting) > TARS_AHEAD):
                    yield from self._photos_of(waiting.popleft())
            while waiting:
                yield from self._photos_of(waiting.popleft())

    def _photos_of(self, found: Found | Future[list[PhotoFile]]) -> Iterable[PhotoFile]:
        if isinstance(found, Future):
            return found.result()
        return self._of_tar(found) if isinstance(found, Tar) else (found,)

    def _list_one(self, place: str) -> Iterator[Found]:
        """Yield what a place of ``--images`` holds."""
        told = look_at(place) or {"type": DIRECTORY}  # it is there: where a store tells of no file, it is a folder
        yield from self._found_at(place, told, key_of(name_in(place)), "")
        if name_in(place).lower().endswith(LIST_SUFFIXES) and told["type"] not in (DIRECTORY, IRREGULAR):
            yield from self._list_file(place)

    def _found_at(self, place: str, told: Told, key: str, below: str) -> Iterator[Found]:
        """Yield what one place holds: ``key`` is that of a photo there; keys of photos in a folder are ``below`` it.

        Raises ``InputError`` for a place of no known kind; of lists nothing is yielded.
        """
        name, shown = name_in(place).lower(), printable(place)
        if told["type"] == DIRECTORY:
            yield from self._list_folder(place, below)
        elif told["type"] == IRREGULAR:
            raise InputError(f"{shown}: not a regular file, and only such are photos; leave it out")
        elif name.endswith(TAR_SUFFIX):
            yield Tar(place, told)
        elif name.endswith(ZIP_SUFFIX):
            yield from self._list_zip(place, below)
        elif is_photo(name):
            yield _file(place, key, told)
        elif name.endswith(PACKED_SUFFIXES):
            raise InputError(f"{shown}: {PACKED}")
        elif not name.endswith(LIST_SUFFIXES):
            yield from self._list_page(place, below)

    def _list_page(self, place: str, below: str) -> Iterator[Found]:
        """Yield what a page of a web server links to: its library calls each page a file and a folder."""
        filesystem, path = open_place(place)
        if is_local(place) or not ask(place, lambda: filesystem.isdir(path)):
            raise InputError(
                f"{printable(place)}: expected a folder, a .tar, a .zip, a list ({', '.join(LIST_SUFFIXES)}) or an "
                f"image ({', '.join(IMAGE_SUFFIXES)})"
            )
        yield from self._list_folder(place, below)

    def _list_folder(self, place: str, below: str) -> Iterator[Found]:
        filesystem, path = open_place(place)
        before, _, after = joined(place, "\0").partition("\0")
        root = path.rstrip("/")
        if is_local(place):
            entries = DiskWalk(root, _is_wanted, self.reserve, self.passed_over).files()
        else:
            entries = listed_by_store(place, filesystem, root)
        is_in_archive = len(links_of(place)) > 1
        for hidden in _named_again(filesystem, root):
            self.passed_over.one(NAMED_AGAIN, f"{before}{hidden}{after}")
        for relative, told in entries:
            url = f"{before}{relative}{after}"
            if is_hidden(relative):
                continue
            if is_in_archive and (CHAIN in relative or ".." in relative.split("/") or _is_absolute_in_zip(url, told)):
                self.passed_over.one("have names that cannot be told in a URL", url)
            elif told.get("flag_bits", 0) & ENCRYPTED:
                self.passed_over.one("are encrypted in a zip", url)
            elif is_photo(relative):
                yield _file(url, f"{below}/{key_of(relative)}" if below else key_of(relative), told)
            elif relative.lower().endswith(TAR_SUFFIX):
                yield Tar(url, told)
            elif relative.lower().endswith(ZIP_SUFFIX):  # often the photos of the folder, as they were fetched
                self.passed_over.one("are zips, which are read where --images names them", url)
            elif relative.lower().endswith(PACKED_SUFFIXES):
                self.passed_over.one("are archives in which photos cannot be read one by one", url)
            else:
                self.passed_over.file(relative)

    def _list_zip(self, place: str, below: str) -> Iterator[Found]:
        """Yield the photos of a zip, of which its table of contents is read."""
        if len(links_of(place)) > 1:
            raise InputError(f"{printable(place)}: a zip within another archive; unpack it")
        try:
            yield from self._list_folder(f"zip://{CHAIN}{place}", below)
        except InputError as error:
            raise InputError(f"{printable(place)}: not a whole zip ({error}); fetch it again") from error

    def _list_file(self, place: str) -> Iterator[Found]:
        """Yield what a list names, a place per line: a path, relative to the list's folder or absolute, or a URL."""
        folder, name = parent_of(place), printable(place)
        lines = [
            (number, entry) for number, line in enumerate(_text_of(place).split("\n"), 1) if (entry := line.strip())
        ]
        for number, entry, url, told in _looked_at(lines, folder, name):
            stands_alone = _stands_alone(entry)
            if told is None:
                raise InputError(f"{name}, line {number}: {printable(entry)}: no such file")
            last, own = name_in(url).lower(), name_in(url) if stands_alone else entry
            if told["type"] == IRREGULAR or last.endswith((*PACKED_SUFFIXES, *LIST_SUFFIXES)):
                raise InputError(
                    f"{name}, line {number}: {printable(entry)}: expected an image, a folder, a .tar or a .zip"
                )
            if told["type"] == DIRECTORY or last.endswith((TAR_SUFFIX, ZIP_SUFFIX)):
                is_below = told["type"] == DIRECTORY and not stands_alone
                yield from self._found_at(url, told, "", safe_path(entry) if is_below else "")
            else:
                yield _file(url, key_of(own), told)


def _named_again(filesystem: Any, root: str) -> Iterator[str]:
    """Yield the names, relative to ``root``, of those photos of a zip that have the name of one behind them."""
    files = [member.filename for member in getattr(getattr(filesystem, "zip", None), "filelist", ())]
    again = Counter(files) - Counter(set(files))
    below = f"{root}/" if root else ""
    for name in again.elements():
        if name.startswith(below) and is_photo(name):
            yield name.removeprefix(below)


def _looked_at(lines: Sequence[tuple[int, str]], folder: str, name: str) -> Iterator[tuple[int, str, str, Told | None]]:
    """Yield the number, the entry and the place of each line of a list, and what there is; comments are passed over."""
    for start in range(0, len(lines), LOOKED_AT_ONCE):
        entries = []
        for number, entry in lines[start : start + LOOKED_AT_ONCE]:
            if "\0" in entry:
                raise InputError(f"{name}, line {number}: not a text; expected a path or URL per line, in UTF-8")
            if not entry.startswith("#"):
                entries.append((number, entry, absolute(entry if _stands_alone(entry) else joined(folder, entry))))
        on_disk = look_at_files([open_place(url)[1] for _, _, url in entries if is_local(url)])
        for number, entry, url in entries:
            yield number, entry, url, next(on_disk) if is_local(url) else look_at(url)


def _stands_alone(entry: str) -> bool:
    return entry.startswith("/") or "://" in entry


def _text_of(place: str) -> str:
    """Return the text of a list: UTF-8, or UTF-16 as Windows may write it; bytes that are neither stay in names."""
    told = look_at(place)
    size = None if told is None else told.get("size")
    if size is not None and size > LIST_BYTES:
        raise InputError(f"{printable(place)}: {size} bytes, more than a list of photos has; check --images")
    filesystem, path = open_place(place)
    data: bytes = ask(place, lambda: filesystem.cat_file(path), seconds_for(size))
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def _file(url: str, key: str, told: Told) -> PhotoFile:
    return PhotoFile(key, url, size=told.get("size"), stamp=_stamp(told))


def _stamp(told: Told) -> str:
    changes = ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "CRC")
    return f"{told.get('size')}:{next((told[name] for name in changes if told.get(name)), '')}"


def is_photo(name: str) -> bool:
    """Whether a file of this name is taken for a photo."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def _is_wanted(name: str) -> bool:
    return name.lower().endswith((*IMAGE_SUFFIXES, TAR_SUFFIX, ZIP_SUFFIX, *PACKED_SUFFIXES))


def _is_absolute_in_zip(url: str, told: Told) -> bool:
    return url.startswith("zip://") and str(told.get("name")).startswith("/")
