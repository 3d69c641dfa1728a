"""Threads that work for a generator."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


class GeneratorPool(ThreadPoolExecutor):
    """A pool whose ``with`` block does not wait at its end: what is not begun is given up, what is being done runs out.

    A generator that is left half-way, by an exception say, may be closed by the garbage collector: at any moment, and
    in any thread. If that thread is just starting, it holds a lock of ``threading`` without which no other can be
    waited for, and the process would hang.
    """

    def __exit__(self, *exception: object) -> None:
        self.shutdown(wait=False, cancel_futures=True)
