"""Activation checkpointing: memory for time."""

from __future__ import annotations

from functools import partial

from torch.utils.checkpoint import checkpoint

from sum_factory.shared.sam.upstream import ImageEncoderViT


def recompute_blocks(encoder: ImageEncoderViT) -> None:
    """Have each block of ``encoder`` keep its input alone, and compute the rest again on the way back, in place.

    Names and values of weights stay, and so do the numbers: a block draws nothing at random.
    """
    for block in encoder.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
