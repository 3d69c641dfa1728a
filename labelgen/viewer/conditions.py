"""What the page asks for: which masks and photos meet its conditions, and how many in each bar of the histograms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from sum_factory.labelgen.viewer.catalog import Counts, Numbers, UnitColumns
from sum_factory.shared.errors import SettingsError

Range = tuple[float | None, float | None]
Means = npt.NDArray[np.float32] | None
ANY: Range = (None, None)
NO_BIN = 255
"""The bar of a mask of which the number is not known: none."""


@dataclass(frozen=True)
class Scale:
    """The bars of a histogram: ``bars`` of equal width from ``lowest`` to ``highest``, of the logarithm if ``is_log``.

    What lies beyond is counted in the first or the last.
    """

    lowest: float
    highest: float
    bars: int
    is_log: bool = False

    def bins(self, values: Numbers) -> npt.NDArray[np.uint8]:
        """Return the bar of each value, uint8; ``NO_BIN`` for NaN."""
        numbers = values.astype(np.float64)
        unknown = np.isnan(numbers)
        if self.is_log:
            numbers = np.log2(np.maximum(numbers, 1))
        place = (np.where(unknown, 0, numbers) - self.lowest) * (self.bars / (self.highest - self.lowest))
        bins = np.clip(np.floor(place + 1e-6), 0, self.bars - 1).astype(np.uint8)
        bins[unknown] = NO_BIN
        return bins


SCALES: Mapping[str, Scale] = {
    "predicted_iou": Scale(0, 1.2, 240),
    "stability": Scale(0, 1, 200),
    "area": Scale(0, 28, 224, is_log=True),
    "mean_u": Scale(0, 0.5, 250),
}
"""The numbers of a mask that are filtered by, with the bars of each. Areas are bytes of binary logarithms."""


class Conditions(BaseModel):
    """What a mask, and its photo, has to meet. Ranges are closed; None is no bound.

    A mask whose number is not known meets no range. ``layer`` names the maps of ``mean_u``. A key has to match one of
    ``patterns``, if there are any, and a photo to be of one of ``kinds``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    predicted_iou: Range = ANY
    stability: Range = ANY
    area: Range = ANY
    mean_u: Range = ANY
    layer: str | None = None
    patterns: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Conditions:
        """Read conditions from JSON. Raises ``SettingsError``."""
        try:
            return cls.model_validate_json(text or "{}")
        except ValidationError as error:
            told = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise SettingsError(f"conditions: {told}") from None

    @property
    def ranges(self) -> dict[str, Range]:
        """The ranges that bound anything."""
        told = {name: getattr(self, name) for name in SCALES}
        return {name: bounds for name, bounds in told.items() if bounds != ANY}

    @property
    def is_empty(self) -> bool:
        """Whether all photos meet them."""
        return not (self.ranges or self.patterns or self.kinds)

    def described(self) -> dict[str, Any]:
        """Return the conditions as a selection records them, for people to read."""
        told: dict[str, Any] = {}
        for name, (least, most) in self.ranges.items():
            told |= {f"min_{name}": least, f"max_{name}": most}
        told["layer"] = self.layer if "mean_u" in self.ranges else None
        told |= {"images": list(self.patterns) or None, "kinds": list(self.kinds) or None}
        return {name: value for name, value in told.items() if value is not None}


@dataclass(frozen=True)
class Met:
    """Which of a unit's M masks, bool (M,), and I images, bool (I,), meet conditions."""

    masks: npt.NDArray[np.bool_]
    images: npt.NDArray[np.bool_]


def met(unit: UnitColumns, means: Means, conditions: Conditions) -> Met:
    """Return what of a unit meets conditions: an image if any of its masks does, or if none is asked for."""
    images = images_met(unit, conditions)
    masks = np.repeat(images, np.diff(unit.first))
    for name, bounds in conditions.ranges.items():
        masks &= within(values_of(unit, means, name), bounds)
    if conditions.ranges:
        images = images & (per_image(unit, masks) > 0)
    return Met(masks, images)


def images_met(unit: UnitColumns, conditions: Conditions) -> npt.NDArray[np.bool_]:
    """Return which images meet the conditions on keys and kinds, bool (I,)."""
    images = np.ones(len(unit.keys), bool)
    if conditions.patterns:
        images &= [any(fnmatchcase(key, pattern) for pattern in conditions.patterns) for key in unit.keys]
    if conditions.kinds:
        images &= [kind in conditions.kinds for kind in unit.kinds]
    return images


def values_of(unit: UnitColumns, means: Means, name: str) -> Numbers:
    """Return a number of each mask, (M,): NaN where it is not known."""
    if name != "mean_u":
        return unit.values[name]
    return np.full(int(unit.first[-1]), np.nan, np.float32) if means is None else means


def within(values: Numbers, bounds: Range) -> npt.NDArray[np.bool_]:
    """Return which values are within closed bounds, compared in the precision of the column; NaN never is."""
    least, most = bounds
    meets = ~np.isnan(values.astype(np.float64)) if values.dtype.kind == "f" else np.ones(len(values), bool)
    if least is not None:
        meets &= values >= _bound(values, least, np.ceil)
    if most is not None:
        meets &= values <= _bound(values, most, np.floor)
    return np.asarray(meets)


def _bound(values: Numbers, bound: float, to_whole: np.ufunc) -> Any:
    return values.dtype.type(bound if values.dtype.kind == "f" else to_whole(bound))


def per_image(unit: UnitColumns, masks: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Return the sums of what masks have, (M,), by image, float64 (I,)."""
    total = np.concatenate([[0.0], np.cumsum(masks, dtype=np.float64)])
    return np.asarray(total[unit.first[1:]] - total[unit.first[:-1]])


@dataclass
class Histogram:
    """Counts of masks by bar: of all, and of those that meet the conditions on all else."""

    all: Counts
    shown: Counts

    @classmethod
    def empty(cls, scale: Scale) -> Histogram:
        """Return a histogram of no masks."""
        return cls(np.zeros(scale.bars, np.int64), np.zeros(scale.bars, np.int64))


def add_unit(histograms: Mapping[str, Histogram], unit: UnitColumns, means: Means, conditions: Conditions) -> None:
    """Count the masks of a unit. A histogram shows what its own range would choose from."""
    meets = {name: within(values_of(unit, means, name), bounds) for name, bounds in conditions.ranges.items()}
    of_images = np.repeat(images_met(unit, conditions), np.diff(unit.first))
    for name, histogram in histograms.items():
        shown = of_images.copy()
        for other, passes in meets.items():
            if other != name:
                shown &= passes
        bins = _bins(unit, means, name, conditions.layer)
        bars = len(histogram.all)
        histogram.all += np.bincount(bins, minlength=NO_BIN + 1)[:bars]
        histogram.shown += np.bincount(bins, weights=shown, minlength=NO_BIN + 1)[:bars].astype(np.int64)


def _bins(unit: UnitColumns, means: Means, name: str, layer: str | None) -> npt.NDArray[np.uint8]:
    key = name if name != "mean_u" else f"mean_u {layer} {means is not None}"
    if key not in unit.bins:
        unit.bins[key] = SCALES[name].bins(values_of(unit, means, name))
    return unit.bins[key]


def scales() -> Iterator[dict[str, Any]]:
    """Yield the scales, as the page draws them."""
    for name, scale in SCALES.items():
        yield {
            "name": name,
            "lowest": scale.lowest,
            "highest": scale.highest,
            "bars": scale.bars,
            "is_log": scale.is_log,
        }
