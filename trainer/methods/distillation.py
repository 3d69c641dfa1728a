"""Self-distillation: on prompts of unlabelled photos the student is to say what the frozen SAM says.

    loss = weight * mean over outputs and valid pixels of (sigmoid(student) - sigmoid(SAM))^2 + squared error of the IoU

It is the plain answer to forgetting: human masks teach, and SAM itself holds what they do not show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.data.samples import TrainingSample
from sum_factory.trainer.interactive import (
    InteractiveSettings,
    Round,
    RoundResult,
    judge_round,
    to_grid,
)
from sum_factory.trainer.methods.addition import Addition, Lesson, Student, are_pseudo, in_common, put, targets_at
from sum_factory.trainer.methods.teacher import embed_photos
from sum_factory.trainer.run.settings import CHECKED


@checked_dataclass(frozen=True, config=CHECKED)
class DistillationSettings:
    """Settings of self-distillation."""

    weight: float = Field(default=20.0, ge=0)
    """Factor of the squared difference of probabilities, in place of the losses of masks."""


class SelfDistillation(Addition):
    """The frozen SAM, and the loss of pseudo-labelled photos by it. It is read again where a run is resumed."""

    settings: DistillationSettings

    def __init__(self, student: Student, settings: DistillationSettings) -> None:
        super().__init__(student, settings)
        self.frozen = load_sam(student.recipe.sam).sam.to(student.sam.device).requires_grad_(False)

    def lesson(self, samples: Sequence[TrainingSample], step: int) -> Lesson | None:
        """Return vanilla's lesson, its pseudo-labelled masks judged by the frozen SAM."""
        plain = super().lesson(samples, step)
        indexes = are_pseudo(samples).nonzero()[:, 0]
        if plain is None or not len(indexes):
            return plain
        indexes = indexes.to(plain.batch.images.device)
        photos, image_index = torch.unique(plain.batch.targets.image_index[indexes], return_inverse=True)
        with self.student.autocast():
            embeddings = embed_photos(self.frozen, plain.batch.images[photos])
        return Lesson(plain.batch, Likeness(self.frozen, embeddings, indexes, image_index, self.settings.weight))


@dataclass(frozen=True)
class Likeness:
    """Judges rounds of the masks ``indexes``, int64 (R,), by what the frozen SAM makes of the same prompts."""

    frozen: Sam
    embeddings: Tensor
    indexes: Tensor
    image_index: Tensor
    weight: float

    def __call__(self, played: Round, settings: InteractiveSettings) -> tuple[RoundResult, Tensor]:
        """Take the losses: of human masks as ever."""
        result, previous = judge_round(played, settings)
        here, mine = in_common(played.indexes, self.indexes)
        if not len(here):
            return result, previous
        mask_prompts = None if played.mask_prompts is None else played.mask_prompts[here]
        with torch.no_grad():
            logits, iou = played.again(self.frozen, self.embeddings, here, self.image_index[mine], mask_prompts)
        loss = self._loss(played, here, logits, iou, settings)
        likeness = put(result.mask_loss, here, loss.detach())
        return replace(result, loss=put(result.loss, here, loss), mask_loss=likeness), previous

    def _loss(self, played: Round, here: Tensor, logits: Tensor, iou: Tensor, settings: InteractiveSettings) -> Tensor:
        """Return the loss (R,): of the three outputs for a single point, else of the single-mask output."""
        targets = targets_at(played.targets, here)
        own, own_iou = played.logits[here], played.predicted_iou[here]
        several = played.ambiguous[here]
        if own.shape[1] == 1:  # HQ-SAM has one output: it learns what SAM would give a user
            each = torch.arange(len(logits), device=logits.device)
            best = torch.where(several, 1 + iou[:, 1:].argmax(1), 0)
            logits, iou = logits[each, best][:, None], iou[each, best][:, None]
            counts = torch.ones_like(iou)
        else:
            counts = (several[:, None] == (torch.arange(own.shape[1], device=own.device) > 0)).float()
        temperature = settings.loss.temperature
        apart = to_grid(own, targets).div(temperature).sigmoid() - to_grid(logits, targets).div(temperature).sigmoid()
        valid = targets.valid[:, None]
        cells = valid.flatten(1).sum(1).clamp(min=1)[:, None]
        squares = (apart**2 * valid).flatten(2).sum(2) / cells
        sums = self.weight * squares + settings.loss.iou_weight * (own_iou - iou) ** 2
        return (sums * counts).sum(1) / counts.sum(1)
