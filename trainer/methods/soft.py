"""SUM with the refined probability as its target: weighing and mending.

With q = sigmoid(r) the refined probability, p the prediction, c the certainty and k = [c > theta], on valid pixels:

    focal = mean of c (alpha q + (1 - alpha) (1 - q)) |q - p|^gamma H(q, p),   H the cross-entropy
    Dice  = 1 - (2 sum(min(q, p) k) + eps) / (sum((q + p) k) + eps)

These are SUM's own losses (``losses.py``), which take targets between 0 and 1 and are least at p = q. Human masks are
compared as the recipe's target says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sum_factory.trainer.data.samples import TrainingSample
from sum_factory.trainer.methods.addition import Addition, Lesson


class SoftTargets(Addition):
    """Has pseudo-labels be compared with refined probabilities."""

    def lesson(self, samples: Sequence[TrainingSample], step: int) -> Lesson | None:
        """Return SUM's lesson with these targets."""
        plain = super().lesson(samples, step)
        if plain is None:
            return None
        wanted = torch.cat([_wanted(sample) for sample in samples])
        return Lesson(replace(plain.batch, targets=replace(plain.batch.targets, coverage=wanted)))


def _wanted(sample: TrainingSample) -> Tensor:
    """Return what the masks of a sample are compared with, float32 (K, G, G)."""
    if sample.logits is not None:
        return sample.logits.sigmoid()
    return sample.masks.float() if sample.coverage is None else sample.coverage
