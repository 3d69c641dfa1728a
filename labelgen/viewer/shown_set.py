"""A set that is shown: what the page asks of its photos, one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sum_factory.labelgen.viewer.catalog import Catalog
from sum_factory.labelgen.viewer.chosen import Chooser
from sum_factory.labelgen.viewer.conditions import Conditions, met
from sum_factory.labelgen.viewer.outlines import PER_PIXEL, Grid, outline
from sum_factory.shared.codecs.label import decode_label
from sum_factory.shared.codecs.uncertainty import decode_u, decode_uncertainty
from sum_factory.shared.errors import InputError, ShardError
from sum_factory.shared.names import printable
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.shards.dataset import REFINEMENT, uncertainty_layer
from sum_factory.shared.shards.image_rows import ImageRows, UncertaintyRow, image_rows
from sum_factory.shared.shards.kinds import planes_of
from sum_factory.shared.shards.originals import original_of
from sum_factory.shared.shards.selection.opened import Selection
from sum_factory.shared.shards.shard_set import MASKS, ShardSet

TABLES_KEPT = 6
"""Units whose whole manifests are kept, those that are looked at."""
PLANS_KEPT = 24


class _Units:
    """Manifests and plans of units, the last few of which are kept."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards
        self.table: Callable[[int], pa.Table] = lru_cache(TABLES_KEPT)(lambda number: shards.manifest(number)[0])
        self.plan: Callable[[int], tuple[PhotoFile, ...]] = lru_cache(PLANS_KEPT)(
            lambda number: shards.unit(number).images
        )


class ShownSet:
    """A shard set or selection, with its catalog. ``layer`` names the maps that are shown first, if there are any."""

    def __init__(self, open_set: Callable[[], ShardSet], layer: str | None = None) -> None:
        shards = open_set()
        self.layer = chosen_layer(shards, layer)
        self.catalog = Catalog(open_set, self.layer)
        self.chooser = Chooser(self.catalog)
        self._units = _Units(shards)
        self._places: dict[str, tuple[int, int]] = {}
        self._placed: set[int] = set()

    @property
    def shards(self) -> ShardSet:
        """The set as it was opened last."""
        return self.catalog.shards

    @property
    def units(self) -> _Units:
        """The units that are looked at, of the set as it was opened last."""
        if self._units.shards is not self.shards:
            self._units = _Units(self.shards)
        return self._units

    def about(self) -> dict[str, Any]:
        """Return what the page tells of the set as a whole."""
        shards = self.shards
        layer = shards.layer()
        return {
            "name": printable(shards.storage.url.rstrip("/").rsplit("/", 1)[-1]),
            "url": printable(shards.storage.url),
            "id": shards.dataset.id,
            "selection_of": [printable(base.storage.url) for base in shards.bases]
            if isinstance(shards, Selection)
            else [],
            "sam": {name: str(value)[:64] for name, value in layer.weights["sam"].items()},
            "settings": dict(layer.settings),
            "layers": list(shards.uncertainty_layers),
            "refined": [name for name in shards.uncertainty_layers if has_refined(shards, name)],
            "layer": self.layer,
        }

    def progress(self) -> dict[str, Any]:
        """Return how much of the set there is, and how much of it has been read."""
        catalog = self.catalog
        return {
            "units": catalog.shards.unit_count,
            "committed": len(catalog.committed),
            "read": len(catalog.units),
            "is_growing": catalog.is_growing,
            "is_planned": catalog.shards.is_planned,
            "problems": [problem for _, problem in sorted(catalog.problems.items())],
            "revision": catalog.revision,
        }

    def entry(self, number: int, image: int, shown: int, layer: str | None) -> dict[str, Any]:
        """Return what a tile of the grid says of a photo; of a unit that cannot be read, why."""
        told = {"unit": number, "index": image}
        try:
            unit = self.catalog.unit(number)
            means = self.catalog.means(number, layer)
        except ShardError as error:
            return {**told, "key": self._planned_key(number, image), "problem": str(error)}
        masks = slice(*unit.first[image : image + 2].tolist())
        known = np.zeros(0, np.float32) if means is None else means[masks][~np.isnan(means[masks])]
        return {
            **told,
            "key": printable(unit.keys[image]),
            "height": int(unit.sizes[image, 0]),
            "width": int(unit.sizes[image, 1]),
            "masks": masks.stop - masks.start,
            "shown": masks.stop - masks.start if shown < 0 else shown,
            "kind": unit.kinds[image],
            "error": printable(unit.errors[image]) if image in unit.errors else None,
            "mean_u": round(float(known.mean()), 4) if len(known) else None,
        }

    def _planned_key(self, number: int, image: int) -> str:
        try:
            return printable(self.planned(number, image).key)
        except (ShardError, InputError):
            return f"photo {image} of unit {number}"

    def planned(self, number: int, image: int) -> PhotoFile:
        """Return a photo as its unit's plan has it. Raises ``InputError`` if there is no such photo."""
        images = self.units.plan(number)
        if not 0 <= image < len(images):
            raise InputError(f"unit {number} has no image {image}, but {len(images)}")
        return images[image]

    def image(self, number: int, image: int) -> ImageRows:
        """Return all that the manifest says of an image. Raises ``ShardError``; ``InputError`` if it is not there."""
        table = self.units.table(number)
        rows = image_rows(table.filter(pc.equal(table["image_index"], image)))
        if not rows:
            raise InputError(f"unit {number} has no image {image}")
        return replace(rows[0], first=int(self.catalog.unit(number).first[image]))

    def described(self, number: int, image: int, conditions: Conditions) -> dict[str, Any]:
        """Return an image with its masks: outlines, boxes, points and scores, and which meet conditions."""
        rows, unit = self.image(number, image), self.catalog.unit(number)
        masks = slice(rows.first, rows.first + len(rows.masks))
        means = self.catalog.means(number, conditions.layer)
        meets = met(unit, means, conditions).masks[masks].tolist()
        labels = self.labels(number, rows, range(len(rows.masks)))
        side = self.shards.input_side
        return {
            "unit": number,
            "index": image,
            "key": printable(rows.key),
            "place": original_of(self.shards, self.planned(number, image)).name,
            "height": rows.height or 0,
            "width": rows.width or 0,
            "error": None if rows.error is None else printable(rows.error),
            "per_pixel": PER_PIXEL,
            "masks": [
                {
                    **_told_of_mask(row),
                    "mean_u": None if means is None else _known(means[masks][k]),
                    "meets": meets[k],
                    "path": outline(labels[k], rows.frame(k, side)),
                }
                for k, row in enumerate(rows.masks)
            ],
        }

    def meeting(self, number: int, image: int, conditions: Conditions) -> list[int]:
        """Return which masks of an image meet conditions."""
        unit = self.catalog.unit(number)
        masks = slice(*unit.first[image : image + 2].tolist())
        meets = met(unit, self.catalog.means(number, conditions.layer), conditions).masks[masks]
        found: list[int] = np.flatnonzero(meets).tolist()
        return found

    def refined(self, number: int, image: int, layer: str) -> list[dict[str, Any]]:
        """Return mean u and refined outline of each mask of an image; None where its map is unknown.

        The outline is None, too, where the layer has no refined masks. Raises ``ShardError``.
        """
        rows, side = self.image(number, image), self.shards.input_side
        known = self._rows_of(number, rows, layer)
        blobs = self._maps(number, known, layer)
        told = []
        for row, blob in zip(known, blobs, strict=True):
            refined = None if blob is None else decode_uncertainty(blob).refined
            path = None if refined is None else outline(refined, rows.frame(row.mask, side))
            told.append({"mean_u": row.mean_u, "path": path})
        return told

    def doubt(self, number: int, image: int, layer: str, mask: int | None) -> list[tuple[Any, Any]]:
        """Return the known maps of an image, or of one mask, each with its frame. Raises ``ShardError``."""
        rows, side = self.image(number, image), self.shards.input_side
        asked = self._rows_of(number, rows, layer)
        if mask is not None:
            asked = asked[mask : mask + 1]
        blobs = self._maps(number, asked, layer)
        known = [(row, blob) for row, blob in zip(asked, blobs, strict=True) if blob is not None]
        return [(decode_u(blob), rows.frame(row.mask, side)) for row, blob in known]

    def labels(self, number: int, image: ImageRows, masks: Sequence[int]) -> list[Grid]:
        """Return the label logits of some masks of an image, float32 (h, w) each. Raises ``ShardError``.

        They are decoded by the plain codec: what compiles the fast one takes longer than a photo that is looked at.
        """
        blobs = self.shards.reader(MASKS).blobs(number, [image.first + mask for mask in masks])
        return [decode_label(blob) for blob in blobs]

    def _maps(self, number: int, rows: Sequence[UncertaintyRow], layer: str) -> list[bytes | None]:
        """Return the blob of each map, None where it is unknown."""
        known = [row.row for row in rows if row.u_valid]
        blobs = iter(self.shards.reader(uncertainty_layer(layer)).blobs(number, known))
        return [next(blobs) if row.u_valid else None for row in rows]

    def _rows_of(self, number: int, image: ImageRows, layer: str) -> list[UncertaintyRow]:
        self.shards.layer(uncertainty_layer(layer))
        means = self.catalog.means(number, layer)
        if means is None:
            raise ShardError(
                f"{self.shards.storage.url}: unit {number} has no maps in {uncertainty_layer(layer)} yet; "
                "finish `labelgen uncertainty` first"
            )
        told = [_known(mean) for mean in means[image.first : image.first + len(image.masks)]]
        return [UncertaintyRow(image.first + k, k, mean is not None, mean) for k, mean in enumerate(told)]

    def find(self, key: str, near: tuple[int, int]) -> tuple[int, int] | None:
        """Return unit and image of a key: ``near``, as in sets of one listing, or wherever it has been read."""
        number, image = near
        if number in self.catalog.committed:
            keys = self.catalog.unit(number).keys
            if image < len(keys) and keys[image] == key:
                return near
        for unit in list(self.catalog.units.values()):
            if unit.number not in self._placed:
                self._places.update({each: (unit.number, k) for k, each in enumerate(unit.keys)})
                self._placed.add(unit.number)
        return self._places.get(key)


def chosen_layer(shards: ShardSet, name: str | None) -> str | None:
    """Return the uncertainty layer to show: "refinement" or the first, if ``name`` is None.

    Raises ``ShardError`` if ``name`` is none.
    """
    if name is None:
        return min(shards.uncertainty_layers, key=lambda layer: layer != REFINEMENT, default=None)
    shards.layer(uncertainty_layer(name))
    return name


def has_refined(shards: ShardSet, layer: str) -> bool:
    """Whether a layer of uncertainty has refined masks, too."""
    return "refined" in planes_of(shards.layer(uncertainty_layer(layer)))


def _told_of_mask(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "mask": row["mask"],
        "box": [row[f"box_{name}"] for name in "xywh"],
        "point": [row["point_x"], row["point_y"]],
        "area": row["area"],
        "predicted_iou": row["predicted_iou"],
        "stability": row["stability"],
        "crop": [row[f"crop_{name}"] for name in ("x0", "y0", "x1", "y1")],
    }


def _known(mean: Any) -> float | None:
    return None if np.isnan(mean) else float(mean)
