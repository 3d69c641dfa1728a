"""Settings that decide what labelling makes. Nothing here needs torch: the command line shows them as options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sum_factory.labelgen.formulas import FORMULAS, LABEL_FORMULAS
from sum_factory.shared.errors import SettingsError
from sum_factory.shared.shards.dataset import EMBEDDINGS, LOGITS

IMPORTED = "imported_from"
"""The setting of masks that were imported: the format. Masks that SAM made here do not have it."""
UNIT_SIZE = 256
"""Images per unit."""
Missing = Literal["wait", "record"]
"""What is done about a photo that is gone and whose neighbours are, too: wait for them, or record that it is gone."""
WAIT_SECONDS = 600.0
"""Seconds that a run waits, in all, for a place of photos that is gone."""
SILENT_SECONDS = 120.0
"""Seconds without a sign of life after which a Ray worker is replaced."""
STUCK_SECONDS = 3600.0
"""Seconds after which a Ray worker is replaced that is heard of, and gets nothing done."""
REFINEMENT_SOURCE = "refinement"
DISCREPANCY_SOURCE = "discrepancy"
SOURCES = (REFINEMENT_SOURCE, DISCREPANCY_SOURCE, *FORMULAS, *LABEL_FORMULAS)
"""Where uncertainty comes from: a refiner, two models that differ, SAM's own confidence in one of two ways, or that of
the stored label; or that there is none."""


@dataclass(frozen=True)
class UncertaintySettings:
    """Where u comes from, one of ``SOURCES``. Raises ``SettingsError`` for settings that contradict each other.

    Masks of fewer than ``min_refine_area`` pixels, where their crop is scaled to 1024 pixels, are not refined: they
    count as certain, u = 0, and as their own refined label, as in the method's published code (100 * 100 there). It is
    the one case of a map that was not computed.
    """

    source: str = REFINEMENT_SOURCE
    """refinement: how far a refiner's mask differs from SAM's. discrepancy: how far two models differ in what they make
    of the label's box. confidence or entropy: how unsure SAM itself is. label-confidence or label-entropy: the same of
    the stored label, whose magnitudes are kept near the boundary alone; no model is run. certain: 0 everywhere, of
    masks that people drew or corrected."""
    min_refine_area: int = 0
    """Masks of fewer pixels, in a photo or crop whose longer side is 1024, are not refined but taken as certain. 0
    refines all."""

    @property
    def needs_refiner(self) -> bool:
        """Whether maps of this source are made with a refiner."""
        return self.source == REFINEMENT_SOURCE

    @property
    def compares_models(self) -> bool:
        """Whether maps of this source are made with a second model."""
        return self.source == DISCREPANCY_SOURCE

    @property
    def reads_labels(self) -> bool:
        """Whether maps of this source are made from the stored labels alone."""
        return self.source in LABEL_FORMULAS

    @property
    def outputs(self) -> tuple[str, ...]:
        """The kept layers that maps of this source can be made from."""
        if self.reads_labels:
            return ()
        return (EMBEDDINGS,) if self.compares_models else (LOGITS, EMBEDDINGS)

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise SettingsError(f"{self.source!r} is no source of uncertainty; there are {', '.join(SOURCES)}")
        if self.min_refine_area and not self.needs_refiner:
            raise SettingsError(f"min_refine_area is about refining; source {self.source} refines nothing")
