"""From a mask of pixels to a label: how much of each cell of SAM's low-resolution grid the mask covers, and from this
logits that draw a mask whose boundary lies where the given one's does.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sum_factory.shared.masks import Mask, box_of
from sum_factory.shared.placement import CELL, Frame

LARGEST = 6.0
"""Magnitude of the logits of cells that a mask covers wholly, or not at all."""


def coverage(mask: Mask, frame: Frame) -> npt.NDArray[np.float64]:
    """Return the share of each cell that a mask, bool (H, W) of the frame's crop, covers: float64 (h, w) of
    ``Frame.interpolation_cells``, exact.

    Of a cell at the photo's edge, the part that shows the photo counts. A cell beyond it is as the nearest in it.
    """
    (rows, columns), (height, width) = frame.interpolation_cells, frame.input_size
    x0, y0, x1, y1 = box_of(mask)
    part = mask[y0 : y1 + 1, x0 : x1 + 1].astype(np.float64)
    down = _shares(mask.shape[0], height, rows)[:, y0 : y1 + 1]
    across = _shares(mask.shape[1], width, columns)[:, x0 : x1 + 1]
    shares: npt.NDArray[np.float64] = down @ part @ across.T
    return shares


@lru_cache(8)
def _shares(pixels: int, side: int, cells: int) -> npt.NDArray[np.float64]:
    """Return which share of each cell lies in each pixel, along one side of a photo that has so many ``pixels``, and
    ``side`` of them in SAM's input: float64 (cells, pixels), each row adding up to 1."""
    last = -(-side // CELL) - 1
    cell = np.minimum(np.arange(cells), last)
    scale = pixels / side
    begin, end = CELL * cell * scale, np.minimum(CELL * (cell + 1), side) * scale
    pixel = np.arange(pixels)
    overlap = np.minimum(end[:, None], pixel + 1) - np.maximum(begin[:, None], pixel)
    overlap = np.maximum(overlap, 0)
    shares: npt.NDArray[np.float64] = overlap / overlap.sum(1, keepdims=True)
    return shares


def logits_of(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return the logits of cells of which a mask covers these shares, float32 (h, w): positive above one half.

    A boundary is drawn a / (a + b) of the way from a cell of magnitude a to one of magnitude b. A straight edge, along
    the grid, that leaves the share c > 1/2 of a cell covered lies c - 1/2 cells behind its centre, and the next cell
    has ``LARGEST``. So a / (a + LARGEST) is c - 1/2, and a = LARGEST (c - 1/2) / (3/2 - c); below one half likewise.
    """
    beyond = np.abs(shares - 0.5)
    magnitude = LARGEST * beyond / (1 - beyond)
    magnitude = np.maximum(magnitude, np.finfo(np.float16).tiny)
    return np.asarray(np.where(shares > 0.5, magnitude, -magnitude), np.float32)
