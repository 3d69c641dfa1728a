"""A generator that is left half-way ends without waiting for its threads, whoever closes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import pytest

from sum_factory.labelgen import read_ahead
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.threads import GeneratorPool


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
    photos = read_ahead.read_ahead(images(), 256, lambda image: b"")
    next(photos)
    with ThreadPoolExecutor(1) as other:  # so that a hang is a failure
        other.submit(photos.close).result(timeout=30)  # type: ignore[attr-defined]
        assert not released.is_set()
        released.set()


def test_photos_that_are_asked_for_after_the_last_one_are_read_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several images are worked on at once, so the last of them may be handed out before the others are looked at."""
    released = threading.Event()

    def release_and_wait(photos: Sequence[Future[object]]) -> None:
        assert not any(photo.done() for photo in photos)
        released.set()
        wait(photos)

    monkeypatch.setattr(read_ahead, "load_photo", lambda image, *_: picture(image) if released.wait(60) else None)
    monkeypatch.setattr(read_ahead, "wait", release_and_wait)
    photos: list[Callable[[], read_ahead.LoadedPhoto]] = list(read_ahead.read_ahead(images(), 256, lambda image: b""))
    assert [int(photo().pixels[0, 0, 0]) for photo in photos] == list(range(9))


def picture(image: PhotoFile) -> read_ahead.LoadedPhoto:
    """Return pixels that tell which photo it is."""
    pixels = np.full((1, 1, 3), int(image.key.removeprefix("photo")), np.uint8)
    return read_ahead.LoadedPhoto(pixels, pixels)


def images() -> Iterator[PhotoFile]:
    return (PhotoFile(f"photo{number}", "") for number in range(9))
