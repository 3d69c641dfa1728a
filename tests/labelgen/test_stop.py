"""A run that is asked to stop finishes what is in work, or drops it; nothing is half-done, the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sum_factory.labelgen.engine.serial import SerialExecutor
from sum_factory.labelgen.engine.stop import Stop, stop_on_signals
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.signals import handlers_kept

Label = Callable[..., RunSummary]
Finished = tuple[Path, RunSummary]
Snapshot = Callable[[Path], dict[str, str]]


def test_first_signal_asks_and_the_second_aborts() -> None:
    said: list[str] = []
    with stop_on_signals(7, said.append) as stop, stop.heeded():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_requested
        assert stop.reason == "by SIGTERM"
        assert not stop.is_overdue
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert said == ["stopping: what is in work has 7 s to be finished (--grace); a second signal aborts at once"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_nobody_heeds_aborts(number: signal.Signals) -> None:
    with stop_on_signals(7, print) as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    assert not stop.is_requested


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_signals(1, print):
        assert signal.getsignal(signal.SIGTERM) not in before
        with handlers_kept():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_other_threads_leave_signals_alone() -> None:
    handlers: list[Any] = []

    def in_thread() -> None:
        with stop_on_signals(1, print), handlers_kept():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


def test_work_is_overdue_when_the_grace_is_over() -> None:
    now = [100.0]
    stop = Stop(5, clock=lambda: now[0])
    assert not stop.is_overdue
    stop.request("by a test")
    now[0] = 104.9
    stop.request("for another reason, later")
    assert (stop.is_overdue, stop.reason) == (False, "by a test")
    now[0] = 105.0
    assert stop.is_overdue


def run_until(label: Label, photos: Path, shards: Path, stop: Stop, due: Callable[[Any], bool],
              monkeypatch: pytest.MonkeyPatch) -> RunSummary:  # fmt: skip
    """Label in this process, and ask for a stop at the first event that is ``due``."""
    run = SerialExecutor.run

    def watched(self: SerialExecutor, units: Any, stop: Stop) -> Any:
        for event in run(self, units, stop):
            if due(event):
                stop.request("by a test")
            yield event

    with monkeypatch.context() as patch:
        patch.setattr(SerialExecutor, "run", watched)
        return label(photos, shards, stop=stop)


@pytest.mark.parametrize(("grace", "done"), [(1e6, [0, 1]), (0, [0])], ids=["finishes its unit", "drops its unit"])
def test_serial_run_stops_and_the_same_command_goes_on(
    photos: Path, finished: Finished, tmp_path: Path, label: Label, snapshot: Snapshot,
    monkeypatch: pytest.MonkeyPatch, grace: float, done: list[int],
) -> None:  # fmt: skip
    def due(event: Any) -> bool:
        return type(event).__name__ == "ImageDone" and event.unit == 1

    summary = run_until(label, photos, tmp_path / "shards", Stop(grace), due, monkeypatch)
    assert (summary.units_done, summary.stopped, summary.is_whole) == (len(done), "by a test", False)
    assert ShardSet.open(str(tmp_path / "shards")).committed() == done
    whole, left = snapshot(finished[0]), snapshot(tmp_path / "shards")
    assert left == {name: whole[name] for name in left}
    assert label(photos, tmp_path / "shards").units_before == len(done)
    assert snapshot(tmp_path / "shards") == whole


def test_stop_that_comes_with_the_last_unit_is_no_failure(
    photos: Path, tmp_path: Path, label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    def due(event: Any) -> bool:
        return type(event).__name__ == "UnitReport" and event.unit == 2

    summary = run_until(label, photos, tmp_path / "shards", Stop(0), due, monkeypatch)
    assert (summary.is_whole, summary.stopped) == (True, None)


def test_run_with_too_many_errors_stops_and_says_so(own_photos: Path, tmp_path: Path, label: Label) -> None:
    for name in ("a", "b", "c"):
        (own_photos / f"{name}.jpg").write_bytes(b"")
    summary = label(own_photos, tmp_path / "shards", max_errors=1)
    assert (summary.units_done, len(summary.errors)) == (1, 2)
    assert summary.stopped == "after 2 image errors, more than --max-errors 1"
    assert label(own_photos, tmp_path / "shards", max_errors=1).is_whole


# The command itself


def begin(photos: Path, shards: Path, options: list[str]) -> tuple[subprocess.Popen[str], Path]:
    """Start the command in a session of its own; return it and its log."""
    log = shards.with_name("log.jsonl")
    command = [
        sys.executable,
        "-m",
        "sum_factory.labelgen.cli",
        "run",
        f"--images={photos}",
        f"--shards={shards}",
        f"--log={log}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *options], env=environment, start_new_session=True, **pipes), log  # type: ignore[call-overload, no-any-return]


def wait_for(event: str, process: subprocess.Popen[str], log: Path) -> None:
    """Wait until the log tells of an event."""
    pause = threading.Event()
    while not (log.exists() and event in log.read_text()):
        assert process.poll() is None, process.communicate()
        pause.wait(0.01)


MANY = ["--points-per-side=8", "--pred-iou-thresh=-1000", "--unit-size=1", "--device=cpu"]
PHOTOS = 60
"""So much to do that a signal comes before the end, on a busy machine too; most of it is never begun."""


@pytest.fixture
def many_photos(tmp_path: Path) -> Path:
    """A folder of so many photos."""
    (tmp_path / "photos").mkdir()
    for seed in range(PHOTOS):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{seed}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_command_that_gets_a_signal_says_what_is_left_and_leaves_nothing_half(
    many_photos: Path, tmp_path: Path, number: signal.Signals, workers: int, snapshot: Snapshot
) -> None:
    process, log = begin(many_photos, tmp_path / "shards", [*MANY, f"--workers={workers}", "--grace=300"])
    wait_for("unit begun", process, log)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to every process of the run
    else:
        process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 1, err
    assert "stopping: what is in work has 300 s to be finished (--grace)" in err
    assert f"stopped by {number.name}: " in err
    assert "units are left; the same command goes on with them" in err
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    done = {line["unit"] for line in lines if line["event"] == "unit done"}
    assert done == {line["unit"] for line in lines if line["event"] == "unit begun"}
    assert lines[-1]["event"] == "run ended"
    assert f"{len(done)} of {PHOTOS} units labelled" in out
    assert not [name for name in snapshot(tmp_path / "shards") if ".partial-" in name]
    assert ShardSet.open(str(tmp_path / "shards")).committed() == sorted(done)


def test_second_signal_ends_the_command_at_once(many_photos: Path, tmp_path: Path, snapshot: Snapshot) -> None:
    process, log = begin(many_photos, tmp_path / "shards", [*MANY, "--grace=300", f"--unit-size={PHOTOS}"])
    wait_for("unit begun", process, log)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    while "stopping" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate()
    # Python calls itself killed if the interrupt met code that it ran from a string, as dataclasses do, caught or not.
    assert process.returncode in (1, -signal.SIGINT)
    assert not [name for name in snapshot(tmp_path / "shards") if ".partial-" in name]
