"""What self-distillation computes, against upstream's modules one mask at a time, and against formulas."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from lessons import (
    BOXES,
    CELLS,
    POINTS,
    PSEUDO,
    consistency,
    first_rounds,
    likeness,
    on_grid,
    plain,
    student_of,
    upstream,
)
from sum_factory.trainer.data.samples import TrainingSample
from sum_factory.trainer.interactive import InteractiveSettings
from sum_factory.trainer.losses import mask_loss
from sum_factory.trainer.methods.addition import targets_at
from sum_factory.trainer.methods.soft import SoftTargets


def test_student_that_is_sam_has_no_loss_on_unlabelled_prompts(sam: Sam, samples: list[TrainingSample]) -> None:
    lesson = plain(sam, samples)
    lesson = dataclasses.replace(lesson, judge=likeness(sam, lesson))
    for settings in (POINTS, BOXES):
        for played, result in first_rounds(sam, lesson, settings):
            assert torch.allclose(result.loss[PSEUDO], torch.zeros(4), atol=1e-9)
            masks, t = result.mask_loss[:2], played.targets
            row = torch.arange(2)
            outputs = F.interpolate(played.logits[:2], (CELLS, CELLS), mode="bilinear", align_corners=False)
            of_all = torch.stack(
                [mask_loss(each, t.masks[:2], t.valid[:2], None, settings.loss) for each in outputs.unbind(1)], 1
            )
            best = (
                of_all[:, 1:].min(1).values if of_all.shape[1] > 1 else of_all[:, 0]
            )  # one output, if no doubt is left
            expected = torch.where(played.ambiguous[:2], best, of_all[row, 0])
            assert torch.allclose(masks, expected)


def test_distance_to_sam_is_that_of_probabilities(sam: Sam, other: Sam, samples: list[TrainingSample]) -> None:
    lesson = plain(sam, samples)
    judge = likeness(other, lesson)
    played, result = first_rounds(sam, dataclasses.replace(lesson, judge=judge), POINTS)[0]
    for row in PSEUDO.tolist():
        image = lesson.batch.images[played.targets.image_index[row]]
        said = upstream(other, other, image, played.tokens.coords[row, 0], None, None)
        valid = played.targets.valid[row]
        squares = [
            (on_grid(played.logits[row, k]).sigmoid() - on_grid(said[k]).sigmoid())[valid].square().mean()
            for k in (1, 2, 3)
        ]
        assert float(result.mask_loss[row]) >= 20 * float(torch.stack(squares).mean()) > 0
        iou = judge_iou(other, image, played.tokens.coords[row, 0])
        gap = (played.predicted_iou[row, 1:] - iou[1:]).square().mean()
        assert float(result.loss[row]) == pytest.approx(20 * float(torch.stack(squares).mean()) + float(gap), rel=1e-4)


@torch.no_grad()
def judge_iou(model: Sam, image: Tensor, point: Tensor) -> Tensor:
    sparse, dense = model.prompt_encoder((point[None, None], torch.ones(1, 1)), None, None)
    encoded = model.image_encoder(image[None])
    iou: Tensor = model.mask_decoder.predict_masks(encoded, model.prompt_encoder.get_dense_pe(), sparse, dense)[1][0]
    return iou


def test_masks_may_be_judged_in_groups(sam: Sam, other: Sam, samples: list[TrainingSample]) -> None:
    lesson = plain(sam, samples)
    soft = SoftTargets(student_of(sam), None).lesson(samples, 1)
    assert soft is not None
    nothing = torch.zeros(1, CELLS, CELLS, dtype=torch.bool)
    for make in (
        lambda: consistency(other, lesson, nothing, multi=True),
        lambda: likeness(other, lesson),
        lambda: soft.judge,
    ):
        whole, groups = make(), make()
        for played, _ in first_rounds(sam, lesson, InteractiveSettings(rounds=3, box_share=0.5)):
            found, going_on = whole(played, POINTS)
            for indexes in (torch.tensor([5, 0]), torch.tensor([1]), torch.tensor([2, 4, 3])):
                of_group = dataclasses.replace(
                    played,
                    indexes=indexes,
                    logits=played.logits[indexes],
                    predicted_iou=played.predicted_iou[indexes],
                    ambiguous=played.ambiguous[indexes],
                    targets=targets_at(played.targets, indexes),
                    shifts=None,
                    tokens=played.tokens.at(indexes),
                    mask_prompts=None if played.mask_prompts is None else played.mask_prompts[indexes],
                )
                some, some_going_on = groups(of_group, POINTS)
                assert torch.allclose(some.loss, found.loss[indexes], atol=1e-6)
                assert torch.allclose(some.mask_loss, found.mask_loss[indexes], atol=1e-6)
                assert torch.equal(some_going_on, going_on[indexes])
