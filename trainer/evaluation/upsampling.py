"""Masks at the photo's own size from low-resolution logits, without the logits at that size.

The two interpolations of ``Frame.upsample`` are one weighted sum of 3 x 3 logits. Where all nine are positive, or none
is, there is nothing to calculate. The rest is, with torch's own weights and more digits than it has. Where the result
is so close to 0 that torch's roundings may decide, they do: that mask is upsampled as a whole. So masks are equal to
the pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.placement import CELL, Frame
from sum_factory.trainer.evaluation.kernels import positive
from sum_factory.trainer.evaluation.metrics import Cutout

SLACK = 10 * 2.0**-24
"""Largest rounding error of torch's float32, relative to the largest logit: four roundings an interpolation."""

Weights = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Axis:
    """For each of S pixels of a photo's side: the first of three low-resolution cells, and their weights (S, 3)."""

    cells: Places
    weights: Weights

    def reached(self, largest: npt.NDArray[np.float32]) -> slice:
        """Return the pixels from the first to the last that a cell with a positive logit is part of; ``largest`` (N,)
        are the largest logits of the cells across the axis."""
        found = np.flatnonzero(largest > 0)
        if not len(found):
            return slice(0, 0)
        return slice(
            int(np.searchsorted(self.cells, found[0] - 2)), int(np.searchsorted(self.cells, found[-1], "right"))
        )

    def cut(self, pixels: slice) -> tuple[Places, Weights, Places]:
        """Return the first cells and the weights of some pixels, and where the first cell changes, with the end."""
        cells = self.cells[pixels]
        return cells, self.weights[pixels], np.append(np.flatnonzero(np.diff(cells, prepend=-1)), len(cells))


def upsampled_masks(logits: Tensor, frame: Frame) -> list[Cutout]:
    """Return where logits (K, h, w) of the low-resolution square are positive in the frame's crop, K masks.

    Equal to ``frame.upsample(logits) > 0`` on the CPU, wherever ``logits`` are.
    """
    logits = logits.detach().float().cpu().contiguous()
    (height, width), (input_height, input_width) = frame.crop_size, frame.input_size
    rows, columns = _axis(frame.side, input_height, height), _axis(frame.side, input_width, width)
    finite = torch.isfinite(logits).flatten(1).all(1).tolist()
    return [
        (finite[k] and _drawn(values, rows, columns)) or Cutout.of((frame.upsample(logits[k : k + 1]) > 0)[0].numpy())
        for k, values in enumerate(logits.numpy())
    ]


def _drawn(logits: npt.NDArray[np.float32], rows: _Axis, columns: _Axis) -> Cutout | None:
    """Return the mask of logits (h, w), drawn where there are positive ones; None if torch's roundings may decide."""
    down, across = rows.reached(logits.max(1)), columns.reached(logits.max(0))
    inside = np.zeros((down.stop - down.start, across.stop - across.start), bool)
    if inside.size and not positive(logits, *rows.cut(down), *columns.cut(across), SLACK, inside):
        return None
    return Cutout(inside, down.start, across.start, (len(rows.cells), len(columns.cells))).trimmed()


@lru_cache(maxsize=64)
def _axis(side: int, inside: int, size: int) -> _Axis:
    """Return how ``size`` pixels of a photo follow from cells, ``inside`` pixels of the square's ``side`` being it."""
    to_square, square_weights = _taps(inside, size)
    to_cells, cell_weights = _taps(side // CELL, side)
    cells = to_cells[to_square]
    weights = np.zeros((size, 3))
    for tap in range(2):
        pixel = np.minimum(to_square + tap, inside - 1)
        for inner in range(2):
            place = to_cells[pixel] + inner - cells
            share = square_weights[:, tap] * cell_weights[pixel, inner]
            weights[np.arange(size), place] += share
    return _Axis(cells, weights)


def _taps(source: int, size: int) -> tuple[Places, Weights]:
    """Return the first of two neighbours that each of ``size`` pixels is made of, (size,), and their weights (size, 2).

    Torch is asked for the weights, since its rounding of positions shows in them. It interpolates what is 1 at every
    third pixel and else 0, which tells the weight of any pixel from those of its neighbours.
    """
    thirds = torch.eye(3)[torch.arange(source) % 3].T.contiguous()
    found = F.interpolate(thirds[None, :, None], (1, size), mode="bilinear", align_corners=False)[0, :, 0]
    of_third = found.double().numpy()
    pixels = np.arange(size)
    position = np.maximum(0, (pixels + 0.5) * source / size - 0.5)
    first = np.minimum(np.floor(position).astype(np.int64), source - 1)
    beside = of_third[(first + 2) % 3, pixels]  # not 0 where rounding took the position across a whole number
    first += np.where(beside == 0, 0, np.where(position - first < 0.5, -1, 1))
    return first, np.stack([of_third[first % 3, pixels], of_third[(first + 1) % 3, pixels]], 1)
