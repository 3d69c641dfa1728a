"""Whether a photo is to blame for what fails, its place, or the machine."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sum_factory.labelgen.outages import Outages
from sum_factory.shared.errors import ImageError, InputError, UnreachableError
from sum_factory.shared.photo_files import PhotoFile, read_bytes
from sum_factory.shared.store.refusals import explained


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
