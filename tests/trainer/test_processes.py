"""How many processes train if nobody says, and how many threads each has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sum_factory.trainer import launch as module
from sum_factory.trainer.launch import PROCESS_BYTES, choose_processes, fit_on_ranks
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.distributed import run_on_ranks
from sum_factory.trainer.training import FitSummary

Calls = list[tuple[int, int]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What ``fit_on_ranks`` is about to start: processes, and cores for all of them."""
    calls: Calls = []

    def run(function: Callable[..., object], arguments: Sequence[object], processes: int, cores: int) -> FitSummary:
        calls.append((processes, cores))
        return FitSummary(0, 1, 1.0, 0.0)

    def fit(recipe: Recipe, out: Path) -> FitSummary:
        calls.append((1, torch.get_num_threads()))
        return FitSummary(0, 1, 1.0, 0.0)

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(module, "run_on_ranks", run)
    monkeypatch.setattr(module, "fit", fit)
    monkeypatch.setattr(module, "usable_cores", lambda: 4)
    return calls


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe]) -> Recipe:
    return replace(make_recipe(batch=6, micro_batch=1), device="cpu")


@pytest.mark.parametrize(("cores", "micro_batch", "processes"), [(1, 1, 1), (4, 1, 4), (9, 1, 6), (4, 3, 2), (4, 4, 2)])
def test_a_core_each_as_far_as_micro_batches_go(
    recipe: Recipe, tmp_path: Path, cores: int, micro_batch: int, processes: int
) -> None:
    assert choose_processes(replace(recipe, micro_batch=micro_batch), tmp_path, cores) == processes


def test_no_more_than_fit_into_the_memory(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "usable_memory", lambda: 3 * PROCESS_BYTES)
    assert choose_processes(recipe, tmp_path, 6) == 2  # the weights take some
    monkeypatch.setattr(module, "usable_memory", lambda: 1)
    assert choose_processes(recipe, tmp_path, 6) == 1


def test_a_run_goes_on_with_the_processes_that_it_has(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "processes_of", lambda self, steps: 5)
    assert choose_processes(recipe, tmp_path, 2) == 5
    assert choose_processes(replace(recipe, device="cuda"), tmp_path, 2) == 5


def test_elsewhere_it_is_one_process(recipe: Recipe, tmp_path: Path) -> None:
    assert choose_processes(replace(recipe, device="cuda"), tmp_path, 8) == 1


def test_cores_that_may_be_used_are_divided(recipe: Recipe, tmp_path: Path, calls: Calls) -> None:
    for processes, threads in ((None, None), (None, 2), (3, None), (3, 8)):
        fit_on_ranks(recipe, tmp_path, processes, threads)
    assert calls == [(4, 4), (2, 2), (3, 4), (3, 8)]


def test_one_process_has_all_of_them(recipe: Recipe, tmp_path: Path, calls: Calls) -> None:
    before = torch.get_num_threads()
    try:
        fit_on_ranks(recipe, tmp_path, 1)
        fit_on_ranks(recipe, tmp_path, 1, 3)
    finally:
        torch.set_num_threads(before)
    assert calls == [(1, 4), (1, 3)]


def test_processes_that_torchrun_started_stay_as_they_are(
    recipe: Recipe, tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    fit_on_ranks(recipe, tmp_path)
    assert calls == [(1, torch.get_num_threads())]


@pytest.mark.long
def test_threads_reach_the_processes() -> None:
    assert run_on_ranks(torch.get_num_threads, (), 2, 5) == 2
