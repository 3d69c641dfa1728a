"""The prompt encoder and the mask decoder are trained, on a frozen image encoder: less time and memory."""

from __future__ import annotations

from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.run.settings import NoSettings
from sum_factory.trainer.variants.variant import Variant


def train_decoder(sam: Sam) -> None:
    """Let gradients reach the prompt encoder and the mask decoder, and nothing else."""
    sam.requires_grad_(False)
    sam.prompt_encoder.requires_grad_(True)
    sam.mask_decoder.requires_grad_(True)


def _prepare(sam: Sam, settings: NoSettings) -> None:
    train_decoder(sam)


VARIANT = Variant(
    "decoder", "the prompt encoder and the mask decoder", _prepare, saves_all_of_sam=True, merge=lambda sam: None
)
