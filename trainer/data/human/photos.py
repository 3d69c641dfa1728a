"""Photos of a human set, as their masks were drawn on them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from sum_factory.shared.errors import InputError
from sum_factory.shared.images import FORMATS, RgbImage, as_stored, decode_image
from sum_factory.trainer.data.human.fitting import Fit
from sum_factory.trainer.data.human.headers import Header
from sum_factory.trainer.data.human.mask_files import read_file

Alpha = Literal["white", "dropped"]


def load_photo(path: Path, header: Header, fit: Fit, alpha: Alpha = "white") -> RgbImage:
    """Read a photo, RGB uint8 (H, W, 3), turned by EXIF unless ``fit`` says that its masks were drawn otherwise.

    ``alpha`` says whether it is laid over white, or dropped as it means something else. Raises ``InputError`` or
    ``ImageError``, naming the file.
    """
    data = read_file(path)
    image = decode_image(
        _without_alpha(data) if alpha == "dropped" and header.mode in ("RGBA", "LA") else data, str(path)
    )
    if (image.shape[1], image.shape[0]) != header.upright:
        width, height = header.upright
        raise InputError(
            f"{path}: {image.shape[1]} x {image.shape[0]}, but its header said {width} x {height} when the set was "
            "opened; it has changed since"
        )
    return np.ascontiguousarray(as_stored(image, header.orientation)) if fit.as_stored else image


def _without_alpha(data: bytes) -> bytes:
    """Return a photo's file, upright, without its alpha, or as it is if that cannot be read."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            upright = ImageOps.exif_transpose(image)  # the copy has no EXIF
            opaque = Image.merge("RGB", [upright.getchannel(0 if "L" in upright.mode else at) for at in range(3)])
    except Exception:  # decoding it as it is says what is wrong
        return data
    file = io.BytesIO()
    opaque.save(file, "BMP")
    return file.getvalue()
