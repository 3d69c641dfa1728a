"""A page in one file: the front end of ``labelgen view --serve`` with some photos and all their masks in it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sum_factory.labelgen.page.drawing import data_url, jpeg_url
from sum_factory.labelgen.viewer.conditions import Conditions, scales
from sum_factory.labelgen.viewer.front import whole_page
from sum_factory.labelgen.viewer.pictures import heat_png, size_within
from sum_factory.labelgen.viewer.shown_set import ShownSet, has_refined
from sum_factory.shared.progress import track
from sum_factory.shared.shards.dataset import uncertainty_layer
from sum_factory.shared.shards.originals import decode_original
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.store.local_files import whole_file

PHOTO_SIDE, HEAT_SIDE = 800, 400
"""Longer sides in pixels of a photo and of a heat map in the page."""
ORDERS = ("set", "doubt", "certain", "most", "fewest")


def write_page(shards: ShardSet, out: Path, limit: int, layer_name: str | None = None) -> int:
    """Write the page for at most ``limit`` labelled images, spread evenly over the set; return how many it shows.

    Shows the uncertainty layer ``layer_name`` too; None takes "refinement", else the first, if there is any.
    Raises ``ShardError`` if there is no such layer. The photos are read again from where they lie now: raises
    ``InputError`` if one is gone, ``ImageError`` if it is another, ``StorageError`` if the page cannot be written.
    """
    shown = ShownSet(partial(_the_same, shards), layer_name)
    labelled = list(track(_labelled(shown), "reading manifests", "image"))
    places = sorted({round(x) for x in np.linspace(0, len(labelled) - 1, min(limit, len(labelled)))})
    photos = list(track(_photos(shown, [labelled[k] for k in places]), "drawing", "image", len(places)))
    about = {"sets": [_about(shown)], "scales": list(scales()), "orders": ORDERS, "can_save": False}
    page = whole_page(f"Masks in {shards.storage.url}", {"about": about, "photos": photos})
    with whole_file(out) as file:
        file.write(page)
    return len(photos)


def _the_same(shards: ShardSet) -> ShardSet:
    return shards


def _about(shown: ShownSet) -> dict[str, Any]:
    """Return what the page tells of the set: it holds one layer of maps."""
    told, layer = shown.about(), shown.layer
    layers = [] if layer is None else [layer]
    return {**told, "layers": layers, "refined": [name for name in layers if has_refined(shown.shards, name)]}


def _labelled(shown: ShownSet) -> Iterator[tuple[int, int]]:
    """Yield unit and image of all photos that could be labelled."""
    for number in shown.catalog.committed:
        unit = shown.catalog.unit(number)
        yield from ((number, image) for image in range(len(unit.keys)) if image not in unit.errors)


def _photos(shown: ShownSet, picked: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    shards, layer = shown.shards, shown.layer
    mapped = set() if layer is None else set(shards.committed(uncertainty_layer(layer)))
    for number, image in picked:
        photo = decode_original(shards, shown.planned(number, image), shown.image(number, image).digest)
        size = photo.shape[0], photo.shape[1]
        entry = shown.entry(number, image, -1, layer if number in mapped else None)
        described = shown.described(number, image, Conditions(layer=layer if number in mapped else None))
        told = {
            **entry,
            **described,
            "place": "",
            "picture": jpeg_url(photo, PHOTO_SIDE),
            "refined": None,
            "doubt": None,
        }
        if layer is not None and number in mapped:
            told["refined"] = shown.refined(number, image, layer)
            heat = heat_png(shown.doubt(number, image, layer, None), size, size_within(size, HEAT_SIDE))
            told["doubt"] = data_url(heat, "image/png")
        yield told
