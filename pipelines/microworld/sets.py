"""Scenes of the micro-world as folders of photos and masks, the way human sets come.

    FOLDER/images/000000.png   FOLDER/salient/000000.png   FOLDER/entity/000000.png   FOLDER/part/000000.png

Salient masks are folder pairs (0 and 255); entities and parts are label maps (0 is none). ``FOLDER/sets.json`` says how
they were drawn.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from sum_factory.pipelines.microworld.coarse import Coarseness, coarsen
from sum_factory.pipelines.microworld.scene import Scene, World, make_scene
from sum_factory.shared.errors import SettingsDifferError
from sum_factory.shared.progress import track
from sum_factory.shared.settings_differ import require_same
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.data.sets import FolderPairsSettings, LabelMapsSettings, SetSettings, Task

SCENE_TASKS: tuple[Task, ...] = ("salient", "entity", "part")
"""What scenes have masks for: every task that is specified."""
RECORD = "sets.json"
REMEDY = "Name another folder, or delete this one: its scenes are drawn again."


def write_sets(
    folder: Path, seed: int, count: int, world: World | None = None, coarseness: Coarseness | None = None
) -> None:
    """Write scenes 0 to ``count`` - 1 of the world that ``seed`` names; those that are there already stay.

    With ``coarseness``, entities and parts are the coarse masks; salient objects are exact in any case. Raises
    ``SettingsDifferError`` if the scenes that are there were drawn otherwise, or do not say how.
    """
    _require_drawn_alike(folder, seed, world or World(), coarseness)
    for kind in ("images", *SCENE_TASKS):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    names = [f"{index:06d}.png" for index in range(count)]
    lacking = [(index, name) for index, name in enumerate(names) if not (folder / "part" / name).exists()]
    for index, name in track(lacking, f"drawing scenes of {folder.name}", "scene"):
        scene = make_scene(seed, index, world)
        Image.fromarray(scene.image).save(folder / "images" / name)
        Image.fromarray(scene.salient.astype(np.uint8) * np.uint8(255)).save(folder / "salient" / name)
        entities, parts = (_label_map(scene, task, coarseness) for task in SCENE_TASKS[1:])
        Image.fromarray(entities).save(folder / "entity" / name)
        aside = folder / "part" / f"{name}.partial"  # the last file vouches for the others: it is whole or not there
        Image.fromarray(parts).save(aside, "png")
        os.replace(aside, folder / "part" / name)


def _require_drawn_alike(folder: Path, seed: int, world: World, coarseness: Coarseness | None) -> None:
    """Record how the scenes of a folder are drawn, or compare it with the record that is there."""
    settings = {"seed": seed, "world": asdict(world), "coarseness": None if coarseness is None else asdict(coarseness)}
    text = json.dumps(settings, indent=1) + "\n"
    if any((folder / "part").glob("*.png")) and not (folder / RECORD).exists():
        raise SettingsDifferError(f"{folder}: expected {RECORD} beside the scenes, found none. {REMEDY}")
    Storage(str(folder)).create(RECORD, text.encode())
    require_same("settings", str(folder), json.loads((folder / RECORD).read_text()), json.loads(text), REMEDY)


def _label_map(scene: Scene, task: Task, coarseness: Coarseness | None) -> npt.NDArray[np.uint8]:
    """Return the masks of a task as a label map, uint8 (S, S); where coarse ones overlap, the later one is on top."""
    if coarseness is None:
        return {"entity": scene.entities, "part": scene.parts}[task]
    labels = np.zeros(scene.image.shape[:2], np.uint8)
    for number, mask in enumerate(scene.masks(task), 1):
        labels[coarsen(mask, coarseness)] = number
    return labels


def describe_set(folder: Path, task: Task, limit: int | None = None) -> SetSettings:
    """Describe the masks of one task as a recipe or a suite would."""
    images = folder / "images"
    if task == "salient":
        return FolderPairsSettings("folder-pairs", images, folder / task, task, name=task, limit=limit)
    return LabelMapsSettings("label-maps", images, folder / task, task, name=task, limit=limit)
