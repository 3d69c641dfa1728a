"""AugSeg (Zhao et al., CVPR 2023), adapted to prompts: the student learns, on strong views, what its teacher says of
weak ones.

Prompts come from the pseudo-labels, and both models get the same. What the teacher makes of them, binarised, is the
student's target; the loss is focal and Dice, 20 : 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.batch import Batch
from sum_factory.trainer.data.samples import TrainingSample
from sum_factory.trainer.interactive import (
    InteractiveSettings,
    Round,
    RoundResult,
    Targets,
    choose,
    judge_round,
    to_grid,
)
from sum_factory.trainer.losses import mask_loss, true_iou
from sum_factory.trainer.methods.addition import (
    Lesson,
    Student,
    are_pseudo,
    in_common,
    is_pseudo,
    put,
    targets_at,
)
from sum_factory.trainer.methods.augmentation import beta, draw, moved, only, pasted, recoloured
from sum_factory.trainer.methods.teacher import Teacher, WithTeacher, embed_photos, predict_from_boxes
from sum_factory.trainer.prompts import boxes_of
from sum_factory.trainer.run.settings import CHECKED


@checked_dataclass(frozen=True, config=CHECKED)
class AugSegSettings:
    """Settings of AugSeg; the defaults are those that are published."""

    momentum: float = Field(default=0.996, ge=0, lt=1)
    """How much of the teacher's weights stays at each step, at most; the rest comes from the student."""
    operations: int = Field(default=3, ge=1, le=16)
    """Changes of the colours of a strong view, at most; of so many, one or more are drawn."""
    least_scale: float = Field(default=0.5, gt=0, le=1)
    """Smallest factor by which both views of a photo are scaled."""
    most_scale: float = Field(default=2.0, ge=1, le=8)
    """Largest factor by which both views of a photo are scaled; what SAM's square has no room for is cut off."""
    multi_consistency: bool = False
    """Whether all three outputs for a single point are compared, each with the teacher's, instead of those two that
    match the pseudo-label best."""


class AugSeg(WithTeacher):
    """The teacher, and two views of each photo with pseudo-labels. With ``box_prompt`` these get their box alone."""

    settings: AugSegSettings

    def __init__(self, student: Student, settings: AugSegSettings, box_prompt: bool = False) -> None:
        super().__init__(student, settings)
        self.box_prompt = box_prompt
        self.teacher = Teacher(student, settings.momentum)

    def lesson(self, samples: Sequence[TrainingSample], step: int) -> Lesson | None:
        """Show the teacher the weak view of each photo with pseudo-labels, and the student the strong one."""
        weak = {number: self._weak(sample) for number, sample in enumerate(samples) if is_pseudo(sample)}
        weak = {number: view for number, view in weak.items() if len(view)}
        views_of_teacher = self.student.collate(list(weak.values()))
        if views_of_teacher is None:
            return super().lesson([sample for sample in samples if not is_pseudo(sample)], step)
        with torch.no_grad(), self.student.autocast():
            embeddings = embed_photos(self.teacher.sam, views_of_teacher.images)
            confidence = self._confidence(embeddings, views_of_teacher)
        strong = {n: self._strong(view, sure) for (n, view), sure in zip(weak.items(), confidence, strict=True)}
        views = {n: view for n, (view, _) in strong.items()}
        shown = [views.get(n, sample) for n, sample in enumerate(samples) if n in views or not is_pseudo(sample)]
        batch = self.student.collate(shown)
        indexes = are_pseudo(shown).nonzero()[:, 0].to(embeddings.device)
        if batch is None or not len(indexes):  # all masks of the photos with pseudo-labels are covered
            return None if batch is None else Lesson(batch)
        counts = torch.tensor([len(view) for view in views.values()])
        image_index = torch.repeat_interleave(torch.arange(len(views)), counts).to(embeddings.device)
        uncovered = ~torch.stack([covered for _, covered in strong.values()])[image_index]
        return Lesson(
            batch,
            Consistency(self.teacher.sam, embeddings, indexes, image_index, uncovered, self.settings.multi_consistency),
        )

    def _weak(self, sample: TrainingSample) -> TrainingSample:
        """Return the view of the teacher: mirrored and scaled."""
        scales = self.settings.least_scale, self.settings.most_scale
        return moved(sample, self.student.random("weak view", sample), scales, self.student.recipe.stride)

    def _confidence(self, embeddings: Tensor, batch: Batch) -> list[float]:
        """Return how sure the teacher is of each photo: 1 - entropy of its masks, in bits, in their boxes."""
        indexes = torch.arange(len(batch.targets), device=embeddings.device)
        image_index = batch.targets.image_index
        logits = predict_from_boxes(self.teacher.sam, None, embeddings, batch, indexes, image_index)
        sure = 1 - entropy(logits / self.student.recipe.loss.temperature)
        boxed = in_boxes(batch.targets) & batch.targets.valid
        of_masks = (sure * boxed).flatten(1).sum(1) / boxed.flatten(1).sum(1).clamp(min=1)
        total = torch.zeros(len(batch.counts), device=embeddings.device).index_add(0, image_index, of_masks)
        return (total / torch.tensor(batch.counts, device=total.device)).tolist()

    def _strong(self, weak: TrainingSample, confidence: float) -> tuple[TrainingSample, Tensor]:
        """Return the view of the student, and bool (G, G) where other photos cover it.

        One that the teacher is not sure of gets a rectangle of a photo with human masks, and every one a rectangle of
        another unlabelled one. Masks that are covered are gone; no point is drawn where a photo is covered.
        """
        generator, most = self.student.random("strong view", weak), self.settings.operations
        stride, cells = self.student.recipe.stride, weak.masks.shape[-1]
        image = recoloured(weak.image, generator, most)
        covered = torch.zeros(cells, cells, dtype=torch.bool, device=image.device)
        human, unlabelled = weak.partners
        pastes = [(human, beta(generator, 2, 8))] if draw(generator) > confidence else []
        pastes.append((recoloured(unlabelled, generator, most), beta(generator, 4, 4)))
        for other, share in pastes:
            image, here = pasted(image, other, share, generator, stride, cells)
            covered |= here
        masks = weak.masks & ~covered
        drawn = torch.zeros_like(covered) if self.box_prompt else ~covered
        coverage = None if weak.coverage is None else weak.coverage * ~covered
        view = replace(weak, image=image, masks=masks, coverage=coverage, sampling=drawn.expand(masks.shape).float())
        return only(view, masks.flatten(1).any(1)), covered


@dataclass
class Consistency:
    """Judges rounds by the teacher: ``indexes`` are the masks that it teaches, int64 (R,), ``image_index`` says which
    of its ``embeddings`` is whose, and ``uncovered``, bool (R, G, G), where the student sees what the teacher sees."""

    teacher: Sam
    embeddings: Tensor
    indexes: Tensor
    image_index: Tensor
    uncovered: Tensor
    multi: bool = False
    mask_prompts: Tensor | None = None

    def __call__(self, played: Round, settings: InteractiveSettings) -> tuple[RoundResult, Tensor]:
        """Take the losses against what the teacher makes of the same prompts; of human masks, as ever."""
        here, mine = in_common(played.indexes, self.indexes)
        if not len(here):
            return judge_round(played, settings)
        with torch.no_grad():
            mask_prompts = None if self.mask_prompts is None else self.mask_prompts[mine]
            logits, predicted_iou = played.again(
                self.teacher, self.embeddings, here, self.image_index[mine], mask_prompts
            )
            targets, ambiguous = targets_at(played.targets, here), played.ambiguous[here]
            said = replace(played, logits=logits, predicted_iou=predicted_iou)
            own = replace(said, ambiguous=ambiguous, targets=targets)
            best, going_on = choose(own, settings)
            each = torch.arange(len(logits), device=logits.device)
            self._go_on_from(mine, logits[each, going_on][:, None])
            masks = self._masks(logits[each, best], targets, mine)
        taught = with_masks(played.targets, here, masks)
        result, previous = judge_round(played, settings, taught)
        if self.multi and bool(ambiguous.any()) and logits.shape[1] > 1:
            several = ambiguous.nonzero()[:, 0]
            loss = self._of_all(played, logits[several], here[several], mine[several], settings)
            result = replace(result, loss=put(result.loss, here[several], loss))
        return result, previous

    def _go_on_from(self, mine: Tensor, logits: Tensor) -> None:
        """Keep logits (N, 1, h, w) as the mask prompts of the next round, of the masks ``mine`` of those taught."""
        if self.mask_prompts is None:
            self.mask_prompts = logits.new_zeros(len(self.indexes), *logits.shape[1:])
        self.mask_prompts[mine] = logits

    def _masks(self, logits: Tensor, targets: Targets, mine: Tensor) -> Tensor:
        """Return the teacher's masks, bool (N, G, G), of logits (N, h, w), where the student sees the same photo."""
        return (to_grid(logits[:, None], targets)[:, 0] > 0) & self.uncovered[mine] & targets.valid

    def _of_all(
        self, played: Round, logits: Tensor, here: Tensor, mine: Tensor, settings: InteractiveSettings
    ) -> Tensor:
        """Return the mean loss of the three outputs for a single point, each against the teacher's, (N,)."""
        targets = targets_at(played.targets, here)
        losses = []
        for k in range(1, logits.shape[1]):
            masks = self._masks(logits[:, k], targets, mine)
            grid = to_grid(played.logits[here, k][:, None], targets)[:, 0]
            iou = true_iou(grid, masks, targets.valid)
            error = settings.loss.iou_weight * (played.predicted_iou[here, k] - iou) ** 2
            losses.append(mask_loss(grid, masks, targets.valid, targets.certainty, settings.loss) + error)
        return torch.stack(losses).mean(0)


def with_masks(targets: Targets, indexes: Tensor, masks: Tensor) -> Targets:
    """Return targets of which the masks ``indexes`` are other ones, bool (R, G, G): whole cells of them, or none."""
    coverage = None if targets.coverage is None else put(targets.coverage, indexes, masks)
    return replace(targets, masks=put(targets.masks, indexes, masks), coverage=coverage)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of sigmoid(logits) in bits."""
    nats = torch.nn.functional.binary_cross_entropy_with_logits(logits, logits.sigmoid(), reduction="none")
    return nats / math.log(2)


def in_boxes(targets: Targets) -> Tensor:
    """Return the cells in the boxes of masks, bool (P, G, G)."""
    masks = targets.masks
    rows, columns = (torch.arange(size, device=masks.device) for size in masks.shape[1:])
    x0, y0, x1, y1 = (boxes_of(masks, targets.stride) / targets.stride).unbind(1)
    across = (columns >= x0[:, None]) & (columns <= x1[:, None])
    down = (rows >= y0[:, None]) & (rows <= y1[:, None])
    return down[:, :, None] & across[:, None]
