# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, call-arg"
"""The compiled part of ``shared.automask.regions``: one mask at a time, by rows, on one thread, without the GIL.

Numba compiles it at its first call; ``shared.kernel_compiler`` says where the result is kept.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from sum_factory.shared.kernel_compiler import kernel_compiler


@intrinsic
def _fma(typing, a, b, c):
    """``a * b + c``, rounded once."""

    def code(context, builder, signature, arguments):
        kind = ir.FloatType()
        function = builder.module.declare_intrinsic("llvm.fma", [kind], ir.FunctionType(kind, [kind] * 3))
        return builder.call(function, arguments)

    return numba.float32(numba.float32, numba.float32, numba.float32), code


compiled = kernel_compiler(nogil=True, error_model="numpy", boundscheck=False)


# In these loops slices from 0 are what lets the compiler use vector instructions.


@compiled
def _mix_rows(upper, lower, weight_upper, weight_lower, start, stop, out):
    """``out`` = upper * weight_upper + lower * weight_lower, for columns ``start`` to ``stop``."""
    upper, lower, out = upper[start:stop], lower[start:stop], out[start:stop]
    for x in range(len(out)):
        out[x] = _fma(upper[x], weight_upper, lower[x] * weight_lower)


@compiled
def _mix_columns(row, first, second, weight_first, weight_second, start, stop, out):
    """Interpolate a row at columns ``start`` to ``stop``."""
    first, second, out = first[start:stop], second[start:stop], out[start:stop]
    weight_first, weight_second = weight_first[start:stop], weight_second[start:stop]
    for x in range(len(out)):
        out[x] = _fma(row[first[x]], weight_first[x], row[second[x]] * weight_second[x])


@compiled
def _count_above(row, cut, start, stop):
    """Return how many pixels of columns ``start`` to ``stop`` are above ``cut``."""
    row = row[start:stop]
    count = np.int32(0)
    for x in range(len(row)):
        count += np.int32(1) if row[x] > cut else np.int32(0)
    return count


@compiled
def _mark_above(row, cut, start, stop, marks):
    """Set ``marks`` where pixels of columns ``start`` to ``stop`` are above ``cut``."""
    row, marks = row[start:stop], marks[start:stop]
    for x in range(len(row)):
        marks[x] |= np.uint8(row[x] > cut)


@compiled
def _reach(first, second, low, high):
    """Return the outputs that lie between inputs of which one at least is in ``low`` to ``high``: a range."""
    start = np.searchsorted(second, low, "left")
    stop = np.searchsorted(first, high, "right")
    return start, stop


@compiled
def walk(
    logits,
    sy0, sy1, wsy0, wsy1, sx0, sx1, wsx0, wsx1,
    cy0, cy1, wcy0, wcy1, cx0, cx1, wcx0, wcx1,
    cuts, mask,
):  # fmt: skip
    """Return the pixels above each of three ``cuts``, and the box of those above the first; draw these into ``mask``.

    ``s..`` are the taps of the square, ``c..`` those of the crop. ``mask`` is uint8 (H, W), all 0, or empty: then
    nothing is drawn.
    """
    lowest = min(cuts[0], min(cuts[1], cuts[2]))
    lowest -= np.float32(1e-5) * abs(lowest)  # rounding may lift an interpolated value above its neighbours
    top, bottom, left, right = logits.shape[0], -1, logits.shape[1], -1
    for y in range(logits.shape[0]):
        for x in range(logits.shape[1]):
            if logits[y, x] > lowest:
                top, bottom = min(top, y), y
                left, right = min(left, x), max(right, x)
    area, inner, outer = 0, 0, 0
    box_left, box_top, box_right, box_bottom = len(cx0), -1, 0, 0
    row_start, row_stop = _reach(sy0, sy1, top, bottom)
    column_start, column_stop = _reach(sx0, sx1, left, right)
    if bottom < 0 or row_start >= row_stop or column_start >= column_stop:
        return area, inner, outer, 0, 0, 0, 0
    start, stop = _reach(cx0, cx1, column_start, column_stop - 1)
    first_row, last_row = _reach(cy0, cy1, row_start, row_stop - 1)
    # what the crop's pixels in that reach are interpolated from
    column_start, column_stop = cx0[start], cx1[stop - 1] + 1
    cells = np.empty((2, len(sx0)), np.float32)  # two rows of the grid at the square's columns
    square = np.empty(len(sx0), np.float32)  # a row of the square
    across = np.empty((2, len(cx0)), np.float32)  # two rows of the square at the crop's columns
    pixels = np.empty(len(cx0), np.float32)
    hits = np.zeros(len(cx0), np.uint8)
    cell_rows, square_rows = np.full(2, -1, np.int64), np.full(2, -1, np.int64)
    for y in range(first_row, last_row):
        for want in (cy0[y], cy1[y]):
            if square_rows[want % 2] == want:
                continue
            for cell in (sy0[want], sy1[want]):
                if cell_rows[cell % 2] != cell:
                    _mix_columns(logits[cell], sx0, sx1, wsx0, wsx1, column_start, column_stop, cells[cell % 2])
                    cell_rows[cell % 2] = cell
            upper, lower = cells[sy0[want] % 2], cells[sy1[want] % 2]
            _mix_rows(upper, lower, wsy0[want], wsy1[want], column_start, column_stop, square)
            _mix_columns(square, cx0, cx1, wcx0, wcx1, start, stop, across[want % 2])
            square_rows[want % 2] = want
        _mix_rows(across[cy0[y] % 2], across[cy1[y] % 2], wcy0[y], wcy1[y], start, stop, pixels)
        inner += _count_above(pixels, cuts[1], start, stop)
        outer += _count_above(pixels, cuts[2], start, stop)
        here = _count_above(pixels, cuts[0], start, stop)
        if here > 0:
            area += here
            if box_top < 0:
                box_top = y
            box_bottom = y
            _mark_above(pixels, cuts[0], start, stop, hits)
            if mask.shape[0] > 0:
                _mark_above(pixels, cuts[0], start, stop, mask[y])
    if area == 0:
        return area, inner, outer, 0, 0, 0, 0
    for x in range(start, stop):
        if hits[x]:
            box_left = min(box_left, x)
            box_right = x
    return area, inner, outer, box_left, box_top, box_right, box_bottom
