"""Photos at a SAM's input side as JPEG: what the layer ``photos`` of a shard set keeps of them.

Pillow encodes. OpenCV decodes, in two thirds of Pillow's time and to the same pixels (torchvision's decoder, as fast,
is deprecated).
"""

from __future__ import annotations

import io

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from sum_factory.shared.errors import ImageError
from sum_factory.shared.images import RgbImage

QUALITY = 90
FULL_COLOUR_BELOW = 1024
"""Longer sides from which on colour is kept at half the resolution: there decoding is most of what a sample costs."""
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_START, _END = b"\xff\xd8\xff", b"\xff\xd9"
LARGEST_SIDE = 1 << 13
"""Pixels of a side of a photo at the input side of a SAM, at most."""


def chroma_of(side: int) -> str:
    """Return how the colour of photos whose longer side is ``side`` is sampled."""
    return "4:4:4" if side < FULL_COLOUR_BELOW else "4:2:0"


def encode_photo(resized: RgbImage) -> bytes:
    """Return the JPEG of RGB uint8 (h, w, 3); equal pixels give equal bytes with one version of Pillow."""
    sink = io.BytesIO()
    Image.fromarray(resized).save(sink, "JPEG", quality=QUALITY, subsampling=chroma_of(max(resized.shape[:2])))
    return sink.getvalue()


def decode_photo(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    """Return the pixels of a JPEG, RGB uint8 (3, h, w), a view of (h, w, 3).

    Raises ``ImageError``, naming ``name``, if it is damaged.
    """
    # OpenCV makes up what is missing from a JPEG that was cut short
    is_whole = data.startswith(_START) and data.endswith(_END) and max(_size_of(data)) <= LARGEST_SIDE
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS) if is_whole else None
    if pixels is None:
        raise ImageError(f"{name}: damaged, or no JPEG; run `labelgen verify`")
    return np.asarray(pixels.transpose(2, 0, 1), np.uint8)


def _size_of(data: bytes) -> tuple[int, int]:
    """Return width and height in the header of a JPEG, 0 and 0 if there is none: OpenCV would make room for any."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as header:
            return header.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return (LARGEST_SIDE + 1,) * 2
