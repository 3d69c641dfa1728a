"""IoU and boundary IoU of masks at the photo's own size (SUM, Sec. 4.1), calculated where there is something alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from sum_factory.shared.masks import Mask

BOUNDARY_SHARE = 0.02
"""Width of the boundary band as a share of the image diagonal."""


@dataclass(frozen=True)
class Cutout:
    """A mask as a cutout, bool (h, w), that lies at ``top`` and ``left`` in a photo of ``size``, height and
    width. Beyond it the mask has no pixel."""

    inside: Mask
    top: int
    left: int
    size: tuple[int, int]

    @classmethod
    def of(cls, mask: Mask) -> Cutout:
        """Return what a mask, bool (H, W), spans."""
        height, width = mask.shape
        return cls(mask, 0, 0, (height, width)).trimmed()

    def trimmed(self) -> Cutout:
        """Return the same mask as the cutout that it spans: of an empty mask nothing."""
        rows, columns = support(self.inside)
        return Cutout(self.inside[rows, columns], self.top + rows.start, self.left + columns.start, self.size)

    @cached_property
    def mask(self) -> Mask:
        """The whole mask, bool (H, W)."""
        whole = np.zeros(self.size, bool)
        height, width = self.inside.shape
        whole[self.top : self.top + height, self.left : self.left + width] = self.inside
        return whole

    @cached_property
    def area(self) -> int:
        """Its pixels."""
        return int(np.count_nonzero(self.inside))

    @cached_property
    def band(self) -> Cutout:
        """The pixels within the boundary band's width of its boundary: see ``boundary_iou``.

        Distances to the outside are the same if they are taken in the cutout alone, with one pixel of padding.
        """
        if not self.inside.size:
            return self
        width = max(1, round(BOUNDARY_SHARE * float(np.hypot(*self.size))))
        distance = cv2.distanceTransform(np.pad(self.inside, 1).view(np.uint8), cv2.DIST_C, 3)[1:-1, 1:-1]
        return Cutout(self.inside & (distance <= width), self.top, self.left, self.size)

    def iou(self, other: Cutout) -> float:
        """Return the IoU with another mask of the same photo; empty with empty is 1."""
        own, others = self._overlap(other)
        shared = int(np.count_nonzero(self.inside[own] & other.inside[others]))
        union = self.area + other.area - shared
        return 1.0 if union == 0 else shared / union

    def without(self, other: Cutout) -> Cutout:
        """Return the pixels that another mask of the same photo does not have."""
        own, others = self._overlap(other)
        left = self.inside.copy()
        left[own] &= ~other.inside[others]
        return Cutout(left, self.top, self.left, self.size).trimmed()

    def _overlap(self, other: Cutout) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return the rows and columns in both cutouts, as those of this and as those of the other."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom = max(top, min(self.top + self.inside.shape[0], other.top + other.inside.shape[0]))
        right = max(left, min(self.left + self.inside.shape[1], other.left + other.inside.shape[1]))
        own, others = (
            (slice(top - each.top, bottom - each.top), slice(left - each.left, right - each.left))
            for each in (self, other)
        )
        return own, others


def boundary_iou(predicted: Mask, target: Mask) -> float:
    """Return the IoU of the boundary bands of two masks, bool (H, W); empty with empty is 1.

    The band of a mask is the mask without its erosion by d = round(2 % of the image diagonal), at least 1, steps of a
    3 x 3 square; beyond the image there is background, so that the image border counts as boundary.
    """
    return Cutout.of(predicted).band.iou(Cutout.of(target).band)


def support(mask: Mask) -> tuple[slice, slice]:
    """Return the rows and columns that a mask spans; empty slices for an empty mask."""
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    return slice(y, y + height), slice(x, x + width)
