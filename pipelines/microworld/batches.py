"""Batches of a pre-training: scenes, and images of photos beside them. Each is a pure function of its step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sum_factory.pipelines.microworld.corpus import TARGET_SIDE, Corpus
from sum_factory.pipelines.microworld.pretrain_settings import PretrainSettings
from sum_factory.pipelines.photos.corpus import PhotoCorpus
from sum_factory.pipelines.photos.crops import draw_image
from sum_factory.trainer.run.distributed import Ranks

PROMPTS_OF_A_MASK = 2
"""Prompts of a mask of a photo, at most: one photo has a single mask, another thirty."""


@dataclass(frozen=True)
class Batch:
    """B images float32 (B, 3, S, S) in 0..255, and the targets bool (P, T, T) of P prompts.

    ``empty`` marks, bool (P,), the prompts on background; there ``targets`` holds the background.
    """

    images: Tensor
    image_index: Tensor
    targets: Tensor
    empty: Tensor


@dataclass(frozen=True)
class _Shown:
    """An image float32 (S, S, 3) and its targets bool (P, T, T), of which the last ``empty`` are background."""

    image: npt.NDArray[np.float32]
    targets: npt.NDArray[np.bool_]
    empty: int = 0


def load_batch(
    corpus: Corpus, settings: PretrainSettings, step: int, ranks: Ranks, photos: PhotoCorpus | None = None
) -> Batch:
    """Load a rank's images of the batch of ``step``, from 0: a pure function of its arguments."""
    scenes = drawn_of(len(corpus.images), settings.images, settings.seed, step)
    shown = [_scene(corpus, scene, settings, step) for scene in scenes[ranks.rank :: ranks.count]]
    if photos is not None:
        side = corpus.images.shape[1]
        numbers = drawn_of(len(photos), settings.photos, settings.seed + 1, step)
        shown += [_photo(photos, number, settings, step, side) for number in numbers[ranks.rank :: ranks.count]]
    index = [b for b, each in enumerate(shown) for _ in each.targets]
    empty = [k >= len(each.targets) - each.empty for each in shown for k in range(len(each.targets))]
    return Batch(
        torch.from_numpy(np.stack([each.image for each in shown])).permute(0, 3, 1, 2).contiguous(),
        torch.tensor(index),
        torch.from_numpy(np.concatenate([each.targets for each in shown])),
        torch.tensor(empty),
    )


def drawn_of(count: int, of_step: int, seed: int, step: int) -> list[int]:
    """Return which of ``count`` images are those of a step: each comes once an epoch, in an order of its own."""
    epoch, position = divmod(step, count // of_step)
    order = np.random.default_rng([seed, 1_000_003 + epoch]).permutation(count)
    return [int(number) for number in order[position * of_step : (position + 1) * of_step]]


def _scene(corpus: Corpus, scene: int, settings: PretrainSettings, step: int) -> _Shown:
    rng = np.random.default_rng([settings.seed, step, scene])
    image, masks = corpus.images[scene], corpus.masks(scene)
    turns, flip = int(rng.integers(4)), bool(rng.integers(2))
    picked = masks[rng.permutation(len(masks))[: settings.masks]]
    repeats = [picked[i % len(picked)] for i in range(settings.masks)] if len(picked) else []
    background = [corpus.empty_pixels(scene)] * settings.empty_prompts
    targets = _turn(np.stack(repeats + background), turns, flip)
    return _Shown(_jitter(_turn(image[None], turns, flip)[0], rng), targets, settings.empty_prompts)


def _photo(photos: PhotoCorpus, number: int, settings: PretrainSettings, step: int, side: int) -> _Shown:
    """Return an image of a photo. It has no prompts on background: what nobody annotated may be a thing, too."""
    rng = np.random.default_rng([settings.seed, step, number, 1])
    image, masks = draw_image(photos, number, (side, TARGET_SIDE), rng)
    order = rng.permutation(len(masks))
    count = min(settings.photo_masks, PROMPTS_OF_A_MASK * len(masks))
    return _Shown(image, masks[order[np.arange(count) % len(masks)]])


def _turn(stack: npt.NDArray[Any], turns: int, flip: bool) -> npt.NDArray[Any]:
    stack = np.rot90(stack, turns, (1, 2))
    return np.ascontiguousarray(stack[:, :, ::-1] if flip else stack)


def _jitter(image: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Change brightness, contrast and colour balance a little."""
    gain = rng.uniform(0.8, 1.2) * rng.uniform(0.93, 1.07, 3)
    offset = rng.uniform(-15, 15)
    return np.clip((image - 128.0) * gain + 128.0 + offset, 0, 255).astype(np.float32)


@dataclass
class BatchStream:
    """Gives a rank's batch of each step, loaded when it is asked for. ``waited`` sums the seconds that this took."""

    corpus: Corpus
    settings: PretrainSettings
    ranks: Ranks
    photos: PhotoCorpus | None = None
    waited: float = 0.0

    def steps(self, first: int, last: int) -> Iterator[Batch]:
        """Yield the batches of the steps ``first`` to ``last`` - 1."""
        for step in range(first, last):
            started = time.perf_counter()
            batch = load_batch(self.corpus, self.settings, step, self.ranks, self.photos)
            self.waited += time.perf_counter() - started
            yield batch
