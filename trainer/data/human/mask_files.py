"""The one reader of mask files and label maps: what stands in the file, and nothing of how a photo would be shown."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from sum_factory.shared.deadlines import seconds_for, within
from sum_factory.shared.errors import ImageError, InputError
from sum_factory.shared.image_formats import bits_of, is_negative, open_image
from sum_factory.shared.images import MAX_PIXELS
from sum_factory.shared.places import store_of
from sum_factory.shared.store.refusals import reason_of
from sum_factory.trainer.data.human.headers import FIRST_BYTES, is_lossy

Values = npt.NDArray[Any]
"""(H, W): uint8, uint16, int32 or uint32, or float32 of a file of floats."""
Coding = Literal["grey", "palette", "colour"]
BLACK = (0, 0, 0)
OPAQUE = 128
"""Alpha of this and above is opaque."""
SHOWN_COLOURS = 6
_SCALED = {"L;2": 85, "L;4": 17}
"""What Pillow multiplies greys of 2 and 4 bits of a PNG with."""
MOST_GREY_DIFFERENCE = 24
"""Channels of a lossy grey picture differ by this at most."""


@dataclass(frozen=True)
class MaskFile:
    """A mask file or label map as it is stored.

    ``values`` are shades of grey, places in a palette, or colours as R + 256 G + 65536 B; ``coding`` tells which.
    ``colours`` are those of the palette. ``alpha``, uint8 (H, W), is None where all is opaque.
    """

    values: Values
    coding: Coding
    colours: tuple[tuple[int, int, int], ...] = ()
    alpha: npt.NDArray[np.uint8] | None = None
    scaled: int = 1
    """What Pillow multiplied the values of 2 or 4 bits with, to make shades of them."""

    def numbers(self) -> Values:
        """Return the values as numbers of something, not as shades."""
        return self.values if self.scaled == 1 else self.values // np.uint8(self.scaled)

    def stated(self) -> MaskFile:
        """Return the file with the values that a recipe names: places in a palette, unless all its colours are greys,
        whichever are used."""
        is_of_colours = any(not red == green == blue for red, green, blue in self.colours)
        return self if self.coding == "palette" and is_of_colours else self.shades()

    def shades(self) -> MaskFile:
        """Return the file with a palette resolved where it means shades of grey, or has not black in its first place.

        So 0 is black, whatever the coding, and is what painting programs, and sets of classes, have as background.
        """
        if self.coding != "palette":
            return self
        used = np.flatnonzero(np.bincount(self.values.ravel(), minlength=len(self.colours)))
        colours = [self.colours[place] if place < len(self.colours) else BLACK for place in used.tolist()]
        if all(red == green == blue for red, green, blue in colours):
            table = np.zeros(256, np.uint8)
            table[used] = [red for red, _, _ in colours]
            return MaskFile(table[self.values], "grey", (), self.alpha)
        if self.colours[0] == BLACK:
            return self
        codes = np.zeros(256, np.uint32)
        codes[used] = [code_of(colour) for colour in colours]
        return MaskFile(codes[self.values], "colour", (), self.alpha)


def read_mask_file(path: Path) -> MaskFile:
    """Read a mask file or a label map. Raises ``InputError`` if it is gone, ``ImageError`` if it cannot be used."""
    data = read_file(path)
    if not data:
        raise ImageError(f"{path}: the file is empty (0 bytes); fetch it again or leave it out")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open_image(data, path.name) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(
                        f"{path}: {image.width} x {image.height} is more than {MAX_PIXELS / 1e6:.0f} megapixels"
                    )
                if (pictures := getattr(image, "n_frames", 1)) > 1:
                    raise ImageError(f"{path}: holds {pictures} pictures, expected one; save each as a file")
                if image.mode in ("RGB", "RGBA") and bits_of(image, data) > 8:
                    raise ImageError(f"{path}: colours of 16 bits a channel, of which 8 would be lost; save it in grey")
                scaled = _SCALED.get(str(image.tile[0].args)) if image.tile and image.format == "PNG" else None
                image.load()
                lossy = is_lossy(image, data[:FIRST_BYTES])
                is_inverted = is_negative(image) and image.mode.startswith("I;16")  # others Pillow has turned
                file = _of_image(ImageOps.exif_transpose(image), lossy)
                file = replace(file, values=65_535 - file.values) if is_inverted else file
                return file if scaled is None else replace(file, scaled=scaled)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not an image of a known format; it starts with {data[:12]!r}") from None
    except Exception as error:  # on damaged bytes Pillow's decoders raise whatever they run into
        raise ImageError(f"{path}: damaged or cut short ({error}); fetch it again or leave it out") from error


def read_file(path: Path) -> bytes:
    """Read the bytes of a file. Raises ``InputError``."""
    try:
        return within(seconds_for(None), store_of(str(path)), path.read_bytes)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason_of(error)})") from error


def code_of(colour: Sequence[int]) -> int:
    """Return the number of a colour, R + 256 G + 65536 B."""
    return int(colour[0]) + 256 * int(colour[1]) + 65536 * int(colour[2])


def colours_in_words(codes: Sequence[int]) -> str:
    """Return the first few colours of these numbers, and what to call them in a recipe."""
    named = [f"({code & 255}, {code >> 8 & 255}, {code >> 16}) as {code}" for code in codes[:SHOWN_COLOURS]]
    return ", ".join(named) + (", ..." if len(codes) > SHOWN_COLOURS else "")


def _of_image(image: Image.Image, is_lossy: bool) -> MaskFile:
    match image.mode:
        case "1":
            return MaskFile(np.asarray(image).astype(np.uint8), "grey", (), _alpha_of(image))
        case "L" | "I;16" | "I;16B" | "I;16L" | "I;16N" | "I" | "F":
            values = np.asarray(image)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ValueError("it holds values that are not finite")
            return MaskFile(values.astype(values.dtype.newbyteorder("=")), "grey", (), _alpha_of(image))
        case "P":
            flat = image.getpalette("RGB") or []
            colours = tuple((r, g, b) for r, g, b in zip(*[iter(flat)] * 3, strict=True))
            return MaskFile(np.asarray(image), "palette", colours or (BLACK,), _alpha_of(image))
        case "LA" | "La":
            return MaskFile(np.asarray(image.convert("LA"))[..., 0], "grey", (), _alpha_of(image))
        case _:
            return _of_colours(np.asarray(image.convert("RGB")), is_lossy, _alpha_of(image))


def _of_colours(pixels: npt.NDArray[np.uint8], is_lossy: bool, alpha: npt.NDArray[np.uint8] | None) -> MaskFile:
    red = pixels[..., 0]
    difference = max(int(cv.max()) for cv in (np.abs(pixels[..., c].astype(np.int16) - red) for c in (1, 2)))
    if difference <= (MOST_GREY_DIFFERENCE if is_lossy else 0):
        return MaskFile(np.ascontiguousarray(red), "grey", (), alpha)
    codes = red.astype(np.uint32)
    codes |= pixels[..., 1].astype(np.uint32) << 8
    codes |= pixels[..., 2].astype(np.uint32) << 16
    return MaskFile(codes, "colour", (), alpha)


def _alpha_of(image: Image.Image) -> npt.NDArray[np.uint8] | None:
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in image.info:
        return None
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    return None if int(alpha.min(initial=255)) == 255 else np.ascontiguousarray(alpha)
