"""Run units on workers: in this process, or on Ray actors. Both yield the same reports and write the same bytes."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from labelgen.job import Job, Progress, UnitReport
from labelgen.labeler import Event, Labeler
from shared.allocator import tune_malloc
from shared.errors import SumError, WorkerError
from shared.shards.dataset import Unit

IN_FLIGHT = 2
"""Units that are handed to an actor at a time: one to work on, one so that it never waits."""
MAX_ATTEMPTS = 3
"""Workers that one unit may kill before the run gives up on it."""
POLL_SECONDS = 0.5


class Executor(Protocol):
    """Labels units in any order and yields what happens: each image's progress and each unit's report."""

    def run(self, units: Sequence[Unit]) -> Iterator[Event]:
        """Label ``units``. Raises the first ``SumError`` that is not one image's own fault."""
        ...


@dataclass(frozen=True)
class SerialExecutor:
    """Labels unit after unit in this process."""

    job: Job

    def run(self, units: Sequence[Unit]) -> Iterator[Event]:
        """Label ``units`` in order."""
        tune_malloc()
        labeler = Labeler(self.job)
        for unit in units:
            yield from labeler.label_unit(unit)


@dataclass(frozen=True)
class RayExecutor:
    """Labels units on Ray actors, one model each.

    ``address`` is that of a running cluster ("auto" finds the one of this machine); None starts one here for the
    time of the run. Only units, image counts and small reports cross Ray's object store.
    """

    job: Job
    workers: int
    address: str | None = None
    gpus_per_worker: float = 0.0
    cpus_per_worker: float = 1.0

    def run(self, units: Sequence[Unit]) -> Iterator[Event]:
        """Label ``units``; a unit whose worker dies is queued again on a fresh one."""
        with _cluster(self.address, self.workers, self.cpus_per_worker):
            yield from _Pool(self).drain(deque(units))


@dataclass
class _Pool:
    """The actors of one run and the units that each has been given."""

    executor: RayExecutor
    attempts: Counter[int] = field(default_factory=Counter)

    def drain(self, queue: deque[Unit]) -> Iterator[Event]:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        board: Any = ray.remote(num_cpus=0)(_Board).remote()
        actors = [self._start(board) for _ in range(min(self.executor.workers, len(queue)))]
        load: Counter[Any] = Counter(dict.fromkeys(actors, 0))
        running: dict[Any, tuple[Any, Unit]] = {}
        while queue or running:
            while queue and (free := [actor for actor in load if load[actor] < IN_FLIGHT]):
                actor = min(free, key=lambda candidate: load[candidate])
                unit = queue.popleft()
                running[actor.label_unit.remote(unit)] = (actor, unit)
                load[actor] += 1
            ready, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            yield from ray.get(board.take.remote())
            for reference in ready:
                if reference not in running:  # settled with its dead actor
                    continue
                actor, _ = running[reference]
                try:
                    report: UnitReport = ray.get(reference)
                except RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, SumError) else error) from None
                except RayActorError as error:
                    reports, lost = _settle(actor, running)
                    yield from reports
                    self._count_death(lost[0], error)
                    queue.extendleft(reversed(lost))
                    del load[actor]
                    load[self._start(board)] = 0
                else:
                    del running[reference]
                    load[actor] -= 1
                    yield report
        yield from ray.get(board.take.remote())

    def _start(self, board: Any) -> Any:
        import ray

        executor = self.executor
        actor = ray.remote(num_cpus=executor.cpus_per_worker, num_gpus=executor.gpus_per_worker)(_Worker)
        return actor.remote(executor.job, board, executor.cpus_per_worker)

    def _count_death(self, unit: Unit, error: Exception) -> None:
        """Count a death against the unit. Raises ``WorkerError`` when it has killed as many as it may."""
        self.attempts[unit.number] += 1
        if self.attempts[unit.number] >= MAX_ATTEMPTS:
            raise WorkerError(
                f"unit {unit.name} lost its worker {MAX_ATTEMPTS} times ({error}); look at its images, the first is "
                f"{unit.images[0].url}, and at the memory of the nodes"
            )


def _settle(actor: Any, running: dict[Any, tuple[Any, Unit]]) -> tuple[list[UnitReport], list[Unit]]:
    """Take all units of a dead actor out of ``running``; return the reports of those it had finished, and the others.

    An actor works in the order of submission: the first that is lost is the one during which it died.
    """
    import ray
    from ray.exceptions import RayActorError

    reports, lost = [], []
    for reference in [reference for reference, (owner, _) in running.items() if owner == actor]:
        _, unit = running.pop(reference)
        try:
            reports.append(ray.get(reference))
        except RayActorError:
            lost.append(unit)
    return reports, lost


class _Board:
    """Collects the progress of all workers for the driver, which takes it once in a while."""

    def __init__(self) -> None:
        self.events: list[Progress] = []

    def put(self, event: Progress) -> None:
        self.events.append(event)

    def take(self) -> list[Progress]:
        events, self.events = self.events, []
        return events


class _Worker:
    """A labeler in an actor."""

    def __init__(self, job: Job, board: Any, cpus: float) -> None:
        tune_malloc()
        torch.set_num_threads(max(1, int(cpus)))
        self.labeler = Labeler(job)
        self.board = board

    def label_unit(self, unit: Unit) -> UnitReport:
        for event in self.labeler.label_unit(unit):
            if isinstance(event, UnitReport):
                return event
            self.board.put.remote(event)
        raise AssertionError("a labeler ends with its report")


@contextmanager
def _cluster(address: str | None, workers: int, cpus_per_worker: float) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine and stop it afterwards."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keep CUDA visible where no GPU is asked for
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        slots = max(1, round(workers * cpus_per_worker))
        ray.init(address="local", num_cpus=slots, include_dashboard=False, **options)
    else:
        try:
            ray.init(address=address, **options)
        except ConnectionError as error:
            raise WorkerError(
                f"no Ray cluster at {address!r} ({error}); check --ray-address, or leave it out"
            ) from error
    try:
        yield
    finally:
        ray.shutdown()
