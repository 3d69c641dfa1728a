"""Compare a listing of photos with a plan that is there: which are new, which have moved or changed, which are gone."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from types import TracebackType
from typing import Self

from sum_factory.labelgen.keys import Keys, Reserve
from sum_factory.labelgen.planned_photos import PlannedPhotos
from sum_factory.shared.errors import SettingsDifferError, StorageError
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.shards.dataset import Unit

BATCH = 4096
"""Photos of a listing that are compared, or cut into units, at once."""

ListPhotos = Callable[[Reserve], Iterable[PhotoFile]]
"""Lists photos, as ``list_photos`` does."""


def batches(photos: Iterable[PhotoFile]) -> Iterator[list[PhotoFile]]:
    """Cut photos into lists of ``BATCH``."""
    iterator = iter(photos)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def with_key(photo: PhotoFile, key: str) -> PhotoFile:
    """Return a photo with the key that it has in the shard set."""
    return photo if photo.key == key else replace(photo, key=key)


class Spool:
    """Photos that wait on this machine's disk, to be read again in their order, once or more often."""

    def __init__(self) -> None:
        with _explained():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._batches = self.length = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what is not written is not missed
            self._file.close()

    def add(self, photos: Sequence[PhotoFile]) -> None:
        """Add photos to those that wait."""
        if photos:
            with _explained():
                pickle.dump(list(photos), self._file, pickle.HIGHEST_PROTOCOL)
            self._batches += 1
            self.length += len(photos)

    def __iter__(self) -> Iterator[PhotoFile]:
        with _explained():
            self._file.seek(0)
        for _ in range(self._batches):
            yield from pickle.load(self._file)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn a refusal of this machine's folder of temporary files into a ``StorageError`` that names it."""
    try:
        yield
    except OSError as error:
        folder = tempfile.tempdir or "the folder of temporary files"
        raise StorageError(
            f"{folder}: photos that are listed cannot wait there ({error.strerror or error}); free some space, or set "
            "TMPDIR to another folder"
        ) from error


@dataclass
class Comparison:
    """What a listing says of the photos of a plan at ``url``.

    A photo that lies where it was planned, and has another size, is refused. So is one of a planned key that lies
    elsewhere and has another size, unless ``extend`` is set: then it is a new photo.
    """

    url: str
    planned: PlannedPhotos
    extend: bool
    restamped: int = 0
    """How many photos have another time stamp than when they were planned."""
    first_restamped: str = ""
    on_whole: Callable[[int], object] = lambda number: None
    """Called with the number of each unit whose photos have all been found."""
    _moved: dict[int, dict[int, PhotoFile]] = field(default_factory=dict)
    _left: dict[int, int] = field(default_factory=dict)

    def new(self, list_photos: ListPhotos) -> Iterator[list[PhotoFile]]:
        """Yield the photos that the plan does not have, with the keys that they get, a list for each ``BATCH`` listed.

        Those that have perhaps moved are looked at last: by then it is known which planned ones were found.
        Raises ``SettingsDifferError``, naming it, for a photo that has changed.
        """
        keys = Keys(self.planned.has_key)
        with Spool() as aside:
            for listed in batches(list_photos(keys.reserve)):
                new, perhaps = [], []
                for photo, photo_number in zip(listed, self.planned.mark_seen(listed), strict=True):
                    if photo_number is not None:
                        self._found(photo, photo_number)
                    elif self.planned.has_key(photo.key):
                        perhaps.append(photo)
                    else:
                        new.append(with_key(photo, keys.take(photo.key)))
                aside.add(perhaps)
                yield new
            yield from self._look_again(aside, keys)

    def _look_again(self, aside: Iterable[PhotoFile], keys: Keys) -> Iterator[list[PhotoFile]]:
        """Find photos that have moved: by their own keys, then by these with a number; yield those that are new."""
        with Spool() as numbered:
            for listed in batches(aside):
                numbered.add([photo for photo in listed if not self._is_at(photo, photo.key)])
            last: dict[str, int] = {}
            for listed in batches(numbered):
                others = (photo for photo in listed if not self._has_numbered_key(photo, last))
                yield [with_key(photo, keys.take(photo.key)) for photo in others]

    def _is_at(self, photo: PhotoFile, key: str) -> bool:
        """Whether this photo is the one that was planned under a key, unless that was found elsewhere."""
        photo_number = self.planned.unseen_with_key(key)
        if photo_number is None or (self.extend and self.planned.photo(photo_number).size != photo.size):
            return False
        self.planned.seen[photo_number] = True
        self._found(photo, photo_number)
        return True

    def _has_numbered_key(self, photo: PhotoFile, last: dict[str, int]) -> bool:
        """Whether this photo was planned under its own key with ``~`` and a number behind it.

        ``last`` has the number that was found last, by own key.
        """
        ordinal = last.get(photo.key, 1) + 1
        while self.planned.has_key(key := f"{photo.key}~{ordinal}"):
            if self._is_at(photo, key):
                last[photo.key] = ordinal
                return True
            ordinal += 1
        return False

    def _found(self, photo: PhotoFile, photo_number: int) -> None:
        planned = self.planned.photo(photo_number)
        if photo.size != planned.size:
            raise SettingsDifferError(
                f"{photo.name}: changed since the shard set at {self.url} was planned (image {planned.key!r}: "
                f"{planned.size} bytes then, {photo.size} now); restore the file, or label into another --shards folder"
            )
        if photo.stamp != planned.stamp:
            self.restamped += 1
            self.first_restamped = self.first_restamped or photo.name
        number, index = self.planned.unit_of(photo_number)
        if (photo.url, photo.member, photo.offset) != (planned.url, planned.member, planned.offset):
            self._moved.setdefault(number, {})[index] = with_key(photo, planned.key)
        left = self._left[number] = self._left.get(number, self.planned.size_of(number)) - 1
        if not left:
            del self._left[number]
            self.on_whole(number)

    def moved(self, number: int) -> Unit | None:
        """Return a unit as it is to be read, if its photos lie elsewhere than its plan says."""
        if number not in self._moved:
            return None
        images = list(self.planned.shards.unit(number).images)
        for index, photo in self._moved[number].items():
            images[index] = photo
        return Unit(number, tuple(images))
