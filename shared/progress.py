"""Say how long work is getting on: by one bar on a terminal, and by plain lines on stderr where there is none.

    with Stage("verifying", total=len(units), unit="unit") as stage:
        for unit in units:
            ...
            stage.advance()

A stage that lasts speaks after ``FIRST_SECONDS``, then every ``EVERY_SECONDS``, also while nothing advances, and once
more at its end; one that is over sooner leaves no trace. Stages may be within others: the bar is that of the outermost
one, and a line tells of all. Nothing is ever written to stdout.

Nothing here needs more than Python's own library until a bar is drawn: also what installs the rest can use it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from sum_factory.shared.names import printable, printable_lines

if TYPE_CHECKING:
    from typing import Self, TextIO

    from tqdm import tqdm

FIRST_SECONDS = 5.0
EVERY_SECONDS = 25.0
"""People are to hear something every thirty seconds; this leaves time for a machine that is busy."""
TICK_SECONDS = 1.0
"""How often it is looked whether a line is due, and how often a bar's clock moves on."""
DRAW_SECONDS = 0.1
WINDOW_SECONDS, LEAST_MARKS = 120.0, 8
"""The rate is that of so many seconds, or of so many steps if these take longer."""

Item = TypeVar("Item")


class Speaker:
    """Tells of the stages of this process. It has one, ``SPEAKER``, but for tests.

    Without ``timer``, nothing is told but when a stage advances or somebody calls ``tick``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, timer: bool = True) -> None:
        self.clock, self.timer = clock, timer
        self.silent = False
        """Whether another process speaks for this one."""
        self.plain = False
        """Whether lines are written also on a terminal, because other processes write there too."""
        self.stages: list[Stage] = []
        # The collector may close a generator with a stage in it at any moment, also while this thread is in here.
        self.lock = threading.RLock()
        self._bar: tqdm[Any] | None = None
        self._spoken: float | None = None
        self._drawn = 0.0
        self._over = threading.Event()

    def enter(self, stage: Stage) -> None:
        """Begin to tell of a stage, within those that are there."""
        with self.lock:
            is_outermost = not self.stages
            self.stages.append(stage)
            if self._spoken is None:
                self._spoken = self.clock()
            if is_outermost and not self.silent and not self.plain and sys.stderr is not None and sys.stderr.isatty():
                self._bar = _make_bar(stage)
            self._tell()
        if is_outermost and self.timer and not self.silent:  # without the lock: starting a thread takes locks too
            self._over = threading.Event()
            threading.Thread(target=self._keep_telling, args=(self._over,), name="progress", daemon=True).start()

    def leave(self, stage: Stage, is_done: bool) -> None:
        """End a stage and those within it; say what came of it if it is done, and people were told of it."""
        with self.lock:
            if stage not in self.stages:  # it was left with the one around it
                return
            del self.stages[self.stages.index(stage) :]
            lasted = self.clock() - stage.started >= FIRST_SECONDS
            if self._bar is None:
                if is_done and lasted and stage.told is not None:
                    self._write(stage.last_line())
            elif self.stages:
                self._draw(self._bar)
            else:
                self._bar.leave = lasted
                self._bar.close()
                self._bar = None
            if not self.stages:
                self._over.set()  # and not waited for: whoever waits for a thread in a collected generator may hang

    def advanced(self) -> None:
        """Show what has changed, if it is time to."""
        with self.lock:
            self._tell()

    def tick(self) -> None:
        """Show that time passes."""
        with self.lock:
            if self._bar is None:
                self._tell()
            else:
                self._bar.refresh()

    def say(self, text: str, file: TextIO | None = None) -> None:
        """Write a line that is no progress past the bar, if there is one: to ``file``, by default stderr."""
        with self.lock:
            if self._bar is None:
                _write_line(text, file)
            else:
                self._bar.write(printable_lines(text), file=file or sys.stderr)

    def _keep_telling(self, over: threading.Event) -> None:
        while not over.wait(TICK_SECONDS):
            self.tick()

    def _tell(self) -> None:
        if not self.stages or self.silent:
            return
        if self._bar is not None:
            self._draw(self._bar)
        elif self._is_due():
            self._write(self._line())
            for stage in self.stages:
                stage.told = stage.done

    def _is_due(self) -> bool:
        now = self.clock()
        untold = any(stage.told is None and now - stage.started >= FIRST_SECONDS for stage in self.stages)
        return untold or now - (self._spoken or 0.0) >= EVERY_SECONDS

    def _line(self) -> str:
        """Return what is told of all stages, the outermost first; those around others need not count."""
        *around, innermost = self.stages
        told = "".join(f"{stage.line()}; " if stage.unit else f"{stage.what}: " for stage in around)
        return told + innermost.line()

    def _draw(self, bar: tqdm[Any]) -> None:
        outermost, *within = self.stages
        bar.total = outermost.total
        notes = [outermost.note, *(stage.line() for stage in within)]
        bar.set_postfix_str("; ".join(note for note in notes if note), refresh=False)
        if within and self.clock() - self._drawn >= DRAW_SECONDS:
            self._drawn = self.clock()
            bar.refresh()
        bar.update(outermost.done - bar.n)

    def _write(self, line: str) -> None:
        self._spoken = self.clock()
        _write_line(line)


def _write_line(text: str, file: TextIO | None = None) -> None:
    """Write a line, by default to stderr; where nobody reads it any more, the work goes on all the same."""
    file = file or sys.stderr
    if file is not None:
        with suppress(OSError, ValueError):
            print(printable_lines(text), file=file, flush=True)


def _make_bar(stage: Stage) -> tqdm[Any]:
    from tqdm import tqdm

    # without tqdm's own watching thread: the speaker's redraws it
    bar: type[tqdm[Any]] = type("Bar", (tqdm,), {"monitor_interval": 0})
    return bar(
        total=stage.total,
        initial=stage.done,
        unit=stage.unit or "it",
        desc=stage.what,
        file=sys.stderr,
        dynamic_ncols=True,
        bar_format=None if stage.unit else "{desc}: {elapsed}{postfix}",
    )


SPEAKER = Speaker()


class Stage:
    """A part of the work that people wait for: ``what`` is being done, and how many of ``total`` are ``done``.

    Without a ``unit`` nothing is counted, and only the time that it takes is told. ``done`` are there from the start,
    and count in no rate. ``seconds_each`` tells the rate as seconds each, however fast it goes.
    """

    def __init__(
        self,
        what: str,
        total: int | None = None,
        unit: str = "",
        done: int = 0,
        seconds_each: bool = False,
        note: str = "",
    ) -> None:
        self.what, self.total, self.unit = printable(what), total, unit
        self.first = self.done = done
        self.seconds_each = seconds_each
        self.note = note
        self.told: int | None = None
        """How many were done when people were told last."""
        self.speaker = SPEAKER
        self.started = self.changed = self.speaker.clock()
        self._marks = deque([(self.started, done)])

    def __enter__(self) -> Self:
        self.speaker.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.speaker.leave(self, error is None)

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Count what is done; ``note`` says more about it in words, until another one does."""
        self.reach(self.done + count, note)

    def reach(self, done: int, note: str | None = None) -> None:
        """Set how many are done in all, as ``advance`` does."""
        with self.speaker.lock:
            now = self.speaker.clock()
            if done != self.done:
                self.done, self.changed = done, now
                self._mark(now)
            self.note = self.note if note is None else note
            self.speaker.advanced()

    def _mark(self, now: float) -> None:
        if now - self._marks[-1][0] >= WINDOW_SECONDS / 100:
            self._marks.append((now, self.done))
        while len(self._marks) > LEAST_MARKS and self._marks[1][0] <= now - WINDOW_SECONDS:
            self._marks.popleft()

    @property
    def rate(self) -> float | None:
        """How many are done in a second, of late; None if that cannot be told yet."""
        since, done = self._marks[0]
        return _rate(self.done - done, self.speaker.clock() - since)

    def line(self) -> str:
        """Return in a line what is done of what, how fast, and how long the rest will take."""
        now, rate = self.speaker.clock(), self.rate
        if not self.unit:
            return ", ".join(
                fact for fact in (f"{self.what}: {in_words(now - self.started)} so far", self.note) if fact
            )
        facts = [self._count(), self.note, self._pace(rate)]
        if self.done == self.told and now - self.changed >= 1:
            facts[0] = f"still at {facts[0]} for {in_words(now - self.changed)}"
        if rate is not None and self.total is not None and self.done < self.total:
            facts.append(f"{in_words((self.total - self.done) / rate)} left")
        return f"{self.what}: {', '.join(fact for fact in facts if fact)}"

    def last_line(self) -> str:
        """Return in a line what was done, how fast on the whole, and how long it took."""
        took = self.speaker.clock() - self.started
        if not self.unit:
            return f"{self.what}: done in {in_words(took)}"
        facts = (self._count(), self.note, self._pace(_rate(self.done - self.first, took)), f"in {in_words(took)}")
        return f"{self.what}: {', '.join(fact for fact in facts if fact)}"

    def _count(self) -> str:
        return f"{self.done} {self.unit}s" if self.total is None else f"{self.done} of {self.total} {self.unit}s"

    def _pace(self, rate: float | None) -> str:
        if rate is None:
            return ""
        return f"{1 / rate:.2f} s/{self.unit}" if self.seconds_each or rate < 1 else f"{rate:.2f} {self.unit}s/s"


def _rate(done: int, seconds: float) -> float | None:
    return done / seconds if done > 0 and seconds > 0 else None


def in_words(seconds: float) -> str:
    """Return a time for people: in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def track(items: Iterable[Item], what: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """Yield items, and tell how many are done of ``total``, by default as many as there are if that is known."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Stage(what, total, unit) as stage:
        for item in items:
            yield item
            stage.advance()


@contextmanager
def hushed(hush: bool = True) -> Iterator[None]:
    """Tell of no stage meanwhile if ``hush``: another process speaks for this one."""
    before = SPEAKER.silent
    SPEAKER.silent = before or hush
    try:
        yield
    finally:
        SPEAKER.silent = before
