"""Play models on the same masks, and keep those where the last one gains or loses most against the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from itertools import count

import numpy as np
import torch
from torch import Tensor

from sum_factory.shared.automask.rle import Rle, decode_rle, encode_rle
from sum_factory.shared.errors import InputError
from sum_factory.shared.masks import Mask
from sum_factory.shared.placement import Frame
from sum_factory.shared.precision import Precision
from sum_factory.shared.progress import track
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.sam.decode import PAD, POSITIVE, Prompts, decode_prompts
from sum_factory.shared.sam.hq import add_vectors
from sum_factory.shared.sam.runtime import Embedder
from sum_factory.shared.sam.settings import TASKS
from sum_factory.trainer.data.human import HumanSample
from sum_factory.trainer.data.sets import SetSettings, check_sets, open_set
from sum_factory.trainer.evaluation.clicks import Click
from sum_factory.trainer.evaluation.photos import load_sample, masks_with_pixels
from sum_factory.trainer.evaluation.protocol import play_image
from sum_factory.trainer.evaluation.run import prompted_task
from sum_factory.trainer.evaluation.settings import Protocol

TOGETHER = 8
"""Masks of a photo that are prompted together."""

Models = Mapping[str, LoadedSam]


@dataclass(frozen=True)
class Reported:
    """What a model reported for a mask after the last round, the clicks up to it, and its scores."""

    rle: Rle
    clicks: tuple[Click, ...]
    iou: float
    boundary_iou: float

    @property
    def mask(self) -> Mask:
        """The mask, bool (H, W)."""
        return decode_rle(self.rle)


@dataclass(frozen=True)
class Compared:
    """A human mask, by its number in photo ``index`` of a set, and what each model reported for it."""

    settings: SetSettings
    index: int
    number: int
    reported: Mapping[str, Reported]

    @property
    def change(self) -> float:
        """What the last model has more of boundary IoU than the first."""
        scores = [each.boundary_iou for each in self.reported.values()]
        return scores[-1] - scores[0]


@dataclass(frozen=True)
class SetChanges:
    """Of one set: how many masks were played, the mean boundary IoU of each model, and the masks that changed most."""

    settings: SetSettings
    masks: int
    means: Mapping[str, float]
    chosen: Sequence[Compared]


def largest_changes(
    models: Models,
    sets: Sequence[SetSettings],
    protocol: Protocol,
    most: int,
    max_masks: int | None = None,
    precision: Precision = "fp32",
) -> Iterator[SetChanges]:
    """Play ``protocol`` with two or more models on each set; yield what changed most, first the largest difference.

    At most ``most`` gains and as many losses of a set are chosen; at most ``max_masks`` of a photo are played, evenly
    spread over its masks. Raises ``InputError`` or ``ImageError`` for a set or file that cannot be used.
    """
    check_sets(sets)
    embedders = {name: Embedder(model.sam, precision) for name, model in models.items()}
    for settings in sets:
        found = _Found(most)
        for compared in _played(embedders, models, settings, protocol, max_masks):
            found.add(compared)
        if not found.masks:
            raise InputError(f"{settings.name}: no masks; nothing to show")
        means = {name: total / found.masks for name, total in found.totals.items()}
        yield SetChanges(settings, found.masks, means, found.chosen())


class _Found:
    """The largest gains and losses so far."""

    def __init__(self, most: int) -> None:
        self.most, self.masks = most, 0
        self.totals: dict[str, float] = {}
        self._gains: list[tuple[float, int, Compared]] = []
        self._losses: list[tuple[float, int, Compared]] = []
        self._order = count(0, -1)  # of equal changes, the first

    def add(self, compared: Compared) -> None:
        self.masks += 1
        for name, reported in compared.reported.items():
            self.totals[name] = self.totals.get(name, 0.0) + reported.boundary_iou
        if compared.change > 0:
            self._gains = nlargest(self.most, [*self._gains, (compared.change, next(self._order), compared)])
        if compared.change < 0:
            self._losses = nlargest(self.most, [*self._losses, (-compared.change, next(self._order), compared)])

    def chosen(self) -> list[Compared]:
        return [each for _, _, each in sorted([*self._gains, *self._losses], key=lambda item: item[:2], reverse=True)]


def _played(
    embedders: Mapping[str, Embedder],
    models: Models,
    settings: SetSettings,
    protocol: Protocol,
    max_masks: int | None,
) -> Iterator[Compared]:
    opened = open_set(settings)
    side = min(int(model.sam.image_encoder.img_size) for model in models.values())
    for index in track(range(len(opened.keys)), f"playing {settings.name}", "image"):
        sample = load_sample(opened, index, settings.name, side)
        numbers = _spread([number for number, _ in masks_with_pixels(sample)], max_masks)
        if numbers:
            embeddings = {name: embedder.embed(sample.image) for name, embedder in embedders.items()}
        for start in range(0, len(numbers), TOGETHER):
            part = numbers[start : start + TOGETHER]
            reported = {
                name: _report(model, embeddings[name], settings.task, sample, part, protocol)
                for name, model in models.items()
            }
            for k, number in enumerate(part):
                yield Compared(settings, index, number, {name: each[k] for name, each in reported.items()})


def _spread(numbers: Sequence[int], most: int | None) -> list[int]:
    """Return at most ``most`` of the numbers, evenly spread."""
    if most is None or len(numbers) <= most:
        return list(numbers)
    return [numbers[index] for index in np.linspace(0, len(numbers) - 1, most).round().astype(int).tolist()]


def _report(
    model: LoadedSam, embedding: Tensor, task: str, sample: HumanSample, numbers: Sequence[int], protocol: Protocol
) -> list[Reported]:
    """Return what a model reports after the last round for each of these masks of a photo."""
    vector = model.task_vector(task)
    vector = None if vector is None else vector.to(embedding.device)
    targets = sample.masks_at(numbers)
    frame = frame_of(model, sample)
    last = {}
    for played in play_image(model.sam, embedding, vector, frame, targets, sample.key, protocol, numbers):
        if played.score.round == protocol.rounds:
            score = played.score
            last[score.mask] = Reported(encode_rle(played.mask), played.clicks, score.iou, score.boundary_iou)
    return [last[number] for number in numbers]


def frame_of(model: LoadedSam, sample: HumanSample) -> Frame:
    """Return how the photo lies in the model's square input."""
    return Frame.whole(int(model.sam.image_encoder.img_size), *sample.image.shape[:2])


@dataclass(frozen=True)
class TaskOutputs:
    """The outputs of one click under a task prompt: masks, bool (H, W), with the IoU that the model predicts of each.

    ``prompted`` is the task whose vector was given: "unspecified" for one that was never trained.
    """

    task: str
    prompted: str
    masks: Sequence[Mask]
    predicted: Sequence[float]


@torch.no_grad()
def outputs_by_task(
    model: LoadedSam, sample: HumanSample, click: Click, precision: Precision = "fp32"
) -> list[TaskOutputs]:
    """Return what one click gives under each task prompt, 0 to 3; the model needs to have one.

    Three masks each, of HQ-SAM one.
    """
    embedding, frame = Embedder(model.sam, precision).embed(sample.image), frame_of(model, sample)
    device = embedding.device
    placed = frame.to_input(np.array([click.x, click.y], np.float64)).tolist()
    coords = torch.tensor([[placed, [0.0, 0.0]]], dtype=torch.float32, device=device)
    prompts = Prompts(coords, torch.tensor([[POSITIVE, PAD]], device=device))
    found = []
    for task in TASKS:
        vector, prompted = model.task_vector(task), prompted_task(model, task)
        assert vector is not None, "asked only of models with a task prompt"
        assert prompted is not None, "the same"
        source = add_vectors(embedding, vector.to(device)[None])
        index = torch.zeros(1, dtype=torch.long, device=device)
        logits, predicted = decode_prompts(model.sam, source, index, prompts)
        three = slice(1, None) if logits.shape[1] > 1 else slice(0, 1)
        masks = (frame.upsample(logits[0, three]) > 0).cpu().numpy()
        found.append(TaskOutputs(task, prompted, list(masks), predicted[0, three].tolist()))
    return found
