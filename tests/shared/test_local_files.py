"""Nothing that is planted in a folder leads out of it: links are not followed, pipes and devices are not replaced."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sum_factory.shared.errors import StorageError
from sum_factory.shared.store import local_files
from sum_factory.shared.store.local_files import make_private, open_lines, read_whole, whole_file
from sum_factory.shared.store.storage import LOCK, Storage


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A folder that belongs to somebody else's work, with one file."""
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "precious").write_bytes(b"precious")
    return folder


@pytest.fixture
def own(tmp_path: Path, other: Path) -> Storage:
    """A folder with a file, and a link in it to that of others."""
    storage = Storage(str(tmp_path / "own"))
    storage.write("a", b"a")
    (tmp_path / "own" / "linked").symlink_to(other)
    return storage


@pytest.mark.parametrize(
    "work",
    [
        lambda storage: storage.write("linked/new", b"x"),
        lambda storage: storage.create("linked/new", b"x"),
        lambda storage: storage.write("linked/deeper/new", b"x"),
        lambda storage: storage.delete("linked/precious"),
        lambda storage: storage.move("linked/precious", "taken"),
        lambda storage: storage.move("a", "linked/b"),
    ],
)
def test_nothing_is_written_moved_or_deleted_through_a_link(
    own: Storage, other: Path, work: Callable[[Storage], object]
) -> None:
    with pytest.raises(StorageError, match=r"linked is a link, and nothing is written through one"):
        work(own)
    assert [path.name for path in other.iterdir()] == ["precious"]
    assert own.read("a") == b"a"


def test_folder_that_is_itself_given_as_a_link_is_written_to(tmp_path: Path, other: Path) -> None:
    (tmp_path / "given").symlink_to(other)
    Storage(str(tmp_path / "given")).write("deeper/new", b"x")
    assert (other / "deeper/new").read_bytes() == b"x"


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_holding_a_folder_does_not_empty_what_its_lock_is_linked_to(
    tmp_path: Path, other: Path, link: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "set").mkdir()
    link(other / "precious", tmp_path / "set" / LOCK)
    with Storage(str(tmp_path / "set")).locked():
        pass
    assert (other / "precious").read_bytes() == b"precious"


def test_pipe_and_device_are_neither_waited_for_nor_read_nor_replaced(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(StorageError, match=rf"cannot read .*{name}: not a regular file"):
            storage.read(name)
        with pytest.raises(StorageError, match=rf"cannot write .*{name}: there is no regular file"):
            storage.write(name, b"x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert os.readlink(tmp_path / "zeros") == "/dev/zero"


def test_output_goes_into_a_pipe_that_is_there(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    with whole_file(pipe) as file:
        file.write(b"all of it")
    reader.join(60)
    assert read == [b"all of it"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_pipe_without_another_end_is_waited_for_no_longer_than_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(local_files, "LOOK_SECONDS", 0.05)
    with pytest.raises(StorageError, match=r"pipe: who reads from .*pipe has not answered within"), whole_file(pipe):
        raise AssertionError("nobody reads")
    with pytest.raises(TimeoutError, match=r"who reads from .*pipe"):
        open_lines(pipe)
    with pytest.raises(TimeoutError, match=r"who writes into .*pipe"):
        read_whole(pipe)
    os.close(os.open(pipe, os.O_RDWR))  # so that those who wait in vain are let go


def test_reader_who_takes_nothing_is_waited_for_no_longer_than_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    monkeypatch.setattr(local_files, "LIST_SECONDS", 0.05)
    with pytest.raises(StorageError, match=r"pipe: who reads from .*pipe has not answered"), whole_file(pipe) as file:
        file.write(bytes(1 << 20))
    os.close(reader)


def test_sockets_disks_and_devices_are_neither_written_nor_read_as_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the path of a socket is short
        server.bind("socket")
        with pytest.raises(StorageError, match="socket: a socket or disk"), whole_file(tmp_path / "socket") as file:
            file.write(b"x")
        assert stat.S_ISSOCK((tmp_path / "socket").stat().st_mode)
    with pytest.raises(OSError, match="a device or socket"):
        read_whole(Path("/dev/zero"))


def test_what_is_open_already_is_written_on_and_not_from_its_beginning(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb", buffering=0) as log:
        log.write(b"before ")
        for _ in range(2):
            with whole_file(Path(f"/dev/fd/{log.fileno()}")) as file:
                file.write(b"x")
    assert (tmp_path / "log").read_bytes() == b"before xx"


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no disk in memory below /dev")
def test_file_below_dev_is_a_file() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        out = Path(folder, "out")
        with whole_file(out) as file:
            file.write(b"half")
            assert not out.exists(), "it is written aside"
        assert out.read_bytes() == b"half"


def test_output_goes_into_a_device_that_stays_one(tmp_path: Path) -> None:
    for out in (Path("/dev/null"), tmp_path / "linked"):
        if not out.exists():
            out.symlink_to("/dev/null")
        with whole_file(out) as file:
            file.write(b"x")
        assert stat.S_ISCHR(out.stat().st_mode)
    assert (tmp_path / "linked").is_symlink()


def test_output_is_whole_or_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "deeper" / "out"
    with whole_file(out) as file:
        file.write(b"old")
    written = whole_file(out)
    written.__enter__().write(b"half")
    assert not written.__exit__(KeyError, KeyError(), None)
    assert out.read_bytes() == b"old"
    assert os.listdir(out.parent) == ["out"]
    (tmp_path / "link").symlink_to(out)
    with whole_file(tmp_path / "link") as file:
        file.write(b"new")
    assert out.read_bytes() == b"new", "as `>` does, through a link that the user named"
    with pytest.raises(StorageError, match=r"cannot write .*out/more"), whole_file(out / "more") as file:
        file.write(b"x")


def test_private_folder_is_this_users_alone(tmp_path: Path) -> None:
    make_private(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    (tmp_path / "a" / "b").chmod(0o770)
    with pytest.raises(PermissionError, match="others may write to it"):
        make_private(tmp_path / "a" / "b")
