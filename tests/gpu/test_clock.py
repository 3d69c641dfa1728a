"""Busy time is the union of what a device had to do, told without waiting for it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sum_factory.shared.gpu import clock as module
from sum_factory.shared.gpu.busy import Busy
from sum_factory.shared.gpu.clock import BusyClock, HostMark, Mark, united


class FakeMark:
    """A moment of a device that is at ``now``; marks are set at the moments that a test lays out."""

    now = 0.0

    def __init__(self, moment: float) -> None:
        self.moment = moment

    def is_past(self) -> bool:
        return self.moment <= FakeMark.now

    def seconds(self, since: Mark) -> float:
        assert isinstance(since, FakeMark)
        return self.moment - since.moment


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=12))
def test_union_of_spans_is_counted_once(given: list[tuple[int, int]]) -> None:
    seconds = np.zeros(60, bool)
    for start, length in given:
        seconds[start : start + length] = True
    total, end = united([(float(start), float(start + length)) for start, length in given])
    assert total == np.count_nonzero(seconds)
    assert end == max((start + length for start, length in given), default=float("-inf"))


def test_time_is_counted_once_the_device_has_come_by(monkeypatch: pytest.MonkeyPatch) -> None:
    host = iter([0.0, 10.0, 20.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(host))
    moments = iter([0.0, 1.0, 4.0, 3.0, 6.0, 8.0, 12.0])  # the first mark, then spans 1-4, 3-6 and 8-12
    clock = BusyClock(lambda: FakeMark(next(moments)))
    for stage in ("encoder", "decoder", "encoder"):
        with clock.stage(stage):
            pass
    FakeMark.now = 10.0
    first = clock.take()
    assert (first.busy, first.seconds, first.share) == (5.0, 10.0, 0.5)
    assert first.by_stage == {"encoder": 3.0, "decoder": 3.0}
    FakeMark.now = 20.0
    second = clock.take()
    assert (second.busy, second.seconds) == (4.0, 10.0)
    both = first + second
    assert (both.busy, both.seconds, both.by_stage["encoder"]) == (9.0, 20.0, 7.0)


def test_threads_share_a_clock() -> None:
    clock, meet = BusyClock(HostMark), threading.Barrier(3, timeout=60)

    def work() -> None:
        with clock.stage("work"):
            meet.wait()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    busy = clock.take()
    assert 0 < busy.busy <= busy.by_stage["work"]
    assert busy.busy <= busy.seconds
    assert clock.take().by_stage == {}


def test_no_time_is_no_share() -> None:
    assert Busy().share == 0.0
