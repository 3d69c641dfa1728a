"""SUM with the refined probability as its target: weighing and mending.

With q = sigmoid(r) the refined probability, p the prediction, c the certainty and k = [c > theta], on valid pixels:

    focal = mean of c (alpha q + (1 - alpha) (1 - q)) |q - p|^gamma H(q, p),   H the cross-entropy
    Dice  = 1 - (sum((q + p - |q - p|) k) + eps) / (sum((q + p) k) + eps)

For q of 0 and 1 these are SUM's own losses. For others the focal loss is that of Li et al. (2020) and the Dice loss
that of Wang et al. (2023), which are least at p = q; the usual ones pull p to 0 or 1 wherever q is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from sum_factory.trainer.data.samples import TrainingSample
from sum_factory.trainer.interactive import InteractiveSettings, Round, RoundResult, Targets, judge_round
from sum_factory.trainer.losses import LossSettings
from sum_factory.trainer.methods.addition import Addition, Lesson


class SoftTargets(Addition):
    """Judges rounds against probabilities: refined ones, and 0 and 1 of human masks."""

    def lesson(self, samples: Sequence[TrainingSample], step: int) -> Lesson | None:
        """Return SUM's lesson, judged so."""
        plain = super().lesson(samples, step)
        if plain is None:
            return None
        wanted = torch.cat([_probability(sample) for sample in samples])

        def judge(played: Round, settings: InteractiveSettings) -> tuple[RoundResult, Tensor]:
            return judge_round(played, settings, loss_of=partial(soft_loss, wanted[played.rows]))

        return Lesson(plain.batch, judge)


def _probability(sample: TrainingSample) -> Tensor:
    return sample.masks.float() if sample.logits is None else sample.logits.sigmoid()


def soft_loss(wanted: Tensor, logits: Tensor, targets: Targets, settings: LossSettings) -> Tensor:
    """Return the loss (P,) of logits (P, H, W) against probabilities ``wanted`` (P, H, W): focal and Dice, 20 : 1."""
    logits = logits / settings.temperature
    focal = soft_focal_loss(logits, wanted, targets, settings)
    return settings.focal_weight * focal + settings.dice_weight * soft_dice_loss(logits, wanted, targets, settings)


def soft_focal_loss(logits: Tensor, wanted: Tensor, targets: Targets, settings: LossSettings) -> Tensor:
    """Return the focal loss (P,), the mean over *all* valid pixels."""
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    balance = settings.alpha * wanted + (1 - settings.alpha) * (1 - wanted)
    per_pixel = balance * (wanted - logits.sigmoid()).abs() ** settings.gamma * entropy * targets.certainty
    pixels = targets.valid.flatten(1).sum(1).clamp(min=1)
    return (per_pixel * targets.valid).flatten(1).sum(1) / pixels


def soft_dice_loss(logits: Tensor, wanted: Tensor, targets: Targets, settings: LossSettings) -> Tensor:
    """Return the Dice loss (P,) on valid pixels that are certain enough; 0 if there are none."""
    kept = (targets.valid & (targets.certainty > settings.theta)).to(logits.dtype)
    p, q = logits.sigmoid() * kept, wanted * kept
    total = (p + q).flatten(1).sum(1)
    apart = (p - q).abs().flatten(1).sum(1)
    return 1 - (total - apart + settings.epsilon) / (total + settings.epsilon)
