"""A process that falls silent ends the others; one that is done, slow, or was stopped together with all does not."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import Any

import pytest
from torch import distributed

from sum_factory.shared.errors import WorkerError
from sum_factory.trainer.run import heartbeat
from sum_factory.trainer.run.heartbeat import LEFT, Silence, heard_of


def test_who_counts_is_heard_of_and_who_does_not_is_lost() -> None:
    silence = Silence([0, 2], 5)
    for second in range(1, 5):
        silence.hear([str(second).encode(), b"0"])
        assert silence.passes(1) == []
    silence.hear([b"5", b"0"])
    assert [silence.passes(1) for _ in range(5)] == [[2], [2], [2], [2], [0, 2]]


def test_who_is_done_may_be_silent() -> None:
    silence = Silence([1], 5)
    silence.hear([LEFT])
    assert [silence.passes(2) for _ in range(9)] == [[]] * 9


def test_who_was_stopped_itself_takes_nobody_for_stopped() -> None:
    silence = Silence([1], 5)
    silence.hear([b"1"])
    assert silence.passes(3600) == []
    silence.hear([b"2"])
    assert silence.passes(3600) == []


def test_a_store_that_does_not_answer_is_silence_of_all() -> None:
    silence = Silence([1, 2], 5)
    assert [silence.passes(2) for _ in range(3)] == [[], [], [1, 2]]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(heartbeat, "LONGEST_STEP", 0.02)
    monkeypatch.setattr(heartbeat.Silence.__init__, "__defaults__", (1.0,))


@pytest.mark.usefixtures("quick")
def test_threads_of_three_processes_hear_of_one_another_until_one_falls_silent() -> None:
    store = distributed.HashStore()
    lost: list[str] = []
    ended = threading.Event()

    def end(error: WorkerError) -> None:
        lost.append(str(error))
        ended.set()

    for rank in range(3):  # or the first one waits for the others' first words while they are late
        store.set(f"beat {rank}", "0")
    with ExitStack() as others:
        for rank in (0, 1):
            others.enter_context(heard_of(store, rank, 3, end))
        third = heard_of(store, 2, 3, end)
        with third:
            time.sleep(1.5)
            assert lost == []
        time.sleep(1.5)
        assert lost == []  # the third one has said that it is done
        store.set("beat 2", "41")  # and does not count on
        assert ended.wait(60)
    assert "has not heard of 2 for 15 s: stopped, or on a machine that is gone" in lost[0]
    for thread in [each for each in threading.enumerate() if each.name == "look"]:
        thread.join(60)
        assert not thread.is_alive()


class SlowStore:
    """A store that takes its time for a beat, but not for the first and the last word of a process."""

    def __init__(self) -> None:
        self.kept = {"beat 1": "0"}
        self.taken = threading.Event()

    def clone(self) -> SlowStore:
        return self

    def set(self, key: str, value: str, /) -> None:
        if value.isdigit() and value != "0":
            self.taken.set()
            time.sleep(1.0)
        self.kept[key] = value

    def multi_get(self, keys: list[str], /) -> list[bytes]:
        return [self.kept[key].encode() for key in keys]


@pytest.mark.usefixtures("quick")
def test_a_beat_that_is_late_does_not_undo_the_last_word() -> None:
    store = SlowStore()
    with heard_of(store, 0, 2, lambda error: None):
        assert store.taken.wait(60)
    for thread in [each for each in threading.enumerate() if each.name == "beat"]:
        thread.join(60)
        assert not thread.is_alive()
    assert store.kept["beat 0"] == LEFT.decode()


def test_a_process_alone_has_nobody_to_hear_of() -> None:
    store: Any = None
    with heard_of(store, 0, 1):
        assert "beat" not in [each.name for each in threading.enumerate()]
