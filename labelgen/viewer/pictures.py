"""The pictures that the page asks for: small and large photos, masks drawn over them, and maps of doubt."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from sum_factory.labelgen.page.drawing import colour_of, doubt_colours
from sum_factory.labelgen.viewer.outlines import enlarged
from sum_factory.shared.drawing import draw_mask
from sum_factory.shared.images import RgbImage, decode_image, open_photo
from sum_factory.shared.placement import CELL, Frame

QUALITY = 88
DRAFTED = 2
"""A JPEG is decoded to at least so many times the size that is asked for, and then scaled down."""
HEAT_LEVELS = 100
"""Colours of a heat map but the first: more make its file larger, and are not told apart."""
Grid = npt.NDArray[np.float32]
Size = tuple[int, int]


def decode_small(data: bytes, name: str, side: int, stretch: bool = False) -> RgbImage:
    """Return a photo with its longer side at most ``side``, RGB uint8 (h, w, 3), upright.

    Of a JPEG no more is decoded than this takes. Raises ``ImageError`` as ``decode_image``.
    """
    open_photo(data, name, stretch)  # which refuses what is too large, or no image
    with Image.open(io.BytesIO(data)) as image:
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            image.draft(image.mode, (DRAFTED * side, DRAFTED * side))
            try:
                return smaller(np.asarray(ImageOps.exif_transpose(image).convert("RGB")), side)
            except Exception:  # whatever damaged bytes make Pillow raise: below some are mended, and others named
                pass
    return smaller(decode_image(data, name, stretch), side)


def smaller(photo: RgbImage, side: int) -> RgbImage:
    """Return a photo scaled down so that its longer side is at most ``side``."""
    height, width = size_within(photo.shape[:2], side)
    if (height, width) == photo.shape[:2]:
        return photo
    return np.asarray(cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def size_within(size: Sequence[int], side: int) -> Size:
    """Return height and width scaled down so that the longer one is at most ``side``."""
    scale = min(1.0, side / max(*size, 1))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def jpeg(picture: RgbImage) -> bytes:
    """Return a picture as a JPEG."""
    encoded, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert encoded, "a JPEG encoder is part of OpenCV"
    return bytes(data)


def with_masks(
    photo: RgbImage, grids: Sequence[Grid], frames: Sequence[Frame], numbers: Sequence[int], size: Size
) -> RgbImage:
    """Draw masks, label logits (h, w) each, over a small photo, large ones first.

    ``frames`` are those of the photo of ``size`` (height, width) itself; ``numbers`` give the masks their colours.
    """
    shown = photo.shape[0], photo.shape[1]
    masks = [at_size(grid, frame, size, shown) > 0 for grid, frame in zip(grids, frames, strict=True)]
    drawn = photo.astype(np.float32)
    for k in np.argsort([-int(mask.sum()) for mask in masks], kind="stable").tolist():
        if masks[k].any():
            box = _extent(masks[k].any(1)), _extent(masks[k].any(0))
            draw_mask(drawn[box], photo[box], masks[k][box], colour_of(numbers[k]))
    return drawn.astype(np.uint8)


def _extent(has_any: npt.NDArray[np.bool_]) -> slice:
    """Return from where to where there are rows, or columns, with anything: bool (N,), one of them at least."""
    found = np.flatnonzero(has_any)
    return slice(int(found[0]), int(found[-1]) + 1)


def at_size(grid: Grid, frame: Frame, size: Size, shown: Size) -> Grid:
    """Bring logits or a map, float32 (h, w), to a photo of ``size`` that is shown at another, float32 (height, width).

    0 beyond the frame's crop. At the photo's own size it is what ``Frame.upsample`` makes, by OpenCV.
    """
    rows, columns = frame.input_size
    at_input = enlarged(grid, CELL)
    lacking = max(0, rows - at_input.shape[0]), max(0, columns - at_input.shape[1])
    at_input = np.pad(at_input, ((0, lacking[0]), (0, lacking[1])), "edge")[:rows, :columns]
    x0, y0, x1, y1 = frame.crop_box
    top, bottom = (round(y * shown[0] / size[0]) for y in (y0, y1))
    left, right = (round(x * shown[1] / size[1]) for x in (x0, x1))
    whole = np.zeros(shown, np.float32)
    if at_input.size and bottom > top and right > left:
        whole[top:bottom, left:right] = cv2.resize(
            at_input, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR
        )
    return whole


def largest_u(maps: Iterable[tuple[Grid, Frame]], size: Size, shown: Sequence[int]) -> Grid:
    """Return the largest u of some maps of a photo of ``size`` that is shown at another, float32 (height, width)."""
    largest = np.zeros((shown[0], shown[1]), np.float32)
    for u, frame in maps:
        np.maximum(largest, at_size(u, frame, size, (shown[0], shown[1])), out=largest)
    return np.clip(largest, 0, 1)


def heat_png(maps: Iterable[tuple[Grid, Frame]], size: Size, shown: Size) -> bytes:
    """Return the largest u of some maps of a photo as a PNG of size ``shown``: colours, and how opaque they are."""
    largest = largest_u(maps, size, shown)
    picture = Image.fromarray(np.rint(HEAT_LEVELS * largest).astype(np.uint8), "P")
    colours = doubt_colours(np.linspace(0, 1, HEAT_LEVELS + 1, dtype=np.float32)[None])[0]
    picture.putpalette(colours[:, :3].tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=colours[:, 3].tobytes())
    return file.getvalue()
