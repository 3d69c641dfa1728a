"""Photos at a SAM's input side as JPEG: what the layer ``images`` of a shard set keeps of them.

Pillow encodes. OpenCV decodes, in two thirds of Pillow's time and to the same pixels (torchvision's decoder, as fast,
is deprecated), in the order (3, h, w) that a model takes.
"""

from __future__ import annotations

import io

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from shared.errors import ImageError
from shared.images import RgbImage

QUALITY = 90
CHROMA = "4:4:4"
"""Colour at full resolution: for its bytes nearer to what SAM makes of the pixels than quality 95 without."""
_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
_END = b"\xff\xd9"


def encode_photo(resized: RgbImage) -> bytes:
    """Return the JPEG of RGB uint8 (h, w, 3); equal pixels give equal bytes with one version of Pillow."""
    sink = io.BytesIO()
    Image.fromarray(resized).save(sink, "JPEG", quality=QUALITY, subsampling=CHROMA)
    return sink.getvalue()


def decode_photo(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    """Return the pixels of a JPEG, RGB uint8 (3, h, w). Raises ``ImageError``, naming ``name``, if it is damaged."""
    # OpenCV makes up what is missing from a JPEG that was cut short
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS) if data.endswith(_END) else None
    if bgr is None:
        raise ImageError(f"{name}: damaged, or no JPEG; run `labelgen verify`")
    pixels = np.empty((3, *bgr.shape[:2]), np.uint8)
    cv2.split(bgr, [pixels[2], pixels[1], pixels[0]])
    return pixels
