"""Masks over photos, as every picture of this project shows them."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from sum_factory.shared.images import RgbImage

FILLED, OUTLINED = 0.5, 0.75
"""Share of its colour that a mask has inside and in its outline; the rest is the photo, or the mask's inside."""
STROKES = 300
"""An outline is the longer side of the photo over this many pixels wide."""


def stroke_of(photo: RgbImage) -> int:
    """Return the width of an outline in pixels."""
    return max(1, round(int(max(photo.shape[:2])) / STROKES))


def draw_mask(
    drawn: npt.NDArray[np.float32], photo: RgbImage, mask: npt.NDArray[np.bool_], colour: npt.NDArray[np.float32]
) -> None:
    """Draw a mask, bool (H, W), of a ``photo`` in place, into ``drawn``, float32 (H, W, 3); ``colour`` is (3,).

    What was drawn there before is covered. The border of the photo is an outline.
    """
    kernel = np.ones(2 * [2 * stroke_of(photo) + 1], np.uint8)
    inner = cv2.erode(mask.view(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    edge = mask & (inner == 0)
    drawn[mask] = (1 - FILLED) * photo[mask] + FILLED * colour
    drawn[edge] = (1 - OUTLINED) * drawn[edge] + OUTLINED * colour
