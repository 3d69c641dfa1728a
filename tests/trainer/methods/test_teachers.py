"""What methods with a teacher compute, against upstream's modules one mask at a time, and against formulas."""

from __future__ import annotations

import copy

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from lessons import CELLS, PSEUDO, STRIDE, certain, on_grid, student_of, upstream
from sum_factory.shared.errors import SettingsError
from sum_factory.trainer.data.samples import TrainingSample
from sum_factory.trainer.losses import LossSettings, mask_loss
from sum_factory.trainer.methods.discrepancy import DiscrepancySettings, DualDecoder, TeacherStudent
from sum_factory.trainer.methods.online import Online, OnlineSettings
from sum_factory.trainer.methods.teacher import Teacher
from sum_factory.trainer.prompts import boxes_of
from sum_factory.trainer.run.distributed import ALONE


def test_teacher_is_the_moving_average(sam: Sam, other: Sam) -> None:
    student = student_of(copy.deepcopy(sam))
    teacher = Teacher(student, 0.9)
    expected = {name: value.clone() for name, value in sam.named_parameters()}
    student.sam.load_state_dict(other.state_dict())
    for step in (1, 2, 30):
        m = min(1 - 1 / (step + 1), 0.9)
        teacher.follow(step)
        for name, value in other.named_parameters():
            expected[name] = m * expected[name] + (1 - m) * value
    assert all(torch.allclose(teacher.weights[name], value, atol=1e-6) for name, value in expected.items())
    assert not any(parameter.requires_grad for parameter in teacher.sam.parameters())


def test_discrepancy_is_that_of_student_and_teacher_for_the_box(
    sam: Sam, other: Sam, samples: list[TrainingSample]
) -> None:
    addition = TeacherStudent(student_of(sam), DiscrepancySettings())
    bare = certain(samples, None)
    equal = addition.lesson(bare, 1)
    assert equal is not None
    assert (equal.batch.targets.certainty == 1).all()
    addition.teacher.sam.load_state_dict(other.state_dict())
    lesson = addition.lesson(bare, 1)
    assert lesson is not None
    targets, images = lesson.batch.targets, lesson.batch.images
    for row in range(6):
        box, image = boxes_of(targets.masks[row : row + 1], STRIDE)[0], images[targets.image_index[row]]
        one, two = (on_grid(upstream(model, model, image, None, box, None)[0]).sigmoid() for model in (sam, other))
        expected = 1 - (one - two).abs() if row in PSEUDO else torch.ones(CELLS, CELLS)
        assert torch.allclose(targets.certainty[row], expected, atol=1e-5)
        assert torch.equal(targets.sampling[row], targets.certainty[row] * targets.valid[row])
    assert targets.certainty[PSEUDO].min() < 0.99


def test_second_decoder_learns_boxes_and_leaves_the_student_alone(
    sam: Sam, other: Sam, samples: list[TrainingSample]
) -> None:
    model = copy.deepcopy(sam)
    addition = DualDecoder(student_of(model), DiscrepancySettings())
    second = addition.companion
    second.mask_decoder.load_state_dict(other.mask_decoder.state_dict())
    lesson = addition.lesson(certain(samples, None), 1)
    assert lesson is not None
    targets, images = lesson.batch.targets, lesson.batch.images
    losses = []
    for row in range(6):
        box, image = boxes_of(targets.masks[row : row + 1], STRIDE)[0], images[targets.image_index[row]]
        one, two = (on_grid(upstream(decoder, sam, image, None, box, None)[0]) for decoder in (sam, second))
        if row in PSEUDO:
            expected = 1 - (one.sigmoid() - two.sigmoid()).abs()
            assert torch.allclose(targets.certainty[row], expected, atol=1e-5)
        here = (part[row : row + 1] for part in (targets.masks, targets.valid, targets.certainty))
        losses.append(mask_loss(two[None], *here, LossSettings())[0] / 2)  # two masks per photo
    embeddings = model.image_encoder(images).detach().requires_grad_()
    assert lesson.extra is not None
    found = lesson.extra(embeddings)
    assert float(found.detach()) == pytest.approx(float(torch.stack(losses).sum()), rel=1e-4)
    found.backward()
    assert embeddings.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert any(parameter.grad is not None for parameter in second.parameters())


def test_online_maps_are_the_refiners_of_the_snapshot(
    sam: Sam, other: Sam, samples: list[TrainingSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = student_of(copy.deepcopy(sam))
    addition = Online(student, OnlineSettings(every=2, momentum=0.0))
    student.sam.load_state_dict(other.state_dict())
    points: list[Tensor] = []
    from sum_factory.trainer.methods import online

    found = online.cells_to_input
    monkeypatch.setattr(online, "cells_to_input", lambda *a: points.append(found(*a)) or points[-1])
    before = [addition.lesson(samples, 1), addition.after_step(1, ALONE), addition.lesson(samples, 2)][::2]
    for lesson in before:
        assert lesson is not None
        assert torch.equal(lesson.batch.targets.certainty[2:4], samples[1].certainty)
    assert points == []
    addition.after_step(2, ALONE)  # of momentum 0 a teacher is the student of half way, then of all
    snapshot = addition.snapshot.sam
    lesson = addition.lesson(samples, 3)
    assert lesson is not None
    targets = lesson.batch.targets
    s = torch.cat([sample.logits for sample in samples if sample.logits is not None])
    for k, row in enumerate(PSEUDO.tolist()):
        image, box = lesson.batch.images[targets.image_index[row]], boxes_of(targets.masks[row : row + 1], STRIDE)[0]
        r = upstream(snapshot, snapshot, image, points[0][k], box, s[k][None, None])[0]
        expected = 1 - (s[k].sigmoid() - r.sigmoid()).abs()
        assert torch.allclose(targets.certainty[row], expected, atol=1e-5)
        x, y = ((points[0][k] + 0.5) / STRIDE).long().tolist()
        assert targets.masks[row, y, x]
    assert (targets.certainty[:2] == 1).all()


def test_maps_that_would_never_be_made_anew_are_refused(sam: Sam) -> None:
    with pytest.raises(SettingsError, match="every=10 of 10 steps: no map would be made anew"):
        Online(student_of(sam), OnlineSettings(every=10))
    assert Online(student_of(sam), OnlineSettings(every=9)).taken == 0
