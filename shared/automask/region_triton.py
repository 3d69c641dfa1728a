# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped, attr-defined"
"""What ``shared.automask.region_kernel`` does, on a GPU: a tile of a mask's pixels to a program, which writes no map.

A program looks first at the cells that its tile is interpolated from: if none of them is above the lowest cut, no pixel
is, and it ends. Of a mask, most do. Products and sums are taken in the order of the compiled kernel, so the results
are equal to its own to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 16, 64
"""Pixels of a tile: powers of 2."""
CELL_ROWS, CELL_COLUMNS = 16, 32
"""Cells that a program looks at together."""


@triton.jit
def _square(plane, width, upper, lower, left, right, weight_upper, weight_lower, weight_left, weight_right, inside):
    """Return the values of SAM's square at rows between ``upper`` and ``lower``, columns from ``left`` to ``right``."""
    upper_left = tl.load(plane + upper[:, None] * width + left[None, :], mask=inside, other=0.0)
    upper_right = tl.load(plane + upper[:, None] * width + right[None, :], mask=inside, other=0.0)
    lower_left = tl.load(plane + lower[:, None] * width + left[None, :], mask=inside, other=0.0)
    lower_right = tl.load(plane + lower[:, None] * width + right[None, :], mask=inside, other=0.0)
    above = tl.fma(upper_left, weight_left[None, :] + tl.zeros_like(upper_left), upper_right * weight_right[None, :])
    below = tl.fma(lower_left, weight_left[None, :] + tl.zeros_like(lower_left), lower_right * weight_right[None, :])
    return tl.fma(above, weight_upper[:, None] + tl.zeros_like(above), below * weight_lower[:, None])


@triton.jit
def _count(
    logits, grid_height, grid_width,
    sy0, sy1, wsy0, wsy1, sx0, sx1, wsx0, wsx1,
    cy0, cy1, wcy0, wcy1, cx0, cx1, wcx0, wcx1,
    height, width, cut, inner_cut, outer_cut, lowest, counts,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CELL_ROWS: tl.constexpr, CELL_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add a tile to the ``counts``, int32 (K, 7), of its mask: pixels above each cut, and the box of the first."""
    across = tl.cdiv(width, COLUMNS)
    top, left = (tl.program_id(0) // across) * ROWS, (tl.program_id(0) % across) * COLUMNS
    bottom, right = tl.minimum(top + ROWS, height) - 1, tl.minimum(left + COLUMNS, width) - 1
    plane = logits + tl.program_id(1).to(tl.int64) * grid_height * grid_width
    first_row, last_row = tl.load(sy0 + tl.load(cy0 + top)), tl.load(sy1 + tl.load(cy1 + bottom))
    first_column, last_column = tl.load(sx0 + tl.load(cx0 + left)), tl.load(sx1 + tl.load(cx1 + right))
    highest = lowest
    for row in range(first_row, last_row + 1, CELL_ROWS):
        for column in range(first_column, last_column + 1, CELL_COLUMNS):
            rows, columns = row + tl.arange(0, CELL_ROWS), column + tl.arange(0, CELL_COLUMNS)
            seen = (rows <= last_row)[:, None] & (columns <= last_column)[None, :]
            cells = tl.load(plane + rows[:, None] * grid_width + columns[None, :], mask=seen, other=float("-inf"))
            highest = tl.maximum(highest, tl.max(tl.max(cells, 1), 0))
    if highest > lowest:
        y, x = top + tl.arange(0, ROWS), left + tl.arange(0, COLUMNS)
        in_rows, in_columns = y <= bottom, x <= right
        inside = in_rows[:, None] & in_columns[None, :]
        y0, y1 = tl.load(cy0 + y, mask=in_rows, other=0), tl.load(cy1 + y, mask=in_rows, other=0)
        x0, x1 = tl.load(cx0 + x, mask=in_columns, other=0), tl.load(cx1 + x, mask=in_columns, other=0)
        # of the square's two rows and two columns that a pixel lies between: their cells, and the weights of these
        yu0, yl0, wu0, wl0 = tl.load(sy0 + y0), tl.load(sy1 + y0), tl.load(wsy0 + y0), tl.load(wsy1 + y0)
        yu1, yl1, wu1, wl1 = tl.load(sy0 + y1), tl.load(sy1 + y1), tl.load(wsy0 + y1), tl.load(wsy1 + y1)
        xl0, xr0, vl0, vr0 = tl.load(sx0 + x0), tl.load(sx1 + x0), tl.load(wsx0 + x0), tl.load(wsx1 + x0)
        xl1, xr1, vl1, vr1 = tl.load(sx0 + x1), tl.load(sx1 + x1), tl.load(wsx0 + x1), tl.load(wsx1 + x1)
        a = _square(plane, grid_width, yu0, yl0, xl0, xr0, wu0, wl0, vl0, vr0, inside)
        b = _square(plane, grid_width, yu0, yl0, xl1, xr1, wu0, wl0, vl1, vr1, inside)
        c = _square(plane, grid_width, yu1, yl1, xl0, xr0, wu1, wl1, vl0, vr0, inside)
        d = _square(plane, grid_width, yu1, yl1, xl1, xr1, wu1, wl1, vl1, vr1, inside)
        from_left = tl.load(wcx0 + x, mask=in_columns, other=0.0)[None, :]
        from_right = tl.load(wcx1 + x, mask=in_columns, other=0.0)[None, :]
        above = tl.fma(a, from_left + tl.zeros_like(a), b * from_right)
        below = tl.fma(c, from_left + tl.zeros_like(c), d * from_right)
        from_above = tl.load(wcy0 + y, mask=in_rows, other=0.0)[:, None]
        from_below = tl.load(wcy1 + y, mask=in_rows, other=0.0)[:, None]
        pixels = tl.fma(above, from_above + tl.zeros_like(above), below * from_below)
        own = counts + tl.program_id(1) * 7
        hits = (pixels > cut) & inside
        area = tl.sum(tl.sum(hits.to(tl.int32), 1), 0)
        tl.atomic_add(own + 1, tl.sum(tl.sum(((pixels > inner_cut) & inside).to(tl.int32), 1), 0))
        tl.atomic_add(own + 2, tl.sum(tl.sum(((pixels > outer_cut) & inside).to(tl.int32), 1), 0))
        if area > 0:
            tl.atomic_add(own, area)
            all_y, all_x = y[:, None] + tl.zeros_like(hits.to(tl.int32)), x[None, :] + tl.zeros_like(hits.to(tl.int32))
            tl.atomic_min(own + 3, tl.min(tl.min(tl.where(hits, all_x, width), 1), 0))
            tl.atomic_min(own + 4, tl.min(tl.min(tl.where(hits, all_y, height), 1), 0))
            tl.atomic_max(own + 5, tl.max(tl.max(tl.where(hits, all_x, -1), 1), 0))
            tl.atomic_max(own + 6, tl.max(tl.max(tl.where(hits, all_y, -1), 1), 0))


def count(
    logits: Tensor, taps: Sequence[Tensor], size: tuple[int, int], cuts: tuple[float, float, float], **tiles: int
) -> Tensor:
    """Return areas above each of ``cuts``, then the boxes above the first, int64 (K, 7), zeros for an empty mask.

    ``logits`` is float32 (K, h, w), ``taps`` are the 16 arrays of ``regions._taps`` on the same device, ``size`` the
    height and width of the crop. ``tiles`` are sizes of tiles, where others than those of this module are wanted.
    """
    height, width = size
    shape: dict[str, Any] = {
        "ROWS": ROWS, "COLUMNS": COLUMNS, "CELL_ROWS": CELL_ROWS, "CELL_COLUMNS": CELL_COLUMNS, **tiles
    }  # fmt: skip
    start = torch.tensor([0, 0, 0, width, height, -1, -1], dtype=torch.int32, device=logits.device)
    counts = start.repeat(len(logits), 1)
    # as in the compiled kernel: rounding may lift an interpolated value above its neighbours
    exact = torch.tensor(cuts, dtype=torch.float32)
    lowest = float(exact.min() - torch.tensor(1e-5, dtype=torch.float32) * exact.min().abs())
    tile_count = triton.cdiv(height, shape["ROWS"]) * triton.cdiv(width, shape["COLUMNS"])
    if len(logits):
        _count[(tile_count, len(logits))](  # a photo may have more tiles than the second axis can count
            logits.contiguous(), *logits.shape[1:], *taps, height, width, *exact.tolist(), lowest, counts, **shape
        )
    found = counts.to(torch.int64)
    return torch.where(found[:, :1] > 0, found, found * torch.tensor([1, 1, 1, 0, 0, 0, 0], device=found.device))
