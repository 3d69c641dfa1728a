"""What a round of pre-training does with logits: compare them with targets, and click at what is wrong."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sum_factory.pipelines.microworld.corpus import TARGET_SIDE
from sum_factory.shared.masks import ious
from sum_factory.shared.sam.decode import PAD, Prompts
from sum_factory.trainer.prompts import click_errors

STRIDE = 2
"""Input pixels to a pixel of a target."""
ANYWHERE = torch.ones(1, 1, 1)
"""Weight of every pixel when points are drawn: coarse masks are trusted everywhere."""


def correct(prompts: Prompts, logits: Tensor, targets: Tensor, generator: torch.Generator) -> Prompts:
    """Add one click in the error region of ``logits`` (P, T, T), and nothing where there is no error."""
    coords, token_types, found = click_errors(logits > 0, targets, ANYWHERE, STRIDE, generator)
    return prompts.with_tokens(coords[:, None], token_types.masked_fill(~found, PAD)[:, None])


def upsample(logits: Tensor) -> Tensor:
    """Bring low-resolution logits (P, K, h, w) to the target's side."""
    return F.interpolate(logits, (TARGET_SIDE, TARGET_SIDE), mode="bilinear", align_corners=False)


def output_iou(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the IoU (P, K) of ``logits`` (P, K, T, T) > 0 with ``targets`` (P, T, T)."""
    return ious(logits > 0, targets[:, None], empty=0.0)


def best_iou(logits: Tensor, targets: Tensor, image_index: Tensor, empty: Tensor) -> Tensor:
    """Return the best IoU (P, K) of each output (P, K, T, T) > 0 with *any* target (P, T, T) of its image.

    A single point does not say which of several nested masks is meant. The IoU with the one that was drawn would punish
    an output for being another, equally good mask; this is the quality that the filters of automatic mode ask for.
    """
    best = torch.zeros(logits.shape[:2])
    for image in torch.unique(image_index):
        rows = image_index == image
        wanted = targets[rows & ~empty].flatten(1).float()
        if len(wanted) == 0:
            continue
        masks = (logits[rows] > 0).flatten(2).float()
        overlap = masks @ wanted.T
        union = masks.sum(2, keepdim=True) + wanted.sum(1) - overlap
        best[rows] = (overlap / union.clamp(min=1)).amax(2)
    return best


def mask_loss(logits: Tensor, targets: Tensor, balance: float) -> Tensor:
    """Return cross-entropy + Dice, (P,), of ``logits`` (P, T, T); ``balance`` 1 gives both classes half the weight."""
    wanted = targets.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").flatten(1)
    share = wanted.flatten(1).mean(1, keepdim=True).clamp(1e-3, 1 - 1e-3)
    balanced = torch.where(targets.flatten(1), 0.5 / share, 0.5 / (1 - share))
    cross_entropy = (cross_entropy * (balance * balanced + (1 - balance) * 3.0)).mean(1)
    probability = logits.sigmoid().flatten(1)
    overlap = (probability * wanted.flatten(1)).sum(1)
    dice = 1 - (2 * overlap + 1) / (probability.sum(1) + wanted.flatten(1).sum(1) + 1)
    return cross_entropy + dice
