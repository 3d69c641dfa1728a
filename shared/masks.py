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


def ious(masks: Tensor, others: Tensor, empty: float = 1.0) -> Tensor:
    """Return the IoU of each of ``masks`` with its partner, both bool (..., H, W), which broadcast; float32 (...).

    ``empty`` is the IoU of two empty masks.
    """
    union = (masks | others).flatten(-2).sum(-1)
    return ((masks & others).flatten(-2).sum(-1) / union.clamp(min=1)).masked_fill(union == 0, empty)
