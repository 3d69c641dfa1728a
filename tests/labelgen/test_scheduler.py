"""The engine's bookkeeping, on simulated clusters: every unit is done once, whatever dies, without killers alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sum_factory.labelgen.engine.scheduler import IN_FLIGHT, MAX_DEATHS, Assignment, Scheduler
from sum_factory.pipelines.bench.parts.simulation import Cluster, Outcome, simulate

SIZE = 13
"""Images per unit."""


def run(units: int, cluster: Cluster, size: int = SIZE) -> tuple[Scheduler, Outcome]:
    scheduler = Scheduler(range(units), lambda unit: size)
    return scheduler, simulate(scheduler, cluster, keep_attempts=True)


def images_of(assignment: Assignment, size: int = SIZE) -> set[int]:
    """The images that an assignment labels."""
    return set(range(size) if assignment.probe is None else assignment.probe) - set(assignment.left_out)


def killed_by(poison: set[tuple[int, int]], size: int = SIZE) -> Callable[[Assignment], float | None]:
    """A worker dies half a second after it begins an assignment with one of these images."""

    def dies(assignment: Assignment) -> float | None:
        return 0.5 if any((assignment.unit, image) in poison for image in images_of(assignment, size)) else None

    return dies


@given(
    units=st.integers(0, 40), workers=st.integers(1, 9), seed=st.integers(0, 99), probability=st.floats(0, 0.6),
    poison=st.sets(st.tuples(st.integers(0, 39), st.integers(0, SIZE - 1)), max_size=6),
)  # fmt: skip
def test_every_unit_is_done_once_and_exactly_the_poison_is_left_out(
    units: int, workers: int, seed: int, probability: float, poison: set[tuple[int, int]]
) -> None:
    chance = random.Random(seed)
    sound_tries = MAX_DEATHS - 1  # a machine is taken away so often while it works on one assignment, and no more
    taken: Counter[tuple[int, tuple[int, ...] | None]] = Counter()

    def dies(assignment: Assignment) -> float | None:
        if (fatal := killed_by(poison)(assignment)) is not None:
            return fatal
        if taken[assignment.unit, assignment.probe] < sound_tries and chance.random() < probability:
            taken[assignment.unit, assignment.probe] += 1
            return chance.random()
        return None

    cluster = Cluster(workers, lambda assignment: chance.expovariate(1.0), dies, lambda: chance.random())
    scheduler, outcome = run(units, cluster)
    assert outcome.done == dict.fromkeys(range(units), 1)
    assert scheduler.given_up == []
    for unit, left_out in outcome.left_out.items():
        assert left_out == tuple(sorted(image for other, image in poison if other == unit))
    assert outcome.most_in_flight <= IN_FLIGHT


@given(units=st.integers(1, 20), workers=st.integers(1, 6), seed=st.integers(0, 99))
def test_machines_that_are_taken_away_at_any_moment_cost_no_image_and_no_unit(
    units: int, workers: int, seed: int
) -> None:
    chance = random.Random(seed)
    left = [200]

    def dies(assignment: Assignment) -> float | None:
        if left[0] and chance.random() < 0.5:
            left[0] -= 1
            # more often than not a unit is even searched: no image of it is in any way at fault
            return chance.random() if assignment.probe is None or len(assignment.probe) > 1 else None
        return None

    scheduler, outcome = run(units, Cluster(workers, lambda assignment: 1.0, dies))
    assert set(outcome.left_out.values()) == {()}
    assert set(outcome.done) | set(scheduler.given_up) == set(range(units))
    assert len(outcome.done) + len(scheduler.given_up) == units


def test_attempts_of_a_unit_are_numbered_from_one() -> None:
    deaths = iter([0.5, 0.5])
    _, outcome = run(1, Cluster(1, lambda assignment: 1.0, lambda assignment: next(deaths, None)))
    assert [(assignment.unit, assignment.attempt) for assignment in outcome.attempts] == [(0, 1), (0, 2), (0, 3)]


@pytest.mark.parametrize("image", [0, 100, 255])
def test_search_for_one_image_among_256_takes_two_units_of_work_and_as_many_deaths_as_halvings(image: int) -> None:
    _, outcome = run(1, Cluster(1, lambda assignment: 1.0, killed_by({(0, image)}, 256)), size=256)
    assert outcome.left_out == {0: (image,)}
    assert outcome.deaths == MAX_DEATHS + 7 + MAX_DEATHS
    probes = {assignment.probe for assignment in outcome.attempts if assignment.probe is not None}
    assert sum(map(len, probes)) <= 2 * 256


def test_unit_that_kills_though_no_image_does_is_given_up_and_the_others_are_done() -> None:
    def dies(assignment: Assignment) -> float | None:
        return 0.5 if images_of(assignment) == set(range(SIZE)) and assignment.unit == 2 else None

    scheduler, outcome = run(5, Cluster(2, lambda assignment: 1.0, dies))
    assert scheduler.given_up == [2]
    assert set(outcome.done) == {0, 1, 3, 4}
    assert outcome.deaths == 2 * MAX_DEATHS


def test_image_over_which_workers_run_out_of_memory_is_not_left_out_but_its_unit_given_up() -> None:
    scheduler = Scheduler(range(3), lambda unit: SIZE)
    done: list[int] = []
    for worker in count():
        if scheduler.is_done:
            break
        scheduler.add_worker(worker)
        list(scheduler.assign())
        while assignments := scheduler.assignments_of(worker):
            if assignments[0].unit == 1 and 2 in images_of(assignments[0]):
                death = scheduler.died(worker, of_shortage=True)
                assert death is not None
                assert death.left_out is None
                break
            scheduler.done(worker, assignments[0])
            done += [assignments[0].unit] if assignments[0].probe is None else []
        else:
            scheduler.remove_worker(worker)
    assert (scheduler.given_up, scheduler.lacking) == ([1], {1: 2})
    assert sorted(done) == [0, 2]


@pytest.mark.parametrize(("deaths", "left_out"), [(5, ()), (6, (0,))])
def test_unit_of_one_image_is_tried_as_often_as_any_image(deaths: int, left_out: tuple[int, ...]) -> None:
    fatal = iter([0.5] * deaths)
    dies = lambda assignment: next(fatal, None) if assignment.unit == 1 else None  # noqa: E731
    _, outcome = run(2, Cluster(1, lambda assignment: 1.0, dies, lambda: 0.0), size=1)
    assert outcome.left_out == {0: (), 1: left_out}


def test_unit_of_nothing_but_poison_ends_with_all_of_it_left_out() -> None:
    _, outcome = run(2, Cluster(3, lambda assignment: 1.0, killed_by({(1, image) for image in range(4)}, 4)), size=4)
    assert outcome.left_out == {0: (), 1: (0, 1, 2, 3)}


def test_units_that_wait_behind_the_one_that_killed_are_not_blamed() -> None:
    scheduler = Scheduler(range(9), lambda unit: SIZE)
    scheduler.add_worker(0)
    given_out = list(scheduler.assign())
    assert [assignment.unit for _, assignment in given_out] == [0, 1]
    death = scheduler.died(0)
    assert death is not None
    assert death.assignment == Assignment(0)
    scheduler.add_worker(1)
    assert list(scheduler.assign()) == [(1, Assignment(0, attempt=2))]
    scheduler.done(1, Assignment(0, attempt=2))
    assert next(scheduler.assign()) == (1, Assignment(1, attempt=1))


def test_idle_workers_come_first_and_seconds_are_handed_out_only_while_many_wait() -> None:
    scheduler = Scheduler(range(8), lambda unit: SIZE)
    for worker in range(3):
        scheduler.add_worker(worker)
    given_out = [(worker, assignment.unit) for worker, assignment in scheduler.assign()]
    assert given_out == [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4)]  # three wait, as many as there are workers
    assert [len(scheduler.assignments_of(worker)) for worker in range(3)] == [2, 2, 1]


def test_retired_worker_finishes_what_it_has_and_gets_no_more() -> None:
    scheduler = Scheduler(range(9), lambda unit: SIZE)
    scheduler.add_worker(0)
    (_, first), (_, second) = scheduler.assign()
    scheduler.retire(0)
    scheduler.done(0, first)
    assert list(scheduler.assign()) == []
    scheduler.done(0, second)
    scheduler.remove_worker(0)
    scheduler.add_worker(1)
    assert next(scheduler.assign()) == (1, Assignment(2))


def test_stopped_scheduler_waits_for_what_is_in_work_and_queues_nothing_again() -> None:
    scheduler = Scheduler(range(9), lambda unit: SIZE)
    scheduler.add_worker(0)
    assert len(list(scheduler.assign())) == 2
    scheduler.stop()
    assert not scheduler.is_done
    scheduler.died(0)
    assert scheduler.is_done


def test_units_are_read_as_workers_come_free() -> None:
    taken: list[int] = []
    scheduler = Scheduler((taken.append(unit) or unit for unit in range(100_000)), lambda unit: SIZE)
    for worker in range(4):
        scheduler.add_worker(worker)
    in_flight = list(scheduler.assign())
    for (worker, assignment), _ in pairwise(in_flight):
        scheduler.done(worker, assignment)
    list(scheduler.assign())
    assert len(taken) <= 20


@given(units=st.integers(0, 30), workers=st.integers(1, 30), asked=st.integers(1, 60))
def test_has_work_for_as_many_workers_as_there_are_units(units: int, workers: int, asked: int) -> None:
    scheduler = Scheduler(range(units), lambda unit: SIZE)
    for worker in range(workers):
        scheduler.add_worker(worker)
    list(scheduler.assign())
    assert scheduler.has_work_for(asked) == (asked <= units)


@pytest.mark.parametrize("deaths", range(1, MAX_DEATHS + 2))
def test_nothing_waits_beside_a_unit_that_has_lost_workers(deaths: int) -> None:
    scheduler = Scheduler(range(100), lambda unit: SIZE)
    for worker in range(deaths):
        scheduler.add_worker(worker)
        given = [assignment for _, assignment in scheduler.assign()]
        assert given[0].unit == 0
        assert len(given) == (IN_FLIGHT if worker == 0 else 1)
        scheduler.died(worker)
    scheduler.add_worker(deaths)
    scheduler.add_worker(deaths + 1)
    beside = {worker: [assignment.unit for assignment in scheduler.assignments_of(worker)]
              for worker, _ in scheduler.assign()}  # fmt: skip
    assert all(len(units) == 1 or 0 not in units for units in beside.values())
    assert any(0 in units for units in beside.values())
