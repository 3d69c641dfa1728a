"""Read units ahead of their samples: one window of the order ahead of what is being loaded."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from sum_factory.shared.errors import SumError
from sum_factory.trainer.data.order import Order
from sum_factory.trainer.data.pseudo import PseudoSet


class Prefetcher:
    """One thread that reads the rows of units, and brings the data of remote ones into the cache, before samples need
    them.

    When loading reaches a window, the units of the window after it are read, unless that window begins behind ``last``,
    the last position that is needed. Data are fetched as long as both windows fit into the cache: more would push out
    what is still to be read. A file that is missing or damaged is no error here: the sample that needs it names it and
    ends the run.
    """

    def __init__(self, pseudo: PseudoSet, order: Order, last: int) -> None:
        self._pseudo, self._order = pseudo, order
        self._last = order.window(last) if last >= 0 else -1
        self._reached = -1
        self._pool = ThreadPoolExecutor(1, "prefetch")
        self._pending: list[Future[None]] = []

    def reach(self, position: int) -> None:
        """Say that the sample at ``position`` is about to be loaded; does not wait."""
        window = self._order.window(position)
        if window <= self._reached:
            return
        self._settle()
        current = self._order.groups_of(window)
        if self._reached < 0:
            self._submit(current, 0)
        if window < self._last:
            following = [group for group in self._order.groups_of(window + 1) if group not in current]
            self._submit(following, sum(map(self._pseudo.bytes_of, current)))
        self._reached = window

    def wait(self) -> None:
        """Wait until all units that were asked for so far are read."""
        wait(self._pending)
        self._settle()

    def close(self) -> None:
        """Give up what is not begun, and wait for the rest."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, groups: Sequence[int], used: int) -> None:
        """Have units read in this order, with their data as long as these fit into the cache beside ``used`` bytes."""
        for group in groups:
            used += self._pseudo.bytes_of(group)
            fits = self._pseudo.room is not None and used <= self._pseudo.room
            self._pending.append(self._pool.submit(self._bring, group, fits))

    def _bring(self, group: int, data: bool) -> None:
        try:
            self._pseudo.bring(group, data)
        except (SumError, FileNotFoundError):  # the sample that needs the unit raises it again
            return

    def _settle(self) -> None:
        """Raise what went wrong in the thread, if that was not the data."""
        done = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        for future in done:
            future.result()
