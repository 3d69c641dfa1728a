"""A picture of some photos of each set with their masks drawn over them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sum_factory.shared.drawing import draw_mask
from sum_factory.shared.images import RgbImage
from sum_factory.trainer.data.human import HumanSample

HEIGHT = 180
"""Pixels of a photo on the sheet; its width follows, but is three times as much at most."""
CAPTION, GAP = 22, 6
MOST_MASKS = 40
"""Masks that are drawn of a photo, at most."""
HUE_STEP = 111
"""Neighbours in a photo have hues far apart: 360 and this have no divisor in common."""


def contact_sheet(rows: Sequence[tuple[str, Sequence[HumanSample]]]) -> RgbImage:
    """Return the sheet, RGB uint8 (H, W, 3): a row for each title and its samples."""
    drawn = [(title, [thumbnail(sample) for sample in samples]) for title, samples in rows]
    width = max((sum(picture.shape[1] + GAP for picture in pictures) for _, pictures in drawn), default=0)
    width = max(width, 400) + GAP
    sheet = Image.new("RGB", (width, GAP + len(drawn) * (CAPTION + HEIGHT + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for title, pictures in drawn:
        draw.text((GAP, top + 4), title.encode("ascii", "replace").decode(), fill="black")
        left = GAP
        for picture in pictures:
            sheet.paste(Image.fromarray(picture), (left, top + CAPTION))
            left += picture.shape[1] + GAP
        top += CAPTION + HEIGHT + GAP
    return np.asarray(sheet)


def thumbnail(sample: HumanSample) -> RgbImage:
    """Return a photo, scaled down, with its masks over it."""
    height, width = sample.image.shape[:2]
    scale = min(HEIGHT / height, 3 * HEIGHT / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    photo: RgbImage = np.asarray(cv2.resize(sample.image, size, interpolation=cv2.INTER_AREA), np.uint8)
    drawn = photo.astype(np.float32)
    for number in range(min(sample.count, MOST_MASKS)):
        whole = sample.masks_at([number])[0].astype(np.float32)
        mask = cv2.resize(whole, size, interpolation=cv2.INTER_AREA) >= 0.5
        draw_mask(drawn, photo, mask, colour_of(number))
    return np.rint(drawn).astype(np.uint8)


def jpeg(picture: RgbImage) -> bytes:
    """Return a picture, RGB uint8 (H, W, 3), as the bytes of a JPEG file."""
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return bytes(data)


def colour_of(number: int) -> npt.NDArray[np.float32]:
    """Return the colour, RGB float32 (3,), of a photo's mask of this number."""
    pixel = np.array([[[number * HUE_STEP % 360, 0.9, 1.0]]], np.float32)
    return np.asarray(255 * cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0], np.float32)
