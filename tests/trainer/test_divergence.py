"""A run that goes wrong, and one that goes on from SUM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sum_factory.shared.errors import CheckpointError, DivergedError
from sum_factory.shared.sam.checkpoint import LoadedSam, read_header
from sum_factory.shared.sam.task_prompt import STATE_KEY, TaskPrompt
from sum_factory.trainer import training as module
from sum_factory.trainer.methods import addition
from sum_factory.trainer.optimizer import OptimizerSettings, make_optimizer, take_step
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.settings import CheckpointSettings
from sum_factory.trainer.training import fit

MakeRecipe = Callable[..., Recipe]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradient_that_is_no_number_changes_nothing(value: float) -> None:
    model = torch.nn.Linear(2, 2)
    before = model.weight.detach().clone()
    optimizer = make_optimizer(model, None, OptimizerSettings(learning_rate=0.1))
    assert model.weight.grad is not None
    model.weight.grad[0, 0] = value
    with pytest.raises(DivergedError, match=r"step 7: the gradient is (nan|inf); the last checkpoint is sound"):
        take_step(optimizer, OptimizerSettings(), 7)
    assert torch.equal(model.weight, before)


def test_run_stops_at_a_loss_that_is_no_number_and_keeps_its_checkpoint(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collate = addition.collate
    calls = []

    def spoiled(samples: Any, *rest: Any) -> Any:
        batch = collate(samples, *rest)
        calls.append(len(samples))
        if len(calls) == 3:
            batch.images[:] = float("nan")
        return batch

    monkeypatch.setattr(addition, "collate", spoiled)
    recipe = make_recipe(steps=4, method="human-only", checkpoint=CheckpointSettings(every=1, keep=9), micro_batch=8)
    with pytest.raises(DivergedError, match=r"step 3: "):
        fit(recipe, tmp_path, say=lambda _: None)
    assert Checkpoints(tmp_path).steps() == [1, 2]
    stored = load_file(Checkpoints(tmp_path).path(2) / "weights.safetensors")
    assert all(torch.isfinite(value).all() for value in stored.values())


@pytest.fixture
def sum_weights(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Makes every run start from a model with a task prompt that was trained for parts; the table."""
    load_sam = module.load_sam
    table = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))

    def load(*arguments: Any) -> LoadedSam:
        plain = load_sam(*arguments)
        prompt = TaskPrompt(plain.architecture.prompt_dim)
        prompt.load_state_dict({"weight": table})
        return LoadedSam(plain.sam, plain.architecture, plain.sha256, prompt, ("part",))

    monkeypatch.setattr(module, "load_sam", load)
    return table


def test_training_goes_on_from_the_task_prompt_of_its_weights(
    make_recipe: MakeRecipe, sum_weights: torch.Tensor, tmp_path: Path
) -> None:
    recipe = make_recipe(steps=1, optimizer=OptimizerSettings(learning_rate=1e-6))
    other = tuple(each for each in recipe.human if each.task != "part")
    fit(replace(recipe, human=other), tmp_path, say=lambda _: None)
    stored = load_file(tmp_path / "weights.safetensors")[STATE_KEY]
    assert torch.allclose(stored, sum_weights, atol=1e-4)
    assert "part" in read_header(tmp_path / "weights.safetensors")["trained_tasks"]


def test_method_without_task_prompt_refuses_weights_that_have_one(
    make_recipe: MakeRecipe, sum_weights: torch.Tensor, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="has a task prompt, which vanilla does without"):
        fit(make_recipe(steps=1, method="vanilla"), tmp_path, say=lambda _: None)
