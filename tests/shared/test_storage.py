"""Files appear whole or not at all, the first writer wins, and refusals name the path."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest

from sum_factory.shared.errors import StorageError
from sum_factory.shared.store.storage import TEMPORARY_PREFIX, Storage


@pytest.fixture(params=["local", "file URL", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    """A folder that does not exist yet, on each kind of file system."""
    if request.param == "local":
        yield Storage(str(tmp_path / "set"))
    elif request.param == "file URL":
        yield Storage(f"file://{tmp_path}/set")
    elif request.param == "s3":
        yield Storage(f"{request.getfixturevalue('bucket')}/set")
    else:
        name = uuid.uuid4().hex
        yield Storage(f"memory://{name}/set")
        fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def refuse(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_is_written_is_read(storage: Storage) -> None:
    storage.write("a/b.bin", b"0123456789")
    assert storage.read("a/b.bin") == b"0123456789"
    assert storage.read("a/b.bin", 2, 5) == b"234"
    assert storage.size("a/b.bin") == 10
    assert storage.exists("a/b.bin")
    assert not storage.exists("a/c.bin")


def test_write_replaces_and_create_does_not(storage: Storage) -> None:
    assert storage.create("x", b"first")
    assert not storage.create("x", b"second")
    assert storage.read("x") == b"first"
    storage.write("x", b"third")
    assert storage.read("x") == b"third"


def test_missing_file_is_for_the_caller_to_judge(storage: Storage) -> None:
    storage.write("present", b"")
    with pytest.raises(FileNotFoundError):
        storage.read("absent")
    with pytest.raises(FileNotFoundError):
        storage.size("absent")


def test_names_are_the_sorted_files_of_one_folder(storage: Storage) -> None:
    assert storage.names("") == []
    assert storage.names("a") == []
    for name in ("a/2", "a/10", "a/1", "a/deeper/3", "4", f"a/{TEMPORARY_PREFIX}2-00ff"):
        storage.write(name, b"x")
    assert storage.names("a") == ["1", "10", "2"]
    assert storage.names("") == ["4"]


def test_names_see_what_another_process_wrote(storage: Storage) -> None:
    storage.write("a/1", b"x")
    assert storage.names("a") == ["1"]
    Storage(storage.url).write("a/2", b"x")
    assert storage.names("a") == ["1", "2"]


def test_linked_file_has_a_name_too(local: Storage, tmp_path: Path) -> None:
    local.write("a/1", b"x")
    (tmp_path / "a/2").symlink_to(tmp_path / "a/1")
    assert local.names("a") == ["1", "2"]


def test_trailing_slash_does_not_matter(tmp_path: Path) -> None:
    Storage(f"{tmp_path}/set/").write("x", b"1")
    assert (tmp_path / "set" / "x").read_bytes() == b"1"
    assert Storage(f"{tmp_path}/set/").path("x") == Storage(f"{tmp_path}/set").path("x")


def test_unfinished_file_is_seen_by_nobody(local: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local.write("a/x", b"old")
    seen = []

    def look(descriptor: int) -> None:
        seen.append((local.names("a"), local.read("a/x"), local.exists("a/y")))
        assert len(os.listdir(tmp_path / "a")) == 2, "the file that is being written lies beside the others"

    monkeypatch.setattr(os, "fsync", look)
    local.write("a/x", b"new")
    local.create("a/y", b"new")
    assert seen == [(["x"], b"old", False), (["x"], b"new", False)]
    assert sorted(os.listdir(tmp_path / "a")) == ["x", "y"]


@pytest.mark.parametrize("refusing", ["fsync", "replace", "link"])
def test_refused_write_leaves_the_old_file_and_no_temporary(
    local: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    local.write("a/x", b"old")
    monkeypatch.setattr(os, refusing, refuse)
    if refusing != "link":
        with pytest.raises(StorageError, match=r"a/x: No space left on device"):
            local.write("a/x", b"new")
    if refusing != "replace":
        with pytest.raises(StorageError, match=r"a/y: No space left on device"):
            local.create("a/y", b"new")
    assert os.listdir(tmp_path / "a") == ["x"]
    assert local.read("a/x") == b"old"


def test_loser_leaves_no_temporary(local: Storage, tmp_path: Path) -> None:
    assert local.create("a/x", b"first")
    assert not local.create("a/x", b"second")
    assert os.listdir(tmp_path / "a") == ["x"]


def test_regular_file_in_the_place_of_a_folder_is_named(local: Storage, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"in the way")
    for write in (local.write, local.create):
        with pytest.raises(StorageError) as caught:
            write("a/x", b"new")
        assert str(tmp_path / "a/x") in str(caught.value)
    with pytest.raises(StorageError, match="a/x"):
        local.read("a/x")
    assert (tmp_path / "a").read_bytes() == b"in the way"


def test_missing_bucket_is_named_when_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_bucket(path: str, data: bytes) -> None:
        raise FileNotFoundError(errno.ENOENT, "The specified bucket does not exist")

    monkeypatch.setattr(fsspec.filesystem("memory"), "pipe_file", no_bucket)
    for write in (Storage("memory://bucket").write, Storage("memory://bucket").create):
        with pytest.raises(StorageError, match=r"memory://bucket/a/x: The specified bucket does not exist"):
            write("a/x", b"new")


def test_empty_file_is_read(storage: Storage) -> None:
    storage.write("empty", b"")
    assert storage.read("empty") == storage.read("empty", 0, 5) == b""
    assert storage.size("empty") == 0


@pytest.mark.parametrize(("start", "end"), [(7, 20), (10, 12), (50, 60), (4, 4), (10, 10), (0, 10), (7, None)])
def test_range_past_the_end_gives_what_there_is(storage: Storage, start: int, end: int | None) -> None:
    storage.write("x", b"0123456789")
    assert storage.read("x", start, end) == b"0123456789"[start:end]
    with pytest.raises(FileNotFoundError):
        storage.read("absent", start, end)


def test_what_another_writer_did_is_seen_at_once(storage: Storage) -> None:
    """Whatever listing of the folder is remembered."""
    storage.write("a/1", b"x")
    assert storage.names("a") == ["1"]
    filesystem, root = fsspec.core.url_to_fs(storage.url, skip_instance_cache=True)
    filesystem.pipe_file(f"{root}/a/1", b"longer")
    filesystem.pipe_file(f"{root}/a/2", b"another's")
    assert storage.size("a/1") == 6
    assert storage.exists("a/2")
    assert not storage.create("a/2", b"ours")


def test_unknown_protocol_is_named() -> None:
    with pytest.raises(StorageError, match="nonsense://bucket"):
        Storage("nonsense://bucket").read("x")


def test_one_of_many_threads_creates(local: Storage, tmp_path: Path) -> None:
    writers = 8
    barrier = threading.Barrier(writers)

    def create(number: int) -> bool:
        barrier.wait()
        return local.create("a/x", str(number).encode())

    for _ in range(20):
        with ThreadPoolExecutor(writers) as pool:
            won = list(pool.map(create, range(writers)))
        assert sum(won) == 1
        assert local.read("a/x") == str(won.index(True)).encode()
        assert os.listdir(tmp_path / "a") == ["x"]
        (tmp_path / "a/x").unlink()


CREATE = """
import sys
from sum_factory.shared.store.storage import Storage
storage = Storage(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print([storage.create(f"a/{i}", sys.argv[2].encode()) for i in range(200)].count(True))
"""


def test_one_of_several_processes_creates(local: Storage, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CREATE, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = {name: subprocess.Popen([*command, name], **pipes) for name in ("one", "two")}
    for process in processes.values():
        assert process.stdout.readline() == "ready\n"
    for process in processes.values():
        process.stdin.write("go\n")
        process.stdin.flush()
    won = {name: int(process.communicate()[0]) for name, process in processes.items()}
    names = local.names("a")
    assert len(names) == 200
    contents = [local.read(f"a/{name}").decode() for name in names]
    assert won == {name: contents.count(name) for name in processes}
    assert sorted(os.listdir(tmp_path / "a")) == names


def test_all_files_are_listed_with_their_sizes(storage: Storage) -> None:
    assert storage.files() == {}
    for name in ("b", "a/2", f"a/{TEMPORARY_PREFIX}2-00ff", "a/deeper/3"):
        storage.write(name, name.encode())
    names = [f"a/{TEMPORARY_PREFIX}2-00ff", "a/2", "a/deeper/3", "b"]
    assert storage.files() == {name: len(name) for name in names}
    assert list(storage.files()) == names
    Storage(storage.url).write("c", b"")
    assert storage.files()["c"] == 0


def test_deleted_file_is_gone_and_the_others_stay(storage: Storage) -> None:
    storage.write("a/1", b"x")
    storage.write("a/2", b"y")
    storage.delete("a/1")
    assert storage.names("a") == ["2"]
    storage.delete("a/1")
    assert storage.names("a") == ["2"]


def test_moved_file_has_another_name_and_the_same_bytes(storage: Storage) -> None:
    storage.write("a/1", b"x")
    storage.move("a/1", "b/deeper/2")
    assert storage.files() == {"b/deeper/2": 1}
    assert storage.read("b/deeper/2") == b"x"
    with pytest.raises(FileNotFoundError):
        storage.move("a/1", "b/3")


def test_time_of_writing_is_the_file_systems(storage: Storage, tmp_path: Path) -> None:
    storage.write("x", b"1")
    assert abs((datetime.now(UTC) - storage.modified("x")).total_seconds()) < 3600
    if storage.is_local:
        os.utime(tmp_path / "set/x", (86_400, 86_400))
        assert storage.modified("x") == datetime(1970, 1, 2, tzinfo=UTC)
    with pytest.raises(FileNotFoundError):
        storage.modified("y")


def test_file_system_without_times_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def modified(path: str) -> None:
        raise NotImplementedError

    monkeypatch.setattr(fsspec.filesystem("memory"), "modified", modified)
    with pytest.raises(StorageError, match="memory://bucket/x: its file system does not say when"):
        Storage("memory://bucket").modified("x")
