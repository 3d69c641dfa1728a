"""In which order samples come: a pure function of what the data are, the seed, and the epoch.

A stream's whole state is one integer, the number of samples consumed. The slots of the mixed stream are counted from
the first step on; the number of a slot says which stream it belongs to, and which sample of that stream it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass

from sum_factory.trainer.randomness import seed_of

WINDOW = 8
"""Groups among which samples are shuffled: a reader has so many open at a time."""
EPOCHS_KEPT = 2
"""Epochs of a stream whose order is kept: that of the latest sample, and the one before or after it."""


@dataclass(frozen=True)
class Order:
    """The order of a stream. ``groups`` says how many samples each of its groups has, as ``PseudoSet.groups`` does;
    ``identity`` names its content.

    In each epoch the groups are shuffled, then the samples inside windows of ``WINDOW`` groups.
    """

    identity: str
    groups: tuple[int, ...]
    seed: int

    def __len__(self) -> int:
        return self._length

    @cached_property
    def _length(self) -> int:
        return sum(self.groups)

    @cached_property
    def _permutation(self) -> Callable[[int], _Permutation]:
        """Return the permutation of an epoch; this object keeps the latest, as hashing all of it would take time."""
        return lru_cache(maxsize=EPOCHS_KEPT)(self._shuffled)

    def sample(self, position: int) -> tuple[int, int]:
        """Return the epoch and the index of the sample at ``position`` of the endless stream."""
        epoch, within = divmod(position, len(self))
        return epoch, int(self._permutation(epoch).samples[within])

    def window(self, position: int) -> int:
        """Return the window that the sample at ``position`` is in; windows are counted over all epochs."""
        epoch, within = divmod(position, len(self))
        ends = self._permutation(epoch).ends
        return epoch * len(ends) + int(np.searchsorted(ends, within, "right"))

    def groups_of(self, window: int) -> tuple[int, ...]:
        """Return the numbers of the groups whose samples are in a window."""
        epoch, number = divmod(window, -(-len(self.groups) // WINDOW))
        groups = self._permutation(epoch).groups
        return tuple(groups[number * WINDOW : (number + 1) * WINDOW].tolist())

    def _shuffled(self, epoch: int) -> _Permutation:
        random = np.random.default_rng(seed_of("order", self.identity, self.seed, epoch))
        first = np.concatenate([[0], np.cumsum(self.groups)])
        shuffled = random.permutation(len(self.groups))
        windows = []
        for start in range(0, len(shuffled), WINDOW):
            members = [np.arange(first[group], first[group + 1]) for group in shuffled[start : start + WINDOW]]
            windows.append(random.permutation(np.concatenate(members)))
        return _Permutation(np.concatenate(windows), shuffled, np.cumsum([len(window) for window in windows]))


class _Permutation(NamedTuple):
    """An epoch: all samples in their order, all groups in theirs, and where each window ends among the samples."""

    samples: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


LARGEST_MIX = 10**6


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Mix:
    """How many human samples come with how many pseudo-labelled ones: 1 : 1, or 2 : 1."""

    human: int = 1
    """Photos with human masks, of each ``human + pseudo`` photos."""
    pseudo: int = 1
    """Photos with pseudo-labels, of each ``human + pseudo`` photos."""

    def __post_init__(self) -> None:
        if self.human < 0 or self.pseudo < 0 or self.human + self.pseudo == 0:
            raise ValueError(f"a mix needs a positive number of samples, not {self.human} : {self.pseudo}")
        if self.human + self.pseudo > LARGEST_MIX:
            raise ValueError(f"a mix is of {LARGEST_MIX} samples at most, not {self.human} : {self.pseudo}")

    def locate(self, slot: int) -> tuple[str, int]:
        """Return the stream of a slot, "human" or "pseudo", and the position of its sample in that stream."""
        cycle, turn = divmod(slot, self.human + self.pseudo)
        if turn < self.human:
            return "human", cycle * self.human + turn
        return "pseudo", cycle * self.pseudo + turn - self.human

    def human_in(self, slots: range) -> int:
        """Return how many of consecutive slots are of the human stream."""
        return self._human_before(slots.stop) - self._human_before(slots.start)

    def _human_before(self, slot: int) -> int:
        cycles, turn = divmod(slot, self.human + self.pseudo)
        return cycles * self.human + min(turn, self.human)


def slots_of(step: int, batch: int, mix: Mix, together: int = 1, rank: int = 0, ranks: int = 1) -> Sequence[int]:
    """Return the slots of a step (counted from 0) that a rank works on; all ranks together work on all slots.

    ``together`` is how many slots go through the model at once. They go to one rank, if the ranks then get equally many
    slots; else slots are dealt one by one. Pseudo-labelled samples take the longest, since they have many masks: they
    are spread over the ranks as evenly as that allows.
    """
    slots = range(step * batch, (step + 1) * batch)
    if ranks == 1:
        return slots
    size = together if batch % (together * ranks) == 0 else 1
    portions = [slots[start : start + size] for start in range(0, batch, size)]
    portions.sort(key=lambda portion: sum(mix.locate(slot)[0] == "pseudo" for slot in portion))
    return [slot for portion in portions[rank::ranks] for slot in portion]
