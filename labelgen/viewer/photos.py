"""The photos of a set that is shown: from where they lie now, or from the set's own layer of photos."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from sum_factory.labelgen.viewer.pictures import decode_small, smaller
from sum_factory.labelgen.viewer.shown_set import ShownSet
from sum_factory.shared.errors import ImageError, InputError, ShardError, StorageError, UnreachableError
from sum_factory.shared.images import RgbImage
from sum_factory.shared.shards.dataset import PHOTOS
from sum_factory.shared.shards.originals import decode_original, is_stretched, original_of, read_original
from sum_factory.shared.shards.photos import read_photo

MOST_BYTES = 400 << 20
"""Bytes of decoded photos that are kept: the largest one that is read, or many of the usual size."""
NOT_THERE = (ImageError, InputError, UnreachableError)
Named = tuple[int, int]


@dataclass(frozen=True)
class Photo:
    """A photo, RGB uint8 (H, W, 3); ``note`` says so if it is not the original."""

    pixels: RgbImage
    note: str | None = None


@dataclass
class Photos:
    """Reads the photos of a set. Those of full size are kept, so that one can be zoomed into."""

    shown: ShownSet
    _kept: OrderedDict[Named, Photo] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def large(self, number: int, image: int) -> Photo:
        """Return a photo at its own size, or as the set keeps it. Raises ``SumError`` if it is in neither place."""
        with self._lock:
            if (number, image) in self._kept:
                self._kept.move_to_end((number, image))
                return self._kept[number, image]
        photo = self._read_large(number, image)
        with self._lock:
            self._kept[number, image] = photo
            while len(self._kept) > 1 and sum(each.pixels.nbytes for each in self._kept.values()) > MOST_BYTES:
                self._kept.popitem(last=False)
        return photo

    def small(self, number: int, image: int, side: int) -> RgbImage:
        """Return a photo with its longer side at most ``side``. Raises ``SumError`` as ``large``."""
        shards = self.shown.shards
        kept = self._of_layer(number, image)
        if kept is not None and max(kept.shape[:2]) >= side:
            return smaller(kept, side)
        planned = self.shown.planned(number, image)
        try:
            data = read_original(shards, planned, self.shown.image(number, image).digest)
            return decode_small(data, original_of(shards, planned).name, side, is_stretched(shards))
        except NOT_THERE:
            if kept is None:
                raise
            return smaller(kept, side)

    def _read_large(self, number: int, image: int) -> Photo:
        shards, planned = self.shown.shards, self.shown.planned(number, image)
        try:
            return Photo(decode_original(shards, planned, self.shown.image(number, image).digest))
        except NOT_THERE as error:
            kept = self._of_layer(number, image)
            if kept is None:
                raise
            return Photo(kept, f"shown as the layer {PHOTOS} keeps it, {kept.shape[1]} x {kept.shape[0]}: {error}")

    def _of_layer(self, number: int, image: int) -> RgbImage | None:
        """Return a photo as the layer of photos keeps it, or None if it is not there."""
        shards = self.shown.shards
        if PHOTOS not in shards.dataset.layers:
            return None
        try:
            return np.ascontiguousarray(read_photo(shards, number, image).transpose(1, 2, 0))
        except (ShardError, StorageError):
            return None
