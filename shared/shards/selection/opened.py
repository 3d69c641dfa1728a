"""A selection opened for reading: a shard set whose units, rows and data are those that it takes of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sum_factory.shared.codecs.codes import Codes
from sum_factory.shared.errors import ShardError
from sum_factory.shared.relocation import UNMOVED, Relocation
from sum_factory.shared.shards.dataset import DATASET, Dataset, Layer, Unit
from sum_factory.shared.shards.kinds import comparable, kind_of
from sum_factory.shared.shards.kinds.kind import Plane
from sum_factory.shared.shards.manifest import UnitRecord, manifest_path
from sum_factory.shared.shards.originals import require_old_places
from sum_factory.shared.shards.reader import WHICH, LayerReader, Picked, UnitRows
from sum_factory.shared.shards.selection.plan import (
    REMEDY_FOR_SELECTION,
    Base,
    SelectionPlan,
    base_url,
    read_rows_file,
    rows_path,
    take_images,
    take_rows,
)
from sum_factory.shared.shards.shard_set import MASKS, UNITS_KEPT, ShardSet
from sum_factory.shared.store.cache import Cache
from sum_factory.shared.store.canonical_json import content_id
from sum_factory.shared.store.storage import Storage

REMAKE = "delete the selection and make it anew with `labelgen select` or `merge`"


def open_shards(url: str, cache: Cache | None = None, photos_from: Relocation = UNMOVED) -> ShardSet:
    """Open what is at ``url`` for reading: a shard set, or a selection. Remote files are read through ``cache``.

    Raises ``ShardError`` if there is neither, or if a base of the selection is not what it was when the selection was
    made; ``SettingsError`` if an old place of ``photos_from`` is that of no photo.
    """
    shards = _open(url, cache, photos_from)
    require_old_places(shards)
    return shards


def _open(url: str, cache: Cache | None, photos_from: Relocation) -> ShardSet:
    storage = Storage(url, cache)
    try:
        data = storage.read(DATASET)
    except FileNotFoundError:
        return ShardSet.open(url, cache, photos_from)  # which says so
    plan = SelectionPlan.from_json(data, storage.path(DATASET))
    if plan is None:
        return ShardSet(storage, Dataset.from_json(data, storage.path(DATASET)), photos_from=photos_from)
    return _open_selection(storage, plan, photos_from)


@dataclass(frozen=True)
class Selection(ShardSet):
    """Chosen rows of chosen units of ``bases``, in one numbering: units, and images and masks in them, from 0.

    ``storage`` holds the choice alone; ``dataset`` describes it as if it were a shard set of its own. A layer has the
    units that it had when the selection was made.
    """

    plan: SelectionPlan
    bases: tuple[ShardSet, ...]

    def layer_id(self, name: str = MASKS) -> str:
        """Return the id of a layer: that of the layers it is taken of, and of what is taken."""
        self.layer(name)
        return content_id([self.plan.id, name])

    def identity(self, layers: Sequence[str]) -> dict[str, str]:
        """Return what somebody who reads these layers records: also which selection it was."""
        return {**super().identity(layers), "selection": self.plan.id}

    @property
    def holds_data(self) -> bool:
        """Whether data lie in its own folder: they never do."""
        return False

    def origin(self, number: int) -> tuple[ShardSet, int]:
        """Return the shard set that holds the data of a unit, and the unit's number there."""
        unit = self.plan.units[number]
        return self.bases[unit.base], unit.unit

    def chosen(self, number: int) -> pa.Table | None:
        """Return which rows of its manifests in ``origin`` a unit has, ``image_index`` and ``mask``; None for all."""
        return self._chosen(number)

    @cached_property
    def _chosen(self) -> Callable[[int], pa.Table | None]:
        return lru_cache(UNITS_KEPT)(self._read_chosen)

    def _read_chosen(self, number: int) -> pa.Table | None:
        sha256 = self.plan.units[number].rows
        return None if sha256 is None else read_rows_file(self.storage, number, sha256)

    @cached_property
    def unit_count(self) -> int:
        """How many units the view takes."""
        return len(self.plan.units)

    def unit_id(self, number: int) -> str:
        """Return the id of a unit: of the images that are taken of it."""
        return self.plan.units[number].id

    def sizes_fit(self, sizes: Sequence[int]) -> bool:
        """A selection has units of all sizes, which the hash of its ``dataset.json`` vouches for."""
        return True

    def unit(self, number: int) -> Unit:
        """Return the images of a unit. Raises ``ShardError`` if its plan or its rows are missing or damaged."""
        base, own = self.origin(number)
        images, rows = base.unit(own).images, self.chosen(number)
        if rows is not None:
            taken = np.unique(rows["image_index"].to_numpy())
            if taken[-1] >= len(images):
                name = self.storage.path(rows_path(number))
                raise ShardError(f"{name}: does not match its unit; {REMEDY_FOR_SELECTION}")
            images = tuple(images[index] for index in taken)
        unit = Unit(number, images)
        if unit.id != self.plan.units[number].id:
            raise ShardError(f"{self.storage.path(rows_path(number))}: does not match its unit; {REMEDY_FOR_SELECTION}")
        return unit

    def committed(self, layer: str = MASKS) -> list[int]:
        """Return the numbers of the units of ``layer`` in order: of those that it had when the selection was made."""
        return [number for number, unit in enumerate(self.plan.units) if layer in unit.data]

    def manifest(
        self, number: int, layer: str = MASKS, columns: Sequence[str] | None = None
    ) -> tuple[pa.Table, UnitRecord]:
        """Return the chosen rows of the manifest of a unit, and what it says as a whole, counted anew.

        ``data_bytes``, ``data_sha256`` and ``masks_sha256`` are those of the data that the rows lie in. Raises
        ``ShardError`` as that of a shard set, or if the data are not those that the rows were chosen from.
        """
        self._require_offered(number, layer)
        base, own = self.origin(number)
        name = base.storage.path(manifest_path(layer, own))
        kind = kind_of(layer)
        counted = (*WHICH, "error", *([kind.known_column] if kind.known_column else []))
        table, record = base.manifest(own, layer, None if columns is None else sorted({*columns, *counted}))
        self.require_same_data(number, layer, record)
        if (rows := self.chosen(number)) is not None:
            table = (take_images if kind.per == "image" else take_rows)(table, rows, name)
        record = self._counted(number, layer, table, record)
        return table if columns is None else table.select(list(columns)), record

    def require_same_data(self, number: int, layer: str, record: UnitRecord) -> None:
        """Raise ``ShardError`` if the data that a unit's rows were chosen from are not those of ``record``.

        ``record`` is what the manifest there says.
        """
        self._require_offered(number, layer)
        if record.data_sha256 != self.plan.units[number].data[layer]:
            base, own = self.origin(number)
            name = base.storage.path(manifest_path(layer, own))
            raise ShardError(f"{name}: of other data than when the selection {self.storage.url} was made; {REMAKE}")

    def _require_offered(self, number: int, layer: str) -> None:
        if layer not in self.plan.units[number].data:
            base, own = self.origin(number)
            name = base.storage.path(manifest_path(layer, own))
            raise ShardError(f"{name}: not there when the selection {self.storage.url} was made; {REMAKE}")

    def _counted(self, number: int, layer: str, table: pa.Table, record: UnitRecord) -> UnitRecord:
        failed = table.filter(pc.is_valid(table["error"]))
        known_column = kind_of(layer).known_column
        unknown = pc.sum(pc.invert(table[known_column])).as_py() if known_column else None
        return replace(
            record,
            unit=number,
            unit_id=self.plan.units[number].id,
            layer_id=self.layer_id(layer),
            images=pc.count_distinct(table["image_index"]).as_py(),
            masks=len(table) - table["mask"].null_count,
            errors=pc.count_distinct(failed["image_index"]).as_py(),
            unknown=unknown or 0,
        )

    def reader(self, layer: str = MASKS) -> LayerReader:
        """Return what reads a layer, by the numbers that masks have in the selection."""
        if layer not in self._readers:
            self.layer(layer)
            self._readers[layer] = SelectionReader(
                self, layer, lru_cache(UNITS_KEPT)(partial(self.read_rows, layer=layer))
            )
        return self._readers[layer]

    def data_files(self, number: int, layer: str = MASKS) -> tuple[str, ...]:
        """Return the names of the files that hold a unit's data, in the shard set that it is taken of."""
        base, own = self.origin(number)
        return base.data_files(own, layer)

    @property
    def cache(self) -> Cache | None:
        """What data are read through; None if those of all bases are on local disks, or read from where they are."""
        return next((base.cache for base in self.bases if base.cache is not None), None)

    def fetch(self, number: int, layer: str = MASKS) -> None:
        """Bring a unit's data into the cache, if they are remote. Raises ``FileNotFoundError`` if they are missing."""
        base, own = self.origin(number)
        base.fetch(own, layer)

    def require_whole(self, number: int, layer: str, record: UnitRecord) -> None:
        """Raise ``ShardError`` if the data that a unit lies in are missing or cut short."""
        base, own = self.origin(number)
        base.require_whole(own, layer, record)

    def require_own_masks(self, number: int, layer: str, record: UnitRecord, masks: UnitRecord | None = None) -> None:
        """Raise ``ShardError`` if the maps of a unit are not of the masks that are there, or not of ``masks``."""
        base, own = self.origin(number)
        base.require_own_masks(own, layer, record, masks)


@dataclass(frozen=True)
class SelectionReader:
    """A ``LayerReader`` of a selection; ``rows`` gives the masks of a unit."""

    selection: Selection
    layer: str
    rows: Callable[[int], UnitRows]

    def read(self, unit: int, picked: Picked, plane: Plane) -> Codes:
        """Read and decode masks: see ``LayerReader``."""
        reader, own = self._of(unit)
        return reader.read(own, self._there(unit)[np.asarray(picked, np.int64)], plane)

    def blobs(self, unit: int, picked: Picked) -> list[bytes]:
        """Return the blobs of masks: see ``LayerReader``."""
        reader, own = self._of(unit)
        return reader.blobs(own, self._there(unit)[np.asarray(picked, np.int64)])

    def _of(self, unit: int) -> tuple[LayerReader, int]:
        """Return what reads the data of a unit, and its number there, if they are those that the selection is of."""
        base, own = self.selection.origin(unit)
        reader = base.reader(self.layer)
        self.selection.require_same_data(unit, self.layer, reader.rows(own).record)
        return reader, own

    @cached_property
    def _there(self) -> Callable[[int], npt.NDArray[np.int64]]:
        return lru_cache(UNITS_KEPT)(self._numbers_there)

    def _numbers_there(self, unit: int) -> npt.NDArray[np.int64]:
        """Return the numbers that all masks of a unit have in the shard set which holds them."""
        reader, own = self._of(unit)
        chosen, first = self.selection.chosen(unit), reader.rows(own).first
        if chosen is None:
            return np.arange(first[-1])
        if kind_of(self.layer).per == "image":
            images = np.unique(chosen["image_index"].to_numpy())
            images = images[images < len(first) - 1]
            return np.asarray(first[images[first[images] < first[images + 1]]], np.int64)
        masks = chosen.filter(pc.is_valid(chosen["mask"]))
        index, mask = masks["image_index"].to_numpy(), masks["mask"].to_numpy()
        if index.max(initial=0) + 1 >= len(first) or (mask >= first[index + 1] - first[index]).any():
            name = self.selection.storage.path(rows_path(unit))
            raise ShardError(f"{name}: does not match its unit; {REMEDY_FOR_SELECTION}")
        return np.asarray(first[index] + mask, np.int64)


def _open_selection(storage: Storage, plan: SelectionPlan, photos_from: Relocation) -> Selection:
    bases = tuple(_open_base(storage, base) for base in plan.bases)
    for unit in plan.units:
        if unit.unit >= bases[unit.base].unit_count:
            base = bases[unit.base].storage.url
            raise ShardError(f"{storage.path(DATASET)}: there is no unit {unit.unit} in {base}; {REMEDY_FOR_SELECTION}")
    dataset = Dataset(
        unit_size=max(unit.images for unit in plan.units),
        unit_ids=tuple(unit.id for unit in plan.units),
        image_count=sum(unit.images for unit in plan.units),
        layers={name: _shared_layer([base.layer(name) for base in bases]) for name in plan.bases[0].layers},
    )
    return Selection(storage, dataset, plan, bases, photos_from=photos_from)


def _open_base(storage: Storage, described: Base) -> ShardSet:
    """Open a base of the selection at ``storage``. Raises ``ShardError``, naming it, if it is not what it was."""
    url = base_url(described.url, storage.address)
    try:
        base = ShardSet.open(url, storage.cache)
    except ShardError as error:
        raise ShardError(f"{storage.url}: cannot open a base of this selection: {error}") from error
    for what in _changed(base, described):
        raise ShardError(f"{url}: {what} since the selection {storage.url} was made of it; restore it, or {REMAKE}")
    return base


def _changed(base: ShardSet, described: Base) -> Iterator[str]:
    if base.dataset.id != described.id:
        yield "its units changed"
    for name, layer_id in described.layers.items():
        if name not in base.dataset.layers:
            yield f"layer {name} is gone"
        elif base.layer_id(name) != layer_id:
            yield f"layer {name} was made anew, with other settings or weights,"


def _shared_layer(layers: Sequence[Layer]) -> Layer:
    """Describe a layer that is taken of several shard sets: its settings are the same in all, its encoding may vary."""
    if len(layers) == 1:
        return layers[0]
    encoding = " and ".join(sorted({layer.encoding for layer in layers}))
    return replace(layers[0], encoding=encoding, settings=comparable(layers[0]), provenance={})
