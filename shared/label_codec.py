"""Pseudo-labels in a few hundred bytes: quantised logits in a band around the boundary.

The mask that SAM means is "upsample the logits bilinearly, then threshold at 0". A pixel between four cells of one
sign has that sign whatever their magnitude; only where signs meet do magnitudes place the boundary, and there it is
their *ratio* that counts. So a cell with a neighbour of the other sign keeps its magnitude on a logarithmic scale of
``LEVELS`` steps, every other cell keeps its sign alone, and a mask is cut to the box of its positive cells.

A frame is a header of six little-endian uint16 (rows and columns of the grid, then top, left, height and width of
the box) and the box's codes, one byte a cell, row by row, compressed with zstd. Code 0 is "negative", 255 "positive";
128 + n and 127 - n (n = 0 ... LEVELS - 1) are a positive and a negative logit of magnitude
SMALLEST * (LARGEST / SMALLEST) ** (n / (LEVELS - 1)).
"""

from __future__ import annotations

import struct

import cv2
import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd

from shared.errors import ShardError

LEVELS = 24
SMALLEST, LARGEST = 1 / 16, 32.0
SATURATED = 16.0
"""Magnitude that a cell away from the boundary decodes to."""
HEADER = struct.Struct("<6H")

_ZSTD = Zstd(level=9)
_MAGNITUDES = SMALLEST * (LARGEST / SMALLEST) ** (np.arange(LEVELS) / (LEVELS - 1))
_LOGITS = np.full(256, SATURATED, np.float32)
_LOGITS[:128] = -SATURATED
_LOGITS[128 : 128 + LEVELS] = _MAGNITUDES
_LOGITS[128 - LEVELS : 128] = -_MAGNITUDES[::-1]
_NEIGHBOURHOOD = np.ones((3, 3), np.uint8)


def encode_label(logits: npt.NDArray[np.float32]) -> bytes:
    """Encode low-resolution logits, float32 (h, w), as one frame."""
    positive = (logits > 0).astype(np.uint8)
    near_positive = cv2.dilate(positive, _NEIGHBOURHOOD)
    near_negative = cv2.dilate(1 - positive, _NEIGHBOURHOOD)
    left, top, width, height = cv2.boundingRect(near_positive)
    box = (slice(top, top + height), slice(left, left + width))
    codes = np.where(positive[box], 255, 0).astype(np.uint8)
    band = np.logical_and(near_positive[box], near_negative[box])
    values = logits[box][band]
    magnitude = np.clip(np.abs(values), SMALLEST, LARGEST)
    step = np.rint(np.log(magnitude / SMALLEST) * ((LEVELS - 1) / np.log(LARGEST / SMALLEST))).astype(np.int64)
    codes[band] = np.where(values > 0, 128 + step, 127 - step)
    return HEADER.pack(*logits.shape, top, left, height, width) + bytes(_ZSTD.encode(codes.tobytes()))


def decode_label(frame: bytes) -> npt.NDArray[np.float32]:
    """Decode one frame to logits, float32 (h, w); their sign is exact. Raises ``ShardError`` on damaged bytes."""
    try:
        rows, columns, top, left, height, width = HEADER.unpack_from(frame)
        codes = np.frombuffer(_ZSTD.decode(frame[HEADER.size :]), np.uint8).reshape(height, width)
        logits = np.full((rows, columns), -SATURATED, np.float32)
        logits[top : top + height, left : left + width] = _LOGITS[codes]
    except (struct.error, RuntimeError, ValueError) as error:
        raise ShardError(
            f"a label frame of {len(frame)} bytes does not decode ({error}); run `labelgen verify`"
        ) from error
    return logits
