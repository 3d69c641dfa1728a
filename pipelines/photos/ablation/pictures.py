"""Masks of photos of val after 3 points, by method: a sheet with the photos, and one of the shapes alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from sum_factory.pipelines.demo.player import Player, draw_played
from sum_factory.pipelines.microworld.ablation.pictures import QUALITY, titles_of
from sum_factory.pipelines.microworld.ablation.results import Results
from sum_factory.pipelines.microworld.ablation.rows import FROZEN_ROW, row_of
from sum_factory.pipelines.photos.ablation.compare import rows_of, runs_of
from sum_factory.pipelines.photos.ablation.plan import PhotosPlan
from sum_factory.shared.images import RgbImage
from sum_factory.shared.masks import Mask
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.data.human import HumanSample
from sum_factory.trainer.data.sets import Task, open_set
from sum_factory.trainer.evaluation.run import load_weights
from sum_factory.trainer.predict import UserPrompt, draw_prediction

METHODS_SHOWN = ("sam", "human-only", "vanilla", "sum")
PHOTOS_OF_SET = 1
LEAST_SHARE = 0.02
"""Share of the photo that a shown mask covers, at least."""
SIDE = 256
RIGHT, MISSED, ADDED = (150, 150, 150), (40, 90, 220), (235, 120, 20)
"""Colours of pixels that are in both a mask and the human one, in the human one alone, and in the mask alone."""


def write_pictures(plan: PhotosPlan, results: Results, overlays: Path, shapes: Path) -> None:
    """Write two sheets with a row per mask: what each method makes of it after 3 points.

    ``overlays``, a JPEG, shows photos, the human mask and the clicks. ``shapes``, a PNG, shows masks alone, of the sets
    whose masks may be shown.
    """
    players = {title: Player(load_weights(weights, Runtime())) for title, weights in shown_weights(plan, results)}
    drawn = [titles_of(["photo", "human mask", *players], SIDE)]
    compared = [titles_of(["human mask", *players], SIDE)]
    for sample, mask, task in shown_masks(plan):
        exact = draw_prediction(sample.image, mask, UserPrompt())
        played = [player.play(sample, mask, task) for player in players.values()]
        drawn.append(beside([sample.image, exact, *(draw_played(each, sample.image) for each in played)]))
        if plan.shown is None or sample.key.partition("/")[0] in plan.shown:
            compared.append(beside([draw_errors(each, mask) for each in (mask, *(each.mask for each in played))]))
    for path, rows, options in (
        (overlays, drawn, [cv2.IMWRITE_JPEG_QUALITY, QUALITY]),
        (shapes, compared, [cv2.IMWRITE_PNG_COMPRESSION, 9]),
    ):
        _, encoded = cv2.imencode(path.suffix, np.vstack(rows)[..., ::-1], options)
        Storage(str(path.parent)).write(path.name, encoded.tobytes())


def beside(images: Sequence[RgbImage]) -> RgbImage:
    """Return images side by side, each in a square."""
    return np.hstack([framed(each) for each in images])


def draw_errors(mask: Mask, target: Mask) -> RgbImage:
    """Draw where a mask, bool (H, W), is right, misses something of ``target``, and adds to it; RGB uint8 (H, W, 3)."""
    image = np.full((*mask.shape, 3), 255, np.uint8)
    for where, colour in ((mask & target, RIGHT), (target & ~mask, MISSED), (mask & ~target, ADDED)):
        image[where] = colour
    return image


def shown_weights(plan: PhotosPlan, results: Results) -> Iterator[tuple[str, str]]:
    """Yield titles and weights of the methods that are shown and have been run with the first seed."""
    for row in rows_of(plan):
        if row == FROZEN_ROW:
            yield row.title, plan.sam
        elif row == row_of(row.method) and row.method in METHODS_SHOWN:
            cell = runs_of(results, row).get(plan.seeds[0])
            if cell is not None and not cell.is_frozen:
                yield row.title, str(cell.folder(plan))


def shown_masks(plan: PhotosPlan) -> Iterator[tuple[HumanSample, Mask, Task]]:
    """Yield the first photos of val of each set that have a large mask, with one such mask each."""
    for each in plan.opened.tested:
        settings = each.settings("val")
        opened, left = open_set(settings), PHOTOS_OF_SET
        for index in range(len(opened.keys)):
            sample = opened.load(index)
            large = [mask for mask in sample.masks if mask.mean() >= LEAST_SHARE]
            if large and left:
                left -= 1
                yield replace(sample, key=f"{each.name}/{sample.key}"), large[index % len(large)], settings.task


def framed(image: RgbImage) -> RgbImage:
    """Scale a picture into a white square of ``SIDE`` pixels."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    square = np.full((SIDE, SIDE, 3), 255, np.uint8)
    square[: size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return square
