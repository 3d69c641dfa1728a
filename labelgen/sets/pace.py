"""How fast a shard set grows, told from the times of its manifests alone: anywhere, by the store's own clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sum_factory.shared.shards.shard_set import ShardSet

WINDOW = timedelta(hours=1)
"""The pace is that of the units which were committed so long before the last one."""


@dataclass(frozen=True)
class Pace:
    """Units an hour, when the last one was committed, and how long the rest will take at this pace."""

    units_per_hour: float
    last: datetime
    left: timedelta

    def line(self) -> str:
        """Return it for people."""
        hours = self.left / timedelta(hours=1)
        left = f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min"
        last = f"{self.last:%Y-%m-%d %H:%M:%S} UTC"
        return f"{self.units_per_hour:.3g} units/h, the last one at {last}; {left} left at this pace"


def pace_of(shards: ShardSet, layer: str) -> Pace | None:
    """Return the pace of a layer in the making; None if it is whole, or has too few units to tell."""
    times = shards.storage.times(f"manifest/{layer}")
    return pace(times, shards.unit_count)


def pace(times: Mapping[str, datetime], units: int) -> Pace | None:
    """Return the pace at which units were committed at ``times``; ``units`` is how many there will be."""
    if not times or len(times) >= units:
        return None
    last = max(times.values())
    recent = [moment for moment in times.values() if last - moment <= WINDOW]
    span = last - min(recent)
    if len(recent) < 2 or not span:
        return None
    each = span / (len(recent) - 1)
    return Pace(timedelta(hours=1) / each, last, each * (units - len(times)))
