"""The photos of a plan that is there, to be found again in a listing: by their place, or by their key if they moved.

Photos are numbered through all units of the plan. To be *seen* is to have been found in the listing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sum_factory.shared.credentials import without_credentials
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.places import absolute
from sum_factory.shared.progress import Stage
from sum_factory.shared.shards.dataset import UNITS, number_of
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.threads import GeneratorPool

READERS = 8
"""Plans that are read at once."""
UNITS_KEPT = 64
"""Units whose photos are held: a listing comes in the order of the plan, or of several plans in turn."""

Hashes = npt.NDArray[np.int64]


class PlannedPhotos:
    """What the plans of a shard set hold. A photo takes some forty bytes: hashes of its place and of its key.

    Photos are numbered through, in the order of the units. ``missing`` are the numbers of the units whose plan is not
    there. Raises ``ShardError`` if one is damaged or of another shard set.
    """

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards
        there = {number_of(name) for name in shards.storage.names(UNITS)}
        self.missing = [number for number in range(shards.unit_count) if number not in there]
        self.numbers = [number for number in range(shards.unit_count) if number in there]
        self.ids: dict[int, str] = {}
        places: list[int] = []
        keys: list[int] = []
        first = [0]
        for photos in self._read():
            places += map(_place, photos)
            keys += (hash(photo.key) for photo in photos)
            first.append(len(places))
        self._first = np.array(first, np.int64)
        self._places, self._keys = _Sorted(places), _Sorted(keys)
        self.seen = np.zeros(len(places), np.bool_)
        self.is_in_order = True
        """Whether what was found by its place has come in the order of the plan."""
        self._last = -1
        self._photos = lru_cache(UNITS_KEPT)(self._photos_of)

    def __len__(self) -> int:
        return len(self.seen)

    def size_of(self, number: int) -> int:
        """Return how many photos a unit has whose plan is there."""
        position = int(np.searchsorted(self.numbers, number))
        return int(self._first[position + 1] - self._first[position])

    def _read(self) -> Iterator[tuple[PhotoFile, ...]]:
        with GeneratorPool(READERS) as pool, Stage("reading plans", len(self.numbers), "unit") as stage:
            for start in range(0, len(self.numbers), 8 * READERS):
                for unit in pool.map(self.shards.unit, self.numbers[start : start + 8 * READERS]):
                    self.ids[unit.number] = unit.id
                    yield unit.images
                    stage.advance()

    def _photos_of(self, number: int) -> tuple[PhotoFile, ...]:
        return self.shards.unit(number).images

    def unit_of(self, photo_number: int) -> tuple[int, int]:
        """Return the number of the unit that a photo is in, and its number there."""
        position = int(np.searchsorted(self._first, photo_number, "right")) - 1
        return self.numbers[position], photo_number - int(self._first[position])

    def photo(self, photo_number: int) -> PhotoFile:
        """Return what the plan says of a photo."""
        number, index = self.unit_of(photo_number)
        return self._photos(number)[index]

    def mark_seen(self, listed: Sequence[PhotoFile]) -> list[int | None]:
        """Mark as seen the photos that were planned where the ``listed`` ones lie; return their numbers or None.

        A place that is planned several times is found as often as it is listed.
        """
        found = self._places.find(np.array([_place(photo) for photo in listed], np.int64))
        return [self._take(self._places, int(start), _place(photo)) for photo, start in zip(listed, found, strict=True)]

    def _take(self, among: _Sorted, start: int, wanted: int) -> int | None:
        for photo_number in among.equal(start, wanted):
            if not self.seen[photo_number]:
                self.seen[photo_number] = True
                self.is_in_order &= photo_number > self._last
                self._last = photo_number
                return photo_number
        return None

    def has_key(self, key: str) -> bool:
        """Whether a photo has this key."""
        wanted = hash(key)
        return any(True for _ in self._keys.equal(self._keys.find_one(wanted), wanted))

    def unseen_with_key(self, key: str) -> int | None:
        """Return the number of the photo of this key if it has not been seen."""
        wanted = hash(key)
        start = self._keys.find_one(wanted)
        return next((number for number in self._keys.equal(start, wanted) if not self.seen[number]), None)

    def gone(self) -> Iterator[str]:
        """Yield the keys of the photos that were not seen, in the order of the plan."""
        for photo_number in np.flatnonzero(~self.seen).tolist():
            yield self.photo(photo_number).key


class _Sorted:
    """Hashes in ascending order, each with the number of the photo that it is of."""

    def __init__(self, hashes: list[int]) -> None:
        values = np.array(hashes, np.int64)
        self._photos = np.argsort(values, kind="stable")
        self._values = values[self._photos]

    def find(self, wanted: Hashes) -> npt.NDArray[np.int64]:
        """Return the position of the first hash that is not below each of ``wanted``."""
        return np.searchsorted(self._values, wanted).astype(np.int64)

    def find_one(self, wanted: int) -> int:
        """Return the position of the first hash that is not below ``wanted``."""
        return int(np.searchsorted(self._values, wanted))

    def equal(self, start: int, wanted: int) -> Iterator[int]:
        """Yield the numbers of the photos whose hashes, from position ``start`` on, equal ``wanted``."""
        while start < len(self._values) and self._values[start] == wanted:
            yield int(self._photos[start])
            start += 1


def _place(photo: PhotoFile) -> int:
    """Return the hash of where a photo lies, as that is recorded; not every version recorded absolute places."""
    url = photo.url if photo.url.startswith("/") or "://" in photo.url else absolute(photo.url)
    url = without_credentials(url)
    return hash((url, photo.member))
