"""What Ray Train is asked for, and what is told of what it raises; test_ray_long.py has real workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import distributed

from sum_factory.shared.cluster.connect import Workers
from sum_factory.shared.errors import InputError, SettingsError, WorkerError
from sum_factory.trainer import launch as module
from sum_factory.trainer.cli import main
from sum_factory.trainer.launch import OnRay, on_ranks
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run import ray_train
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.distributed import join_ranks
from sum_factory.trainer.run.ray_train import cause_of, require_ray_train
from sum_factory.trainer.training import fit


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe]) -> Recipe:
    return make_recipe(micro_batch=1)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What ``run_on_ray`` is asked for."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(ray_train, "run_on_ray", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(module, "usable_cores", lambda: 6)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return calls


@pytest.mark.parametrize(
    ("processes", "threads", "ray", "workers", "own"),
    [
        (None, None, OnRay(), Workers(4, None, 0, 1), 1),  # as many as a step has micro-batches
        (2, None, OnRay(), Workers(2, None, 0, 3), 3),
        (2, 4, OnRay(), Workers(2, None, 0, 2), 2),
        (2, None, OnRay("auto"), Workers(2, "auto", 0, 1), 1),
        (8, 3, OnRay("auto", 0, 4), Workers(8, "auto", 0, 4), 3),
        (2, None, OnRay(None, 0, 0.5, 3), Workers(2, None, 0, 0.5), 1),
    ],
)
def test_ray_is_asked_for_workers_with_a_share_of_the_cores(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[tuple[Any, ...]],
    processes: int | None,
    threads: int | None,
    ray: OnRay,
    workers: Workers,
    own: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    on_ranks(fit, recipe, Path("out"), processes, threads, ray)
    assert asked == [(fit, (recipe, tmp_path / "out"), workers, own, ray.restarts)]


def test_workers_with_gpus_train_on_them_and_the_others_on_their_cpus(
    recipe: Recipe, tmp_path: Path, asked: list[tuple[Any, ...]]
) -> None:
    auto = replace(recipe, device="auto")
    for gpus in (0.0, 1.0):
        on_ranks(fit, auto, tmp_path, 2, None, OnRay("auto", gpus))
    assert [arguments[0].device for _, arguments, *_ in asked] == ["cpu", "cuda"]
    for device, gpus in (("cuda:1", 0.0), ("cpu", 1.0)):
        with pytest.raises(SettingsError, match=f"the device is {device}, and workers of Ray have {gpus:g} GPUs each"):
            on_ranks(fit, replace(recipe, device=device), tmp_path, 2, None, OnRay("auto", gpus))


def test_the_number_of_workers_is_given_or_that_which_the_run_began_with(
    recipe: Recipe, tmp_path: Path, asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match="--launcher ray needs --processes"):
        on_ranks(fit, recipe, tmp_path, ray=OnRay("auto"))
    monkeypatch.setattr(Checkpoints, "processes_of", lambda self, steps: 5)
    on_ranks(fit, recipe, tmp_path, ray=OnRay("auto"))
    assert asked[0][2] == Workers(5, "auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="without torchrun"):
        on_ranks(fit, recipe, tmp_path, 2, None, OnRay())


def test_options_of_ray_are_refused_without_it(tmp_path: Path) -> None:
    given = ["fit", "--recipe", "ft_small", "--out", str(tmp_path), "--max-restarts", "2"]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 2
    assert "--max-restarts are for --launcher ray" in result.output


def test_what_ray_train_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.train", None)
    with pytest.raises(SettingsError, match=r"ray\.train.*: pip install 'sum-factory\[ray-train\]', on all nodes"):
        require_ray_train()


class WrappedError(Exception):
    """What Ray Train makes of an exception of a worker."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._base_exc = error


class FailedError(Exception):
    """What Ray Train raises."""

    def __init__(self, failures: dict[int, Exception] | None = None) -> None:
        super().__init__("Training failed\nsomewhere")
        if failures is not None:
            self.worker_failures = failures


LOST, GONE, DIED = (
    WrappedError(WorkerError("has lost the others")),
    WrappedError(InputError("a photo is gone")),
    OSError("died"),
)


@pytest.mark.parametrize(
    ("failures", "kind", "expected"),
    [
        ({0: LOST, 2: DIED}, WorkerError, "of 3 training workers 2 died or could not be reached"),
        ({1: DIED, 2: DIED}, WorkerError, "of 3 training workers 1, 2 died or could not be reached"),
        ({0: LOST, 1: GONE}, InputError, "a photo is gone"),
        ({0: LOST, 1: GONE, 2: DIED}, InputError, "a photo is gone"),
        ({0: LOST}, WorkerError, "has lost the others"),
        ({0: LOST, 1: WrappedError(KeyError("a fault"))}, FailedError, "Training failed"),
        (None, WorkerError, "Ray has not started 3 training workers, which ask for 1 CPUs and 0 GPUs each"),
    ],
)
def test_the_first_cause_is_told(failures: dict[int, Exception] | None, kind: type[Exception], expected: str) -> None:
    found = cause_of(FailedError(failures), Workers(3))
    assert type(found) is kind
    assert expected in str(found)


def test_a_worker_works_in_the_folder_of_the_command_with_its_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    before = torch.get_num_threads()
    work = {"function": lambda *given: (given, Path.cwd(), torch.get_num_threads()), "arguments": (1, 2), "threads": 3}
    try:
        assert ray_train._work({**work, "folder": str(tmp_path)}) == ((1, 2), tmp_path, 3)
        assert ray_train._work({**work, "folder": str(tmp_path / "elsewhere")}) == ((1, 2), tmp_path, 3)
    finally:
        torch.set_num_threads(before)


def test_processes_that_ray_has_joined_are_not_joined_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    joined = distributed.group.WORLD
    with join_ranks("cpu") as ranks:
        assert distributed.group.WORLD is joined
        assert (ranks.rank, ranks.count, ranks.device.type) == (0, 2, "cpu")
    assert not distributed.is_initialized()
    assert "TORCHELASTIC_RESTART_COUNT" not in os.environ
