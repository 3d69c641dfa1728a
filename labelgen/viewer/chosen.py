"""Which photos of a set the page lists, in which order, and how its masks are spread over the histograms."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sum_factory.labelgen.viewer.catalog import Catalog, UnitColumns
from sum_factory.labelgen.viewer.conditions import SCALES, Conditions, Histogram, Means, add_unit, met, per_image
from sum_factory.shared.errors import SettingsError

KEPT = 8
"""Answers that are kept: the page asks for photos of the same list again and again."""
Column = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Chosen:
    """The P photos that meet conditions: unit and image, int64 (P,); ``masks`` that meet them, -1 if not read yet."""

    units: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    masks: npt.NDArray[np.int64]
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.units)

    def place(self, number: int, image: int) -> int:
        """Return where in the list a photo is, or -1."""
        found = np.flatnonzero((self.units == number) & (self.images == image))
        return int(found[0]) if len(found) else -1


def _orders() -> dict[str, Callable[[Column, Column], Column]]:
    """Return what photos are sorted by, least first, of their masks and the sum of their mean u; by name."""

    def doubt(masks: Column, doubt: Column) -> Column:
        return np.divide(doubt, masks, out=np.zeros_like(doubt), where=masks > 0)

    return {
        "set": lambda masks, sums: np.zeros_like(masks),
        "doubt": lambda masks, sums: -doubt(masks, sums),
        "certain": lambda masks, sums: np.where(masks > 0, doubt(masks, sums), np.inf),
        "most": lambda masks, sums: -masks,
        "fewest": lambda masks, sums: masks,
    }


ORDERS = _orders()


class Chooser:
    """Chooses from a catalog, and keeps the last few answers until more is known."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._kept: OrderedDict[tuple[Conditions, str], tuple[int, Chosen]] = OrderedDict()
        self._lock = threading.Lock()

    def choose(self, conditions: Conditions, order: str) -> Chosen:
        """Return the photos that meet conditions. Raises ``SettingsError`` if there is no such order."""
        if order not in ORDERS:
            raise SettingsError(f"order: {order!r}; there are {', '.join(ORDERS)}")
        self.catalog.want(conditions.layer)
        key, revision = (conditions, order), self.catalog.revision
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None and kept[0] == revision:
            return kept[1]
        chosen = _choose(self.catalog, conditions, order)
        with self._lock:
            self._kept[key] = revision, chosen
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return chosen


@dataclass
class _Totals:
    photos: int = 0
    masks: int = 0
    masks_shown: int = 0
    photos_of_kinds: dict[str, int] | None = None


def _choose(catalog: Catalog, conditions: Conditions, order: str) -> Chosen:
    histograms = {name: Histogram.empty(scale) for name, scale in SCALES.items()}
    parts, totals, kinds = [], _Totals(), dict[str, int]()
    for number in list(catalog.committed):
        unit = catalog.units.get(number)
        if unit is None:
            if conditions.is_empty:
                parts.append(_unread(catalog, number))
            continue
        means = catalog.known_means(number, conditions.layer)
        add_unit(histograms, unit, means, conditions)
        for kind in unit.kinds:
            kinds[kind] = kinds.get(kind, 0) + 1
        part = _of_unit(unit, means, conditions)
        parts.append(part)
        totals.photos += len(unit.keys)
        totals.masks += int(unit.first[-1])
        totals.masks_shown += int(part[2].sum())
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.zeros(0)] * 4
    units, images, masks, sums = columns
    sorting = np.argsort(ORDERS[order](np.maximum(masks, 0).astype(float), sums), kind="stable")
    facts = {
        "units_read": len(catalog.units),
        "photos_read": totals.photos,
        "masks_read": totals.masks,
        "masks": totals.masks_shown,
        "kinds": kinds,
        "histograms": {
            name: {"all": each.all.tolist(), "shown": each.shown.tolist()} for name, each in histograms.items()
        },
    }
    units, images, masks = (column[sorting].astype(np.int64) for column in (units, images, masks))
    return Chosen(units, images, masks, facts)


def _of_unit(unit: UnitColumns, means: Means, conditions: Conditions) -> tuple[npt.NDArray[Any], ...]:
    meets = met(unit, means, conditions)
    masks = per_image(unit, meets.masks)
    sums = np.zeros(len(masks)) if means is None else per_image(unit, np.where(meets.masks, np.nan_to_num(means), 0))
    images = np.flatnonzero(meets.images)
    return np.full(len(images), unit.number), images, masks[images], sums[images]


def _unread(catalog: Catalog, number: int) -> tuple[npt.NDArray[Any], ...]:
    count = catalog.shards.size_of(number)
    return np.full(count, number), np.arange(count), np.full(count, -1.0), np.zeros(count)


def positions(chosen: Chosen, start: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Yield unit, image and masks that meet the conditions, of the photos at some places of the list."""
    part = slice(max(0, start), max(0, start) + count)
    yield from zip(chosen.units[part].tolist(), chosen.images[part].tolist(), chosen.masks[part].tolist(), strict=True)
