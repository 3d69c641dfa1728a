"""Drive Ray actors by the scheduler: start and replace them, hand out assignments, wait, and tell what happens."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from sum_factory.labelgen.engine.cluster import Resources, draining_nodes
from sum_factory.labelgen.engine.metrics import Metrics
from sum_factory.labelgen.engine.pulse import Pulses
from sum_factory.labelgen.engine.scheduler import MAX_DEATHS, Assignment, Scheduler, WorkerId
from sum_factory.labelgen.engine.stop import Stop
from sum_factory.labelgen.engine.worker import Answer, Board, Worker
from sum_factory.labelgen.job import Begun, Event, GivenUp, ImageDone, Job, Lost, Notice, Units, WeightsRead
from sum_factory.shared.cluster.connect import connected
from sum_factory.shared.errors import SumError, WorkerError
from sum_factory.shared.places import absolute
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.shared.shortages import is_shortage

POLL_SECONDS = 0.5
IDLE_SECONDS = 0.05
DRAIN_SECONDS = 5.0
"""How often the cluster is asked which nodes are about to go."""
NO_WORKER_SECONDS = 60.0
"""After so long without a single worker, people are told what is being waited for."""
BOARD_SECONDS = 60.0
"""A board that does not answer for so long is replaced."""
WAITING_SECONDS = 10.0
"""Of workers that wait for the same, as when a disk is gone, people are told so often at most."""
LONGEST_REASON = 300
SPARE_STARTS = 2
"""Workers beyond the number asked for that may die one after the other, before any of them is ready to work."""


@dataclass(frozen=True)
class RayExecutor:
    """Labels units on Ray actors, one model each. Ray's object store gets only assignments, small reports and progress.

    ``worker`` is the class of the actors, if it is to be another than ``Worker``.
    """

    job: Job
    resources: Resources
    worker: type[Worker] | None = None

    def run(self, units: Units, stop: Stop) -> Iterator[Event]:
        """Label ``units``; what a worker that dies has not finished is given to another."""
        with connected(self.resources):
            metrics = Metrics(units)
            for event in _Pool(_for_any_folder(self.job), self.resources, self.worker or Worker, units, stop).events():
                metrics.take(event)
                yield event


def _for_any_folder(job: Job) -> Job:
    """Return a job whose paths mean the same in every working directory, as workers may have another one."""
    job = replace(job, shards=absolute(job.shards), sam=_weights(job.sam))
    work = job.uncertainty
    if work is None:
        return job
    refiner, teacher = (None if each is None else _weights(each) for each in (work.refiner, work.teacher))
    return replace(job, uncertainty=replace(work, refiner=refiner, teacher=teacher))


def _weights(name: str) -> str:
    """Return the absolute path of weights; those that ship are known everywhere by their name."""
    return name if name == PACKAGED else absolute(name)


@dataclass
class _Actor:
    """A worker: its handle, and once it is ready where it is."""

    handle: Any
    node: str = ""
    name: str = ""


class _Pool:
    """The actors of one run, and what they have been given."""

    def __init__(self, job: Job, resources: Resources, worker_class: type[Worker], units: Units, stop: Stop) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.job, self.resources, self.units, self.stop = job, resources, units, stop
        self.scheduler = Scheduler(units.numbers(), units.size_of)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        board: Any = ray.remote(Board)
        self.board = board.options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
        worker: Any = ray.remote(worker_class)
        self.actor = worker.options(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker)
        self.pulses = Pulses(resources.patience)
        self.taken: Any = None
        self.ids = count()
        self.actors: dict[WorkerId, _Actor] = {}
        self.starting: dict[Any, WorkerId] = {}
        self.running: dict[Any, tuple[WorkerId, Assignment]] = {}
        self.retiring: set[WorkerId] = set()
        self.deaths_at_start = 0
        self.told = self.looked = self.waiting_since = time.monotonic()
        self.asked, self.told_waiting = self.told, float("-inf")

    def events(self) -> Iterator[Event]:
        """Work until nothing is left or a stop is overdue; yield what happens."""
        while not self.scheduler.is_done:
            if self.stop.is_overdue:
                return
            if self.stop.is_requested:
                self._wind_down()
            else:
                self._start_workers()
                yield from self._hand_out()
            for reference in self._ready():
                if reference in self.starting:
                    yield from self._settle_start(reference)
                else:
                    yield from self._settle(reference)
            yield from self._progress()
            yield from self._watch()
        yield from self._rest_of_progress()
        for unit in self.scheduler.given_up:
            yield GivenUp(unit, _why_given_up(self.scheduler.lacking.get(unit)))

    def _start_workers(self) -> None:
        while True:
            active = len(self.actors) - len(self.retiring)
            if active >= self.resources.workers or not self.scheduler.has_work_for(active + 1):
                return
            worker = next(self.ids)
            handle = self.actor.remote(self.job, self.board, self.resources.cpus_per_worker, worker)
            self.actors[worker] = _Actor(handle)
            self.pulses.add(worker)
            self.starting[handle.start.remote()] = worker

    def _hand_out(self) -> Iterator[Event]:
        for worker, assignment in self.scheduler.assign():
            actor = self.actors[worker]
            answer = actor.handle.work.remote(assignment, self.units.moved.get(assignment.unit))
            self.running[answer] = (worker, assignment)
            if len(self.scheduler.assignments_of(worker)) == 1:
                self.pulses.begin(worker)
            yield Begun(assignment.unit, assignment.attempt, actor.name, len(assignment.probe or ()))

    def _ready(self) -> list[Any]:
        """Wait a little for assignments that are done and workers that are ready to work."""
        import ray

        references = [*self.running, *self.starting]
        if not references:
            time.sleep(IDLE_SECONDS)  # until a unit is planned
            return []
        first, others = ray.wait(references, timeout=POLL_SECONDS)
        if first and others:
            first += ray.wait(others, num_returns=len(others), timeout=0)[0]
        return list(first)

    def _settle_start(self, reference: Any) -> Iterator[WeightsRead]:
        """Take note that a worker is ready to work, or died before.

        Raises ``WorkerError`` if they do nothing but die, and what their job makes them raise, such as
        ``CheckpointError``.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        worker = self.starting.pop(reference)
        try:
            address = ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, SumError):
                raise error.cause from None
            self._bury_at_start(worker, error)
        except RayError as error:
            self._bury_at_start(worker, error)
        else:
            self.deaths_at_start = 0
            self.actors[worker].node = address.node
            self.actors[worker].name = f"{address.host}, process {address.process}"
            self.scheduler.add_worker(worker)
            self.pulses.rest(worker)
            yield WeightsRead(self.actors[worker].name, *address.weights)

    def _bury_at_start(self, worker: WorkerId, error: Exception) -> None:
        self._remove(worker)
        self.deaths_at_start += 1
        if self.deaths_at_start > self.resources.workers + SPARE_STARTS:
            raise WorkerError(
                f"{self.deaths_at_start} workers have died before they were ready to work ({_why(error)}); look at the "
                "memory of the nodes: each worker holds the models"
            ) from error

    def _settle(self, reference: Any) -> Iterator[Event]:
        """Take the answer to an assignment, or what came instead."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        if reference not in self.running:  # settled with its dead worker
            return
        worker, _ = self.running[reference]
        try:
            answer: Answer = ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, SumError):
                yield from self._rest_of_progress()
                raise error.cause from None
            yield from self._bury(worker, error)  # memory, a GPU or a library failed: the process is not to be trusted
        except RayError as error:
            yield from self._bury(worker, error)
        else:
            yield from self._take(reference, answer)

    def _take(self, reference: Any, answer: Answer) -> Iterator[Event]:
        worker, assignment = self.running.pop(reference)
        self.scheduler.done(worker, assignment)
        (self.pulses.begin if self.scheduler.assignments_of(worker) else self.pulses.rest)(worker)
        self._dismiss(worker)
        yield from answer.progress
        if answer.report is not None:
            yield answer.report

    def _bury(self, worker: WorkerId, error: Exception) -> Iterator[Event]:
        """Take note of a death, after whatever the worker had finished before."""
        import ray
        from ray.exceptions import RayError

        for reference in [reference for reference, (owner, _) in self.running.items() if owner == worker]:
            try:
                answer = ray.get(reference, timeout=0)
            except RayError:
                del self.running[reference]
            else:
                yield from self._take(reference, answer)
        if worker not in self.actors:  # it was to retire, and had finished
            return
        name = self.actors[worker].name
        self._remove(worker)
        death = self.scheduler.died(worker, is_shortage(getattr(error, "cause", None) or error))
        if death is None:
            return
        lost = death.assignment
        if death.is_final and not self.scheduler.has_succeeded:
            raise WorkerError(
                f"workers die of whatever they are given: the last one at {lost.unit:06d} ({_why(error)}); try a few "
                "images with --workers 0, which shows more"
            ) from error
        yield Lost(lost.unit, lost.attempt, name, _why(error), death.left_out, len(lost.probe or ()))

    def _remove(self, worker: WorkerId) -> None:
        """Forget a worker; if its process is alive, or out of reach and perhaps alive, it is killed."""
        import ray

        ray.kill(self.actors.pop(worker).handle)
        self.retiring.discard(worker)
        self.pulses.forget(worker)

    def _dismiss(self, worker: WorkerId) -> None:
        """Let a worker go that was to retire and has nothing left to do."""
        if worker in self.retiring and not self.scheduler.assignments_of(worker):
            self.scheduler.remove_worker(worker)
            self._remove(worker)

    def _wind_down(self) -> None:
        """Hand out nothing more."""
        self.scheduler.stop()
        for worker in set(self.actors) - self.retiring:
            self._retire(worker)

    def _retire(self, worker: WorkerId) -> None:
        """Let a worker finish what it was given, and no more.

        What waits there is not taken back: Ray cannot tell for sure whether it has been begun meanwhile.
        """
        self.retiring.add(worker)
        if worker in self.starting.values():
            self._forget_start(worker)
            self._remove(worker)
            return
        self.scheduler.retire(worker)
        self._dismiss(worker)

    def _progress(self) -> Iterator[Event]:
        """Yield the progress of units that are being worked on, and replace workers that are stuck."""
        import ray
        from ray.exceptions import RayError

        if self.taken is None:
            if time.monotonic() - self.told < POLL_SECONDS:
                return
            self.taken, self.asked = self.board.take.remote(), time.monotonic()
        if ray.wait([self.taken], timeout=0)[0]:
            taken, self.taken, self.told = self.taken, None, time.monotonic()
            try:
                events, beats = ray.get(taken)
            except RayError:  # the board is started anew; reports alone tell what is done
                return
            yield from self._without_repetition(events)
            yield from self._replace_stuck(beats)
        elif time.monotonic() - self.asked > BOARD_SECONDS:
            self.taken, self.told = None, time.monotonic()
            ray.kill(self.board, no_restart=False)
            yield Notice(
                f"what collects the progress of the workers has not answered for {BOARD_SECONDS:.0f} s, and is replaced"
            )

    def _without_repetition(self, events: Sequence[ImageDone | Notice]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Notice) and event.of_waiting:
                if time.monotonic() - self.told_waiting < WAITING_SECONDS:
                    continue
                self.told_waiting = time.monotonic()
            yield event

    def _replace_stuck(self, beats: Mapping[WorkerId, int]) -> Iterator[Event]:
        """Replace workers that have stopped, or get nothing done: what they had is given to others."""
        for stuck in self.pulses.take(beats):
            worker, error = stuck.worker, WorkerError(stuck.text)
            is_starting = worker in self.starting.values()
            given = () if is_starting else self.scheduler.assignments_of(worker)
            if not stuck.is_over or not given:  # else its loss is told of
                doing = f"unit {given[0].unit:06d}" if given else "loading the models" if is_starting else "idle"
                yield Notice(f"{doing}: {self.actors[worker].name or f'worker {worker}'}: {stuck.text}")
            if stuck.is_over and is_starting:
                self._forget_start(worker)
                self._bury_at_start(worker, error)
            elif stuck.is_over:
                yield from self._bury(worker, error)

    def _forget_start(self, worker: WorkerId) -> None:
        del self.starting[next(reference for reference, other in self.starting.items() if other == worker)]

    def _rest_of_progress(self) -> Iterator[Event]:
        """Yield what the board still holds when all is done: no photo that failed may be missing from the log."""
        import ray
        from ray.exceptions import RayError

        for taken in (self.taken, self.board.take.remote()):
            if taken is not None:
                with suppress(RayError):  # the board was started anew, or does not answer
                    yield from self._without_repetition(ray.get(taken, timeout=BOARD_SECONDS)[0])

    def _watch(self) -> Iterator[Event]:
        """Look after nodes that are about to go, and say so if no worker is there."""
        if time.monotonic() - self.looked < DRAIN_SECONDS:
            return
        self.looked = time.monotonic()
        if self.scheduler.workers:
            self.waiting_since = self.looked
        elif self.looked - self.waiting_since >= NO_WORKER_SECONDS:
            self.waiting_since = self.looked
            yield Notice(
                f"still waiting for a worker to be ready: each asks for {self.resources.each()}, and then loads the "
                "models (`ray status` shows what the cluster has)"
            )
        going = draining_nodes()
        for worker in [worker for worker, actor in self.actors.items() if actor.node in going]:
            if worker not in self.retiring:
                yield Notice(f"the node of {self.actors[worker].name} is being drained: it gets no more units")
                self._retire(worker)


def _why_given_up(lacking: int | None) -> str:
    if lacking is not None:
        return f"workers run out of memory over its image {lacking} alone: give them more, or leave that photo out"
    return f"it lost {2 * MAX_DEATHS} workers, though no image of it alone kills one"


def _why(error: Exception) -> str:
    """Return in one line, and not a long one, why a worker died."""
    cause = getattr(error, "cause", None)
    if cause is not None:
        return f"{type(cause).__name__}: {cause}"[:LONGEST_REASON]
    told = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split())
    detail = told.partition("exit detail: ")[2]  # of what Ray tells, this says most; else the end of a traceback does
    return detail[:LONGEST_REASON] if detail else told[-LONGEST_REASON:]
