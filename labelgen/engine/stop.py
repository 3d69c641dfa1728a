"""Stop a run on request: what is in work may be finished for a while, then it is abandoned."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sum_factory.shared.signals import STOPPING_SIGNALS


class Stop:
    """Says whether a run is to stop and, ``grace`` seconds later, whether to abandon what is still in work."""

    def __init__(self, grace: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.grace = grace
        self.reason: str | None = None
        self.is_heeded = False
        """Whether somebody looks at this; until then there is nothing to finish."""
        self._clock = clock
        self._deadline = float("inf")

    def request(self, reason: str) -> None:
        """Ask to stop; the first reason counts."""
        if self.reason is None:
            self.reason = reason
            self._deadline = self._clock() + self.grace

    @property
    def is_requested(self) -> bool:
        """Whether nothing new is to be begun."""
        return self.reason is not None

    @property
    def is_overdue(self) -> bool:
        """Whether what is in work is to be abandoned."""
        return self._clock() >= self._deadline

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Declare that ``is_requested`` is looked at meanwhile."""
        self.is_heeded = True
        try:
            yield
        finally:
            self.is_heeded = False


@contextmanager
def stop_on_signals(grace: float, say: Callable[[str], None]) -> Iterator[Stop]:
    """Have SIGINT and SIGTERM ask for a stop, and the next of them end this process's work at once.

    Before and after the time in which the stop is heeded, the first signal does that: ``KeyboardInterrupt`` is raised.
    Signals are left alone where Python does not allow to handle them, in other threads than the main one.
    """
    stop = Stop(grace)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_requested or not stop.is_heeded:
            raise KeyboardInterrupt
        stop.request(f"by {signal.Signals(number).name}")
        say(f"stopping: what is in work has {grace:g} s to be finished (--grace); a second signal aborts at once")

    before = {number: signal.signal(number, handle) for number in STOPPING_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
