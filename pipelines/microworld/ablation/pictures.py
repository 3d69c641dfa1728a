"""Held-out masks after 3 points, by method: a sheet of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from sum_factory.pipelines.demo.player import Player, draw_played, shown_targets
from sum_factory.pipelines.microworld.ablation.cells import FROZEN, SAM, Cell
from sum_factory.pipelines.microworld.ablation.results import Results
from sum_factory.pipelines.microworld.ablation.settings import Plan
from sum_factory.shared.images import RgbImage
from sum_factory.shared.masks import Mask
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.data.human import HumanSample
from sum_factory.trainer.data.sets import Task
from sum_factory.trainer.evaluation.run import load_weights
from sum_factory.trainer.predict import UserPrompt, draw_prediction

METHODS_SHOWN = (SAM, "human-only", "vanilla", "sum")
SCENES_OF_TASK: dict[Task, int] = {"salient": 2, "entity": 3, "part": 3}
SMALLEST_SHOWN = 0.015
"""Masks that cover less of the scene are left out of the pictures."""
TITLE_HEIGHT = 24
QUALITY = 75


def write_pictures(plan: Plan, results: Results, path: Path) -> None:
    """Write a JPEG: a row per mask, its scene, the exact mask, and what each method makes of it after 3 points.

    Methods are those of the plan's first setting and seed that have been run. Raises ``StorageError``.
    """
    cells = shown_cells(plan, results)
    players = {
        method: Player(load_weights(plan.sam if cell.is_frozen else str(cell.folder(plan)), Runtime()))
        for method, cell in cells.items()
    }
    titles = ["scene", "exact mask", *players]
    rows = [titles_of(titles, plan.world.side)]
    for task, count in SCENES_OF_TASK.items():
        shown = shown_targets(plan.scenes("held_out"), task, count, SMALLEST_SHOWN)
        rows += [_row_of(players, scene, target, task) for scene, target in shown]
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


def _row_of(players: Mapping[str, Player], scene: HumanSample, target: Mask, task: Task) -> RgbImage:
    played = (player.play(scene, target, task) for player in players.values())
    exact = draw_prediction(scene.image, target, UserPrompt())
    return np.hstack([scene.image, exact, *(draw_played(each, scene.image) for each in played)])
