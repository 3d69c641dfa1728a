"""A photo that a program hands over: the path or URL of a file, a Pillow image, or an array of pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from sum_factory.shared.errors import ImageError
from sum_factory.shared.images import RgbImage, decode_image, from_pillow
from sum_factory.shared.photo_files import PhotoFile, read_bytes
from sum_factory.shared.places import absolute

AnyPhoto = str | Path | Image.Image | npt.NDArray[np.uint8]
"""A photo: its file's path or URL, a Pillow image, or pixels, RGB uint8 (H, W, 3)."""


def pixels_of(photo: AnyPhoto, name: str | None = None) -> RgbImage:
    """Return the pixels of a photo, RGB uint8 (H, W, 3), upright; ``name`` is what to call it in messages.

    Files and Pillow images are converted as photos are that are labelled. Raises ``InputError`` if a file is not there,
    ``ImageError`` if it cannot be used, and for an image or array of another kind.
    """
    if isinstance(photo, str | Path):
        file = PhotoFile("", absolute(str(photo)))
        return decode_image(read_bytes(file), name or file.name)
    if isinstance(photo, Image.Image):
        return from_pillow(photo, name or "a Pillow image")
    return _of_array(photo, name or "an array")


def _of_array(pixels: npt.NDArray[np.uint8], name: str) -> RgbImage:
    shape, kind = getattr(pixels, "shape", None), getattr(pixels, "dtype", type(pixels).__name__)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ImageError(
            f"{name}: expected a path, a Pillow image, or an array of RGB, uint8 (height, width, 3), and found {kind} "
            f"{shape}"
        )
    if 0 in pixels.shape:
        raise ImageError(f"{name}: an array without a pixel, {shape}")
    return np.ascontiguousarray(pixels)
