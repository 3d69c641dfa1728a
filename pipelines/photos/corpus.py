"""Photos with human masks, made small once and kept on disk for pre-training.

    FOLDER/photos.json   FOLDER/000000.npz ...   FOLDER/usable.json

``photos.json`` says which sets they come from, ``usable.json``, written last, which of them have a coarse mask.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from sum_factory.pipelines.microworld.coarse import Coarseness, coarsen
from sum_factory.shared.errors import InputError
from sum_factory.shared.images import RgbImage
from sum_factory.shared.progress import track
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.settings_differ import require_same
from sum_factory.shared.store.canonical_json import content_id, to_json
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.data.human import HumanSample
from sum_factory.trainer.data.sets import SetSettings, how_read, open_set

Masks = npt.NDArray[np.bool_]

PHOTO_SIDE = 320
"""Longer side of the kept photos: a fourth more than ``vit_micro`` sees, for what is cut out of them."""
MASK_SIDE = 256
"""Longer side of the kept masks: the lengths of ``Coarseness`` are meant for it."""
RECORD, USABLE = "photos.json", "usable.json"
WHOLE = ("salient", "entity")
"""Tasks whose masks are things that can be pasted into another photo; a part would hang in the air."""
REMEDY = "Name another folder, or delete this one: its photos are read again."


@dataclass(frozen=True)
class KeptPhoto:
    """A photo, RGB uint8 (H, W, 3), and its K masks, exact as people drew them and coarse, bool (K, h, w) each.

    ``task`` is what the masks are of. Photo and masks have the same shape, but not the same size.
    """

    image: RgbImage
    exact: Masks
    coarse: Masks
    task: str

    def encode(self) -> bytes:
        """Return it as an NPZ file."""
        file, shape = io.BytesIO(), np.array(self.exact.shape)
        exact, coarse = (
            np.packbits(masks.reshape(len(masks), shape[1] * shape[2]), axis=1) for masks in (self.exact, self.coarse)
        )
        np.savez(file, image=self.image, shape=shape, exact=exact, coarse=coarse, task=np.array(self.task))
        return file.getvalue()

    @classmethod
    def decode(cls, path: Path) -> KeptPhoto:
        """Read it from an NPZ file."""
        with np.load(path) as file:
            shape = tuple(int(length) for length in file["shape"])
            pixels = shape[1] * shape[2]
            exact, coarse = (
                np.unpackbits(file[name], axis=1, count=pixels).reshape(shape).astype(bool)
                for name in ("exact", "coarse")
            )
            return cls(file["image"], exact, coarse, str(file["task"]))


@dataclass(frozen=True)
class PhotoCorpus:
    """The kept photos that have a mask; ``identity`` names sets, photos and how they were made small."""

    folder: Path
    numbers: tuple[int, ...]
    identity: str

    def __len__(self) -> int:
        return len(self.numbers)

    def load(self, index: int) -> KeptPhoto:
        """Read a photo."""
        return KeptPhoto.decode(self.folder / file_of(self.numbers[index]))


def open_photos(folder: Path, sets: Sequence[SetSettings], coarseness: Coarseness) -> PhotoCorpus:
    """Open the photos in ``folder``; read those of ``sets`` that are not there yet.

    Raises ``SettingsDifferError`` if the folder holds those of other sets, and ``InputError`` for sets that cannot be
    used.
    """
    storage = Storage(str(folder))
    opened = [open_set(settings) for settings in sets]
    described = {
        "sets": [
            {"name": each.name, "task": each.task, "photos": content_id(human.keys), "read": how_read(each)}
            for each, human in zip(sets, opened, strict=True)
        ],
        "coarseness": asdict(coarseness),
        "sides": [PHOTO_SIDE, MASK_SIDE],
    }
    storage.make()
    storage.create(RECORD, to_json(described))
    stored = json.loads(storage.read(RECORD))
    require_same("photos", str(folder), stored, json.loads(to_json(described)), REMEDY)
    if not (folder / USABLE).exists():
        places = [(human, index) for human in opened for index in range(len(human.keys))]
        usable = list(_usable(storage, folder, places, coarseness))
        storage.write(USABLE, to_json(usable))
    numbers = tuple(json.loads(storage.read(USABLE)))
    if not numbers:
        raise InputError(f"{folder}: none of the photos has a mask that is left when it is made coarse")
    return PhotoCorpus(folder, numbers, content_id(stored))


def _usable(storage: Storage, folder: Path, places: Sequence[tuple[Any, int]], coarseness: Coarseness) -> Iterator[int]:
    """Write the photos that are not there; yield the numbers of those with a coarse mask."""
    for number, (human, index) in enumerate(track(places, "making photos small", "photo", len(places))):
        name = file_of(number)
        if not (folder / name).exists():
            storage.write(name, keep(human.load(index), coarseness).encode())
        if len(KeptPhoto.decode(folder / name).coarse):
            yield number


def file_of(number: int) -> str:
    """Return the name of the file of a photo."""
    return f"{number:06d}.npz"


def keep(sample: HumanSample, coarseness: Coarseness) -> KeptPhoto:
    """Make a photo and its masks small, and the masks coarse; masks of which nothing is left are dropped."""
    image = resized(sample.image, PHOTO_SIDE)
    pairs = [(exact, coarsen(exact, coarseness)) for exact in _small_masks(sample)]
    pairs = [(exact, coarse) for exact, coarse in pairs if coarse.any()]
    shape = resized(sample.image[..., 0], MASK_SIDE).shape
    empty = np.zeros((0, *shape), bool)
    exact = np.stack([exact for exact, _ in pairs]) if pairs else empty
    coarse = np.stack([coarse for _, coarse in pairs]) if pairs else empty
    return KeptPhoto(image, exact, coarse, TASKS[sample.task])


def _small_masks(sample: HumanSample) -> Iterable[Masks]:
    """Yield the masks of a photo at the kept size: set where at least half of a pixel is."""
    for number in range(sample.count):
        (mask,) = sample.masks_at([number])
        yield resized(mask.astype(np.float32), MASK_SIDE) >= 0.5


def resized(raster: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    """Bring a raster (H, W) or (H, W, C) to a longer side."""
    height, width = raster.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(raster, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR))


def _packed(masks: Masks) -> npt.NDArray[np.uint8]:
    return np.packbits(masks.reshape(len(masks), masks.shape[1] * masks.shape[2]), axis=1)
