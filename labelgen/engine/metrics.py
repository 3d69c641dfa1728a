"""Figures of a run for Prometheus, through Ray's own exporter: the port and the scraping are the cluster's.

They are there where Ray's dashboard agent is (`pip install 'ray[default]'`), as ``ray_labelgen_units`` and so on.
"""

from __future__ import annotations

from sum_factory.labelgen.job import Event, GivenUp, Lost, UnitReport, Units


class Metrics:
    """Counts what happens, in the driver: every report passes there."""

    def __init__(self, to_make: Units) -> None:
        from ray.util.metrics import Counter, Gauge

        self.to_make = to_make
        self.ended = 0
        self.units = Counter("labelgen_units", "Units that are done.")
        self.images = Counter("labelgen_images", "Images of units that are done, those with errors too.")
        self.masks = Counter("labelgen_masks", "Masks of units that are done.")
        self.errors = Counter("labelgen_image_errors", "Images that could not be labelled.")
        self.lost = Counter("labelgen_workers_lost", "Workers that died while they were working on a unit.")
        self.units_left = Gauge("labelgen_units_left", "Units that are neither done nor given up.")
        self.units_left.set(len(to_make.planned))

    def take(self, event: Event) -> None:
        """Count what happened."""
        match event:
            case UnitReport():
                counted = ((self.units, 1), (self.images, event.images), (self.masks, event.masks))
                for counter, number in (*counted, (self.errors, len(event.errors))):
                    if number:  # Ray refuses to add nothing
                        counter.inc(number)
                self._one_less()
            case Lost():
                self.lost.inc()
            case GivenUp():
                self._one_less()

    def _one_less(self) -> None:
        self.ended += 1
        self.units_left.set(len(self.to_make.planned) - self.ended)
