"""Sample predictions of a run: a few photos, always the same, with what the model makes of their masks meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from sum_factory.shared.drawing import draw_mask
from sum_factory.shared.images import RgbImage
from sum_factory.shared.placement import CELL
from sum_factory.shared.precision import autocast
from sum_factory.shared.sam.hq import embed
from sum_factory.trainer.batch import Batch, collate
from sum_factory.trainer.data.coded import Sample
from sum_factory.trainer.data.contact_sheet import colour_of
from sum_factory.trainer.data.samples import TrainingSample
from sum_factory.trainer.data.stream import MixedStream
from sum_factory.trainer.interactive import RoundResult, play_rounds, whole_rounds
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.sharding import put_together

if TYPE_CHECKING:
    from sum_factory.trainer.training import Model

SIDE, CAPTION, GAP = 256, 18, 4
"""Pixels of the longer side of a photo in a picture, of a caption's height, and between photos."""
MOST_DRAWN = 8
"""Masks that are drawn of a photo, at most: the first ones."""
LOOKED_AT = 8
"""Photos of a stream that are looked at for one with masks, for each that is to be shown."""


def samples_to_show(stream: MixedStream, count: int) -> dict[str, Sample]:
    """Return the first ``count`` samples of each stream that have masks, by a name: the same for every start of a run.

    They are loaded beside those of the steps. Raises as ``MixedStream.load``.
    """
    found: dict[str, Sample] = {}
    for name in stream.streams:
        number = 0
        for position in range(count * LOOKED_AT):
            if number < count:
                sample = stream.load_from(name, position)
                if len(sample.on(torch.device("cpu"))):
                    number += 1
                    found[f"{name} {number}"] = sample
    return found


def pictures_of(recipe: Recipe, model: Model, samples: dict[str, Sample]) -> dict[str, RgbImage]:
    """Return a picture of each sample, uint8 (H, W, 3): photo, target, prediction after the first and the last round.

    The rounds are those of training, with the same draws each time. All processes call this if weights are spread over
    them, those without samples too.
    """
    with put_together(model.sam.image_encoder), torch.no_grad():
        return {name: _picture(recipe, model, sample, name) for name, sample in samples.items()}


def _picture(recipe: Recipe, model: Model, sample: Sample, name: str) -> RgbImage:
    on_device = sample.on(model.sam.device)
    batch = collate([on_device], model.sam, recipe.stride, recipe.seed)
    assert batch is not None, "samples to show have masks"
    first, *rest = _rounds(recipe, model, batch)
    last = rest[-1] if rest else first
    target = "human masks" if name.startswith("human") else "pseudo-labels"
    panels: list[tuple[str, Tensor | None, int]] = [
        ("photo", None, 1),
        (target, batch.targets.masks >= 0.5, recipe.stride),
    ]
    panels += [(f"round {each.number}: IoU {float(each.iou.mean()):.2f}", each.masks, CELL) for each in (first, last)]
    return join([(caption, draw(on_device, masks, stride)) for caption, masks, stride in panels])


def _rounds(recipe: Recipe, model: Model, batch: Batch) -> list[RoundResult]:
    sam, task_prompt = model.sam, model.task_prompt
    with autocast(sam.device.type, recipe.computed_in):
        embeddings = embed(sam, batch.images).to(batch.images.dtype)
        vectors = None if task_prompt is None else task_prompt(batch.tasks)
        return whole_rounds(play_rounds(sam, embeddings, vectors, batch.targets, recipe.interactive, batch.random))


def draw(sample: TrainingSample, masks: Tensor | None, stride: int) -> RgbImage:
    """Draw masks, bool (K, G, G), over a sample's photo, scaled down; without masks, the photo alone."""
    pixels: npt.NDArray[np.uint8] = sample.image.permute(1, 2, 0).cpu().numpy()
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    photo: RgbImage = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    drawn = photo.astype(np.float32)
    for number, mask in enumerate(() if masks is None else masks[:MOST_DRAWN].cpu().numpy()):
        cells = np.repeat(np.repeat(mask, stride, 0), stride, 1)[:height, :width].astype(np.float32)
        draw_mask(drawn, photo, cv2.resize(cells, size, interpolation=cv2.INTER_AREA) >= 0.5, colour_of(number))
    return np.rint(drawn).astype(np.uint8)


def join(panels: Sequence[tuple[str, RgbImage]]) -> RgbImage:
    """Put pictures of one size side by side, each below its caption."""
    height, width = panels[0][1].shape[:2]
    across = max(width, SIDE // 2)
    sheet = Image.new("RGB", (len(panels) * (across + GAP) - GAP, CAPTION + height), "white")
    canvas = ImageDraw.Draw(sheet)
    for number, (caption, picture) in enumerate(panels):
        left = number * (across + GAP)
        canvas.text((left + 2, 3), caption, fill="black")
        sheet.paste(Image.fromarray(picture), (left, CAPTION))
    return np.asarray(sheet)
