"""What tests of methods share: small models and samples, and what a lesson teaches."""

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

from sum_factory.shared.sam.architecture import SamArchitecture, build_architecture
from sum_factory.trainer.batch import Sums, backpropagate
from sum_factory.trainer.data.samples import SampleId, TrainingSample
from sum_factory.trainer.interactive import InteractiveSettings, Round, play_rounds
from sum_factory.trainer.losses import LossSettings
from sum_factory.trainer.methods.addition import Addition, Lesson, Student
from sum_factory.trainer.methods.augseg import Consistency
from sum_factory.trainer.methods.distillation import Likeness

TINY = SamArchitecture("tiny", 32, 2, 2, (), 64, window_size=0, prompt_dim=32, decoder_mlp_dim=32)
SIDE, STRIDE, CELLS = 64, 4, 16
POINTS, BOXES = InteractiveSettings(rounds=2, box_share=0.0), InteractiveSettings(rounds=2, box_share=1.0)


def make_sam(seed: int) -> Sam:
    torch.manual_seed(seed)
    return build_architecture(TINY)


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


def plain(sam: Sam, samples: Sequence[TrainingSample]) -> Lesson:
    lesson = Addition(student_of(sam), None).lesson(certain(samples, None), 1)
    assert lesson is not None
    return lesson


@torch.no_grad()
def likeness(frozen: Sam, lesson: Lesson) -> Likeness:
    index = lesson.batch.targets.image_index[PSEUDO]
    return Likeness(frozen, frozen.image_encoder(lesson.batch.images), PSEUDO, index, 20.0)


def consistency(teacher: Sam, lesson: Lesson, covered: Tensor, multi: bool = False) -> Consistency:
    index = lesson.batch.targets.image_index[PSEUDO]
    with torch.no_grad():
        embeddings = teacher.image_encoder(lesson.batch.images)
    return Consistency(teacher, embeddings, PSEUDO, index, ~covered.expand(4, CELLS, CELLS), multi)
