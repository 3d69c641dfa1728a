"""The figures for Prometheus are what the events of a run add up to."""

from __future__ import annotations

from collections import Counter

import pytest

from sum_factory.labelgen.engine.metrics import Metrics
from sum_factory.labelgen.job import Begun, GivenUp, ImageDone, Lost, PlannedUnits, UnitReport

totals: Counter[str] = Counter()


class Recorder:
    """Takes the place of Ray's counters and gauges, and as they do refuses to add nothing."""

    def __init__(self, name: str, description: str) -> None:
        assert description.endswith(".")
        self.name = name
        totals[name] = 0

    def inc(self, value: float = 1.0) -> None:
        if value <= 0:
            raise ValueError(value)
        totals[self.name] += value  # type: ignore[assignment]

    def set(self, value: float) -> None:
        totals[self.name] = value  # type: ignore[assignment]


def test_events_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.util.metrics.Counter", Recorder)
    monkeypatch.setattr("ray.util.metrics.Gauge", Recorder)
    metrics = Metrics(PlannedUnits(range(5), lambda number: 4))
    for event in (
        Begun(0, 1, "here"),
        ImageDone(7),
        UnitReport(0, 4, 20, ("a: bad", "b: bad")),
        Lost(1, 1, "here", "killed"),
        UnitReport(1, 4, 0, ()),
        GivenUp(2, "it kills"),
    ):
        metrics.take(event)
    assert totals == {
        "labelgen_units": 2,
        "labelgen_images": 8,
        "labelgen_masks": 20,
        "labelgen_image_errors": 2,
        "labelgen_workers_lost": 1,
        "labelgen_units_left": 2,
    }
