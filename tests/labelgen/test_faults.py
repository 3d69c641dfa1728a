"""Faults that really happen to real runs: whatever dies or fills up, the same command ends with the undisturbed bytes.

Where a moment is random, it follows from a seed; a handful run always, the others with ``make test-long``.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import fsspec
import pytest
import s3fs
from click.testing import CliRunner

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.event_log import open_log
from sum_factory.labelgen.progress import RunSummary
from sum_factory.labelgen.sets.pace import pace
from sum_factory.shared.errors import StorageError, SumError, UnreachableError
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.verify import verify
from sum_factory.shared.store import patience

Label = Callable[..., RunSummary]
Finished = tuple[Path, RunSummary]
Snapshot = Callable[[Path], dict[str, str]]


def seeds(count: int, always: int = 1) -> list[Any]:
    """So many seeds, of which some are tried always and the others in the long suite."""
    return [*range(always), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(always, count))]


def require_undisturbed(shards: Path, undisturbed: Path, snapshot: Snapshot) -> None:
    """Check that nothing tells a shard set from an undisturbed one, once left-over files of any age are removed."""
    gc = CliRunner().invoke(main, ["gc", f"--shards={shards}", "--older-than=0"], catch_exceptions=False)
    assert gc.exit_code == 0
    assert snapshot(shards) == snapshot(undisturbed)
    assert [problem for check in verify(ShardSet.open(str(shards))) for problem in check.problems] == []


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


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


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


# A disk fills up


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """``small_disk(bytes)`` mounts a file system of that size, or gives the mounted one that size."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int) -> Path:
        again = ["-o", f"remount,size={size}"] if place.is_mount() else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        try:
            done = subprocess.run(["mount", *again, str(place)], capture_output=True)
        except FileNotFoundError:
            pytest.skip("no mount command")
        if done.returncode:
            pytest.skip("not allowed to mount a file system")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_disk_that_is_full_is_named_and_when_it_has_room_the_run_goes_on(
    photos: Path, finished: Finished, tmp_path: Path, label: Label, snapshot: Snapshot,
    small_disk: Callable[[int], Path], workers: int,
) -> None:  # fmt: skip
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in finished[0].rglob("*") if path.is_file())
    shards = small_disk(size - 3 * 4096) / "shards"
    with pytest.raises(StorageError, match=rf"cannot write {shards}/.*: No space left on device; .*free space"):
        label(photos, shards, workers=workers)
    whole, left = snapshot(finished[0]), snapshot(shards)
    assert left == {name: whole[name] for name in left}
    small_disk(10 * size)
    label(photos, shards)
    require_undisturbed(shards, finished[0], snapshot)


# An object store fails


Fault = Literal["", "refuse", "stall", "drop"]
LONGEST_STALL = 20.0
"""Seconds: as long as the busiest machine may take for one answer."""


class BadNetwork:
    """Stands between a client and a server on this machine, and does to connections what ``fault`` says.

    It refuses them, lets them wait for ever, or cuts those that have carried some bytes; of ``share`` of them, chosen
    by a seed.
    """

    def __init__(self, server: tuple[str, int], seed: int = 0) -> None:
        self.server, self.chance = server, random.Random(seed)
        self.fault: Fault = ""
        self.share = 1.0
        self.faults: Counter[str] = Counter()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.sockets: list[socket.socket] = []
        self.threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *values: Any) -> None:
        self.threads.append(threading.Thread(target=work, args=values))
        self.threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.sockets.append(client)
            fault = self.fault if self.chance.random() < self.share else ""
            self.faults[fault] += 1
            if fault == "refuse":
                client.close()
            elif fault != "stall":
                server = socket.create_connection(self.server)
                self.sockets.append(server)
                limit = self.chance.randrange(20, 2000) if fault == "drop" else None
                self._start(self._carry, client, server, None)
                self._start(self._carry, server, client, limit)

    def _carry(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        carried = 0
        try:
            while (data := source.recv(65536)) and (limit is None or carried < limit):
                sink.sendall(data if limit is None else data[: limit - carried])
                carried += len(data)
        except OSError:
            pass
        shut(source, sink)

    def cut(self) -> None:
        """Close every connection that there is."""
        shut(*self.sockets)

    def close(self) -> None:
        shut(self.listener)
        self.cut()
        for thread in self.threads:
            thread.join()
        for end in (self.listener, *self.sockets):
            end.close()


def shut(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):  # the other side was first
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def network(object_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[BadNetwork]:
    """A bad network in front of the object store."""
    host, port = object_store.removeprefix("http://").split(":")
    network = BadNetwork((host, int(port)))
    monkeypatch.setenv("AWS_ENDPOINT_URL", network.url)
    s3fs.S3FileSystem.clear_instance_cache()
    yield network
    network.close()
    s3fs.S3FileSystem.clear_instance_cache()


def impatient(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Have clients try everything once, and wait no longer than ``LONGEST_STALL`` where nobody answers."""
    if fault == "stall":  # with the others there is nothing to wait for, and a busy machine may take its time
        timeouts = {"connect_timeout": LONGEST_STALL, "read_timeout": LONGEST_STALL}
        monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": timeouts})
        monkeypatch.setattr(patience, "PATIENCE_SECONDS", LONGEST_STALL)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("fault", "seed"),
    [(fault, seed) if seed == 0 and fault == "drop" else pytest.param(fault, seed, marks=pytest.mark.long)
     for fault in ("refuse", "drop") for seed in range(5)],
)  # fmt: skip
def test_connections_that_fail_now_and_then_are_tried_again(
    photos: Path, bucket: str, finished: Finished, label: Label, download: Callable[[str], dict[str, bytes]],
    network: BadNetwork, fault: Fault, seed: int,
) -> None:  # fmt: skip
    network.chance.seed(seed)
    network.fault, network.share = fault, 0.1
    label(photos, f"{bucket}/shards")
    assert network.faults[fault] > 0
    network.fault = ""
    assert download(f"{bucket}/shards") == bytes_of(finished[0])


@pytest.mark.parametrize(
    "fault", ["refuse", pytest.param("stall", marks=pytest.mark.long), pytest.param("drop", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("photos_too", [False, pytest.param(True, marks=pytest.mark.long)])
def test_store_that_fails_in_mid_run_is_named_and_the_same_command_goes_on(
    photos: Path, bucket: str, finished: Finished, label: Label, download: Callable[[str], dict[str, bytes]],
    upload: Callable[[Path, str], None], network: BadNetwork, monkeypatch: pytest.MonkeyPatch, fault: Fault,
    photos_too: bool,
) -> None:  # fmt: skip
    images = f"{bucket}/photos" if photos_too else photos
    if photos_too:
        upload(photos, images)
    commit_of_unit_0 = "manifest/masks/000000.parquet"
    with monkeypatch.context() as patch:
        impatient(patch, fault)
        break_after(patch, commit_of_unit_0, network, fault)
        with pytest.raises((StorageError, UnreachableError), match=r"s3://.*; check "):
            label(images, f"{bucket}/shards")
    network.fault = ""
    network.cut()
    s3fs.S3FileSystem.clear_instance_cache()
    whole, left = bytes_of(finished[0]), download(f"{bucket}/shards")
    assert commit_of_unit_0 in left
    assert len(left) < len(whole)
    summary = label(images, f"{bucket}/shards")
    assert (summary.units_before, summary.errors) == (1, ())
    assert without_plans(download(f"{bucket}/shards")) == without_plans(whole)


def break_after(patch: pytest.MonkeyPatch, name: str, network: BadNetwork, fault: Fault) -> None:
    """Have the network fail right after a file has been created."""
    from sum_factory.shared.store.storage import Storage

    create = Storage.create

    def create_and_break(self: Storage, file: str, data: bytes) -> bool:
        created = create(self, file, data)
        if file == name:
            network.fault, network.share = fault, 1.0
            network.cut()
        return created

    patch.setattr(Storage, "create", create_and_break)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_plans(files: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out the plans, which say where the photos are."""
    return {name: data for name, data in files.items() if not name.startswith("units/")}


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


# What is told while it runs


def test_status_tells_of_a_run_that_is_going_on(
    photos: Path, tmp_path: Path, label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sum_factory.labelgen.progress import ProgressReporter

    take, told = ProgressReporter.take, []

    def take_and_ask(self: ProgressReporter, event: Any) -> None:
        take(self, event)
        if type(event).__name__ == "UnitReport":
            ask = ["status", f"--shards={tmp_path}/shards"]
            told.append(CliRunner().invoke(main, ask, catch_exceptions=False).stdout)

    monkeypatch.setattr(ProgressReporter, "take", take_and_ask)
    label(photos, tmp_path / "shards", unit_size=2)
    assert [text.split(" of 3 units")[0].split()[-1] for text in told] == ["1", "2", "3"]
    assert "units/h, the last one at" in told[1]
    assert "units/h" not in told[2]


def test_log_tells_of_units_and_attempts(own_photos: Path, tmp_path: Path, label: Label) -> None:
    (own_photos / "bad.jpg").write_bytes(b"")
    log = tmp_path / "log.jsonl"
    label(own_photos, tmp_path / "shards", log=str(log), unit_size=4)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines] == [
        "run begun", "weights read", "unit begun", "image failed", "unit done", "unit begun", "unit done", "run ended"
    ]  # fmt: skip
    assert {(line["unit"], line["attempt"]) for line in lines[2:-1]} == {(0, 1), (1, 1)}
    assert "bad.jpg" in lines[3]["error"]
    assert (lines[-1]["units_done"], lines[-1]["retries"], len(lines[-1]["errors"])) == (2, 0, 1)
    assert all(datetime.fromisoformat(line["time"]).tzinfo == UTC for line in lines)
    with pytest.raises(SumError, match=r"none/log\.jsonl: cannot be written .*--log"):
        label(own_photos, tmp_path / "shards", log=str(tmp_path / "none/log.jsonl"), unit_size=4)
    with pytest.raises(SumError, match=r"/dev/full: cannot be written .*--log"), open_log("/dev/full") as full:
        full.tell("anything")


def test_summary_counts_errors_by_kind(own_photos: Path, tmp_path: Path, label: Label) -> None:
    for name in ("a", "b"):
        (own_photos / f"{name}.jpg").write_bytes(b"")
    (own_photos / "c.jpg").write_text("not a photo")
    lines = label(own_photos, tmp_path / "shards").lines().splitlines()
    assert "3 errors" in lines[0]
    assert lines[1:] == ["  2 x the file is empty", "  1 x not an image of a known format"]
