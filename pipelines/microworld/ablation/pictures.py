"""Held-out masks after 3 points, by method: a sheet of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from sum_factory.pipelines.demo.page import play
from sum_factory.pipelines.microworld.ablation.cells import FROZEN, SAM, Cell
from sum_factory.pipelines.microworld.ablation.results import Results
from sum_factory.pipelines.microworld.ablation.settings import Plan
from sum_factory.pipelines.microworld.sets import TASKS, describe_set
from sum_factory.shared.images import RgbImage
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.sam.runtime import Embedder, Runtime
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.data.sets import Task, open_set
from sum_factory.trainer.evaluate.run import load_weights
from sum_factory.trainer.predict import UserPrompt, draw_prediction

METHODS_SHOWN = (SAM, "human-only", "vanilla", "sum")
SCENES_OF_TASK: dict[Task, int] = {"salient": 2, "entity": 3, "part": 3}
SMALLEST_SHOWN = 0.015
"""Masks that cover less of the scene are left out of the pictures."""
TITLE_HEIGHT = 24
QUALITY = 75


def write_pictures(plan: Plan, results: Results, path: Path) -> None:
    """Write a JPEG: a row a mask, its scene, the exact mask, and what each method makes of it after 3 points.

    Methods are those of the plan's first setting and seed that have been run. Raises ``StorageError``.
    """
    cells = shown_cells(plan, results)
    models = {
        method: load_weights(plan.sam if cell == FROZEN else str(cell.folder(plan)), Runtime())
        for method, cell in cells.items()
    }
    titles = ["scene", "exact mask", *models]
    rows = [titles_of(titles, plan.world.side)]
    for task in TASKS:
        rows += _rows_of(plan, models, task)
    _, encoded = cv2.imencode(".jpg", np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    Storage(str(path.parent)).write(path.name, encoded.tobytes())


def shown_cells(plan: Plan, results: Results) -> dict[str, Cell]:
    """Return the runs that are shown, by method."""
    wanted = {Cell(plan.settings[0], method, seed=plan.seeds[0]).name: method for method in METHODS_SHOWN}
    found = {wanted[cell.name]: cell for cell in results.tables if cell.name in wanted}
    return {SAM: FROZEN, **found}


def titles_of(titles: list[str], side: int) -> RgbImage:
    """Return a strip with a title over each column of ``side`` pixels, RGB uint8."""
    strip = np.full((TITLE_HEIGHT, side * len(titles), 3), 255, np.uint8)
    for column, title in enumerate(titles):
        cv2.putText(strip, title, (column * side + 4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def _rows_of(plan: Plan, models: Mapping[str, LoadedSam], task: Task) -> list[RgbImage]:
    opened = open_set(describe_set(plan.scenes("held_out"), task))
    embedders = {name: Embedder(model.sam) for name, model in models.items()}
    rows: list[RgbImage] = []
    for index in range(len(opened.keys)):
        sample = opened.load(index)
        large = [k for k, mask in enumerate(sample.masks) if mask.mean() >= SMALLEST_SHOWN]
        if not large or len(rows) == SCENES_OF_TASK[task]:
            continue
        target = sample.masks[large[index % len(large)]]
        pictures = [sample.image, draw_prediction(sample.image, target, UserPrompt())]
        for name, embedder in embedders.items():
            played = play(models[name], embedder, sample.image, target, task)
            positive = tuple((click.x, click.y) for click in played.clicks if click.positive)
            negative = tuple((click.x, click.y) for click in played.clicks if not click.positive)
            pictures.append(draw_prediction(sample.image, played.mask, UserPrompt(positive, negative)))
        rows.append(np.hstack(pictures))
    return rows
