"""The pool of Ray actors, on a real cluster, with a pretended labeler: whatever dies, every unit is reported once."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import pretenders
from pretenders import (
    IMAGES,
    LONGEST_WAIT,
    DiesAtStart,
    DiesOfEverything,
    DiesOfUnit1,
    HangsAtFirst,
    HangsAtStart,
    Light,
    Lively,
    TellsAndRefuses,
    wait_until,
    workers_in,
)
from sum_factory.labelgen.engine import pool, scheduler
from sum_factory.labelgen.engine.cluster import Resources
from sum_factory.labelgen.engine.pool import RayExecutor
from sum_factory.labelgen.engine.pulse import Patience
from sum_factory.labelgen.engine.stop import Stop
from sum_factory.labelgen.job import Begun, Event, GivenUp, ImageDone, Job, Lost, Notice, PlannedUnits, UnitReport
from sum_factory.shared.cluster.address import require_cluster
from sum_factory.shared.errors import StorageError, WorkerError


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of one node with four CPUs, in processes of its own."""
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    cloudpickle.register_pickle_by_value(pretenders)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    yield cluster
    cluster.shutdown()
    cloudpickle.unregister_pickle_by_value(pretenders)


Work = Callable[..., list[Event]]


@pytest.fixture
def work(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """``work(units, workers)`` returns the events of a run over so many units of pretended labelling."""

    def work(
        units: int, workers: int = 2, worker: type = Light, stop: Stop | None = None,
        see: Callable[[Event], object] = lambda event: None, **resources: Any,
    ) -> list[Event]:  # fmt: skip
        monkeypatch.setattr(pool, "Worker", worker)
        job = Job(str(tmp_path), "vit_micro", None, None, 1)  # type: ignore[arg-type]
        executor = RayExecutor(job, Resources(workers, cluster.address, **resources))
        events = []
        for event in executor.run(PlannedUnits(range(units), lambda number: IMAGES), stop or Stop()):
            events.append(event)
            see(event)
        return events

    return work


def reported(events: list[Event]) -> list[int]:
    return sorted(event.unit for event in events if isinstance(event, UnitReport))


def lost_in(events: list[Event]) -> list[Lost]:
    return [event for event in events if isinstance(event, Lost)]


def journal(folder: Path) -> Counter[str]:
    return Counter((folder / "journal").read_text().splitlines())


def test_cluster_is_found_at_its_address(cluster: Any) -> None:
    own = "guarded" if os.environ.get("RAY_AUTH_MODE") == "token" else "open"  # Ray sets it once it has started one
    assert require_cluster(cluster.address) == own


def test_all_units_are_done_once_and_progress_is_told_of(work: Work, tmp_path: Path) -> None:
    (tmp_path / "0-0").write_text("meet")  # a second worker that starts slowly must not find all done
    events = work(7, workers=2)
    assert reported(events) == list(range(7))
    assert journal(tmp_path) == {f"{what} {unit}": 1 for what in ("begun", "done") for unit in range(7)}
    assert len(workers_in(tmp_path)) == 2
    begun = [event for event in events if isinstance(event, Begun)]
    assert sorted((event.unit, event.attempt) for event in begun) == [(unit, 1) for unit in range(7)]
    assert {event.attempt for event in events if isinstance(event, ImageDone)} == {1}
    assert Counter(event.unit for event in events if isinstance(event, ImageDone)) == dict.fromkeys(range(7), IMAGES)


def test_no_more_workers_are_started_than_there_are_units(work: Work, tmp_path: Path) -> None:
    assert reported(work(1, workers=4)) == [0]
    assert len(workers_in(tmp_path)) == 1


@pytest.mark.parametrize("how", ["abort", "fail"])
def test_image_that_workers_do_not_survive_is_left_out(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(scheduler, "MAX_DEATHS", 1)
    monkeypatch.setattr(scheduler, "IN_FLIGHT", 1)  # else the answer to what came before may die with the worker
    (tmp_path / "2-1").write_text(how)
    events = work(4)
    assert reported(events) == [0, 1, 2, 3]
    errors = {event.unit: event.errors for event in events if isinstance(event, UnitReport)}
    assert errors == {0: (), 1: (), 2: ("/photos/2-1: killed its worker 3 times, alone; look at it, or leave it out",),
                      3: ()}  # fmt: skip
    lost = lost_in(events)
    assert [(each.unit, each.attempt, each.probed) for each in lost] == [(2, 1, 0), (2, 2, 2), (2, 3, 1)]
    assert [each.left_out for each in lost] == [None, None, 1]
    assert ("ZeroDivisionError: division by zero" in lost[0].why) == (how == "fail")


def test_worker_without_memory_is_replaced(work: Work, tmp_path: Path) -> None:
    (tmp_path / "1-0").write_text("memory once")
    events = work(3)
    assert reported(events) == [0, 1, 2]
    (only,) = lost_in(events)
    assert (only.unit, only.why) == (1, "MemoryError: nothing left")


@pytest.mark.long
def test_image_that_takes_more_memory_than_there_is_is_named_and_not_written_off(work: Work, tmp_path: Path) -> None:
    (tmp_path / "1-2").write_text("memory")
    events = work(3, workers=2)
    assert reported(events) == [0, 2]
    (given_up,) = [event for event in events if isinstance(event, GivenUp)]
    assert (given_up.unit, "out of memory over its image 2 alone" in given_up.why) == (1, True)


@pytest.mark.long
def test_worker_that_hangs_is_told_of_and_replaced(work: Work, tmp_path: Path) -> None:
    (tmp_path / "0-1").write_text("hang once")
    events = work(2, workers=1, worker=Lively, patience=Patience(unmoved=3.0))
    assert reported(events) == [0, 1]
    (lost,) = lost_in(events)
    assert (lost.unit, lost.why) == (0, "nothing done for 3 s (--stuck-after), and replaced")
    (told,) = [event.text for event in events if isinstance(event, Notice)]
    assert told.startswith("unit 000000: ")
    assert "nothing done for 2 s, not even a part of a photo" in told


@pytest.mark.long
def test_worker_that_hangs_while_it_loads_is_told_of_and_replaced(work: Work, tmp_path: Path) -> None:
    (tmp_path / "hang").touch()
    events = work(2, workers=1, worker=HangsAtStart, patience=Patience(unmoved=3.0))
    assert reported(events) == [0, 1]
    assert lost_in(events) == []
    told = [event.text for event in events if isinstance(event, Notice)]
    assert [text.split(": ")[:2] for text in told] == [["loading the models", "worker 0"]] * 2


@pytest.mark.long
def test_board_that_does_not_answer_is_replaced(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "Board", HangsAtFirst)
    monkeypatch.setattr(pool, "BOARD_SECONDS", 1.0)
    events = work(60, workers=1)
    assert reported(events) == list(range(60))
    assert any(
        "progress of the workers has not answered" in event.text for event in events if isinstance(event, Notice)
    )


def test_unit_that_kills_though_no_image_does_is_given_up_and_the_others_are_done(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MAX_DEATHS", 2)  # the answer to the unit before may go down with its worker
    events = work(3, worker=DiesOfUnit1)
    assert reported(events) == [0, 2]
    assert [event.unit for event in events if isinstance(event, GivenUp)] == [1]


def test_workers_that_die_of_everything_end_the_run(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "MAX_DEATHS", 1)
    with pytest.raises(WorkerError, match="workers die of whatever they are given"):
        work(2, worker=DiesOfEverything)


def test_workers_that_die_at_their_start_end_the_run(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "SPARE_STARTS", 1)
    with pytest.raises(WorkerError, match="4 workers have died before they were ready to work"):
        work(3, worker=DiesAtStart)


def test_what_a_worker_cannot_help_ends_the_run_by_its_own_words(work: Work, tmp_path: Path) -> None:
    (tmp_path / "1-0").write_text("refuse")
    with pytest.raises(StorageError, match="No space left on device"):
        work(3)


def test_what_a_worker_said_before_it_ends_the_run_is_told(work: Work) -> None:
    told: list[str] = []
    with pytest.raises(StorageError, match="cannot be helped"):
        work(1, worker=TellsAndRefuses, see=lambda event: told.append(getattr(event, "text", "")))
    assert any("what it waits for" in text for text in told)


def kill_at_random(folder: Path, seed: int, times: int, end: threading.Event) -> None:
    """Kill a worker with SIGKILL at random moments, so many times."""
    chance = random.Random(seed)
    wait_until(lambda: end.is_set() or bool(workers_in(folder)))
    for _ in range(times):
        if end.wait(chance.uniform(0.1, 1.0)):
            return
        alive = [process for process in workers_in(folder) if Path(f"/proc/{process}").exists()]
        if alive:
            with suppress(ProcessLookupError):
                os.kill(chance.choice(alive), signal.SIGKILL)


def test_workers_that_are_killed_at_random_moments_cost_only_what_they_were_working_on(
    work: Work, tmp_path: Path
) -> None:
    end = threading.Event()
    killer = threading.Thread(target=kill_at_random, args=(tmp_path, 0, 4, end))
    killer.start()
    events = work(60, workers=3)
    end.set()
    killer.join()
    assert reported(events) == list(range(60))
    written = journal(tmp_path)
    again = sum(written[f"begun {unit}"] - 1 for unit in range(60))
    assert again <= scheduler.IN_FLIGHT * len(lost_in(events))  # the answer to what was done last may be lost, too


def test_stop_within_its_grace_finishes_what_is_begun_and_nothing_else(work: Work, tmp_path: Path) -> None:
    stop = Stop(grace=600)

    def see(event: Event) -> None:
        if isinstance(event, UnitReport):
            stop.request("by a test")

    events = work(40, workers=2, stop=stop, see=see)
    assert 1 <= len(reported(events)) <= 6
    written = journal(tmp_path)
    assert {line.replace("begun", "done") for line in written if line.startswith("begun")} == {
        line for line in written if line.startswith("done")
    }
    assert reported(events) == sorted(int(line.split()[1]) for line in written if line.startswith("done"))


def test_stop_without_grace_abandons_what_is_begun(work: Work, tmp_path: Path) -> None:
    stop = Stop(grace=0)
    (tmp_path / "hold").touch()

    def see(event: Event) -> None:
        if isinstance(event, Begun):
            wait_until((tmp_path / "journal").exists)
            stop.request("by a test")

    events = work(4, workers=2, stop=stop, see=see)
    assert reported(events) == []
    assert not any(line.startswith("done") for line in journal(tmp_path))


# Nodes


@pytest.mark.long
def test_units_of_a_node_that_is_killed_are_done_elsewhere(work: Work, cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=2, resources={"spare": 2})
    (tmp_path / "hold").touch()
    begun: set[str] = set()
    lost: set[str] = set()

    def see(event: Event) -> None:
        if isinstance(event, Begun) and event.worker not in begun:
            begun.add(event.worker)
            if len(begun) == 6:  # two of them on that node
                (raylet,) = node.all_processes["raylet"]
                os.kill(raylet.process.pid, signal.SIGKILL)
        if isinstance(event, Lost):
            lost.add(event.worker)
            if len(lost) == 2:
                (tmp_path / "hold").unlink()

    events = work(12, workers=6, see=see)
    cluster.worker_nodes.discard(node)
    assert reported(events) == list(range(12))
    assert len(lost) == 2


def test_node_that_is_drained_gets_no_more_units_and_loses_none(
    work: Work, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "DRAIN_SECONDS", 0.2)
    node = cluster.add_node(num_cpus=2)
    (tmp_path / "hold").touch()
    begun: set[str] = set()

    def see(event: Event) -> None:
        if isinstance(event, Begun) and event.worker not in begun:
            begun.add(event.worker)
            if len(begun) == 6:  # two of them on that node
                drain(cluster, node)
        if isinstance(event, Notice) and sum(map(is_of_draining, [*seen, event])) == 2:
            (tmp_path / "hold").unlink()
        seen.append(event)

    seen: list[Event] = []
    events = work(24, workers=6, see=see)
    cluster.remove_node(node)
    assert reported(events) == list(range(24))
    assert lost_in(events) == []
    assert all(times == 1 for times in journal(tmp_path).values())
    notices = [index for index, event in enumerate(events) if is_of_draining(event)]
    assert len(notices) == 2
    for index in notices:
        later = {event.worker for event in events[index:] if isinstance(event, Begun)}
        assert not any(f"the node of {worker} is" in events[index].text for worker in later)  # type: ignore[union-attr]


def is_of_draining(event: Event) -> bool:
    return isinstance(event, Notice) and "is being drained" in event.text


def drain(cluster: Any, node: Any) -> None:
    """Announce that a node will be taken away, as ``ray drain-node`` does."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int((time.time() + 600) * 1000)
    accepted, why = GcsClient(address=cluster.gcs_address).drain_node(node.node_id, reason, "test", deadline)
    assert accepted, why


# Figures for Prometheus


def test_figures_are_exported_by_ray(work: Work, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("prometheus_client", reason="Ray exports metrics only with ray[default]")
    monkeypatch.setattr(scheduler, "MAX_DEATHS", 1)
    (tmp_path / "2-1").write_text("fail")
    exported: list[str] = []

    def see(event: Event) -> None:
        if isinstance(event, UnitReport):
            exported.append(scrape(cluster))

    work(4, see=see)
    until = time.monotonic() + LONGEST_WAIT
    work(40, see=see)
    while "ray_labelgen_workers_lost" not in exported[-1] and time.monotonic() < until:
        exported.append(scrape(cluster))
    assert figure("labelgen_image_errors", exported) == 1
    assert figure("labelgen_workers_lost", exported) == 3
    assert 4 <= figure("labelgen_units", exported) <= 44


def scrape(cluster: Any) -> str:
    url = f"http://127.0.0.1:{cluster.head_node.metrics_export_port}/metrics"
    return urllib.request.urlopen(url, timeout=LONGEST_WAIT).read().decode()  # type: ignore[no-any-return]


def figure(name: str, exported: list[str]) -> float:
    """The largest value that was exported of a figure, over all processes."""
    return max(sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"ray_{name}"))
               for text in exported)  # fmt: skip
