"""Decode photos of every common kind to RGB."""

from __future__ import annotations

import hashlib
import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from sum_factory.shared.errors import ImageError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
"""What is tried, whatever a file is called; other formats of Pillow's would start programs (EPS) or are no photos."""
MAX_PIXELS = 178_000_000
"""Larger images are refused: decoded they take half a gigabyte, and some are kept ahead. Pillow's own limit is just
above."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

RgbImage = npt.NDArray[np.uint8]


def digest(data: bytes) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def decode_image(data: bytes, name: str) -> RgbImage:
    """Decode a file's bytes to RGB uint8 (H, W, 3), upright.

    Grey, palette, CMYK and 16-bit images are converted, transparency is laid over white, the EXIF orientation is
    applied. Raises ``ImageError``, naming ``name``, for anything that is not a whole image of a sane size.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty (0 bytes); fetch it again or leave it out")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(image, name)
            image.load()
            return _to_rgb(_upright(image))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image of a known format; it starts with {data[:12]!r}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: more than the limit of pixels ({error}); scale it down or cut it up") from error
    except Exception as error:  # on damaged bytes Pillow's decoders raise whatever they run into
        raise ImageError(f"{name}: damaged or cut short ({error}); fetch it again or leave it out") from error


def _check_size(image: ImageFile.ImageFile, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {width} x {height} is {width * height / 1e6:.0f} megapixels, more than the limit of "
            f"{MAX_PIXELS / 1e6:.0f}; scale it down or cut it up"
        )


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation, if there is a valid one."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata do not spoil the pixels
        return image
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> RgbImage:
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        return _from_deep_grey(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, over)
    return np.array(image.convert("RGB"))


def _from_deep_grey(image: Image.Image) -> RgbImage:
    """Bring 16-bit grey to 8 bits; wider integers and floats are stretched from their own range."""
    values = np.asarray(image).astype(np.float64)
    if image.mode.startswith("I;16") or (image.mode == "I" and values.min() >= 0 and values.max() <= 65_535):
        low, high = 0.0, 65_535.0
    else:
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    scaled = np.nan_to_num((values - low) / max(high - low, 1e-12), nan=0.0, posinf=1.0, neginf=0.0)
    grey = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
