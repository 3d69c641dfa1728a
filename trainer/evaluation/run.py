"""Evaluate a model on sets of human masks: embed every photo, then play every protocol on its masks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from sum_factory.shared.errors import ImageError, InputError
from sum_factory.shared.placement import Frame
from sum_factory.shared.precision import Precision
from sum_factory.shared.progress import track
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.sam.hq import HqOutput
from sum_factory.shared.sam.runtime import Runtime, move_to_device
from sum_factory.trainer.data.human import HumanSample, HumanSet
from sum_factory.trainer.data.sets import SetSettings, check_sets, open_set
from sum_factory.trainer.evaluation.embeddings import Embeddings
from sum_factory.trainer.evaluation.hq_sam import predict_squeezed, squeezed, squeezed_box
from sum_factory.trainer.evaluation.metrics import Cutout
from sum_factory.trainer.evaluation.protocol import RoundScore, evaluate_image
from sum_factory.trainer.evaluation.settings import SQUEEZED, Protocol
from sum_factory.trainer.run.distributed import ALONE, Ranks
from sum_factory.trainer.variants.load import load_any

MASKS_TOGETHER = 32
"""Masks of an image that are prompted together, at most."""
PIXELS_TOGETHER = 2**28
"""Pixels of the masks that are prompted together, at most: large masks go through in smaller groups."""
KEPT_BYTES = 2**30
"""Bytes of main memory, at most, for embeddings of photos that may come again in another set."""

SCORES = pa.schema(
    [
        *((name, pa.string()) for name in ("set", "task", "image")),
        ("mask", pa.int32()),
        *((name, pa.string()) for name in ("first", "output")),
        ("round", pa.int32()),
        *((name, pa.float64()) for name in ("iou", "boundary_iou", "predicted_iou")),
        ("area", pa.int64()),
        *((name, pa.int32()) for name in ("height", "width")),
    ]
)
"""A row for each mask, protocol and round; ``area`` is the target's, in pixels."""
MODEL_SCORES = pa.schema([pa.field("model", pa.string()), *SCORES])
"""The same for each model."""


@dataclass(frozen=True)
class SetScores:
    """What one set gave: its rows of ``SCORES``, and what was left out.

    ``prompted_task`` is the task whose vector was given, None for a model without a task prompt. ``empty`` counts masks
    without a pixel, which cannot be prompted.
    """

    settings: SetSettings
    prompted_task: str | None
    images: int
    masks: int
    empty: int
    rows: pa.Table

    @property
    def note(self) -> str | None:
        """What a reader has to know of the task prompt."""
        if self.prompted_task in (None, self.settings.task):
            return None
        return (
            f"{self.settings.name}: these weights were never trained for the task {self.settings.task!r}; "
            f"prompted as {self.prompted_task!r}"
        )


def load_weights(weights: str, runtime: Runtime, sam: str | None = None, hq_output: HqOutput = "hq") -> LoadedSam:
    """Load weights as ``load_any`` takes them, and place them. Raises ``CheckpointError``."""
    loaded = load_any(weights, sam, hq_output=hq_output)
    move_to_device(loaded.sam, runtime)
    return loaded


def prompted_task(weights: LoadedSam, task: str) -> str | None:
    """Return the task whose vector ``LoadedSam.task_vector`` gives: "unspecified" for one that was never trained."""
    if weights.task_prompt is None:
        return None
    return task if task in weights.trained_tasks else "unspecified"


def evaluate_sets(
    weights: LoadedSam,
    sets: Sequence[SetSettings],
    protocols: Sequence[Protocol],
    max_masks: int | None = None,
    seed: int = 0,
    precision: Precision = "fp32",
    ranks: Ranks = ALONE,
) -> Iterator[SetScores]:
    """Evaluate sets one after the other, each with all ``protocols``; yield each when it is done.

    The processes ``ranks`` share the images, and each of them yields the scores of all. At most ``max_masks`` of an
    image, drawn by the hash of ``seed`` and the image's key. Raises ``InputError`` or ``ImageError`` for a set or file
    that cannot be used; whether all sets are there is checked first.
    """
    check_sets(sets)
    embeddings = Embeddings({"": weights}, precision, KEPT_BYTES if len(sets) > 1 else 0)
    for settings in sets:
        opened = open_set(settings)
        own = range(ranks.rank, len(opened.keys), ranks.count)
        scores = {
            index: evaluate_photo(embeddings, settings, opened, index, protocols, max_masks, seed)
            for index in track(own, f"evaluating {settings.name or settings.task}", "image")
        }
        of_all = {index: each for part in ranks.gather(scores) for index, each in part.items()}
        photos = [of_all[index] for index in sorted(of_all)]
        yield set_scores(settings, prompted_task(weights, settings.task), photos)


@dataclass(frozen=True)
class PhotoScores:
    """What ``images`` photos of a set gave: rows of ``MODEL_SCORES``, how many masks were evaluated, and how many were
    left out because they have no pixel."""

    rows: pa.Table
    masks: int
    empty: int
    images: int = 1


def set_scores(settings: SetSettings, task: str | None, photos: Sequence[PhotoScores]) -> SetScores:
    """Return the scores of a set from those of its photos, in order. Raises ``InputError`` if they have no mask."""
    images, masks, empty = (sum(getattr(each, name) for each in photos) for name in ("images", "masks", "empty"))
    if masks == 0:
        raise InputError(f"{settings.name}: no masks in {images} images ({empty} are empty); nothing to evaluate")
    rows = pa.concat_tables([each.rows for each in photos]).select(SCORES.names).combine_chunks()
    return SetScores(settings, task, images, masks, empty, rows)


def evaluate_photo(
    embeddings: Embeddings,
    settings: SetSettings,
    opened: HumanSet,
    index: int,
    protocols: Sequence[Protocol],
    max_masks: int | None,
    seed: int,
) -> PhotoScores:
    """Read one photo of a set, and play every protocol on its masks with every model."""
    sample = _load(opened, index)
    seen = _with_pixels(sample)
    numbers = _drawn(seen, sample.key, max_masks, seed)
    empty = sample.count - len(seen)
    rows: list[dict[str, Any]] = []
    whole = [protocol for protocol in protocols if protocol.first != SQUEEZED]
    if numbers and whole:
        rows += _play(embeddings, settings, sample, numbers, whole)
    for protocol in protocols:
        if numbers and protocol.first == SQUEEZED:
            squeezed_rows = list(_play_squeezed(embeddings, settings, sample, numbers, protocol))
            if not squeezed_rows:  # the label has no pixel left in the square
                numbers, empty = [], empty + 1
            rows += squeezed_rows
    return PhotoScores(pa.Table.from_pylist(rows, MODEL_SCORES), len(numbers), empty)


def _load(opened: HumanSet, index: int) -> HumanSample:
    try:
        return opened.load(index)
    except OSError as error:
        raise InputError(f"{error.filename or opened.keys[index]}: cannot be read ({error.strerror})") from error


def _with_pixels(sample: HumanSample) -> list[int]:
    """Return the numbers of the masks that have a pixel; few masks are in memory at once."""
    together = _together(sample)
    parts = [range(start, min(start + together, sample.count)) for start in range(0, sample.count, together)]
    return [part[place] for part in parts for place in np.flatnonzero(sample.masks_at(part).any(axis=(1, 2))).tolist()]


def _together(sample: HumanSample) -> int:
    """Return how many masks of a sample are in memory at once."""
    height, width = sample.image.shape[:2]
    return max(1, min(MASKS_TOGETHER, PIXELS_TOGETHER // int(height * width)))


def _drawn(numbers: Sequence[int], key: str, max_masks: int | None, seed: int) -> list[int]:
    """Return which of these masks of a photo are evaluated: at most ``max_masks``."""
    if max_masks is not None and len(numbers) > max_masks:
        digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
        random = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        return [int(number) for number in np.sort(random.choice(numbers, max_masks, replace=False))]
    return list(numbers)


def _play(
    embeddings: Embeddings,
    settings: SetSettings,
    sample: HumanSample,
    numbers: list[int],
    protocols: Sequence[Protocol],
) -> list[dict[str, Any]]:
    """Embed one image and play protocols on its masks with every model; return rows of ``MODEL_SCORES``."""
    height, width = sample.image.shape[:2]
    frames = {
        name: Frame.whole(int(model.sam.image_encoder.img_size), height, width)
        for name, model in embeddings.models.items()
    }
    if any(0 in frame.input_size for frame in frames.values()):
        raise ImageError(f"{settings.name}: {sample.key}: {width} x {height} is too thin for SAM; cut it up")
    found = embeddings.embed(sample.image)
    together = _together(sample)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(numbers), together):
        part = numbers[start : start + together]
        targets = [Cutout.of(mask) for mask in sample.masks_at(part)]
        areas = {number: target.area for number, target in zip(part, targets, strict=True)}
        for name, embedding in found.items():
            model, fixed = embeddings.models[name], _fixed(name, settings, sample)
            vector = _vector(model, settings, embedding)
            for protocol in protocols:
                played = {**fixed, "first": protocol.first, "output": protocol.output}
                scores = evaluate_image(model.sam, embedding, vector, frames[name], targets, sample.key, protocol, part)
                rows += [{**played, "area": areas[score.mask], **asdict(score)} for score in scores]
    return rows


def _play_squeezed(
    embeddings: Embeddings, settings: SetSettings, sample: HumanSample, numbers: list[int], protocol: Protocol
) -> Iterator[dict[str, Any]]:
    """Yield a row of each model for the one mask of a photo; none if nothing is left of it in a model's square."""
    if len(numbers) != 1:
        raise InputError(
            f"{settings.name}: {sample.key} has {len(numbers)} masks; HQ-SAM's protocol is for sets of one "
            "mask per photo"
        )
    target = Cutout.of(sample.masks_at(numbers)[0])
    sides = {name: int(model.sam.image_encoder.img_size) for name, model in embeddings.models.items()}
    boxes = {side: squeezed_box(target.mask, side) for side in set(sides.values())}
    if None in boxes.values():
        return
    photos = {side: embeddings.embed(squeezed(sample.image, side)) for side in boxes}
    for name, side in sides.items():
        model, embedding, box = embeddings.models[name], photos[side][name], boxes[side]
        assert box is not None, "it was looked at"
        vector = _vector(model, settings, embedding)
        mask, predicted = predict_squeezed(model.sam, embedding, vector, box, target.size)
        score = RoundScore(numbers[0], 1, mask.iou(target), mask.band.iou(target.band), predicted)
        played = {"first": protocol.first, "output": protocol.output, "area": target.area}
        yield {**_fixed(name, settings, sample), **played, **asdict(score)}


def _fixed(model: str, settings: SetSettings, sample: HumanSample) -> dict[str, Any]:
    height, width = sample.image.shape[:2]
    of_set = {"model": model, "set": settings.name, "task": settings.task}
    return {**of_set, "image": sample.key, "height": height, "width": width}


def _vector(model: LoadedSam, settings: SetSettings, embedding: Tensor) -> Tensor | None:
    vector = model.task_vector(settings.task)
    return None if vector is None else vector.to(embedding.device)
