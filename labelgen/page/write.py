"""A self-contained HTML page of photos with their masks drawn over them, and where these are doubtful."""

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

from sum_factory.labelgen.sets.export import at_full_size, full_size_masks
from sum_factory.shared.drawing import draw_mask
from sum_factory.shared.images import RgbImage
from sum_factory.shared.progress import track
from sum_factory.shared.shards.dataset import REFINEMENT, uncertainty_layer
from sum_factory.shared.shards.originals import decode_original
from sum_factory.shared.shards.shard_set import ImageRows, ShardSet
from sum_factory.shared.store.local_files import whole_file

SHOWN_SIDE = 420
"""Longer side in pixels of a picture on the page."""
DARKENED = 0.35
"""What is left of a photo's brightness under a heat map."""


def write_page(shards: ShardSet, out: Path, limit: int, layer_name: str | None = None) -> int:
    """Write the page for at most ``limit`` labelled images; return how many it shows.

    Shows the uncertainty layer ``layer_name`` too; None takes "refinement", else the first, if there is any.
    Raises ``ShardError`` if there is no such layer. The photos are read again from where they lie now: raises
    ``InputError`` if one is gone, ``ImageError`` if it is another, ``StorageError`` if the page cannot be written.
    """
    images = track(shards.walk(), "reading manifests", "image")
    labelled = [(number, image) for number, image in images if image.error is None]
    picked = [
        labelled[i] for i in sorted({round(x) for x in np.linspace(0, len(labelled) - 1, min(limit, len(labelled)))})
    ]
    template = jinja2.Template((files("sum_factory.labelgen.page") / "page.html").read_text(), autoescape=True)
    layer = shards.layer()
    maps = _chosen_layer(shards, layer_name)
    html = template.render(
        title=f"Masks in {shards.storage.url}",
        sam=layer.weights["sam"],
        settings=layer.settings,
        total_images=len(labelled),
        total_masks=sum(len(image.masks) for _, image in labelled),
        maps=maps,
        cards=list(track(_cards(shards, picked, maps), "drawing", "image", len(picked))),
    )
    with whole_file(out) as file:
        file.write(html.encode("utf-8", "backslashreplace"))
    return len(picked)


def overlay(photo: RgbImage, masks: list[npt.NDArray[np.bool_]]) -> RgbImage:
    """Draw masks, bool (H, W), over a photo, large ones first, each in its own colour with an outline."""
    drawn = photo.astype(np.float32)
    for k in np.argsort([-int(mask.sum()) for mask in masks], kind="stable").tolist():
        draw_mask(drawn, photo, masks[k], _colour(k))
    return drawn.astype(np.uint8)


def heat_map(photo: RgbImage, u: npt.NDArray[np.float32]) -> RgbImage:
    """Draw u in [0, 1], float32 (H, W), in colours from dark to bright over a darkened photo."""
    colours = cv2.applyColorMap(np.rint(255 * u).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    weight = np.minimum(1, 2 * u)[..., None]
    return np.asarray(np.rint(DARKENED * photo * (1 - weight) + colours * weight), np.uint8)


def _chosen_layer(shards: ShardSet, name: str | None) -> str | None:
    """Return the uncertainty layer to show. Raises ``ShardError`` if ``name`` is none."""
    if name is None:
        return min(shards.uncertainty_layers, key=lambda layer: layer != REFINEMENT, default=None)
    shards.layer(uncertainty_layer(name))
    return name


def _cards(shards: ShardSet, picked: list[tuple[int, ImageRows]], maps: str | None) -> Iterator[dict[str, Any]]:
    plans = {number: shards.unit(number) for number, _ in picked}
    mapped = set() if maps is None else set(shards.committed(uncertainty_layer(maps)))
    for number, image in picked:
        planned = plans[number].images[image.index]
        photo = decode_original(shards, planned, image.digest)
        drawn = overlay(photo, list(full_size_masks(shards, number, image)))
        pictures = [("photo", photo), ("masks", drawn)]
        facts = [f"{image.width} x {image.height}", f"{len(image.masks)} masks"]
        if maps is not None and number in mapped:
            more, fact = _doubt(shards, number, image, maps, photo)
            pictures += more
            facts.append(fact)
        yield {
            "key": image.key,
            "facts": facts,
            "pictures": [{"name": name, "data": jpeg_url(picture)} for name, picture in pictures],
        }


def _doubt(
    shards: ShardSet, number: int, image: ImageRows, layer: str, photo: RgbImage
) -> tuple[list[tuple[str, RgbImage]], str]:
    """Return the pictures of an image's refined masks and of the largest u of any mask, and the mean u in words."""
    rows = shards.uncertainty(number, layer)[image.index]
    largest = np.zeros(photo.shape[:2], np.float32)
    refined = [np.zeros(photo.shape[:2], bool) for _ in rows]  # unknown ones stay empty, others keep their colours
    for row, decoded in zip(rows, shards.read_uncertainty(number, rows, layer), strict=True):
        if decoded is None:
            continue
        frame = image.frame(row.mask, shards.input_side)
        np.maximum(largest, at_full_size(decoded.u, frame, image.height, image.width), out=largest)
        if decoded.refined is not None:
            refined[row.mask] = at_full_size(decoded.refined, frame, image.height, image.width) > 0
    known = [row.mean_u for row in rows if row.mean_u is not None]
    fact = f"mean u {np.mean(known):.3f}" if known else "no maps"
    if len(known) < len(rows):
        fact += f", {len(rows) - len(known)} unknown"
    has_refiner = "refiner" in shards.layer(uncertainty_layer(layer)).weights
    pictures = [("refined masks", overlay(photo, refined))] if has_refiner else []
    return [*pictures, ("uncertainty", heat_map(photo, largest))], fact


def _colour(index: int) -> npt.NDArray[np.float32]:
    """Return a bright colour, float32 (3,); neighbours in the order differ in hue."""
    hue = np.uint8((index * 67) % 180)
    rgb = cv2.cvtColor(np.array([[[hue, 200, 255]]], np.uint8), cv2.COLOR_HSV2RGB)
    return np.asarray(rgb[0, 0], np.float32)


def jpeg_url(image: RgbImage) -> str:
    """Return the image as a data URL, scaled down to the page."""
    scale = SHOWN_SIDE / max(image.shape[:2])
    if scale < 1:
        image = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    encoded, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert encoded, "a JPEG encoder is part of OpenCV"
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
