"""Which parameters are trained, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from sum_factory.shared.sam.upstream import Sam


@dataclass(frozen=True)
class Variant:
    """The parts of SAM that are trained; the others stay as they are."""

    image_encoder: bool
    prompt_encoder: bool = True
    mask_decoder: bool = True


VariantName = Literal["full", "decoder"]
"""What recipes take: a name for each of ``VARIANTS``."""
VARIANTS: Mapping[VariantName, Variant] = {
    "full": Variant(image_encoder=True),
    "decoder": Variant(image_encoder=False),
}


def apply_variant(sam: Sam, variant: Variant) -> None:
    """Let gradients reach the parameters that are trained, and no others."""
    parts: list[tuple[nn.Module, bool]] = [
        (sam.image_encoder, variant.image_encoder),
        (sam.prompt_encoder, variant.prompt_encoder),
        (sam.mask_decoder, variant.mask_decoder),
    ]
    for part, trained in parts:
        part.requires_grad_(trained)
