"""The outlines of a mask, by scikit-image's marching squares and OpenCV's Douglas-Peucker.

Coordinates are those of the photo, in which the pixel (x, y) covers x to x + 1 and y to y + 1: an outline runs between
pixels, half a pixel from the centres of those on either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist
from skimage.measure import find_contours

from sum_factory.shared.masks import Mask, box_of

Ring = npt.NDArray[np.float64]
"""A closed line, float64 (n, 2): x and y of its corners, the first of them once."""


@dataclass(frozen=True)
class Part:
    """A part of a mask: its outline, and those of the holes in it."""

    outline: Ring
    holes: tuple[Ring, ...] = ()

    @property
    def cut_open(self) -> Ring:
        """One ring around the part, from which lines of no width lead around its holes."""
        return joined((self.outline, *self.holes))


def parts_of(mask: Mask, tolerance: float) -> list[Part]:
    """Return the parts of a mask, bool (H, W), each drawn within ``tolerance`` pixels; pixels that touch at a corner
    alone are of two parts. None are left out, however small."""
    rings = _rings(mask)
    outlines = [ring for ring in rings if area_of(ring) > 0]
    holes = [ring for ring in rings if area_of(ring) < 0]
    of = [_around(hole, outlines) for hole in holes]
    return [
        Part(
            _simplified(outline, tolerance),
            tuple(_simplified(hole, tolerance) for hole, owner in zip(holes, of, strict=True) if owner == number),
        )
        for number, outline in enumerate(outlines)
    ]


def joined(rings: Sequence[Ring]) -> Ring:
    """Return one ring that runs around all of these, and between them to and fro along shortest lines.

    Filled by the even-odd rule it is what they are together. The corners that lines join are those next to each other.
    """
    whole, left = rings[0], list(rings[1:])
    nearest = [_nearest(whole, ring) for ring in left]
    while left:
        place = min(range(len(left)), key=lambda each: nearest[each][0])
        ring, (_, corner, own) = left.pop(place), nearest.pop(place)
        at = int(np.flatnonzero((whole == corner).all(1))[0])
        whole = np.concatenate([whole[: at + 1], ring[own:], ring[: own + 1], whole[at:]])
        nearest = [
            min(known, _nearest(ring, other), key=lambda each: each[0])
            for known, other in zip(nearest, left, strict=True)
        ]
    return whole


def area_of(ring: Ring) -> float:
    """Return the area in a ring, above 0 if mask is inside and below 0 if it is a hole."""
    x, y = ring.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _rings(mask: Mask) -> list[Ring]:
    """Return the outlines of a mask and of its holes, each a corner between every two pixels."""
    if not mask.any():
        return []
    x0, y0, x1, y1 = box_of(mask)
    inside = np.pad(mask[y0 : y1 + 1, x0 : x1 + 1], 1).astype(np.float64)
    # the centre of the first pixel is 1, 1 in there and x0 + 0.5, y0 + 0.5 in the photo
    return [ring[:-1, ::-1] + (x0 - 0.5, y0 - 0.5) for ring in find_contours(inside, 0.5)]  # type: ignore[no-untyped-call]


def _around(hole: Ring, outlines: Sequence[Ring]) -> int:
    """Return the number of the smallest outline around a hole."""
    if len(outlines) == 1:
        return 0
    x, y = (float(value) for value in hole[0])
    around = [
        number
        for number, outline in enumerate(outlines)
        if cv2.pointPolygonTest(outline.astype(np.float32), (x, y), False) > 0
    ]
    return min(around, key=lambda number: area_of(outlines[number]))


def _simplified(ring: Ring, tolerance: float) -> Ring:
    """Leave corners out; a ring of which too little would be left keeps all that are none of a straight line."""
    for allowed in (tolerance, 0.0):
        found = cv2.approxPolyDP(ring.astype(np.float32), allowed, True)[:, 0].astype(np.float64)
        if len(found) > 2 and area_of(found) * area_of(ring) > 0:
            return np.asarray(found)
    return ring


def _nearest(ring: Ring, other: Ring) -> tuple[float, npt.NDArray[np.float64], int]:
    """Return how near two rings come to each other at their corners, that of the first, and the number of the other."""
    distances = cdist(ring, other)
    own, its = np.unravel_index(int(distances.argmin()), distances.shape)
    return float(distances[own, its]), ring[own], int(its)
