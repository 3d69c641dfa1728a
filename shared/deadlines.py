"""Calls that may never return, waited for no longer than is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, BinaryIO, Generic, TypeVar

from sum_factory.shared.progress import SPEAKER

Result = TypeVar("Result")

LOOK_SECONDS = 60.0
"""So long a store or disk may take to tell of one file, to give a page of a listing, or to begin to answer."""
LIST_SECONDS = 600.0
"""So long a store may take to list a folder that it lists at once, and a disk to give the names in one."""
TOLD_SECONDS = 20.0
"""After so long people are told what is being waited for."""
BYTES_PER_SECOND = 200_000
"""A store that gives less than this is taken to be stuck."""


class _Call(Generic[Result]):
    """A call in a thread of its own, and what came of it."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self.call = call
        self.is_over = threading.Event()
        self.result: Result
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.call()
        except BaseException as error:  # for whoever waits for it
            self.error = error
        finally:
            self.is_over.set()


def within(seconds: float, whom: str | Callable[[], str], call: Callable[[], Result]) -> Result:
    """Return what a call returns, or raise what it raises.

    When it takes long, people are told what is waited for; when it takes longer, ``TimeoutError`` is raised, which says
    that ``whom``, asked at that moment if it can be called, did not answer. The thread of the call is then left behind,
    and does not keep the process alive.
    """
    named = whom if callable(whom) else lambda: whom
    made = _Call(call)
    threading.Thread(target=made.run, name="waiting", daemon=True).start()
    if not made.is_over.wait(min(seconds, TOLD_SECONDS)) and seconds > TOLD_SECONDS:
        SPEAKER.say(f"{named()} has not answered for {TOLD_SECONDS:.0f} s; it is waited for {seconds:.0f} s")
        made.is_over.wait(seconds - TOLD_SECONDS)
    if not made.is_over.is_set():
        raise TimeoutError(f"{named()} has not answered within {seconds:.0f} s")
    if made.error is not None:
        raise made.error
    return made.result


def seconds_for(size: int | None) -> float:
    """Return how long reading so many bytes may take; None if it is not known how many they are."""
    return LOOK_SECONDS + (LOOK_SECONDS if size is None else size / BYTES_PER_SECOND)


class PatientFile:
    """A file in a store, each read of which is waited for as ``within`` does."""

    def __init__(self, file: BinaryIO | Any, store: str) -> None:
        self._file, self._store = file, store

    def seek(self, offset: int) -> None:
        """Go to a byte; nothing is read."""
        self._file.seek(offset)

    def read(self, size: int) -> bytes:
        """Read so many bytes, fewer at the end. Raises ``TimeoutError``, naming the store."""
        return bytes(within(seconds_for(size), self._store, lambda: self._file.read(size)))
