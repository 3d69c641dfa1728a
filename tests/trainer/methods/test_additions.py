"""What each addition computes, against upstream's modules one mask at a time, and against formulas written out here."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.errors import SettingsError
from sum_factory.shared.sam.architecture import SamArchitecture, build_architecture
from sum_factory.trainer.batch import Sums, backpropagate
from sum_factory.trainer.data.samples import SampleId, TrainingSample
from sum_factory.trainer.interactive import InteractiveSettings, Round, play_rounds
from sum_factory.trainer.losses import LossSettings, mask_loss, true_iou
from sum_factory.trainer.methods.addition import Addition, Lesson, Student, targets_at
from sum_factory.trainer.methods.augmentation import beta, moved, pasted, recoloured
from sum_factory.trainer.methods.augseg import AugSeg, AugSegSettings, Consistency, with_masks
from sum_factory.trainer.methods.discrepancy import DiscrepancySettings, DualDecoder, TeacherStudent
from sum_factory.trainer.methods.distillation import Likeness
from sum_factory.trainer.methods.merging import between
from sum_factory.trainer.methods.online import Online, OnlineSettings
from sum_factory.trainer.methods.soft import SoftTargets
from sum_factory.trainer.methods.teacher import Teacher
from sum_factory.trainer.methods.u2pl import U2pl, U2plSettings
from sum_factory.trainer.prompts import boxes_of
from sum_factory.trainer.run.distributed import ALONE, Ranks

TINY = SamArchitecture("tiny", 32, 2, 2, (), 64, window_size=0, prompt_dim=32, decoder_mlp_dim=32)
SIDE, STRIDE, CELLS = 64, 4, 16
POINTS, BOXES = InteractiveSettings(rounds=2, box_share=0.0), InteractiveSettings(rounds=2, box_share=1.0)


def make_sam(seed: int) -> Sam:
    torch.manual_seed(seed)
    return build_architecture(TINY)


@pytest.fixture(scope="module")
def sam() -> Sam:
    """A SAM that no test may change."""
    return make_sam(0)


@pytest.fixture(scope="module")
def other() -> Sam:
    """Another one, which says other things."""
    return make_sam(1)


def student_of(sam: Sam, **changes: Any) -> Student:
    settings = {
        "stride": STRIDE,
        "seed": 0,
        "steps": 10,
        "computed_in": "fp32",
        "loss": LossSettings(),
        "variant": "full",
        "target": "bits",
    }
    return Student(sam, None, SimpleNamespace(**{**settings, **changes}))  # type: ignore[arg-type]


def make_sample(index: int, stream: str, size: tuple[int, int] = (64, 64)) -> TrainingSample:
    """Return a photo of two bright blocks, which are its masks, with what any method reads of it."""
    random = torch.Generator().manual_seed(index)
    rows, columns = (side // STRIDE for side in size)
    masks = torch.zeros(2, CELLS, CELLS, dtype=torch.bool)
    image = torch.randint(0, 60, (3, *size), generator=random, dtype=torch.uint8)
    for k in range(2):
        top, left = 1 + k, 1 + (columns // 2) * k
        masks[k, top : top + rows // 2, left : left + columns // 3] = True
        image[k, top * 4 : (top + rows // 2) * 4, left * 4 : (left + columns // 3) * 4] = 250
    certainty = torch.rand(2, CELLS, CELLS, generator=random) if stream == "pseudo" else None
    logits = torch.where(masks, 3.0, -3.0) if stream == "pseudo" else None
    partners = tuple(torch.full((3, *size), shade, dtype=torch.uint8) for shade in (100, 200))
    return TrainingSample(
        id=SampleId(stream, 0, index),
        key=str(index),
        image=image,
        masks=masks,
        certainty=certainty,
        sampling=certainty,
        valid=(rows, columns),
        task=0,
        logits=logits,
        partners=partners,
    )


@pytest.fixture
def samples() -> list[TrainingSample]:
    """Photos with human masks, with pseudo-labels, and with pseudo-labels in a portrait."""
    return [make_sample(0, "human"), make_sample(1, "pseudo"), make_sample(2, "pseudo", (64, 40))]


PSEUDO = torch.tensor([2, 3, 4, 5])
"""The rows of pseudo-labels among the masks of these."""


def gradients(sam: Sam, lesson: Lesson | None, settings: InteractiveSettings = POINTS) -> tuple[float, list[Tensor]]:
    """Return the loss of a lesson and the gradients that it leaves in a copy of the model."""
    assert lesson is not None
    model = copy.deepcopy(sam)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    sums = Sums(settings.rounds)
    backpropagate(model, None, lesson.batch, settings, 3, sums, "fp32", lesson.judge, lesson.extra)
    return sums.counts["loss"], [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def assert_same(found: tuple[float, list[Tensor]], expected: tuple[float, list[Tensor]], exact: bool = True) -> None:
    assert found[0] == pytest.approx(expected[0], abs=0 if exact else 1e-6)
    for one, two in zip(found[1], expected[1], strict=True):
        assert torch.equal(one, two) if exact else torch.allclose(one, two, rtol=1e-4, atol=1e-6)


def certain(samples: Sequence[TrainingSample], value: float | None) -> list[TrainingSample]:
    """Return the samples with another certainty everywhere."""
    maps = [None if value is None else torch.full(sample.masks.shape, value) for sample in samples]
    return [dataclasses.replace(s, certainty=c, sampling=c) for s, c in zip(samples, maps, strict=True)]


@torch.no_grad()
def upstream(model: Any, sam: Sam, image: Tensor, point: Any, box: Tensor | None, mask: Tensor | None) -> Tensor:
    """Return the four outputs (4, h, w) of one prompt by upstream's own modules, on what ``sam`` makes of a photo."""
    points = None if point is None else (point[None, None].float(), torch.ones(1, 1))
    sparse, dense = model.prompt_encoder(points, None if box is None else box[None], mask)
    logits, _ = model.mask_decoder.predict_masks(
        sam.image_encoder(image[None]), model.prompt_encoder.get_dense_pe(), sparse, dense
    )
    return logits[0]


def on_grid(logits: Tensor) -> Tensor:
    return F.interpolate(logits[None, None], (CELLS, CELLS), mode="bilinear", align_corners=False)[0, 0]


def first_rounds(sam: Sam, lesson: Lesson, settings: InteractiveSettings) -> list[tuple[Round, Any]]:
    """Play a lesson; return each round as its judge saw it, with the result."""
    seen: list[Round] = []

    def judge(played: Round, settings: InteractiveSettings) -> Any:
        seen.append(played)
        return lesson.judge(played, settings)

    with torch.no_grad():
        embeddings = sam.image_encoder(lesson.batch.images)
        results = list(play_rounds(sam, embeddings, None, lesson.batch.targets, settings, lesson.batch.random, judge))
    return list(zip(seen, results, strict=True))


# What SUM is made of


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


# Teachers


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


# Self-distillation


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


def plain(sam: Sam, samples: Sequence[TrainingSample]) -> Lesson:
    lesson = Addition(student_of(sam), None).lesson(certain(samples, None), 1)
    assert lesson is not None
    return lesson


@torch.no_grad()
def likeness(frozen: Sam, lesson: Lesson) -> Likeness:
    index = lesson.batch.targets.image_index[PSEUDO]
    return Likeness(frozen, frozen.image_encoder(lesson.batch.images), PSEUDO, index, 20.0)


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


# AugSeg


def consistency(teacher: Sam, lesson: Lesson, covered: Tensor, multi: bool = False) -> Consistency:
    index = lesson.batch.targets.image_index[PSEUDO]
    with torch.no_grad():
        embeddings = teacher.image_encoder(lesson.batch.images)
    return Consistency(teacher, embeddings, PSEUDO, index, ~covered.expand(4, CELLS, CELLS), multi)


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


# U2PL


def u2pl(sam: Sam, **changes: Any) -> U2pl:
    return U2pl(student_of(sam), U2plSettings(**{"anchors": 5, "negatives": 3, "unreliable": 0.5, **changes}))


def test_contrastive_loss_of_weight_0_leaves_vanilla(sam: Sam, samples: list[TrainingSample]) -> None:
    sampled = [dataclasses.replace(sample, sampling=None) for sample in samples]
    vanilla = gradients(sam, Addition(student_of(sam), None).lesson(certain(samples, None), 1))
    assert_same(gradients(sam, u2pl(sam, weight=0).lesson(sampled, 1)), vanilla)
    assert gradients(sam, u2pl(sam).lesson(sampled, 1))[0] > vanilla[0]


def test_contrastive_loss_is_the_published_formula(
    sam: Sam, samples: list[TrainingSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    addition = u2pl(sam, temperature=0.5)
    addition.bank = torch.randn(4, 32, generator=torch.Generator().manual_seed(5))
    drawn: list[Tensor] = []
    randint = torch.randint
    monkeypatch.setattr(torch, "randint", lambda *a, **k: drawn.append(randint(*a, **k)) or drawn[-1])
    lesson = addition.lesson(samples[1:2], 1)
    assert lesson is not None
    assert lesson.extra is not None
    features = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(6))
    found = float(lesson.extra(features))
    flat, sample = features[0].flatten(1).T, samples[1]
    assert sample.certainty is not None
    c = sample.certainty.view(2, 4, 4, 4, 4).mean((2, 4)).flatten(1)
    inside = sample.masks.float().view(2, 4, 4, 4, 4).mean((2, 4)).flatten(1) >= 0.5
    least = c.amin(0)
    unreliable = least <= least.sort().values[7]  # half of 16
    losses = []
    for k in range(2):
        sure = c[k] > 0.3
        anchors, negatives = flat[inside[k] & sure], torch.cat([flat[unreliable & ~inside[k] & sure], addition.bank])
        of_anchors = []
        for a, others in zip(drawn[2 * k].tolist(), drawn[2 * k + 1].tolist(), strict=True):
            near = (F.cosine_similarity(anchors[a], anchors.mean(0), 0) / 0.5).exp()
            far = sum((F.cosine_similarity(anchors[a], negatives[n], 0) / 0.5).exp() for n in others)
            of_anchors.append(-(near / (near + far)).log())
        losses.append(torch.stack(of_anchors).mean())
    assert found == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)
    assert float(u2pl(sam, weight=3.0).settings.weight) == 3.0


def test_bank_is_the_same_however_photos_are_dealt(sam: Sam, samples: list[TrainingSample]) -> None:
    features = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(6))

    def seen(addition: U2pl, numbers: list[int]) -> dict[Any, Tensor]:
        for number in numbers:
            lesson = addition.lesson([samples[1 + number]], 1)
            assert lesson is not None
            assert lesson.extra is not None
            lesson.extra(features[number][None])
        return dict(addition.found)

    one = u2pl(sam, bank=6)
    seen(one, [1, 0])
    one.after_step(1, ALONE)
    first, second = u2pl(sam, bank=6), u2pl(sam, bank=6)
    dealt = [seen(second, [1]), seen(first, [0])]

    class Two(Ranks):
        def gather(self, own: Any) -> list[Any]:
            return dealt

    for each in (first, second):
        each.after_step(1, Two(0, 2, torch.device("cpu")))
        assert torch.equal(each.bank, one.bank)
    assert len(one.bank) == 6
    assert one.found == {}


def test_encoder_that_is_not_trained_is_refused(sam: Sam) -> None:
    frozen = copy.deepcopy(sam)
    frozen.image_encoder.requires_grad_(False)
    with pytest.raises(SettingsError, match="leaves the image encoder as it is"):
        u2pl(frozen)
    assert u2pl(frozen, weight=0).settings.weight == 0


# Model merging


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_merged_weights_lie_between_their_ends(alpha: float) -> None:
    start, end = {"w": torch.tensor([1.0, -0.0, 1e-30])}, {"w": torch.tensor([3.0, 7.0, 0.1])}
    found = between(start, end, alpha)["w"]
    assert torch.allclose(found, (1 - alpha) * start["w"] + alpha * end["w"])
    if alpha in (0, 1):
        assert found.numpy().tobytes() == (end if alpha else start)["w"].numpy().tobytes()
