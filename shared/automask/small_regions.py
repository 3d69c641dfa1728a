"""Masks without small holes and islands, and logits that say the same (label and logits must agree)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.automask.rle import Mask
from sum_factory.shared.placement import CELL, Frame
from sum_factory.shared.sam.upstream import amg


def clean_mask(mask: Mask, least_area: int) -> tuple[Mask, bool]:
    """Fill holes and remove islands of fewer than ``least_area`` pixels; also return whether there were any.

    As upstream's ``postprocess_small_regions`` does: holes are filled first, and if all islands are small the largest
    stays.
    """
    filled, had_holes = amg.remove_small_regions(mask, least_area, "holes")
    cleaned, had_islands = amg.remove_small_regions(filled, least_area, "islands")
    return cleaned, had_holes or had_islands


def follow_mask(logits: Tensor, frame: Frame, before: Mask, after: Mask) -> Tensor:
    """Turn the sign of ``logits`` (h, w) where a clean-up changed a mask (H, W) of the photo.

    It was ``before`` and is ``after``.
    """
    touched = _share_of_cells(before != after, frame) > 0
    sign = torch.where(_share_of_cells(after, frame) >= 0.5, 1.0, -1.0)
    edited = logits.clone()
    height, width = frame.interpolation_cells
    part = edited[:height, :width]
    edited[:height, :width] = torch.where(touched, sign * part.abs(), part)
    return edited


def _share_of_cells(mask: Mask, frame: Frame) -> Tensor:
    """Return what share of each low-resolution cell of ``frame`` a mask (H, W) of the photo covers."""
    x0, y0, x1, y1 = frame.crop_box
    crop = torch.from_numpy(mask[None, None, y0:y1, x0:x1].astype(np.float32))
    pixels = F.adaptive_avg_pool2d(crop, frame.input_size)
    rest = [CELL * cells - size for cells, size in zip(frame.interpolation_cells, frame.input_size, strict=True)]
    return F.avg_pool2d(F.pad(pixels, (0, rest[1], 0, rest[0]), mode="replicate"), CELL)[0, 0]
