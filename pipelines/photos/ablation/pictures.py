"""Photos of val after 3 points, by method: a sheet of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from sum_factory.pipelines.demo.player import Player, draw_played
from sum_factory.pipelines.microworld.ablation.cells import FROZEN
from sum_factory.pipelines.microworld.ablation.pictures import QUALITY, titles_of
from sum_factory.pipelines.microworld.ablation.results import Results
from sum_factory.pipelines.photos.ablation.compare import FROZEN_ROW, Row, rows_of, runs_of
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


def write_pictures(plan: PhotosPlan, results: Results, path: Path) -> None:
    """Write a JPEG: a row per mask, its photo, the human mask, and what each method makes of it after 3 points."""
    players = {title: Player(load_weights(weights, Runtime())) for title, weights in shown_weights(plan, results)}
    rows = [titles_of(["photo", "human mask", *players], SIDE)]
    for sample, mask, task in shown_masks(plan):
        exact = draw_prediction(sample.image, mask, UserPrompt())
        played = [draw_played(player.play(sample, mask, task), sample.image) for player in players.values()]
        rows.append(np.hstack([framed(each) for each in (sample.image, exact, *played)]))
    _, encoded = cv2.imencode(".jpg", np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    Storage(str(path.parent)).write(path.name, encoded.tobytes())


def shown_weights(plan: PhotosPlan, results: Results) -> Iterator[tuple[str, str]]:
    """Yield titles and weights of the methods that are shown and have been run with the first seed."""
    for row in rows_of(plan):
        if row == FROZEN_ROW:
            yield row.title, plan.sam
        elif row == Row(row.method, row.method) and row.method in METHODS_SHOWN:
            cell = runs_of(results, row).get(plan.seeds[0])
            if cell is not None and cell != FROZEN:
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
