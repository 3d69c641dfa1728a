"""A shard set opened for reading: its units, its layers, and the labels of any image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shared.errors import ShardError
from shared.frame import Frame
from shared.label_codec import decode_label
from shared.shards.dataset import DATASET, Dataset, Layer, Unit, read_dataset, read_unit, unit_name
from shared.shards.manifest import UnitRecord, manifest_path, read_manifest
from shared.shards.tar_layer import tar_path
from shared.storage import Storage

MASKS = "masks"
"""The layer of pseudo-labels."""


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

    @cached_property
    def input_side(self) -> int:
        """Side in pixels of the square input of the SAM that made the masks."""
        return int(self.layer(MASKS).weights["sam"]["image_size"])

    def unit(self, number: int) -> Unit:
        """Return the plan of a unit."""
        return read_unit(self.storage, number)

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
            raise ShardError(f"{self.storage.path(name)}: missing; this unit is not labelled yet") from None
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

    def read_logits(self, number: int, image: LabelledImage, masks: list[int]) -> list[npt.NDArray[np.float32]]:
        """Read and decode the chosen masks of an image: label logits, float32 (h, w) each; other masks are not read."""
        name = tar_path(MASKS, number)
        logits = []
        for mask in masks:
            row = image.masks[mask]
            try:
                frame = self.storage.read(name, row["offset"], row["offset"] + row["length"])
            except FileNotFoundError:
                raise ShardError(f"{self.storage.path(name)}: missing; run `labelgen verify`") from None
            logits.append(decode_label(frame))
        return logits

    def walk(self) -> Iterator[tuple[int, LabelledImage]]:
        """Yield every image of every committed unit with the unit's number, in order."""
        for number in self.committed():
            for image in self.images(number):
                yield number, image
