"""When a device had work to do, and in which stage: from marks that are set before and behind what is handed to it.

A GPU works behind the host. A mark on it is an event in the stream of the thread that sets it, which gets its time when
the GPU comes by; reading it waits for nothing. Spans of several threads may overlap: the device was busy where there is
any. On a CPU a mark is the time at which it is set.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

from sum_factory.shared.gpu.busy import Busy


class Mark(Protocol):
    """A moment on a device."""

    def is_past(self) -> bool:
        """Whether the device has come by."""

    def seconds(self, since: Mark) -> float:
        """Return the seconds since another mark; both are past."""


class HostMark:
    """The moment at which it is made."""

    def __init__(self) -> None:
        self.time = time.perf_counter()

    def is_past(self) -> bool:
        """True."""
        return True

    def seconds(self, since: Mark) -> float:
        """Return the seconds since another one."""
        assert isinstance(since, HostMark), "a clock has marks of one kind"
        return self.time - since.time


class GpuMark:
    """The moment at which the GPU comes by in this thread's stream."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.event.record()

    def is_past(self) -> bool:
        """Whether it has."""
        return bool(self.event.query())  # type: ignore[no-untyped-call]

    def seconds(self, since: Mark) -> float:
        """Return the seconds since another one."""
        assert isinstance(since, GpuMark), "a clock has marks of one kind"
        return float(since.event.elapsed_time(self.event)) / 1e3


class BusyClock:
    """Measures when a device has work. Threads may use one at once."""

    def __init__(self, mark: Callable[[], Mark] = HostMark) -> None:
        self.mark = mark
        self._lock = threading.Lock()
        self._spans: list[tuple[str, Mark, Mark]] = []
        self._host = time.perf_counter()
        self._counted = mark()
        """Until when time is counted, and from where it is told: a GPU tells long times coarsely."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what is handed to the device inside to a stage."""
        begun = self.mark()
        try:
            yield
        finally:
            with self._lock:
                self._spans.append((name, begun, self.mark()))

    def take(self) -> Busy:
        """Return what was measured since the last time. What the device has not come by yet counts the next time."""
        with self._lock:
            past: list[tuple[str, Mark, Mark]] = []
            waiting: list[tuple[str, Mark, Mark]] = []
            for span in self._spans:
                (past if span[2].is_past() else waiting).append(span)
            self._spans = waiting
            now = time.perf_counter()
            seconds, self._host = now - self._host, now
            by_stage: defaultdict[str, float] = defaultdict(float)
            times = []
            for name, begun, ended in past:
                start, end = begun.seconds(self._counted), ended.seconds(self._counted)
                by_stage[name] += end - start
                times.append((start, end))
            busy, last = united(times, 0.0)
            if last > 0:
                self._counted = next(span[2] for span, (_, end) in zip(past, times, strict=True) if end == last)
        return Busy(busy, seconds, by_stage)


def united(spans: Sequence[tuple[float, float]], after: float = float("-inf")) -> tuple[float, float]:
    """Return how long the union of spans is, beyond ``after``, and where it ends."""
    total = 0.0
    for start, end in sorted(spans):
        if end > after:
            total, after = total + end - max(start, after), end
    return total, after


def clock_of(device: torch.device) -> BusyClock:
    """Return a clock for a device."""
    return BusyClock(GpuMark if device.type == "cuda" else HostMark)
