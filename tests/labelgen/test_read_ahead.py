"""Photos that are decoded ahead share the memory of one, in their order, and are stretched as the set says."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sum_factory.labelgen import read_ahead as reading
from sum_factory.labelgen.read_ahead import Decoding, read_ahead
from sum_factory.labelgen.room import Room
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.errors import ImageError, SettingsDifferError
from sum_factory.shared.images import open_photo
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.shards.originals import decode_original
from sum_factory.shared.shards.shard_set import ShardSet

Label = Callable[..., RunSummary]


def in_thread(pool: ThreadPoolExecutor, work: Callable[[], object]) -> Callable[[], bool]:
    """Have a thread do something; return what tells whether it is done."""
    future = pool.submit(work)
    return lambda: future.done()


def soon(is_so: Callable[[], bool]) -> bool:
    until = time.monotonic() + 600
    while not is_so() and time.monotonic() < until:
        time.sleep(0.001)
    return is_so()


def test_room_is_given_in_turn_and_a_single_photo_always_gets_in() -> None:
    room = Room(10)
    with ThreadPoolExecutor(3) as pool:
        second = in_thread(pool, lambda: room.enter(1, 1))
        third = in_thread(pool, lambda: room.enter(2, 1))
        time.sleep(0.02)
        assert not second()  # though there is room: the first, which comes before, has not said what it needs
        room.enter(0, 100)
        time.sleep(0.02)
        assert not second()
        room.keep(0, 9)
        assert soon(second)
        assert not third()
        room.leave(0)
        assert soon(third)
        room.leave(3)  # which never entered
        room.enter(4, 8)


def test_large_files_are_read_one_at_a_time() -> None:
    """A zip's member of a few kilobytes may be unpacked to gigabytes."""
    names: list[str] = []

    def read(photo: PhotoFile) -> bytes:
        names.append(photo.key)
        return png(np.zeros((8, 8, 3), np.uint8))

    photos = [PhotoFile(key, "", size=reading.LARGE_FILE + 1) for key in "abc"]
    ready = read_ahead(photos, 8, read)
    first = next(ready)
    time.sleep(0.05)
    assert names == ["a"]
    first()
    assert soon(lambda: "b" in names)
    assert [len(take().pixels) for take in ready] == [8, 8]


def test_room_that_is_closed_lets_nobody_wait() -> None:
    room = Room(10)
    room.enter(0, 10)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(room.enter, 1, 10)
        room.close()
        with pytest.raises(RuntimeError, match="nobody waits"):
            waiting.result(timeout=20)


def png(pixels: npt.NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_photos_ahead_share_the_memory_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png(np.zeros((64, 64, 3), np.uint8))
    needed = open_photo(data, "a").bytes_needed + len(data)
    monkeypatch.setattr(reading, "MAX_MEMORY", needed + 100)  # for one that is decoded, and none that is kept
    at_once, most, lock = [0], [0], threading.Lock()
    decode = type(open_photo(data, "a")).decode

    def counted(opened: object) -> object:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.002)
        try:
            return decode(opened)  # type: ignore[arg-type]
        finally:
            with lock:
                at_once[0] -= 1

    monkeypatch.setattr("sum_factory.shared.images.Opened.decode", counted)
    images = [PhotoFile(f"{number}", "") for number in range(12)]
    refused = {"3": "left out", "4": "left out"}
    outcomes = []
    for photo in read_ahead(images, 64, lambda image: data, refused):
        try:
            outcomes.append(photo().pixels.shape)
        except ImageError as error:
            outcomes.append(str(error))  # type: ignore[arg-type]
    assert outcomes == [(64, 64, 3)] * 3 + ["left out"] * 2 + [(64, 64, 3)] * 7
    assert most[0] == 1


def test_reading_ahead_that_is_left_while_photos_wait_for_room_leaves_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = png(np.zeros((64, 64, 3), np.uint8))
    monkeypatch.setattr(reading, "MAX_MEMORY", 1)
    before = set(threading.enumerate())
    photos = read_ahead([PhotoFile(f"{number}", "") for number in range(9)], 64, lambda image: data)
    next(photos)
    photos.close()  # type: ignore[attr-defined]
    assert soon(lambda: not {thread for thread in threading.enumerate() if thread.is_alive()} - before)


# Photos whose data are in the lower bits


def deep(seed: int) -> npt.NDArray[np.uint16]:
    """Return a picture of 12 bits in 16: blocks, which make masks."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(100, 4000, (4, 4)), np.ones((12, 16))).astype(np.uint16)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(png(deep(seed)))
    (folder / "notes.md").write_text("")
    return folder


def test_run_warns_once_of_photos_that_are_too_dark_and_of_what_is_left_out(
    scans: Path, tmp_path: Path, label: Label, capsys: pytest.CaptureFixture[str]
) -> None:
    label(scans, tmp_path / "set", log=str(tmp_path / "log"))
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert sum("to have such photos stretched" in event.get("text", "") for event in events) == 1
    told = capsys.readouterr()
    assert told.err.count("to have such photos stretched") == 1
    first = re.escape(str(scans)) + r"/[012]\.png"  # whichever was read first: photos are read side by side
    assert re.search(f"{first}: has more than 8 bits, and nothing in it is brighter than a quarter of white", told.err)
    assert told.out.count("1 files were passed over, being no photos: 1 .md") == 1


def test_stretched_photos_are_labelled_kept_and_read_again_as_they_were_seen(
    scans: Path, tmp_path: Path, label: Label, capsys: pytest.CaptureFixture[str]
) -> None:
    label(scans, tmp_path / "dark")
    capsys.readouterr()
    label(scans, tmp_path / "set", stretch=True, keep_photos=True)
    assert "to have such photos stretched" not in capsys.readouterr().err
    layers = json.loads((tmp_path / "set/dataset.json").read_text())["layers"]
    assert layers["masks"]["settings"]["stretch"] is True
    assert layers["photos"]["settings"]["stretch"] is True
    assert "stretch" not in json.loads((tmp_path / "dark/dataset.json").read_text())["layers"]["masks"]["settings"]
    for folder, brightest in (("set", 255), ("dark", 16)):
        shards = ShardSet.open(str(tmp_path / folder))
        photo = shards.unit(0).images[0]
        pixels = decode_original(shards, photo, shards.digests(0)[photo.key])
        assert abs(int(pixels.max()) - brightest) <= 1
    with pytest.raises(SettingsDifferError, match=r"stretch: there True, asked for \(not set\)"):
        label(scans, tmp_path / "set")
    with pytest.raises(SettingsDifferError, match=r"stretch: there \(not set\), asked for True"):
        label(scans, tmp_path / "dark", stretch=True)


def test_dim_photo_is_noted_by_name_and_a_stretched_one_is_not() -> None:
    data = png(deep(0))
    for stretch in (False, True):
        seen = Decoding(stretch)
        photo = reading.load_photo(PhotoFile("a", "/x/a.png"), 64, lambda image: data, seen)
        assert seen.dim == (None if stretch else "/x/a.png")
        assert bool(photo.pixels.max() > 250) == stretch
