"""Real processes, started by torchrun: twenty steps on one rank and on several, kills, and blocks in parts."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

from sum_factory.labelgen.run import run as label
from sum_factory.labelgen.run_settings import RunSettings
from sum_factory.pipelines.microworld.sets import describe_set, write_sets
from sum_factory.shared.automask.settings import settings_for
from sum_factory.shared.errors import WorkerError
from sum_factory.shared.sam.architecture import ARCHITECTURES
from sum_factory.shared.sam.settings import PACKAGED, WEIGHTS_FILE
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.losses import LossSettings
from sum_factory.trainer.optimizer import OptimizerSettings
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.distributed import join_ranks, run_on_ranks
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.run.settings import CheckpointSettings, ValidationSettings

pytestmark = pytest.mark.long

RANK = """
import json, os, signal, sys
from pathlib import Path
from sum_factory.shared.errors import WorkerError
from sum_factory.shared.sam.architecture import ARCHITECTURES, SamArchitecture
from sum_factory.trainer import cli
from sum_factory.trainer import training as fit
from sum_factory.trainer.run import checkpoints

ARCHITECTURES["tiny"] = {architecture!r}
kill = json.loads({kill!r})
mine = kill is not None and int(os.environ["RANK"]) == kill["rank"]
if mine and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
    train_step, backpropagate, write = fit.train_step, fit.backpropagate, checkpoints._write_synced
    now = [0]

    def die():
        Path({died!r}).touch()
        os.kill(os.getpid(), kill.get("signal", signal.SIGKILL))

    def step_or_die(recipe, model, samples, step, ranks):
        now[0] = step
        if (step, "step") == (kill["step"], kill["moment"]):
            die()
        return train_step(recipe, model, samples, step, ranks)

    def backpropagate_and_die(*arguments):
        backpropagate(*arguments)
        if (now[0], "gradients") == (kill["step"], kill["moment"]):
            die()

    def write_and_die(path, data):
        write(path, data)
        if kill["moment"] == "save" and now[0] >= kill["step"]:
            die()  # the other files of the checkpoint are missing

    fit.train_step, fit.backpropagate, checkpoints._write_synced = step_or_die, backpropagate_and_die, write_and_die
cli.main(["fit", "--recipe", {recipe!r}, "--out", {out!r}, "--device", "cpu"])
"""

Outcome = tuple[list[dict[str, Any]], dict[str, Tensor]]


def script_of(recipe: Recipe, out: Path, kill: dict[str, Any] | None = None) -> Path:
    """Write what a rank runs; it is killed or stopped as ``kill`` says, unless it has been started again."""
    folder = out.parent / f"{out.name}_script"
    folder.mkdir(exist_ok=True)
    file, script = folder / "recipe.yaml", folder / "rank.py"
    file.write_text(yaml.safe_dump(TypeAdapter(Recipe).dump_python(recipe, mode="json")))
    architecture = ARCHITECTURES.get("tiny")
    places = {"recipe": str(file), "out": str(out), "died": str(folder / "died")}
    script.write_text(RANK.format(architecture=architecture, kill=json.dumps(kill), **places))
    return script


def torchrun(
    ranks: int, recipe: Recipe, out: Path, kill: dict[str, Any] | None = None, restarts: int = 0
) -> subprocess.CompletedProcess[str]:
    """Train on so many ranks of one thread each."""
    script = script_of(recipe, out, kill)
    options = ["--standalone", "--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
    )


def trained(ranks: int, recipe: Recipe, out: Path, **kill: Any) -> Outcome:
    """Train on so many ranks to the end; return the log and the weights."""
    done = torchrun(ranks, recipe, out, **kill)
    assert done.returncode == 0, done.stderr
    return read_log(out), load_file(out / WEIGHTS_FILE)


def differing(found: Outcome, expected: Outcome) -> list[str]:
    """Return the tensors that differ, after the logs have been compared."""
    assert [line["step"] for line in found[0]] == [line["step"] for line in expected[0]]
    for line, other in zip(found[0], expected[0], strict=True):
        assert all(line[name] == pytest.approx(other[name], rel=1e-12) for name in other), line["step"]
    return [name for name, value in expected[1].items() if not torch.equal(found[1][name], value)]


@pytest.fixture(scope="module")
def micro_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of the micro-world with human masks, and shards that ``vit_micro`` made of others."""
    folder = tmp_path_factory.mktemp("micro")
    write_sets(folder / "pool", 11, 6)
    write_sets(folder / "human", 12, 8)
    settings = settings_for(PACKAGED, points_per_side=12)
    photos, shards = (str(folder / "pool" / "images"),), str(folder / "shards")
    label(RunSettings(photos, shards, automask=settings, unit_size=3, workers=0, refiner=PACKAGED), lambda _: None)
    return folder


@pytest.mark.parametrize("method", ["sum", "vanilla", "human-only"])
def test_twenty_steps_of_vit_micro_are_the_same_on_any_number_of_ranks(
    micro_world: Path, tmp_path: Path, method: str
) -> None:
    sets: tuple[SetSettings, ...] = tuple(
        describe_set(micro_world / "human", task, 8) for task in ("salient", "entity")
    )
    recipe = Recipe(
        human=sets,
        shards=str(micro_world / "shards"),
        method=method,
        steps=20,
        batch=4,
        masks=3,
        loss=LossSettings(temperature=3),
        precision="fp32",
        device="cpu",
    )
    assert recipe.rounds == 7

    def made(ranks: int, together: int) -> Outcome:
        return trained(ranks, dataclasses.replace(recipe, micro_batch=together), tmp_path / f"{ranks}x{together}")

    for together in (1, 2):
        alone = made(1, together)
        assert [line["step"] for line in alone[0]] == list(range(1, 21))
        assert differing(made(2, together), alone) == []


@pytest.fixture(scope="module")
def straight() -> dict[str, Outcome]:
    """The run that nothing happens to, once it has been made."""
    return {}


def small(make_recipe: Callable[..., Recipe]) -> Recipe:
    falling = OptimizerSettings(learning_rate=1e-3, warmup=2, schedule="cosine", task_prompt_scale=10)
    every = CheckpointSettings(every=2, keep=2)
    return make_recipe(micro_batch=1, rounds=3, steps=8, optimizer=falling, checkpoint=every)


@pytest.mark.parametrize("seed", range(10))
def test_a_run_with_a_killed_rank_ends_as_one_without(
    make_recipe: Callable[..., Recipe], straight: dict[str, Outcome], tmp_path: Path, seed: int
) -> None:
    """Even seeds are started again by torchrun, odd ones by hand: from one rank to two, or from two to one."""
    recipe, drawn = small(make_recipe), random.Random(seed)
    if not straight:
        straight["run"] = trained(2, recipe, tmp_path / "straight")
    moment = drawn.choice(["step", "gradients", "save"])
    before, after = (2, 2) if seed % 2 == 0 else drawn.choice([(1, 2), (2, 1)])
    rank = 0 if moment == "save" else drawn.randrange(before)
    kill = {"rank": rank, "step": drawn.randint(1, 8), "moment": moment}
    out = tmp_path / "killed"
    if seed % 2 == 0:
        found = trained(before, recipe, out, kill=kill, restarts=1)
    else:
        died = torchrun(before, recipe, out, kill=kill)
        assert died.returncode != 0
        assert "Signal 9 (SIGKILL)" in died.stderr
        found = trained(after, recipe, out)
    assert (tmp_path / "killed_script" / "died").exists(), "nobody was killed"
    assert differing(found, straight["run"]) == []


def test_who_is_left_alone_ends_within_a_minute_and_says_why(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Without torchrun, which would end it first; as on other nodes."""
    out = tmp_path / "out"
    script = script_of(small(make_recipe), out, {"rank": 1, "step": 3, "moment": "step"})
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29613", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        assert ranks[1].wait(600) == -signal.SIGKILL
        started, said = time.monotonic(), []
        for line in ranks[0].stderr or ():
            said.append(line)
            if "process 0 of 2 has lost the others" in line:
                assert time.monotonic() - started < 60
                break
        said.append(ranks[0].communicate(timeout=600)[1])  # to take down an interpreter takes seconds
    finally:
        for process in ranks:
            process.kill()
            with process:  # closes its pipe, and waits
                pass
    assert ranks[0].returncode == 1
    assert "has lost the others" in said[-2]
    assert "Traceback" not in "".join(said)
    assert Checkpoints(out).steps() == [2]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_ends_the_run_within_a_minute_and_it_goes_on(
    make_recipe: Callable[..., Recipe], straight: dict[str, Outcome], tmp_path: Path, rank: int
) -> None:
    """It has no exit status, and its connections stay open, as those of a machine that is gone."""
    recipe, out = small(make_recipe), tmp_path / "out"
    if not straight:
        straight["run"] = trained(2, recipe, tmp_path / "straight")
    stop = {"rank": rank, "step": 4, "moment": "step", "signal": signal.SIGSTOP}
    ended = torchrun(2, recipe, out, kill=stop)
    took = time.time() - (tmp_path / "out_script" / "died").stat().st_mtime
    assert ended.returncode != 0
    assert f"error: process {1 - rank} of 2 has not heard of {rank} for 15 s" in ended.stderr
    assert took < 60
    assert Checkpoints(out).steps() == [2]
    (tmp_path / "out_script" / "died").unlink()
    found = trained(2, recipe, out, kill=stop | {"step": 6}, restarts=1)
    assert (tmp_path / "out_script" / "died").exists(), "nobody was stopped"
    assert differing(found, straight["run"]) == []


def stopped_in_process(out: Path) -> None:
    """Wait for two processes of ``run_on_ranks``, of which the second stops itself."""
    with join_ranks("cpu") as ranks:
        ranks.wait()
        if not ranks.leads:
            out.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        ranks.wait()


def test_a_process_of_this_machine_that_is_stopped_ends_the_others_and_is_ended(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="one of 2 training processes was stopped"):
        run_on_ranks(stopped_in_process, (tmp_path / "stopped",), 2, 2)
    assert time.time() - (tmp_path / "stopped").stat().st_mtime < 60
    assert multiprocessing.active_children() == []


def test_blocks_in_parts_give_the_losses_of_whole_ones(
    make_recipe: Callable[..., Recipe], human_sets: tuple[SetSettings, ...], tmp_path: Path
) -> None:
    """Three photos on two ranks, and a validation of five: neither can be divided."""
    validation = ValidationSettings(human_sets, every=2, rounds=2)
    gentle = OptimizerSettings(learning_rate=1e-4)
    every = CheckpointSettings(every=2, keep=4)
    recipe = make_recipe(
        batch=3, micro_batch=1, steps=6, rounds=7, optimizer=gentle, validation=validation, checkpoint=every
    )
    plain = trained(1, recipe, tmp_path / "plain")
    split = dataclasses.replace(recipe, fsdp=True, activation_checkpointing=True)
    parts = trained(2, split, tmp_path / "parts")
    resumed = shutil.copytree(tmp_path / "parts", tmp_path / "resumed")
    for step in (4, 6):
        shutil.rmtree(Checkpoints(resumed).path(step))
    for log, weights in (parts, trained(1, recipe, resumed)):
        for line, other in zip(log, plain[0], strict=True):
            if "loss" in line:
                assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
            else:
                assert line["validation"] == pytest.approx(other["validation"], abs=1e-3)
        assert weights.keys() == plain[1].keys()
    back = shutil.copytree(tmp_path / "plain", tmp_path / "back")
    for step in (4, 6):
        shutil.rmtree(Checkpoints(back).path(step))
    log, _ = trained(2, split, back)
    assert [line["loss"] for line in log if "loss" in line] == pytest.approx(
        [line["loss"] for line in plain[0] if "loss" in line], rel=1e-5
    )
