"""Where a simulated user clicks (SUM, App. B.3): deterministic, at the photo's own size."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from sum_factory.trainer.evaluation.kernels import deepest
from sum_factory.trainer.evaluation.metrics import Cutout, support

Mask = npt.NDArray[np.bool_]

NEAR = 10.0
"""The near-boundary protocol draws the first point within this many pixels of the boundary."""


@dataclass(frozen=True)
class Click:
    """A point in pixels of the photo, on the object (``positive``) or off it."""

    x: int
    y: int
    positive: bool


def depth(region: Mask) -> npt.NDArray[np.float32]:
    """Return each pixel's Euclidean distance to the outside of ``region``, float32 (H, W); beyond the image is outside.

    Squared distances are whole numbers, but OpenCV's have rounding errors that depend on where a pixel lies. So they
    are rounded: pixels of equal depth get equal values, and the choice among them does not depend on the processor.
    """
    distance = np.zeros(region.shape, np.float32)
    rows, columns = support(region)
    inside = region[rows, columns]
    if inside.size:
        padded = np.pad(inside, 1).astype(np.uint8)
        rough = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        distance[rows, columns] = np.sqrt(np.rint(np.square(rough, dtype=np.float64)))
    return distance


def first_click(target: Mask | Cutout) -> Click:
    """Click the pixel of the target, bool (H, W), farthest from its boundary. Raises ``ValueError`` if it is empty."""
    x, y, squared = _peak(_cutout(target))
    if not squared:
        raise ValueError("an empty mask has no point to click")
    return Click(x, y, True)


def click_near_boundary(target: Mask, name: str) -> Click:
    """Click a pixel of the target within 10 px of its boundary, drawn by the hash of ``name``."""
    near = target & (depth(target) <= NEAR)
    if not near.any():
        raise ValueError("an empty mask has no point to click")
    ys, xs = np.nonzero(near)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    pick = int(np.random.default_rng(seed).integers(len(ys)))
    return Click(int(xs[pick]), int(ys[pick]), True)


def next_click(predicted: Mask | Cutout, target: Mask | Cutout) -> Click | None:
    """Click the deepest pixel of the error region, false negatives and false positives both considered.

    The deeper of the two decides place and label; if they are equally deep, the false negative. None if there is no
    error.
    """
    predicted, target = _cutout(predicted), _cutout(target)
    missed_x, missed_y, missed = _peak(target.without(predicted))
    wrong_x, wrong_y, wrong = _peak(predicted.without(target), missed + 1)
    if wrong:
        return Click(wrong_x, wrong_y, False)
    return Click(missed_x, missed_y, True) if missed else None


def _cutout(mask: Mask | Cutout) -> Cutout:
    return mask if isinstance(mask, Cutout) else Cutout.of(mask)


def _peak(region: Cutout, least: int = 1) -> tuple[int, int, int]:
    """Return x, y and squared depth of the deepest pixel, the first in reading order; zeros if less than ``least``."""
    if not region.inside.size:
        return 0, 0, 0
    y, x, squared = deepest(np.ascontiguousarray(region.inside), least)
    return int(x) + region.left, int(y) + region.top, int(squared)
