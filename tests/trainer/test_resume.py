"""A run that dies and is started again ends as one that did not die: every logged number, every bit of the weights."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

from sum_factory.shared.errors import CheckpointError, SettingsDifferError
from sum_factory.shared.sam.architecture import ARCHITECTURES
from sum_factory.shared.sam.settings import WEIGHTS_FILE
from sum_factory.trainer.optimizer import OptimizerSettings
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run import checkpoints as checkpoint_module
from sum_factory.trainer.run.checkpoints import STATE, TRAINING, Checkpoints
from sum_factory.trainer.run.log import LOG, read_log
from sum_factory.trainer.run.settings import CheckpointSettings
from sum_factory.trainer.training import fit

DYING_RUN = """
import os, signal, sys
from sum_factory.shared.sam.architecture import ARCHITECTURES, SamArchitecture
from sum_factory.trainer import cli
from sum_factory.trainer.run import log

ARCHITECTURES["tiny"] = {architecture!r}
log_step = log.RunLog.step

def log_step_and_die(self, step, values, waited):
    log_step(self, step, values, waited)
    if step == {last}:
        os.kill(os.getpid(), signal.SIGKILL)

log.RunLog.step = log_step_and_die
cli.main(["fit", "--recipe", sys.argv[1], "--out", sys.argv[2], "--threads", "1"])
"""

Outcome = tuple[list[dict[str, Any]], dict[str, Tensor]]


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe]) -> Recipe:
    """Six steps of a mixed batch whose rate warms up and falls, so that a wrong step number would show."""
    falling = OptimizerSettings(learning_rate=1e-3, warmup=2, schedule="cosine", task_prompt_scale=10)
    return make_recipe(batch=2, micro_batch=2, rounds=2, optimizer=falling)


def outcome(out: Path) -> Outcome:
    """Return what a run has logged and where it ended."""
    return read_log(out), load_file(out / WEIGHTS_FILE)


def assert_same(found: Outcome, expected: Outcome) -> None:
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    assert [name for name, value in expected[1].items() if not torch.equal(found[1][name], value)] == []


def run(recipe: Recipe, out: Path) -> Outcome:
    fit(recipe, out, say=lambda _: None)
    return outcome(out)


def test_run_killed_in_the_middle_ends_bit_identical(recipe: Recipe, tmp_path: Path) -> None:
    straight = run(recipe, tmp_path / "straight")
    assert [line["step"] for line in straight[0]] == [1, 2, 3, 4, 5, 6]
    out, file = tmp_path / "killed", tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(TypeAdapter(Recipe).dump_python(recipe, mode="json")))
    script = DYING_RUN.format(architecture=ARCHITECTURES["tiny"], last=5)
    command = [sys.executable, "-c", script, str(file), str(out)]
    died = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert [line["step"] for line in read_log(out)] == [1, 2, 3, 4, 5]  # step 5 is in no checkpoint
    assert Checkpoints(out).steps() == [2, 4]
    assert_same(run(recipe, out), straight)


def test_run_resumed_from_any_of_its_checkpoints_ends_bit_identical(recipe: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(recipe, steps=4, checkpoint=CheckpointSettings(every=1, keep=4))
    straight = run(recipe, tmp_path / "straight")
    assert Checkpoints(tmp_path / "straight").steps() == [1, 2, 3, 4]
    for last in (1, 2, 3):
        out = shutil.copytree(tmp_path / "straight", tmp_path / f"from{last}")
        for step in range(last + 1, 5):
            shutil.rmtree(Checkpoints(out).path(step))
        (out / WEIGHTS_FILE).unlink()
        assert_same(run(recipe, out), straight)


class Died(BaseException):
    """What no code of ours catches, as no code survives a power cut."""


def test_run_that_dies_while_it_writes_ends_bit_identical(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies before or after each of the renames that make a checkpoint visible or remove an old one."""
    recipe = dataclasses.replace(recipe, steps=3, checkpoint=CheckpointSettings(every=1, keep=1))
    straight = run(recipe, tmp_path / "straight")
    for moment in range(1, 7):
        renames = 0

        def rename(old: Path, new: Path, moment: int = moment) -> None:
            nonlocal renames
            renames += 1
            if 2 * renames - 1 == moment:
                raise Died
            os.replace(old, new)
            if 2 * renames == moment:
                raise Died

        out = tmp_path / f"died{moment}"
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_module.os, "rename", rename)
            with pytest.raises(Died):
                run(recipe, out)
        assert_same(run(recipe, out), straight)
        assert [path.name for path in Checkpoints(out).folder.iterdir()] == ["000003"]


def test_optimizer_goes_on_and_does_not_start_anew(recipe: Recipe, tmp_path: Path) -> None:
    """Without its moments the rest of the run is another one: what the tests above compare does depend on them."""
    straight = run(recipe, tmp_path / "straight")
    out = shutil.copytree(tmp_path / "straight", tmp_path / "fresh")
    shutil.rmtree(Checkpoints(out).path(6))
    path = Checkpoints(out).path(4) / TRAINING
    state = torch.load(path, weights_only=True)
    torch.save({**state, "state": {}}, path)
    fresh = run(recipe, out)
    assert fresh[0][:5] == straight[0][:5]
    assert fresh[0][5]["loss"] != straight[0][5]["loss"]


def test_finished_run_has_nothing_to_do(recipe: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(recipe, steps=2)
    first = run(recipe, tmp_path)
    written = (tmp_path / WEIGHTS_FILE).read_bytes()
    summary = fit(recipe, tmp_path, say=lambda _: None)
    assert summary.lines() == "2 of 2 steps present, nothing to do"
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == written
    assert_same(outcome(tmp_path), first)


def test_finished_run_goes_on_if_more_steps_are_asked_for(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_recipe(batch=2, rounds=2, steps=4)
    straight = run(recipe, tmp_path / "straight")
    run(dataclasses.replace(recipe, steps=2), tmp_path / "out")
    assert_same(run(recipe, tmp_path / "out"), straight)


def test_run_is_not_resumed_with_other_settings(recipe: Recipe, tmp_path: Path, human_folder: Path) -> None:
    recipe = dataclasses.replace(recipe, steps=1)
    run(recipe, tmp_path)
    before = (tmp_path / WEIGHTS_FILE).read_bytes(), (tmp_path / LOG).read_bytes()
    salient, parts = recipe.human
    changes: dict[str, dict[str, Any]] = {
        "seed": {"seed": 1},
        "method": {"method": "vanilla"},
        "batch": {"batch": 4},
        "steps": {"steps": 8},  # on which the falling rate depends
        "stride": {"stride": 2},
        "target": {"target": "points"},
        "masks": {"masks": 2},
        "human_data": {"human": (salient, dataclasses.replace(parts, task="entity"))},
        "human_settings": {"human": (dataclasses.replace(salient, foreground="zero"), parts)},
    }
    for name, change in changes.items():
        with pytest.raises(SettingsDifferError, match=rf"(?s)settings or data.*  {name}: .*another --out folder"):
            run(dataclasses.replace(recipe, **change), tmp_path)
    other = dataclasses.replace(salient, list=tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("photo0\n")
    with pytest.raises(SettingsDifferError, match=r"  human_data: "):
        run(dataclasses.replace(recipe, human=(other, parts)), tmp_path)
    assert ((tmp_path / WEIGHTS_FILE).read_bytes(), (tmp_path / LOG).read_bytes()) == before


def test_run_past_the_steps_that_are_asked_for_is_left_alone(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe(batch=2, rounds=2, steps=3, checkpoint=CheckpointSettings(every=3))
    done = run(recipe, tmp_path)
    with pytest.raises(CheckpointError, match=r"is at step 3 already.* another --out folder"):
        run(dataclasses.replace(recipe, steps=2), tmp_path)
    assert_same(outcome(tmp_path), done)


def test_run_is_resumed_where_the_same_data_lie_elsewhere(recipe: Recipe, tmp_path: Path, human_folder: Path) -> None:
    recipe = dataclasses.replace(recipe, steps=2, checkpoint=CheckpointSettings(every=1))
    straight = run(recipe, tmp_path / "straight")
    run(dataclasses.replace(recipe, steps=2), tmp_path / "out")
    shutil.rmtree(Checkpoints(tmp_path / "out").path(2))
    moved = shutil.copytree(human_folder, tmp_path / "moved")
    text = json.dumps(TypeAdapter(Recipe).dump_python(recipe, mode="json")).replace(str(human_folder), str(moved))
    elsewhere = TypeAdapter(Recipe).validate_python({**json.loads(text), "data_threads": 1})
    assert_same(run(elsewhere, tmp_path / "out"), straight)


def test_state_says_what_the_run_is(recipe: Recipe, tmp_path: Path) -> None:
    run(dataclasses.replace(recipe, steps=1), tmp_path)
    state = json.loads((Checkpoints(tmp_path).path(1) / STATE).read_text())
    assert state["step"] == 1
    assert state["identity"]["method"] == "sum"
    assert {"sam_sha256", "human_data", "pseudo_data", "layer_masks", "layer_uncertainty/refinement"} <= {
        *state["identity"]
    }
