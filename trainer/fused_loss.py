"""The mask loss with its gradient in closed form: what ``focal_loss`` and ``dice_loss`` add up to, at half the passes.

With p = sigmoid(z), the gradients of a cell, by its logit z, are those of

    focal   w |p - y|^gamma CE      w (gamma |p - y|^(gamma - 1) sign(p - y) p (1 - p) CE + |p - y|^gamma (p - y))
    Dice    1 - (2 O + eps) / (T + eps)      k p (1 - p) ((2 O + eps) / (T + eps)^2 - [p < y] 2 / (T + eps))

w holds a power of the certainty, by default c itself, and the balance of mask and background; O = sum k min(p, y) and
T = sum k (p + y), which for y of 0 or 1 are the published ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

if TYPE_CHECKING:
    from sum_factory.trainer.losses import LossSettings


class FusedMaskLoss(torch.autograd.Function):
    """``apply`` takes logits and targets of P masks, ``valid`` bool and ``certainty`` or None, all (P, ...), and the
    settings; returns the loss of each, (P,)."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, valid: Tensor, certainty: Tensor | None, settings: LossSettings
    ) -> Tensor:
        z = logits.flatten(1) / settings.temperature
        y, v = (each.flatten(1).to(z.dtype) for each in (targets, valid))
        c = None if certainty is None else certainty.flatten(1).to(z.dtype)
        k = v if c is None else (c > settings.theta).to(z.dtype).mul_(v)
        weight = ((2 * settings.alpha - 1) * y).add_(1 - settings.alpha).mul_(v)
        if c is not None:
            weight.mul_(c if settings.certainty_exponent == 1 else c.pow(settings.certainty_exponent))
        p = z.sigmoid()
        cross_entropy = (1 - y).mul_(z).sub_(F.logsigmoid(z))
        off = p - y
        power = off.square() if settings.gamma == 2 else off.abs().pow_(settings.gamma)
        pixels = v.sum(1, keepdim=True).clamp(min=1)
        power.mul_(weight)
        focal = (power * cross_entropy).sum(1, keepdim=True) / pixels
        overlap = torch.minimum(p, y).mul_(k).sum(1, keepdim=True)
        total = (p + y).mul_(k).sum(1, keepdim=True)
        share = (2 * overlap + settings.epsilon) / (total + settings.epsilon)
        if ctx.needs_input_grad[0]:
            slope = p * (1 - p)
            focal_scale = settings.focal_weight / pixels
            steep = _steepness(off, settings.gamma).mul_(weight).mul_(cross_entropy).mul_(slope)
            gradient = power.mul_(off).add_(steep).mul_(focal_scale)
            dice_scale = settings.dice_weight / (total + settings.epsilon)
            below = (p < y).to(z.dtype).mul_(-2 * dice_scale).add_(share * dice_scale)
            gradient.add_(below.mul_(k).mul_(slope)).div_(settings.temperature)
            ctx.save_for_backward(gradient.view_as(logits))
        return (settings.focal_weight * focal + settings.dice_weight * (1 - share))[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_losses: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * of_losses.view(-1, *[1] * (gradient.ndim - 1)), None, None, None, None


def _steepness(off: Tensor, gamma: float) -> Tensor:
    """Return the derivative of |off| ** gamma by ``off``."""
    if gamma == 2:
        return 2 * off
    if gamma == 0:
        return torch.zeros_like(off)
    least = torch.finfo(off.dtype).tiny  # at 0 the slope of p is 0, too, which must not meet infinity
    return off.abs().clamp_(min=least).pow_(gamma - 1).mul_(off.sign()).mul_(gamma)
