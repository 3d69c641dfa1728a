"""What SUM with soft targets computes, against upstream's modules one mask at a time, and against formulas."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from segment_anything.modeling import Sam

from lessons import BOXES, assert_same, certain, first_rounds, gradients, on_grid, student_of
from sum_factory.trainer.data.samples import TrainingSample
from sum_factory.trainer.losses import LossSettings, mask_loss
from sum_factory.trainer.methods.addition import Addition
from sum_factory.trainer.methods.soft import SoftTargets


def test_with_certainty_1_everywhere_sum_is_vanilla(sam: Sam, samples: list[TrainingSample]) -> None:
    plain = Addition(student_of(sam), None)
    vanilla = gradients(sam, plain.lesson(certain(samples, None), 1))
    assert_same(gradients(sam, plain.lesson(certain(samples, 1.0), 1)), vanilla)
    doubtful = gradients(sam, plain.lesson(certain(samples, 0.5), 1))
    assert doubtful[0] != vanilla[0]


def test_theta_above_every_certainty_leaves_no_dice(samples: list[TrainingSample], sam: Sam) -> None:
    batch = student_of(sam).collate(certain(samples, 0.5))
    assert batch is not None
    logits = torch.randn(batch.targets.masks.shape, generator=torch.Generator().manual_seed(0))
    t = batch.targets
    alone = LossSettings(focal_weight=0)
    assert (mask_loss(logits, t.masks, t.valid, t.certainty, alone) == 0).all()
    assert (mask_loss(logits, t.masks, t.valid, t.certainty, LossSettings(focal_weight=0, theta=0.4)) > 0).all()


def test_soft_targets_of_0_and_1_are_the_hard_ones(sam: Sam, samples: list[TrainingSample]) -> None:
    sure = [s if s.logits is None else dataclasses.replace(s, logits=100 * s.logits) for s in samples]
    soft, plain = SoftTargets(student_of(sam), None), Addition(student_of(sam), None)
    assert_same(gradients(sam, soft.lesson(sure, 1)), gradients(sam, plain.lesson(sure, 1)), exact=False)
    assert gradients(sam, soft.lesson(samples, 1))[0] != pytest.approx(gradients(sam, plain.lesson(samples, 1))[0])


def test_soft_targets_are_refined_probabilities(sam: Sam, samples: list[TrainingSample]) -> None:
    lesson = SoftTargets(student_of(sam), None).lesson(samples, 1)
    assert lesson is not None
    played, result = first_rounds(sam, lesson, BOXES)[0]
    t, q = played.targets, torch.cat([s.masks.float() if s.logits is None else s.logits.sigmoid() for s in samples])
    for row in range(6):
        p, c, v = on_grid(played.logits[row, 0]).sigmoid(), t.certainty[row], t.valid[row]
        wanted, at = q[row][v], p[v]
        entropy = -(wanted * at.log() + (1 - wanted) * (1 - at).log())
        focal = (c[v] * (0.25 * wanted + 0.75 * (1 - wanted)) * (wanted - at).abs() ** 2 * entropy).mean()
        kept = c[v] > 0.6
        both, total = torch.minimum(wanted, at)[kept].sum(), (wanted + at)[kept].sum()
        dice = 1 - (2 * both + 1) / (total + 1)
        assert float(result.mask_loss[row]) == pytest.approx(float(20 * focal + dice), rel=1e-4)


def test_human_masks_keep_their_target_beside_soft_ones(sam: Sam, samples: list[TrainingSample]) -> None:
    shares = [torch.rand(sample.masks.shape, generator=torch.Generator().manual_seed(7)) for sample in samples]
    covered = [dataclasses.replace(s, coverage=share) for s, share in zip(samples, shares, strict=True)]
    lesson = SoftTargets(student_of(sam), None).lesson(covered, 1)
    assert lesson is not None
    coverage = lesson.batch.targets.coverage
    assert coverage is not None
    assert torch.equal(coverage[:2], shares[0])
    assert torch.equal(coverage[2:4], torch.where(samples[1].masks, 3.0, -3.0).sigmoid())
