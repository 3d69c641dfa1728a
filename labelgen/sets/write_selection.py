"""Make a selection: choose units of shard sets, and rows of these, and write down which (``selection/plan.py``)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sum_factory.shared.errors import ShardError
from sum_factory.shared.progress import track
from sum_factory.shared.shards.dataset import DATASET, Unit
from sum_factory.shared.shards.kinds import kind_of
from sum_factory.shared.shards.selection.plan import (
    ROWS_SCHEMA,
    Base,
    SelectionPlan,
    ViewUnit,
    rows_file,
    rows_path,
    stored_url,
)
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.store.storage import Storage


@dataclass(frozen=True)
class Choice:
    """The rows of the manifest of a unit's masks where ``keep``, bool (R,), is true; ``layers`` have that unit."""

    shards: ShardSet
    number: int
    layers: tuple[str, ...]
    keep: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SelectionSummary:
    """What a selection holds. ``written`` is False if it was there already."""

    units: int
    images: int
    masks: int
    written: bool

    def lines(self) -> str:
        """Return the summary for people."""
        held = f"{self.masks} masks of {self.images} images in {self.units} units"
        return f"wrote a selection: {held}" if self.written else f"this selection is there, nothing to do: {held}"


def selectable(layers: Iterable[str]) -> tuple[str, ...]:
    """Return the layers that a selection can offer: not SAM's outputs, from which maps are made where the data lie."""
    return tuple(layer for layer in layers if not kind_of(layer).is_output)


def committed_layers(shards: ShardSet, layers: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Return which of ``layers`` have each unit, for the units whose masks are committed."""
    held: dict[int, tuple[str, ...]] = dict.fromkeys(shards.committed(MASKS), ())
    for layer in layers:
        for number in shards.committed(layer):
            if number in held:
                held[number] += (layer,)
    return held


def write_selection(
    out: str, choices: Iterable[Choice], layers: Sequence[str], filter: Mapping[str, Any] | None
) -> SelectionSummary:
    """Write the selection of what is chosen, of ``layers``; units of which nothing is chosen are left out.

    The rows are written first and ``dataset.json`` last: without it there is no selection. Raises ``ShardError`` if
    nothing is chosen, if a base is damaged, or if ``out`` holds something else.
    """
    storage = Storage(out)
    plan, files = _plan(storage.url, choices, layers, filter)
    images, masks = sum(unit.images for unit in plan.units), sum(unit.masks for unit in plan.units)
    summary = SelectionSummary(len(plan.units), images, masks, written=True)
    storage.make()
    with storage.locked():  # or another run would write its rows over these
        if _is_there(storage, plan):
            return replace(summary, written=False)
        for number, data in track(files.items(), "writing rows", "unit"):
            storage.write(rows_path(number), data)
        if not storage.create(DATASET, plan.to_json()):  # another run was first: with this very selection, or we refuse
            return replace(summary, written=not _is_there(storage, plan))
    return summary


def _plan(
    out: str, choices: Iterable[Choice], layers: Sequence[str], filter: Mapping[str, Any] | None
) -> tuple[SelectionPlan, dict[int, bytes]]:
    """Return the selection, and the rows file of each unit of which some rows are left out."""
    bases: dict[str, Base] = {}
    units: list[ViewUnit] = []
    files: dict[int, bytes] = {}
    for choice in choices:
        if not choice.keep.any():
            continue
        base, own = choice.shards.origin(choice.number)
        url = stored_url(base.storage.url, out)
        bases.setdefault(url, Base(url, base.dataset.id, {name: base.layer_id(name) for name in layers}))
        rows = _rows_of(choice)
        sha256 = None
        if rows is not None:
            files[len(units)], sha256 = rows_file(rows)
        units.append(_unit(choice, list(bases).index(url), own, rows, sha256))
    if not units:
        raise ShardError(f"{out}: nothing passes the filter, so no selection is written; widen it")
    return SelectionPlan(tuple(bases.values()), tuple(units), filter), files


def _rows_of(choice: Choice) -> pa.Table | None:
    """Return which rows of the shard set that holds the data are chosen, or None for all."""
    rows = choice.shards.chosen(choice.number)
    if rows is None:
        if choice.keep.all():
            return None
        rows = choice.shards.manifest(choice.number)[0].select(ROWS_SCHEMA.names)
    return rows.filter(pa.array(choice.keep))


def _unit(choice: Choice, described: int, own: int, rows: pa.Table | None, sha256: str | None) -> ViewUnit:
    shards, number = choice.shards, choice.number
    images = shards.origin(number)[0].unit(own).images
    table, _ = shards.manifest(number)
    mask = table["mask"] if rows is None else rows["mask"]
    if rows is not None:
        images = tuple(images[index] for index in np.unique(rows["image_index"].to_numpy()))
    data = {}
    for layer in choice.layers:
        _, record = shards.manifest(number, layer)
        if kind_of(layer).of_masks:
            shards.require_own_masks(number, layer, record)
        data[layer] = record.data_sha256
    unit_id = Unit(number, images).id
    return ViewUnit(described, own, unit_id, len(images), len(mask) - mask.null_count, sha256, data)


def _is_there(storage: Storage, plan: SelectionPlan) -> bool:
    """Return whether the selection is there already. Raises ``ShardError`` if something else is."""
    try:
        data = storage.read(DATASET)
    except FileNotFoundError:
        return False
    there = SelectionPlan.from_json(data, storage.path(DATASET))
    if there is None:
        raise ShardError(f"{storage.url}: is a shard set; give another --out")
    if there.id != plan.id:
        raise ShardError(
            f"{storage.url}: is another selection, made with filter {there.filter}, or of other data; "
            "delete it, or give another --out"
        )
    return True
