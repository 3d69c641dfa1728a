"""Every method with an addition: it trains, and a run of it that dies ends as one that did not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sum_factory.shared.sam.settings import WEIGHTS_FILE
from sum_factory.trainer.fit import fit
from sum_factory.trainer.methods import METHODS
from sum_factory.trainer.methods.addition import ADDED, Addition
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.checkpoints import TRAINING, Checkpoints
from sum_factory.trainer.run.log import RunLog, read_log
from sum_factory.trainer.run.settings import CheckpointSettings

SETTINGS: dict[str, dict[str, Any]] = {
    "sum-online": {"every": 1},
    "u2pl": {"bank": 40, "anchors": 8, "negatives": 4, "unreliable": 0.5},
}
"""Settings under which a short run uses all that a method has."""
ADDING = [name for name, method in METHODS.items() if method.addition is not Addition]


class Died(BaseException):
    """What no code of ours catches, as no code survives a power cut."""


@pytest.fixture
def recipe_of(make_recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """``recipe_of(method, **changes)`` is a run of three steps, with a checkpoint after each."""

    def recipe_of(method: str, **changes: Any) -> Recipe:
        settings: dict[str, Any] = {
            "method": method,
            "method_settings": SETTINGS.get(method, {}),
            "uncertainty": "refinement",
            "steps": 3,
            "batch": 2,
            "micro_batch": 1,
            "rounds": 2,
            "masks": 2,
            "checkpoint": CheckpointSettings(every=1, keep=3),
        }
        return make_recipe(**{**settings, **changes})

    return recipe_of


def run(recipe: Recipe, out: Path) -> tuple[Any, ...]:
    fit(recipe, out, say=lambda _: None)
    path = Checkpoints(out).path(recipe.steps) / TRAINING
    return read_log(out), load_file(out / WEIGHTS_FILE), torch.load(path, weights_only=True).get(ADDED, {})


def equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return torch.equal(found, expected)
    if isinstance(expected, dict):
        return bool(found.keys() == expected.keys() and all(equal(found[name], expected[name]) for name in expected))
    return bool(found == expected)


@pytest.mark.parametrize("method", ADDING)
def test_run_that_dies_ends_as_one_that_did_not(
    method: str, recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(method)
    straight = run(recipe, tmp_path / "straight")
    log_step = RunLog.step

    def die(self: RunLog, step: int, *rest: Any) -> None:
        log_step(self, step, *rest)
        if step == 2:
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "step", die)
        with pytest.raises(Died):
            run(recipe, tmp_path / "died")
    assert Checkpoints(tmp_path / "died").steps() == [1]
    again = run(recipe, tmp_path / "died")
    assert [equal(*pair) for pair in zip(again, straight, strict=True)] == [True, True, True]
