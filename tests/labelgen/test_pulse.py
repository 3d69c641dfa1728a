"""Workers that have stopped, or get nothing done: told of first, then replaced; nobody else is."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from sum_factory.labelgen.engine.pulse import LONGEST_STEP, UNMOVED_WARNED, Patience, Pulses, Stuck


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pulses(clock: Clock) -> Pulses:
    """The pulses of workers 1 and 2, which are heard of now, and load their models."""
    pulses = Pulses(Patience(silent=120, unmoved=3600), clock)
    for worker in (1, 2):
        pulses.add(worker)
    assert pulses.take({1: 0, 2: 0}) == []
    return pulses


def pass_time(pulses: Pulses, clock: Clock, seconds: int, heard: Mapping[int, int]) -> list[tuple[Stuck, float]]:
    """Have the board answer the same every second; return what is told, and after how long."""
    begun, told = clock.now, []
    for _ in range(seconds):
        clock.now += 1
        told += [(stuck, clock.now - begun) for stuck in pulses.take(heard)]
    return told


def test_worker_that_falls_silent_is_told_of_and_then_replaced(pulses: Pulses, clock: Clock) -> None:
    told = pass_time(pulses, clock, 120, {2: 0})
    assert [(stuck.worker, stuck.is_over, seconds) for stuck, seconds in told] == [(1, False, 30), (1, True, 120)]
    assert "not heard of for 30 s: it was stopped" in told[0][0].text
    assert "not heard of for 120 s (--silent-after), and replaced" in told[1][0].text


@pytest.mark.parametrize(("patience", "option"), [(Patience(silent=4), "silent"), (Patience(unmoved=4), "stuck")])
def test_worker_is_told_of_first_though_the_board_answered_late(clock: Clock, patience: Patience, option: str) -> None:
    pulses = Pulses(patience, clock)
    pulses.add(1)
    pulses.take({1: 0})
    told = []
    for _ in range(2):
        clock.now += LONGEST_STEP  # more than the worker is given
        told += pulses.take({} if option == "silent" else {1: 0})
    assert [(each.is_over, f"--{option}-after" in each.text) for each in told] == [(False, True), (True, True)]


def test_worker_that_is_heard_of_again_is_let_be(pulses: Pulses, clock: Clock) -> None:
    for worker in (1, 2):
        pulses.rest(worker)
    for _ in range(3):
        assert [stuck.is_over for stuck, _ in pass_time(pulses, clock, 119, {2: 0})] == [False]
        assert pass_time(pulses, clock, 1, {1: 0, 2: 0}) == []


def test_worker_that_waits_for_room_is_not_watched(clock: Clock) -> None:
    pulses = Pulses(Patience(), clock)
    pulses.add(1)
    assert pass_time(pulses, clock, 10_000, {}) == []


def test_worker_that_gets_nothing_done_is_told_of_and_then_replaced(pulses: Pulses, clock: Clock) -> None:
    pulses.rest(1)
    told = pass_time(pulses, clock, 3600, {1: 7, 2: 0})
    assert [(stuck.worker, stuck.is_over, seconds) for stuck, seconds in told] == [(2, False, 300), (2, True, 3600)]
    assert "nothing done for 300 s, not even a part of a photo; it is replaced after 3600 s" in told[0][0].text
    assert "nothing done for 3600 s (--stuck-after), and replaced" in told[1][0].text


def test_worker_that_is_slow_is_let_be(pulses: Pulses, clock: Clock) -> None:
    for done in range(100):
        assert pass_time(pulses, clock, int(UNMOVED_WARNED) - 1, {1: done, 2: done}) == []


def test_time_of_a_worker_begins_with_its_work(pulses: Pulses, clock: Clock) -> None:
    pulses.rest(2)
    pass_time(pulses, clock, 299, {1: 0, 2: 0})
    for worker in (1, 2):
        pulses.begin(worker)
    assert pass_time(pulses, clock, 299, {1: 0, 2: 0}) == []


def test_driver_or_board_that_was_stopped_takes_nobody_for_stuck(pulses: Pulses, clock: Clock) -> None:
    clock.now += 100_000
    assert pulses.take({}) == []  # what workers told meanwhile may still wait
    clock.now += LONGEST_STEP
    assert pulses.take({1: 0, 2: 0}) == []


def test_impatience_tells_half_way(clock: Clock) -> None:
    pulses = Pulses(Patience(silent=2, unmoved=6), clock)
    pulses.add(1)
    pulses.take({1: 0})
    assert [(stuck.is_over, seconds) for stuck, seconds in pass_time(pulses, clock, 6, {1: 0})] == [
        (False, 3),
        (True, 6),
    ]
    pulses.begin(1)
    assert [(stuck.is_over, seconds) for stuck, seconds in pass_time(pulses, clock, 2, {})] == [(False, 1), (True, 2)]


def test_worker_that_is_gone_is_forgotten(pulses: Pulses, clock: Clock) -> None:
    pulses.forget(1)
    assert pass_time(pulses, clock, 200, {2: 0}) == []
