"""A place of photos that goes while a run works says nothing of the photos: they are waited for, not written off."""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sum_factory.labelgen import beside_masks, labeler
from sum_factory.labelgen.cli import main
from sum_factory.labelgen.engine.stop import Stop
from sum_factory.labelgen.outages import Outages
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.errors import ImageError, InputError, UnreachableError
from sum_factory.shared.photo_files import PhotoFile, read_bytes, read_listed
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.store.refusals import explained

Label = Callable[..., RunSummary]
Snapshot = Callable[[Path], dict[str, str]]
NO_WAIT = {"wait_for_photos": 0.0}


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


def errors_in(shards: Path) -> list[str]:
    opened = ShardSet.open(str(shards))
    tables = [opened.manifest(number, MASKS)[0] for number in opened.committed(MASKS)]
    return [error for table in tables for error in table["error"].to_pylist() if error is not None]


def unmount(photos: Path) -> None:
    photos.rename(photos.with_name("away"))
    photos.mkdir()


def mount(photos: Path) -> None:
    photos.rmdir()
    photos.with_name("away").rename(photos)


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
    back = threading.Timer(1.0, lambda: mount(own_photos))
    gone_after(1, lambda: unmount(own_photos) or back.start())  # type: ignore[func-returns-value]
    summary = label(own_photos, tmp_path / "shards", wait_for_photos=60.0)
    back.join()
    assert (summary.images, summary.errors) == (6, ())
    assert "neither can what is beside it: waiting 1 s, 60 s at most" in capsys.readouterr().err


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


@pytest.fixture
def failing(tmp_path: Path) -> Callable[[int], tuple[PhotoFile, list[PhotoFile], Callable[[], bytes]]]:
    """A photo whose reading fails with an error of the system, and its neighbours, which can be read."""
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"photo")
    photos = [PhotoFile(name, str(tmp_path / f"{name}.png")) for name in "abc"]

    def fail(code: int) -> Any:
        def read() -> bytes:
            with explained(photos[1].url, photos[1].name, InputError, UnreachableError):
                raise OSError(code, "failed")
            raise AssertionError

        return photos[1], photos, read

    return fail


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE])
def test_what_the_system_lacks_is_no_photos_fault_at_once(code: int, failing: Callable[..., Any]) -> None:
    photo, photos, read = failing(code)
    with pytest.raises(UnreachableError):
        Outages(0.1).read(photo, photos, read)


def test_what_fails_on_one_photo_again_and_again_is_its_own_fault(
    failing: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sum_factory.labelgen.outages.FIRST_PAUSE", 0.01)
    photo, photos, read = failing(errno.EIO)
    with pytest.raises(InputError, match="failed"):
        Outages(60).read(photo, photos, read)
    for other in (photos[0], photos[2]):
        Path(other.url).unlink()
    with pytest.raises(UnreachableError):
        Outages(0.1).read(photo, photos, read)


def test_store_without_the_photo_but_with_its_neighbours_lacks_that_photo(bucket: str) -> None:
    import fsspec

    fsspec.filesystem("s3").pipe({f"{bucket}/{name}.png": b"photo" for name in "ac"})
    photos = [PhotoFile(name, f"{bucket}/{name}.png") for name in "abc"]
    with pytest.raises(InputError, match=r"b\.png"):
        Outages(60).read(photos[1], photos, lambda: read_bytes(photos[1]))
    gone = [PhotoFile(name, f"s3://no-such-bucket-{time.time_ns()}/{name}.png") for name in "abc"]
    with pytest.raises(UnreachableError, match="is not there"):
        Outages(0).read(gone[1], gone, lambda: read_bytes(gone[1]))


def test_what_was_waited_for_in_vain_is_not_waited_for_again(tmp_path: Path) -> None:
    """Photos are read ahead by several threads, and each would wait for as long once more."""
    photos = [PhotoFile(name, str(tmp_path / "gone" / f"{name}.png")) for name in "ab"]
    said: list[str] = []
    outages = Outages(0.1, say=said.append)
    for photo in photos:
        with pytest.raises(UnreachableError, match="give the same command again"):
            outages.read(photo, photos, lambda: read_bytes(photos[0]))
    assert len(said) == 1


def test_damaged_photo_is_never_waited_for(tmp_path: Path) -> None:
    photo = PhotoFile("a", str(tmp_path / "a.png"))

    def damaged() -> bytes:
        raise ImageError("damaged")

    with pytest.raises(ImageError):
        Outages(60).read(photo, [photo], damaged)


def labelgen(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


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


# Whose fault it is


def gone(photo: PhotoFile) -> Callable[[], bytes]:
    return lambda: read_bytes(photo)


def files(folder: Path, *names: str) -> list[PhotoFile]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"photo")
    return [PhotoFile(name, str(folder / name)) for name in names]


@pytest.mark.parametrize("left_in_it", ["README.txt", ".hidden.jpg", "sub"])
def test_file_that_an_unmounted_disk_leaves_is_no_photo_beside_those_that_are_gone(
    tmp_path: Path, left_in_it: str
) -> None:
    (tmp_path / "mount").mkdir()
    (tmp_path / "mount" / left_in_it).mkdir() if left_in_it == "sub" else files(tmp_path / "mount", left_in_it)
    photos = [PhotoFile(name, str(tmp_path / "mount" / f"{name}.jpg")) for name in "abc"]
    with pytest.raises(UnreachableError, match="is not there"):
        Outages(0).read(photos[0], photos, gone(photos[0]))


@pytest.mark.parametrize("those_of_it", [1, 2])
def test_photos_of_other_folders_do_not_vouch_for_one_whose_folder_is_empty(tmp_path: Path, those_of_it: int) -> None:
    others = files(tmp_path / "other", *(f"{k}.jpg" for k in range(6)))
    (tmp_path / "mount").mkdir()
    photos = [PhotoFile(f"gone{k}", str(tmp_path / f"mount/{k}.jpg")) for k in range(those_of_it)]
    with pytest.raises(UnreachableError, match="is not there"):
        Outages(0).read(photos[0], [*others, *photos], gone(photos[0]))


def test_tar_that_is_gone_is_a_place_though_other_tars_are_there(tmp_path: Path) -> None:
    files(tmp_path, "other.tar")
    members = [PhotoFile(name, str(tmp_path / "gone.tar"), f"{name}.jpg", 512, 5) for name in "abc"]
    with pytest.raises(UnreachableError, match="is not there"):
        Outages(0).read(members[1], members, gone(members[1]))
    files(tmp_path, "gone.tar")  # it is back, and does not give this member
    with pytest.raises(InputError):
        Outages(60).read(members[1], members, lambda: (_ for _ in ()).throw(InputError("unreadable")))


def test_member_of_a_zip_is_judged_by_the_others_of_the_zip(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("in/a.jpg", b"photo")
        archive.writestr("in/b.jpg", b"photo")
    photos = [PhotoFile(name, f"zip://in/{name}.jpg::{path}") for name in "abc"]
    with pytest.raises(InputError, match=r"c\.jpg"):
        Outages(60).read(photos[2], photos, gone(photos[2]))
    path.unlink()
    with pytest.raises(UnreachableError, match="is not there"):
        Outages(0).read(photos[2], photos, gone(photos[2]))


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
def test_shortage_is_never_a_photos_fault_however_often_it_comes(
    code: int, failing: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sum_factory.labelgen.outages.FIRST_PAUSE", 0.01)
    photo, photos, read = failing(code)
    with pytest.raises(UnreachableError):
        Outages(0.5, missing="record").read(photo, photos, read)


def short_of_memory(*arguments: Any) -> Any:
    raise MemoryError("short")


def short_of_files(*arguments: Any) -> Any:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize("where", ["sum_factory.shared.images.open_image", "sum_factory.shared.images.Opened._decoded"])
@pytest.mark.parametrize(("short", "rise"), [(short_of_memory, MemoryError), (short_of_files, OSError)])
def test_photo_that_cannot_be_decoded_for_a_shortage_is_not_called_damaged(
    own_photos: Path, monkeypatch: pytest.MonkeyPatch, where: str, short: Callable[..., Any], rise: type[Exception]
) -> None:
    import numpy as np

    from sum_factory.shared import images

    data = (own_photos / "photo0.jpg").read_bytes()
    monkeypatch.setattr(where, short)
    if rise is MemoryError:  # the machine has no more, either
        monkeypatch.setattr(images.np, "empty", short_of_memory)
    with pytest.raises(rise):
        images.decode_image(data, "photo")
    monkeypatch.undo()
    assert isinstance(images.decode_image(data, "photo"), np.ndarray)


def test_memory_that_a_damaged_file_asks_for_and_the_machine_has_is_the_files_fault(
    own_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sum_factory.shared import images

    monkeypatch.setattr(images.Opened, "_decoded", short_of_memory)
    with pytest.raises(ImageError, match="damaged"):
        images.decode_image((own_photos / "photo0.jpg").read_bytes(), "photo")


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
