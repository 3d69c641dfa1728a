"""What the headers of image files tell before anything is decoded: size, mode, EXIF orientation, lossy or not."""

from __future__ import annotations

import os
import re
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, PngImagePlugin

from sum_factory.shared.image_formats import open_header
from sum_factory.shared.images import MAX_PIXELS
from sum_factory.shared.progress import Stage

LOSSLESS = ("PNG", "BMP", "TIFF", "PPM", "GIF")
READERS = 8
"""Threads that read headers: on a disk of the network each waits most of its time."""
READ_AT_ONCE = 64
"""Files that a thread reads at a time: fewer cost more for handing them out than for reading them."""
FIRST_BYTES, LAST_BYTES = 4_096, 1 << 17
_TELLING = re.compile(rb"(?s)(?P<length>\0...)(?P<kind>eXIf|iTXt|zTXt|tEXt)")
"""The beginning of a chunk of a PNG that may tell how it is turned."""
Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True)
class Header:
    """``size`` is that of the pixels as they are stored, width first; ``orientation`` is EXIF's, 1 for upright."""

    size: Size
    mode: str
    orientation: int
    is_lossy: bool

    @property
    def upright(self) -> Size:
        """Width and height as turned by the orientation."""
        return (self.size[1], self.size[0]) if self.orientation >= 5 else self.size


def read_headers(paths: Sequence[Path]) -> list[Header | str]:
    """Return the header of each file, or in words why it cannot be read."""
    parts = [paths[start : start + READ_AT_ONCE] for start in range(0, len(paths), READ_AT_ONCE)]
    found: list[Header | str] = []
    with (
        warnings.catch_warnings(),
        Stage("reading headers", len(paths), "file") as stage,
        ThreadPoolExecutor(READERS, "headers") as pool,
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for headers in pool.map(lambda part: [_read_header(path) for path in part], parts):
            found += headers
            stage.advance(len(headers))
    return found


def _read_header(path: Path) -> Header | str:
    """Return the header of a file, or in words why it cannot be read."""
    try:
        with path.open("rb") as file, open_header(file, path.name) as image:
            orientation = _orientation_of(image)
            lossy = is_lossy(image, _start_of(path) if image.format == "WEBP" else b"")
            width, height = image.size
            if image.format == "TIFF" and orientation >= 5:  # Pillow tells the size that it will turn it to
                width, height = height, width
            if width * height > MAX_PIXELS:
                return f"{path}: {width} x {height} is more than the limit of {MAX_PIXELS / 1e6:.0f} megapixels"
            return Header((width, height), image.mode, orientation, lossy)
    except OSError as error:
        if path.is_file() and path.stat().st_size == 0:
            return f"{path}: the file is empty (0 bytes)"
        reason = error.strerror or "not an image of a known format"
        return f"{path}: {reason if error.errno else 'not an image of a known format'}"
    except Exception as error:  # on damaged bytes Pillow's readers raise whatever they run into
        return f"{path}: damaged ({error})"


def _orientation_of(image: Image.Image) -> int:
    try:
        if isinstance(image, PngImagePlugin.PngImageFile):
            _take_what_follows(image)
            exif = Image.Image.getexif(image)  # that of PNG decodes all pixels
        else:
            exif = image.getexif()
        orientation = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata do not spoil the pixels
        return 1
    return orientation if orientation in range(1, 9) else 1


def _take_what_follows(image: PngImagePlugin.PngImageFile) -> None:
    """Have Pillow read what a PNG tells behind its pixels, where exiftool puts it, as decoding the pixels does."""
    if image.fp is None or image.png is None or not image.tile:
        return
    start = max(image.tile[0].offset, image.fp.seek(0, os.SEEK_END) - LAST_BYTES)
    image.fp.seek(start)
    tail = image.fp.read()
    for found in _TELLING.finditer(tail):
        begin, end = found.end(), found.end() + int.from_bytes(found["length"])
        if int.from_bytes(tail[end : end + 4]) == zlib.crc32(tail[begin - 4 : end]):
            image.fp.seek(start + begin)
            image.png.call(found["kind"], start + begin, end - begin)


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(FIRST_BYTES)


def is_lossy(image: Image.Image, file_start: bytes) -> bool:
    """Whether an image was compressed so that values change; ``file_start`` are the first bytes of a WebP file."""
    if image.format == "WEBP":
        return b"VP8L" not in file_start
    return image.format not in LOSSLESS or image.info.get("compression") == "jpeg"
