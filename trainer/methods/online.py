"""SUM whose maps are made anew in training: the refiner is what the student has become.

At first the maps are those of the shards. After every so many steps a snapshot is taken of a teacher, the moving
average of the student. It refines each label as a refiner does, from its logits, its box and a point in it; since then

    u = | sigmoid(s) - sigmoid(r) |,   r what the snapshot makes of the label's logits s          (Eq. 3)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.errors import SettingsError
from sum_factory.shared.sam.refiner import Refiner
from sum_factory.trainer.data.samples import TrainingSample
from sum_factory.trainer.interactive import Targets, to_grid
from sum_factory.trainer.methods.addition import (
    Addition,
    Lesson,
    Student,
    are_pseudo,
    is_pseudo,
    targets_at,
    with_certainty,
)
from sum_factory.trainer.methods.teacher import Teacher, embed_photos
from sum_factory.trainer.prompts import boxes_of, cells_to_input, sample_cells
from sum_factory.trainer.randomness import RowGenerators
from sum_factory.trainer.run.distributed import Ranks
from sum_factory.trainer.run.settings import CHECKED, MOST_STEPS


@checked_dataclass(frozen=True, config=CHECKED)
class OnlineSettings:
    """Settings of maps that are made anew in training."""

    every: int = Field(default=500, ge=1, le=MOST_STEPS)
    """Steps from one snapshot of the refiner to the next, fewer than those of the run. Until the first the maps are
    those of the shards."""
    momentum: float = Field(default=0.996, ge=0, lt=1)
    """How much of the teacher's weights stays at each step, at most; the rest comes from the student."""


class Online(Addition):
    """The teacher that follows the student, and the snapshot of it that refines."""

    settings: OnlineSettings

    def __init__(self, student: Student, settings: OnlineSettings) -> None:
        super().__init__(student, settings)
        if settings.every >= student.recipe.steps:
            raise SettingsError(
                f"method_settings.every={settings.every} of {student.recipe.steps} steps: no map would be made anew, "
                "and the run would be that of the method sum; give fewer, or more steps"
            )
        self.teacher, self.snapshot = Teacher(student, settings.momentum), Teacher(student, settings.momentum)
        self.taken = 0

    def lesson(self, samples: Sequence[TrainingSample], step: int) -> Lesson | None:
        """Return SUM's lesson; once there is a snapshot, with certainty by its maps."""
        plain = super().lesson(samples, step)
        indexes = are_pseudo(samples).nonzero()[:, 0]
        if plain is None or not self.taken or not len(indexes):
            return plain
        batch = plain.batch
        indexes = indexes.to(batch.images.device)
        certainty = self._certainty(
            [each for each in samples if is_pseudo(each) and len(each)], batch.images, indexes, batch.targets
        )
        return Lesson(replace(batch, targets=with_certainty(batch.targets, indexes, certainty)))

    def after_step(self, step: int, ranks: Ranks) -> None:
        """Have the teacher follow, and take the snapshot when it is due."""
        self.teacher.follow(step)
        if step % self.settings.every == 0:
            self.snapshot.load(self.teacher.weights)
            self.taken = step

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of both, and the step of the snapshot."""
        return {"teacher": self.teacher.weights, "snapshot": self.snapshot.weights, "taken": self.taken}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Set both."""
        self.teacher.load(state_dict["teacher"])
        self.snapshot.load(state_dict["snapshot"])
        self.taken = state_dict["taken"]

    @torch.no_grad()
    def _certainty(self, labelled: Sequence[TrainingSample], images: Tensor, indexes: Tensor, every: Targets) -> Tensor:
        """Return the certainty of pseudo-labels, float32 (R, G, G), which are the targets ``every`` at ``indexes``."""
        targets = targets_at(every, indexes)
        logits = torch.cat([sample.logits for sample in labelled if sample.logits is not None])
        random = RowGenerators([self.student.random("refined", each) for each in labelled], [*map(len, labelled)])
        cells, _ = sample_cells(targets.masks.float(), random)
        points, boxes = cells_to_input(cells, targets.stride), boxes_of(targets.masks, targets.stride)
        low_res = int(self.snapshot.sam.image_encoder.img_size) // 4
        s = F.interpolate(logits[:, None], (low_res, low_res), mode="bilinear", align_corners=False, antialias=True)
        photos, image_index = torch.unique(targets.image_index, return_inverse=True)
        sam = self.snapshot.sam
        with self.student.autocast():
            embeddings = embed_photos(sam, images[photos])
            r = Refiner(sam.prompt_encoder, sam.mask_decoder).refine(embeddings, image_index, points, boxes, s[:, 0])
        u = (s[:, 0].sigmoid() - r.float().sigmoid()).abs()
        return 1 - to_grid(u[:, None], targets)[:, 0].clamp(0, 1)
