"""Boundary IoU of two masks at the photo's own size (SUM, Sec. 4.1)."""

from __future__ import annotations

import cv2
import numpy as np

from sum_factory.shared.masks import Mask, iou

BOUNDARY_SHARE = 0.02
"""Width of the boundary band as a share of the image diagonal."""


def boundary_iou(predicted: Mask, target: Mask) -> float:
    """Return the IoU of the boundary bands of two masks, bool (H, W); empty with empty is 1.

    The band of a mask is the mask without its erosion by d = round(2 % of the image diagonal), at least 1, steps of a
    3 x 3 square; beyond the image there is background, so that the image border counts as boundary.
    """
    return iou(boundary_band(predicted), boundary_band(target))


def boundary_band(mask: Mask) -> Mask:
    """Return the pixels of ``mask`` that lie within the band's width of its boundary, bool (H, W)."""
    width = max(1, round(BOUNDARY_SHARE * float(np.hypot(*mask.shape))))
    band = np.zeros_like(mask)
    rows, columns = support(mask)
    inside = mask[rows, columns]
    if inside.size:
        distance = cv2.distanceTransform(np.pad(inside, 1).astype(np.uint8), cv2.DIST_C, 3)[1:-1, 1:-1]
        band[rows, columns] = inside & (distance <= width)
    return band


def support(mask: Mask) -> tuple[slice, slice]:
    """Return the rows and columns that a mask spans; empty slices for an empty mask.

    Distances to the outside of a mask are the same if they are taken in there alone, with one pixel of padding.
    """
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    return slice(y, y + height), slice(x, x + width)
