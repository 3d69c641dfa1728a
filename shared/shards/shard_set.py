"""A shard set opened for reading: its units, its layers, and the labels and uncertainty maps of any image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sum_factory.shared.codecs.uncertainty import Uncertainty
from sum_factory.shared.errors import ShardError
from sum_factory.shared.relocation import UNMOVED, Relocation
from sum_factory.shared.shards.dataset import (
    DATASET,
    MOST_LOST,
    REFINEMENT,
    REMEDY_FOR_DATA,
    REMEDY_FOR_UNIT,
    UNCERTAINTY,
    UNITS,
    Dataset,
    Layer,
    Unit,
    number_of,
    read_dataset,
    read_unit,
    uncertainty_layer,
    unit_name,
    unit_path,
)
from sum_factory.shared.shards.dataset import MASKS as MASKS
from sum_factory.shared.shards.encoding import bounds_of, data_files, open_reader
from sum_factory.shared.shards.image_rows import ImageRows as ImageRows
from sum_factory.shared.shards.image_rows import UncertaintyRow as UncertaintyRow
from sum_factory.shared.shards.image_rows import digests_of, image_rows, uncertainty_rows
from sum_factory.shared.shards.kinds import kind_of, planes_of
from sum_factory.shared.shards.manifest import UnitRecord, check_manifest, manifest_path, read_manifest, read_record
from sum_factory.shared.shards.manifest_checks import require_columns, require_rows
from sum_factory.shared.shards.reader import LayerReader, UnitRows
from sum_factory.shared.store.cache import Cache
from sum_factory.shared.store.storage import Storage

if TYPE_CHECKING:
    from sum_factory.shared.labelled_photo import LabelledPhoto

UNITS_KEPT = 24
"""Units of which a reader keeps the rows: training reads 8 at a time, with 8 to come and 8 just left."""


@dataclass(frozen=True)
class ShardSet:
    """A shard set at any fsspec URL. Only committed units are ever seen.

    ``selection.opened.Selection`` is one that chooses from others: what reads only takes either (``open_shards``).
    ``photos_from`` says where the photos lie now that have moved since they were labelled.
    """

    storage: Storage
    dataset: Dataset
    photos_from: Relocation = field(default=UNMOVED, kw_only=True)

    @classmethod
    def open(cls, url: str, cache: Cache | None = None, photos_from: Relocation = UNMOVED) -> ShardSet:
        """Open the shard set at ``url``, whose files are read through ``cache`` if the URL is remote.

        Raises ``ShardError`` if there is none.
        """
        storage = Storage(url, cache)
        dataset = read_dataset(storage)
        if dataset is None:
            raise ShardError(f"{storage.path(DATASET)}: missing; {url} is no shard set (make one with `labelgen run`)")
        return cls(storage, dataset, photos_from=photos_from)

    def layer(self, name: str = MASKS) -> Layer:
        """Return what ``dataset.json`` says of a layer. Raises ``ShardError`` if there is no such layer."""
        if name not in self.dataset.layers:
            raise ShardError(f"{self.storage.url}: no layer {name!r}; there are {', '.join(self.dataset.layers)}")
        return self.dataset.layers[name]

    def layer_id(self, name: str = MASKS) -> str:
        """Return the id of a layer. Raises ``ShardError`` if there is no such layer."""
        return self.layer(name).id

    @cached_property
    def unit_count(self) -> int:
        """How many units are planned: those that ``dataset.json`` names, and those that a run has added since."""
        numbers = [number for name in self.storage.names(UNITS) if (number := number_of(name)) is not None]
        told = len(self.dataset.unit_ids)
        count = max([told, *(number + 1 for number in numbers)])
        if count > max(told, len(numbers)) + MOST_LOST:
            name = self.storage.path(unit_path(count - 1))
            raise ShardError(f"{name}: there are {len(numbers)} plans, and none has so large a number; delete it")
        return count

    @property
    def is_planned(self) -> bool:
        """Whether the plan is whole: no run is adding to it, or was stopped when it did."""
        return self.unit_count == len(self.dataset.unit_ids)

    @property
    def image_count(self) -> int:
        """How many photos all planned units have."""
        added = range(len(self.dataset.unit_ids), self.unit_count)
        return self.dataset.image_count + sum(len(self.unit(number).images) for number in added)

    def size_of(self, number: int) -> int:
        """Return how many images a unit has. Raises ``ShardError`` as ``unit_id``."""
        is_told = number < len(self.dataset.unit_ids)
        return self.dataset.size_of(number) if is_told else len(self.unit(number).images)

    def unit_id(self, number: int) -> str:
        """Return the id of a unit. Raises ``ShardError`` if only its plan tells it, and is missing or damaged."""
        ids = self.dataset.unit_ids
        return ids[number] if number < len(ids) else self._read_id(number)

    @cached_property
    def _read_id(self) -> Callable[[int], str]:
        return lru_cache(UNITS_KEPT)(lambda number: read_unit(self.storage, number).id)

    def identity(self, layers: Sequence[str]) -> dict[str, str]:
        """Return what somebody who reads these layers records, to know later what was read."""
        return {f"layer_{name}": self.layer_id(name) for name in layers}

    @property
    def holds_data(self) -> bool:
        """Whether data lie in its own folder, and what belongs to them."""
        return True

    def origin(self, number: int) -> tuple[ShardSet, int]:
        """Return the shard set that holds the data of a unit, and the unit's number there."""
        return self, number

    def chosen(self, number: int) -> pa.Table | None:
        """Return which rows of its manifests in ``origin`` a unit has, ``image_index`` and ``mask``; None for all."""
        return None

    def sizes_fit(self, sizes: Sequence[int]) -> bool:
        """Whether units of these sizes are those that ``dataset.json`` says there are."""
        told = range(len(self.dataset.unit_ids))
        expected = [self.dataset.size_of(number) for number in told]
        return list(sizes[: len(told)]) == expected and all(0 < size <= self.dataset.unit_size for size in sizes)

    @property
    def uncertainty_layers(self) -> tuple[str, ...]:
        """Names of the layers of uncertainty maps, without their folder."""
        return tuple(name.split("/", 1)[1] for name in sorted(self.dataset.layers) if kind_of(name).name == UNCERTAINTY)

    @cached_property
    def input_side(self) -> int:
        """Side in pixels of the square input of the SAM that made the masks."""
        return int(self.layer(MASKS).weights["sam"]["image_size"])

    def unit(self, number: int) -> Unit:
        """Return the plan of a unit. Raises ``ShardError`` if it is missing, damaged or of another shard set."""
        unit = read_unit(self.storage, number)
        ids = self.dataset.unit_ids
        if number < len(ids) and unit.id != ids[number]:
            raise ShardError(f"{self.storage.path(unit_path(number))}: of another shard set; {REMEDY_FOR_UNIT}")
        return unit

    def committed(self, layer: str = MASKS) -> list[int]:
        """Return the numbers of the units of ``layer`` that are committed, in order."""
        names = self.storage.names(f"manifest/{layer}")
        present = {name.removesuffix(".parquet") for name in names}
        return [number for number in range(self.unit_count) if unit_name(number) in present]

    def manifest(
        self, number: int, layer: str = MASKS, columns: Sequence[str] | None = None
    ) -> tuple[pa.Table, UnitRecord]:
        """Read the manifest of a unit, or only some ``columns`` of it.

        Raises ``ShardError`` if it is not committed, damaged, or another layer's.
        """
        name = manifest_path(layer, number)
        try:
            content = self.storage.read(name)
        except FileNotFoundError:
            raise ShardError(f"{self.storage.path(name)}: missing; this unit is not in layer {layer} yet") from None
        table, record = read_manifest(content, self.storage.path(name), columns)
        data = self.data_files(number, layer)
        expected = (number, self.unit_id(number), self.layer_id(layer), len(data))
        if (record.unit, record.unit_id, record.layer_id, len(record.each_file)) != expected:
            raise ShardError(f"{self.storage.path(name)}: belongs to another shard set; {REMEDY_FOR_DATA}")
        self._require_rows(table, record, layer, columns is None)
        for file, (size, sha256) in zip(data, record.each_file, strict=True):
            self.storage.expect(file, size, sha256)
        return table, record

    def _require_rows(self, table: pa.Table, record: UnitRecord, layer: str, is_whole: bool) -> None:
        """Raise ``ShardError`` if the rows of a manifest cannot be those of this unit in this layer."""
        bounds = bounds_of(
            self.dataset, self.layer(layer), self.size_of(record.unit), [size for size, _ in record.each_file]
        )

        def check() -> None:
            if record.images != bounds.images:
                raise ValueError(f"{record.images} images, and its unit has {bounds.images}")
            if is_whole:
                require_columns(table.column_names, bounds)
            require_rows(table, bounds)

        check_manifest(self.storage.path(manifest_path(layer, record.unit)), check)

    def data_files(self, number: int, layer: str = MASKS) -> tuple[str, ...]:
        """Return the names of the files that hold a unit's data, whether they are there or not."""
        return data_files(self.dataset, self.layer(layer), number)

    def images(self, number: int) -> list[ImageRows]:
        """Return the images of a committed unit, with their manifest rows."""
        return image_rows(self.manifest(number)[0])

    def digests(self, number: int) -> dict[str, str | None]:
        """Return the SHA-256 of the files that the masks of a committed unit are of, by the key of the image.

        None stands for a file that could not be read.
        """
        return digests_of(self.manifest(number, MASKS, ("image_index", "image", "digest"))[0])

    def reader(self, layer: str = MASKS) -> LayerReader:
        """Return what reads a layer. Raises ``ShardError`` if there is no such layer, or nothing reads its encoding."""
        if layer not in self._readers:
            rows = lru_cache(UNITS_KEPT)(partial(self.read_rows, layer=layer))
            self._readers[layer] = open_reader(self.storage, self.dataset, self.layer(layer), rows)
        return self._readers[layer]

    @cached_property
    def _readers(self) -> dict[str, LayerReader]:
        return {}

    def read_rows(
        self,
        number: int,
        layer: str = MASKS,
        columns: Sequence[str] | None = None,
        masks: UnitRecord | None = None,
    ) -> UnitRows:
        """Read the manifest's rows of a unit's masks, or only some ``columns`` of them, ``WHICH`` included.

        ``masks`` is what the manifest of the unit's masks says, if the caller has read it. Raises ``ShardError`` if the
        unit is not committed, its manifest is damaged, or its maps are not of the masks that are there.
        """
        table, record = self.manifest(number, layer, columns)
        if kind_of(layer).of_masks:
            self.require_own_masks(number, layer, record, masks)
        return UnitRows.from_manifest(table, record, self.storage.path(manifest_path(layer, number)))

    @property
    def cache(self) -> Cache | None:
        """What data are read through; None if they are on local disks, or read from where they are."""
        return None if self.storage.is_local else self.storage.cache

    def fetch(self, number: int, layer: str = MASKS) -> None:
        """Bring a unit's data into the cache, if they are remote. Raises ``FileNotFoundError`` if they are missing."""
        for name in self.data_files(number, layer):
            self.storage.fetch(name)

    def require_whole(self, number: int, layer: str, record: UnitRecord) -> None:
        """Raise ``ShardError`` if a unit's data are missing or cut short: what reads a tar does not notice that.

        ``record`` is what the manifest of the unit in the layer says.
        """
        for name, (expected, _) in zip(self.data_files(number, layer), record.each_file, strict=True):
            try:
                size = self.storage.size(name)
            except FileNotFoundError:
                size = 0
            if size != expected:
                raise ShardError(
                    f"{self.storage.path(name)}: {size} bytes, expected {expected}; not trained on: "
                    "run `labelgen verify`, which says how to mend it"
                )

    def read_label_logits(self, number: int, image: ImageRows, masks: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """Read and decode the chosen masks of an image: label logits, float32 (h, w) each."""
        codes = self.reader(MASKS).read(number, [image.first + mask for mask in masks], "label")
        return [codes.values(k) for k in range(len(codes))]

    def label_blobs(self, number: int, image: ImageRows) -> list[bytes]:
        """Read the masks of an image as ``encode_label`` made them."""
        return self.reader(MASKS).blobs(number, range(image.first, image.first + len(image.masks)))

    def uncertainty(self, number: int, layer: str = REFINEMENT) -> tuple[tuple[UncertaintyRow, ...], ...]:
        """Return what is known of the maps of a committed unit, ``rows[image_index][mask]``.

        Row for row the masks of ``images(number)``; an image without masks has an empty tuple. Raises ``ShardError``
        if the unit is not committed in this layer, or its maps are not of the masks that are there.
        """
        table, record = self.manifest(number, uncertainty_layer(layer))
        self.require_own_masks(number, uncertainty_layer(layer), record)
        return uncertainty_rows(table, record.images)

    def read_uncertainty(
        self, number: int, rows: Sequence[UncertaintyRow], layer: str = REFINEMENT, refined: bool = True
    ) -> list[Uncertainty | None]:
        """Read and decode the maps of chosen rows of ``uncertainty(number, layer)``; None for those that have none.

        With ``refined`` False the refined logits are not decoded, and left out.
        """
        name = uncertainty_layer(layer)
        known = [row.row for row in rows if row.u_valid]
        maps = self.reader(name).read(number, known, "u")
        labels = None
        if refined and "refined" in planes_of(self.layer(name)):
            labels = self.reader(name).read(number, known, "refined")
        made = iter(
            [Uncertainty(maps.values(k), None if labels is None else labels.values(k)) for k in range(len(known))]
        )
        return [next(made) if row.u_valid else None for row in rows]

    def require_own_masks(self, number: int, layer: str, record: UnitRecord, masks: UnitRecord | None = None) -> None:
        """Raise ``ShardError`` if the data of a unit belong to other masks than those that are there, or ``masks``."""
        found = self._masks_sha256(number) if masks is None else masks.data_sha256
        if found != record.masks_sha256:
            raise ShardError(
                f"{self.storage.path(manifest_path(layer, number))}: its {kind_of(layer).contents} are of other masks "
                f"than those that are there; {REMEDY_FOR_DATA}"
            )

    def _masks_sha256(self, number: int) -> str | None:
        """Return the SHA-256 of the data of a unit's masks, or None if the unit has none."""
        name = manifest_path(MASKS, number)
        try:
            return read_record(self.storage.read(name), self.storage.path(name)).data_sha256
        except FileNotFoundError:
            return None

    def __iter__(self) -> Iterator[LabelledPhoto]:
        """Yield every photo of the committed units, in order, with its masks and maps as arrays."""
        from sum_factory.shared.shards.walk import labelled_photos

        return labelled_photos(self)

    def walk(self) -> Iterator[tuple[int, ImageRows]]:
        """Yield every image of every committed unit with the unit's number, in order."""
        for number in self.committed():
            for image in self.images(number):
                yield number, image
