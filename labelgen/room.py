"""Memory that photos share while they are decoded ahead of the work, given in the order of the photos."""

from __future__ import annotations

import threading


class Room:
    """Memory of ``size`` bytes. Each photo has a turn, counted from 0, and enters after all whose turn is earlier.

    So the photo that is waited for never waits for one behind it, and a single one always gets in, however large.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._changed = threading.Condition()
        self._taken: dict[int, int] = {}
        self._next = 0
        self._past: set[int] = set()
        self._closed = False

    def enter(self, turn: int, size: int) -> None:
        """Wait for room for so many bytes; a photo that is in already takes so many from now on.

        Raises ``RuntimeError`` if nobody waits for photos any more.
        """
        if turn in self._taken:
            self.keep(turn, size)
            return
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (turn == self._next and self._fits(size)))
            if self._closed:
                raise RuntimeError("nobody waits for this photo any more")
            self._taken[turn] = size
            self._pass(turn)

    def keep(self, turn: int, size: int) -> None:
        """Keep only so many bytes of what a photo has taken."""
        with self._changed:
            if turn in self._taken:
                self._taken[turn] = size
            self._changed.notify_all()

    def leave(self, turn: int) -> None:
        """Give back what a photo has taken, or its turn if it never entered."""
        with self._changed:
            self._taken.pop(turn, None)
            self._pass(turn)

    def close(self) -> None:
        """Let nobody wait for room any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return not self._taken or sum(self._taken.values()) + size <= self.size

    def _pass(self, turn: int) -> None:
        """Note that a photo's turn is over."""
        if turn >= self._next:
            self._past.add(turn)
        while self._next in self._past:
            self._past.remove(self._next)
            self._next += 1
        self._changed.notify_all()
