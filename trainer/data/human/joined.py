"""Several sets as one: those of a set that is published in parts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

from sum_factory.shared.errors import InputError
from sum_factory.trainer.data.human.choice import Choice, require_some
from sum_factory.trainer.data.human.samples import HumanSample, HumanSet


@dataclass(frozen=True)
class JoinedSets:
    """The photos of ``members``, one set after the other; each is called by the name of its set and its own key."""

    name: str
    members: Mapping[str, HumanSet]
    choice: Choice = field(default_factory=Choice)

    @property
    def task(self) -> int:
        """Id of the task, which all members share. Raises ``InputError`` if they do not."""
        tasks = {member.task for member in self.members.values()}
        if len(tasks) != 1:
            raise InputError(f"{self.name}: its members are of several tasks; expected one")
        return tasks.pop()

    @cached_property
    def keys(self) -> list[str]:
        """The names of the members with their own keys behind them."""
        return [self._all[index] for index in self._taken]

    @property
    def mask_count(self) -> int | None:
        """Masks of all photos, None if a member does not know, or photos are left out here."""
        counts = [member.mask_count for member in self.members.values()]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) and len(self._taken) == len(self._all) else None

    @property
    def findings(self) -> list[str]:
        """What was found in each member."""
        return [
            f"{name} ({len(member.keys):,} photos): {'; '.join(member.findings)}"
            for name, member in self.members.items()
        ]

    def load(self, index: int) -> HumanSample:
        """Read one sample."""
        among_all = self._taken[index]
        number = bisect_right(self._ends, among_all)
        before = self._ends[number - 1] if number else 0
        return replace(list(self.members.values())[number].load(among_all - before), key=self.keys[index])

    @cached_property
    def _all(self) -> list[str]:
        return [f"{name}/{key}" for name, member in self.members.items() for key in member.keys]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(member.keys) for member in self.members.values()))

    @cached_property
    def _taken(self) -> list[int]:
        taken = list(self.choice.of(self._all, self._all))
        require_some((self._all[index] for index in taken), self.name)
        return taken
