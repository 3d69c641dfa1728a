"""Which photos of a set the page lists, in which order, and how its masks are spread over the histograms."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
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
    """Chooses from a catalog, and keeps what the last few conditions chose: only units that are new are looked at."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._kept: OrderedDict[Conditions, _Answer] = OrderedDict()
        self._lock = threading.Lock()

    def choose(self, conditions: Conditions, order: str) -> Chosen:
        """Return the photos that meet conditions. Raises ``SettingsError`` if there is no such order."""
        if order not in ORDERS:
            raise SettingsError(f"order: {order!r}; there are {', '.join(ORDERS)}")
        self.catalog.want(conditions.layer)
        with self._lock:
            answer = self._kept.get(conditions)
            if answer is None or not answer.is_of(self.catalog):
                answer = _Answer(conditions)
            self._kept[conditions] = answer
            self._kept.move_to_end(conditions)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            answer.add_new(self.catalog)
            return answer.in_order(self.catalog, order)


class _Answer:
    """What conditions choose of the units that have been read: it grows with them."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self._of_units: dict[int, tuple[npt.NDArray[Any], ...]] = {}
        self._histograms = {name: Histogram.empty(scale) for name, scale in SCALES.items()}
        self._kinds: Counter[str] = Counter()
        self._photos = self._masks = self._masks_met = 0
        self._last: dict[str, tuple[int, int, Chosen]] = {}

    def is_of(self, catalog: Catalog) -> bool:
        """Whether all units that were counted are still there."""
        return self._of_units.keys() <= catalog.units.keys()

    def add_new(self, catalog: Catalog) -> None:
        """Count the units that have been read since."""
        for number in catalog.committed:
            known = None if number in self._of_units else catalog.known(number, self.conditions.layer)
            if known is None:
                continue
            unit, means = known
            add_unit(self._histograms, unit, means, self.conditions)
            part = self._of_units[number] = _of_unit(unit, means, self.conditions)
            self._kinds.update(unit.kinds)
            self._photos += len(unit.keys)
            self._masks += int(unit.first[-1])
            self._masks_met += int(part[2].sum())

    def in_order(self, catalog: Catalog, order: str) -> Chosen:
        """Return the photos in an order; without conditions, those of units that have not been read, too."""
        state = len(self._of_units), len(catalog.committed)
        if order in self._last and self._last[order][:2] == state:
            return self._last[order][2]
        parts = []
        for number in catalog.committed:
            if number in self._of_units:
                parts.append(self._of_units[number])
            elif self.conditions.is_empty:
                parts.append(_unread(catalog, number))
        units, images, masks, sums = map(np.concatenate, zip(*parts, strict=True)) if parts else [np.zeros(0)] * 4
        if order != "set":
            sorting = np.argsort(ORDERS[order](np.maximum(masks, 0).astype(float), sums), kind="stable")
            units, images, masks = units[sorting], images[sorting], masks[sorting]
        units, images, masks = (column.astype(np.int64) for column in (units, images, masks))
        chosen = Chosen(units, images, masks, self._facts())
        self._last[order] = (*state, chosen)
        return chosen

    def _facts(self) -> dict[str, Any]:
        histograms = self._histograms.items()
        return {
            "units_read": len(self._of_units),
            "photos_read": self._photos,
            "masks_read": self._masks,
            "masks": self._masks_met,
            "kinds": dict(self._kinds),
            "histograms": {name: {"all": each.all.tolist(), "shown": each.shown.tolist()} for name, each in histograms},
        }


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
