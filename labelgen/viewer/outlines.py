"""The outlines of masks as paths, which a browser draws sharp at any scale."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from sum_factory.shared.placement import CELL, Frame

PER_PIXEL = 8
"""Steps of a path per pixel of the photo."""
TOLERANCE = 0.15
"""Pixels of SAM's input that a path may be off by, where points are left out."""
MARGIN = 2
"""Cells around a mask that its boundary is interpolated from."""
AROUND = 3
"""Pixels of SAM's input that lines go on beyond the border of a crop; they are cut off there."""
Grid = npt.NDArray[np.float32]
Line = npt.NDArray[np.float64]


def outline(grid: Grid, frame: Frame) -> str:
    """Return where label logits, float32 (h, w) of ``frame``, are above 0 in the photo, as the data of an SVG path.

    Its numbers are whole, ``PER_PIXEL`` per pixel of the photo; it is to be filled by the rule "evenodd". Logits are
    brought to SAM's input as ``Frame.upsample`` does, and the line is where they cross 0 between its pixels.
    """
    from skimage.measure import find_contours

    positive = np.argwhere(grid > 0)
    if not len(positive):
        return ""
    top, left = np.maximum(positive.min(0) - MARGIN, 0)
    bottom, right = np.minimum(positive.max(0) + MARGIN + 1, grid.shape)
    at_input = enlarged(grid[top:bottom, left:right], CELL)
    height, width = frame.input_size
    at_input = at_input[: height - CELL * top, : width - CELL * left]
    if at_input.size == 0:
        return ""
    lines = find_contours(_closed(at_input), 0.0)  # type: ignore[no-untyped-call]
    corner = CELL * np.array([top, left]) - AROUND
    return "".join(_path(_in_photo(line + corner, frame)) for line in map(_simpler, lines) if len(line) > 3)


def enlarged(grid: Grid, times: int) -> Grid:
    """Interpolate a grid, (h, w), to ``times`` as many rows and columns, as ``Frame.upsample``: pixel centres align."""
    height, width = grid.shape
    return np.asarray(cv2.resize(grid, (times * width, times * height), interpolation=cv2.INTER_LINEAR), np.float32)


def _closed(logits: Grid) -> Grid:
    """Add ``AROUND`` pixels around: values go on beyond the border, and end, so that all lines are closed there."""
    longer = np.pad(np.nan_to_num(logits), AROUND - 1, mode="edge")
    return np.pad(longer, 1, constant_values=-np.abs(longer).max() - 1)


def _simpler(line: Line) -> Line:
    points = cv2.approxPolyDP(line.astype(np.float32)[:, None], TOLERANCE, True)
    return np.asarray(points[:, 0], np.float64)


def _in_photo(line: Line, frame: Frame) -> npt.NDArray[np.int64]:
    """Return points, (P, 2) as row and column of pixel centres of the input, as x and y of a path."""
    x0, y0, x1, y1 = frame.crop_box
    scale = np.array(frame.crop_size) / np.array(frame.input_size)
    points = np.clip((line + 0.5) * scale + (y0, x0), (y0, x0), (y1, x1)) * PER_PIXEL
    return np.asarray(np.rint(points[:, ::-1]), np.int64)


def _path(points: npt.NDArray[np.int64]) -> str:
    """Return a closed line as a path: its first point, and from there on the way to each next one."""
    steps = np.diff(points, axis=0)
    steps = steps[steps.any(1)]
    if len(steps) < 2:
        return ""
    rest = " ".join(f"{x} {y}" for x, y in steps.tolist())
    return f"M{points[0, 0]} {points[0, 1]}l{rest}z"
