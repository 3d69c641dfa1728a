"""Uncertainty maps in a few hundred bytes: 26 levels where they are not zero, with the refined label behind.

u is rounded to the nearest of 0, 1 / 25, ..., 1, so no cell is off by more than 0.02; what is below 0.02, and with it
the rounding noise of two decoders that agree, becomes 0. What is left is a thin band in most masks.

A blob is the length of its first section (u32, little-endian), the map u, and the refined label as ``codecs.label``
encodes every label; a map that no refiner made has no second section. The map is a header and a raw deflate
stream (RFC 1951). Header: six bytes, the last row and the last column of the grid, then of the box of the cells above
0 the top, the left, the last row and the last column. The stream holds (1) which cells of the box are above 0, row by
row, each row but the first XORed with the one above, packed eight to a byte from the highest bit on, padded with 0;
(2) one byte for each of these cells, row by row: its level, 0 to 24, for 1 / 25 to 1. A map without such a cell has a
box of zeros and an empty stream.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sum_factory.shared.codecs.label import (
    LARGEST_SIDE,
    decode_label,
    deflate,
    inflate,
    pack_bits,
    unpack_bits,
)
from sum_factory.shared.errors import ShardError

STEPS = 25
"""Steps from u = 0 to u = 1."""
LENGTH = struct.Struct("<I")
HEADER = struct.Struct("<6B")

Map = npt.NDArray[np.float32]


class Uncertainty(NamedTuple):
    """One mask's map u in [0, 1] and, if a refiner made it, the refined logits r; float32 (h, w) each."""

    u: Map
    refined: Map | None


def encode_uncertainty(u: Map, refined: bytes = b"") -> bytes:
    """Encode a map u in [0, 1], float32 (h, w) with sides of 1 to 256, as one blob.

    ``refined`` is the blob of the refined label (``encode_label``); empty if there was no refiner.
    """
    rows, columns = u.shape
    if not (0 < rows <= LARGEST_SIDE and 0 < columns <= LARGEST_SIDE):
        raise ValueError(f"a map's grid has sides of 1 to {LARGEST_SIDE} cells, not {rows} x {columns}")
    if not ((u >= 0) & (u <= 1)).all():
        raise ValueError("uncertainty lies between 0 and 1")
    return blob_of_levels(np.rint(u * np.float32(STEPS)).astype(np.uint8), refined)


def blob_of_levels(levels: npt.NDArray[np.uint8], refined: bytes = b"") -> bytes:
    """Return the blob of a map of ``levels`` 0 to 25, uint8 (h, w); ``refined`` as in ``encode_uncertainty``."""
    section = _encode_levels(levels)
    return LENGTH.pack(len(section)) + section + refined


def decode_uncertainty(blob: bytes) -> Uncertainty:
    """Decode one blob. Raises ``ShardError`` on damaged bytes."""
    section, label = cut_blob(blob)
    u = _decode_map(section)
    refined = decode_label(label) if label else None
    if refined is not None and refined.shape != u.shape:
        raise ShardError(f"an uncertainty blob of {len(blob)} bytes holds grids of two sizes; run `labelgen verify`")
    return Uncertainty(u, refined)


def decode_u(blob: bytes) -> Map:
    """Decode only the map of a blob, float32 (h, w). Raises ``ShardError`` on damaged bytes."""
    return _decode_map(cut_blob(blob)[0])


def refined_label(blob: bytes) -> bytes:
    """Return the refined label of a blob, itself a blob; empty if it has none. Raises ``ShardError``."""
    return cut_blob(blob)[1]


def cut_blob(blob: bytes) -> tuple[bytes, bytes]:
    """Return the two sections of a blob: the map, and the refined label or nothing. Raises ``ShardError``."""
    end = LENGTH.size + int.from_bytes(blob[: LENGTH.size], "little")
    if not LENGTH.size < end <= len(blob):
        raise ShardError(f"an uncertainty blob of {len(blob)} bytes is cut short; run `labelgen verify`")
    return blob[LENGTH.size : end], blob[end:]


def _encode_levels(levels: npt.NDArray[np.uint8]) -> bytes:
    import cv2

    rows, columns = levels.shape
    left, top, width, height = cv2.boundingRect(levels)
    if width == 0:
        return HEADER.pack(rows - 1, columns - 1, 0, 0, 0, 0) + deflate(b"", b"")
    box = levels[top : top + height, left : left + width]
    support = box > 0
    header = HEADER.pack(rows - 1, columns - 1, top, left, top + height - 1, left + width - 1)
    # Runs and single bytes alone: matches of several levels are rare, and their codes would cost every byte.
    return header + deflate(pack_bits(support.astype(np.uint8)), (box[support] - 1).tobytes(), zlib.Z_RLE)


def _decode_map(section: bytes) -> Map:
    try:
        last_row, last_column, top, left, bottom, right = HEADER.unpack_from(section)
        if not (top <= bottom <= last_row and left <= right <= last_column):
            raise ValueError("its header contradicts itself")
        u = np.zeros((last_row + 1, last_column + 1), np.float32)
        height, width = bottom - top + 1, right - left + 1
        content = inflate(section[HEADER.size :], largest=2 * height * width)
        if content.size:
            support, levels = unpack_bits(content, height, width)
            if levels.size != np.count_nonzero(support):
                raise ValueError("its stream does not have as many levels as cells above 0")
            if levels.max(initial=0) >= STEPS:
                raise ValueError("a level is beyond the scale")
            box = u[top : bottom + 1, left : right + 1]
            box[support > 0] = (levels + np.float32(1)) / np.float32(STEPS)
    except (struct.error, zlib.error, ValueError) as error:
        raise ShardError(
            f"an uncertainty map of {len(section)} bytes does not decode ({error}); run `labelgen verify`"
        ) from error
    return u
