"""A cache gives what the file holds, keeps to its limit, and survives threads, processes and full disks."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cached import URL, Remote, content, copies, stored, used, version_of
from sum_factory.shared.errors import ShardError
from sum_factory.shared.store.cache import BLOCK, COPY, PARTIAL, Cache, Version

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
