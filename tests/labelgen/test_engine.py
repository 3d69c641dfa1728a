"""Ray actors write what a serial run writes, also when they die; what a worker cannot help ends the run clearly."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pretenders import is_alive, wait_until
from sum_factory.labelgen import read_ahead
from sum_factory.labelgen.engine import pool, scheduler
from sum_factory.labelgen.engine.scheduler import Assignment
from sum_factory.labelgen.engine.worker import Answer, Worker
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.errors import StorageError, UnreachableError, WorkerError
from sum_factory.shared.shards.dataset import Unit
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.verify import verify

Label = Callable[..., RunSummary]
Finished = tuple[Path, RunSummary]
Snapshot = Callable[[Path], dict[str, str]]


SIZE_OF_PHOTO4 = (90, 60)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DiesOnceInUnit1(Worker):
    """A worker that is killed half-way through unit 1, if it is the first to label it."""

    def work(self, assignment: Assignment, moved: Unit | None) -> Answer:
        tombstone = Path(self.job.shards).with_name("tombstone")
        if assignment.unit == 1 and not tombstone.exists():
            next(iter(self.labeler.label_unit(self.labeler.shards.unit(1))))
            tombstone.write_text("")
            die()
        return super().work(assignment, moved)


class DiesOfPhoto4(Worker):
    """A worker that one photo kills: whoever scales it is aborted, as by a bug of a library."""

    def start(self) -> Any:
        original = read_ahead.resize

        def resize(pixels: Any, side: int) -> Any:
            if pixels.shape[:2] == SIZE_OF_PHOTO4:
                os.abort()
            return original(pixels, side)

        read_ahead.resize = resize
        return super().start()


class CannotWriteUnit1(Worker):
    """A worker that finds the place of unit 1's data taken by a folder."""

    def work(self, assignment: Assignment, moved: Unit | None) -> Answer:
        if assignment.unit == 1:
            (Path(self.job.shards) / "masks/000001.tar").mkdir(parents=True)
        return super().work(assignment, moved)


class IsStoppedOnceInUnit1(Worker):
    """A worker that is stopped half-way through unit 1, and not dead, if it is the first to label it."""

    beat_seconds = 0.2

    def work(self, assignment: Assignment, moved: Unit | None) -> Answer:
        tombstone = Path(self.job.shards).with_name("tombstone")
        if assignment.unit == 1 and not tombstone.exists():
            next(iter(self.labeler.label_unit(self.labeler.shards.unit(1))))
            tombstone.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().work(assignment, moved)


class LosesPhotos(Worker):
    """A worker whose disk of photos goes before unit 1."""

    def work(self, assignment: Assignment, moved: Unit | None) -> Answer:
        if assignment.unit == 1:
            photos = Path(self.labeler.shards.unit(0).images[0].url).parent
            photos.rename(photos.with_name("away"))
        return super().work(assignment, moved)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a Ray cluster on this machine, for runs that need none of their own."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def use_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[type], None]]:
    """``use_worker(class)`` has Ray start workers of that class, which it cannot import."""
    from ray import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield lambda worker: monkeypatch.setattr(pool, "Worker", worker)
    cloudpickle.unregister_pickle_by_value(module)


def test_ray_writes_the_bytes_of_a_serial_run_though_a_worker_is_killed(
    photos: Path, finished: Finished, tmp_path: Path, label: Label, snapshot: Snapshot,
    use_worker: Callable[[type], None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # of a cluster that was not asked for
    monkeypatch.chdir(tmp_path)
    use_worker(DiesOnceInUnit1)
    summary = label(photos, "shards", workers=2)
    assert (tmp_path / "tombstone").exists()
    assert (summary.units_done, summary.images, summary.masks) == (3, 6, finished[1].masks)
    assert snapshot(tmp_path / "shards") == snapshot(finished[0])


def test_worker_that_is_stopped_is_told_of_and_replaced_and_the_bytes_are_those_of_a_serial_run(
    photos: Path, finished: Finished, tmp_path: Path, label: Label, snapshot: Snapshot, address: str,
    use_worker: Callable[[type], None], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    use_worker(IsStoppedOnceInUnit1)
    summary = label(photos, tmp_path / "shards", workers=1, ray_address=address, silent_after=6.0)
    stopped = (tmp_path / "tombstone").read_text()
    assert (summary.units_done, summary.masks, summary.errors) == (3, finished[1].masks, ())
    assert snapshot(tmp_path / "shards") == snapshot(finished[0])
    *_, warned, replaced = (  # a busy machine may have had it silent before
        line for line in capsys.readouterr().err.splitlines() if f"process {stopped}: not heard" in line
    )
    assert "unit 000001: " in warned
    assert "it is replaced after 6 s (--silent-after)" in warned
    assert "lost: the worker at unit 000001" in replaced
    assert "(--silent-after), and replaced" in replaced
    wait_until(lambda: not is_alive(int(stopped)))  # Ray kills it while the run goes on


@pytest.mark.long
def test_photo_that_kills_its_workers_is_found_and_left_out_and_nothing_else_changes(
    photos: Path, finished: Finished, tmp_path: Path, label: Label, snapshot: Snapshot, address: str,
    use_worker: Callable[[type], None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(scheduler, "MAX_DEATHS", 1)
    use_worker(DiesOfPhoto4)
    summary = label(photos, tmp_path / "shards", workers=1, ray_address=address)
    assert (summary.units_done, summary.images, summary.stopped, summary.given_up) == (3, 6, None, ())
    (error,) = summary.errors
    assert "photo4.png: killed its worker 3 times" in error
    assert summary.retries == 2
    whole, left = snapshot(finished[0]), snapshot(tmp_path / "shards")
    different = {name for name in whole if left[name] != whole[name]}
    unit = next(unit.number for unit in units_of(finished[0]) if "photo4" in [image.key for image in unit.images])
    assert different == {f"masks/{unit:06d}.tar", f"manifest/masks/{unit:06d}.parquet"}
    before, after = ({image.key: image for _, image in ShardSet.open(str(shards)).walk()}
                     for shards in (finished[0], tmp_path / "shards"))  # fmt: skip
    assert after.pop("photo4").error == error
    for key, image in after.items():
        assert without_extents(image.masks) == without_extents(before[key].masks)
    assert [problem for check in verify(ShardSet.open(str(tmp_path / "shards"))) for problem in check.problems] == []


def units_of(shards: Path) -> list[Unit]:
    opened = ShardSet.open(str(shards))
    return [opened.unit(number) for number in range(len(opened.dataset.unit_ids))]


def without_extents(rows: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    return [{**row, "offset": 0} for row in rows]


@pytest.mark.long
def test_gpus_that_this_machine_does_not_have_are_refused(photos: Path, tmp_path: Path, label: Label) -> None:
    with pytest.raises(WorkerError, match=r"this machine has 0 GPUs, and each worker asks for 0\.5"):
        label(photos, tmp_path / "shards", workers=1, gpus_per_worker=0.5)


def test_worker_that_cannot_write_ends_the_run_by_the_name_of_the_file(
    photos: Path, tmp_path: Path, label: Label, address: str, use_worker: Callable[[type], None]
) -> None:
    use_worker(CannotWriteUnit1)
    with pytest.raises(StorageError, match=r"cannot write .*masks/000001\.tar: there is no regular file"):
        label(photos, tmp_path / "shards", workers=1, ray_address=address)
    shards = ShardSet.open(str(tmp_path / "shards"))
    assert 1 not in shards.committed()
    assert all(check.problems == () for check in verify(shards) if check.record is not None)


def test_photos_that_a_worker_waits_for_are_told_of_and_no_error_is_recorded(
    own_photos: Path, tmp_path: Path, label: Label, address: str, use_worker: Callable[[type], None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    use_worker(LosesPhotos)
    with pytest.raises(UnreachableError, match="give the same command again"):
        label(own_photos, tmp_path / "shards", workers=1, ray_address=address, wait_for_photos=3.0)
    assert "neither can what is beside it: waiting 1 s, 3 s at most" in capsys.readouterr().err
    shards = ShardSet.open(str(tmp_path / "shards"))
    assert 1 not in shards.committed()
    assert all(shards.manifest(number)[1].errors == 0 for number in shards.committed())


@pytest.mark.long
def test_ray_makes_maps_later_that_a_serial_run_makes_in_one_pass(
    own_shards: Path, tmp_path: Path, finished: Finished, add_maps: Label, snapshot: Snapshot, address: str,
    use_worker: Callable[[type], None],
) -> None:  # fmt: skip
    use_worker(DiesOnceInUnit1)
    summary = add_maps(own_shards, "vit_micro", workers=2, ray_address=address)  # the refiner that ships
    assert own_shards.with_name("tombstone").exists()
    assert (summary.units_done, summary.masks, summary.unknown) == (3, finished[1].masks, 0)
    serial = shutil.copytree(finished[0], tmp_path / "serial")
    add_maps(serial, "vit_micro")
    assert snapshot(own_shards) == snapshot(serial)


def test_missing_cluster_is_named(photos: Path, tmp_path: Path, label: Label) -> None:
    with pytest.raises(WorkerError, match=r"no Ray cluster at '127.0.0.1:1' \(.*refused\); check --ray-address"):
        label(photos, tmp_path / "shards", ray_address="127.0.0.1:1")
