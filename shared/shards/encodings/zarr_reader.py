"""Reads rows of a layer of Zarr shards at random, by the extents that the manifests give: no index is read.

This is what a training loop waits for, so it does not go through zarr, whose values are the same (a test compares
them). In a trial a random row of 64 x 64 cells took 0.04 ms here, 0.09 to 0.7 by zarr with the codec pipeline
``zarrs``, 0.2 to 0.45 by tensorstore, and 3.3 by zarr alone. Zstandard is numcodecs', as it is zarr's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sum_factory.shared.codecs.codes import Codes, Labels, map_tables
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.dataset import Layer
from sum_factory.shared.shards.encodings.zarr_array import Array, Cells
from sum_factory.shared.shards.encodings.zarr_layer import column_prefix, shard_path
from sum_factory.shared.shards.encodings.zarr_layout import ZarrLayout
from sum_factory.shared.shards.kinds.kind import Plane
from sum_factory.shared.shards.reader import DataStore, Picked, UnitRows, are_known, read_blobs, require_plane

BATCH = 16 << 20
"""Bytes of cells of an array that ``blobs`` holds at once, but for a row that has more."""


def content_size(chunk: bytes) -> int | None:
    """Return how many bytes the first frame of Zstandard in a chunk says that it holds (RFC 8878, 3.1.1.1).

    None if it does not say so, or is no frame: numcodecs makes room for whatever a frame says.
    """
    if chunk[:4] != b"\x28\xb5\x2f\xfd" or len(chunk) < 5:
        return None
    flags = chunk[4]
    is_single = flags >> 5 & 1
    start = 5 + (1 - is_single) + (0, 1, 2, 4)[flags & 3]
    size = (is_single, 2, 4, 8)[flags >> 6]
    field = chunk[start : start + size]
    return int.from_bytes(field, "little") + (256 if size == 2 else 0) if size == len(field) > 0 else None


@dataclass(frozen=True)
class ZarrReader:
    """A ``LayerReader`` of the Zarr shards of a layer's ``layout``; ``rows`` gives the masks of a unit."""

    storage: DataStore
    layer: Layer
    layout: ZarrLayout
    rows: Callable[[int], UnitRows]

    def read(self, unit: int, picked: Picked, plane: Plane) -> Codes:
        """Read and decode masks: see ``LayerReader``."""
        numbers, of_unit = np.asarray(picked, np.int64), self.rows(unit)
        place = self.storage.path(f"{self.layer.name}.zarr")
        require_plane(self.layer, plane, of_unit, numbers, place)
        (array,) = (array for array in self.layout.arrays if array.name == plane)
        prefix = column_prefix(self.layout, array)
        if array.fill and not of_unit[f"{prefix}length"][numbers].all():
            raise ShardError(f"{place}, unit {unit}: a mask that is known has no {plane}; run `labelgen verify`")
        grid = self._cells(unit, of_unit, numbers, array)
        sizes = np.stack([of_unit["grid_height"][numbers], of_unit["grid_width"][numbers]], 1).astype(np.int64)
        height, width = sizes.max(0, initial=0)
        grid = grid[:, :height, :width]
        if plane == "u":
            return Codes(grid, map_tables(len(grid)), sizes)
        typical = of_unit[f"{prefix}typical"][numbers].astype(np.float32)
        return Labels(grid, typical, of_unit[f"{prefix}steps"][numbers].astype(np.uint8), sizes).codes()

    def blobs(self, unit: int, picked: Picked) -> list[bytes]:
        """Return the blobs of masks: see ``LayerReader``."""
        numbers, of_unit = np.asarray(picked, np.int64), self.rows(unit)
        blobs: list[bytes] = []
        count = max(1, BATCH // max(array.row_bytes for array in self.layout.arrays))
        for start in range(0, len(numbers), count):
            blobs += self._make_blobs(unit, of_unit, numbers[start : start + count])
        return blobs

    def _make_blobs(self, unit: int, rows: UnitRows, picked: npt.NDArray[np.int64]) -> list[bytes]:
        blobs, of_arrays = [], [self._cells(unit, rows, picked, array) for array in self.layout.arrays]
        for k, (number, is_known) in enumerate(zip(picked.tolist(), are_known(rows, picked), strict=True)):
            columns = {name: rows[name][number].item() for name, _ in self.layout.columns}
            cells = [
                of_array[k] if array.length is None else of_array[k, : columns[array.length]]
                for array, of_array in zip(self.layout.arrays, of_arrays, strict=True)
            ]
            try:
                blobs.append(self.layout.join(cells, columns) if is_known else b"")
            except ShardError as error:
                raise ShardError(
                    f"{self.storage.path(self.layer.name)}.zarr, unit {unit}, row {number}: {error}"
                ) from error
        return blobs

    def _cells(self, unit: int, rows: UnitRows, picked: npt.NDArray[np.int64], array: Array) -> Cells:
        """Read rows of an array, checked: (K, *cells), the fill value where there is no chunk."""
        name = shard_path(self.layer.name, array, unit)
        chunks = read_blobs(self.storage, name, rows, picked, column_prefix(self.layout, array))
        held = [k for k, chunk in enumerate(chunks) if chunk]
        if any(content_size(chunks[k]) != array.row_bytes for k in held):
            raise ShardError(f"{self.storage.path(name)}: a chunk is of another size; run `labelgen verify`")
        found = np.empty((len(held), *array.cells), array.type)
        _decompress(chunks, found, self.storage.path(name))
        if len(held) == len(chunks):
            return found
        cells = np.full((len(chunks), *array.cells), array.fill_value, array.type)
        cells[held] = found
        return cells


def _decompress(chunks: Sequence[bytes], cells: Cells, name: str) -> None:
    """Decompress chunks, one after the other, in one call, into ``cells``, as many bytes as they say they hold.

    Raises ``ShardError`` if they are damaged.
    """
    from numcodecs.zstd import decompress  # which takes half a second to import

    try:
        if len(cells):
            decompress(b"".join(chunks), cells)
    except (RuntimeError, ValueError) as error:
        raise ShardError(f"{name}: a chunk does not decompress ({error}); run `labelgen verify`") from error
