"""Where the masks of a photo stand that other software has written: an index of files, read when a photo is at hand."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from sum_factory.labelgen.importing.settings import Format
from sum_factory.labelgen.keys import is_hidden
from sum_factory.shared.annotations.coco_file import (
    CocoFile,
    Record,
    id_of,
    name_of,
    one_photo,
    read_annotations,
    read_label_studio,
    with_slashes,
)
from sum_factory.shared.annotations.labelme import of_labelme
from sum_factory.shared.credentials import without_credentials
from sum_factory.shared.errors import ImageError, InputError
from sum_factory.shared.images import digest
from sum_factory.shared.names import printable
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.progress import track
from sum_factory.shared.store.local_files import read_whole
from sum_factory.shared.store.refusals import reason_of

SUFFIX = ".json"
TAR = ".tar"
Parts = tuple[str, ...]


@dataclass(frozen=True)
class Annotated:
    """What a file says of one photo: the size that its masks were drawn at, height and width, if it tells, and their
    records."""

    where: str
    size: tuple[Any, Any]
    annotations: Sequence[Record]


class Annotations(Protocol):
    """The annotations of photos, each found by the path of the photo.

    ``sha256`` is of all that was read. ``is_scored`` says whether each must have SA-1B's point and scores.
    """

    sha256: str
    is_scored: bool

    @property
    def names(self) -> Iterable[Parts]:
        """The parts of the path by which each photo is known."""

    def parts_of(self, photo: PhotoFile) -> Parts:
        """Return the parts of the path of a photo, to be compared with ``names``."""

    def read(self, name: Parts) -> Annotated:
        """Return what is said of the photo of this name. Raises ``ImageError`` if it is damaged."""


class Index:
    """Finds the annotations of photos: those whose name is the end of the photo's path; the longest name counts."""

    def __init__(self, annotations: Annotations, places: Sequence[str]) -> None:
        self.annotations = annotations
        self.where = ", ".join(map(printable, places))
        self._names = frozenset(annotations.names)
        self._longest = max(map(len, self._names))
        self._claimed: dict[Parts, str] = {}

    def clear(self) -> None:
        """Forget which photos were listed: another listing begins."""
        self._claimed.clear()

    def claim(self, photo: PhotoFile) -> None:
        """Note that a photo was listed. Raises ``InputError`` if another has the same annotations."""
        name = self._find(photo)
        if name is not None and (other := self._claimed.setdefault(name, photo.name)) != photo.name:
            raise InputError(
                f"{self.where}: {'/'.join(name)} may be of {other} and of {photo.name}; expected the annotations of a "
                "photo under a name that no other photo ends with: give only the photos that they are of as --images"
            )

    def unclaimed(self) -> list[str]:
        """Return the names of photos that have annotations and were not listed, in order."""
        return sorted("/".join(name) for name in self._names - self._claimed.keys())

    def read(self, photo: PhotoFile) -> Annotated:
        """Return what is said of a photo. Raises ``ImageError`` if nothing is, or if it is damaged."""
        name = self._find(photo)
        if name is None:
            raise ImageError(f"{photo.name}: has no annotations in {self.where}; add them, or leave the photo out")
        return self.annotations.read(name)

    def _find(self, photo: PhotoFile) -> Parts | None:
        parts = self.annotations.parts_of(photo)
        ends = (parts[-count:] for count in range(min(len(parts), self._longest), 0, -1))
        return next((end for end in ends if end in self._names), None)


def open_annotations(format: Format, places: Sequence[str]) -> Index:
    """Open the annotations at paths on this machine's disks. Raises ``InputError`` for what cannot be used."""
    for place in places:
        if not os.path.exists(place):
            raise InputError(f"{printable(place)}: no such file or folder of annotations; expected a path on a disk")
    match format:
        case "sa1b" | "labelme":
            return Index(_OfFiles(places, format), places)
        case "coco":
            return Index(_OfCoco(places, read_annotations), places)
        case "label-studio":
            return Index(_OfCoco(places, read_label_studio), places)


def _parts(path: str) -> Parts:
    return tuple(part for part in with_slashes(path).split("/") if part not in ("", "."))


def _path_of(photo: PhotoFile) -> str:
    """Return where a photo lies, in an archive as in a folder."""
    url = without_credentials(photo.url)
    inside, chain, rest = url.partition("::")
    path = f"{rest}/{inside.removeprefix('zip://')}" if chain else url
    return f"{path}/{photo.member}"


class _OfCoco:
    """The images of files that list many, by ``file_name``."""

    is_scored = False

    def __init__(self, places: Sequence[str], read: Callable[[Path], CocoFile]) -> None:
        self._images: dict[Parts, Annotated] = {}
        digests = []
        for place in places:
            if os.path.isdir(place):
                raise InputError(
                    f"{printable(place)}: a folder; expected a file of all photos, or --format sa1b or labelme"
                )
            digests.append(digest(_read(place)))
            self._add(place, read(Path(place)))
        if not self._images:
            raise InputError(f"{', '.join(map(printable, places))}: lists no image")
        self.sha256 = digests[0] if len(digests) == 1 else digest("\n".join(digests).encode())

    @property
    def names(self) -> Iterable[Parts]:
        return self._images

    def parts_of(self, photo: PhotoFile) -> Parts:
        return _parts(_path_of(photo))

    def read(self, name: Parts) -> Annotated:
        return self._images[name]

    def _add(self, place: str, file: CocoFile) -> None:
        by_id: dict[Any, list[Record]] = {}
        where = printable(place)
        for image in file.images:
            number, path = id_of(image.get("id")), name_of(image)
            if number is None or path is None:
                raise InputError(f"{where}: image {image.get('id')!r:.40} has no id or no file_name; give it one")
            if number in by_id:
                raise InputError(
                    f"{where}: several images have the id {number!r:.40}; expected an id of its own for each"
                )
            if _parts(path) in self._images:
                raise InputError(f"{where}: {path!r:.200} is listed again; expected every photo once")
            by_id[number] = []
            self._images[_parts(path)] = Annotated(where, (image.get("height"), image.get("width")), by_id[number])
        for annotation in file.annotations:
            of = by_id.get(id_of(annotation.get("image_id")))
            if of is None:
                raise InputError(
                    f"{where}: annotation {annotation.get('id')!r:.40} is of image {annotation.get('image_id')!r:.40}, "
                    "which the file does not list; mend the file"
                )
            of.append(annotation)


@dataclass(frozen=True)
class _Place:
    """Where the JSON of a photo lies: a file, or a part of a tar; and its SHA-256 when it was first read."""

    path: str
    offset: int
    size: int | None
    sha256: bytes

    @property
    def where(self) -> str:
        return printable(self.path if self.size is None else f"{self.path}, at byte {self.offset}")


class _OfFiles:
    """JSON files of SA-1B or labelme, by their paths without the suffix: the photo has the same name."""

    def __init__(self, places: Sequence[str], format: Literal["sa1b", "labelme"]) -> None:
        self.is_scored = format == "sa1b"
        self._files: dict[Parts, _Place] = {}
        digests: list[str] = []
        for place in places:
            for name, path, offset, size in track(_json_files(place), "reading annotations", "file"):
                data = _read(path, offset, size)
                key = _parts(name.removesuffix(SUFFIX))
                if key in self._files:
                    raise InputError(f"{printable(path)}: {name} is there again, as in {self._files[key].where}")
                self._files[key] = _Place(path, offset, size, hashlib.sha256(data).digest())
                digests.append(f"{name} {digest(data)}")
        if not self._files:
            expected = f"expected JSON files, one per photo, as in {self._of}"
            raise InputError(f"{', '.join(map(printable, places))}: no annotations there; {expected}")
        self.sha256 = digest("\n".join(sorted(digests)).encode("utf-8", "surrogateescape"))

    @property
    def names(self) -> Iterable[Parts]:
        return self._files

    @property
    def _of(self) -> str:
        return "SA-1B" if self.is_scored else "labelme"

    def parts_of(self, photo: PhotoFile) -> Parts:
        *folders, name = _parts(_path_of(photo))
        return (*folders, os.path.splitext(name)[0])

    def read(self, name: Parts) -> Annotated:
        place = self._files[name]
        data = _read(place.path, place.offset, place.size)
        if hashlib.sha256(data).digest() != place.sha256:
            raise InputError(f"{place.where}: changed since the import began; give the command again")
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ImageError(f"{place.where}: no JSON ({error}); fetch it again") from error
        told = one_photo(content)
        if told is None or (of_labelme(content) is None) is not self.is_scored:
            raise ImageError(f"{place.where}: expected the JSON of one photo, as {self._of} has it")
        image, found = told
        named = _parts(name_of(image) or "")
        if named and os.path.splitext(named[-1])[0] != name[-1]:
            raise ImageError(f"{place.where}: is of {named[-1]!r}, by its own file_name, and not of {name[-1]!r}")
        return Annotated(place.where, (image.get("height"), image.get("width")), found)


def _json_files(place: str) -> Iterator[tuple[str, str, int, int | None]]:
    """Yield the JSON files of a folder or tar, in order: name, path of the file that holds it, offset and size in it;
    size None is a whole file."""
    if os.path.isdir(place):
        folder = Path(place)
        for path in sorted(folder.rglob(f"*{SUFFIX}")):
            name = path.relative_to(folder).as_posix()
            if not is_hidden(name) and path.is_file():
                yield name, str(path), 0, None
    elif place.lower().endswith(TAR):
        try:
            with tarfile.open(place, "r:") as tar:
                for member in tar:
                    if member.isfile() and member.name.endswith(SUFFIX) and not is_hidden(member.name):
                        yield member.name, place, member.offset_data, member.size
        except (OSError, tarfile.TarError) as error:
            raise InputError(f"{printable(place)}: cannot be read as an uncompressed tar ({error})") from error
    else:
        yield os.path.basename(place), place, 0, None


def _read(path: str, offset: int = 0, size: int | None = None) -> bytes:
    try:
        if size is None:
            return read_whole(Path(path))
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise InputError(f"{printable(path)}: cannot be read ({reason_of(error)})") from error
