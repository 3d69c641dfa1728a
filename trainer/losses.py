"""Losses on masks that are only partly to be trusted (SUM, Sec. 3.2.1, App. B.1).

All take logits and targets of P masks on one grid, (P, H, W), or in N points, (P, N), with ``valid`` True where the
photo is: the padding of SAM's square enters no sum and no mean. ``certainty`` is c = 1 - u in [0, 1], or None for masks
that count as certain everywhere, as c = 1 does. With c = 1 everywhere the uncertainty-aware losses are the plain ones.
All return one value per mask, (P,).

Targets y are bool, or float: the share of a cell that the mask covers. If y is a share, the published losses are not
least at p = y: Dice is at p = 0 or 1, and focal below y, since its alpha weighs the background three times as much. So
both are written such that they are the published ones if y is 0 or 1, and least at p = y whatever it is:

    focal   w(y) |y - p|^gamma CE(p, y),  w(y) = alpha y + (1 - alpha) (1 - y)    (Li et al., Generalized Focal Loss)
    Dice    min(p, y) in place of p y                                             (Wang et al., Dice Semimetric Losses)

CE is least at p = y, and the factor |y - p|^gamma is 0 there and grows to both sides. 2 sum min(p, y) is at most
sum (p + y), and is that if p = y alone.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.masks import ious
from sum_factory.trainer.fused_loss import FusedMaskLoss


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class LossSettings:
    """Weights and constants of the mask loss; the defaults are the paper's."""

    focal_weight: float = Field(default=20.0, ge=0)
    """Factor of the focal loss in the sum of losses."""
    dice_weight: float = Field(default=1.0, ge=0)
    """Factor of the Dice loss in the sum of losses."""
    iou_weight: float = Field(default=1.0, ge=0)
    """Factor of the squared error of the predicted IoU in the sum of losses."""
    alpha: float = Field(default=0.25, ge=0, le=1)
    """Focal loss: weight of the cells of the mask. Those outside weigh 1 - alpha."""
    gamma: float = Field(default=2.0, ge=0)
    """Focal loss: the larger, the less do cells count that are nearly right. 0 is weighted cross-entropy."""
    certainty_exponent: float = Field(default=1.0, ge=0)
    """Focal loss: cells of pseudo-labels weigh c to this power. Above 1, doubt counts for more; 0 weighs all alike."""
    theta: float = Field(default=0.6, ge=0, lt=1)
    """Dice loss: cells of pseudo-labels whose certainty is not above this are left out. Human masks have certainty
    1."""
    epsilon: float = Field(default=1.0, gt=0)
    """Dice loss: what is added to numerator and denominator, so that empty masks divide nothing by nothing."""
    temperature: float = Field(default=1.0, gt=0)
    """The logits are divided by this before the focal and the Dice loss. Give what the model was trained with: 1 for
    SAM, 3 for ``vit_micro``. With 1, ``vit_micro`` would spend its first hundred steps on becoming less sure."""

    def identity(self) -> dict[str, float]:
        """Return what a run's identity says of its losses: nothing of an exponent of 1, that of earlier versions."""
        settings = asdict(self)
        if self.certainty_exponent == 1:
            del settings["certainty_exponent"]
        return settings


def focal_loss(
    logits: Tensor, targets: Tensor, valid: Tensor, certainty: Tensor | None, settings: LossSettings
) -> Tensor:
    """UA-focal: the mean over *all* valid cells of c * focal(p, y), or of a power of c; not divided by the sum of c.

    Plainly: ``mask_loss`` computes it fused.
    """
    wanted = targets.to(logits.dtype)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    miss = (wanted - logits.sigmoid()).abs()
    balance = wanted * settings.alpha + (1 - wanted) * (1 - settings.alpha)
    per_cell = balance * miss**settings.gamma * cross_entropy
    if certainty is not None:
        per_cell = per_cell * certainty**settings.certainty_exponent
    cells = valid.flatten(1).sum(1).clamp(min=1)
    return (per_cell * valid).flatten(1).sum(1) / cells


def dice_loss(
    logits: Tensor, targets: Tensor, valid: Tensor, certainty: Tensor | None, settings: LossSettings
) -> Tensor:
    """UA-Dice: 1 - (2 sum(min(y, p) k) + eps) / (sum((y + p) k) + eps), with k = [c > theta] on valid cells.

    If nothing is kept the loss is 0. Plainly: ``mask_loss`` computes it fused.
    """
    kept = valid if certainty is None else valid & (certainty > settings.theta)
    k = kept.to(logits.dtype)
    probability = logits.sigmoid() * k
    wanted = targets.to(logits.dtype) * k
    overlap = torch.minimum(probability, wanted).flatten(1).sum(1)
    total = (probability + wanted).flatten(1).sum(1)
    return 1 - (2 * overlap + settings.epsilon) / (total + settings.epsilon)


def mask_loss(
    logits: Tensor, targets: Tensor, valid: Tensor, certainty: Tensor | None, settings: LossSettings
) -> Tensor:
    """The weighted sum of focal and Dice, 20 : 1 by default, of logits / temperature."""
    loss: Tensor = FusedMaskLoss.apply(logits, targets, valid, certainty, settings)
    return loss


def true_iou(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """IoU of [logits > 0] with the target, bool, on valid cells, float32; empty with empty is 1. No gradient."""
    return ious((logits > 0) & valid, targets & valid)


@torch.no_grad()
def kept_fraction(valid: Tensor, certainty: Tensor | None, settings: LossSettings) -> Tensor:
    """The share of valid cells that the Dice loss keeps, (P,)."""
    if certainty is None:
        return torch.ones(len(valid), dtype=torch.float32, device=valid.device)
    kept = (valid & (certainty > settings.theta)).flatten(1).sum(1)
    return kept / valid.flatten(1).sum(1).clamp(min=1)
