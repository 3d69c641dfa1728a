"""Which unit goes to which worker, and what follows from a death: plain bookkeeping, without Ray and without a clock.

A worker may die of anything: a machine that is taken away, memory, an image that makes a library crash. So a death
counts against the unit that was worked on, and the unit is queued again. A unit that has lost ``MAX_DEATHS`` workers is
searched: halves of it are labelled for nothing but to see whether they kill, until single images are left. An image
that has killed ``MAX_DEATHS`` workers alone is left out, and the unit is labelled without it. A unit that kills
though none of its images does is given up, and the others go on. So is a unit with an image over which workers run out
of memory: the image is not left out, for a worker with more memory may manage it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

MAX_DEATHS = 3
"""Workers that a unit may lose before it is searched, and an image alone before it is left out."""
IN_FLIGHT = 2
"""Units that a worker has at a time while many wait: one to work on, one so that it never waits for the driver."""

WorkerId = int
END = -1
"""Comes after the last unit."""


@dataclass(frozen=True)
class Assignment:
    """What a worker is given: a unit to label, or with ``probe`` those images of it to be tried for nothing.

    ``attempt`` counts from 1 what was begun of the unit, probes too. ``left_out`` names images that are not even read.
    """

    unit: int
    attempt: int = 1
    left_out: tuple[int, ...] = ()
    probe: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Death:
    """A worker died while it worked on an assignment. ``left_out`` is the image that this was once too often for."""

    assignment: Assignment
    left_out: int | None = None
    is_final: bool = False
    """Whether an image is left out, or its unit given up, that had been tried alone often enough."""


@dataclass
class _Suspect:
    """What is known of a unit that has lost workers."""

    attempts: int = 1
    deaths: int = 0
    """Of the whole unit, since it was last searched."""
    alone: Counter[int] = field(default_factory=Counter)
    """Deaths over single images."""
    probes: int = 0
    """Probes that are waiting or being worked on."""
    found: bool = False
    """Whether the search that is going on has found an image to leave out."""
    searched_in_vain: bool = False
    left_out: tuple[int, ...] = ()
    lacks: int | None = None
    """The image over which workers ran out of memory alone."""


class Scheduler:
    """Hands ``units`` to workers. ``size_of`` gives the number of images of a unit.

    Where ``units`` gives None, the next one is not known yet. Only what is in work, and units that have lost workers,
    take memory: ``units`` is read as workers come free.
    """

    def __init__(self, units: Iterable[int | None], size_of: Callable[[int], int]) -> None:
        self._fresh: Iterator[int | None] = iter(units)
        self._are_all_known = False
        self._ahead: deque[int] = deque()
        self._again: deque[Assignment] = deque()
        self._size_of = size_of
        self._assignments: dict[WorkerId, deque[Assignment]] = {}
        self._retiring: set[WorkerId] = set()
        self._with_load: tuple[set[WorkerId], ...] = tuple(set() for _ in range(IN_FLIGHT))
        """The workers that may be given more, by how many assignments they have."""
        self._suspects: dict[int, _Suspect] = {}
        self._stopped = False
        self.has_succeeded = False
        """Whether any assignment has ever been done: if not, the fault may well be with the workers themselves."""
        self.given_up: list[int] = []
        self.lacking: dict[int, int] = {}
        """Of the units given up, those over which workers ran out of memory: the image that it took."""

    @property
    def is_done(self) -> bool:
        """Whether nothing waits and nothing is being worked on."""
        return not any(self._assignments.values()) and not self._waiting(1) and self._are_all_known

    @property
    def workers(self) -> int:
        """How many workers there are, but for those that are to get no more."""
        return len(self._assignments) - len(self._retiring)

    def has_work_for(self, workers: int) -> bool:
        """Whether ``workers`` workers would all have something to do now."""
        in_work = sum(map(len, self._assignments.values()))
        return in_work >= workers or self._waiting(workers - in_work)

    def _waiting(self, most: int) -> bool:
        """Whether at least ``most`` assignments wait."""
        while len(self._again) + len(self._ahead) < most:
            unit = next(self._fresh, END)
            if unit is None or unit == END:
                self._are_all_known = unit == END
                return False
            self._ahead.append(unit)
        return True

    def add_worker(self, worker: WorkerId) -> None:
        """Count on a worker that is ready to work."""
        self._assignments[worker] = deque()
        self._sort_in(worker)

    def _sort_in(self, worker: WorkerId) -> None:
        """Find a worker its place again: its load has changed, or it has come, retired or gone."""
        may_get_more = worker in self._assignments and worker not in self._retiring
        for load, workers in enumerate(self._with_load):
            if may_get_more and len(self._assignments[worker]) == load:
                workers.add(worker)
            else:
                workers.discard(worker)

    def retire(self, worker: WorkerId) -> None:
        """Give a worker no more than it has."""
        self._retiring.add(worker)
        self._sort_in(worker)

    def remove_worker(self, worker: WorkerId) -> None:
        """Forget a worker that has nothing to do."""
        assert not self._assignments[worker], "its assignments would be lost"
        del self._assignments[worker]
        self._retiring.discard(worker)
        self._sort_in(worker)

    def assignments_of(self, worker: WorkerId) -> tuple[Assignment, ...]:
        """Return what a worker was given and has not finished: the first it works on, the others wait there."""
        return tuple(self._assignments[worker])

    def assign(self) -> Iterator[tuple[WorkerId, Assignment]]:
        """Hand out assignments: one to every idle worker, then a second each while more wait than there are workers.

        Towards the end an assignment waits here for whoever is free first, and not behind one that may take long.
        Nothing waits beside a unit that has lost workers: what a worker had just finished may be lost with it, and
        its death would be counted against the wrong one of the two.
        """
        for load, workers in enumerate(self._with_load):
            for worker in sorted(workers):
                if not self._waiting(1 if load == 0 else self.workers + 1):
                    break
                if load and self._is_suspect(self._assignments[worker][0]):
                    continue
                if load and self._again and self._is_suspect(self._again[0]):
                    break
                assignment = self._again.popleft() if self._again else Assignment(self._ahead.popleft())
                self._assignments[worker].append(assignment)
                self._sort_in(worker)
                yield worker, assignment

    def _is_suspect(self, assignment: Assignment) -> bool:
        return assignment.unit in self._suspects

    def done(self, worker: WorkerId, assignment: Assignment) -> None:
        """Note that a worker has finished an assignment."""
        self.has_succeeded = True
        self._assignments[worker].remove(assignment)
        self._sort_in(worker)
        if assignment.probe is None:
            self._suspects.pop(assignment.unit, None)
        else:
            self._end_probe(assignment.unit)

    def stop(self) -> None:
        """Hand out nothing more."""
        self._stopped = True
        self._again.clear()
        self._ahead.clear()
        self._fresh, self._are_all_known = iter(()), True

    def died(self, worker: WorkerId, of_shortage: bool = False) -> Death | None:
        """Forget a worker that died, and queue again what it had; return what it worked on, if anything.

        ``of_shortage`` says that it had too little memory, which is no image's fault.
        A worker does its assignments in the order in which it got them, so it died in the first that was not finished.
        """
        assignments = self._assignments.pop(worker)
        self._retiring.discard(worker)
        self._sort_in(worker)
        if not assignments:
            return None
        first = assignments.popleft()
        for assignment in reversed(assignments):
            self._queue(assignment)
        suspect = self._suspects.setdefault(first.unit, _Suspect())
        suspect.attempts += 1
        if first.probe is not None:
            left_out = self._blame_probe(first, suspect, of_shortage)
            return Death(first, left_out, left_out is not None or suspect.lacks is not None)
        self._blame(first, suspect)
        return Death(first)

    def _blame(self, assignment: Assignment, suspect: _Suspect) -> None:
        """Count a death against a unit, and have it searched if that is one too many."""
        suspect.deaths += 1
        if suspect.deaths < MAX_DEATHS:
            self._queue_unit(assignment.unit, suspect)
            return
        if suspect.searched_in_vain:
            del self._suspects[assignment.unit]
            self.given_up.append(assignment.unit)
            return
        suspect.found = False
        images = tuple(i for i in range(self._size_of(assignment.unit)) if i not in suspect.left_out)
        self._queue_halves(assignment.unit, images, suspect)

    def _blame_probe(self, assignment: Assignment, suspect: _Suspect, of_shortage: bool) -> int | None:
        """Count a death against some images; return the image that is to be left out, if it is one too many."""
        assert assignment.probe is not None, "only of probes"
        if len(assignment.probe) > 1:
            self._queue_halves(assignment.unit, assignment.probe, suspect)
            self._end_probe(assignment.unit)
            return None
        (image,) = assignment.probe
        suspect.alone[image] += 1
        if suspect.alone[image] < MAX_DEATHS:
            self._queue_probe(assignment.unit, assignment.probe, suspect)
            self._end_probe(assignment.unit)
            return None
        if of_shortage:
            suspect.lacks = image
            self._end_probe(assignment.unit)
            return None
        suspect.found = True
        suspect.left_out = tuple(sorted((*suspect.left_out, image)))
        self._end_probe(assignment.unit)
        return image

    def _queue(self, assignment: Assignment) -> None:
        """Have an assignment be the next that is handed out."""
        if not self._stopped:
            self._again.appendleft(assignment)

    def _queue_unit(self, unit: int, suspect: _Suspect) -> None:
        self._queue(Assignment(unit, suspect.attempts, suspect.left_out))

    def _queue_halves(self, unit: int, images: tuple[int, ...], suspect: _Suspect) -> None:
        middle = len(images) // 2
        for half in (images[middle:], images[:middle]):
            if half:
                self._queue_probe(unit, half, suspect)

    def _queue_probe(self, unit: int, images: tuple[int, ...], suspect: _Suspect) -> None:
        suspect.probes += 1
        self._queue(Assignment(unit, suspect.attempts, suspect.left_out, images))

    def _end_probe(self, unit: int) -> None:
        suspect = self._suspects[unit]
        suspect.probes -= 1
        if suspect.probes == 0:
            self._end_search(unit, suspect)

    def _end_search(self, unit: int, suspect: _Suspect) -> None:
        """Queue a unit again of which every image is either left out or has been labelled without a death."""
        if suspect.lacks is not None:
            del self._suspects[unit]
            self.given_up.append(unit)
            self.lacking[unit] = suspect.lacks
            return
        suspect.deaths, suspect.searched_in_vain = 0, not suspect.found
        suspect.alone.clear()
        self._queue_unit(unit, suspect)
