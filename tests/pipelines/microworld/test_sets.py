"""Scenes written as sets of photos and masks read back as what was drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sum_factory.pipelines.microworld.coarse import Coarseness, coarsen
from sum_factory.pipelines.microworld.scene import World, make_scene
from sum_factory.pipelines.microworld.sets import SCENE_TASKS, describe_set, write_sets
from sum_factory.shared.errors import SettingsDifferError
from sum_factory.shared.sam.task_prompt import task_id
from sum_factory.trainer.data.sets import open_set

SEED, COUNT = 11, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes, which no test may change."""
    folder = tmp_path_factory.mktemp("scenes") / "new"
    write_sets(folder, SEED, COUNT)
    return folder


@pytest.mark.parametrize("task", SCENE_TASKS)
def test_sets_read_back_as_the_scenes_masks(folder: Path, task: str) -> None:
    opened = open_set(describe_set(folder, task))
    assert opened.keys == ["000000", "000001", "000002"]
    assert opened.task == task_id(task)
    for index in range(COUNT):
        sample, scene = opened.load(index), make_scene(SEED, index)
        assert np.array_equal(sample.image, scene.image)
        assert np.array_equal(sample.masks, scene.masks(task))
        assert sample.masks.any((1, 2)).all()


def test_coarse_sets_hold_coarse_entities_and_parts_and_exact_salient_objects(tmp_path: Path) -> None:
    coarseness = Coarseness(close=13, open=11)
    write_sets(tmp_path, SEED, COUNT, coarseness=coarseness)
    for number in range(COUNT):
        scene = make_scene(SEED, number)
        read = {task: open_set(describe_set(tmp_path, task)).load(number) for task in SCENE_TASKS}
        assert np.array_equal(read["salient"].masks, scene.masks("salient"))
        for task in ("entity", "part"):
            coarse = [coarsen(mask, coarseness) for mask in scene.masks(task)]
            covered = [mask & ~np.any(coarse[k + 1 :], axis=0) for k, mask in enumerate(coarse)]
            assert np.array_equal(read[task].masks, [mask for mask in covered if mask.any()])


def test_limit_takes_the_first_scenes(folder: Path) -> None:
    settings = describe_set(folder, "part", limit=2)
    assert (settings.name, settings.task) == ("part", "part")
    assert open_set(settings).keys == ["000000", "000001"]


def test_scenes_that_are_there_stay_and_the_rest_is_drawn(
    folder: Path, tmp_path: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    write_sets(tmp_path, SEED, 2)
    first = snapshot(tmp_path)
    write_sets(tmp_path, SEED, COUNT)
    after = snapshot(tmp_path)
    assert first.items() <= after.items()
    assert after == snapshot(folder)


def test_scene_whose_writing_was_interrupted_is_drawn_again(
    folder: Path, tmp_path: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    write_sets(tmp_path, SEED, COUNT)
    (tmp_path / "part" / "000001.png").unlink()
    (tmp_path / "entity" / "000001.png").write_bytes(b"half")
    write_sets(tmp_path, SEED, COUNT)
    assert snapshot(tmp_path) == snapshot(folder)


def test_scenes_that_were_drawn_otherwise_are_refused(tmp_path: Path) -> None:
    write_sets(tmp_path, SEED, 1)
    for drawn in (
        lambda: write_sets(tmp_path, SEED + 1, 1),
        lambda: write_sets(tmp_path, SEED, 1, World(parts=(0, 1))),
        lambda: write_sets(tmp_path, SEED, 1, coarseness=Coarseness()),
    ):
        with pytest.raises(SettingsDifferError, match=f"{tmp_path}: was made with other settings"):
            drawn()
    write_sets(tmp_path, SEED, 1)
    (tmp_path / "sets.json").unlink()
    with pytest.raises(SettingsDifferError, match=r"expected sets\.json beside the scenes"):
        write_sets(tmp_path, SEED, 1)
