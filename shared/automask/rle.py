"""Masks as COCO's compressed run-length encoding, by pycocotools."""

from __future__ import annotations

from typing import TypedDict

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

Mask = npt.NDArray[np.bool_]


class Rle(TypedDict):
    """A mask of ``size`` height, width, in COCO's alphabet."""

    size: list[int]
    counts: str


def encode_rle(mask: Mask) -> Rle:
    """Encode a mask, bool (H, W)."""
    # pycocotools reads column by column; OpenCV transposes several times as fast as NumPy
    rle = coco.encode(cv2.transpose(mask.view(np.uint8)).T)
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Rle) -> Mask:
    """Decode a mask, bool (H, W)."""
    return np.asarray(coco.decode(rle)).astype(np.bool_)
