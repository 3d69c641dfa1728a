"""How long work says how it is getting on: lines by a clock, a bar on a terminal, and stdout left alone."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from sum_factory.shared import progress
from sum_factory.shared.progress import EVERY_SECONDS, FIRST_SECONDS, Speaker, Stage, hushed, in_words, track


class Clock:
    """Goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """Takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the one speaker of the test, which has no timer."""
    clock = Clock()
    monkeypatch.setattr(progress, "SPEAKER", Speaker(clock, timer=False))
    return clock


@pytest.fixture
def wait(clock: Clock) -> Callable[[float], None]:
    """``wait(seconds)`` lets time pass, with a tick each second."""

    def wait(seconds: float) -> None:
        for _ in range(int(seconds)):
            clock.now += 1
            progress.SPEAKER.tick()

    return wait


@pytest.fixture
def lines(clock: Clock, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """``lines()`` is what was written to stderr since the last time; nothing goes to stdout."""

    def lines() -> list[str]:
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err.splitlines()

    yield lines
    assert capsys.readouterr().out == ""


Wait = Callable[[float], None]
Lines = Callable[[], list[str]]


def test_stage_that_is_soon_over_leaves_no_trace(wait: Wait, lines: Lines) -> None:
    with Stage("verifying", 3, "unit") as stage:
        wait(FIRST_SECONDS - 1)
        stage.advance(3)
    assert lines() == []


def test_line_tells_what_is_done_of_what_the_rate_and_the_time_left(clock: Clock, lines: Lines) -> None:
    with Stage("labelling", 60, "image", note="0 masks") as stage:
        clock.now += 6
        stage.reach(12, "90 masks")
        assert lines() == ["labelling: 12 of 60 images, 90 masks, 2.00 images/s, 24 s left"]
        clock.now += 6
        stage.advance(48)
        assert lines() == []
    assert lines() == ["labelling: 60 of 60 images, 90 masks, 5.00 images/s, in 12 s"]


def test_slow_items_are_told_in_seconds_each_and_training_always_is(clock: Clock, lines: Lines) -> None:
    for each, seconds, told in (
        (False, 24, "12.00 s/step, 24 s left"),
        (True, 8, "4.00 s/step, 8 s left"),
        (False, 8, "4.00 s/step"),
    ):
        with Stage("working", 4, "step", seconds_each=each) as stage:
            clock.now += seconds
            lines()
            stage.advance(2)
            assert told in lines()[0]
    with Stage("training", 400, "step", seconds_each=True) as stage:
        clock.now += 10
        stage.advance(100)
        assert lines()[-1] == "training: 100 of 400 steps, 0.10 s/step, 30 s left"


def test_lines_go_on_while_nothing_advances(wait: Wait, lines: Lines) -> None:
    with Stage("training", 280, "step") as stage:
        wait(10)
        assert lines() == ["training: 0 of 280 steps"]
        stage.advance(12, "loss 0.500")
        wait(120)
        told = lines()
        assert told[0].startswith("training: 12 of 280 steps, loss 0.500")
        assert told[1].startswith("training: still at 12 of 280 steps for 45 s, loss 0.500")
        assert len(told) == 5
        stage.advance()
        wait(EVERY_SECONDS)
        assert lines()[0].startswith("training: 13 of 280 steps")


def test_there_is_a_line_every_thirty_seconds_whatever_the_length_of_stages(
    wait: Wait, clock: Clock, lines: Lines
) -> None:
    said = [clock.now]
    for seconds in (3, 4, 4, 3, 4, 3, 4, 4, 4, 4, 40, 4, 3, 4, 4, 70, 2, 4):
        with Stage("waiting"):
            for _ in range(seconds):
                wait(1)
                said += [clock.now] * len(lines())
    assert max(later - earlier for earlier, later in pairwise(said)) <= 30
    assert clock.now - said[-1] <= 30


def test_time_left_follows_what_happened_of_late(clock: Clock, lines: Lines) -> None:
    with Stage("planning", 1000, "image") as stage:
        for _ in range(100):
            clock.now += 1
            stage.advance(5)
        for _ in range(200):
            clock.now += 1
            stage.advance(1)
        assert stage.rate == pytest.approx(1, rel=0.02)
        assert stage.line() == "planning: 700 of 1000 images, 1.00 images/s, 5 min left"
        lines()
    assert "2.33 images/s, in 5 min" in lines()[0]


def test_run_that_goes_on_counts_from_where_it_does(clock: Clock, lines: Lines) -> None:
    with Stage("training", 100, "step", done=80, seconds_each=True) as stage:
        clock.now += 10
        stage.advance(5)
        assert lines() == ["training: 85 of 100 steps, 2.00 s/step, 30 s left"]
        clock.now += 50
    assert lines() == ["training: 85 of 100 steps, 12.00 s/step, in 60 s"]


def test_count_that_falls_back_has_no_rate(clock: Clock) -> None:
    with Stage("labelling", 60, "image", done=10) as stage:
        clock.now += 1
        stage.reach(4)
        assert stage.line() == "labelling: 4 of 60 images"


def test_stage_that_counts_nothing_tells_the_time(wait: Wait, lines: Lines) -> None:
    with Stage("starting Ray"):
        wait(40)
        assert lines() == ["starting Ray: 5 s so far", "starting Ray: 30 s so far"]
    assert lines() == ["starting Ray: done in 40 s"]


def test_stage_within_another_is_told_with_it(wait: Wait, lines: Lines) -> None:
    with Stage("training", 4, "step") as outer:
        outer.advance()
        with Stage("evaluating", 9, "image"):
            wait(6)
        wait(EVERY_SECONDS)
        with Stage("run 2 of 3"), Stage("opening"):
            wait(6)
        told = lines()
    assert told[0].startswith("training: 1 of 4 steps, 5.00 s/step, 15 s left; evaluating: 0 of 9 images")
    assert told[-1] == "opening: done in 6 s" or told[-1] == "run 2 of 3: done in 6 s"
    assert any(line.endswith("; run 2 of 3: opening: 5 s so far") for line in told)


def test_work_that_fails_says_nothing_at_its_end(wait: Wait, lines: Lines) -> None:
    with pytest.raises(ValueError, match="bad"), Stage("verifying", 3, "unit"):  # noqa: PT012
        wait(6)
        lines()
        raise ValueError("bad")
    assert lines() == []
    assert progress.SPEAKER.stages == []


def test_tracked_items_are_counted(clock: Clock, lines: Lines) -> None:
    for _ in track(["a", "b", "c"], "reading", "file"):
        clock.now += 6
    assert lines() == [
        "reading: 1 of 3 files, 6.00 s/file, 12 s left",
        "reading: 3 of 3 files, 6.00 s/file, in 18 s",
    ]
    for _ in track(iter("ab"), "listing", "file"):
        clock.now += 6
    assert lines()[0] == "listing: 1 files, 6.00 s/file"


def test_items_that_nobody_asks_for_any_more_end_the_stage() -> None:
    items = track(range(3), "reading", "file")
    next(items)
    assert len(progress.SPEAKER.stages) == 1
    del items
    assert progress.SPEAKER.stages == []


def test_process_that_another_speaks_for_is_silent(wait: Wait, lines: Lines) -> None:
    with hushed(), hushed(False), Stage("training", 3, "step") as stage:
        wait(60)
        stage.advance()
    assert lines() == []
    with hushed(False), Stage("training", 3, "step"):
        wait(6)
    assert len(lines()) == 2


def test_times_are_told_in_fitting_units() -> None:
    assert [in_words(seconds) for seconds in (0.4, 99, 150, 5940, 9000)] == ["0 s", "99 s", "2 min", "99 min", "2.5 h"]


def test_nobody_who_reads_does_not_end_the_work(wait: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    for stream in (Closed(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        with Stage("training", 3, "step"):
            wait(60)


def test_every_line_is_flushed(wait: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(_Raw(flushed))))
    with Stage("training", 3, "step"):
        wait(6)
        assert flushed.getvalue() == b"training: 0 of 3 steps\n"


class _Raw(io.RawIOBase):
    def __init__(self, sink: io.BytesIO) -> None:
        self.sink = sink

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self.sink.write(bytes(data))


def test_timer_tells_while_the_work_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            told.set()
            return super().write(text)

    monkeypatch.setattr(sys, "stderr", Stream())
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.001)
    clock = Clock()
    monkeypatch.setattr(progress, "SPEAKER", Speaker(clock))
    with Stage("loading") as stage:
        clock.now += 6
        assert told.wait(60)
        assert stage.told == 0


# On a terminal


@pytest.fixture
def open_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """``open_terminal()`` puts one in the place of stderr, which pytest sets anew before the test begins."""

    def open_terminal() -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        return terminal

    return open_terminal


Open = Callable[[], Terminal]


def test_terminal_shows_one_bar_with_notes_and_what_is_within(open_terminal: Open, wait: Wait) -> None:
    terminal = open_terminal()
    with Stage("training", 8, "step", done=2) as stage:
        stage.reach(4, "loss 0.250")
        wait(1)
        assert "training:  50%|" in terminal.getvalue()
        assert "4/8" in terminal.getvalue()
        assert "loss 0.250" in terminal.getvalue()
        with Stage("evaluating", 9, "image") as inner:
            inner.advance(3)
            wait(1)
        assert "loss 0.250; evaluating: 3 of 9 images" in terminal.getvalue().rpartition("\r")[2]
        stage.advance()
        wait(1)
        assert "evaluating" not in terminal.getvalue().rpartition("\r")[2]
    assert "\n" not in terminal.getvalue()  # one bar, which is gone


def test_bar_of_work_that_lasted_stays(open_terminal: Open, wait: Wait) -> None:
    terminal = open_terminal()
    with Stage("labelling", 8, "image") as stage:
        wait(FIRST_SECONDS + 1)
        stage.advance(8)
    assert terminal.getvalue().endswith("\n")
    assert "8/8" in terminal.getvalue().rpartition("\r")[2]


def test_bar_of_a_stage_that_counts_nothing_is_a_clock(open_terminal: Open, wait: Wait) -> None:
    terminal = open_terminal()
    with Stage("starting Ray"):
        wait(1)
        assert terminal.getvalue().rpartition("\r")[2].startswith("starting Ray: 00:0")


def test_what_is_said_goes_past_the_bar(open_terminal: Open, wait: Wait, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = open_terminal()
    with Stage("labelling", 8, "image"):
        progress.SPEAKER.say("skipped: a.jpg")
        progress.SPEAKER.say("a result", file=sys.stdout)
        assert "skipped: a.jpg\n" in terminal.getvalue()
        assert "a result" not in terminal.getvalue()
    assert capsys.readouterr().out == "a result\n"


def test_several_processes_write_lines_on_a_terminal(open_terminal: Open, wait: Wait) -> None:
    terminal = open_terminal()
    progress.SPEAKER.plain = True
    with Stage("training", 8, "step"):
        wait(6)
    assert terminal.getvalue() == "training: 0 of 8 steps\ntraining: 0 of 8 steps, in 6 s\n"


def test_progress_needs_nothing_but_python_until_a_bar_is_drawn() -> None:
    script = (
        "import sys, sum_factory.shared.progress; print(sorted({'tqdm', 'click', 'torch', 'numpy'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
