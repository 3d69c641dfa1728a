"""A place of photos that goes while a run works says nothing of the photos: they are waited for, not written off."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shortages import NO_WAIT, Label, Snapshot, errors_in, labelgen, mount, unmount
from sum_factory.labelgen import beside_masks, labeler
from sum_factory.labelgen.engine.stop import Stop
from sum_factory.labelgen.outages import Outages
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.errors import InputError, UnreachableError
from sum_factory.shared.photo_files import PhotoFile, read_listed
from sum_factory.shared.shards.shard_set import MASKS, ShardSet


@pytest.fixture
def gone_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """``gone_after(n, happens)`` has something happen as soon as ``n`` photos were read."""

    def gone_after(count: int, happens: Callable[[], object]) -> None:
        lock, left = threading.Lock(), [count]

        def read(photo: PhotoFile) -> bytes:
            with lock:
                if left[0] == 0:
                    happens()
                left[0] -= 1
            return read_listed(photo)

        monkeypatch.setattr(labeler, "read_listed", read)

    return gone_after


GOING: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "unmounted": (unmount, mount),
    "moved": (lambda photos: unmount(photos) or photos.rmdir(), lambda photos: photos.mkdir() or mount(photos)),  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("how", GOING)
def test_photos_that_went_in_mid_run_are_labelled_when_they_are_back(
    how: str, own_photos: Path, finished: tuple[Path, RunSummary], tmp_path: Path, label: Label, snapshot: Snapshot,
    gone_after: Callable[..., None],
) -> None:  # fmt: skip
    go, come = GOING[how]
    gone_after(3, lambda: go(own_photos))
    with pytest.raises(UnreachableError, match=r"cannot be read.*can what is beside it.*give the same command again"):
        label(own_photos, tmp_path / "shards", **NO_WAIT)
    assert len(ShardSet.open(str(tmp_path / "shards")).committed(MASKS)) < 3
    assert errors_in(tmp_path / "shards") == []
    come(own_photos)
    assert label(own_photos, tmp_path / "shards", **NO_WAIT).errors == ()
    masks = {name: data for name, data in snapshot(finished[0]).items() if name.startswith("masks/")}
    assert masks.items() <= snapshot(tmp_path / "shards").items()


def test_run_waits_says_so_and_goes_on(
    own_photos: Path, tmp_path: Path, label: Label, gone_after: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    back = threading.Timer(2.5, lambda: mount(own_photos))
    gone_after(1, lambda: unmount(own_photos) or back.start())  # type: ignore[func-returns-value]
    summary = label(own_photos, tmp_path / "shards", wait_for_photos=60.0)
    back.join()
    assert (summary.images, summary.errors) == (6, ())
    assert "neither can what is beside it: waiting 1 s, 60 s at most" in capsys.readouterr().err


def test_place_that_came_back_while_it_was_looked_for_is_no_fault_of_the_photo(own_photos: Path) -> None:
    photo, *others = (PhotoFile(path.stem, str(path)) for path in sorted(own_photos.glob("photo*")))
    unmount(own_photos)

    def read() -> bytes:
        try:
            return read_listed(photo)
        finally:
            if not Path(photo.url).exists():
                mount(own_photos)

    assert Outages().read(photo, others, read) == Path(photo.url).read_bytes()


def test_stop_ends_the_waiting(own_photos: Path, tmp_path: Path, label: Label, gone_after: Callable[..., None]) -> None:
    stop = Stop(grace=600.0)

    def go() -> None:
        unmount(own_photos)
        threading.Timer(0.3, lambda: stop.request("at once")).start()

    gone_after(1, go)
    begun = time.monotonic()
    with suppress(UnreachableError):  # unless a photo that was read before is done only now
        assert not label(own_photos, tmp_path / "shards", stop=stop, wait_for_photos=600.0).is_whole
    assert time.monotonic() - begun < 60
    assert ShardSet.open(str(tmp_path / "shards")).committed(MASKS) == []


def test_photo_that_is_gone_alone_is_its_own_fault(
    own_photos: Path, tmp_path: Path, label: Label, gone_after: Callable[..., None]
) -> None:
    gone_after(0, lambda: (own_photos / "photo2.jpg").unlink(missing_ok=True))
    summary = label(own_photos, tmp_path / "shards", wait_for_photos=600.0)
    assert [error.partition(": ")[0] for error in summary.errors] == [str(own_photos / "photo2.jpg")]


def test_photos_that_are_gone_for_good_are_recorded_on_demand(
    own_photos: Path, tmp_path: Path, label: Label, gone_after: Callable[..., None]
) -> None:
    gone_after(0, lambda: shutil.rmtree(own_photos / "sub", ignore_errors=True))
    with pytest.raises(UnreachableError, match="--missing-photos record"):
        label(own_photos, tmp_path / "shards", **NO_WAIT)
    summary = label(own_photos, tmp_path / "shards", missing_photos="record", **NO_WAIT)
    assert summary.is_whole
    assert all("sub" in error for error in summary.errors)


def test_errors_are_tried_again_and_tell_in_the_exit_status_until_then(
    own_photos: Path, tmp_path: Path, loose_options: list[str], finished: tuple[Path, RunSummary], snapshot: Snapshot
) -> None:
    whole, moved = own_photos / "photo2.jpg", tmp_path / "photo2.jpg"
    command = ["run", f"--images={own_photos}", f"--shards={tmp_path / 'shards'}", *loose_options]
    data = whole.read_bytes()
    whole.write_bytes(bytes(len(data)))  # as large, so that it is the photo of the plan again later
    first = labelgen(*command)
    assert first.exit_code == 3
    again = labelgen(*command)
    assert again.exit_code == 3
    assert "1 images were skipped, 1 of them before" in again.output
    assert "nothing to do" in again.output
    moved.write_bytes(data)
    moved.replace(whole)
    other = labelgen(*command, "--retry-errors=no such words")
    assert (other.exit_code, "no unit has an error that says 'no such words'" in other.output) == (3, True)
    retried = labelgen(*command, "--retry-errors=NOT AN IMAGE")
    assert retried.exit_code == 0, retried.output
    assert "1 units with errors are made anew" in retried.output
    masks = {name: data for name, data in snapshot(finished[0]).items() if name.startswith("masks/")}
    assert masks.items() <= snapshot(tmp_path / "shards").items()
    assert labelgen(*command).exit_code == 0


def test_layers_that_go_with_masks_made_anew_are_named(
    own_photos: Path, tmp_path: Path, label: Label, add_maps: Label, refiner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (own_photos / "photo2.jpg").read_bytes()
    (own_photos / "photo2.jpg").write_bytes(bytes(len(data)))
    label(own_photos, tmp_path / "shards")
    add_maps(tmp_path / "shards", refiner)
    (own_photos / "photo2.jpg").write_bytes(data)
    assert label(own_photos, tmp_path / "shards", retry_errors="all").errors == ()
    assert "does not make uncertainty/refinement again" in capsys.readouterr().out
    assert add_maps(tmp_path / "shards", refiner).errors == ()
    assert errors_in(tmp_path / "shards") == []


def test_maps_are_not_written_off_when_the_photos_go(
    own_photos: Path, tmp_path: Path, label: Label, add_maps: Label, refiner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(own_photos, tmp_path / "shards")
    read, lock = beside_masks.read_original, threading.Lock()
    calls = []

    def read_until_gone(*arguments: Any) -> bytes:
        with lock:
            calls.append(arguments)
            if len(calls) == 3:
                unmount(own_photos)
        return read(*arguments)

    monkeypatch.setattr(beside_masks, "read_original", read_until_gone)
    with pytest.raises(UnreachableError, match="--photos-from"):
        add_maps(tmp_path / "shards", refiner, **NO_WAIT)
    mount(own_photos)
    summary = add_maps(tmp_path / "shards", refiner)
    assert (summary.errors, summary.unknown) == ((), 0)


def test_maps_that_lack_a_photo_are_tried_again(
    own_photos: Path, tmp_path: Path, label: Label, add_maps: Label, refiner: str
) -> None:
    """Masks and their error rows stay as they are."""
    shards, photo = tmp_path / "shards", own_photos / "photo2.jpg"
    (own_photos / "photo4.png").write_bytes(b"no photo")
    label(own_photos, shards)
    photo.rename(tmp_path / "photo2.jpg")
    first = add_maps(shards, refiner)
    assert (len(first.errors), (first.unknown or 0) > 0) == (2, True)
    assert add_maps(shards, refiner).errors_before == 2
    (tmp_path / "photo2.jpg").rename(photo)
    masks = {path: path.read_bytes() for path in shards.glob("m*/**/*") if path.is_file() and "masks" in str(path)}
    again = add_maps(shards, refiner, retry_errors="all")
    assert (again.units_done, again.unknown, len(again.errors) + again.errors_before) == (1, 0, 1)
    assert {path: path.read_bytes() for path in masks} == masks
    assert add_maps(shards, refiner, retry_errors="all").units_done == 0


def test_folder_of_other_photos_with_the_same_names_is_refused_for_maps(
    own_photos: Path, tmp_path: Path, label: Label, add_maps: Label, refiner: str
) -> None:
    label(own_photos, tmp_path / "shards")
    for path in own_photos.rglob("*.*"):
        path.write_bytes(path.read_bytes() + b"other")
    with pytest.raises(InputError, match=r"none of the \d+ photos that were looked for.*changed since it was labelled"):
        add_maps(tmp_path / "shards", refiner)
    assert not (tmp_path / "shards" / "manifest" / "uncertainty").exists()
