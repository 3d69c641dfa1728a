"""Certainty from the discrepancy of student and teacher, made anew at each step.

u = | sigmoid(student's logits) - sigmoid(teacher's logits) |     for the box of the pseudo-label; c = 1 - u
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from sum_factory.trainer.data.samples import TrainingSample
from sum_factory.trainer.methods.addition import Addition, Lesson, Student, are_pseudo, with_certainty
from sum_factory.trainer.methods.teacher import Teacher, encode_photos, predict_boxes
from sum_factory.trainer.run.distributed import Ranks
from sum_factory.trainer.run.settings import CHECKED


@checked_dataclass(frozen=True, config=CHECKED)
class DiscrepancySettings:
    """Settings of the discrepancy that is made in training."""

    momentum: float = Field(default=0.996, ge=0, lt=1)
    """How much of the teacher's weights stays at each step, at most; the rest comes from the student."""


class Discrepancy(Addition):
    """The teacher, and certainty by how far the student agrees with it."""

    settings: DiscrepancySettings

    def __init__(self, student: Student, settings: DiscrepancySettings) -> None:
        super().__init__(student, settings)
        self.teacher = Teacher(student, settings.momentum)

    def lesson(self, samples: Sequence[TrainingSample], step: int) -> Lesson | None:
        """Return vanilla's lesson, its pseudo-labels weighed by their certainty."""
        plain = super().lesson(samples, step)
        rows = are_pseudo(samples).nonzero()[:, 0]
        if plain is None or not len(rows):
            return plain
        batch = plain.batch
        rows = rows.to(batch.images.device)
        photos, index = torch.unique(batch.targets.image_index[rows], return_inverse=True)
        shown = replace(batch, images=batch.images[photos], tasks=batch.tasks[photos])
        said = []
        with torch.no_grad(), self.student.autocast():
            for model in (self.student, self.teacher):
                embeddings = encode_photos(model.sam, shown.images)
                said.append(predict_boxes(model.sam, model.task_prompt, embeddings, shown, rows, index).sigmoid())
        certainty = 1 - (said[0] - said[1]).abs()
        return Lesson(replace(batch, targets=with_certainty(batch.targets, rows, certainty)))

    def after_step(self, step: int, ranks: Ranks) -> None:
        """Have the teacher follow."""
        self.teacher.follow(step)

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher's weights."""
        return self.teacher.weights

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Set the teacher's weights."""
        self.teacher.load(state_dict)
