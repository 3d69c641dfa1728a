"""Files on a disk of this machine, opened and written without following what somebody may have planted there.

A shard set from somebody else may hold links, pipes and devices, and so may a folder that others can write to.
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from sum_factory.shared.deadlines import LIST_SECONDS, LOOK_SECONDS, within
from sum_factory.shared.errors import StorageError
from sum_factory.shared.store.refusals import reason_of

TEMPORARY_PREFIX = ".partial-"
"""Names of files that are being written start with this; nobody reads them, anybody may delete old ones."""
REMEDY_FOR_LINK = "a link, and nothing is written through one; put the folder itself there, or mount it"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_OWN = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
_OWN_NAMED = {"/dev/stdout": 1, "/dev/stderr": 2}
"""What this process has open already, by path and by number."""
_FLUSHED = 1 << 20
"""Bytes that are given to a pipe at a time."""


def open_regular(path: str | Path, *, follow: bool = False) -> BinaryIO:
    """Open a file to be read, if it is a regular one: no pipe to wait for, no device that never ends.

    Raises ``OSError``, also for a link, unless links are to be followed.
    """
    return os.fdopen(_opened(path, os.O_RDONLY | (0 if follow else _NO_LINK), 0), "rb")


def open_own(path: str | Path, mode: int) -> BinaryIO:
    """Open a regular file of a single name to be read and written, made with ``mode`` if there is none.

    Raises ``OSError``, also for a link, of whichever kind.
    """
    return os.fdopen(_opened(path, os.O_RDWR | os.O_CREAT | _NO_LINK, mode), "r+b")


def _opened(path: str | Path, flags: int, mode: int) -> int:
    file = os.open(path, flags | _NO_WAIT, mode)
    found = os.fstat(file)
    if stat.S_ISREG(found.st_mode) and (found.st_nlink <= 1 or not flags & os.O_RDWR):
        return file
    os.close(file)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file of one name", str(path))


def read_regular(path: str, start: int = 0, end: int | None = None) -> bytes:
    """Read a regular file, or its bytes ``start`` to ``end`` (exclusive), fewer if it ends before. Links are followed.

    Raises ``OSError``.
    """
    with open_regular(path, follow=True) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(start)
        return file.read(max(0, min(size, size if end is None else end) - start))


def require_no_links(root: str, name: str) -> None:
    """Raise ``OSError`` if a folder on the way from ``root``, which is a folder itself, to ``name`` in it is a link."""
    folder = root
    for folder_name in name.split("/")[:-1]:
        folder = os.path.join(folder, folder_name)
        try:
            if stat.S_ISLNK(os.lstat(folder).st_mode):
                raise OSError(errno.ELOOP, f"{folder} is {REMEDY_FOR_LINK}", folder)
        except FileNotFoundError:
            return


def require_replaceable(path: str) -> None:
    """Raise ``OSError`` if what is at a path is no file to be replaced: a device, a pipe, or a link to one."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(errno.EEXIST, "there is no regular file, which alone is replaced", path)


def make_private(folder: Path) -> None:
    """Make a folder that only this user may look into. Raises ``OSError`` if one is there that others may write to."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    here, found = os.lstat(folder), os.stat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if hasattr(os, "geteuid") and ({here.st_uid, found.st_uid} != {os.geteuid()} or found.st_mode & 0o022):
        raise PermissionError(errno.EPERM, "others may write to it; make it yours alone: chmod 700", str(folder))


def read_whole(path: Path, most: int = -1) -> bytes:
    """Read a file or pipe that the user named, up to ``most`` bytes. Who writes into the pipe is waited for a minute.

    Raises ``OSError``, also for a device or a socket.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "a device or socket, and no file", str(path))

    def read() -> bytes:
        with path.open("rb") as file:
            return file.read(most)

    return within(LOOK_SECONDS, f"who writes into {path}", read) if stat.S_ISFIFO(mode) else read()


def is_stream(out: Path) -> bool:
    """Whether what is written to ``out`` goes somewhere at once, as to a pipe, a device or ``/dev/stdout``."""
    if _own_number(out) is not None:
        return True
    try:
        mode = os.stat(out).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextmanager
def whole_file(out: Path) -> Iterator[BinaryIO]:
    """Give a file to write that becomes ``out`` when it is whole; a pipe or device at ``out`` is written into.

    Raises ``StorageError`` if that is refused, or if nobody reads from the pipe. ``out`` stays as it was if anything is
    raised meanwhile.
    """
    try:
        with _stream_at(out) if is_stream(out) else _written_aside(Path(os.path.realpath(out))) as file:
            yield file
    except OSError as error:
        raise StorageError(f"cannot write {out}: {reason_of(error)}; check the path and the free space") from error


def require_absent(out: Path) -> None:
    """Raise ``StorageError`` if something is at ``out`` already: a file, or a folder that is not empty."""
    if is_stream(out) or not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return
    raise StorageError(f"{out}: is there already, and nothing is written over; delete it, or give another path")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give a folder to write into that becomes ``out`` when it is whole: nothing may be there, or an empty folder.

    Raises ``StorageError`` if that is refused, or if something is there by then. Nothing is at ``out`` if anything is
    raised meanwhile.
    """
    out = Path(os.path.realpath(out))
    aside = out.with_name(f"{TEMPORARY_PREFIX}{out.name[:100]}-{secrets.token_hex(4)}")
    try:
        aside.mkdir(parents=True)
        yield aside
        require_absent(out)
        os.replace(aside, out)
    except OSError as error:
        raise StorageError(f"cannot write {out}: {reason_of(error)}; check the path and the free space") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def open_lines(out: Path) -> io.RawIOBase:
    """Open a file to append to, each write at once; a pipe or device at ``out`` is written into.

    Raises ``OSError`` if that is refused, or if nobody reads from the pipe.
    """
    return _sink_at(out) if is_stream(out) else open(out, "ab", buffering=0)


class _Sink(io.RawIOBase):
    """A pipe or device that is written into; a reader who takes nothing is waited for no longer than is told."""

    def __init__(self, descriptor: int, out: Path) -> None:
        self._descriptor, self._reader = descriptor, f"who reads from {out}"
        self._error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._error is not None:
            raise self._error  # a buffer tries once more when it is closed
        try:
            copy = bytes(data)
            return within(LIST_SECONDS, self._reader, lambda: os.write(self._descriptor, copy))
        except OSError as error:
            self._error = error
            raise

    def close(self) -> None:
        if not self.closed and self._error is None:  # else a thread may be in there
            os.close(self._descriptor)
        super().close()


def _sink_at(out: Path) -> _Sink:
    """Open what is written into. Raises ``OSError`` for what holds files, or has no reader in a minute."""
    number = _own_number(out)
    if number is not None:
        return _Sink(os.dup(number), out)
    mode = os.stat(out).st_mode
    if stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
        raise OSError(errno.EINVAL, "a socket or disk, and nothing is written into one", str(out))
    opened = within(LOOK_SECONDS, f"who reads from {out}", lambda: os.open(out, os.O_WRONLY | os.O_NOCTTY))
    return _Sink(opened, out)


def _own_number(out: Path) -> int | None:
    """Return the number by which this process has open what ``out`` names, None if it names no such thing."""
    path = os.path.abspath(out)
    found = _OWN.fullmatch(path)
    if found or path in _OWN_NAMED:
        return int(found[1]) if found else _OWN_NAMED[path]
    with suppress(OSError):
        if stat.S_ISFIFO(os.stat(out).st_mode) and os.path.samestat(os.stat(out), os.fstat(1)):
            return 1
    return None


@contextmanager
def _stream_at(out: Path) -> Iterator[BinaryIO]:
    with io.BufferedWriter(_sink_at(out), _FLUSHED) as file:
        yield file


@contextmanager
def _written_aside(out: Path) -> Iterator[BinaryIO]:
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f"{TEMPORARY_PREFIX}{out.name[:100]}-{secrets.token_hex(4)}")
    try:
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, out)
    finally:
        with suppress(OSError):
            aside.unlink()
