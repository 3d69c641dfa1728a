"""Decode photos of every common kind to RGB, in memory that is known before it begins.

Pixels are brought to RGB strip by strip, so that beside what Pillow decodes there is the result and nothing else.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from sum_factory.shared.errors import ImageError
from sum_factory.shared.image_formats import (
    FORMATS,
    IMAGE_SUFFIXES,
    JPEG_END,
    TIFF,
    bits_of,
    has_alpha,
    has_too_many_scans,
    is_negative,
    is_planar,
    is_progressive,
    is_unsigned,
    lacks_only_its_end,
    open_image,
    tiff_bytes,
    tile_pixels,
)
from sum_factory.shared.shortages import is_shortage

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "Opened",
    "RgbImage",
    "as_stored",
    "decode_image",
    "digest",
    "from_pillow",
    "open_photo",
]

MAX_PIXELS = 178_000_000
"""Larger images are refused: decoded they take half a gigabyte, and some are kept ahead. Pillow's own limit is just
above."""
MAX_MEMORY = 3 << 30
"""Bytes that decoding one photo may take, the result included; a photo that needs more is refused before it begins."""
HEADER_BYTES = 64 << 20
"""Bytes that reading a header may take."""
STRIP_PIXELS, STRIP_BYTES = 1 << 20, 120
"""Pixels that are brought to RGB at once, and the bytes that each may take meanwhile."""
DARKEST, BRIGHTEST = 0.001, 0.999
"""Quantiles of a deep photo's values, that is one of more than 8 bits, that become black and white when stretched."""
DIM = 64
"""A photo of more than 8 bits is dim if next to nothing in it is so bright, of 256: its data are in the lower bits."""

RgbImage = npt.NDArray[np.uint8]
_Grey = npt.NDArray[Any]
_ToRgb = Callable[[Image.Image], npt.NDArray[np.uint8]]

_STORED: dict[int, Callable[[RgbImage], RgbImage]] = {
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright[::-1].swapaxes(0, 1),
}
"""For each EXIF orientation, what turns the pixels of an upright photo to how its file stores them."""
_DEEP_MODES, _CLEAR_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"), ("RGBA", "LA", "PA", "RGBa", "La")
_DECODER_BYTES = {"WEBP": 8, "GIF": 4, "PPM": 4, "AVIF": 14, "HEIF": 14, "JPEG2000": 32}
"""Bytes per pixel that decoders take beside the picture, by format: planes in higher precision, copies."""


class Decoded(NamedTuple):
    """Pixels, RGB uint8 (H, W, 3); ``is_dim`` if the photo has more than 8 bits and next to nothing in it is bright."""

    pixels: RgbImage
    is_dim: bool


def digest(data: bytes) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def decode_image(data: bytes, name: str, stretch: bool = False) -> RgbImage:
    """Decode a file's bytes to RGB uint8 (H, W, 3), upright.

    Grey, palette, CMYK and 16-bit images are converted, transparency is laid over white, the EXIF orientation is
    applied. With ``stretch``, what has more than 8 bits is stretched from its darkest to its brightest values. Raises
    ``ImageError``, naming ``name``, for anything that is not a whole image of a sane size.
    """
    return open_photo(data, name, stretch).decode().pixels


def from_pillow(image: Image.Image, name: str) -> RgbImage:
    """Return a Pillow image as RGB uint8 (H, W, 3), converted as ``decode_image`` converts files of 8 bits.

    Raises ``ImageError`` for one of more bits, of which nobody knows here what is white.
    """
    if image.mode in _DEEP_MODES:
        raise ImageError(f"{name}: of Pillow's mode {image.mode}; bring it to 8 bits a channel first, or give its file")
    if 0 in image.size:
        raise ImageError(f"{name}: has no pixel")
    is_clear = image.mode in _CLEAR_MODES or "transparency" in image.info
    return _upright_rgb(image, _over_white if is_clear else _opaque)


def open_photo(data: bytes, name: str, stretch: bool = False) -> Opened:
    """Read the header of a photo's file. Raises ``ImageError`` as ``decode_image``, before any pixel is decoded."""
    if not data:
        raise ImageError(f"{name}: the file is empty (0 bytes); fetch it again or leave it out")
    try:
        opened = Opened(data, name, _opened(data, name), stretch)
    except UnidentifiedImageError:
        if data.startswith(TIFF):
            raise ImageError(
                f"{name}: a TIFF whose channels or bits are of no kind that is read; save it as RGB of 8 or 16 bits"
            ) from None
        raise ImageError(f"{name}: not an image of a known format; it starts with {data[:12]!r}") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: more than the limit of pixels ({error}); scale it down or cut it up") from error
    except Exception as error:  # on damaged bytes Pillow's decoders raise whatever they run into
        _require_room(error, HEADER_BYTES)
        raise _damaged(name, error) from error
    opened.require_sane()
    return opened


def _opened(data: bytes, name: str) -> ImageFile.ImageFile:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return open_image(data, name)


def _require_room(error: Exception, size: int) -> None:
    """Raise ``error`` if it comes of a shortage, of open files or of ``size`` bytes of memory.

    A damaged file, too, may have a decoder ask for memory that nobody has. If what a sound one takes is there, it is
    the file's fault.
    """
    if not is_shortage(error):
        return
    if not isinstance(error, MemoryError):
        raise error
    np.empty(size, np.uint8)


def _damaged(name: str, error: Exception) -> ImageError:
    return ImageError(f"{name}: damaged or cut short ({error}); fetch it again or leave it out")


class Opened:
    """A photo of which the header is read, and nothing else."""

    def __init__(self, data: bytes, name: str, image: ImageFile.ImageFile, stretch: bool) -> None:
        self._data, self._name, self._image, self._stretch = data, name, image, stretch
        self.width, self.height = image.size
        self.is_deep = bits_of(image, data) > 8
        self.bytes_needed = self._bytes_needed()
        """Memory that decoding takes at most, the result included."""

    @property
    def is_turned(self) -> bool:
        """Whether EXIF turns or mirrors what the file stores."""
        return _turn_of(self._image) is not None

    @property
    def is_plain_jpeg(self) -> bool:
        """Whether it is a JPEG of RGB that is stored upright, as most are."""
        return self._image.format == "JPEG" and self._image.mode == "RGB" and not self.is_turned

    def _bytes_needed(self) -> int:
        image = self._image
        own = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
        decoder = 6 if is_progressive(image) else _DECODER_BYTES.get(image.format or "", 0)
        decoder += tiff_bytes(image) + (16 if self._stretch and self._is_deep_colour else 0)
        pixels = self.width * self.height
        return pixels * (own + decoder + 3) + 8 * tile_pixels(image) + min(pixels, STRIP_PIXELS) * STRIP_BYTES

    def require_sane(self) -> None:
        """Raise ``ImageError`` for a photo that is too large to be decoded."""
        width, height = self.width, self.height
        if has_too_many_scans(self._image, self._data):
            raise ImageError(f"{self._name}: a JPEG in more parts than any camera makes; save it anew, or leave it out")
        if self.is_deep and is_planar(self._image):
            raise ImageError(
                f"{self._name}: stores its channels of more than 8 bits one after the other, which come out as noise; "
                "save it anew with the channels of a pixel together"
            )
        size = f"{self._name}: {width} x {height} is {width * height / 1e6:.0f} megapixels"
        if width * height > MAX_PIXELS:
            raise ImageError(f"{size}, more than the limit of {MAX_PIXELS / 1e6:.0f}; scale it down or cut it up")
        if self.bytes_needed > MAX_MEMORY:
            raise ImageError(
                f"{size}, which as {self._image.format}, {self._image.mode}, takes {self.bytes_needed / 2**30:.1f} GiB "
                f"to decode, more than the limit of {MAX_MEMORY / 2**30:.0f}; scale it down or cut it up"
            )

    def decode(self) -> Decoded:
        """Decode the pixels, as ``decode_image`` does.

        Raises ``ImageError``; where memory or open files are short, what was raised for want of them.
        """
        try:
            try:
                pixels = self._decode_pixels()
            except MemoryError as error:
                _require_room(error, self.bytes_needed)
                pixels = self._decode_pixels()  # what held the memory has let go of it, or the file is damaged
        except ImageError:
            raise
        except Exception as error:  # as above
            _require_room(error, self.bytes_needed)
            raise _damaged(self._name, error) from error
        return Decoded(pixels, self.is_deep and not self._stretch and _is_dim(pixels))

    def _decode_pixels(self) -> RgbImage:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return self._stretched_colours() if self._stretch and self._is_deep_colour else self._decoded()

    @property
    def _is_deep_colour(self) -> bool:
        """Whether there are 16 bits of several channels, of which Pillow drops the lower ones."""
        return self.is_deep and self._image.mode in ("RGB", "RGBA", "RGBa", "RGBX", "LA")

    def _decoded(self) -> RgbImage:
        image: Image.Image = self._image
        has_own_alpha, negative = has_alpha(self._image), is_negative(self._image)
        depth = bits_of(self._image, self._data)
        try:
            image.load()
        except OSError:
            if not lacks_only_its_end(self._data):
                raise
            image = _opened(self._data.removesuffix(b"\xff") + JPEG_END, self._name)
            image.load()
        if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
            return _upright_rgb(image, _from_deep_grey(image, depth, negative, self._stretch, is_unsigned(self._image)))
        if has_own_alpha and "A" in image.getbands() and image.getchannel("A").getextrema() == (0, 0):
            raise ImageError(
                f"{self._name}: transparent everywhere, so that nothing of it is seen; save it without its alpha, or "
                "leave it out"
            )
        return _upright_rgb(image, _over_white if has_own_alpha else _opaque)

    def _stretched_colours(self) -> RgbImage:
        """Return a photo of several channels of 16 bits, stretched: all alike, so that colours stay what they are."""
        import cv2  # which few photos need

        values = cv2.imdecode(np.frombuffer(self._data, np.uint8), cv2.IMREAD_UNCHANGED)
        if values is None or values.dtype != np.uint16 or values.ndim != 3 or values.shape[2] not in (3, 4):
            raise ImageError(f"{self._name}: its 16 bits a channel cannot be read to be stretched; save it anew as PNG")
        rows = _rows_at_once(values.shape[1])
        low, high = _range_of(values[top : top + rows, :, :3] for top in range(0, len(values), rows))
        turn = None if self._image.format == "TIFF" else _turn_of(self._image)  # OpenCV has turned a TIFF
        upright, stored = _room_for((values.shape[1], values.shape[0]), turn)
        for top in range(0, len(values), rows):
            strip = values[top : top + rows]
            rgb = _to_bytes(strip[..., 2::-1], low, high)
            if has_alpha(self._image):
                share = strip[..., 3:].astype(np.float32) / 65_535
                rgb = np.rint(share * rgb + (1 - share) * 255).astype(np.uint8)
            stored[top : top + rows] = rgb
        return upright


def as_stored(upright: RgbImage, orientation: int) -> RgbImage:
    """Return an upright photo, uint8 (H, W, 3), as it was before EXIF's ``orientation`` was applied: a view of it."""
    return _STORED[orientation](upright) if orientation in _STORED else upright


def _turn_of(image: Image.Image) -> int | None:
    """Return the EXIF orientation, if there is a valid one that is not upright."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return orientation if orientation in _STORED else None
    except Exception:  # damaged metadata do not spoil the pixels
        return None


def _room_for(size: tuple[int, int], turn: int | None) -> tuple[RgbImage, RgbImage]:
    """Return room for an upright photo whose file has ``size`` (width, height), and the same as the file has it."""
    width, height = (size[1], size[0]) if turn is not None and turn >= 5 else size
    upright = np.empty((height, width, 3), np.uint8)
    return upright, upright if turn is None else as_stored(upright, turn)


def _rows_at_once(width: int) -> int:
    return max(1, STRIP_PIXELS // max(1, width))


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield the first row of each strip of a picture, and the strip."""
    rows = _rows_at_once(image.width)
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(image.height, top + rows)))


def _upright_rgb(image: Image.Image, to_rgb: _ToRgb) -> RgbImage:
    upright, stored = _room_for(image.size, _turn_of(image))
    for top, strip in _strips(image):
        stored[top : top + strip.height] = to_rgb(strip)
    return upright


def _opaque(strip: Image.Image) -> npt.NDArray[np.uint8]:
    if strip.mode in ("RGBA", "RGBa"):  # a fourth channel that is no alpha
        return np.asarray(strip)[..., :3]
    return np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))


def _over_white(strip: Image.Image) -> npt.NDArray[np.uint8]:
    over = strip.convert("RGBA")
    white = Image.new("RGBA", over.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, over).convert("RGB"))


def _from_deep_grey(image: Image.Image, bits: int, negative: bool, stretch: bool, unsigned: bool) -> _ToRgb:
    """Return what brings 12 and 16-bit grey to 8 bits; wider integers and floats are stretched from their own range."""
    low, high = 0.0, 4_095.0 if bits == 12 else 65_535.0

    def read(strip: Image.Image) -> _Grey:
        values = np.asarray(strip)
        return values.view(np.uint32) if unsigned else values

    if not image.mode.startswith("I;16"):
        least, most = _extremes(read(strip) for _, strip in _strips(image))
        if image.mode == "F" or least < 0 or most > 65_535:
            low, high = least, most
    if stretch and (image.mode.startswith("I;16") or (image.mode == "I" and high == 65_535.0)):
        low, high = _range_of(read(strip).astype(np.uint16) for _, strip in _strips(image))

    def to_rgb(strip: Image.Image) -> npt.NDArray[np.uint8]:
        grey = _to_bytes(read(strip), low, high)
        return np.broadcast_to((255 - grey if negative else grey)[..., None], (*grey.shape, 3))

    return to_rgb


def _extremes(strips: Iterable[_Grey]) -> tuple[float, float]:
    """Return the least and the largest finite value, 0 and 1 if there is none."""
    least, most = np.inf, -np.inf
    for values in strips:
        finite = values[np.isfinite(values)]
        if finite.size:
            least, most = min(least, float(finite.min())), max(most, float(finite.max()))
    return (least, most) if least <= most else (0.0, 1.0)


def _range_of(strips: Iterable[_Grey]) -> tuple[float, float]:
    """Return which values of 16 bits become black and white: few are darker or brighter."""
    counts = np.zeros(65_536, np.int64)
    for values in strips:
        counts += np.bincount(values.reshape(-1), minlength=65_536)
    reached = np.cumsum(counts) / max(1, counts.sum())
    low, high = (float(np.searchsorted(reached, share)) for share in (DARKEST, BRIGHTEST))
    return (low, high) if low < high else (0.0, 65_535.0)


def _to_bytes(values: _Grey, low: float, high: float) -> npt.NDArray[np.uint8]:
    """Bring values from ``low`` to ``high`` to 0 to 255; what is no number is black."""
    scaled = np.nan_to_num((values.astype(np.float64) - low) / max(high - low, 1e-12), nan=0.0, posinf=1.0, neginf=0.0)
    return np.asarray(np.rint(np.clip(scaled, 0, 1) * 255), np.uint8)


def _is_dim(pixels: RgbImage) -> bool:
    """Whether next to nothing in a photo is bright, though something is there."""
    counts, rows = np.zeros(256, np.int64), _rows_at_once(pixels.shape[1])
    for top in range(0, len(pixels), rows):
        counts += np.bincount(pixels[top : top + rows].reshape(-1), minlength=256)
    brightest = int(np.searchsorted(np.cumsum(counts), BRIGHTEST * pixels.size))
    return brightest < DIM and int(np.count_nonzero(counts)) > 1
