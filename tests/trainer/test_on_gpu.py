"""Training on a GPU goes on after an interruption as if there had been none, and ranks train as one does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sum_factory.shared.sam.architecture import ARCHITECTURES
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.distributed import run_on_ranks
from sum_factory.trainer.run.log import RunLog, read_log
from sum_factory.trainer.training import fit

MakeRecipe = Callable[..., Recipe]
SMALL = {"steps": 4, "batch": 2, "micro_batch": 1, "rounds": 2}


def losses(out: Path) -> list[float]:
    return [float(line["loss"]) for line in read_log(out) if "loss" in line]


def test_run_in_bf16_goes_on_as_if_it_had_not_been_interrupted(
    device: torch.device, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(**SMALL, device=str(device), precision="bf16")
    fit(recipe, tmp_path / "whole", say=lambda line: None)
    log_step = RunLog.step

    def interrupt(self: RunLog, step: int, *values: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt
        log_step(self, step, *values)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, tmp_path / "cut", say=lambda line: None)
    assert fit(recipe, tmp_path / "cut", say=lambda line: None).first_step == 2
    off = 0.0 if device.type == "cpu" else 1e-3
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=off, abs=0)


def _fit_tiny(recipe: Recipe, tiny: Any, out: Path) -> None:
    ARCHITECTURES["tiny"] = tiny  # in a process that knows of none
    fit(recipe, out, say=lambda line: None)


@pytest.mark.gpu
def test_ranks_over_nccl_train_as_one_does(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices: NCCL takes one per rank")
    recipe = replace(make_recipe(**SMALL), device="cuda")
    fit(recipe, tmp_path / "one", say=lambda line: None)
    run_on_ranks(_fit_tiny, (recipe, ARCHITECTURES["tiny"], tmp_path / "two"), 2, 2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
