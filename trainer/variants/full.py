"""All of SAM is trained, as in the paper."""

from __future__ import annotations

from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.run.settings import NoSettings
from sum_factory.trainer.variants.variant import Variant


def _prepare(sam: Sam, settings: NoSettings) -> None:
    sam.requires_grad_(True)


VARIANT = Variant("full", "all of SAM", _prepare, saves_all_of_sam=True, merge=lambda sam: None)
