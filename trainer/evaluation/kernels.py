# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The compiled parts of evaluation: the deepest pixel of a region, and the pixels of a mask whose logit is positive.

Numba compiles them at their first call; ``shared.kernel_compiler`` says where the result is kept.
"""

from __future__ import annotations

import numpy as np

from sum_factory.shared.kernel_compiler import kernel_compiler

compiled = kernel_compiler(nogil=True, boundscheck=False)


@compiled
def _column_distances(region, distance):
    """Set each pixel's distance to the next pixel outside of ``region`` above or below it."""
    height, width = region.shape
    for x in range(width):
        distance[0, x] = np.int32(region[0, x])
    for y in range(1, height):
        for x in range(width):
            distance[y, x] = (distance[y - 1, x] + np.int32(1)) * np.int32(region[y, x])
    for x in range(width):
        distance[height - 1, x] = min(distance[height - 1, x], np.int32(1))
    for y in range(height - 2, -1, -1):
        for x in range(width):
            distance[y, x] = min(distance[y, x], distance[y + 1, x] + np.int32(1))


@compiled
def _cross_distances(distance, cross):
    """Set the least of ``distance`` and the distances to the left and right; return where the largest of them is."""
    height, width = distance.shape
    largest, place = np.int32(0), 0
    for y in range(height):
        run = np.int32(0)
        for x in range(width):
            run = run + np.int32(1) if distance[y, x] else np.int32(0)
            cross[y, x] = min(run, distance[y, x])
        run = np.int32(0)
        for x in range(width - 1, -1, -1):
            run = run + np.int32(1) if distance[y, x] else np.int32(0)
            cross[y, x] = min(run, cross[y, x])
            if cross[y, x] > largest:
                largest, place = cross[y, x], y * width + x
    return place


@compiled
def _squared_depth(distance, y, x, least):
    """Return the square of a pixel's distance to the outside, or any number below ``least`` if it is below that."""
    width = distance.shape[1]
    found = np.int64(distance[y, x]) ** 2
    step = 1
    while step * step < found and found >= least:
        left = np.int64(distance[y, x - step]) if x >= step else np.int64(0)
        right = np.int64(distance[y, x + step]) if x + step < width else np.int64(0)
        nearer = min(left, right)
        found = min(found, np.int64(step * step) + nearer * nearer)
        step += 1
    return found


@compiled
def deepest(region, least):
    """Return row, column and squared depth of the deepest pixel of ``region``, bool (H, W), the first in reading order.

    Depth is the Euclidean distance to the outside; beyond the array is outside. The squared depth is 0 if there is no
    pixel whose squared depth is ``least``, a number above 0, or more.

    A pixel is no deeper than its distances to the outside along its row and its column. The pixel that is the best by
    these is measured first, and then only those that may be deeper.
    """
    distance = np.empty(region.shape, np.int32)
    cross = np.empty(region.shape, np.int32)
    _column_distances(region, distance)
    width = region.shape[1]
    place = _cross_distances(distance, cross)
    best = _squared_depth(distance, place // width, place % width, least)
    if best < least:
        best, place = least, region.size
    for y in range(region.shape[0]):
        for x in range(width):
            bound, at = np.int64(cross[y, x]) ** 2, y * width + x
            wanted = best if at < place else best + 1
            if bound >= wanted and at != place:
                depth = _squared_depth(distance, y, x, wanted)
                if depth >= wanted:
                    best, place = depth, at
    if place == region.size:
        return 0, 0, 0
    return place // width, place % width, best


@compiled
def positive(logits, rows, row_weights, row_starts, columns, column_weights, column_starts, slack, out):
    """Set ``out``, bool (H, W), where interpolated logits are positive, and return whether that is sure of every pixel.

    A pixel of row i and column j is made of the 3 x 3 logits from ``rows[i]`` and ``columns[j]`` on, which
    ``row_weights[i]`` and ``column_weights[j]`` weigh. ``row_starts`` tells where ``rows`` changes, and ends with H;
    ``column_starts`` likewise. A pixel is sure if the interpolated logit is farther from 0 than the share ``slack`` of
    the largest logit that it is made of. ``out`` holds False before.
    """
    height, width = logits.shape
    part = np.empty((3, 3), np.float64)
    for block in range(len(row_starts) - 1):
        top, bottom = row_starts[block], row_starts[block + 1]
        for part_block in range(len(column_starts) - 1):
            left, right = column_starts[part_block], column_starts[part_block + 1]
            least, largest = np.inf, -np.inf
            for p in range(3):
                y = min(rows[top] + p, height - 1)
                for q in range(3):
                    value = np.float64(logits[y, min(columns[left] + q, width - 1)])
                    part[p, q] = value
                    least, largest = min(least, value), max(largest, value)
            if largest <= 0:
                continue
            if least > 1e-30:
                out[top:bottom, left:right] = True
                continue
            doubt = slack * max(largest, -least)
            for i in range(top, bottom):
                u, v, w = row_weights[i, 0], row_weights[i, 1], row_weights[i, 2]
                first = u * part[0, 0] + v * part[1, 0] + w * part[2, 0]
                second = u * part[0, 1] + v * part[1, 1] + w * part[2, 1]
                third = u * part[0, 2] + v * part[1, 2] + w * part[2, 2]
                for j in range(left, right):
                    value = column_weights[j, 0] * first + column_weights[j, 1] * second + column_weights[j, 2] * third
                    if abs(value) <= doubt:
                        return False
                    out[i, j] = value > 0
    return True
