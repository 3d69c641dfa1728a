"""A generator that is left half-way ends without waiting for its threads, whoever closes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from labelgen import read_ahead
from labelgen.threads import GeneratorPool
from shared.shards.dataset import PlannedImage


def test_what_is_being_done_is_not_waited_for_and_the_rest_is_given_up() -> None:
    begun, released = threading.Event(), threading.Event()

    def wait() -> bool:
        begun.set()
        return released.wait(60)

    with GeneratorPool(1) as pool:
        doing, waiting = pool.submit(wait), pool.submit(wait)
        assert begun.wait(60)
    assert doing.running()
    assert waiting.cancelled()
    released.set()
    assert doing.result()


def test_reading_ahead_is_left_while_photos_are_being_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joining a thread needs a lock of ``threading`` that a starting one holds while it may collect garbage."""
    released = threading.Event()
    monkeypatch.setattr(read_ahead, "load_photo", lambda *_: released.wait(60))
    photos = read_ahead.read_ahead(images(), 256)
    next(photos)
    with ThreadPoolExecutor(1) as other:  # so that a hang is a failure
        other.submit(photos.close).result(timeout=30)  # type: ignore[attr-defined]
        assert not released.is_set()
        released.set()


def images() -> Iterator[PlannedImage]:
    return (PlannedImage(f"photo{number}", "", "") for number in range(9))
