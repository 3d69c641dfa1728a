"""What is wrong with a set, counted by kind: refused when the set is opened, or left out if the recipe says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sum_factory.shared.errors import InputError

Skip = Literal["nothing", "problems"]
MISSING = "are missing"
"""The kind of photos that a file lists and that are not there."""
MOST_LEFT_OUT = 0.5
"""Share of a set that ``skip: problems`` leaves out at most: of more, the wrong folder or file was given."""


@dataclass
class Problems:
    """Counts of problems by kind, each with its first case in words. ``what`` are those that have them."""

    where: str
    what: str
    skip: Skip
    counts: dict[str, int] = field(default_factory=dict)
    firsts: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, first: str, count: int = 1) -> None:
        """Count problems of a kind; ``first`` tells of the first of them."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.firsts.setdefault(kind, first)

    def settle(self, total: int) -> list[str]:
        """Return what to say of ``total`` of which those with problems are left out; nothing if there are none.

        Raises ``InputError`` unless ``skip`` is "problems", or if that would leave out more than half.
        """
        if not self.counts:
            return []
        found = sum(self.counts.values())
        kinds = "; ".join(
            f"{count:,} {kind} (the first: {self.firsts[kind]})" for kind, count in sorted(self.counts.items())
        )
        if self.skip == "nothing":
            raise InputError(
                f"{self.where}: {found:,} of {total:,} {self.what} cannot be used: {kinds}; mend them, or leave them "
                "out with `skip: problems`"
            )
        if found > MOST_LEFT_OUT * total:
            raise InputError(
                f"{self.where}: {found:,} of {total:,} {self.what} cannot be used, too many to leave out: {kinds}; "
                "check the paths and whether all was unpacked"
            )
        return [f"left out {found:,} of {total:,} {self.what}: {kinds}"]
