"""Copies of remote files on this machine's disk: of a bounded size, shared by processes, and never stale.

A copy's name is a hash of its URL and of the version of its content, so a file that changes gets another copy. It is
written aside and renamed; it ends with a CRC-32 of every block, checked whenever the block is read, so that a damaged
or cut copy is noticed and fetched again. Locks go when a process dies; where a file system has none, checksums alone
keep processes from each other's halves:

- a reader holds a shared lock on the copy that it reads, an exclusive lock is needed to remove one;
- who fetches a file holds an exclusive lock on the copy that it writes, so others wait, and fetch it no second time;
- room is made, and taken, under a lock on the folder: what is being fetched counts as if it were there already.

The folder is this user's alone, no link in it is followed, and a copy whose SHA-256 is known is checked against it when
this process first reads it: nobody can have anything else read.
"""

from __future__ import annotations

import json
import os
import struct
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from sum_factory.shared.store.local_files import make_private, open_own, open_regular
from sum_factory.shared.store.locks import lock, try_lock, unlink, writer_of

BLOCK = 1 << 14
"""Bytes that have one checksum; the last block of a file may be shorter."""
COPY, PARTIAL, LOCK = ".copy", ".partial", "lock"
LAYOUT = 1
"""Goes into the names: copies that other software wrote in another layout are not read, and age."""


@dataclass(frozen=True)
class Version:
    """Which content a remote file has: its size in bytes, and what tells it from others of that size.

    ``tag`` is the store's (an ETag). A ``sha256`` that is known beforehand takes its place.
    """

    size: int
    tag: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Cache:
    """Copies in ``folder``, which together take ``limit_bytes`` at most: for a new one, the least recently used go.

    Safe to share between threads and processes of one user on one machine. Other files in the folder are left alone. A
    folder that cannot be written to, or that others can write to, costs a warning, not a run: then nothing is cached.
    """

    folder: Path
    limit_bytes: int
    _expected: dict[str, Version] = field(default_factory=dict, compare=False, repr=False)
    _checked: set[tuple[str, int]] = field(default_factory=set, compare=False, repr=False)
    """Names and inodes of the copies that this process has seen to hold what is expected."""

    def expect(self, url: str, version: Version) -> None:
        """Remember which version of a file is wanted, so that the store need not be asked each time."""
        self._expected[url] = version

    def expected(self, url: str) -> Version | None:
        """Return the version of a file that is wanted, if it is known."""
        return self._expected.get(url)

    def read(
        self,
        url: str,
        version: Version,
        fetch: Callable[[], bytes | None],
        start: int = 0,
        end: int | None = None,
    ) -> bytes | None:
        """Read bytes ``start`` to ``end`` (exclusive; None is the end) of this version of a file.

        ``fetch`` gets the whole file if there is no copy, or returns None if it is not that version any more; what it
        raises is passed on. Returns None if the file cannot be cached: it has changed, there is no room, or the folder
        refuses; read it without the cache then.
        """
        copy = self.folder / f"{_name_of(url, version)}{COPY}"
        data, fetching = None, False
        try:
            make_private(self.folder)
            if (found := self._read_copy(copy, version, start, end)) is not None:
                return found
            with writer_of(copy.with_suffix(PARTIAL), 0o600) as partial:
                if (found := self._read_copy(copy, version, start, end)) is not None:  # another has just fetched it
                    return found
                if not self._make_room(partial, stored_size(version.size)):
                    return None
                fetching = True
                data = fetch()
                fetching = False
                if data is None or len(data) != version.size:
                    return None
                partial.write(data)
                partial.write(_checksums(data))
                partial.flush()
                with _folder_lock(self.folder):  # who counts what is there sees one of the two names
                    os.replace(copy.with_suffix(PARTIAL), copy)
                self._checked.add((copy.name, os.fstat(partial.fileno()).st_ino))
        except OSError as error:
            if fetching:
                raise
            reason = error.strerror or error
            warnings.warn(f"{self.folder}: cannot be used as a cache ({reason}); reading without", stacklevel=2)
        return None if data is None else data[start:end]

    def _read_copy(self, path: Path, version: Version, start: int, end: int | None) -> bytes | None:
        """Read part of a copy; None if there is none, or it is not what is expected: then it is removed."""
        try:
            file = open_regular(path)
        except FileNotFoundError:
            return None
        with file:
            lock(file, shared=True)
            data = None
            if self._is_expected(path, file, version):
                data = _read_checked(file, version.size, start, version.size if end is None else end)
            if data is None:
                unlink(path, file)
            else:
                now = time.time_ns()
                os.utime(file.fileno(), ns=(now, now))
            return data

    def _is_expected(self, path: Path, file: BinaryIO, version: Version) -> bool:
        """Whether a copy has the SHA-256 that its file has to have, if that is known: it is found out once."""
        copy = path.name, os.fstat(file.fileno()).st_ino
        if version.sha256 and copy not in self._checked:
            whole = _read_checked(file, version.size, 0, version.size)
            if whole is None or sha256(whole).hexdigest() != version.sha256:
                return False
            self._checked.add(copy)
        return True

    def _make_room(self, partial: BinaryIO, size: int) -> bool:
        """Let ``partial`` take ``size`` bytes, removing copies that nobody reads; return whether there is room."""
        if size > self.limit_bytes:
            return False
        with _folder_lock(self.folder):
            used, by_age = 0, []
            for path in self.folder.iterdir():
                if path.suffix in (COPY, PARTIAL):
                    with suppress(FileNotFoundError):  # damaged, or given up, just now
                        status = path.lstat()
                        used += status.st_size
                        by_age.append((status.st_mtime_ns, status.st_size, path))
            for _, freed, path in sorted(by_age):
                if used + size <= self.limit_bytes:
                    break
                used -= freed if _remove_unless_used(path) else 0
            if used + size > self.limit_bytes:
                return False
            os.ftruncate(partial.fileno(), size)
            return True


def default_folder() -> Path:
    """Return where this user's copies lie if nothing else is said: below ``$XDG_CACHE_HOME``, or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sum-factory" / "shards"


def _name_of(url: str, version: Version) -> str:
    content = version.sha256 or version.tag
    return sha256(json.dumps([LAYOUT, url, version.size, content]).encode()).hexdigest()


def stored_size(size: int) -> int:
    """Return how many bytes of the limit a copy of a file of ``size`` bytes takes."""
    return size + 4 * -(-size // BLOCK)


def _checksums(data: bytes | memoryview) -> bytes:
    blocks = memoryview(data)
    checksums = [zlib.crc32(blocks[start : start + BLOCK]) for start in range(0, len(data), BLOCK)]
    return struct.pack(f"<{len(checksums)}I", *checksums)


def _read_checked(file: BinaryIO, size: int, start: int, end: int) -> bytes | None:
    """Read bytes ``start`` to ``end`` of an open copy, or return None if their blocks are not as they were written."""
    if os.fstat(file.fileno()).st_size != stored_size(size):
        return None
    start, end = min(start, size), min(end, size)
    if start >= end:
        return b""
    first, last = start // BLOCK, -(-end // BLOCK)
    file.seek(first * BLOCK)
    blocks = file.read(min(last * BLOCK, size) - first * BLOCK)
    file.seek(size + 4 * first)
    if _checksums(blocks) != file.read(4 * (last - first)):
        return None
    return blocks[start - first * BLOCK : end - first * BLOCK]


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    with open_own(folder / LOCK, 0o600) as file:
        lock(file)
        yield


def _remove_unless_used(path: Path) -> bool:
    """Remove a copy, or what a dead process left of one, unless somebody reads or writes it; return whether it went."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return True
    except OSError:  # a link: no copy of ours
        return False
    with file:
        try:
            if not try_lock(file):
                return False
        except OSError:  # no locks here: a copy that is open outlives its name, one that is being written needs it
            if path.suffix == PARTIAL:
                return False
        return unlink(path, file)
