"""Work on several images at once, each on a core of its own; on a GPU, some together, in streams of their own.

A small parallel region ends when its last thread does. Where something else runs on a core, the thread there may be
out for milliseconds, and hundreds of regions per second wait for it. Images need not wait for each other; so on a CPU,
each is worked on by one thread, and what comes of it does not depend on how many cores there are.

A GPU works while the host goes on, until the host needs a result. So several threads feed it: while one waits, there is
work of the others. Each has a stream, and whatever it puts there comes in order; nothing but weights is shared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from itertools import cycle
from typing import Any, TypeVar, overload

import torch

from sum_factory.shared.cores import usable_memory
from sum_factory.shared.gpu.sizes import GPU_LANES
from sum_factory.shared.threads import GeneratorPool

Item = TypeVar("Item")
Begun = TypeVar("Begun")
Result = TypeVar("Result")

LANE_BYTES = 3 << 29
"""Memory that an image may take while it is worked on: one and a half GiB."""
BEHIND = 2
"""Items beyond those in work that have been begun, or are done, and whose results wait for those before them."""


def take_cores(device: torch.device, cores: int) -> Lanes:
    """Return the lanes for a model on ``device``: a core each on a CPU, as far as memory goes; a few streams on a GPU;
    elsewhere a single one.

    It also sets how many threads torch uses in this process: one on a CPU, where each lane runs torch for itself, and
    elsewhere ``cores``.
    """
    on_cpu = device.type == "cpu"
    torch.set_num_threads(1 if on_cpu else cores)
    if device.type == "cuda":
        return Lanes(GPU_LANES, streams_of(device, GPU_LANES))
    return Lanes(max(1, min(cores, usable_memory() // LANE_BYTES)) if on_cpu else 1)


def streams_of(device: torch.device, count: int) -> Callable[[], None]:
    """Return what gives each thread that calls it one of so many streams of ``device``, in turn.

    They are used again, for PyTorch keeps the memory of each apart.
    """
    with torch.cuda.device(device):
        streams = cycle([torch.cuda.Stream(device) for _ in range(count)])  # type: ignore[no-untyped-call]

    def take() -> None:
        stream = next(streams)
        stream.wait_stream(torch.cuda.default_stream(device))  # where weights come from
        torch.cuda.set_device(device)
        torch.cuda.set_stream(stream)

    return take


def _as_it_is(begun: Any) -> Any:
    return begun


class Lanes:
    """Works on ``count`` items at once. If that is 1, the calling thread does it, with all of torch's threads.

    With ``prepare``, which each thread calls first, lanes do not help each other: what one has is in its stream.
    """

    def __init__(self, count: int, prepare: Callable[[], None] | None = None) -> None:
        self.count, self.prepare = count, prepare
        self.on_step: Callable[[], object] = lambda: None
        """Called by any lane whenever an item is done, or a part of one."""
        self._pool: GeneratorPool | None = None

    @overload
    def in_order(self, begin: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]: ...

    @overload
    def in_order(
        self, begin: Callable[[Item], Begun], items: Iterable[Item], finish: Callable[[Begun], Result]
    ) -> Iterator[Result]: ...

    def in_order(
        self, begin: Callable[[Item], Any], items: Iterable[Item], finish: Callable[[Any], Any] = _as_it_is
    ) -> Iterator[Any]:
        """Yield ``finish(begin(item))`` of each item, in order, whichever is ready first.

        With one lane, ``finish(begin(item))`` is called after ``begin`` of the next ``BEHIND`` items, so background
        work of ``begin`` has had time to end. Closing the generator drops items not begun; those begun stop at their
        next ``spread``.
        """
        if self.count == 1:
            begun: deque[Any] = deque()
            for item in items:
                begun.append(self._step(begin, item))
                if len(begun) > BEHIND:
                    yield self._step(finish, begun.popleft())
            while begun:
                yield self._step(finish, begun.popleft())
            return

        def work(item: Item) -> Any:
            return self._step(finish, self._step(begin, item))

        pending: deque[Future[Any]] = deque()
        with GeneratorPool(self.count, initializer=self.prepare or _use_one_core) as self._pool:
            for item in items:
                pending.append(self._pool.submit(work, item))
                if len(pending) == self.count + BEHIND:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def spread(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return ``function(item)`` of each item, in order: made by this thread, and by lanes that have nothing to do.

        To be called by a lane. Raises ``CancelledError`` if nobody waits for its work any more.
        """
        if self._pool is None or self.prepare is not None:
            return [self._step(function, item) for item in items]
        try:
            parts = [self._pool.submit(self._step, function, item) for item in items]
        except RuntimeError as error:  # shut down
            raise CancelledError from error
        own: list[Result] = []
        for item, part in zip(reversed(items), reversed(parts), strict=True):  # the others begin at the other end
            if part.cancelled():
                raise CancelledError
            if not part.cancel():
                break
            own.append(self._step(function, item))
        return [part.result() for part in parts[: len(parts) - len(own)]] + own[::-1]

    def _step(self, function: Callable[[Item], Result], item: Item) -> Result:
        result = function(item)
        self.on_step()
        return result


def _use_one_core() -> None:
    torch.set_num_threads(1)
