"""A cluster on a simulated clock, around the engine's own scheduler: no process, no model, no waiting.

Workers take their time to start, label units whose length is given, and die when they are told to. The driver is one
thread: each event that it handles costs it time, during which no other event is handled.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from sum_factory.labelgen.engine.scheduler import Assignment, Scheduler

Seconds = float


@dataclass(frozen=True)
class Cluster:
    """``seconds`` is how long a worker takes over an assignment; ``dies`` after how much of it, if it does.

    ``start_seconds`` is from asking for a worker until it has its model; ``driver_seconds`` what an event costs the
    driver: a worker that is ready, an assignment that is done, a death.
    """

    workers: int
    seconds: Callable[[Assignment], Seconds]
    dies: Callable[[Assignment], Seconds | None] = lambda assignment: None
    start_seconds: Callable[[], Seconds] = lambda: 0.0
    driver_seconds: Callable[[], Seconds] = lambda: 0.0


@dataclass
class Outcome:
    """What happened: ``done`` counts how often each unit was finished, ``begun`` how often it was begun."""

    seconds: Seconds = 0.0
    busy_seconds: Seconds = 0.0
    """Worker time spent on units that were finished."""
    done: Counter[int] = field(default_factory=Counter)
    begun: Counter[int] = field(default_factory=Counter)
    left_out: dict[int, tuple[int, ...]] = field(default_factory=dict)
    deaths: int = 0
    most_in_flight: int = 0
    attempts: list[Assignment] = field(default_factory=list)


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[Seconds, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def after(self, seconds: Seconds, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._count), event))

    def next_event(self) -> Callable[[], None] | None:
        """Move on to the next event and return it; one that is late because the driver was busy happens now."""
        if not self._events:
            return None
        due, _, event = heapq.heappop(self._events)
        self.now = max(self.now, due)
        return event


def simulate(scheduler: Scheduler, cluster: Cluster, keep_attempts: bool = False) -> Outcome:
    """Run until the scheduler has nothing left; a dead worker is replaced by a fresh one."""
    clock, outcome, ids = _Clock(), Outcome(), itertools.count()
    free_at: dict[int, Seconds] = {}
    alive: set[int] = set()

    def start() -> None:
        worker = next(ids)
        alive.add(worker)
        clock.after(cluster.start_seconds(), lambda: begin(worker))

    def begin(worker: int) -> None:
        scheduler.add_worker(worker)
        free_at[worker] = clock.now

    def finish(worker: int, assignment: Assignment, seconds: Seconds) -> None:
        if worker not in alive:
            return
        scheduler.done(worker, assignment)
        if assignment.probe is None:
            outcome.done[assignment.unit] += 1
            outcome.busy_seconds += seconds
            outcome.left_out[assignment.unit] = assignment.left_out

    def die(worker: int) -> None:
        if worker not in alive:
            return
        alive.remove(worker)
        outcome.deaths += 1
        scheduler.died(worker)
        if scheduler.has_work_for(len(alive) + 1):
            start()

    for _ in range(cluster.workers):
        if scheduler.has_work_for(len(alive) + 1):
            start()
    while not scheduler.is_done:
        event = clock.next_event()
        assert event is not None, "work is left, and nobody does it"
        clock.now += cluster.driver_seconds()
        event()
        for worker, assignment in scheduler.assign():
            outcome.begun[assignment.unit] += assignment.probe is None
            if keep_attempts:
                outcome.attempts.append(assignment)
            outcome.most_in_flight = max(outcome.most_in_flight, len(scheduler.assignments_of(worker)))
            begins = max(clock.now, free_at[worker])
            fatal, seconds = cluster.dies(assignment), cluster.seconds(assignment)
            if fatal is None:
                free_at[worker] = begins + seconds
                happens = _bound(finish, worker, assignment, seconds)
            else:
                free_at[worker] = float("inf")
                seconds, happens = fatal, _bound(die, worker)
            if begins < float("inf"):
                clock.after(begins + seconds - clock.now, happens)
    outcome.seconds = clock.now
    return outcome


def _bound(function: Callable[..., None], *values: object) -> Callable[[], None]:
    return lambda: function(*values)
