"""Which files are photos, and how Pillow comes to open them: what it stumbles over, though the photo is whole."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image, ImageFile, TiffImagePlugin
from pillow_heif import register_heif_opener

register_heif_opener()

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm"),
    *(".pnm", ".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpx", ".tga"),
)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF", "HEIF", "JPEG2000")
"""What is tried, whatever a file is called; other formats of Pillow's would start programs (EPS) or are no photos."""
MAX_TEXT = 1 << 20
"""Bytes of a PNG's text or colour profile that Pillow takes; so many of all of them together are left in, too."""
MAX_SCANS = 500
"""Scans of a JPEG. A camera makes ten; each of them costs the time of a whole picture."""
PNG, JPEG, TIFF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
JPEG_END = b"\xff\xd9"
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES_PER_PIXEL = 258, 262, 274, 277
_TILE_WIDTH, _TILE_HEIGHT, _EXTRA = 322, 323, 338
_PLANAR, _SAMPLE_FORMAT = 284, 339
_RGB, _WHITE_IS_ZERO = 2, 0
_SWAPPED = {"I;16BS": "I;16S", "I;16NS": "I;16S", "I;32BS": "I;32S", "I;32B": "I;32", "F;32BF": "F;32F"}
"""Raw modes of Pillow's that swap the bytes of numbers, and the same that do not."""
_ALPHA = (1, 2, 999)
"""What a TIFF calls a further sample that is alpha; Corel Draw writes the last."""


def open_image(data: bytes, name: str) -> ImageFile.ImageFile:
    """Read the header of a photo's file, of which ``data`` is the whole. Raises what Pillow does."""
    if data.startswith(PNG):
        data = without_large_text(data)
    return _in_own_order(Image.open(io.BytesIO(data), formats=_formats_of(name)))


def _in_own_order(image: ImageFile.ImageFile) -> ImageFile.ImageFile:
    """Have Pillow take what libtiff decompresses in this machine's order of bytes, in which it comes already."""
    if sys.byteorder == "little":
        image.tile = [
            tile._replace(args=(_SWAPPED.get(tile.args[0], tile.args[0]), *tile.args[1:]))
            if tile.codec_name == "libtiff" and isinstance(tile.args, tuple)
            else tile
            for tile in image.tile
        ]
    return image


def open_header(file: BinaryIO, name: str) -> ImageFile.ImageFile:
    """Read the header of a photo's open file, and of most files no more than that. Raises what Pillow does."""
    try:
        return Image.open(file, formats=_formats_of(name))
    except ValueError:  # texts that are too large, in front of the pixels
        file.seek(0)
        return open_image(file.read(), name)


def _formats_of(name: str) -> tuple[str, ...]:
    # a TGA has no signature: random bytes may look like one
    return (*FORMATS, "TGA") if name.lower().endswith(".tga") else FORMATS


def without_large_text(png: bytes) -> bytes:
    """Return a PNG without texts and colour profiles that Pillow would call too large; nothing here reads them."""
    kept: list[bytes | memoryview] = [PNG]
    room, is_whole = MAX_TEXT, True
    for kind, chunk in _chunks(png):
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            size = _unpacked(kind, bytes(chunk[8:-4]), MAX_TEXT)
            if size > room:
                is_whole = False
                continue
            room -= size
        kept.append(chunk)
    return png if is_whole else b"".join(kept)


def _chunks(png: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the kind of each chunk, and all its bytes; the last one is whatever is left, and of no kind."""
    view, at = memoryview(png), len(PNG)
    while at + 8 <= len(png):
        length, kind = struct.unpack(">I4s", view[at : at + 8])
        end = at + 12 + length
        if end > len(png):
            break
        yield kind, view[at:end]
        at = end
    yield b"", view[at:]


def _unpacked(kind: bytes, content: bytes, limit: int) -> int:
    """Return how many bytes a text or a profile has, unpacked: more than ``limit`` is not counted on."""
    keyword, _, rest = content.partition(b"\0")
    if kind == b"tEXt" or (kind == b"iTXt" and rest[:1] == b"\0"):
        return len(content)
    packed = rest[1:]
    if kind == b"iTXt":
        packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    try:
        return len(keyword) + len(zlib.decompressobj().decompress(packed, limit + 1))
    except zlib.error:
        return len(content)


def bits_of(image: ImageFile.ImageFile, data: bytes) -> int:
    """Return how many bits of a channel a file has, as far as that says something of how it is to be read."""
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        return int(max(_tag(image, _BITS, (1,))))
    return 16 if image.mode.startswith("I") else 8


def is_unsigned(image: ImageFile.ImageFile) -> bool:
    """Whether a TIFF's whole numbers of 32 bits are from 0 on; Pillow takes half of them for negative."""
    return image.format == "TIFF" and image.mode == "I" and _tag(image, _SAMPLE_FORMAT, (1,))[0] == 1


def is_planar(image: ImageFile.ImageFile) -> bool:
    """Whether a TIFF stores its channels one after the other: Pillow makes noise of them if they are deep."""
    return image.format == "TIFF" and len(image.getbands()) > 1 and _tag(image, _PLANAR, (1,))[0] == 2


def has_alpha(image: ImageFile.ImageFile) -> bool:
    """Whether the fourth sample of a pixel is how opaque it is. Of a TIFF that is so only if it says it."""
    if image.format != "TIFF" or image.mode not in ("RGBA", "RGBa", "RGBX"):
        return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    is_rgb = _tag(image, _PHOTOMETRIC, (_RGB,))[0] == _RGB
    extra = _tag(image, _EXTRA, ())
    return not is_rgb or (len(extra) > 0 and extra[0] in _ALPHA)


def is_negative(image: ImageFile.ImageFile) -> bool:
    """Whether 0 is white. Pillow turns such pictures of 8 bits itself, and those of 16 not."""
    return image.format == "TIFF" and image.mode != "L" and _tag(image, _PHOTOMETRIC, (1,))[0] == _WHITE_IS_ZERO


def tile_pixels(image: ImageFile.ImageFile) -> int:
    """Return the pixels of a TIFF's tile, which may be larger than the picture."""
    width, height = (int(_tag(image, tag, (0,))[0]) for tag in (_TILE_WIDTH, _TILE_HEIGHT))
    return width * height


def tiff_bytes(image: ImageFile.ImageFile) -> int:
    """Return the bytes a pixel that decoding a TIFF takes beside the picture: a strip may be all of it, and one that is
    to be turned is there twice."""
    if image.format != "TIFF":
        return 0
    raw = -(-max(_tag(image, _BITS, (1,))) * _tag(image, _SAMPLES_PER_PIXEL, (1,))[0] // 8)
    return int(raw) + (4 if _tag(image, _ORIENTATION, (1,))[0] != 1 else 0)


def _tag(image: ImageFile.ImageFile, tag: int, otherwise: tuple[int, ...]) -> tuple[int, ...]:
    value = image.tag_v2.get(tag, otherwise) if isinstance(image, TiffImagePlugin.TiffImageFile) else otherwise
    return value if isinstance(value, tuple) else (value,)


def is_progressive(image: ImageFile.ImageFile) -> bool:
    """Whether an image is a JPEG whose whole picture comes in several scans, all of which are kept while it does."""
    return bool(image.format in ("JPEG", "MPO") and image.info.get("progressive"))


def has_too_many_scans(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether a JPEG, of which the header is read, is sent so often that it is there to cost time."""
    if not is_progressive(image) or image.fp is None:
        return False
    start = image.fp.tell()
    end = data.find(JPEG_END, start)
    return data.count(b"\xff\xda", start, len(data) if end < 0 else end) > MAX_SCANS


def lacks_only_its_end(data: bytes) -> bool:
    """Whether a JPEG that Pillow calls cut short has all of its picture, and no end mark.

    A decoder makes up what is missing of the last bits. So bits of two kinds are put behind the file: if both give
    the same picture, none of them is in it.
    """
    if not data.startswith(JPEG):
        return False
    whole = data.removesuffix(b"\xff")
    try:
        return _checksum(whole + JPEG_END) == _checksum(whole + b"\xaa\x55" * 64 + JPEG_END)
    except Exception:  # on damaged bytes Pillow's decoders raise whatever they run into
        return False


def _checksum(jpeg: bytes) -> int:
    image = Image.open(io.BytesIO(jpeg), formats=("JPEG",))
    image.load()
    found, rows = 0, max(1, (1 << 20) // image.width)
    for top in range(0, image.height, rows):
        found = zlib.crc32(image.crop((0, top, image.width, min(image.height, top + rows))).tobytes(), found)
    return found
