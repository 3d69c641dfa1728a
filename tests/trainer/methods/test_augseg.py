"""What AugSeg computes, against upstream's modules one mask at a time, and against formulas written out here."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from lessons import (
    CELLS,
    POINTS,
    PSEUDO,
    SIDE,
    STRIDE,
    assert_same,
    certain,
    consistency,
    first_rounds,
    gradients,
    make_sample,
    on_grid,
    plain,
    student_of,
    upstream,
)
from sum_factory.trainer.data.samples import SampleId, TrainingSample
from sum_factory.trainer.interactive import InteractiveSettings, Round
from sum_factory.trainer.losses import LossSettings, mask_loss, true_iou
from sum_factory.trainer.methods.addition import Addition
from sum_factory.trainer.methods.augmentation import beta, moved, pasted, recoloured
from sum_factory.trainer.methods.augseg import AugSeg, AugSegSettings, with_masks


@pytest.mark.parametrize("multi", [False, True])
def test_student_learns_what_the_teacher_says_of_the_same_prompt(
    sam: Sam, other: Sam, samples: list[TrainingSample], multi: bool
) -> None:
    covered = torch.zeros(1, CELLS, CELLS, dtype=torch.bool)
    covered[:, :4, :4] = True
    lesson = plain(sam, samples)
    lesson = dataclasses.replace(lesson, judge=consistency(other, lesson, covered, multi))
    played, result = first_rounds(sam, lesson, POINTS)[0]
    t, loss = played.targets, LossSettings()
    for row in PSEUDO.tolist():
        said = upstream(other, other, lesson.batch.images[t.image_index[row]], played.tokens.coords[row, 0], None, None)

        def against(logits: Tensor, masks: Tensor, row: int = row) -> Tensor:
            return mask_loss(on_grid(logits)[None], masks[None], t.valid[row][None], None, loss)[0]

        own, theirs = (
            1 + int(torch.stack([against(one[k], t.masks[row]) for k in (1, 2, 3)]).argmin())
            for one in (played.logits[row], said)
        )
        pairs = [(k, k) for k in (1, 2, 3)] if multi else [(own, theirs)]
        total = []
        for mine, yours in pairs:
            wanted = (on_grid(said[yours]) > 0) & t.valid[row] & ~covered[0]
            iou = true_iou(on_grid(played.logits[row, mine])[None], wanted[None], t.valid[row][None])[0]
            error = (played.predicted_iou[row, mine] - iou) ** 2
            total.append(against(played.logits[row, mine], wanted) + error)
        assert float(result.loss[row]) == pytest.approx(float(torch.stack(total).mean()), rel=1e-4)


def test_teacher_gets_no_gradient_and_the_student_does(sam: Sam, samples: list[TrainingSample]) -> None:
    addition = AugSeg(student_of(sam), AugSegSettings())
    before = {name: value.clone() for name, value in addition.teacher.weights.items()}
    _, found = gradients(sam, addition.lesson(certain(samples, None), 1))
    assert any(gradient.abs().max() > 0 for gradient in found)
    assert all(parameter.grad is None for parameter in addition.teacher.sam.parameters())
    assert all(torch.equal(addition.teacher.weights[name], value) for name, value in before.items())


def test_box_prompts_are_boxes_and_nothing_else(sam: Sam, samples: list[TrainingSample]) -> None:
    lesson = AugSeg(student_of(sam), AugSegSettings(), box_prompt=True).lesson(certain(samples, None), 1)
    assert lesson is not None
    settings = InteractiveSettings(rounds=3, box_share=0.0)
    rounds = first_rounds(sam, lesson, settings)
    human = 2
    for played, _ in rounds:
        taught = played.indexes >= human
        assert taught.sum() > 0
        assert (played.tokens.count[taught] == 2).all()
        assert not played.ambiguous[taught].any()
    first = rounds[0][0]
    assert first.ambiguous[first.indexes < human].all()


def test_views_depend_on_the_sample_alone(sam: Sam, samples: list[TrainingSample]) -> None:
    bare = certain(samples, None)
    together = AugSeg(student_of(sam), AugSegSettings()).lesson(bare, 1)
    alone = AugSeg(student_of(sam), AugSegSettings()).lesson(bare[2:], 5)
    assert together is not None
    assert alone is not None
    count = len(alone.batch.targets)
    assert torch.equal(alone.batch.images[-1], together.batch.images[-1])
    assert torch.equal(alone.batch.targets.masks, together.batch.targets.masks[-count:])


@pytest.mark.parametrize("seed", range(12))
def test_a_moved_mask_stays_on_what_it_is_of(seed: int) -> None:
    sample = make_sample(3, "pseudo", (64, 40))
    view = moved(sample, torch.Generator().manual_seed(seed), (0.5, 2.0), STRIDE)
    rows, columns = view.valid
    assert view.image.shape[1] <= SIDE
    assert view.image.shape[2] <= SIDE
    assert (-(-view.image.shape[1] // STRIDE), -(-view.image.shape[2] // STRIDE)) == (rows, columns)
    assert not view.masks[:, rows:].any()
    assert not view.masks[:, :, columns:].any()
    original = [sample.masks[k].sum() > 0 and sample.image[k].float().max() for k in range(2)]
    assert original == [250, 250]
    for channel in range(2):
        bright = F.avg_pool2d((view.image[channel].float() > 155)[None, None].float(), STRIDE, ceil_mode=True)[0, 0]
        matching = [float((mask[:rows, :columns].float() - bright).abs().sum()) for mask in view.masks]
        if bright.sum() > 4:
            assert min(matching) <= 0.25 * float(bright.sum()) + 4


def test_coverage_moves_with_the_masks_and_is_the_teachers_in_the_end(sam: Sam, samples: list[TrainingSample]) -> None:
    shares = [sample.masks.float() for sample in samples]
    bare = [dataclasses.replace(s, coverage=share) for s, share in zip(certain(samples, None), shares, strict=True)]
    lesson = AugSeg(student_of(sam), AugSegSettings()).lesson(bare, 1)
    assert lesson is not None
    t = lesson.batch.targets
    assert t.coverage is not None
    assert torch.equal(t.coverage[2:] * t.valid[2:] >= 0.5, t.masks[2:])
    seen: list[Any] = []

    def judge(played: Round, settings: InteractiveSettings) -> Any:
        seen.append(with_masks(played.targets, torch.tensor([2]), ~played.targets.masks[2:3]))
        return lesson.judge(played, settings)

    first_rounds(sam, dataclasses.replace(lesson, judge=judge), POINTS)
    for taught in seen:
        assert torch.equal(taught.coverage[2], taught.masks[2].float())
        assert torch.equal(taught.coverage[0], t.coverage[0])


def test_pasted_part_is_the_other_photos_and_the_rest_is_not() -> None:
    image, other = torch.zeros(3, 64, 40, dtype=torch.uint8), torch.full((3, 52, 64), 9, dtype=torch.uint8)
    for seed in range(20):
        mixed, covered = pasted(image, other, 0.5, torch.Generator().manual_seed(seed), STRIDE, CELLS)
        cells = covered[:, :10].repeat_interleave(4, 0).repeat_interleave(4, 1)
        assert torch.equal(mixed[0] == 9, cells)
        assert not covered[13:].any()
        assert not covered[:, 10:].any()
    assert (image == 0).all()


def test_masks_and_clicks_leave_what_is_covered(sam: Sam) -> None:
    sample = dataclasses.replace(make_sample(1, "pseudo"), certainty=None, sampling=None)
    addition = AugSeg(student_of(sam), AugSegSettings())
    for index in range(6):
        named = dataclasses.replace(sample, id=SampleId("pseudo", 0, index))
        view, covered = addition._strong(named, 0.0)
        assert covered.any()
        assert not (view.masks & covered).any()
        assert view.sampling is not None
        assert torch.equal(view.sampling > 0, ~covered.expand(view.masks.shape))


def test_photo_whose_masks_are_all_covered_leaves_the_others(
    sam: Sam, samples: list[TrainingSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def over_all(image: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        return image, torch.ones(CELLS, CELLS, dtype=torch.bool)

    monkeypatch.setattr("sum_factory.trainer.methods.augseg.pasted", over_all)
    addition = AugSeg(student_of(sam), AugSegSettings())
    found = gradients(sam, addition.lesson(certain(samples, None), 1))
    assert_same(found, gradients(sam, Addition(student_of(sam), None).lesson(samples[:1], 1)))
    assert addition.lesson(certain(samples[1:], None), 1) is None


def test_colours_change_and_nothing_moves() -> None:
    image = torch.randint(0, 256, (3, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    changed = [recoloured(image, torch.Generator().manual_seed(seed), 3) for seed in range(40)]
    assert all(one.shape == image.shape and one.dtype == torch.uint8 for one in changed)
    assert sum(not torch.equal(one, image) for one in changed) > 30
    assert torch.equal(changed[0], recoloured(image, torch.Generator().manual_seed(0), 3))


def test_beta_has_its_mean_and_variance() -> None:
    random = torch.Generator().manual_seed(0)
    drawn = torch.tensor([beta(random, 2, 8) for _ in range(2000)])
    assert float(drawn.mean()) == pytest.approx(0.2, abs=0.01)
    assert float(drawn.var()) == pytest.approx(0.16 / 11, rel=0.1)
