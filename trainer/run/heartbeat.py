"""Notice processes that are stopped, or whose machine is gone: nobody tells of these, and exchanges wait for them.

Each process counts in the store that they all met at, and looks whether the others count on. It does so in threads of
its own, so one that saves, or waits for its data, is heard of. What waits in an exchange cannot be called back; so who
does not hear of another one says so, and ends.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol, Self

from sum_factory.shared.errors import WorkerError

BEAT_SECONDS = 2.0
"""How often a process counts."""
SILENT_SECONDS = 15.0
"""So long a process may be silent. ``torchrun`` waits 30 s for those that it ends, and all is to be over in 60 s."""
LONGEST_STEP = 2.0
"""No more time than this passes between two looks: one that was stopped itself takes nobody else for stopped."""
LOST_STATUS = 75
"""The exit status of a process that ends because it does not hear of another one."""
LEFT = b"left"
"""What a process leaves in place of its count when it is done."""


class Store(Protocol):
    """What processes met at: torch's stores, of which it has no type."""

    def set(self, key: str, value: str, /) -> None:
        """Have ``key`` stand for ``value``."""
        ...

    def multi_get(self, keys: list[str], /) -> list[bytes]:
        """Return what keys stand for; those that are missing are waited for."""
        ...

    def clone(self) -> Self:
        """Return another connection to the same."""
        ...


class Silence:
    """For how many seconds each of the other processes has not been heard of. Plain bookkeeping."""

    def __init__(self, others: Sequence[int], longest: float = SILENT_SECONDS) -> None:
        self._longest = longest
        self._said: dict[int, bytes] = {}
        self._seconds = dict.fromkeys(others, 0.0)
        self._lock = threading.Lock()

    def hear(self, said: Sequence[bytes]) -> None:
        """Take up what the others have counted, in their order."""
        with self._lock:
            for other, count in zip(self._seconds, said, strict=True):
                if self._said.get(other) != count or count == LEFT:
                    self._said[other], self._seconds[other] = count, 0.0

    def passes(self, seconds: float) -> list[int]:
        """Have time pass; return who has been silent for too long. One that is done may be."""
        with self._lock:
            for other in self._seconds:
                if self._said.get(other) != LEFT:
                    self._seconds[other] += min(seconds, LONGEST_STEP)
            return [other for other, silent in self._seconds.items() if silent >= self._longest]


@contextmanager
def heard_of(store: Store, rank: int, count: int, end: Callable[[WorkerError], None] | None = None) -> Iterator[None]:
    """Count in ``store`` meanwhile, and call ``end``, which by default ends this process, if another one falls silent.

    All of ``count`` processes have to come here at about the same time.
    """
    if count == 1:
        yield
        return
    own = store.clone()  # a connection of its own: the store may be waited for elsewhere
    others = [other for other in range(count) if other != rank]
    silence, done = Silence(others), threading.Event()
    _count(own, rank, "0")

    def beat() -> None:
        number = 0
        with suppress(RuntimeError):  # the process that keeps the store is gone: it falls silent
            while not done.wait(BEAT_SECONDS):
                number += 1
                _count(own, rank, str(number))
                silence.hear(own.multi_get([f"beat {other}" for other in others]))
            _count(own, rank, LEFT.decode())  # here, or a beat on its way might count on after it

    def look() -> None:
        before = time.monotonic()
        while not done.wait(LONGEST_STEP / 2):
            now = time.monotonic()
            lost = silence.passes(now - before)
            before = now
            if lost:
                (end or _end)(WorkerError(_told(rank, count, lost)))
                return

    threads = [threading.Thread(target=each, name=each.__name__, daemon=True) for each in (beat, look)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(2 * BEAT_SECONDS)
        if threads[0].is_alive():  # it waits for the others, who are to hear of it nonetheless
            with suppress(RuntimeError):
                _count(own, rank, LEFT.decode())


def _count(store: Store, rank: int, value: str) -> None:
    store.set(f"beat {rank}", value)


def _told(rank: int, count: int, lost: Sequence[int]) -> str:
    silent = ", ".join(map(str, lost))
    return (
        f"process {rank} of {count} has not heard of {silent} for {SILENT_SECONDS:.0f} s: stopped, or on a machine "
        "that is gone or cannot be reached. The same command goes on from the last checkpoint"
    )


def _end(error: WorkerError) -> None:
    """End this process, whatever it waits for; nothing is lost but what was done since the last checkpoint."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(LOST_STATUS)
