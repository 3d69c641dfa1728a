"""Pseudo-labels of a shard set as training samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sum_factory.shared.errors import ShardError
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.placement import Frame
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.shards.dataset import CERTAIN, PHOTOS, uncertainty_layer
from sum_factory.shared.shards.manifest import CROP_BOX
from sum_factory.shared.shards.originals import decode_original, read_original
from sum_factory.shared.shards.photos import read_photo
from sum_factory.shared.shards.reader import LayerReader, UnitRows, are_known
from sum_factory.shared.shards.shard_set import MASKS, UNITS_KEPT, ShardSet
from sum_factory.shared.store.cache import stored_size
from sum_factory.shared.store.canonical_json import content_id
from sum_factory.trainer.data.coded import CodedSample
from sum_factory.trainer.data.grid import valid_cells
from sum_factory.trainer.data.samples import SampleId, SampleSettings, pick, scale_image
from sum_factory.trainer.data.survey import survey
from sum_factory.trainer.methods import Method

UNSPECIFIED = TASKS.index("unspecified")


@dataclass(frozen=True)
class _Unit:
    """A unit's plan and manifests: its images, all masks, and which of them can be used.

    A mask without a map cannot be used: its uncertainty is unknown, which does not mean 0.
    """

    planned: tuple[PhotoFile, ...]
    masks: UnitRows
    usable: npt.NDArray[np.bool_]


class PseudoSet:
    """The images of a shard set that have masks, in the order of the units.

    ``layer`` names the uncertainty layer that ``method`` reads, or is None; ``layer_ids`` are the ids of all layers
    that are read, ``recorded`` is what a run records of them. Photos are read from the layer ``photos`` if there is
    one, else from where they lie now. Opening it checks every committed unit (``trainer/data/survey.py``) and keeps
    little: raises ``ShardError`` if one is damaged, if there is no such layer or it is of another source than the
    method's, if the layer ``photos`` lacks a photo,
    or if the masks are on another grid than the model's. Without the layer ``photos`` it looks for a few photos and
    raises ``InputError`` or ``ImageError`` as ``load`` does.
    """

    def __init__(self, shards: ShardSet, layer: str | None, method: Method, settings: SampleSettings) -> None:
        if method.needs_uncertainty and layer is None:
            raise ShardError(f"{shards.storage.url}: this method reads an uncertainty layer, and none is named")
        if shards.input_side != settings.side:
            raise ShardError(
                f"{shards.storage.url}: its masks were made at an input of {shards.input_side} pixels, and the model "
                f"to be trained takes {settings.side}; label the photos with a SAM of that size"
            )
        self.shards, self.method, self.settings = shards, method, settings
        if method.needs_uncertainty and layer is not None:
            _require_source(shards, layer, method)
        self.layer = layer if method.needs_uncertainty else None
        layers = [MASKS] if self.layer is None else [MASKS, uncertainty_layer(self.layer)]
        if PHOTOS in shards.dataset.layers:
            layers.append(PHOTOS)
        self.layer_ids = {name: shards.layer_id(name) for name in layers}
        self.recorded = shards.identity(layers)
        surveyed = survey(shards, layers)
        self.identity = content_id([self.layer_ids, [unit.content for unit in surveyed]])
        """Hash of all that decides which samples there are, in which units, and what is in them."""
        self._units = [unit for unit in surveyed if len(unit.images)]
        self._first = np.cumsum([0, *self.groups])
        if not len(self):
            raise ShardError(f"{shards.storage.url}: no masks to train from; finish `labelgen run` first")
        self._unit: Callable[[int], _Unit] = lru_cache(UNITS_KEPT)(self._read_unit)
        if PHOTOS not in self.layer_ids:
            self._find_originals()

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def mask_count(self) -> int:
        """How many masks there are, of all images."""
        return sum(unit.records[MASKS].masks for unit in self._units)

    @property
    def groups(self) -> tuple[int, ...]:
        """How many images with masks each committed unit has, without units that have none: each is a group."""
        return tuple(len(unit.images) for unit in self._units)

    @property
    def room(self) -> int | None:
        """How many bytes of data the cache can hold; None without a cache, where data are read from where they lie."""
        return None if self.shards.cache is None else self.shards.cache.limit_bytes

    def bytes_of(self, group: int) -> int:
        """Return the bytes that copies of a unit's data take in the cache, of all layers that are read.

        ``group`` is an index of ``groups``. It is not the unit's number, since units without masks are no groups.
        """
        records = self._units[group].records.values()
        return sum(stored_size(size) for record in records for size, _ in record.each_file)

    def bring(self, group: int, data: bool) -> None:
        """Read the rows of a unit, which are kept for a while; with ``data``, also bring its data into the cache."""
        for layer in self.layer_ids if data else ():
            self.shards.fetch(self._units[group].number, layer)
        self._unit(group)

    def load(self, index: int, id: SampleId) -> CodedSample:
        """Load the sample ``index`` of all: only the masks that are picked are read and decoded, to codes.

        Raises ``InputError`` or ``ImageError`` if the original photo is read, and gone or changed; ``ShardError`` for
        damaged shards.
        """
        group = int(np.searchsorted(self._first, index, "right")) - 1
        unit, number = self._unit(group), self._units[group].number
        of_unit = int(self._units[group].images[index - self._first[group]])
        planned = unit.planned[of_unit]
        if PHOTOS in self.layer_ids:
            image = torch.from_numpy(read_photo(self.shards, number, of_unit))
        else:
            image = self._read_original(planned, unit.masks.digests[planned.key])
        first, end = unit.masks.first[of_unit : of_unit + 2].tolist()
        whole = Frame.whole(self.settings.side, int(unit.masks["height"][first]), int(unit.masks["width"][first]))
        usable = first + np.flatnonzero(unit.usable[first:end])
        picked = usable[pick(len(usable), self.settings, id)]
        if self.method.pseudo_labels == "refined":
            labels = self._maps.read(number, picked, "refined")
        else:
            labels = self.shards.reader(MASKS).read(number, picked, "label")
        return CodedSample(
            id=id,
            key=planned.key,
            image=image,
            labels=labels,
            maps=None if self.layer is None else self._maps.read(number, picked, "u"),
            crops=np.stack([unit.masks[name][picked] for name in CROP_BOX], 1).astype(np.int64),
            whole=whole,
            stride=self.settings.stride,
            needs_certainty=self.method.loss_by_certainty or self.method.reads_certainty,
            sampling_by_certainty=self.method.sampling_by_certainty,
            valid=valid_cells(whole, self.settings.stride),
            task=UNSPECIFIED,
            skipped=end - first - len(usable),
            with_logits=self.method.reads_logits,
            target=self.settings.target,
        )

    def _read_unit(self, group: int) -> _Unit:
        surveyed = self._units[group]
        rows = {layer: self.shards.reader(layer).rows(surveyed.number) for layer in self.layer_ids}
        for layer, of_layer in rows.items():
            surveyed.require_unchanged(of_layer.record, layer, self.shards)
        masks = rows[MASKS]
        usable = np.ones(len(masks), np.bool_)
        if self.layer is not None:
            usable = are_known(rows[uncertainty_layer(self.layer)], np.arange(len(masks)))
        return _Unit(self.shards.unit(surveyed.number).images, masks, usable)

    def _find_originals(self) -> None:
        """Read a photo of the first, the middle and the last unit, so that a run whose photos have moved fails at
        once."""
        for group in sorted({0, len(self._units) // 2, len(self._units) - 1}):
            surveyed = self._units[group]
            photo = self.shards.unit(surveyed.number).images[surveyed.images[0]]
            read_original(self.shards, photo, self.shards.digests(surveyed.number)[photo.key])

    def _read_original(self, planned: PhotoFile, digest: str | None) -> Tensor:
        """Read the photo that was labelled, scaled for SAM: uint8 (3, h, w)."""
        return scale_image(decode_original(self.shards, planned, digest), self.settings.side)

    @property
    def _maps(self) -> LayerReader:
        assert self.layer is not None, "only a method that reads a layer gets here"
        return self.shards.reader(uncertainty_layer(self.layer))


def _require_source(shards: ShardSet, layer: str, method: Method) -> None:
    """Raise ``ShardError`` if a layer says that its maps are of another source than that of ``method``, and are not
    those of certain masks."""
    source = shards.layer(uncertainty_layer(layer)).settings.get("source", method.source)
    if source.removeprefix("label-") not in (method.source, CERTAIN):
        raise ShardError(
            f"{shards.storage.url}: the maps of layer {layer!r} are of the source {source}, and this method is about "
            f"{method.source}; name a layer of that (--set uncertainty=NAME), or give the method for {source}"
        )
