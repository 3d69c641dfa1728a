"""A unit of a layer as one shard of each of the layer's Zarr v3 arrays (``shared.shards.encodings.zarr_layout``).

``masks.zarr`` holds the array ``label``, ``uncertainty/NAME.zarr`` the arrays ``u`` and ``refined``, ``photos.zarr``
the array ``jpeg``. Unit w owns rows w R to (w + 1) R of each, which are its shard, so that no two writers share a file.
The manifest says where each chunk lies. A row without a chunk has the fill value: there is no such mask, or nothing
is known of it, or it has no positive cell.

zarr is imported where shards are made or checked: whoever asks only for what a shard set holds does without.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from sum_factory.shared.codecs.label import MOST_STEPS
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.dataset import Dataset, Layer
from sum_factory.shared.shards.encodings.zarr_array import BLOCK, Array
from sum_factory.shared.shards.encodings.zarr_layout import PHOTO_BYTES, ZarrLayout
from sum_factory.shared.shards.kinds import zarr_layout_of

ROWS_PER_IMAGE = 1024
"""Rows that a shard of masks has for each image of a full unit: several times what SAM finds, and nearly free."""
METADATA = "zarr.json"
CHUNK_COLUMNS = (("offset", pa.int64()), ("length", pa.int32()), ("crc32", pa.uint32()))
"""Columns of the manifest for the extent of a chunk."""
_SHARD = re.compile(r"(?P<layer>.+)\.zarr/[a-z]+/c\.(?P<number>0|[1-9][0-9]{0,8})(\.0)+")


def column_prefix(layout: ZarrLayout, array: Array) -> str:
    """Return what the manifest's columns for extents in an array start with: nothing for the first array."""
    return "" if array is layout.arrays[0] else f"{array.name}_"


def prefixes_of(layout: ZarrLayout) -> list[str]:
    """Return what the columns for the extents of the chunks of each array start with."""
    return [column_prefix(layout, array) for array in layout.arrays]


def added_columns(layout: ZarrLayout) -> tuple[tuple[str, pa.DataType], ...]:
    """Return what the encoding adds to the columns of a layer's manifests."""
    extents = ((f"{prefix}{column}", kind) for prefix in prefixes_of(layout)[1:] for column, kind in CHUNK_COLUMNS)
    return (*layout.columns, *extents)


def limits_of(layout: ZarrLayout) -> list[tuple[str, int]]:
    """Return the largest values that columns of numbers may have; those of sizes are the sizes of the first array."""
    cells = layout.arrays[0].cells
    sizes = {"grid_height": cells[0], "grid_width": cells[-1], PHOTO_BYTES: cells[0]}
    steps = {name: MOST_STEPS for name, _ in layout.columns if name.endswith("steps")}
    return [(name, most) for name, most in {**sizes, **steps}.items() if name in dict(layout.columns)]


def shard_path(layer: str, array: Array, number: int) -> str:
    """Return the path of a unit's shard of an array inside the shard set."""
    return f"{layer}.zarr/{array.name}/c.{number}{'.0' * len(array.cells)}"


def zarr_unit(name: str) -> tuple[str, int] | None:
    """Return of which layer and unit a file of this name is a shard, or None if it is none."""
    matched = _SHARD.fullmatch(name)
    return None if matched is None else (matched["layer"], int(matched["number"]))


def shard_rows(dataset: Dataset, layout: ZarrLayout) -> int:
    """Return R, the rows of a shard: whole blocks."""
    rows = dataset.unit_size * (1 if layout.per_image else ROWS_PER_IMAGE)
    return -(-rows // BLOCK) * BLOCK


def metadata_files(dataset: Dataset, layer: Layer) -> dict[str, bytes]:
    """Return what all units share of a layer: the path and the content of each ``zarr.json``."""
    from sum_factory.shared.shards.encodings.zarr_shards import describe_array, describe_group

    layout = zarr_layout_of(dataset, layer)
    rows = shard_rows(dataset, layout)
    files = {f"{layer.name}.zarr/{METADATA}": describe_group()}
    for array in layout.arrays:
        files[f"{layer.name}.zarr/{array.name}/{METADATA}"] = describe_array(array, len(dataset.unit_ids) * rows, rows)
    return files


class ZarrEncoder:
    """A ``LayerEncoder`` of Zarr shards."""

    def __init__(self, dataset: Dataset, layer: Layer) -> None:
        from sum_factory.shared.shards.encodings.zarr_shards import ShardWriter

        self.layout = zarr_layout_of(dataset, layer)
        self.columns = added_columns(self.layout)
        self._shards = [ShardWriter(array, shard_rows(dataset, self.layout)) for array in self.layout.arrays]
        self._rows: list[dict[str, Any] | None] = []

    def add(self, key: str, blobs: Sequence[bytes], meta: Mapping[str, Any]) -> None:
        """Add the masks of an image: see ``LayerEncoder``. ``meta`` is in the manifest alone."""
        rows = self._shards[0].rows
        if len(self._rows) + len(blobs) > rows:
            raise ShardError(f"{key}: a unit has room for {rows} masks in Zarr; make larger units, or tars")
        known = [blob for blob in blobs if blob]
        try:
            cells, columns = self.layout.split(known) if known else ([()] * len(self._shards), {})
            for shard, of_array in zip(self._shards, cells, strict=True):
                left = iter(of_array)
                for blob in blobs:
                    shard.add(next(left) if blob else None)
        except ShardError as error:
            raise ShardError(f"{key}: {error}") from error
        values = (dict(zip(columns, of_row, strict=True)) for of_row in zip(*columns.values(), strict=True))
        self._rows += [(next(values) if columns else {}) if blob else {} for blob in blobs]
        if self.layout.per_image and not blobs:
            self._shards[0].add(None)
            self._rows.append(None)

    def finish(self) -> tuple[tuple[bytes, ...], list[dict[str, Any]]]:
        """Return the shard of each array, and what the manifest says of each row, but for photos that were not read."""
        from sum_factory.shared.shards.encodings.zarr_shards import extents_in

        shards = []
        for array, shard in zip(self.layout.arrays, self._shards, strict=True):
            shards.append(data := shard.finish())
            names = [f"{column_prefix(self.layout, array)}{name}" for name, _ in CHUNK_COLUMNS]
            extents = extents_in(data, shard.rows, len(self._rows)).tolist()
            for row, (start, size) in zip(self._rows, extents, strict=False):
                if row is not None:
                    row |= zip(names, (start, size, zlib.crc32(data[start : start + size])), strict=True)
        return tuple(shards), [row for row in self._rows if row is not None]


def faults_of_shards(
    dataset: Dataset, layer: Layer, shards: Sequence[bytes], rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[int, str]]:
    """Yield which of a unit's shards, and how, differs from the extents in the manifest, whose ``rows`` these are."""
    from sum_factory.shared.shards.encodings.zarr_shards import extents_in

    layout = zarr_layout_of(dataset, layer)
    rows = [row for row in rows if row["mask"] is not None or layout.per_image]
    count = shard_rows(dataset, layout)
    for number, (array, data) in enumerate(zip(layout.arrays, shards, strict=True)):
        prefix = column_prefix(layout, array)
        expected = np.zeros((len(rows), 2), np.int64)
        for extent, row in zip(expected, rows, strict=True):
            start, size = row[f"{prefix}offset"] or 0, row[f"{prefix}length"] or 0
            extent[:] = start, size
            if zlib.crc32(data[start : start + size]) != (row[f"{prefix}crc32"] or 0):
                yield number, f"mask {row['mask']} of image {row['image']} fails its checksum"
        try:
            found = extents_in(data, count, min(len(rows), count))
        except ShardError as error:
            yield number, str(error)
            continue
        if len(rows) > count or not np.array_equal(found[: len(rows)], expected) or found[len(rows) :].any():
            yield number, "its indexes do not place its chunks where the manifest does"
