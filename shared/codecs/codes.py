"""Masks and maps in memory: one byte per cell, and a table of 256 values that says what the bytes mean.

A label's cell of magnitude step q, of n steps (``shared.codecs.label``), is one of

    0        negative, outside the band        255      positive, outside the band
    127 - c  negative, in the band             128 + c  positive, in the band       c = floor((2 q + 1) 127 / (2 n))

so that a code of 128 or more is the mask, and in the band its distance from 127.5 grows with the magnitude. c is 0 to
126, and q = floor((2 c + 1) n / 254) for every n up to 127: nothing is lost. A cell of an uncertainty map of level l,
of 25 steps (``shared.codecs.uncertainty``), is 10 l.

This is what every encoding of a layer is decoded to. It is a quarter as large as float32, and the table
is looked up only where the values are needed, on the training device for example.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sum_factory.shared.codecs.label import FAR, LARGEST_TYPICAL, MOST_STEPS, band_of, blob_of_steps
from sum_factory.shared.codecs.uncertainty import STEPS, blob_of_levels
from sum_factory.shared.errors import ShardError

Grid = npt.NDArray[np.uint8]
FAR_NEGATIVE, FAR_POSITIVE = 0, 255
POSITIVE = 128
"""The least code of a positive cell."""
LEVEL = 10
"""Codes per level of an uncertainty map."""


def _map_table() -> npt.NDArray[np.float32]:
    """Return u for each code, float32 (256,); codes that no level has are 1: what is unknown is not certain."""
    table = np.ones(256, np.float32)
    table[: STEPS * LEVEL + 1 : LEVEL] = np.arange(STEPS + 1, dtype=np.float32) / np.float32(STEPS)
    return table


MAP_TABLE = _map_table()


@dataclass(frozen=True)
class Codes:
    """K masks or maps: ``grid`` uint8 (K, h, w), and ``table`` float32 (K, 256), each mask's value of each code.

    ``sizes``, int64 (K, 2), are the rows and columns of each mask's own grid (``Frame.interpolation_cells``), which
    fills the upper left part; cells beyond are 0. They differ only where masks of several crops are read together.
    """

    grid: Grid
    table: npt.NDArray[np.float32]
    sizes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.grid)

    def all_values(self) -> npt.NDArray[np.float32]:
        """Return the logits or u of all cells, float32 (K, h, w): exactly what ``decode_label`` or ``decode_u`` return.

        Cells beyond a mask's own grid have the value of code 0: far negative, or no doubt.
        """
        values = np.empty(self.grid.shape, np.float32)
        for k, table in enumerate(self.table):
            np.take(table, self.grid[k], out=values[k], mode="clip")  # no code is out of range: "clip" spares a copy
        return values

    def values(self, k: int) -> npt.NDArray[np.float32]:
        """Return mask ``k`` alone, float32, of its own size."""
        rows, columns = self.sizes[k]
        return np.take(self.table[k], self.grid[k, :rows, :columns])


class Labels(NamedTuple):
    """K labels as they are stored: codes, uint8 (K, h, w), and what a table is made of.

    ``typical`` float32 (K,), the median magnitude; ``steps`` uint8 (K,), 0 for a mask without a positive cell;
    ``sizes`` int64 (K, 2), as in ``Codes``.
    """

    grid: Grid
    typical: npt.NDArray[np.float32]
    steps: npt.NDArray[np.uint8]
    sizes: npt.NDArray[np.int64]

    def codes(self) -> Codes:
        """Return the codes with their tables."""
        return Codes(self.grid, label_tables(self.typical, self.steps), self.sizes)

    def blob(self, k: int) -> bytes:
        """Return label ``k`` as the blob that ``encode_label`` made, byte for byte.

        Raises ``ShardError`` if no blob has these codes.
        """
        rows, columns = self.sizes[k]
        grid, steps, typical = self.grid[k, :rows, :columns], int(self.steps[k]), float(self.typical[k])
        positive = (grid >= POSITIVE).view(np.uint8)
        inside = (grid != FAR_NEGATIVE) & (grid != FAR_POSITIVE)
        c = np.where(grid < POSITIVE, 127 - grid.astype(np.int64), grid.astype(np.int64) - POSITIVE)[inside]
        q = (2 * c + 1) * steps // (2 * MOST_STEPS)
        if (
            not 0 < typical <= LARGEST_TYPICAL
            or positive.any() != (steps > 0)
            or not np.array_equal(inside, band_of(positive))
            or not np.array_equal((2 * q + 1) * MOST_STEPS // max(2 * steps, 1), c)
        ):
            raise ShardError("its codes are not those of a label; run `labelgen verify`")
        return blob_of_steps(positive, typical, steps, q.astype(np.uint8))


def map_blob(grid: Grid, refined: bytes = b"") -> bytes:
    """Return a map of codes, uint8 (h, w), as the blob that ``encode_uncertainty`` made, byte for byte.

    ``refined`` is the blob of its refined label, if it has one. Raises ``ShardError`` if no blob has these codes.
    """
    levels, rest = np.divmod(grid, LEVEL)
    if rest.any() or levels.max(initial=0) > STEPS:
        raise ShardError("its codes are not those of a map; run `labelgen verify`")
    return blob_of_levels(levels, refined)


def label_tables(typical: npt.NDArray[np.float32], steps: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the logits of all codes, float32 (K, 256), for ``typical`` float32 (K,) and ``steps`` uint8 (K,)."""
    n = np.maximum(steps, 1).astype(np.int64)[:, None]
    q = (2 * np.arange(MOST_STEPS) + 1) * n // (2 * MOST_STEPS)
    far = np.float32(FAR) * typical[:, None]
    position = (q.astype(np.float32) + np.float32(0.5)) / n.astype(np.float32)
    magnitudes = far * (position / (1 - position) / np.float32(FAR))  # in this order: as ``decode_label`` rounds
    table = np.empty((len(steps), 256), np.float32)
    table[:, POSITIVE:FAR_POSITIVE] = magnitudes
    table[:, FAR_NEGATIVE + 1 : POSITIVE] = -magnitudes[:, ::-1]
    table[:, FAR_NEGATIVE : FAR_NEGATIVE + 1], table[:, FAR_POSITIVE:] = -far, far
    return table


def map_tables(count: int) -> npt.NDArray[np.float32]:
    """Return the values of the codes of ``count`` maps, float32 (count, 256): one row for all, read-only."""
    return np.broadcast_to(MAP_TABLE, (count, 256))
