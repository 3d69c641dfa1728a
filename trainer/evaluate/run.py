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
from sum_factory.shared.images import RgbImage
from sum_factory.shared.placement import Frame
from sum_factory.shared.precision import Precision
from sum_factory.shared.progress import track
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.sam.hq import HqOutput
from sum_factory.shared.sam.runtime import Embedder, Runtime, move_to_device
from sum_factory.trainer.data.human import HumanSample, HumanSet, Masks
from sum_factory.trainer.data.sets import SetSettings, check_sets, open_set
from sum_factory.trainer.evaluate.protocol import evaluate_image
from sum_factory.trainer.evaluate.settings import Protocol
from sum_factory.trainer.run.distributed import ALONE, Ranks
from sum_factory.trainer.variants.load import load_model

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
    """Load weights as ``load_model`` takes them, and place them. Raises ``CheckpointError``."""
    loaded = load_model(weights, sam, hq_output=hq_output)
    move_to_device(loaded.sam, runtime)
    return loaded


def prompted_task(weights: LoadedSam, task: str) -> str | None:
    """Return the task whose vector ``LoadedSam.task_vector`` gives: "unspecified" for one that was never trained."""
    if weights.task_prompt is None:
        return None
    return task if task in weights.trained_tasks else "unspecified"


class _KeptEmbeddings:
    """Embeds photos, and keeps the first ``limit`` bytes of embeddings. Sets of several tasks often have the same
    photos in the same order: if the latest embeddings were kept, each would be gone when its photo comes again."""

    def __init__(self, embedder: Embedder, limit: int) -> None:
        self.embedder, self.limit = embedder, limit
        self._kept: dict[bytes, Tensor] = {}

    def embed(self, image: RgbImage) -> Tensor:
        """Return the embedding (1, C, g, g), float32, of a photo, uint8 (H, W, 3)."""
        key = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
        if key in self._kept:
            return self._kept[key].to(self.embedder.sam.device)
        embedding = self.embedder.embed(image)
        if (len(self._kept) + 1) * embedding.nbytes <= self.limit:
            self._kept[key] = embedding.cpu()
        return embedding


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
    embedder = _KeptEmbeddings(Embedder(weights.sam, precision), KEPT_BYTES if len(sets) > 1 else 0)
    for settings in sets:
        yield _evaluate_set(embedder, weights, settings, protocols, max_masks, seed, ranks)


def _evaluate_set(
    embedder: _KeptEmbeddings,
    weights: LoadedSam,
    settings: SetSettings,
    protocols: Sequence[Protocol],
    max_masks: int | None,
    seed: int,
    ranks: Ranks,
) -> SetScores:
    opened = open_set(settings)
    count = len(opened.keys)
    batches: dict[int, pa.Table] = {}
    masks = empty = 0
    own = range(ranks.rank, count, ranks.count)
    for index in track(own, f"evaluating {settings.name or settings.task}", "image"):
        sample = _load(opened, index)
        seen = _with_pixels(sample)
        numbers = _drawn(seen, sample.key, max_masks, seed)
        empty += sample.count - len(seen)
        masks += len(numbers)
        if numbers:
            rows = _evaluate_sample(embedder, weights, settings, sample, numbers, protocols)
            batches[index] = pa.Table.from_pylist(rows, SCORES)
    masks, empty = (int(number) for number in ranks.sum_numbers([masks, empty]))
    if masks == 0:
        raise InputError(f"{settings.name}: no masks in {count} images ({empty} are empty); nothing to evaluate")
    of_all = {index: table for part in ranks.gather(batches) for index, table in part.items()}
    task = prompted_task(weights, settings.task)
    scores = pa.concat_tables([of_all[index] for index in sorted(of_all)]).combine_chunks()
    return SetScores(settings, task, count, masks, empty, scores)


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


def _evaluate_sample(
    embedder: _KeptEmbeddings,
    weights: LoadedSam,
    settings: SetSettings,
    sample: HumanSample,
    numbers: list[int],
    protocols: Sequence[Protocol],
) -> list[dict[str, Any]]:
    """Embed one image and play every protocol on its masks; return rows of ``SCORES``."""
    height, width = sample.image.shape[:2]
    frame = Frame.whole(int(weights.sam.image_encoder.img_size), height, width)
    if 0 in frame.input_size:
        raise ImageError(f"{settings.name}: {sample.key}: {width} x {height} is too thin for SAM; cut it up")
    embedding = embedder.embed(sample.image)
    vector = weights.task_vector(settings.task)
    vector = None if vector is None else vector.to(embedding.device)
    together = _together(sample)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(numbers), together):
        part = numbers[start : start + together]
        targets: Masks = sample.masks_at(part)
        areas = dict(zip(part, targets.sum(axis=(1, 2)).tolist(), strict=True))
        fixed = {"set": settings.name, "task": settings.task, "image": sample.key, "height": height, "width": width}
        for protocol in protocols:
            played = {**fixed, "first": protocol.first, "output": protocol.output}
            scores = evaluate_image(weights.sam, embedding, vector, frame, targets, sample.key, protocol, part)
            rows += [{**played, "area": areas[score.mask], **asdict(score)} for score in scores]
    return rows
