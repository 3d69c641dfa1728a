"""What is drawn on the pages: photos and masks as data URLs at the photo's own size, and where to look closer."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from sum_factory.shared.drawing import FILLED, OUTLINED, stroke_of
from sum_factory.shared.images import RgbImage
from sum_factory.shared.masks import Mask, box_of

LOUPE_SHARE = 8
"""A loupe shows the longer side of the photo over this many pixels per side."""
LEAST_LOUPE = 24
"""Pixels per side that a loupe shows at least."""
JPEG_QUALITY = 88


@dataclass(frozen=True)
class Overlay:
    """A drawn mask as the picture ``url``, transparent beside the mask, which lies at ``x``, ``y`` of the photo."""

    url: str
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Window:
    """A square part of a photo: its top left corner and side in pixels."""

    x: int
    y: int
    side: int


def photo_url(photo: RgbImage) -> str:
    """Return a photo, uint8 (H, W, 3), as a JPEG of its own size."""
    encoded, data = cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert encoded, "a JPEG encoder is part of OpenCV"
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def overlay(photo: RgbImage, mask: Mask, colour: tuple[int, int, int]) -> Overlay | None:
    """Draw a mask, bool (H, W), with its outline, as ``draw_mask`` does, but to lie over the photo; None if empty."""
    if not mask.any():
        return None
    x0, y0, x1, y1 = box_of(mask)
    stroke = stroke_of(photo)
    inner = cv2.erode(
        mask.view(np.uint8), np.ones(2 * [2 * stroke + 1], np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    levels = mask.astype(np.uint8) + (mask & (inner == 0))
    picture = Image.fromarray(np.ascontiguousarray(levels[y0 : y1 + 1, x0 : x1 + 1]))
    picture.putpalette([*colour] * 3)
    alphas = (0.0, FILLED, 1 - (1 - FILLED) * (1 - OUTLINED))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=bytes(round(255 * alpha) for alpha in alphas), optimize=True)
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Overlay(url, x0, y0, x1 + 1 - x0, y1 + 1 - y0)


def loupe(masks: Sequence[Mask], target: Mask) -> Window:
    """Return where masks, bool (H, W), differ most; where they are the same, where they differ from the target.

    If there is no difference at all, it is where most of the target's boundary is.
    """
    height, width = target.shape
    side = min(height, width, max(LEAST_LOUPE, max(height, width) // LOUPE_SHARE))
    boundary = cv2.morphologyEx(target.view(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    candidates = (masks[0] != masks[-1], masks[-1] != target, boundary)
    return fullest_window(next((each for each in candidates if each.any()), target), side)


def fullest_window(pixels: Mask, side: int) -> Window:
    """Return the window of ``side`` with most of ``pixels``, bool (H, W): of several, the one in their middle."""
    sums = cv2.integral(pixels.view(np.uint8)).astype(np.int64)
    counts = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    corners = np.argwhere(counts == counts.max())
    nearest = np.abs(corners - corners.mean(0)).sum(1).argmin()
    y, x = corners[nearest].tolist()
    return Window(x, y, side)
