"""Faults that really happen to real runs: whatever dies, the same command ends with the undisturbed bytes.

Where a moment is random, it follows from a seed; a handful run always, the others with ``make test-long``.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pretenders import is_alive
from sum_factory.labelgen.cli import main
from sum_factory.labelgen.sets.pace import pace
from undisturbed import Finished, Label, Snapshot, require_undisturbed


def seeds(count: int, always: int = 1) -> list[Any]:
    """So many seeds, of which some are tried always and the others in the long suite."""
    return [*range(always), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(always, count))]


# The driver is killed


@pytest.fixture
def kill_drivers(forks: Any, tmp_path: Path) -> Callable[..., None]:
    """``kill_drivers(seed, times, longest, command)`` begins a command so often, and kills it after random seconds."""

    def kill_drivers(seed: int, times: int, longest: float, command: list[str]) -> None:
        chance = random.Random(seed)
        for _ in range(times):
            process = forks.begin(tmp_path / "said", command)
            time.sleep(chance.uniform(0, longest))
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            forks.end(process)

    return kill_drivers


@pytest.mark.parametrize("seed", seeds(20))
def test_drivers_killed_at_random_moments(
    photos: Path, finished: Finished, tmp_path: Path, label: Label, snapshot: Snapshot, loose_options: list[str],
    seed: int, kill_drivers: Callable[..., None],
) -> None:  # fmt: skip
    kill_drivers(seed, 4, 2.5, ["run", f"--images={photos}", f"--shards={tmp_path}/shards", *loose_options])
    label(photos, tmp_path / "shards")
    require_undisturbed(tmp_path / "shards", finished[0], snapshot)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_drivers_of_ray_killed_at_random_moments(
    photos: Path, finished: Finished, tmp_path: Path, label: Label, snapshot: Snapshot, loose_options: list[str],
    seed: int, kill_drivers: Callable[..., None],
) -> None:  # fmt: skip
    command = ["run", f"--images={photos}", f"--shards={tmp_path}/shards", "--workers=2", *loose_options]
    kill_drivers(seed, 2, 25, command)
    label(photos, tmp_path / "shards")
    require_undisturbed(tmp_path / "shards", finished[0], snapshot)


# Workers and nodes are killed


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster on this machine: a node with the driver, where no worker finds room, and two that can be killed."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def processes_in(log: Path) -> list[int]:
    """The processes of the workers that a run's log tells of."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return sorted({int(line["worker"].rpartition(" ")[2]) for line in lines if line["event"] == "unit begun"})


class Killer(threading.Thread):
    """Kills at random moments what ``targets`` gives then, so many times at most, until it is told to ``end``."""

    def __init__(self, seed: int, times: int, longest: float, targets: Callable[[], list[int]]) -> None:
        super().__init__()
        self.chance, self.times, self.longest, self.targets = random.Random(seed), times, longest, targets
        self.over = threading.Event()
        self.killed: list[int] = []

    def run(self) -> None:
        while len(self.killed) < self.times and not self.over.wait(self.chance.uniform(0, self.longest)):
            alive = [process for process in self.targets() if is_alive(process)]
            if alive:
                self.killed.append(self.chance.choice(alive))
                os.kill(self.killed[-1], signal.SIGKILL)

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.join()


MORE: dict[str, Any] = {"unit_size": 1}
"""A unit for each photo: more of them, so that there is something to kill."""


@pytest.fixture(scope="module")
def undisturbed(photos: Path, label: Label, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed serial run makes with ``MORE``."""
    shards = tmp_path_factory.mktemp("undisturbed") / "shards"
    label(photos, shards, **MORE)
    return shards


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_workers_killed_at_random_moments(
    photos: Path, undisturbed: Path, tmp_path: Path, label: Label, snapshot: Snapshot, cluster: Any, seed: int
) -> None:
    log = tmp_path / "log.jsonl"
    node = cluster.add_node(num_cpus=2)
    with Killer(seed, 3, 1.0, lambda: processes_in(log)) as killer:
        summary = label(photos, tmp_path / "shards", workers=2, ray_address=cluster.address, log=str(log), **MORE)
    cluster.remove_node(node)
    require_undisturbed(tmp_path / "shards", undisturbed, snapshot)
    assert summary.units_done == 6
    assert summary.retries <= len(killer.killed)
    assert summary.errors == ()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_raylets_killed_at_random_moments(
    photos: Path, undisturbed: Path, tmp_path: Path, label: Label, snapshot: Snapshot, cluster: Any, seed: int
) -> None:
    log = tmp_path / "log.jsonl"
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
    with Killer(seed, 2, 3.0, lambda: raylets if processes_in(log) else []) as killer:
        summary = label(photos, tmp_path / "shards", workers=3, ray_address=cluster.address, log=str(log), **MORE)
    for node, raylet in zip(nodes, raylets, strict=True):
        if raylet in killer.killed:
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            cluster.worker_nodes.discard(node)
        else:
            cluster.remove_node(node)
    require_undisturbed(tmp_path / "shards", undisturbed, snapshot)
    assert summary.units_done == 6
    assert summary.errors == ()


@pytest.mark.long
def test_two_drivers_of_ray_on_one_shard_set_both_succeed(
    photos: Path, finished: Finished, tmp_path: Path, snapshot: Snapshot, loose_options: list[str]
) -> None:
    command = [
        sys.executable,
        "-m",
        "sum_factory.labelgen.cli",
        "run",
        f"--images={photos}",
        f"--shards={tmp_path}/shards",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen([*command, "--workers=1", *loose_options], stderr=subprocess.PIPE, env=environment)
            for _ in range(2)]  # fmt: skip
    for process in both:
        _, err = process.communicate()
        assert process.returncode == 0, err
    require_undisturbed(tmp_path / "shards", finished[0], snapshot)


# Clocks are wrong


@pytest.mark.parametrize("hours", [-30, 30])
def test_clocks_that_are_wrong_by_a_day_change_nothing(
    photos: Path, finished: Finished, tmp_path: Path, label: Label, snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch, hours: int,
) -> None:  # fmt: skip
    shutil.copytree(finished[0], tmp_path / "shards")
    for name in ("masks/000001.tar", "manifest/masks/000001.parquet", "manifest/masks/000002.parquet"):
        (tmp_path / "shards" / name).unlink()
    for path in (tmp_path / "shards").rglob("*"):  # another machine wrote this, by its own clock
        moment = time.time() + hours * 3600
        os.utime(path, (moment, moment))
    status = CliRunner().invoke(main, ["status", f"--shards={tmp_path}/shards"], catch_exceptions=False)
    assert "layer masks (tar): 1 of 3 units" in status.stdout
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - hours * 3600)
    assert label(photos, tmp_path / "shards").units_before == 1
    require_undisturbed(tmp_path / "shards", finished[0], snapshot)


def test_pace_is_told_by_the_times_of_the_store_alone() -> None:
    start = datetime(2031, 5, 1, tzinfo=UTC)
    times = {f"{k:06d}.parquet": start + timedelta(minutes=10 * k) for k in range(13)}
    told = pace(times, 25)
    assert told is not None
    assert told.units_per_hour == pytest.approx(6)
    assert (told.last, told.left) == (start + timedelta(hours=2), timedelta(hours=2))
    assert told.line() == "6 units/h, the last one at 2031-05-01 02:00:00 UTC; 2.0 h left at this pace"
    assert pace(times, 13) is None
    assert pace({}, 13) is None
    assert pace({"000000.parquet": start}, 13) is None
