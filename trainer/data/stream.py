"""The mixed stream of human and pseudo-labelled samples, loaded ahead by threads."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

from sum_factory.shared.store.canonical_json import content_id
from sum_factory.trainer.data.coded import CodedSample, Sample
from sum_factory.trainer.data.human import HumanSet
from sum_factory.trainer.data.order import Mix, Order, slots_of
from sum_factory.trainer.data.prefetch import Prefetcher
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings, TrainingSample, load_human


@dataclass(frozen=True)
class HumanStream:
    """All human sets as one stream: photos are drawn from the sets in proportion to their sizes."""

    sets: Sequence[HumanSet]
    settings: SampleSettings

    @property
    def order(self) -> Order:
        """The order of its samples."""
        content = [[human.task, human.keys] for human in self.sets]
        return Order(content_id(content), (self._ends[-1],), self.settings.seed)

    @cached_property
    def _ends(self) -> list[int]:
        """Where each set ends among the samples of all."""
        return list(accumulate(len(human.keys) for human in self.sets))

    def load(self, index: int, id: SampleId) -> TrainingSample:
        """Load a sample by its index over all sets."""
        number = bisect_right(self._ends, index)
        before = self._ends[number - 1] if number else 0
        return load_human(self.sets[number], index - before, id, self.settings)


@dataclass(frozen=True)
class PseudoStream:
    """The samples of a shard set as a stream."""

    pseudo: PseudoSet

    @property
    def order(self) -> Order:
        """The order of its samples."""
        return Order(self.pseudo.identity, self.pseudo.groups, self.pseudo.settings.seed)

    def load(self, index: int, id: SampleId) -> CodedSample:
        """Load a sample by its index."""
        return self.pseudo.load(index, id)


@dataclass
class MixedStream:
    """Gives the samples of each step: of one rank in the order of the slots, of several as ``slots_of`` deals them.

    Slots of a stream that is not among ``streams`` are left out. ``together`` is how many go through the model at once.
    ``waited`` sums the seconds spent waiting for data. With ``partners`` each pseudo-labelled sample brings two other
    photos: of a human sample, and of the pseudo-labelled one that comes after it.
    """

    streams: dict[str, HumanStream | PseudoStream]
    mix: Mix
    batch: int
    rank: int = 0
    ranks: int = 1
    together: int = 1
    threads: int = 4
    steps_ahead: int = 2
    waited: float = 0.0
    partners: bool = False
    _orders: dict[str, Order] = field(init=False)

    def __post_init__(self) -> None:
        self._orders = {name: stream.order for name, stream in self.streams.items()}

    def load(self, slot: int) -> Sample:
        """Load the sample of a slot: a pure function of the slot."""
        name, position = self.mix.locate(slot)
        sample = self.load_from(name, position)
        if not self.partners or name != "pseudo":
            return sample
        others = self.load_from("human", position), self.load_from("pseudo", position + 1)
        return replace(sample, partners=tuple(other.image for other in others))

    def load_from(self, name: str, position: int) -> Sample:
        """Load the sample at a position of a stream, counted over all epochs."""
        epoch, index = self._orders[name].sample(position)
        return self.streams[name].load(index, SampleId(name, epoch, index))

    def steps(self, first: int, last: int) -> Iterator[list[Sample]]:
        """Yield this rank's samples of steps ``first`` to ``last`` - 1; the next ones are being loaded meanwhile."""
        ahead: deque[list[Future[Sample]]] = deque()
        pool = ThreadPoolExecutor(self.threads, "data")
        prefetchers = self._prefetchers(last)
        try:
            following = first
            for _ in range(first, last):
                while following < min(last, first + self.steps_ahead + 1):
                    slots = self._slots(following)
                    ahead.append([pool.submit(self.load, slot) for slot in slots])
                    for name, position in map(self.mix.locate, slots):
                        if name in prefetchers:
                            prefetchers[name].reach(position)
                    following += 1
                first += 1
                started = time.perf_counter()
                samples = [future.result() for future in ahead.popleft()]
                self.waited += time.perf_counter() - started
                yield samples
        finally:
            for prefetcher in prefetchers.values():
                prefetcher.close()
            pool.shutdown(cancel_futures=True)

    def _slots(self, step: int) -> list[int]:
        """Return this rank's slots of a step, of the streams that there are."""
        slots = slots_of(step, self.batch, self.mix, self.together, self.rank, self.ranks)
        return [slot for slot in slots if self.mix.locate(slot)[0] in self.streams]

    def _prefetchers(self, last: int) -> dict[str, Prefetcher]:
        """Return the prefetcher of each stream of shards, which reads as far as steps before ``last`` need."""
        made = {}
        for name, stream in self.streams.items():
            if isinstance(stream, PseudoStream) and len(self._orders[name]):
                cycle = self.mix.human + self.mix.pseudo  # a batch may be smaller, and lack a stream
                slots = range(max(0, last * self.batch - cycle), last * self.batch)
                end = max((position for each, position in map(self.mix.locate, slots) if each == name), default=-1)
                made[name] = Prefetcher(stream.pseudo, self._orders[name], end)
        return made
