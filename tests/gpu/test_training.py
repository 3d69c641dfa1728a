"""Training on a GPU goes on after an interruption as if there had been none, and ranks train as one does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sum_factory.pipelines.microworld.sets import write_sets
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.trainer.data.sets import LabelMapsSettings
from sum_factory.trainer.optimizer import OptimizerSettings
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.distributed import run_on_ranks
from sum_factory.trainer.run.log import RunLog, read_log
from sum_factory.trainer.run.settings import CheckpointSettings
from sum_factory.trainer.training import fit

STEPS = 2


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("human")
    write_sets(folder, 7, 2)
    human = LabelMapsSettings("label-maps", folder / "images", folder / "entity", "entity", name="entity")
    return Recipe(
        human=(human,),
        sam=PACKAGED,
        method="human-only",
        steps=STEPS,
        batch=2,
        micro_batch=1,
        masks=1,
        rounds=2,
        optimizer=OptimizerSettings(warmup=0),
        checkpoint=CheckpointSettings(every=STEPS // 2),
        data_threads=1,
    )


def losses(out: Path) -> list[float]:
    return [float(line["loss"]) for line in read_log(out) if "loss" in line]


def test_run_in_bf16_goes_on_as_if_it_had_not_been_interrupted(
    device: torch.device, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(recipe, device=str(device), precision="bf16")
    fit(recipe, tmp_path / "whole", say=lambda line: None)
    log_step = RunLog.step

    def interrupt(self: RunLog, step: int, *values: Any) -> None:
        if step > STEPS // 2:
            raise KeyboardInterrupt
        log_step(self, step, *values)

    monkeypatch.setattr(RunLog, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, tmp_path / "cut", say=lambda line: None)
    monkeypatch.undo()
    assert fit(recipe, tmp_path / "cut", say=lambda line: None).first_step == STEPS // 2
    off = 0.0 if device.type == "cpu" else 1e-3
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=off, abs=0)


def _fit(recipe: Recipe, out: Path) -> None:
    fit(recipe, out, say=lambda line: None)


@pytest.mark.gpu
def test_ranks_over_nccl_train_as_one_does(recipe: Recipe, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices: NCCL takes one per rank")
    recipe = replace(recipe, device="cuda", precision="fp32")
    fit(recipe, tmp_path / "one", say=lambda line: None)
    run_on_ranks(_fit, (recipe, tmp_path / "two"), 2, 2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
