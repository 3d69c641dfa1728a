"""A mask's low-resolution logits as half floats: what the layer ``logits`` of a shard set keeps of a mask.

A blob is the last row and the last column, one byte each, and a raw deflate stream of the high bytes of all cells,
then of the low bytes. A cell is the difference, modulo 65536, of its bit pattern from that of the cell on its left;
in the first column from the one above.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from sum_factory.shared.codecs.label import inflate
from sum_factory.shared.errors import ShardError

_LARGEST = np.float32(65504)
_LEAST = np.float16(2**-24)
_LEVEL = 6


def round_logits(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Round to half floats that are positive where ``logits`` are, and nowhere else; the largest stand for infinity."""
    rounded = np.clip(logits, -_LARGEST, _LARGEST).astype(np.float16)
    rounded[(logits > 0) & (rounded <= 0)] = _LEAST
    return rounded


def encode_logits(logits: npt.NDArray[np.float32]) -> bytes:
    """Encode a mask's logits, float32 (S, S), padding included, rounded by ``round_logits``; S is at most 256."""
    return pack_halves(round_logits(logits))


def decode_logits(data: bytes) -> npt.NDArray[np.float32]:
    """Decode a blob: float32 (S, S). Raises ``ShardError`` if it is damaged."""
    return unpack_halves(data).astype(np.float32)


def pack_halves(halves: npt.NDArray[np.float16]) -> bytes:
    """Return the blob of logits that are rounded, float16 (S, S)."""
    bits = halves.view(np.uint16)
    steps = bits.copy()
    steps[:, 1:] -= bits[:, :-1]
    steps[1:, 0] -= bits[:-1, 0]
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    planes = (steps >> 8).astype(np.uint8).tobytes() + (steps & 255).astype(np.uint8).tobytes()
    return bytes([bits.shape[0] - 1, bits.shape[1] - 1]) + stream.compress(planes) + stream.flush()


def unpack_halves(data: bytes) -> npt.NDArray[np.float16]:
    """Return the rounded logits of a blob, float16 (S, S). Raises ``ShardError`` if it is damaged."""
    try:
        rows, columns = data[0] + 1, data[1] + 1
        planes = inflate(data[2:], largest=2 * rows * columns + 1)
        high, low = planes.reshape(2, rows, columns).astype(np.uint16)
    except (IndexError, ValueError, zlib.error) as error:
        raise ShardError(f"damaged logits ({error}); run `labelgen verify`") from error
    steps = (high << 8) | low
    steps[:, 0] = np.cumsum(steps[:, 0], dtype=np.uint16)
    return np.cumsum(steps, 1, dtype=np.uint16).view(np.float16)
