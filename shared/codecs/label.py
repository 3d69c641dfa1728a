"""Pseudo-labels in a few hundred bytes: quantised logits in a band around the boundary.

The mask that SAM means is "upsample the logits bilinearly, then threshold at 0". A pixel between four cells of one sign
has that sign whatever their magnitude; where signs meet, the boundary lies a / (a + b) of the way from a cell of
magnitude a to one of magnitude b. So a cell keeps its sign, and its magnitude m only if one of its eight neighbours has
the other sign: as m / (m + typical), ``typical`` being the median of such magnitudes in this mask. Equal steps of that
move the boundary by nearly equal distances, however steep the logits are there. The number of steps follows from the
mask: an error of 1 / steps of a cell along the boundary costs IoU in proportion to the boundary's length over the area,
and boundary IoU in proportion to a cell's share of the grid.

A blob is a header and a raw deflate stream (RFC 1951). Header: six bytes, the last row and the last column of the
grid, then of the box that holds all positive cells and their neighbours the top, the left, the last row and the last
column; ``typical`` as a little-endian IEEE half float; one byte, the number of steps. The stream holds (1) the box's
signs, row by row, 1 for positive, each row but the first XORed with the one above, packed eight to a byte from the
highest bit on, padded with 0; (2) one byte for each cell of the band, row by row: floor(steps * m / (m + typical)).
A mask without a positive cell has steps 0, a box of zeros, and an empty stream.

OpenCV is imported where it is used: whoever asks only for what a shard set holds decodes nothing.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sum_factory.shared.errors import ShardError

Logits = npt.NDArray[np.float32]

LARGEST_SIDE = 256
"""Cells per side of the largest grid: a quarter of SAM's 1024."""
STEPS_PER_SHARE = 60
"""steps = this * band cells / positive cells keeps the IoU of the mask near 0.998."""
STEPS_PER_GRID = 1024
"""Steps are at least this / longer side of the grid, which keeps the boundary IoU of the mask near 0.99."""
LEAST_STEPS, MOST_STEPS = 4, 127
"""No more than 127, so that a cell's sign, its step and whether it is in the band fit one byte: ``codecs.codes``."""
FAR = 3.0
"""Magnitude of a cell outside the band, in units of ``typical``."""
HEADER = struct.Struct("<6BeB")

_NEIGHBOURHOOD = np.ones((3, 3), np.uint8)
_SMALLEST_TYPICAL, LARGEST_TYPICAL = 2.0**-14, 2.0**15


def encode_label(logits: npt.NDArray[np.float32]) -> bytes:
    """Encode finite low-resolution logits, float32 (h, w), sides 1 to 256, as one blob."""
    rows, columns = logits.shape
    if not (0 < rows <= LARGEST_SIDE and 0 < columns <= LARGEST_SIDE):
        raise ValueError(f"a label's grid has sides of 1 to {LARGEST_SIDE} cells, not {rows} x {columns}")
    positive = (logits > 0).astype(np.uint8)
    if not positive.any():
        return blob_of_steps(positive, 1.0, 0, np.zeros(0, np.uint8))
    magnitudes = np.abs(logits[band_of(positive)].astype(np.float64))
    median = np.median(magnitudes) if magnitudes.size else 1.0
    typical = float(np.float16(np.clip(median, _SMALLEST_TYPICAL, LARGEST_TYPICAL)))
    wanted = max(STEPS_PER_SHARE * magnitudes.size / np.count_nonzero(positive), STEPS_PER_GRID / max(rows, columns))
    steps = min(max(round(wanted), LEAST_STEPS), MOST_STEPS)
    q = np.minimum(steps * (magnitudes / (magnitudes + typical)), steps - 1).astype(np.uint8)
    return blob_of_steps(positive, typical, steps, q)


def encode_labels(logits: Sequence[Logits]) -> list[bytes]:
    """Encode the logits of several labels."""
    return [encode_label(each) for each in logits]


def blob_of_steps(positive: npt.NDArray[np.uint8], typical: float, steps: int, q: npt.NDArray[np.uint8]) -> bytes:
    """Return the blob of a label whose signs are ``positive``, uint8 (h, w) of 0 and 1.

    ``q``, uint8, are the magnitudes of the cells of its band, row by row, of ``steps`` steps; a label without a
    positive cell has 0 steps and a ``typical`` of 1.
    """
    import cv2

    rows, columns = positive.shape
    left, top, width, height = cv2.boundingRect(cv2.dilate(positive, _NEIGHBOURHOOD))
    if width == 0:
        return HEADER.pack(rows - 1, columns - 1, 0, 0, 0, 0, typical, steps) + deflate(b"", b"")
    header = HEADER.pack(rows - 1, columns - 1, top, left, top + height - 1, left + width - 1, typical, steps)
    return header + deflate(pack_bits(positive[top : top + height, left : left + width]), q.tobytes())


def decode_label(blob: bytes) -> npt.NDArray[np.float32]:
    """Decode one blob to logits, float32 (h, w); their sign is exact. Raises ``ShardError`` on damaged bytes."""
    try:
        last_row, last_column, top, left, bottom, right, typical, steps = HEADER.unpack_from(blob)
        height, width = bottom - top + 1, right - left + 1
        if not (0 < typical <= LARGEST_TYPICAL and top <= bottom <= last_row and left <= right <= last_column):
            raise ValueError("its header contradicts itself")
        far = np.float32(FAR * typical)
        logits = np.full((last_row + 1, last_column + 1), -far, np.float32)
        content = inflate(blob[HEADER.size :], largest=2 * height * width)
        if steps:
            signs, steps_of_band = unpack_bits(content, height, width)
            band = band_of(signs)
            if steps_of_band.size != np.count_nonzero(band):
                raise ValueError("its stream does not have as many magnitudes as its boundary needs")
            box = logits[top : bottom + 1, left : right + 1]
            box += signs * (2 * far)
            position = (np.arange(steps, dtype=np.float32) + 0.5) / steps
            box[band] *= (position / (1 - position) / FAR)[steps_of_band]
    except (struct.error, zlib.error, ValueError, IndexError) as error:
        raise ShardError(
            f"a label blob of {len(blob)} bytes does not decode ({error}); run `labelgen verify`"
        ) from error
    return logits


def band_of(signs: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return which cells of signs, uint8 (h, w) of 0 and 1, have a neighbour of the other sign."""
    import cv2

    return np.asarray(cv2.dilate(signs, _NEIGHBOURHOOD) != cv2.erode(signs, _NEIGHBOURHOOD))


def pack_bits(bits: npt.NDArray[np.uint8]) -> bytes:
    """Pack a grid of 0 and 1, uint8 (h, w), row by row, each row but the first XORed with the one above."""
    changes = bits.copy()
    changes[1:] ^= bits[:-1]
    return np.packbits(changes).tobytes()


def unpack_bits(
    content: npt.NDArray[np.uint8], height: int, width: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Undo ``pack_bits``: return the grid, uint8 (height, width), and the bytes of ``content`` that follow it.

    Raises ``ValueError`` if ``content`` is too short.
    """
    packed = -(-height * width // 8)
    if content.size < packed:
        raise ValueError("its stream is too short for its box")
    bits = np.unpackbits(content[:packed], count=height * width).reshape(height, width)
    shift = 1
    while shift < height:  # undoes the XOR of neighbouring rows: doubling is faster than going row by row
        bits[shift:] ^= bits[:-shift].copy()
        shift *= 2
    return bits, content[packed:]


def deflate(first: bytes, second: bytes, strategy: int = zlib.Z_FILTERED) -> bytes:
    """Compress two blocks, each with the Huffman code that suits it, as one raw deflate stream."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return stream.compress(first) + stream.flush(zlib.Z_BLOCK) + stream.compress(second) + stream.flush()


def inflate(data: bytes, largest: int) -> npt.NDArray[np.uint8]:
    """Undo ``deflate``: return its blocks, one after the other. Raises ``ValueError`` or ``zlib.error`` if damaged.

    No more than ``largest`` bytes are unpacked.
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    content = stream.decompress(data, largest)
    if not stream.eof or stream.unused_data:
        raise ValueError("its stream is cut short or too long")
    return np.frombuffer(content, np.uint8)
