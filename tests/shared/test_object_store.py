"""A real S3-compatible server: the first writer wins there, and what it refuses is said plainly."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fsspec
import pytest
import s3fs
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from sum_factory.shared.errors import StorageError, UnreachableError
from sum_factory.shared.photo_files import PhotoFile, read_bytes
from sum_factory.shared.store.storage import Storage


@pytest.fixture
def fresh_clients(object_store: str) -> Iterator[pytest.MonkeyPatch]:
    """An environment to change: connections are made anew in it, tried once, and made anew after it."""
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_MAX_ATTEMPTS", "1")
        environment.setattr(s3fs.S3FileSystem, "retries", 1)
        yield environment
    s3fs.S3FileSystem.clear_instance_cache()


# The first writer wins


def test_one_of_many_threads_creates(bucket: str) -> None:
    storage, writers = Storage(bucket), 8
    barrier = threading.Barrier(writers)

    def create(number: int) -> bool:
        barrier.wait()
        return storage.create("a/x", str(number).encode())

    for _ in range(5):
        with ThreadPoolExecutor(writers) as pool:
            won = list(pool.map(create, range(writers)))
        assert sum(won) == 1
        assert storage.read("a/x") == str(won.index(True)).encode()
        fsspec.filesystem("s3").rm(f"{bucket}/a/x")


CREATE = """
import sys
from sum_factory.shared.store.storage import Storage
storage = Storage(sys.argv[1])
storage.exists("a/0")
print("ready", flush=True)
sys.stdin.readline()
print([number for number in range(40) if storage.create(f"a/{number}", sys.argv[2].encode())])
"""


def test_one_of_several_processes_creates(bucket: str) -> None:
    command = [sys.executable, "-c", CREATE, bucket]
    writers = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for name in "pq"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    won = {}
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for name, writer in zip("pq", writers, strict=True):
        won[name] = set(eval(writer.communicate()[0]))
        assert writer.returncode == 0
    assert won["p"] | won["q"] == set(range(40))
    assert not won["p"] & won["q"]
    for name, numbers in won.items():
        assert all(Storage(bucket).read(f"a/{number}") == name.encode() for number in numbers)


def answer_with(code: str, monkeypatch: pytest.MonkeyPatch, times: int) -> list[str]:
    """Have the store answer conditional puts with an error, so many times; the list says how often it did."""
    store = fsspec.filesystem("s3")
    pipe_file, answers = store._pipe_file, []

    async def put(path: str, data: bytes, mode: str = "overwrite") -> None:
        if mode == "create" and len(answers) < times:
            answers.append(code)
            response = {"Error": {"Code": code, "Message": f"said {code}"}}
            raise translate_boto_error(ClientError(response, "PutObject"))
        await pipe_file(path, data, mode=mode)

    monkeypatch.setattr(store, "_pipe_file", put)
    return answers


def test_put_that_the_store_drops_for_another_is_tried_again(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = answer_with("ConditionalRequestConflict", monkeypatch, times=2)
    assert Storage(bucket).create("x", b"first")
    assert not Storage(bucket).create("x", b"second")
    assert Storage(bucket).read("x") == b"first"
    assert len(answers) == 2


def test_put_that_the_store_drops_for_ever_is_an_error(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with("ConditionalRequestConflict", monkeypatch, times=1000)
    with pytest.raises(StorageError, match=rf"cannot write {bucket}/x: .*ConditionalRequestConflict"):
        Storage(bucket).create("x", b"first")


def test_store_without_conditional_puts_is_asked_first(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = answer_with("NotImplemented", monkeypatch, times=1000)
    assert Storage(bucket).create("x", b"first")
    assert not Storage(bucket).create("x", b"second")
    assert Storage(bucket).read("x") == b"first"
    assert len(answers) == 2


def test_library_without_conditional_puts_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    pipe_file, calls = memory.pipe_file, []

    def put(path: str, value: bytes, **kwargs: Any) -> None:
        calls.append(kwargs)
        pipe_file(path, value)

    monkeypatch.setattr(memory, "pipe_file", put)
    storage = Storage("memory://without-conditional-puts")
    assert storage.create("x", b"first")
    assert not storage.create("x", b"second")
    assert storage.read("x") == b"first"
    assert calls == [{}]


# What it refuses

NO_BUCKET = "s3://no-such-bucket/set"


def test_missing_bucket_is_named_when_written_to(object_store: str) -> None:
    for write in (Storage(NO_BUCKET).write, Storage(NO_BUCKET).create):
        with pytest.raises(StorageError, match=rf"cannot write {NO_BUCKET}/a/x: .*bucket") as caught:
            write("a/x", b"new")
        assert "that the bucket is there" in str(caught.value)


def test_nothing_is_in_a_missing_bucket(object_store: str) -> None:
    storage = Storage(NO_BUCKET)
    assert not storage.exists("x")
    assert storage.names("") == []
    with pytest.raises(FileNotFoundError):
        storage.read("x")


ALL: dict[str, Callable[[Storage], object]] = {
    "read": lambda storage: storage.read("x"),
    "part": lambda storage: storage.read("x", 2, 4),
    "write": lambda storage: storage.write("x", b"new"),
    "create": lambda storage: storage.create("x", b"new"),
    "size": lambda storage: storage.size("x"),
    "exists": lambda storage: storage.exists("x"),
    "names": lambda storage: storage.names(""),
}


def test_missing_credentials_are_named(bucket: str, fresh_clients: pytest.MonkeyPatch) -> None:
    Storage(bucket).write("x", b"0123456789")
    s3fs.S3FileSystem.clear_instance_cache()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        fresh_clients.delenv(name)
    storage = Storage(bucket)
    for name, work in ALL.items():
        with pytest.raises(StorageError, match=rf"{bucket}/.*[Cc]redentials.*AWS_ACCESS_KEY_ID"):
            pytest.fail(f"{name} gave {work(storage)}")
    with pytest.raises(UnreachableError, match=rf"{bucket}/x: cannot be read .*AWS_ACCESS_KEY_ID"):
        read_bytes(PhotoFile("x", f"{bucket}/x"))


def test_store_that_is_not_there_is_named(object_store: str, fresh_clients: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        fresh_clients.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        storage = Storage("s3://bucket/set")
        for name, work in ALL.items():
            with pytest.raises(StorageError, match=r"s3://bucket/.*AWS_ENDPOINT_URL") as caught:
                pytest.fail(f"{name} gave {work(storage)}")
            assert "\n" not in str(caught.value)


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StorageError, match=r"gs://bucket/set: .*gcsfs.*install what reads such URLs"):
        Storage("gs://bucket/set").read("x")
