"""Bring masks, label logits and uncertainty maps to the grid on which the losses are taken.

The grid covers SAM's square input with ``stride`` input pixels a cell. The photo fills its upper left part, the *valid*
cells; the rest is padding, where masks are False and maps 0.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from shared.frame import CELL, Frame, paste

FAR = -20.0
"""Logit of what lies outside the crop that a mask was found in: the crop's filter dropped masks that go on there."""


def valid_cells(frame: Frame, stride: int) -> tuple[int, int]:
    """Return the rows and columns of the grid that show any of the photo."""
    height, width = frame.input_size
    return -(-height // stride), -(-width // stride)


def masks_on_grid(masks: npt.NDArray[np.bool_], frame: Frame, stride: int) -> Tensor:
    """Bring masks of a photo, bool (K, H, W), to the grid, bool (K, G, G): set where half a cell or more is."""
    height, width = frame.input_size
    rows, columns = valid_cells(frame, stride)
    grid = torch.zeros(len(masks), frame.side // stride, frame.side // stride, dtype=torch.bool)
    for k, mask in enumerate(masks):
        scaled = cv2.resize(mask.astype(np.uint8) * np.uint8(255), (width, height), interpolation=cv2.INTER_AREA)
        grid[k, :rows, :columns] = torch.from_numpy(_cell_means(scaled, stride) >= 127.5)
    return grid


def logits_on_grid(logits: Tensor, frame: Frame, whole: Frame, stride: int) -> Tensor:
    """Bring label logits (h, w) of a mask in ``frame`` to the grid of the whole photo, float32 (G, G); padding is 0.

    They may be cut to the frame's ``low_res_size``. A mask of a crop is resampled by way of the photo's own size;
    outside its crop it is far below 0.
    """
    return _on_grid(logits, frame, whole, stride, FAR)


def map_on_grid(values: Tensor, frame: Frame, whole: Frame, stride: int) -> Tensor:
    """Bring an uncertainty map (h, w) of a mask in ``frame`` to the grid of the whole photo, float32 (G, G).

    As ``logits_on_grid``; 0 outside the crop.
    """
    return _on_grid(values, frame, whole, stride, 0.0)


def _on_grid(values: Tensor, frame: Frame, whole: Frame, stride: int, outside: float) -> Tensor:
    side = whole.side
    rows, columns = valid_cells(whole, stride)
    if frame.crop_box == whole.crop_box:
        cells = side // CELL
        padded = F.pad(values[None, None], (0, cells - values.shape[1], 0, cells - values.shape[0]), mode="replicate")
        size = (side // stride, side // stride)
        grid = padded if stride == CELL else F.interpolate(padded, size, mode="bilinear", align_corners=False)
    else:
        height, width = whole.crop_size
        photo = paste(frame.upsample(values[None]) - outside, frame, height, width) + outside
        scaled = F.interpolate(photo[None], whole.input_size, mode="bilinear", align_corners=False, antialias=True)
        means = torch.from_numpy(_cell_means(scaled[0, 0].numpy(), stride))
        grid = F.pad(means, (0, side // stride - columns, 0, side // stride - rows))[None, None]
    result = torch.zeros(side // stride, side // stride)
    result[:rows, :columns] = grid[0, 0, :rows, :columns]
    return result


def _cell_means(values: npt.NDArray[np.generic], stride: int) -> npt.NDArray[np.float32]:
    """Return the mean of each cell of ``stride`` pixels a side; the last cells may be cut short."""
    height, width = values.shape
    padded = np.pad(values, ((0, -height % stride), (0, -width % stride)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // stride, stride, padded.shape[1] // stride, stride)
    return np.asarray(blocks.mean((1, 3)), np.float32)
