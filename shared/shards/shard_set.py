"""A shard set opened for reading: its units, its layers, and the labels and uncertainty maps of any image."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shared.errors import ShardError
from shared.frame import Frame
from shared.label_codec import decode_label
from shared.shards.dataset import (
    DATASET,
    REMEDY_FOR_UNIT,
    Dataset,
    Layer,
    Unit,
    is_uncertainty,
    read_dataset,
    read_unit,
    uncertainty_layer,
    unit_name,
    unit_path,
)
from shared.shards.manifest import UnitRecord, manifest_path, read_manifest, read_record
from shared.shards.tar_layer import tar_path
from shared.storage import Storage
from shared.uncertainty_codec import Uncertainty, decode_u, decode_uncertainty

MASKS = "masks"
"""The layer of pseudo-labels."""
REFINEMENT = "refinement"
"""Name of the uncertainty layer that is read if no other is asked for."""
LARGEST_SPAN = 1 << 20
"""Bytes of a data file that are read at once to get frames that lie near each other."""


@dataclass(frozen=True)
class LabelledImage:
    """One image of the ``masks`` layer: its size in pixels, its rows of the manifest, or why it has none."""

    key: str
    index: int
    height: int
    width: int
    error: str | None
    masks: tuple[dict[str, Any], ...]

    def frame(self, mask: int, side: int) -> Frame:
        """Return the frame of one mask for a SAM of input ``side``."""
        row = self.masks[mask]
        return Frame(side, (row["crop_x0"], row["crop_y0"], row["crop_x1"], row["crop_y1"]))


@dataclass(frozen=True)
class UncertaintyRow:
    """What the manifest of an uncertainty layer says of one mask, the ``mask``-th of its image.

    Where ``u_valid`` is False nothing is known of the mask: there is no frame, and ``mean_u`` is None. Else ``mean_u``
    is the mean of the map over ``Frame.valid_size``, before it was quantised; ``offset`` and ``length`` place its
    frame.
    """

    mask: int
    u_valid: bool
    mean_u: float | None
    offset: int
    length: int
    crc32: int


class _Place(NamedTuple):
    """Where a frame lies in a data file."""

    offset: int
    length: int
    crc32: int


@dataclass(frozen=True)
class ShardSet:
    """A shard set at any fsspec URL. Only committed units are ever seen."""

    storage: Storage
    dataset: Dataset

    @classmethod
    def open(cls, url: str) -> ShardSet:
        """Open the shard set at ``url``. Raises ``ShardError`` if there is none."""
        storage = Storage(url)
        dataset = read_dataset(storage)
        if dataset is None:
            raise ShardError(f"{storage.path(DATASET)}: missing; {url} is no shard set (make one with `labelgen run`)")
        return cls(storage, dataset)

    def layer(self, name: str = MASKS) -> Layer:
        """Return what ``dataset.json`` says of a layer. Raises ``ShardError`` if there is no such layer."""
        if name not in self.dataset.layers:
            raise ShardError(f"{self.storage.url}: no layer {name!r}; there are {', '.join(self.dataset.layers)}")
        return self.dataset.layers[name]

    @property
    def uncertainty_layers(self) -> tuple[str, ...]:
        """Names of the layers of uncertainty maps, without their folder."""
        return tuple(name.split("/", 1)[1] for name in sorted(self.dataset.layers) if is_uncertainty(name))

    @cached_property
    def input_side(self) -> int:
        """Side in pixels of the square input of the SAM that made the masks."""
        return int(self.layer(MASKS).weights["sam"]["image_size"])

    def unit(self, number: int) -> Unit:
        """Return the plan of a unit. Raises ``ShardError`` if it is missing, damaged or of another shard set."""
        unit = read_unit(self.storage, number)
        if unit.id != self.dataset.unit_ids[number]:
            raise ShardError(f"{self.storage.path(unit_path(number))}: of another shard set; {REMEDY_FOR_UNIT}")
        return unit

    def committed(self, layer: str = MASKS) -> list[int]:
        """Return the numbers of the units of ``layer`` that are committed, in order."""
        names = self.storage.names(f"manifest/{layer}")
        present = {name.removesuffix(".parquet") for name in names}
        return [number for number in range(len(self.dataset.unit_ids)) if unit_name(number) in present]

    def manifest(self, number: int, layer: str = MASKS) -> tuple[pa.Table, UnitRecord]:
        """Read the manifest of a unit. Raises ``ShardError`` if it is not committed, damaged, or another layer's."""
        name = manifest_path(layer, number)
        try:
            table, record = read_manifest(self.storage.read(name), self.storage.path(name))
        except FileNotFoundError:
            raise ShardError(f"{self.storage.path(name)}: missing; this unit is not in layer {layer} yet") from None
        expected = (number, self.dataset.unit_ids[number], self.layer(layer).id(self.dataset.unit_ids))
        if (record.unit, record.unit_id, record.layer_id) != expected:
            raise ShardError(f"{self.storage.path(name)}: belongs to another shard set; delete it and run again")
        return table, record

    def images(self, number: int) -> list[LabelledImage]:
        """Return the images of a committed unit, with their manifest rows."""
        table, _ = self.manifest(number)
        rows: dict[int, list[dict[str, Any]]] = {}
        for row in table.to_pylist():
            rows.setdefault(row["image_index"], []).append(row)
        return [
            LabelledImage(
                key=group[0]["image"],
                index=index,
                height=group[0]["height"],
                width=group[0]["width"],
                error=group[0]["error"],
                masks=tuple(row for row in group if row["mask"] is not None),
            )
            for index, group in sorted(rows.items())
        ]

    def read_logits(self, number: int, image: LabelledImage, masks: Sequence[int]) -> list[npt.NDArray[np.float32]]:
        """Read and decode the chosen masks of an image: label logits, float32 (h, w) each."""
        return [decode_label(frame) for frame in self.label_frames(number, image, masks)]

    def label_frames(self, number: int, image: LabelledImage, masks: Sequence[int] | None = None) -> list[bytes]:
        """Read the frames of the chosen masks of an image, or of all, as ``encode_label`` made them."""
        rows = image.masks if masks is None else [image.masks[mask] for mask in masks]
        places = [_Place(row["offset"], row["length"], row["crc32"]) for row in rows]
        return self._read_frames(tar_path(MASKS, number), places)

    def uncertainty(self, number: int, layer: str = REFINEMENT) -> tuple[tuple[UncertaintyRow, ...], ...]:
        """Return what is known of the maps of a committed unit: rows[image_index][mask].

        Row for row the masks of ``images(number)``; an image without masks has an empty tuple. Raises ``ShardError``
        if the unit is not committed in this layer, or its maps are not of the masks that are there.
        """
        table, record = self.manifest(number, uncertainty_layer(layer))
        if self._masks_sha256(number) != record.masks_sha256:
            raise ShardError(
                f"{self.storage.path(manifest_path(uncertainty_layer(layer), number))}: its maps are of other masks "
                "than those that are there; delete it and run again"
            )
        rows: list[list[UncertaintyRow]] = [[] for _ in range(record.images)]
        columns = ("image_index", "mask", "u_valid", "mean_u", "offset", "length", "crc32")
        for index, mask, *values in zip(*(table[name].to_pylist() for name in columns), strict=True):
            if mask is not None:
                rows[index].append(UncertaintyRow(mask, *values))
        return tuple(tuple(of_image) for of_image in rows)

    def read_uncertainty(
        self, number: int, rows: Sequence[UncertaintyRow], layer: str = REFINEMENT, refined: bool = True
    ) -> list[Uncertainty | None]:
        """Read and decode the maps of chosen rows of ``uncertainty(number, layer)``; None for those that have none.

        With ``refined`` False the refined logits are not decoded, and left out.
        """
        known = [row for row in rows if row.u_valid]
        name = tar_path(uncertainty_layer(layer), number)
        frames = self._read_frames(name, [_Place(row.offset, row.length, row.crc32) for row in known])
        maps = (decode_uncertainty(frame) if refined else Uncertainty(decode_u(frame), None) for frame in frames)
        return [next(maps) if row.u_valid else None for row in rows]

    def _masks_sha256(self, number: int) -> str | None:
        """Return the SHA-256 of the data of a unit's masks, or None if the unit has none."""
        name = manifest_path(MASKS, number)
        try:
            return read_record(self.storage.read(name), self.storage.path(name)).data_sha256
        except FileNotFoundError:
            return None

    def _read_frames(self, name: str, places: Sequence[_Place]) -> list[bytes]:
        """Read frames of a data file, at once if they lie near each other. Raises ``ShardError``."""
        if not places:
            return []
        start, end = min(place.offset for place in places), max(place.offset + place.length for place in places)
        try:
            if end - start > LARGEST_SPAN:
                frames = [self.storage.read(name, place.offset, place.offset + place.length) for place in places]
            else:
                span = self.storage.read(name, start, end)
                frames = [span[place.offset - start : place.offset - start + place.length] for place in places]
        except FileNotFoundError:
            raise ShardError(f"{self.storage.path(name)}: missing; run `labelgen verify`") from None
        for place, frame in zip(places, frames, strict=True):
            if zlib.crc32(frame) != place.crc32:
                raise ShardError(
                    f"{self.storage.path(name)}: the frame at byte {place.offset} fails its checksum; "
                    "run `labelgen verify`"
                )
        return frames

    def walk(self) -> Iterator[tuple[int, LabelledImage]]:
        """Yield every image of every committed unit with the unit's number, in order."""
        for number in self.committed():
            for image in self.images(number):
                yield number, image
