"""A self-contained HTML page of photos with their masks drawn over them."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import numpy.typing as npt

from labelgen.export import full_size_masks
from shared.errors import SourceError, StorageError
from shared.images import RgbImage, decode_image
from shared.photos import photo_name, read_bytes
from shared.shards.shard_set import LabelledImage, ShardSet

SHOWN_SIDE = 420
"""Longer side in pixels of a picture on the page."""


def write_page(shards: ShardSet, out: Path, limit: int) -> int:
    """Write the page for at most ``limit`` labelled images; return how many it shows.

    The photos are read again from where the run found them. Raises ``SourceError`` if one is gone, ``StorageError`` if
    the page cannot be written.
    """
    labelled = [(number, image) for number, image in shards.walk() if image.error is None]
    picked = [
        labelled[i] for i in sorted({round(x) for x in np.linspace(0, len(labelled) - 1, min(limit, len(labelled)))})
    ]
    template = jinja2.Template((files("labelgen.view") / "page.html").read_text(), autoescape=True)
    layer = shards.layer()
    html = template.render(
        title=f"Masks in {shards.storage.url}",
        sam=layer.weights["sam"],
        settings=layer.settings,
        total_images=len(labelled),
        total_masks=sum(len(image.masks) for _, image in labelled),
        cards=list(_cards(shards, picked)),
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(html)
    except OSError as error:
        raise StorageError(f"cannot write {out}: {error.strerror}") from error
    return len(picked)


def overlay(photo: RgbImage, masks: list[npt.NDArray[np.bool_]]) -> RgbImage:
    """Draw masks, bool (H, W), over a photo, large ones first, each in its own colour with an outline."""
    drawn = photo.astype(np.float32)
    outline = np.zeros(photo.shape[:2], bool)
    width = max(1, round(max(photo.shape[:2]) / 300))
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    for k in np.argsort([-int(mask.sum()) for mask in masks], kind="stable"):
        mask = masks[int(k)]
        colour = _colour(int(k))
        drawn[mask] = 0.5 * photo[mask] + 0.5 * colour
        edge = mask & (cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0) == 0)
        drawn[edge] = 0.25 * drawn[edge] + 0.75 * colour
        outline |= edge
    return np.clip(drawn, 0, 255).astype(np.uint8)


def _cards(shards: ShardSet, picked: list[tuple[int, LabelledImage]]) -> Iterator[dict[str, Any]]:
    plans = {number: shards.unit(number) for number, _ in picked}
    for number, image in picked:
        planned = plans[number].images[image.index]
        name = photo_name(planned)
        photo = decode_image(read_bytes(planned), name)
        if photo.shape[:2] != (image.height, image.width):
            raise SourceError(f"{name}: no longer the photo that was labelled; restore it")
        drawn = overlay(photo, list(full_size_masks(shards, number, image)))
        yield {
            "key": image.key,
            "size": f"{image.width} x {image.height}",
            "masks": len(image.masks),
            "photo": _jpeg(photo),
            "overlay": _jpeg(drawn),
        }


def _colour(index: int) -> npt.NDArray[np.float32]:
    """Return a bright colour, float32 (3,); neighbours in the order differ in hue."""
    hue = np.uint8((index * 67) % 180)
    rgb = cv2.cvtColor(np.array([[[hue, 200, 255]]], np.uint8), cv2.COLOR_HSV2RGB)
    return np.asarray(rgb[0, 0], np.float32)


def _jpeg(image: RgbImage) -> str:
    """Return the image as a data URL, scaled down to the page."""
    scale = SHOWN_SIDE / max(image.shape[:2])
    if scale < 1:
        image = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    encoded, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert encoded, "a JPEG encoder is part of OpenCV"
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
