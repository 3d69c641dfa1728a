"""What shapes that people drew have in common: points, sizes, and several of them that are one mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sum_factory.shared.annotations.segmentations import check_segmentations, draw
from sum_factory.shared.automask.rle import encode_rle
from sum_factory.shared.images import MAX_PIXELS

LARGEST = 1e300
"""Whole numbers beyond this are no coordinates: no float holds them."""


def are_points(told: Any) -> bool:
    """Whether these are lists of two numbers each, which may be infinite or none."""
    return isinstance(told, list) and all(
        isinstance(point, list) and len(point) == 2 and all(_is_number(value) for value in point) for point in told
    )


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < LARGEST)


def is_size(size: tuple[Any, Any]) -> bool:
    """Whether these are the height and the width of a picture that is not too large."""
    return all(type(side) is int and side > 0 for side in size) and size[0] * size[1] <= MAX_PIXELS


def united(segmentations: Sequence[Any], size: tuple[Any, Any]) -> Any:
    """Return the segmentation of one mask that several shapes make up, on a photo of ``size``, height and width.

    If one of them is unsound it is that one, which whoever checks the mask finds then.
    """
    if len(segmentations) == 1:
        return segmentations[0]
    if all(isinstance(each, list) for each in segmentations):
        return [polygon for each in segmentations for polygon in each]
    if not is_size(size):
        return None
    kinds = check_segmentations(segmentations, np.tile(np.array(size, np.int64), (len(segmentations), 1))).kinds
    unsound = [segmentation for segmentation, kind in zip(segmentations, kinds, strict=True) if kind]
    if unsound:
        return unsound[0]
    rle = coco_mask.merge([encode_rle(draw(each, *size)) for each in segmentations])
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
