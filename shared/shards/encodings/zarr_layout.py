"""What a layer is in Zarr: its arrays, and how a blob becomes a row of each and is made of them again.

Each kind of layer (``shards.kinds``) has a function that returns its ``ZarrLayout``. Blobs are those that every
encoding takes and gives back; a layout must give back the very bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sum_factory.shared.codecs.codes import Grid, Labels
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.encodings.zarr_array import Array

MASK_AXES = ("mask", "row", "column")
NOTHING_KNOWN = 255
"""Code of the cells of a map that is not there. No level of a map has it."""
PHOTO_BYTES = "photo_bytes"
"""Column of the manifest: the length of a photo's JPEG."""
MASK_MEANING = "128 or more: in the mask. 0 and 255: far from its boundary"
GRID_COLUMNS = (("grid_height", pa.int32()), ("grid_width", pa.int32()))
STEP_COLUMNS = (("typical", pa.float32()), ("steps", pa.uint8()))

ArrayRows = Sequence[Iterable[npt.NDArray[Any]]]
"""For each of a layout's arrays the cells of each row, which may end before the row does: zeros follow."""
RowCells = Sequence[npt.NDArray[Any]]
"""For each of a layout's arrays the cells of one row as a reader has them, cut where the array has a ``length``."""
Columns = Mapping[str, Any]


@dataclass(frozen=True)
class ZarrLayout:
    """The arrays of a layer, the columns that its manifests have in Zarr besides extents, and the way there and back.

    ``split`` makes of K blobs the rows of each array, and the columns, K values each; ``join`` makes of one row its
    blob again. Both raise ``ShardError`` for what does not fit. If ``per_image``, row i
    of a unit is of its image i, and has no chunk if the image has no data; else a unit's masks are its first rows, in
    the order of the manifest.
    """

    arrays: tuple[Array, ...]
    columns: tuple[tuple[str, pa.DataType], ...]
    split: Callable[[Sequence[bytes]], tuple[ArrayRows, Columns]]
    join: Callable[[RowCells, Columns], bytes]
    per_image: bool = False


def single_array(array: Array, unpack: Callable[[bytes], npt.NDArray[Any]], pack: Callable[[Any], bytes]) -> ZarrLayout:
    """Return the layout of a layer whose blobs are the cells of one array, and need no columns."""
    return ZarrLayout((array,), (), lambda blobs: ([[*map(unpack, blobs)]], {}), lambda cells, row: pack(cells[0]))


def size_columns(sizes: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return the columns that say how much of a square of codes each mask fills, for its rows and columns (K, 2)."""
    return dict(zip(("grid_height", "grid_width"), sizes.T.tolist(), strict=True))


def step_columns(labels: Labels, prefix: str) -> dict[str, Any]:
    """Return the columns without which the codes of labels are no logits."""
    return {f"{prefix}typical": labels.typical.tolist(), f"{prefix}steps": labels.steps.tolist()}


def cut(grid: Grid, row: Columns) -> Grid:
    """Return the corner of a square of codes that a mask fills. Raises ``ShardError`` if there are codes beyond."""
    height, width = int(row["grid_height"]), int(row["grid_width"])
    if grid[height:].any() or grid[:, width:].any():
        raise ShardError("its codes go beyond its grid; run `labelgen verify`")
    return grid[:height, :width]


def label_blob(grid: Grid, row: Columns, prefix: str) -> bytes:
    """Return the blob of a label, given its codes and its columns."""
    cells = cut(grid, row)
    typical = np.array([row[f"{prefix}typical"]], np.float32)
    steps = np.array([row[f"{prefix}steps"]], np.uint8)
    return Labels(cells[None], typical, steps, np.array([cells.shape], np.int64)).blob(0)
