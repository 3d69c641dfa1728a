"""Bring masks, label logits and uncertainty maps to the grid on which the losses are taken.

A mask there is the share of each cell that it covers, or a bit per cell: whether it covers half of it, or, of a label,
the sign of its logit there. The grid covers SAM's square input with ``stride`` input pixels per cell. The photo fills
its upper left part, the *valid* cells; the rest is padding, where masks are False and maps 0.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.placement import CELL, Frame, paste

BEYOND = -20.0
"""Logit outside the crop that a mask was found in. No mask goes on there: those that reach the crop's edge were
dropped."""


def valid_cells(frame: Frame, stride: int) -> tuple[int, int]:
    """Return the rows and columns of the grid that show any of the photo."""
    height, width = frame.input_size
    return -(-height // stride), -(-width // stride)


def masks_on_grid(masks: npt.NDArray[np.bool_], frame: Frame, stride: int) -> Tensor:
    """Bring masks of a photo, bool (K, H, W), to the grid, bool (K, G, G): set where half a cell or more is."""
    grid = torch.zeros(len(masks), frame.side // stride, frame.side // stride, dtype=torch.bool)
    for k, mask in enumerate(masks):
        grid[k] = is_covered(coverage_on_grid(mask[None], frame, stride)[0])
    return grid


def coverage_on_grid(masks: npt.NDArray[np.bool_], frame: Frame, stride: int) -> Tensor:
    """Return the share of each cell that masks of a photo, bool (K, H, W), cover: float32 (K, G, G), 0 to 1.

    It is exact but for the rounding of a pixel of the input to a 255th.
    """
    height, width = frame.input_size
    rows, columns = valid_cells(frame, stride)
    grid = torch.zeros(len(masks), frame.side // stride, frame.side // stride)
    for k, mask in enumerate(masks):
        scaled = cv2.resize(mask.astype(np.uint8) * np.uint8(255), (width, height), interpolation=cv2.INTER_AREA)
        grid[k, :rows, :columns] = _cell_means(torch.from_numpy(scaled)[None].double(), stride)[0] / 255
    return grid


def is_covered(coverage: Tensor) -> Tensor:
    """Return the bit of each cell, bool, of the share that a mask covers."""
    return coverage >= 0.5


def label_pixels(logits: Tensor, frame: Frame, whole: Frame) -> Tensor:
    """Return the masks that label logits (K, h, w) mean on SAM's input, bool (K, S, S); as ``logits_on_grid``."""
    pixels = torch.zeros(len(logits), whole.side, whole.side, dtype=torch.bool, device=logits.device)
    for k in range(len(logits)):
        pixels[k] = logits_on_grid(logits[k : k + 1], frame, whole, 1)[0] > 0
    return pixels


def coverage_of_pixels(pixels: Tensor, whole: Frame, stride: int) -> Tensor:
    """Return the share of each cell that masks on SAM's input, bool (K, S, S), cover: float32 (K, G, G), 0 to 1."""
    height, width = whole.input_size
    rows, columns = valid_cells(whole, stride)
    grid = torch.zeros(len(pixels), whole.side // stride, whole.side // stride, device=pixels.device)
    for k in range(len(pixels)):
        grid[k, :rows, :columns] = _cell_means(pixels[k : k + 1, :height, :width].float(), stride)[0]
    return grid


def logits_on_grid(logits: Tensor, frame: Frame, whole: Frame, stride: int) -> Tensor:
    """Bring label logits (K, h, w) of masks in ``frame`` to the grid of the whole photo, float32 (K, G, G).

    The logits may be cut to the frame's ``interpolation_cells``. The result is 0 in the padding, and far below 0
    outside the crop. Masks of a crop are first brought to the photo's own size, one at a time to save memory. It is
    computed on the device of the logits.
    """
    return _on_grid(logits, frame, whole, stride, BEYOND)


def maps_on_grid(values: Tensor, frame: Frame, whole: Frame, stride: int) -> Tensor:
    """Bring uncertainty maps (K, h, w) of masks in ``frame`` to the grid of the whole photo, float32 (K, G, G).

    As ``logits_on_grid``; 0 outside the crop.
    """
    return _on_grid(values, frame, whole, stride, 0.0)


def _on_grid(values: Tensor, frame: Frame, whole: Frame, stride: int, outside: float) -> Tensor:
    rows, columns = valid_cells(whole, stride)
    cells = whole.side // stride
    result = torch.zeros(len(values), cells, cells, device=values.device)
    if frame.crop_box == whole.crop_box:
        result[:, :rows, :columns] = _interpolated(values, whole, stride)[:, :rows, :columns]
    else:
        for k in range(len(values)):
            result[k, :rows, :columns] = _pasted(values[k : k + 1], frame, whole, stride, outside)
    return result


def _interpolated(values: Tensor, whole: Frame, stride: int) -> Tensor:
    """Bring values (K, h, w) to the grid as inference upsamples logits, padding included: (K, G, G)."""
    low_res, cells = whole.side // CELL, whole.side // stride
    right, below = low_res - values.shape[2], low_res - values.shape[1]
    square = F.pad(values[:, None], (0, right, 0, below), mode="replicate")
    if stride != CELL and len(values):
        square = F.interpolate(square, (cells, cells), mode="bilinear", align_corners=False)
    return square[:, 0]


def _pasted(values: Tensor, frame: Frame, whole: Frame, stride: int, outside: float) -> Tensor:
    """Bring values (1, h, w) of a crop to the valid cells of the grid, (rows, columns)."""
    photo = paste(frame.upsample(values) - outside, frame, *whole.crop_size) + outside
    scaled = F.interpolate(photo[None], whole.input_size, mode="bilinear", align_corners=False, antialias=True)
    return _cell_means(scaled[0], stride)[0]


def _cell_means(values: Tensor, stride: int) -> Tensor:
    """Return the mean of each cell of ``stride`` pixels per side of float (1, H, W); the last cells may be cut short.

    Sums are taken in a fixed order, along rows first: the same on every device.
    """
    height, width = values.shape[1:]
    padded = F.pad(values[None], (0, -width % stride, 0, -height % stride), mode="replicate")[0]
    blocks = padded.view(-1, padded.shape[1] // stride, stride, padded.shape[2] // stride, stride)
    across = blocks[..., 0]
    for index in range(1, stride):
        across = across + blocks[..., index]
    total = across[:, :, 0]
    for index in range(1, stride):
        total = total + across[:, :, index]
    return total / stride**2
