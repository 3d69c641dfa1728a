"""Notice workers that are stuck: their process has stopped and is not dead, or it lives and gets nothing done.

Plain bookkeeping, without Ray. Time is what passes between two answers of the board, and never more than
``LONGEST_STEP``: so a driver or a board that was stopped itself does not take all workers for stuck.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sum_factory.labelgen.engine.scheduler import WorkerId
from sum_factory.labelgen.settings import SILENT_SECONDS, STUCK_SECONDS

SILENT_WARNED = 30.0
"""So long a worker is not heard of before people are told, or half as long as it may be."""
UNMOVED_WARNED = 300.0
"""So long a worker gets nothing done before people are told, or half as long as it may."""
LONGEST_STEP = 5.0


@dataclass(frozen=True)
class Patience:
    """For how many seconds a worker may be silent, and for how many heard of without getting anything done."""

    silent: float = SILENT_SECONDS
    unmoved: float = STUCK_SECONDS


class Stuck(NamedTuple):
    """What is to be told of a worker; whether it is to be replaced."""

    worker: WorkerId
    text: str
    is_over: bool


@dataclass
class _Pulse:
    """What is known of a worker."""

    done: int | None = None
    """How much it had done when it was last heard of."""
    silent: float = 0.0
    unmoved: float = 0.0
    is_busy: bool = True
    """Whether it has something to do; at first it loads the models."""
    is_told_silent: bool = False
    is_told_unmoved: bool = False


class Pulses:
    """The pulse of each worker. One that wears out ``patience`` is to be replaced."""

    def __init__(self, patience: Patience, clock: Callable[[], float] = time.monotonic) -> None:
        self.patience = patience
        self._clock = clock
        self._answered = clock()
        self._pulses: dict[WorkerId, _Pulse] = {}

    def add(self, worker: WorkerId) -> None:
        """Watch a worker, from its first beat on: until then it waits for room."""
        self._pulses[worker] = _Pulse()

    def forget(self, worker: WorkerId) -> None:
        """Watch a worker no more."""
        self._pulses.pop(worker, None)

    def begin(self, worker: WorkerId) -> None:
        """Note that a worker begins with something."""
        pulse = self._pulses[worker]
        pulse.unmoved, pulse.is_busy, pulse.is_told_unmoved = 0.0, True, False

    def rest(self, worker: WorkerId) -> None:
        """Note that a worker has nothing to do."""
        pulse = self._pulses[worker]
        pulse.unmoved, pulse.is_busy = 0.0, False

    def take(self, beats: Mapping[WorkerId, int]) -> list[Stuck]:
        """Take an answer of the board: how much those workers have done that were heard of since the last answer.

        That is any number that changes as they get on. Returns what is to be told or done.
        """
        now = self._clock()
        step, self._answered = min(now - self._answered, LONGEST_STEP), now
        return [told for worker, pulse in self._pulses.items() for told in self._look(worker, pulse, beats, step)]

    def _look(self, worker: WorkerId, pulse: _Pulse, beats: Mapping[WorkerId, int], step: float) -> Iterator[Stuck]:
        self._count(pulse, beats.get(worker), step)
        silent, unmoved = self.patience.silent, self.patience.unmoved
        if pulse.silent >= min(SILENT_WARNED, silent / 2) and not pulse.is_told_silent:
            pulse.is_told_silent = True
            yield Stuck(
                worker,
                f"not heard of for {pulse.silent:.0f} s: it was stopped, or its machine is overloaded or out of reach; "
                f"it is replaced after {silent:.0f} s (--silent-after)",
                is_over=False,
            )
        elif pulse.silent >= silent:
            yield Stuck(worker, f"not heard of for {pulse.silent:.0f} s (--silent-after), and replaced", is_over=True)
        elif pulse.unmoved >= min(UNMOVED_WARNED, unmoved / 2) and not pulse.is_told_unmoved:
            pulse.is_told_unmoved = True
            yield Stuck(
                worker,
                f"nothing done for {pulse.unmoved:.0f} s, not even a part of a photo; it is replaced after "
                f"{unmoved:.0f} s (--stuck-after)",
                is_over=False,
            )
        elif pulse.unmoved >= unmoved:
            yield Stuck(worker, f"nothing done for {pulse.unmoved:.0f} s (--stuck-after), and replaced", is_over=True)

    def _count(self, pulse: _Pulse, done: int | None, step: float) -> None:
        """Count a step of time, in which a worker was heard of if it is known how much it has done."""
        if done is None:
            pulse.silent += step if pulse.done is not None else 0.0
        else:
            pulse.silent, pulse.is_told_silent = 0.0, False
        if done is not None and done != pulse.done:
            pulse.done, pulse.unmoved, pulse.is_told_unmoved = done, 0.0, False
        elif pulse.done is not None and pulse.is_busy:
            pulse.unmoved += step
