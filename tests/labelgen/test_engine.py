"""Ray actors write what a serial run writes, also when they die; what a worker cannot help ends the run clearly."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labelgen import engine
from labelgen.job import UnitReport
from labelgen.run import RunSummary
from shared.errors import StorageError, WorkerError
from shared.shards.dataset import Unit
from shared.shards.shard_set import ShardSet
from shared.shards.verify import verify

Label = Callable[..., RunSummary]
Finished = tuple[Path, RunSummary]


class DiesOnceInUnit1(engine._Worker):
    """A worker that is killed half-way through unit 1, if it is the first to label it."""

    def label_unit(self, unit: Unit) -> UnitReport:
        tombstone = Path(self.labeler.job.shards).with_name("tombstone")
        if unit.number == 1 and not tombstone.exists():
            next(iter(self.labeler.label_unit(unit)))
            tombstone.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().label_unit(unit)


class AlwaysDiesInUnit1(engine._Worker):
    """A worker that unit 1 kills."""

    def label_unit(self, unit: Unit) -> UnitReport:
        if unit.number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().label_unit(unit)


class CannotWriteUnit1(engine._Worker):
    """A worker that finds the place of unit 1's data taken by a folder."""

    def label_unit(self, unit: Unit) -> UnitReport:
        if unit.number == 1:
            (Path(self.labeler.job.shards) / "masks/000001.tar").mkdir(parents=True)
        return super().label_unit(unit)


@pytest.fixture
def use_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[type], None]]:
    """``use_worker(class)`` has Ray start workers of that class, which it cannot import."""
    from ray import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield lambda worker: monkeypatch.setattr(engine, "_Worker", worker)
    cloudpickle.unregister_pickle_by_value(module)


def test_ray_writes_the_bytes_of_a_serial_run_though_a_worker_is_killed(
    photos: Path, finished: Finished, tmp_path: Path, label: Label, snapshot: Callable[[Path], Any],
    use_worker: Callable[[type], None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # of a cluster that was not asked for
    monkeypatch.chdir(tmp_path)
    use_worker(DiesOnceInUnit1)
    summary = label(photos, "shards", workers=2)
    assert (tmp_path / "tombstone").exists()
    assert (summary.units_done, summary.images, summary.masks) == (3, 6, finished[1].masks)
    assert snapshot(tmp_path / "shards") == snapshot(finished[0])


def test_unit_that_kills_every_worker_is_named_and_the_run_can_go_on(
    photos: Path, finished: Finished, tmp_path: Path, label: Label, snapshot: Callable[[Path], Any],
    use_worker: Callable[[type], None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    use_worker(AlwaysDiesInUnit1)
    monkeypatch.setattr(engine, "MAX_ATTEMPTS", 2)
    with pytest.raises(WorkerError, match=r"(?s)unit 000001 lost its worker 2 times.*photo4\.png"):
        label(photos, tmp_path / "shards", workers=1)
    monkeypatch.undo()
    label(photos, tmp_path / "shards")
    assert snapshot(tmp_path / "shards") == snapshot(finished[0])


def test_worker_that_cannot_write_ends_the_run_by_the_name_of_the_file(
    photos: Path, tmp_path: Path, label: Label, use_worker: Callable[[type], None]
) -> None:
    use_worker(CannotWriteUnit1)
    with pytest.raises(StorageError, match=r"cannot write .*masks/000001\.tar: Is a directory"):
        label(photos, tmp_path / "shards", workers=1)
    shards = ShardSet.open(str(tmp_path / "shards"))
    assert 1 not in shards.committed()
    assert all(check.problems == () for check in verify(shards) if check.record is not None)


def test_ray_makes_maps_later_that_a_serial_run_makes_in_one_pass(
    own_shards: Path, refined: Finished, refiner: str, add_maps: Label, snapshot: Callable[[Path], Any],
    use_worker: Callable[[type], None],
) -> None:  # fmt: skip
    use_worker(DiesOnceInUnit1)
    summary = add_maps(own_shards, refiner, workers=2)
    assert own_shards.with_name("tombstone").exists()
    assert (summary.units_done, summary.masks, summary.unknown) == (3, refined[1].masks, 0)
    assert snapshot(own_shards) == snapshot(refined[0])


def test_missing_cluster_is_named(photos: Path, tmp_path: Path, label: Label, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(WorkerError, match=r"no Ray cluster at 'auto'.*check --ray-address"):
        label(photos, tmp_path / "shards", ray_address="auto")
