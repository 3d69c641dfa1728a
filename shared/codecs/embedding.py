"""An embedding of the image encoder as half floats: what the layer ``embeddings`` of a shard set keeps of a crop.

A blob is the channels, rows and columns, two bytes each, and a raw deflate stream of the high bytes of all values,
then of the low bytes.
"""

from __future__ import annotations

import math
import struct
import zlib

import numpy as np
import numpy.typing as npt

from sum_factory.shared.codecs.label import inflate
from sum_factory.shared.errors import ShardError

_LARGEST = np.float32(65504)
_SHAPE = struct.Struct("<3H")
_LEVEL = 1


def encode_embedding(embedding: npt.NDArray[np.float32]) -> bytes:
    """Encode an embedding, float32 (C, g, g), rounded to the nearest half floats; the largest stand for infinity."""
    return pack_embedding(np.clip(embedding, -_LARGEST, _LARGEST).astype(np.float16))


def decode_embedding(data: bytes) -> npt.NDArray[np.float32]:
    """Decode a blob: float32 (C, g, g). Raises ``ShardError`` if it is damaged."""
    return unpack_embedding(data).astype(np.float32)


def pack_embedding(halves: npt.NDArray[np.float16]) -> bytes:
    """Return the blob of an embedding that is rounded, float16 (C, g, g)."""
    bits = halves.view(np.uint16)
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    planes = (bits >> 8).astype(np.uint8).tobytes() + (bits & 255).astype(np.uint8).tobytes()
    return _SHAPE.pack(*halves.shape) + stream.compress(planes) + stream.flush()


def unpack_embedding(data: bytes) -> npt.NDArray[np.float16]:
    """Return the rounded embedding of a blob, float16 (C, g, g). Raises ``ShardError`` if it is damaged."""
    try:
        shape = _SHAPE.unpack_from(data)
        planes = inflate(data[_SHAPE.size :], largest=2 * math.prod(shape) + 1)
        high, low = planes.reshape(2, *shape).astype(np.uint16)
    except (struct.error, ValueError, zlib.error) as error:
        raise ShardError(f"damaged embedding ({error}); run `labelgen verify`") from error
    halves: npt.NDArray[np.float16] = ((high << 8) | low).view(np.float16)
    return halves
