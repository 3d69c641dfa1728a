"""Say how a run is getting on: a bar on a terminal, a plain line once in a while elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import click
from tqdm import tqdm

LOG_SECONDS = 10.0


@dataclass
class ProgressReporter:
    """Counts images, masks and errors, and shows the rate and the time left."""

    total: int
    images: int = 0
    masks: int = 0
    errors: int = 0
    started: float = field(default_factory=time.monotonic)
    _logged: float = 0.0
    _bar: tqdm[Any] | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = tqdm(total=self.total, unit="image", desc="labelling", dynamic_ncols=True)
        self._logged = self.started
        return self

    def add(self, masks: int, error: str | None) -> None:
        """Count one image."""
        self.images += 1
        self.masks += masks
        self.errors += error is not None
        if self._bar is not None:
            self._bar.set_postfix(masks=self.masks, errors=self.errors, refresh=False)
            self._bar.update()
            if error is not None:
                self._bar.write(f"skipped: {error}", file=sys.stderr)
            return
        if error is not None:
            click.echo(f"skipped: {error}", err=True)
        if time.monotonic() - self._logged >= LOG_SECONDS or self.images == self.total:
            self._logged = time.monotonic()
            click.echo(self.line(), err=True)

    def line(self) -> str:
        """Return the state in one line."""
        left = (self.total - self.images) / self.rate if self.rate > 0 else 0.0
        return (
            f"{self.images} of {self.total} images, {self.masks} masks, {self.errors} errors, "
            f"{self.rate:.2f} images/s, {left:.0f} s left"
        )

    @property
    def rate(self) -> float:
        """Images a second so far."""
        return self.images / max(1e-9, time.monotonic() - self.started)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
