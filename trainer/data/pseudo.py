"""Pseudo-labels of a shard set as training samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from shared.errors import ImageError, ShardError
from shared.frame import Frame
from shared.images import RgbImage, decode_image, digest
from shared.photos import photo_name, read_bytes
from shared.sam.task_prompt import TASKS
from shared.shards.dataset import PlannedImage, content_id, uncertainty_layer
from shared.shards.shard_set import MASKS, LabelledImage, ShardSet, UncertaintyRow
from shared.shards.tar_layer import tar_path
from shared.uncertainty_codec import Uncertainty
from trainer.data.grid import logits_on_grid, map_on_grid, valid_cells
from trainer.data.samples import GridSettings, SampleId, TrainingSample, pick, scale_image
from trainer.methods import Method

UNSPECIFIED = TASKS.index("unspecified")
CACHED_UNITS = 16


@dataclass(frozen=True)
class _Unit:
    """A unit's plan and manifests: its images that have masks; for each image and mask, what is known of its map."""

    planned: tuple[PlannedImage, ...]
    images: list[LabelledImage]
    uncertainty: tuple[tuple[UncertaintyRow, ...], ...]


class PseudoSet:
    """The images of a shard set that have masks, in the order of the units.

    ``layer`` names the uncertainty layer that ``method`` reads, or is None; ``layer_ids`` are the ids of all layers
    that are read, which a run records. Opening it verifies the manifests of every committed unit: raises ``ShardError``
    if one is damaged, if there is no such layer, or if the masks are on another grid than the model's.
    """

    def __init__(self, shards: ShardSet, layer: str | None, method: Method, grid: GridSettings) -> None:
        if method.needs_uncertainty and layer is None:
            raise ShardError(f"{shards.storage.url}: this method reads an uncertainty layer, and none is named")
        if shards.input_side != grid.side:
            raise ShardError(
                f"{shards.storage.url}: its masks were made at an input of {shards.input_side} pixels, and the model "
                f"to be trained takes {grid.side}; label the photos with a SAM of that size"
            )
        self.shards, self.method, self.grid = shards, method, grid
        self.layer = layer if method.needs_uncertainty else None
        layers = [MASKS] if self.layer is None else [MASKS, uncertainty_layer(self.layer)]
        self.layer_ids = {name: shards.layer(name).id(shards.dataset.unit_ids) for name in layers}
        self._unit: Callable[[int], _Unit] = lru_cache(CACHED_UNITS)(self._read_unit)
        self.units = shards.committed()
        self.places = [(number, place) for number in self.units for place in range(len(self._unit(number).images))]
        if not self.places:
            raise ShardError(f"{shards.storage.url}: no masks to train from; finish `labelgen run` first")

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """How many images with masks each committed unit has; units without any are left out."""
        sizes = Counter(number for number, _ in self.places)
        return tuple(sizes[number] for number in self.units if sizes[number])

    @cached_property
    def identity(self) -> str:
        """Hash of all that decides which samples there are and in which units."""
        return content_id([self.layer_ids, self.units])

    def load(self, index: int, id: SampleId) -> TrainingSample:
        """Load one sample: only the masks that are picked are read.

        Raises ``SourceError`` or ``ImageError`` if the photo is gone or changed, ``ShardError`` for damaged shards.
        """
        number, place = self.places[index]
        unit = self._unit(number)
        image = unit.images[place]
        photo = _read_photo(unit.planned[image.index])
        whole = Frame.whole(self.grid.side, image.height, image.width)
        known = [k for k in range(len(image.masks)) if self._is_known(unit, image, k)]
        picked = [known[k] for k in pick(len(known), self.grid, id)]
        masks, certainty = self._targets(number, unit, image, picked, whole)
        seen = masks.flatten(1).any(1)
        return TrainingSample(
            id=id,
            key=image.key,
            image=scale_image(photo, self.grid.side),
            masks=masks[seen],
            certainty=certainty[seen] if certainty is not None and self.method.certain_loss else None,
            sampling=certainty[seen] if certainty is not None and self.method.certain_sampling else None,
            valid=valid_cells(whole, self.grid.stride),
            task=UNSPECIFIED,
            skipped=len(image.masks) - len(known) + int((~seen).sum()),
        )

    def _read_unit(self, number: int) -> _Unit:
        for layer in self.layer_ids:
            _require_whole(self.shards, layer, number)
        images = [image for image in self.shards.images(number) if image.masks]
        rows = () if self.layer is None else self.shards.uncertainty(number, self.layer)
        return _Unit(self.shards.unit(number).images, images, rows)

    def _is_known(self, unit: _Unit, image: LabelledImage, mask: int) -> bool:
        """Whether a mask can be used: a map that is missing means that its doubt is unknown, not that there is none."""
        return self.layer is None or unit.uncertainty[image.index][mask].u_valid

    def _targets(
        self, number: int, unit: _Unit, image: LabelledImage, picked: list[int], whole: Frame
    ) -> tuple[Tensor, Tensor | None]:
        """Return masks, bool (K, G, G), and the certainty c = 1 - u, float32 (K, G, G), or None without a layer."""
        side, stride = self.grid.side, self.grid.stride
        frames = [image.frame(k, side) for k in picked]
        refined = self.method.pseudo_labels == "refined"
        maps = [] if self.layer is None else self._maps(number, unit, image, picked, refined)
        labels = [m.refined for m in maps] if refined else self.shards.read_logits(number, image, picked)
        logits = [
            logits_on_grid(torch.from_numpy(label), frame, whole, stride)
            for label, frame in zip(labels, frames, strict=True)
            if label is not None
        ]
        masks = _stack(logits, side // stride) > 0
        if not maps:
            return masks, None
        doubt = [
            map_on_grid(torch.from_numpy(m.u), frame, whole, stride) for m, frame in zip(maps, frames, strict=True)
        ]
        return masks, 1 - _stack(doubt, side // stride)

    def _maps(
        self, number: int, unit: _Unit, image: LabelledImage, picked: list[int], refined: bool
    ) -> list[Uncertainty]:
        assert self.layer is not None, "only a method that reads a layer gets here"
        rows = [unit.uncertainty[image.index][k] for k in picked]
        maps = [m for m in self.shards.read_uncertainty(number, rows, self.layer, refined) if m is not None]
        if len(maps) < len(rows) or (refined and any(m.refined is None for m in maps)):
            raise ShardError(f"{self.shards.storage.url}: layer {self.layer} has no refined masks; it has no refiner")
        return maps


def _require_whole(shards: ShardSet, layer: str, number: int) -> None:
    """Raise ``ShardError`` if a unit's data are missing or cut short: readers of tars do not notice that themselves."""
    _, record = shards.manifest(number, layer)
    name = tar_path(layer, number)
    try:
        size = shards.storage.size(name)
    except FileNotFoundError:
        size = 0
    if size != record.data_bytes:
        raise ShardError(
            f"{shards.storage.path(name)}: {size} bytes, expected {record.data_bytes}; not trained on: run "
            "`labelgen verify`, which says how to mend it"
        )


def _read_photo(planned: PlannedImage) -> RgbImage:
    name = photo_name(planned)
    data = read_bytes(planned)
    if digest(data) != planned.digest:
        raise ImageError(f"{name}: changed since it was labelled; restore it, or label the photos anew")
    return decode_image(data, name)


def _stack(maps: Iterable[Tensor], side: int) -> Tensor:
    stacked = list(maps)
    return torch.stack(stacked) if stacked else torch.zeros(0, side, side)
