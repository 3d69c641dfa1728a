"""What the page knows of all masks: a few columns of the manifests, read in the background, unit by unit."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sum_factory.shared.errors import ShardError, SumError
from sum_factory.shared.shards.dataset import uncertainty_layer
from sum_factory.shared.shards.manifest import UnitRecord, manifest_path
from sum_factory.shared.shards.reader import WHICH, UnitRows
from sum_factory.shared.shards.shard_set import MASKS, ShardSet

COLUMNS = (*WHICH, "image", "height", "width", "error", "predicted_iou", "stability", "area")
"""What is read of the manifests of masks."""
OF_MASKS = ("predicted_iou", "stability", "area")
LABELLED, EMPTY = "labelled", "no masks found"
"""Kinds of photos; others are named after their error."""
LOOK_AGAIN_SECONDS = 10.0
"""How often a set that is still being labelled is looked at for new units."""

Numbers = npt.NDArray[np.generic]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class UnitColumns:
    """What is known of a unit of I images and M masks.

    ``first`` is int64 (I + 1,): the masks of image i are ``first[i]`` to ``first[i + 1]``. ``values`` are the columns
    ``OF_MASKS``, (M,) each, NaN where a mask has no score. ``sizes`` is int32 (I, 2): height and width, 0 for a photo
    that could not be read. ``kinds`` says of each image whether it is labelled, and if not, why, in few words.
    """

    number: int
    record: UnitRecord
    keys: tuple[str, ...]
    sizes: npt.NDArray[np.int32]
    kinds: tuple[str, ...]
    errors: Mapping[int, str]
    first: Counts
    values: Mapping[str, Numbers]
    bins: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """In which bar of a histogram each mask is: filled in when it is asked."""

    @classmethod
    def of(cls, shards: ShardSet, number: int) -> UnitColumns:
        """Read a committed unit. Raises ``ShardError`` if its manifest is damaged or gone."""
        table, record = shards.manifest(number, MASKS, COLUMNS)
        rows = UnitRows.from_manifest(table, record, shards.storage.path(manifest_path(MASKS, number)))
        _, start = np.unique(table["image_index"].to_numpy(), return_index=True)
        images = table.select(["image", "height", "width", "error"]).take(pa.array(start))
        keys = tuple(images["image"].to_pylist())
        errors = {index: error for index, error in enumerate(images["error"].to_pylist()) if error is not None}
        sizes = np.stack([images[side].fill_null(0).to_numpy() for side in ("height", "width")], axis=1)
        counts = np.diff(rows.first).tolist()
        kinds = tuple(
            _kind_of(key, errors.get(k), count) for k, (key, count) in enumerate(zip(keys, counts, strict=True))
        )
        values = {name: rows[name] for name in OF_MASKS}
        return cls(number, record, keys, sizes.astype(np.int32), kinds, errors, rows.first, values)


def _kind_of(key: str, error: str | None, masks: int) -> str:
    if error is None:
        return LABELLED if masks else EMPTY
    return sys.intern(kind_of_error(error, key))


def kind_of_error(error: str, key: str) -> str:
    """Return an error of the photo ``key`` without what is the photo's own: its place, and details in brackets."""
    at = max(0, error.find(key.rsplit("/", 1)[-1].split("~", 1)[0]))
    colon = error.find(": ", at)
    told = error[colon + 2 :] if colon >= 0 else error
    short = re.sub(r"\d[\d.,]*", "N", re.split(r"[(;,]", told, maxsplit=1)[0]).strip()
    return short[:80] or "another error"


class Catalog:
    """The columns of all committed units of a set; a thread reads them, and whoever asks for one unit has it at once.

    ``open_set`` opens the set, and again when it has grown. ``layer`` names the maps whose ``mean_u`` are read too.
    """

    def __init__(self, open_set: Callable[[], ShardSet], layer: str | None) -> None:
        self._open_set = open_set
        self.shards = open_set()
        self.committed = self.shards.committed()
        self.units: dict[int, UnitColumns] = {}
        self.problems: dict[int, str] = {}
        """Why units cannot be read, by their numbers."""
        self.revision = 0
        """Grows whenever something more is known."""
        self._means: dict[str, dict[int, npt.NDArray[np.float32] | None]] = {} if layer is None else {layer: {}}
        self._stopped, self._woken = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._read_all, name="catalog", daemon=True)

    def begin(self) -> None:
        """Start to read."""
        self._thread.start()

    def close(self) -> None:
        """Stop reading, and wait until that is so."""
        self._stopped.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_growing(self) -> bool:
        """Whether units are still to come: they are planned, or being planned, and not committed."""
        return not self.shards.is_planned or len(self.committed) < self.shards.unit_count

    def unit(self, number: int) -> UnitColumns:
        """Return a committed unit. Raises ``ShardError`` if it cannot be read."""
        if number not in self.units:
            self.units[number] = UnitColumns.of(self.shards, number)
            self.problems.pop(number, None)
            self.revision += 1
        return self.units[number]

    def means(self, number: int, layer: str | None) -> npt.NDArray[np.float32] | None:
        """Return ``mean_u`` of the masks of a unit, float32 (M,), NaN where a map is unknown.

        None stands for a unit that the layer does not have. Raises ``ShardError``.
        """
        if layer is None:
            return None
        known = self._means.setdefault(layer, {})
        if number not in known:
            known[number] = self._read_means(number, layer)
            self.revision += 1
        return known[number]

    def want(self, layer: str | None) -> None:
        """Have ``mean_u`` of a layer read of all units, too."""
        if layer is not None and layer not in self._means:
            self.shards.layer(uncertainty_layer(layer))
            self._means[layer] = {}
            self._woken.set()

    def known(self, number: int, layer: str | None) -> tuple[UnitColumns, npt.NDArray[np.float32] | None] | None:
        """Return a unit and its ``means`` if both have been read, else None."""
        means = {} if layer is None else self._means.get(layer, {})
        if number not in self.units or (layer is not None and number not in means):
            return None
        return self.units[number], means.get(number)

    def look_again(self) -> None:
        """Open the set anew, if units have been committed since."""
        shards = self._open_set()
        committed = shards.committed()
        if committed != self.committed or shards.unit_count != self.shards.unit_count:
            self.shards, self.committed = shards, committed
            gone = {*self.units} - {*committed}
            for number in gone:
                self.units.pop(number, None)
            self.revision += 1

    def _read_means(self, number: int, layer: str) -> npt.NDArray[np.float32] | None:
        name = uncertainty_layer(layer)
        unit = self.unit(number)
        try:
            rows = self.shards.read_rows(number, name, (*WHICH, "mean_u"), unit.record)
        except ShardError:
            if number in self.shards.committed(name):
                raise
            return None
        if len(rows) != unit.first[-1]:
            place = self.shards.storage.path(manifest_path(name, number))
            raise ShardError(f"{place}: its rows are not those of the masks; run `labelgen verify`")
        return np.asarray(rows["mean_u"], np.float32)

    def _read_all(self) -> None:
        while not self._stopped.is_set():
            self._woken.clear()
            for number in self.committed:
                begun = time.monotonic()
                self._take(number)
                if self._stopped.wait(time.monotonic() - begun):  # half of the time is left to who looks at photos
                    return
            self._woken.wait(LOOK_AGAIN_SECONDS if self.is_growing else None)
            if not self._stopped.is_set() and self.is_growing:
                try:
                    self.look_again()
                except SumError as error:
                    self.problems[-1] = str(error)

    def _take(self, number: int) -> None:
        """Read what is lacking of a unit; what is damaged is a problem of this unit alone."""
        if number in self.problems:
            return
        try:
            self.unit(number)
            for layer in list(self._means):
                self.means(number, layer)
        except SumError as error:
            self.problems[number] = str(error)
            self.revision += 1
