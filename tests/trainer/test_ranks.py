"""Two processes that share each step train as one process does."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import TypeAdapter

from sum_factory.shared.sam.architecture import ARCHITECTURES
from sum_factory.trainer.fit import fit
from sum_factory.trainer.optimizer import OptimizerSettings
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.distributed import Ranks, join_ranks
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.run.settings import CheckpointSettings

ONE_OF_TWO = """
import sys
from sum_factory.shared.sam.architecture import ARCHITECTURES, SamArchitecture
from sum_factory.trainer import cli

ARCHITECTURES["tiny"] = {architecture!r}
cli.main(["fit", "--recipe", sys.argv[1], "--out", sys.argv[2], "--device", "cpu"])
"""


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def run_two(recipe: Recipe, out: Path, folder: Path) -> None:
    """Train as ``torchrun --nproc-per-node 2`` would."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(TypeAdapter(Recipe).dump_python(recipe, mode="json")))
    script = ONE_OF_TWO.format(architecture=ARCHITECTURES["tiny"])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(file), str(out)],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    assert "3 steps" in said[0][0]


def test_two_processes_give_the_losses_of_one_and_one_can_go_on_from_their_checkpoint(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    gentle = OptimizerSettings(learning_rate=1e-4)
    every = CheckpointSettings(every=1, keep=3)
    recipe = make_recipe(micro_batch=1, rounds=2, steps=3, optimizer=gentle, checkpoint=every)
    fit(recipe, tmp_path / "one", say=lambda _: None)
    run_two(recipe, tmp_path / "two", tmp_path)
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert [line["step"] for line in two] == [1, 2, 3]
    resumed = shutil.copytree(tmp_path / "two", tmp_path / "resumed")
    shutil.rmtree(Checkpoints(resumed).path(3))
    fit(recipe, resumed, say=lambda _: None)
    for log in (two, read_log(resumed)):
        for line, expected in zip(log, one, strict=True):
            assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            rounding = 1e-6 if line["step"] == 1 else 1e-3  # AdamW makes steps of gradients that are rounding noise
            assert line["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=rounding)
            counted = ("photos", "masks", "skipped_masks")
            assert [line[name] for name in counted] == [expected[name] for name in counted]


def test_one_process_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_ranks("cpu") as ranks:
        assert ranks == Ranks(0, 1, torch.device("cpu"))
        assert ranks.leads
        assert ranks.sum_numbers([1.5, 2.0]) == [1.5, 2.0]
        assert not torch.distributed.is_initialized()
