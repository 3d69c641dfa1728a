"""The IoU and the box of masks: of one mask as a NumPy array, of many as a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Mask = npt.NDArray[np.bool_]


def iou(mask: Mask, other: Mask) -> float:
    """Return the IoU of two masks, bool (H, W); empty with empty is 1."""
    union = int(np.count_nonzero(mask | other))
    return 1.0 if union == 0 else int(np.count_nonzero(mask & other)) / union


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """Return the box of a mask, x0, y0, x1, y1, x1 and y1 being the largest index; zeros for an empty mask."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    return left, top, max(0, left + width - 1), max(0, top + height - 1)


def deepest_pixel(mask: Mask) -> tuple[int, int]:
    """Return x and y of the pixel of a mask, bool (H, W), farthest from its boundary, the first in reading order.

    Beyond the photo is outside. Squared distances are rounded to the whole numbers that they are, so that the choice
    does not depend on the processor. The mask must have a pixel.
    """
    x0, y0, x1, y1 = box_of(mask)
    inside = np.pad(mask[y0 : y1 + 1, x0 : x1 + 1], 1).view(np.uint8)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = np.unravel_index(int(np.rint(np.square(distance, dtype=np.float64)).argmax()), distance.shape)
    return x0 + int(x), y0 + int(y)


def ious(masks: Tensor, others: Tensor, empty: float = 1.0) -> Tensor:
    """Return the IoU of each of ``masks`` with its partner, both bool (..., H, W), which broadcast; float32 (...).

    ``empty`` is the IoU of two empty masks.
    """
    union = (masks | others).flatten(-2).sum(-1)
    return ((masks & others).flatten(-2).sum(-1) / union.clamp(min=1)).masked_fill(union == 0, empty)
