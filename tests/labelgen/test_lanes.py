"""Images that are worked on at once, a core each, come in order, and come out as one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sum_factory.labelgen import run as run_module
from sum_factory.labelgen.engine.pool import RayExecutor
from sum_factory.labelgen.engine.serial import SerialExecutor
from sum_factory.labelgen.engine.worker import Worker
from sum_factory.labelgen.job import Job
from sum_factory.labelgen.labeler import Labeler
from sum_factory.labelgen.progress import RunSummary
from sum_factory.labelgen.run import make_executor
from sum_factory.labelgen.run_settings import RunSettings
from sum_factory.shared.automask import lanes as lanes_module
from sum_factory.shared.automask.automask import LabelGenerator
from sum_factory.shared.automask.lanes import BEHIND, LANE_BYTES, Lanes, take_cores
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.errors import SettingsError, UnreachableError
from sum_factory.shared.photo_files import PhotoFile, read_bytes
from sum_factory.shared.sam.checkpoint import PACKAGED
from sum_factory.shared.sam.runtime import Runtime

Label = Callable[..., RunSummary]
Snapshot = Callable[[Path], dict[str, bytes]]
JOB = Job("shards", PACKAGED, None, Runtime("cpu"), 64)


def test_results_come_in_order_whichever_is_ready_first() -> None:
    second_is_done = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert second_is_done.wait(60)
        if number == 1:
            second_is_done.set()
        return number

    assert list(Lanes(2).in_order(work, range(9), lambda done: 10 * done)) == [10 * number for number in range(9)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_items_are_begun_before_the_first_is_taken(count: int) -> None:
    begun: list[int] = []
    results = Lanes(count).in_order(begun.append, range(50))
    next(results)
    assert len(begun) <= count + BEHIND
    assert len(list(results)) == 49


def test_an_error_comes_in_its_turn() -> None:
    def work(number: int) -> int:
        if number == 2:
            raise MemoryError("number 2")
        return number

    results = Lanes(2).in_order(work, range(9))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(MemoryError, match="number 2"):
        next(results)


def test_a_lane_without_an_item_helps_the_others() -> None:
    lanes = Lanes(2)
    both = threading.Barrier(2, timeout=60)

    def part(number: int) -> tuple[int, int]:
        if number < 2:
            both.wait()  # passed by two threads alone
        return number, threading.get_ident()

    [parts] = lanes.in_order(lambda _: lanes.spread(part, range(6)), [None])
    assert [number for number, _ in parts] == list(range(6))
    assert len({thread for _, thread in parts[:2]}) == 2


def test_what_nobody_waits_for_ends_at_its_next_part() -> None:
    lanes = Lanes(2)
    begun, left, ended = threading.Event(), threading.Event(), threading.Event()
    done: list[int] = []

    def part(number: int) -> None:
        begun.set()
        assert left.wait(60)
        done.append(number)

    def work(_: int) -> None:
        try:
            lanes.spread(part, range(50))
        except CancelledError:
            ended.set()
            raise

    results = lanes.in_order(work, range(1))
    with ThreadPoolExecutor(1) as other:
        taken = other.submit(next, results)
        assert begun.wait(60)
        assert lanes._pool is not None
        lanes._pool.shutdown(wait=False, cancel_futures=True)  # as closing the generator does
        left.set()
        assert isinstance(taken.exception(timeout=60), CancelledError)
    assert ended.is_set()
    assert len(done) <= 3


def test_on_a_cpu_each_core_is_a_lane_of_one_thread() -> None:
    threads = torch.get_num_threads()
    try:
        lanes = take_cores(torch.device("cpu"), 3)
        assert (lanes.count, torch.get_num_threads()) == (3, 1)
        assert set(lanes.in_order(lambda _: torch.get_num_threads(), range(9))) == {1}
        lanes = take_cores(torch.device("meta"), 3)
        assert (lanes.count, torch.get_num_threads()) == (1, 3)
    finally:
        torch.set_num_threads(threads)


def test_no_more_lanes_than_fit_into_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    try:
        for memory, count in ((1, 1), (2 * LANE_BYTES, 2), (100 * LANE_BYTES, 8)):
            monkeypatch.setattr(lanes_module, "usable_memory", lambda memory=memory: memory)
            assert take_cores(torch.device("cpu"), 8).count == count
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_do_not_depend_on_the_number_of_threads(
    photos: Path,
    tmp_path: Path,
    label: Label,
    refined: tuple[Path, RunSummary],
    refiner: str,
    snapshot: Snapshot,
    threads: int,
) -> None:
    label(photos, tmp_path / "shards", refiner=refiner, threads=threads)
    assert snapshot(tmp_path / "shards") == snapshot(refined[0])


def test_a_bad_photo_disturbs_no_other(own_photos: Path, tmp_path: Path, label: Label, snapshot: Snapshot) -> None:
    (own_photos / "a.jpg").write_bytes(b"")
    summaries = [label(own_photos, tmp_path / str(threads), threads=threads) for threads in (1, 3)]
    assert [len(summary.errors) for summary in summaries] == [1, 1]
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "3")


def test_torchs_threads_are_given_back(photos: Path, tmp_path: Path, label: Label) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        label(photos, tmp_path / "shards", threads=3)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


# Who gets how many cores


def executor(monkeypatch: pytest.MonkeyPatch, **changes: object) -> SerialExecutor | RayExecutor:
    monkeypatch.setattr(run_module, "usable_cores", lambda: 5)
    return make_executor(replace(RunSettings(("photos",), "shards"), **changes), JOB)  # type: ignore[arg-type]


@pytest.mark.parametrize(("threads", "cores"), [(None, 5), (3, 3)])
def test_this_process_takes_the_cores_that_it_may(
    monkeypatch: pytest.MonkeyPatch, threads: int | None, cores: int
) -> None:
    assert executor(monkeypatch, threads=threads) == SerialExecutor(JOB, cores)


@pytest.mark.parametrize(
    ("changes", "cpus"),
    [
        ({"workers": 2}, 2.0),
        ({"workers": 5}, 1.0),
        ({"workers": 8}, 0.625),
        ({"workers": 3, "threads": 2}, 0.6666),
        ({"workers": 3, "cpus_per_worker": 4.0}, 4.0),
        ({"workers": 3, "cpus_per_worker": 0.0}, 0.0),
        ({"workers": 3, "ray_address": "auto"}, 1.0),
    ],
)
def test_workers_divide_the_cores(monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], cpus: float) -> None:
    made = executor(monkeypatch, **changes)
    assert isinstance(made, RayExecutor)
    assert made.resources.cpus_per_worker == cpus


def test_threads_are_about_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"--threads 2 is about this machine.*--cpus-per-worker"):
        executor(monkeypatch, threads=2, ray_address="auto")


def test_a_worker_gets_on_with_parts_of_photos_and_while_it_waits_for_photos(
    finished: tuple[Path, RunSummary], loose: AutomaskSettings, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    try:
        worker = Worker(replace(JOB, shards=str(finished[0]), wait_for_photos=0.1), None, 1.0, 0)
        labeler = worker.load()
        generator = LabelGenerator(labeler.embedder.sam, replace(loose, points_per_side=4), 4, lanes=labeler.lanes)
        generator.label(np.zeros((40, 60, 3), np.uint8))
        assert worker.done == 16 / generator.decoder.points_at_once(4) > 1
        worker.done = 0
        labeler.outages.say = lambda text: None
        gone = PhotoFile("a", str(tmp_path / "gone" / "a.png"))
        with pytest.raises(UnreachableError):
            labeler.outages.read(gone, [gone], lambda: read_bytes(gone))
        assert worker.done > 0
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("count", [1, 2])
def test_every_step_is_told_of_also_of_what_helps(count: int) -> None:
    lanes, steps = Lanes(count), []
    lanes.on_step = lambda: steps.append(None)
    list(lanes.in_order(lambda item: lanes.spread(lambda part: part, range(3)), range(5)))
    assert len(steps) == 5 * (3 + 2)


@pytest.mark.parametrize(("cpus", "lanes"), [(0.0, 1), (0.5, 1), (1.0, 1), (2.0, 2), (3.9, 3)])
def test_a_worker_has_a_lane_for_each_whole_cpu(finished: tuple[Path, RunSummary], cpus: float, lanes: int) -> None:
    threads = torch.get_num_threads()
    try:
        labeler = Worker(replace(JOB, shards=str(finished[0])), None, cpus, 0).load()
        assert isinstance(labeler, Labeler)
        assert (labeler.lanes.count, torch.get_num_threads()) == (lanes, 1)
    finally:
        torch.set_num_threads(threads)
