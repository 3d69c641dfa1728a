"""A teacher: the exponential moving average of the student, which no gradient reaches."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sum_factory.shared.sam.decode import BOX_MAX, BOX_MIN, PromptedModel, Prompts, decode_prompts
from sum_factory.shared.sam.hq import add_vectors, embed
from sum_factory.shared.sam.task_prompt import TaskPrompt
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.batch import Batch
from sum_factory.trainer.interactive import to_grid
from sum_factory.trainer.methods.addition import Addition, Student, targets_at
from sum_factory.trainer.prompts import boxes_of
from sum_factory.trainer.run.distributed import Ranks


class Teacher:
    """A copy of the student. After each step its weights theta' become m theta' + (1 - m) theta, with
    m = min(1 - 1 / (step + 1), ``momentum``): at first it follows closely, as U2PL's and AugSeg's teachers do."""

    def __init__(self, student: Student, momentum: float) -> None:
        self.momentum = momentum
        self.sam = copy.deepcopy(student.sam).requires_grad_(False)
        self.task_prompt = None
        learnt = [(name, own) for name, own in student.sam.named_parameters() if own.requires_grad]
        copies = dict(self.sam.named_parameters())
        self._pairs = [(name, copies[name], own) for name, own in learnt]
        if student.task_prompt is not None:
            self.task_prompt = copy.deepcopy(student.task_prompt).requires_grad_(False)
            self._pairs.append(("task_prompt.weight", self.task_prompt.weight, student.task_prompt.weight))

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Follow the student after its ``step``, counted from 1."""
        share = max(1 / (step + 1), 1 - self.momentum)
        for _, own, other in self._pairs:
            own.lerp_(other, share)

    @property
    def weights(self) -> dict[str, Tensor]:
        """What differs from the student's start: the weights that the student trains."""
        return {name: own.detach() for name, own, _ in self._pairs}

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over such weights."""
        for name, own, _ in self._pairs:
            own.copy_(weights[name])


class WithTeacher(Addition):
    """Has a teacher that follows the student after each step, and whose weights are all of its state."""

    teacher: Teacher

    def after_step(self, step: int, ranks: Ranks) -> None:
        """Have the teacher follow."""
        self.teacher.follow(step)

    def state_dict(self) -> dict[str, Any]:
        """Return the teacher's weights."""
        return self.teacher.weights

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Set the teacher's weights."""
        self.teacher.load(state_dict)


def predict_from_boxes(
    model: PromptedModel,
    task_prompt: TaskPrompt | None,
    embeddings: Tensor,
    batch: Batch,
    indexes: Tensor,
    image_index: Tensor,
) -> Tensor:
    """Return the logits on the loss grid, float32 (R, G, G), that a model gives for the boxes of the masks ``indexes``.

    ``embeddings`` are the model's, ``image_index`` (R,) says which is whose. The prompt is that of a first round.
    """
    targets = targets_at(batch.targets, indexes)
    corners = boxes_of(targets.masks, targets.stride).view(-1, 2, 2)
    token_types = torch.tensor([[BOX_MIN, BOX_MAX]], device=corners.device).expand(len(corners), -1)
    if task_prompt is not None:
        embeddings = add_vectors(embeddings, task_prompt(batch.tasks).detach())
    logits, _ = decode_prompts(model, embeddings, image_index, Prompts(corners, token_types))
    return to_grid(logits[:, :1].float(), targets)[:, 0]


def embed_photos(sam: Sam, images: Tensor) -> Tensor:
    """Return what a model makes of photos (B, 3, S, S), float32, without a graph."""
    with torch.no_grad():
        return embed(sam, images).to(images.dtype)
