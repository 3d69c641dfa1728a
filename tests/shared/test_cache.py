"""Copies of remote files: never stale, never damaged, never more than the limit, whoever reads at the same time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest

from sum_factory.shared.errors import ShardError, StorageError
from sum_factory.shared.store.cache import BLOCK, COPY, PARTIAL, Cache, Version, default_folder
from sum_factory.shared.store.storage import Storage

URL = "s3://bucket/set/masks/000000.tar"


def content(seed: int, size: int = 3 * BLOCK + 100) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def version_of(data: bytes) -> Version:
    return Version(len(data), sha256=hashlib.sha256(data).hexdigest())


def stored(size: int) -> int:
    """Bytes that a copy takes: the file, and four for each block."""
    return size + 4 * -(-size // BLOCK)


class Remote:
    """Files by URL, and a list of what was fetched."""

    def __init__(self, **files: bytes) -> None:
        self.files, self.fetched = dict(files), []

    def read(self, cache: Cache, url: str, start: int = 0, end: int | None = None) -> bytes | None:
        def fetch() -> bytes:
            self.fetched.append(url)
            return self.files[url]

        return cache.read(url, version_of(self.files[url]), fetch, start, end)


def copies(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == COPY)


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 1 << 20)


# What is read


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 100])
def test_every_range_is_that_of_the_file(cache: Cache, size: int) -> None:
    data = content(0, size)
    remote = Remote(a=data)
    edges = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, size - 1, size, size + 7]
    for start in edges:
        for end in (*edges, None):
            if start >= 0 and (end is None or end >= 0):
                assert remote.read(cache, "a", start, end) == data[start:end]
    assert remote.fetched == ["a"]


def test_other_version_of_a_file_is_fetched(cache: Cache) -> None:
    remote = Remote(a=content(0))
    remote.read(cache, "a")
    remote.files["a"] = content(1)
    assert remote.read(cache, "a", 5, 9) == content(1)[5:9]
    remote.files["a"] = content(0)
    assert remote.read(cache, "a", 5, 9) == content(0)[5:9]
    assert remote.fetched == ["a", "a"]


def test_files_of_one_content_at_two_urls_are_two(cache: Cache) -> None:
    remote = Remote(a=content(0), b=content(0))
    remote.read(cache, "a")
    remote.read(cache, "b")
    assert remote.fetched == ["a", "b"]


def test_what_is_no_longer_that_version_is_not_kept(cache: Cache) -> None:
    for fetched in (None, content(0)[:-1]):
        assert cache.read(URL, version_of(content(0)), lambda fetched=fetched: fetched) is None
    assert os.listdir(cache.folder) == ["lock"]


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), PermissionError("no"), ShardError("other bytes")])
def test_what_fetching_raises_is_passed_on_and_leaves_nothing(cache: Cache, error: Exception) -> None:
    def fetch() -> bytes:
        raise error

    with pytest.raises(type(error), match=str(error)):
        cache.read(URL, version_of(content(0)), fetch)
    assert os.listdir(cache.folder) == ["lock"]


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped bit": lambda path: flip(path, BLOCK + 5),
    "flipped bit of a checksum": lambda path: flip(path, -8),
    "cut": lambda path: os.truncate(path, BLOCK + 20),
    "cut by a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_copy_is_fetched_again(cache: Cache, damage: str) -> None:
    remote = Remote(a=content(0))
    remote.read(cache, "a")
    (copy,) = copies(cache.folder)
    DAMAGE[damage](copy)
    assert remote.read(cache, "a", BLOCK, 3 * BLOCK + 50) == content(0)[BLOCK : 3 * BLOCK + 50]
    assert remote.read(cache, "a") == content(0)
    assert remote.fetched == ["a", "a"]


# The limit


def test_least_recently_used_copies_go_first(cache: Cache) -> None:
    remote = Remote(**{name: content(seed, 1000) for seed, name in enumerate("abcde")})
    small = Cache(cache.folder, 3 * stored(1000))
    for name in "abc":
        remote.read(small, name)
    remote.read(small, "a", 3, 5)
    remote.read(small, "d")
    assert remote.fetched == ["a", "b", "c", "d"]
    for name in "acd":
        remote.read(small, name)
    assert remote.fetched == ["a", "b", "c", "d"], "b was not read for the longest time"
    remote.read(small, "b")
    remote.read(small, "a")
    assert remote.fetched == ["a", "b", "c", "d", "b", "a"]


def test_limit_holds_at_every_moment(tmp_path: Path) -> None:
    sizes = [100, 5_000, BLOCK * 2, 40_000, 1, 0, 20_000, 59_000]
    files = {str(seed): content(seed, size) for seed, size in enumerate(sizes)}
    limit = 60_000
    cache = Cache(tmp_path, limit)
    for _ in range(3):
        for name, data in files.items():

            def fetch(data: bytes = data) -> bytes:
                assert used(tmp_path) <= limit
                assert any(path.suffix == PARTIAL and path.stat().st_size >= len(data) for path in tmp_path.iterdir())
                return data

            assert cache.read(name, version_of(data), fetch) == data
            assert used(tmp_path) <= limit


def test_smaller_limit_applies_to_what_is_there(cache: Cache) -> None:
    remote = Remote(**{name: content(seed, 1000) for seed, name in enumerate("abcd")})
    for name in "abc":
        remote.read(cache, name)
    smaller = Cache(cache.folder, stored(1000))
    remote.read(smaller, "d")
    assert used(cache.folder) == stored(1000)


def test_file_above_the_limit_is_not_cached(cache: Cache) -> None:
    remote = Remote(a=content(0, 1000), b=content(1, 3000))
    small = Cache(cache.folder, 2000)
    remote.read(small, "a")
    assert remote.read(small, "b") is None
    assert remote.fetched == ["a"]
    assert len(copies(cache.folder)) == 1, "nothing was removed for it"


def test_copy_that_is_being_read_is_not_removed(cache: Cache) -> None:
    remote = Remote(a=content(0, 1000), b=content(1, 1000))
    small = Cache(cache.folder, stored(1000))
    remote.read(small, "a")
    (copy,) = copies(cache.folder)
    with copy.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert remote.read(small, "b") is None
        assert copies(cache.folder) == [copy]
    assert remote.read(small, "b") == content(1, 1000)
    assert remote.fetched == ["a", "b"]


def test_other_files_in_the_folder_are_left_alone(cache: Cache) -> None:
    cache.folder.mkdir()
    (cache.folder / "mine.txt").write_bytes(bytes(5000))
    remote = Remote(a=content(0, 1000), b=content(1, 1000))
    small = Cache(cache.folder, stored(1000))
    remote.read(small, "a")
    remote.read(small, "b")
    assert (cache.folder / "mine.txt").stat().st_size == 5000


def test_what_a_dead_process_left_makes_room(cache: Cache) -> None:
    cache.folder.mkdir()
    (cache.folder / f"{'0' * 64}{PARTIAL}").write_bytes(bytes(900_000))
    remote = Remote(a=content(0, 500_000))
    assert remote.read(cache, "a") == content(0, 500_000)
    assert [path.suffix for path in sorted(cache.folder.iterdir())] == [COPY, ""]


def test_what_a_dead_process_left_of_this_file_is_written_over(cache: Cache) -> None:
    remote = Remote(a=content(0))
    remote.read(cache, "a")
    (copy,) = copies(cache.folder)
    copy.rename(copy.with_suffix(PARTIAL))
    copy.with_suffix(PARTIAL).write_bytes(bytes(10 * BLOCK))
    assert remote.read(cache, "a") == content(0)
    assert remote.read(cache, "a", BLOCK, BLOCK + 1) == content(0)[BLOCK : BLOCK + 1]
    assert remote.fetched == ["a", "a"]


# A folder that refuses


def test_folder_that_cannot_be_made_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"in the way")
    remote = Remote(a=content(0))
    with pytest.warns(UserWarning, match=r"cache: cannot be used as a cache \(.*\); reading without"):
        assert remote.read(Cache(tmp_path / "cache", 1 << 20), "a") is None


def test_full_disk_costs_a_warning(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    remote = Remote(a=content(0))
    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert remote.read(cache, "a", 2, 8) == content(0)[2:8]
    assert os.listdir(cache.folder) == ["lock"]
    monkeypatch.undo()
    assert remote.read(cache, "a") == content(0)
    assert len(copies(cache.folder)) == 1


# Threads and processes


def test_threads_that_want_one_file_fetch_it_once(cache: Cache) -> None:
    readers = 6
    remote, barrier = Remote(a=content(0)), threading.Barrier(readers)

    def read(number: int) -> bytes | None:
        barrier.wait()
        return remote.read(cache, "a", number, 2 * BLOCK)

    with ThreadPoolExecutor(readers) as pool:
        assert list(pool.map(read, range(readers))) == [content(0)[number : 2 * BLOCK] for number in range(readers)]
    assert remote.fetched == ["a"]


READER = """
import fcntl, hashlib, sys
from pathlib import Path
import numpy as np
from sum_factory.shared.store.cache import Cache, Version

folder, limit, seed, turns = Path(sys.argv[1]), *map(int, sys.argv[2:])
cache, random = Cache(folder, limit), np.random.default_rng(seed)
files = [np.random.default_rng(number).bytes(20_000 + 1_000 * number) for number in range(12)]
versions = [Version(len(data), sha256=hashlib.sha256(data).hexdigest()) for data in files]
uncached = 0

def fetch(data):
    with (folder / "lock").open() as lock:  # so that nobody takes room while it is measured
        fcntl.flock(lock, fcntl.LOCK_EX)
        sizes = [size_of(path) for path in folder.iterdir()]
    assert sum(sizes) <= limit, sizes
    return data

def size_of(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:  # given up, which frees room and needs no lock
        return 0

print("ready", flush=True)
sys.stdin.readline()
for _ in range(turns):
    number, start = int(random.integers(12)), int(random.integers(20_000))
    found = cache.read(f"s3://{number}", versions[number], lambda: fetch(files[number]), start, start + 7_000)
    uncached += found is None
    assert found is None or found == files[number][start : start + 7_000]
print(uncached)
"""


def test_processes_share_one_folder(tmp_path: Path) -> None:
    """A third of the files has room, so that every process fetches, reads and removes all the time."""
    limit = 110_000
    command = [sys.executable, "-c", READER, str(tmp_path), str(limit)]
    readers = [
        subprocess.Popen([*command, str(seed), "300"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for seed in range(2)
    ]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
    for reader in readers:
        assert reader.stdin is not None
        reader.stdin.write("\n")
        reader.stdin.flush()
    for reader in readers:
        uncached = int(reader.communicate()[0])
        assert reader.returncode == 0
        assert uncached == 0, "there is room for what two processes read at once"
    assert used(tmp_path) <= limit
    assert all(path.suffix != PARTIAL for path in tmp_path.iterdir())
    assert copies(tmp_path)


HOLDER = """
import sys
from pathlib import Path
from sum_factory.shared.store.cache import Cache, Version

def fetch():
    print("fetching", flush=True)
    sys.stdin.readline()
    return b"content"

Cache(Path(sys.argv[1]), 1000).read("s3://a", Version(7, "tag"), fetch)
"""


def test_copy_whose_process_is_killed_while_fetching_is_fetched_by_the_next(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "fetching\n"
    holder.kill()
    holder.communicate()
    assert any(path.suffix == PARTIAL for path in tmp_path.iterdir())
    assert Cache(tmp_path, 1000).read("s3://a", Version(7, "tag"), lambda: b"content") == b"content"
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [COPY, ""]


# A storage with a cache


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of what is read from the object store from now on."""
    store = fsspec.filesystem("s3")
    cat_file, reads = store.cat_file, []

    def counted(path: str, *args: object, **kwargs: object) -> bytes:
        reads.append(path.split("/", 1)[1])
        data: bytes = cat_file(path, *args, **kwargs)
        return data

    monkeypatch.setattr(store, "cat_file", counted)
    return reads


def test_remote_file_is_read_once_until_it_changes(cache: Cache, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(bucket, cache)
    Storage(bucket).write("a/x", content(0))
    reads = count_reads(monkeypatch)
    for start, end in ((0, 10), (BLOCK, None), (None, 3 * BLOCK), (None, None), (10**6, 10**7), (5, 5)):
        assert storage.read("a/x", start, end) == content(0)[start:end]
    assert reads == ["a/x"]
    Storage(bucket).write("a/x", content(1))
    assert storage.read("a/x", 0, 10) == content(1)[:10]
    assert reads == ["a/x", "a/x"]
    assert Storage(bucket, cache).read("a/x") == content(1)
    assert reads == ["a/x", "a/x"]


def test_expected_content_is_not_asked_for_and_is_held_to_its_hash(
    cache: Cache, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, whole = Storage(bucket, cache), version_of(content(0))
    storage.expect("x", whole.size, whole.sha256)
    storage.write("x", content(1))
    with pytest.raises(ShardError, match=rf"{bucket}/x: its bytes do not have the SHA-256"):
        storage.read("x", 0, 10)
    storage.write("x", content(0))
    assert storage.read("x", 0, 10) == content(0)[:10]
    monkeypatch.setattr(fsspec.filesystem("s3"), "info", lambda *args, **kwargs: pytest.fail("asked the store"))
    reads = count_reads(monkeypatch)
    assert storage.read("x", BLOCK, BLOCK + 5) == content(0)[BLOCK : BLOCK + 5]
    assert reads == []


def test_file_that_changes_while_it_is_fetched_is_not_kept(
    cache: Cache, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(bucket, cache)
    storage.write("x", content(0))
    store = fsspec.filesystem("s3")
    cat_file = store.cat_file

    def overtaken(path: str, **kwargs: object) -> bytes:
        monkeypatch.setattr(store, "cat_file", cat_file)
        storage.write("x", content(1))
        data: bytes = cat_file(path, **kwargs)
        return data

    monkeypatch.setattr(store, "cat_file", overtaken)
    assert storage.read("x") == content(1)
    assert copies(cache.folder) == []


def test_file_above_the_limit_is_read_in_ranges(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(bucket, Cache(tmp_path / "cache", 1000))
    storage.write("x", content(0))
    assert storage.read("x", 10, 20) == content(0)[10:20]
    assert storage.read("x") == content(0)
    assert copies(tmp_path / "cache") == []


def test_missing_file_and_bucket_read_as_without_a_cache(cache: Cache, bucket: str) -> None:
    with pytest.raises(FileNotFoundError):
        Storage(bucket, cache).read("absent")
    Storage(bucket).write("x", content(0))
    Storage(bucket, cache).read("x")
    fsspec.filesystem("s3").rm(f"{bucket}/x")
    with pytest.raises(FileNotFoundError):
        Storage(bucket, cache).read("x")
    with pytest.raises(StorageError):
        Storage("s3://no-such-bucket", cache).write("x", b"")


def test_local_folder_is_not_cached(cache: Cache, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "set"), cache)
    storage.write("x", content(0))
    storage.expect("x", 3, "another's")
    assert storage.read("x", 3, 9) == content(0)[3:9]
    assert not cache.folder.exists()


def test_default_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "sum-factory" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "sum-factory" / "shards"


# What others plant


def copy_of(data: bytes) -> bytes:
    """Return a copy as the cache lays it out, checksums and all."""
    blocks = [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]
    return data + b"".join(zlib.crc32(block).to_bytes(4, "little") for block in blocks)


def test_planted_copy_with_sound_checksums_is_never_served(cache: Cache) -> None:
    remote, planted = Remote(a=content(0)), copy_of(content(1))
    assert remote.read(Cache(cache.folder, 1 << 20), "a") == content(0)
    (copy,) = copies(cache.folder)
    assert copy.read_bytes() == copy_of(content(0))
    copy.write_bytes(planted)
    assert remote.read(cache, "a", 5, 9) == content(0)[5:9]
    assert remote.fetched == ["a", "a"]
    assert copy.read_bytes() == copy_of(content(0))


def test_links_in_the_folder_are_not_followed(cache: Cache, tmp_path: Path) -> None:
    remote = Remote(a=content(0))
    remote.read(cache, "a")
    (copy,) = copies(cache.folder)
    precious = tmp_path / "precious"
    precious.write_bytes(copy.read_bytes())
    for planted in (copy, copy.with_suffix(PARTIAL), cache.folder / "lock"):
        for path in cache.folder.iterdir():
            path.unlink()
        planted.symlink_to(precious)
        with pytest.warns(UserWarning, match="cannot be used as a cache"):
            assert remote.read(cache, "a") in (content(0), None)
        assert precious.read_bytes() == copy_of(content(0))


def test_folder_that_others_may_write_to_is_not_used(cache: Cache) -> None:
    cache.folder.mkdir()
    cache.folder.chmod(0o777)
    with pytest.warns(UserWarning, match="others may write to it; make it yours alone"):
        assert Remote(a=content(0)).read(cache, "a") is None
    assert list(cache.folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_folder_of_another_user_is_not_used(cache: Cache) -> None:
    cache.folder.mkdir(mode=0o755)
    os.chown(cache.folder, 1, 1)
    with pytest.warns(UserWarning, match="others may write to it"):
        assert Remote(a=content(0)).read(cache, "a") is None


def test_folder_and_copies_are_this_users_alone(cache: Cache) -> None:
    Remote(a=content(0)).read(cache, "a")
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in cache.folder.iterdir()} == {0o600}
