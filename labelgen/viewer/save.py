"""What is chosen on the page, saved as a selection: the file of ``labelgen select``, which training reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from sum_factory.labelgen.sets.write_selection import (
    Choice,
    SelectionSummary,
    committed_layers,
    selectable,
    write_selection,
)
from sum_factory.labelgen.viewer.catalog import Catalog, UnitColumns
from sum_factory.labelgen.viewer.conditions import Conditions, images_met, met
from sum_factory.shared.errors import SettingsError, ShardError
from sum_factory.shared.shards.dataset import MASKS, uncertainty_layer
from sum_factory.shared.shards.reader import WHICH
from sum_factory.shared.shards.shard_set import ShardSet


class Wanted(BaseModel):
    """What is to be saved, at ``out``: what meets ``conditions``, and has not been rejected.

    ``picked`` and ``rejected`` are photos, as unit and image; if any are picked, these alone are taken.
    ``rejected_masks`` are masks, as unit, image and mask.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
    conditions: Conditions = Conditions()
    picked: tuple[tuple[int, int], ...] = ()
    rejected: tuple[tuple[int, int], ...] = ()
    rejected_masks: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def parse(cls, data: bytes) -> Wanted:
        """Read from JSON. Raises ``SettingsError``."""
        try:
            wanted = cls.model_validate_json(data)
        except ValidationError as error:
            told = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise SettingsError(f"what is to be saved: {told}") from None
        if not wanted.out.strip():
            raise SettingsError("no folder is named: give a path or URL where the selection is to be")
        return wanted

    def described(self) -> dict[str, Any]:
        """Return what is chosen as the selection records it, for people to read."""
        counts = {name: len(getattr(self, name)) for name in ("picked", "rejected", "rejected_masks")}
        return {**self.conditions.described(), **{name: count for name, count in counts.items() if count}}


def save(catalog: Catalog, wanted: Wanted) -> SelectionSummary:
    """Write the selection. All manifests are read again, also those that the page has not got to yet.

    Raises ``ShardError`` if nothing is chosen, a unit is damaged or lacks the maps that are asked, or something else is
    at ``out``.
    """
    shards = catalog.shards
    layers = selectable(shards.dataset.layers)
    return write_selection(wanted.out.strip(), _choices(catalog, layers, wanted), layers, wanted.described())


def _choices(catalog: Catalog, layers: tuple[str, ...], wanted: Wanted) -> Iterator[Choice]:
    shards, conditions = catalog.shards, wanted.conditions
    picked, rejected = _by_unit(wanted.picked), _by_unit(wanted.rejected)
    rejected_masks = _by_unit(wanted.rejected_masks)
    for number, held in committed_layers(shards, layers).items():
        if wanted.picked and number not in picked:
            continue
        unit = catalog.unit(number)
        means = catalog.means(number, conditions.layer)
        if means is None and "mean_u" in conditions.ranges:
            _tell_of_no_maps(shards, number, conditions)
        meets = met(unit, means, conditions)
        images = images_met(unit, conditions) if not conditions.ranges else meets.images
        images &= ~_are_in(rejected.get(number, ()), len(images))
        if wanted.picked:
            images &= _are_in(picked[number], len(images))
        masks = meets.masks & np.repeat(images, np.diff(unit.first))
        for image, mask in rejected_masks.get(number, ()):
            masks[_place(unit, image, mask)] = False
        if conditions.ranges:
            images[:] = False  # an image without masks meets conditions on images alone
        yield Choice(shards, number, held, _rows(shards, number, images, masks))


def _rows(
    shards: ShardSet, number: int, images: npt.NDArray[np.bool_], masks: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return which rows of a manifest are kept, bool (R,): of ``masks``, and of ``images`` that have none."""
    table: pa.Table = shards.manifest(number, MASKS, WHICH)[0]
    has_mask = table["mask"].is_valid().to_numpy()
    keep = images[table["image_index"].to_numpy()]
    keep[has_mask] = masks
    return np.asarray(keep, bool)


def _place(unit: UnitColumns, image: int, mask: int) -> int:
    if not (0 <= image < len(unit.keys) and 0 <= mask < unit.first[image + 1] - unit.first[image]):
        raise SettingsError(f"what is to be saved: unit {unit.number} has no mask {mask} of image {image}")
    return int(unit.first[image]) + mask


def _by_unit(named: tuple[tuple[int, ...], ...]) -> Mapping[int, list[Any]]:
    """Return what is named by unit, image, and maybe mask: by unit, without it."""
    found: dict[int, list[Any]] = {}
    for unit, *rest in named:
        found.setdefault(unit, []).append(rest[0] if len(rest) == 1 else tuple(rest))
    return found


def _are_in(images: Any, count: int) -> npt.NDArray[np.bool_]:
    return np.isin(np.arange(count), np.array(list(images), np.int64))


def _tell_of_no_maps(shards: ShardSet, number: int, conditions: Conditions) -> None:
    assert conditions.layer is not None
    raise ShardError(
        f"{shards.storage.url}: unit {number} has no maps in {uncertainty_layer(conditions.layer)} yet; "
        "finish `labelgen uncertainty` first"
    )
