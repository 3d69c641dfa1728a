"""Certainty from the discrepancy of two models, made anew at each step.

    u = | sigmoid(a) - sigmoid(b) |,   c = 1 - u

a are the student's logits for the box of a pseudo-label. b are those of a teacher, the moving average of the student,
or those of a second decoder on the student's own embedding, which learns the same masks from their boxes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from sum_factory.shared.errors import SettingsError
from sum_factory.shared.sam.refiner import Refiner
from sum_factory.trainer.batch import Batch
from sum_factory.trainer.data.samples import TrainingSample
from sum_factory.trainer.methods.addition import Addition, Lesson, Student, are_pseudo, with_certainty
from sum_factory.trainer.methods.teacher import Teacher, WithTeacher, embed_photos, predict_from_boxes
from sum_factory.trainer.run.settings import CHECKED


@checked_dataclass(frozen=True, config=CHECKED)
class DiscrepancySettings:
    """Settings of the discrepancy that is made in training."""

    models: Literal["teacher-student", "dual-decoder"] = "teacher-student"
    """Which two models are compared: the student and its moving average, or two decoders on the student's embedding."""
    momentum: float = Field(default=0.996, ge=0, lt=1)
    """How much of the teacher's weights stays at each step, at most; the rest comes from the student."""


class Discrepancy(Addition):
    """Certainty by how far the student agrees with another model, which a subclass has."""

    def lesson(self, samples: Sequence[TrainingSample], step: int) -> Lesson | None:
        """Return vanilla's lesson, its pseudo-labels weighed by their certainty."""
        plain = super().lesson(samples, step)
        if plain is None:
            return None
        batch = plain.batch
        indexes = are_pseudo(samples).nonzero()[:, 0].to(batch.images.device)
        if len(indexes):
            batch = replace(batch, targets=with_certainty(batch.targets, indexes, self._certainty(batch, indexes)))
        return Lesson(batch, extra=self._loss_of(batch))

    def _certainty(self, batch: Batch, indexes: Tensor) -> Tensor:
        """Return the certainty of the masks ``indexes``, float32 (R, G, G)."""
        photos, image_index = torch.unique(batch.targets.image_index[indexes], return_inverse=True)
        shown = replace(batch, images=batch.images[photos], tasks=batch.tasks[photos])
        student = self.student
        with torch.no_grad(), student.autocast():
            embeddings = embed_photos(student.sam, shown.images)
            own = predict_from_boxes(student.sam, student.task_prompt, embeddings, shown, indexes, image_index)
            other = self._other(embeddings, shown, indexes, image_index)
        return 1 - (own.sigmoid() - other.sigmoid()).abs()

    def _other(self, embeddings: Tensor, shown: Batch, indexes: Tensor, image_index: Tensor) -> Tensor:
        """Return the logits (R, G, G) of the other model, given the student's embeddings of the photos ``shown``."""
        raise NotImplementedError

    def _loss_of(self, batch: Batch) -> Callable[[Tensor], Tensor] | None:
        """Return the loss that trains the other model, if there is one."""
        return None


class TeacherStudent(Discrepancy, WithTeacher):
    """The other model is the teacher."""

    settings: DiscrepancySettings

    def __init__(self, student: Student, settings: DiscrepancySettings) -> None:
        super().__init__(student, settings)
        self.teacher = Teacher(student, settings.momentum)

    def _other(self, embeddings: Tensor, shown: Batch, indexes: Tensor, image_index: Tensor) -> Tensor:
        teacher = self.teacher
        own = embed_photos(teacher.sam, shown.images)
        return predict_from_boxes(teacher.sam, teacher.task_prompt, own, shown, indexes, image_index)


class DualDecoder(Discrepancy):
    """The other model is a second prompt encoder and mask decoder, which begins as SAM's. Its loss reaches no weight of
    the student. Raises ``SettingsError`` for the target "points"."""

    def __init__(self, student: Student, settings: DiscrepancySettings) -> None:
        super().__init__(student, settings)
        if student.recipe.target == "points":
            raise SettingsError(
                "target: a second decoder learns on the loss grid, not in points; give the target bits or coverage, or "
                "method_settings.models=teacher-student"
            )
        self.companion: Refiner = Refiner.copy_of(student.sam).requires_grad_(True)

    def _other(self, embeddings: Tensor, shown: Batch, indexes: Tensor, image_index: Tensor) -> Tensor:
        return predict_from_boxes(self.companion, self.student.task_prompt, embeddings, shown, indexes, image_index)

    def _loss_of(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        targets, count = batch.targets, len(batch.targets)
        indexes = torch.arange(count, device=batch.images.device)
        weight = 1 / torch.tensor(batch.counts, device=indexes.device)[targets.image_index]

        def loss(embeddings: Tensor) -> Tensor:
            detached, image_index = embeddings.detach(), targets.image_index
            logits = predict_from_boxes(self.companion, self.student.task_prompt, detached, batch, indexes, image_index)
            return (targets.loss(logits, logits, None, self.student.recipe.loss) * weight).sum()

        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the second decoder's weights."""
        return self.companion.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Set the second decoder's weights."""
        self.companion.load_state_dict(state_dict)


def discrepancy(student: Student, settings: DiscrepancySettings) -> Discrepancy:
    """Return the discrepancy of the two models that the settings name."""
    made = {"teacher-student": TeacherStudent, "dual-decoder": DualDecoder}
    return made[settings.models](student, settings)
