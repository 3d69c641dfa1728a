"""Walk through the photos of a shard set, with their masks and maps as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sum_factory.shared.codecs.codes import Codes
from sum_factory.shared.images import RgbImage
from sum_factory.shared.labelled_photo import LabelledPhoto, Map, Mask, columns_of
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.placement import Frame, at_full_size
from sum_factory.shared.shards.dataset import uncertainty_layer
from sum_factory.shared.shards.image_rows import ImageRows, UncertaintyRow
from sum_factory.shared.shards.kinds import planes_of
from sum_factory.shared.shards.originals import decode_original
from sum_factory.shared.shards.shard_set import MASKS, ShardSet

Maps = Mapping[str, Sequence[UncertaintyRow]]
"""What is known of the maps of an image's masks, by the name of the layer."""


def labelled_photos(shards: ShardSet) -> Iterator[LabelledPhoto]:
    """Yield every photo of the committed units of a shard set or selection, in order, also those with an error.

    A layer of maps is there for the units that are committed in it. Raises ``ShardError`` for what is damaged.
    """
    layers = {name: set(shards.committed(uncertainty_layer(name))) for name in shards.uncertainty_layers}
    for number in shards.committed():
        planned = shards.unit(number).images
        maps = {name: shards.uncertainty(number, name) for name, numbers in layers.items() if number in numbers}
        for image in shards.images(number):
            own = {name: rows[image.index] for name, rows in maps.items()}
            yield photo_of(shards, number, image, planned[image.index], own)


def photo_of(shards: ShardSet, unit: int, image: ImageRows, planned: PhotoFile, maps: Maps) -> LabelledPhoto:
    """Return one image of a unit as a labelled photo; ``planned`` is what the plan says of it."""
    means = {
        name: np.array([np.nan if row.mean_u is None else row.mean_u for row in rows], np.float64)
        for name, rows in maps.items()
    }
    return LabelledPhoto(
        key=image.key,
        height=image.height or 0,
        width=image.width or 0,
        **columns_of(image.masks),
        mean_u=means,
        error=image.error,
        drawn=_InShards(shards, unit, image, planned, maps),
    )


@dataclass(frozen=True)
class _InShards:
    """Draws what a shard set has of an image. The labels of all its masks are read at once: a byte per cell."""

    shards: ShardSet
    unit: int
    rows: ImageRows
    planned: PhotoFile
    maps: Maps

    def image(self) -> RgbImage:
        return decode_original(self.shards, self.planned, self.rows.digest)

    def mask(self, index: int) -> Mask:
        return np.asarray(self._at_full_size(self._labels.values(index), index) > 0)

    def uncertainty(self, index: int, layer: str) -> Map | None:
        row = self.maps[layer][index]
        if not row.u_valid:
            return None
        codes = self.shards.reader(uncertainty_layer(layer)).read(self.unit, [row.row], "u")
        return self._at_full_size(codes.values(0), index)

    def refined(self, index: int, layer: str) -> Mask | None:
        row, name = self.maps[layer][index], uncertainty_layer(layer)
        if not row.u_valid or "refined" not in planes_of(self.shards.layer(name)):
            return None
        codes = self.shards.reader(name).read(self.unit, [row.row], "refined")
        return np.asarray(self._at_full_size(codes.values(0), index) > 0)

    @cached_property
    def _labels(self) -> Codes:
        first = self.rows.first
        return self.shards.reader(MASKS).read(self.unit, range(first, first + len(self.rows.masks)), "label")

    def _at_full_size(self, grid: Map, index: int) -> Map:
        frame: Frame = self.rows.frame(index, self.shards.input_side)
        return at_full_size(grid, frame, self.rows.height, self.rows.width)
