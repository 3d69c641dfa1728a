"""``labelgen select``: a selection of the masks that pass a filter, which is evaluated once."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sum_factory.labelgen.sets.write_selection import (
    Choice,
    SelectionSummary,
    committed_layers,
    selectable,
    write_selection,
)
from sum_factory.shared.errors import InputError, SettingsError, ShardError
from sum_factory.shared.images import digest
from sum_factory.shared.progress import track
from sum_factory.shared.shards.dataset import REFINEMENT, uncertainty_layer
from sum_factory.shared.shards.manifest import manifest_path
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.shards.selection.plan import ROWS_SCHEMA
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.store.local_files import read_whole
from sum_factory.shared.store.refusals import reason_of

Comparison = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Filter:
    """Which masks a selection has: those that meet all conditions that are not None.

    ``max_mean_u`` asks the uncertainty layer ``layer``; a mask whose map is unknown does not meet it. ``images`` are
    patterns for image keys (``*``, ``?``, ``[...]``), of which one must match; ``image_list`` is a file of keys, one a
    line. An image none of whose masks meets them is left out; one without masks meets conditions on images alone.
    """

    min_stability: float | None = None
    """Least stability score of a mask, from 0 to 1."""
    min_predicted_iou: float | None = None
    """Least IoU that SAM predicts for a mask, from 0 to 1."""
    min_area: int | None = None
    """Least pixels of a mask, in the photo."""
    max_area: int | None = None
    """Most pixels of a mask, in the photo."""
    max_mean_u: float | None = None
    """Largest mean of a mask's map u, from 0 to 1. A mask without a map is left out."""
    layer: str | None = None
    """Name of the layer of maps that ``max_mean_u`` asks, as in ``uncertainty/NAME``."""
    images: tuple[str, ...] = ()
    """Patterns such as ``sa_0001/*``; a photo's key must match one of them."""
    image_list: Path | None = None
    """Text file of keys, one per line: other photos are left out."""

    def __post_init__(self) -> None:
        """Raise ``SettingsError`` if ``layer`` is named without anything that asks it."""
        if self.layer is not None and self.max_mean_u is None:
            raise SettingsError("--layer names the maps that --max-mean-u asks: give --max-mean-u too")

    @property
    def maps(self) -> str | None:
        """The layer of uncertainty maps that is asked, or None."""
        return None if self.max_mean_u is None else uncertainty_layer(self.layer or REFINEMENT)

    def described(self) -> dict[str, Any]:
        """Return the filter as JSON, for people to read; a list of images by the SHA-256 of its file."""
        numbers = {
            "min_stability": self.min_stability,
            "min_predicted_iou": self.min_predicted_iou,
            "min_area": self.min_area,
            "max_area": self.max_area,
            "max_mean_u": self.max_mean_u,
            "layer": self.maps,
            "images": list(self.images) or None,
            "image_list": None if self.image_list is None else digest(_read(self.image_list)),
        }
        return {name: value for name, value in numbers.items() if value is not None}


def select(url: str, out: str, filter: Filter) -> SelectionSummary:
    """Write a selection of the masks at ``url`` that pass a filter, at ``out``.

    Raises ``ShardError`` if none do, if the layer that is asked lacks units, or if a mask has no score that is asked;
    ``InputError`` if keys of the list are not in the shard set.
    """
    shards = open_shards(url)
    layers = selectable(shards.dataset.layers)
    listed = None if filter.image_list is None else _keys_of(filter.image_list)
    return write_selection(out, _choices(shards, layers, filter, listed), layers, filter.described())


def _choices(
    shards: ShardSet, layers: tuple[str, ...], filter: Filter, listed: frozenset[str] | None
) -> Iterator[Choice]:
    missing = set(listed or ())
    if filter.maps is not None:
        shards.layer(filter.maps)
    for number, held in track(committed_layers(shards, layers).items(), "selecting", "unit"):
        table, _ = shards.manifest(number)
        _require_scores(shards, table, filter)
        keep = _meets(table, filter)
        if filter.maps is not None:
            if filter.maps not in held:
                raise ShardError(
                    f"{shards.storage.url}: unit {number} has no maps in {filter.maps} yet; "
                    "finish `labelgen uncertainty` first"
                )
            keep &= _is_certain(shards, number, table, filter.maps, filter.max_mean_u)
        if listed is not None:
            keys = table["image"].to_pylist()
            keep &= np.array([key in listed for key in keys], bool)
            missing.difference_update(keys)
        yield Choice(shards, number, held, keep)
    if missing:
        raise InputError(
            f"{filter.image_list}: {len(missing)} of its keys are not in {shards.storage.url}, "
            f"the first is {min(missing)!r}"
        )


def _require_scores(shards: ShardSet, masks: pa.Table, filter: Filter) -> None:
    """Raise ``ShardError`` if a score is asked for, and there are masks without: they were imported."""
    asked = {"stability": filter.min_stability, "predicted_iou": filter.min_predicted_iou}
    for column in (column for column, bound in asked.items() if bound is not None):
        lacking = np.asarray(masks["mask"].is_valid()) & np.asarray(masks[column].is_null())
        if lacking.any():
            image = masks["image"][int(lacking.argmax())].as_py()
            raise ShardError(
                f"{shards.storage.url}: {int(lacking.sum())} masks of one unit, the first of image {image!r}, have no "
                f"{column}, since they were imported without; leave --min-{column.replace('_', '-')} out"
            )


def _meets(table: pa.Table, filter: Filter) -> npt.NDArray[np.bool_]:
    """Return which rows of a masks' manifest meet the conditions on masks and keys, bool (R,)."""
    keep = np.ones(len(table), bool)
    conditions: tuple[tuple[str, Comparison, float | None], ...] = (
        ("stability", operator.ge, filter.min_stability),
        ("predicted_iou", operator.ge, filter.min_predicted_iou),
        ("area", operator.ge, filter.min_area),
        ("area", operator.le, filter.max_area),
    )
    for column, compare, bound in conditions:
        if bound is not None:
            keep &= _compared(table[column], compare, bound)
    if filter.images:
        keys = table["image"].to_pylist()
        keep &= np.array([any(fnmatchcase(key, pattern) for pattern in filter.images) for key in keys], bool)
    return keep


def _is_certain(
    shards: ShardSet, number: int, masks: pa.Table, layer: str, bound: float | None
) -> npt.NDArray[np.bool_]:
    """Return for which rows of a masks' manifest the map of ``layer`` has a mean of at most ``bound``, bool (R,)."""
    maps, record = shards.manifest(number, layer)
    shards.require_own_masks(number, layer, record)
    if any(not maps[column].equals(masks[column]) for column in ROWS_SCHEMA.names):
        raise ShardError(
            f"{shards.storage.path(manifest_path(layer, number))}: its rows are not those of the masks; "
            "run `labelgen verify`"
        )
    assert bound is not None, "only a filter that asks maps gets here"
    return _compared(maps["mean_u"], operator.le, bound)


def _compared(column: pa.ChunkedArray, compare: Comparison, bound: float) -> npt.NDArray[np.bool_]:
    """Return where a column compares so with ``bound``, as numbers of the column's own precision; null does not."""
    there = column.is_valid().to_numpy()
    values = column.fill_null(0).to_numpy()
    met = compare(values, values.dtype.type(bound))
    return np.asarray(there & met, bool)


def _keys_of(path: Path) -> frozenset[str]:
    """Return the lines of a file that are not empty. Raises ``InputError`` if it cannot be read."""
    return frozenset(line for line in _read(path).decode(errors="replace").splitlines() if line)


def _read(path: Path) -> bytes:
    try:
        return read_whole(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason_of(error)})") from error
