"""What an array of a layer in Zarr is. It is sharded twice: shard, block of rows, row.

A shard has room for many more rows than it holds, and the index of a shard is not compressed: with one index for all
rows, 16 bytes each, most of the bytes would be the index of rows that are not there. So the rows of a block share an
index, and the shard's own index is of blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

BLOCK = 64
"""Rows that share an index."""

Cells = npt.NDArray[Any]
"""Cells of one row of an array, or of several."""


@dataclass(frozen=True)
class Array:
    """An array whose rows are cells of one shape and type; a chunk is one row, compressed with Zstandard."""

    name: str
    cells: tuple[int, ...]
    axes: tuple[str, ...]
    """What the dimensions are called: that of the rows, then those of the cells."""
    meaning: str
    """What the values mean, for people who read the array without this project's documents."""
    dtype: Literal["uint8", "float16", "float32"] = "uint8"
    fill: int | float | Literal["NaN"] = 0
    """What a row reads as that has no chunk: one all of whose cells have this value."""
    level: int = 1
    """Of Zstandard. For codes of masks, level 9 saves 5 to 9 %, and takes two to six times as long."""
    length: str | None = None
    """The manifest's column that says how many of the cells' first axis a row fills; None if it fills them all, or if
    a reader wants the zeros beyond too."""

    @property
    def type(self) -> np.dtype[Any]:
        """The type of a cell in memory and, little-endian, on disk."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def row_bytes(self) -> int:
        """The bytes of a row in memory."""
        return math.prod(self.cells) * self.type.itemsize

    @property
    def fill_value(self) -> float:
        """The fill value as a number."""
        return float(self.fill)
