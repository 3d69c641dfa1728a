"""A unit of a layer as one shard of each of the layer's Zarr v3 arrays (``shared.shards.encodings.zarr_forms``).

``masks.zarr`` holds the array ``label``, ``uncertainty/NAME.zarr`` the arrays ``u`` and ``refined``, ``images.zarr``
the array ``jpeg``. Unit w owns rows w R to (w + 1) R of each, which are its shard, so that no two writers share a file.
The manifest says where each chunk lies. A row without a chunk is no mask, or one of which nothing is known.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import zstandard

from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.dataset import Dataset, Layer
from sum_factory.shared.shards.encodings.zarr_format import GROUP, Array, ShardWriter, group_metadata
from sum_factory.shared.shards.encodings.zarr_forms import Form
from sum_factory.shared.shards.kinds import form_of

ROWS_PER_IMAGE = 1024
"""Rows that a shard of masks has for each image of a full unit: several times what SAM finds, and nearly free."""
METADATA = "zarr.json"
PLACE = (("offset", pa.int64()), ("length", pa.int32()), ("crc32", pa.uint32()))
"""Columns of the manifest that place a chunk."""
_SHARD = re.compile(r"(?P<layer>.+)\.zarr/\w+/c\.(?P<number>0|[1-9]\d*)(\.0)+")


def column_prefix(form: Form, array: Array) -> str:
    """Return what the manifest's columns that place the chunks of an array start with: nothing for the first array."""
    return "" if array is form.arrays[0] else f"{array.name}_"


def shard_path(layer: str, array: Array, number: int) -> str:
    """Return the path of a unit's shard of an array inside the shard set."""
    return f"{layer}.zarr/{array.name}/c.{number}{'.0' * len(array.cells)}"


def zarr_unit(name: str) -> tuple[str, int] | None:
    """Return of which layer and unit a file of this name is a shard, or None if it is none."""
    matched = _SHARD.fullmatch(name)
    return None if matched is None else (matched["layer"], int(matched["number"]))


def shard_rows(dataset: Dataset, form: Form) -> int:
    """Return R, the rows of a shard: whole groups."""
    rows = dataset.unit_size * (1 if form.per_image else ROWS_PER_IMAGE)
    return -(-rows // GROUP) * GROUP


def metadata_files(dataset: Dataset, layer: Layer) -> dict[str, bytes]:
    """Return what all units share of a layer: the path and the content of each ``zarr.json``."""
    form = form_of(dataset, layer)
    rows = shard_rows(dataset, form)
    files = {f"{layer.name}.zarr/{METADATA}": group_metadata()}
    for array in form.arrays:
        files[f"{layer.name}.zarr/{array.name}/{METADATA}"] = array.metadata(len(dataset.unit_ids) * rows, rows)
    return files


class ZarrEncoder:
    """A ``LayerEncoder`` of Zarr shards."""

    def __init__(self, dataset: Dataset, layer: Layer) -> None:
        self.form = form_of(dataset, layer)
        self.columns = (
            *self.form.columns,
            *((f"{array.name}_{column}", kind) for array in self.form.arrays[1:] for column, kind in PLACE),
        )
        self._shards = [ShardWriter(shard_rows(dataset, self.form)) for _ in self.form.arrays]
        self._compressors = [zstandard.ZstdCompressor(level=array.level) for array in self.form.arrays]

    def add(self, key: str, blobs: Sequence[bytes], meta: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Add the masks of an image: see ``LayerEncoder``. ``meta`` stands in the manifest alone."""
        count, rows = self._shards[0].count, self._shards[0].rows
        if count + len(blobs) > rows:
            raise ShardError(f"{key}: a unit has room for {rows} masks in Zarr; make larger units, or tars")
        try:
            places = [self._add_row(blob) for blob in blobs]
        except ShardError as error:
            raise ShardError(f"{key}: {error}") from error
        if self.form.per_image and not blobs:
            self._add_row(b"")
        return places

    def finish(self) -> tuple[bytes, ...]:
        """Return the shard of each array."""
        return tuple(shard.finish() for shard in self._shards)

    def _add_row(self, blob: bytes) -> dict[str, Any]:
        """Add a row to each array and return its columns; an empty ``blob`` is one of which nothing is known."""
        cells, columns = self.form.split(blob) if blob else ([], {})
        chunks = [self._pack(k, part) for k, part in enumerate(cells)] or [b""] * len(self._shards)
        row = dict(columns)
        for array, shard, chunk in zip(self.form.arrays, self._shards, chunks, strict=True):
            place = (shard.add(chunk), len(chunk), zlib.crc32(chunk))
            prefix = column_prefix(self.form, array)
            row |= {f"{prefix}{name}": value for (name, _), value in zip(PLACE, place, strict=True)}
        return row

    def _pack(self, number: int, part: npt.NDArray[Any]) -> bytes:
        """Return the chunk of an array's cells, with zeros up to the end of each axis."""
        array = self.form.arrays[number]
        if part.ndim != len(array.cells) or any(n > most for n, most in zip(part.shape, array.cells, strict=True)):
            raise ShardError(
                f"what is {part.shape} large does not fit into a row of the array {array.name}, {array.cells}; "
                "make the layer with the encoding tar"
            )
        whole = np.zeros(array.cells, array.type)
        whole[tuple(slice(n) for n in part.shape)] = part
        return self._compressors[number].compress(whole.tobytes())


def faults_of_shards(
    dataset: Dataset, layer: Layer, shards: Sequence[bytes], rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[int, str]]:
    """Yield which of a unit's shards, and how, differs from what the chunks that the manifest places make.

    ``rows`` are those of the manifest, in order.
    """
    form = form_of(dataset, layer)
    for number, (array, data) in enumerate(zip(form.arrays, shards, strict=True)):
        prefix = column_prefix(form, array)
        made = ShardWriter(shard_rows(dataset, form))
        for row in rows:
            if row["mask"] is None and not form.per_image:
                continue
            start = row[f"{prefix}offset"] or 0
            chunk = data[start : start + (row[f"{prefix}length"] or 0)]
            if zlib.crc32(chunk) != (row[f"{prefix}crc32"] or 0):
                yield number, f"mask {row['mask']} of image {row['image']} fails its checksum"
            made.add(chunk)
        if made.finish() != data:
            yield number, "it is not what its chunks, at the places of the manifest, and their indexes make"
