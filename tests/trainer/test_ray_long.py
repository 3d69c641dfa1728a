"""Real workers of Ray Train, of a Ray on this machine: they train as other processes do, die, and go on."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sum_factory.shared.cluster.connect import Workers
from sum_factory.shared.errors import CheckpointError, InputError, WorkerError
from sum_factory.shared.sam.architecture import ARCHITECTURES
from sum_factory.shared.sam.settings import WEIGHTS_FILE
from sum_factory.trainer import training as fit_module
from sum_factory.trainer.launch import OnRay, on_ranks
from sum_factory.trainer.optimizer import OptimizerSettings
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.run.ray_train import run_on_ray
from sum_factory.trainer.run.settings import CheckpointSettings
from sum_factory.trainer.training import FitSummary, fit

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

Work = Callable[[Recipe, Path], FitSummary]


@pytest.fixture(scope="module", autouse=True)
def by_value() -> None:
    """Workers cannot import the tests: they are given what is defined here."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe]) -> Recipe:
    falling = OptimizerSettings(learning_rate=1e-3, warmup=2, schedule="cosine", task_prompt_scale=10)
    return make_recipe(
        micro_batch=1, rounds=3, steps=6, optimizer=falling, checkpoint=CheckpointSettings(every=2, keep=2)
    )


def training(signal_at_4: int | None = None, died: Path | None = None) -> Work:
    """Return what trains in a worker, which knows no ``tiny``; the second one gets a signal once, before step 4."""
    architecture = ARCHITECTURES["tiny"]

    def train(recipe: Recipe, out: Path) -> FitSummary:
        from sum_factory.shared.sam import architecture as module  # what is global here is copied

        module.ARCHITECTURES["tiny"] = architecture
        train_step = fit_module.train_step

        def step_or_die(*arguments: Any) -> dict[str, Any]:
            if arguments[3] == 4 and os.environ["RANK"] == "1" and died is not None and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal_at_4 or signal.SIGKILL)
            return train_step(*arguments)

        fit_module.train_step = step_or_die
        return fit(recipe, out, say=lambda _: None)

    return train


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / WEIGHTS_FILE)


def assert_same_run(found: Path, expected: Path) -> None:
    """The weights to the bit, what is logged but for the order in which fp64 numbers are added."""
    weights = weights_of(expected)
    assert [name for name, value in weights_of(found).items() if not torch.equal(value, weights[name])] == []
    for line, other in zip(read_log(found), read_log(expected), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-12)


def test_workers_of_ray_train_as_processes_do_and_go_on_when_one_is_killed(recipe: Recipe, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    fit(recipe, tmp_path / "alone", say=lambda _: None)
    ray = OnRay(restarts=1)
    told = on_ranks(training(died=tmp_path / "died"), recipe, tmp_path / "killed", 2, 2, ray)
    assert (tmp_path / "died").exists(), "nobody was killed"
    assert (told.first_step, told.steps) == (2, 6)  # of the second start
    assert_same_run(tmp_path / "killed", tmp_path / "alone")
    with pytest.raises(WorkerError, match=r"of 2 training workers .*1.* died or could not be reached"):
        on_ranks(training(died=tmp_path / "again"), recipe, tmp_path / "ended", 2, 2, OnRay())
    assert Checkpoints(tmp_path / "ended").steps() == [2]
    on_ranks(training(), recipe, tmp_path / "ended", 2, 2, OnRay())
    assert_same_run(tmp_path / "ended", tmp_path / "alone")
    assert Checkpoints(tmp_path / "ended").processes_of(6) == 2


def test_a_worker_that_is_stopped_ends_the_run_within_a_minute(recipe: Recipe, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    with pytest.raises(WorkerError, match=r"of 2 training workers .* died or could not be reached"):
        on_ranks(training(signal.SIGSTOP, stopped), recipe, tmp_path / "out", 2, 2, OnRay())
    assert time.time() - stopped.stat().st_mtime < 60


def failing(error: Exception) -> None:
    """Fail in the second worker, while the first one waits for it."""
    from torch import distributed

    if os.environ["RANK"] == "1":
        raise error
    distributed.barrier()


def test_what_a_worker_raises_is_raised_here() -> None:
    for error in (InputError("a photo is gone"), CheckpointError("damaged")):
        with pytest.raises(type(error), match=str(error)):
            run_on_ray(failing, (error,), Workers(2), 1)
