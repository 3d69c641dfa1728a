"""Reads rows of a layer of Zarr shards at random, by the places that the manifests give: no index is read.

zarr-python takes 0.2 to 1 ms for a chunk, most of it not decompression.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from sum_factory.shared.codecs.codes import Codes, Labels, map_tables
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.dataset import Layer
from sum_factory.shared.shards.encodings.zarr_format import Array
from sum_factory.shared.shards.encodings.zarr_forms import Form
from sum_factory.shared.shards.encodings.zarr_layer import column_prefix, shard_path
from sum_factory.shared.shards.kinds.kind import Part
from sum_factory.shared.shards.reader import Picked, Rows, Source, read_blobs, require_part

BATCH = 64
"""Rows of which ``blobs`` holds the chunks at once."""
_of_thread = threading.local()

Cells = npt.NDArray[Any]


@dataclass(frozen=True)
class ZarrReader:
    """A ``LayerReader`` of the Zarr shards of a layer's ``form``; ``rows`` gives the masks of a unit."""

    storage: Source
    layer: Layer
    form: Form
    rows: Callable[[int], Rows]

    def read(self, unit: int, rows: Picked, part: Part) -> Codes:
        """Read and decode masks: see ``LayerReader``."""
        picked, of_unit = np.asarray(rows, np.int64), self.rows(unit)
        place = self.storage.path(f"{self.layer.name}.zarr")
        require_part(self.layer, part, of_unit, picked, place)
        (array,) = (array for array in self.form.arrays if array.name == part)
        grid = np.empty((len(picked), *array.cells), np.uint8)
        for k, (chunk, name) in enumerate(self._chunks(unit, of_unit, picked, array)):
            _decompress(chunk, grid[k], name)
        sizes = np.stack([of_unit["grid_height"][picked], of_unit["grid_width"][picked]], 1).astype(np.int64)
        height, width = sizes.max(0, initial=0)
        grid = grid[:, :height, :width]
        if part == "u":
            return Codes(grid, map_tables(len(grid)), sizes)
        prefix = column_prefix(self.form, array)
        typical = of_unit[f"{prefix}typical"][picked].astype(np.float32)
        return Labels(grid, typical, of_unit[f"{prefix}steps"][picked].astype(np.uint8), sizes).codes()

    def blobs(self, unit: int, rows: Picked) -> list[bytes]:
        """Return the blobs of masks: see ``LayerReader``."""
        picked, of_unit = np.asarray(rows, np.int64), self.rows(unit)
        blobs: list[bytes] = []
        for start in range(0, len(picked), BATCH):
            blobs += self._make_blobs(unit, of_unit, picked[start : start + BATCH])
        return blobs

    def _make_blobs(self, unit: int, rows: Rows, picked: npt.NDArray[np.int64]) -> list[bytes]:
        blobs = []
        of_arrays = [self._chunks(unit, rows, picked, array) for array in self.form.arrays]
        for number, chunks in zip(picked.tolist(), zip(*of_arrays, strict=True), strict=True):
            columns = {name: rows[name][number].item() for name, _ in self.form.columns}
            if not any(chunk for chunk, _ in chunks):
                blobs.append(b"")
                continue
            cells = []
            for array, (chunk, name) in zip(self.form.arrays, chunks, strict=True):
                filled = array.cells if array.length is None else (columns[array.length], *array.cells[1:])
                cells.append(np.empty(filled, array.type))
                _decompress(chunk, cells[-1], name)
            try:
                blobs.append(self.form.join(cells, columns))
            except ShardError as error:
                raise ShardError(
                    f"{self.storage.path(self.layer.name)}.zarr, unit {unit}, row {number}: {error}"
                ) from error
        return blobs

    def _chunks(
        self, unit: int, rows: Rows, picked: npt.NDArray[np.int64], array: Array
    ) -> Sequence[tuple[bytes, str]]:
        """Read the chunks of an array, checked; each comes with what to call its file."""
        name = shard_path(self.layer.name, array, unit)
        chunks = read_blobs(self.storage, name, rows, picked, column_prefix(self.form, array))
        return [(chunk, self.storage.path(name)) for chunk in chunks]


def _decompress(chunk: bytes, cells: Cells, name: str) -> None:
    """Decompress a chunk, or the beginning of it, to fill ``cells``. Raises ``ShardError`` if it does not."""
    if not hasattr(_of_thread, "decompressor"):
        _of_thread.decompressor = zstandard.ZstdDecompressor()
    target = cells.reshape(-1).view(np.uint8).data
    try:
        size = _of_thread.decompressor.stream_reader(chunk).readinto(target)
    except zstandard.ZstdError as error:
        raise ShardError(f"{name}: a chunk does not decompress ({error}); run `labelgen verify`") from error
    if size != len(target):
        raise ShardError(f"{name}: a chunk has {size} bytes, expected {len(target)}; run `labelgen verify`")
