"""Says what the demo is doing, and before each step how long it will about take on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import click

MINUTE = 60.0
ROUGHLY = 5.0
"""Seconds to which an estimate is rounded: it is no promise."""


def spoken(seconds: float) -> str:
    """Return an estimate in words: "5 s", "40 s", "2.5 min"."""
    if seconds < 1.5 * MINUTE:
        return f"{max(1, round(seconds / ROUGHLY)) * ROUGHLY:.0f} s"
    return f"{round(2 * seconds / MINUTE) / 2:g} min"


@dataclass
class Announcer:
    """Says which step of how many begins, and how long it will about take.

    ``pace`` is how many times as long this machine takes as the one on which the estimates were measured, ``started``
    what the clock said when all began, by default now.
    """

    total: int
    pace: float = 1.0
    clock: Callable[[], float] = time.perf_counter
    number: int = 0
    started: float | None = None

    def __post_init__(self) -> None:
        self.began = self.clock() if self.started is None else self.started

    def __call__(self, text: str, seconds: float) -> None:
        """Announce the next step; ``seconds`` is what it took where the estimates were measured."""
        self.number += 1
        click.echo(f"{self.number}/{self.total}  {text} (about {spoken(seconds * self.pace)})")

    def tell(self, text: str) -> None:
        """Say something about the step that is being done."""
        for line in text.splitlines():
            click.echo(f"     {line}")

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return self.clock() - self.began
