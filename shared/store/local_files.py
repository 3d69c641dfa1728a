"""Files on a disk of this machine, opened and written without following what somebody may have planted there.

A shard set from somebody else may hold links, pipes and devices, and so may a folder that others can write to.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from sum_factory.shared.errors import StorageError

TEMPORARY_PREFIX = ".partial-"
"""Names of files that are being written start with this; nobody reads them, anybody may delete old ones."""
REMEDY_FOR_LINK = "a link, and nothing is written through one; put the folder itself there, or mount it"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_STREAMS = ("/dev/", "/proc/")


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
    for part in name.split("/")[:-1]:
        folder = os.path.join(folder, part)
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


def is_stream(out: Path) -> bool:
    """Whether what is written to ``out`` goes somewhere at once, as to a pipe, a device or ``/dev/stdout``."""
    if os.path.abspath(out).startswith(_STREAMS):
        return True
    try:
        mode = os.stat(out).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextmanager
def whole_file(out: Path) -> Iterator[BinaryIO]:
    """Give a file to write that becomes ``out`` when it is whole; a pipe or device at ``out`` is written into.

    Raises ``StorageError`` if that is refused. ``out`` stays as it was if anything is raised meanwhile.
    """
    try:
        with _stream_at(out) if is_stream(out) else _written_aside(Path(os.path.realpath(out))) as file:
            yield file
    except OSError as error:
        raise StorageError(f"cannot write {out}: {error.strerror}; check the path and the free space") from error


@contextmanager
def _stream_at(out: Path) -> Iterator[BinaryIO]:
    is_own = False
    with suppress(OSError):
        is_own = os.path.samestat(os.stat(out), os.fstat(1))
    with os.fdopen(os.dup(1), "wb") if is_own else open(out, "wb") as file:
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
