"""Locks that threads, and the processes of a machine, keep each other out with; they go when a process dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import portalocker
from portalocker import LockFlags

from sum_factory.shared.store.local_files import open_own


def lock(file: BinaryIO, *, shared: bool = False) -> None:
    """Wait until nobody else holds this open file, or with ``shared`` nobody who does not share it; closing frees it.

    Returns at once on a file system that has no locks.
    """
    with suppress(portalocker.LockException):
        portalocker.lock(file, LockFlags.SHARED if shared else LockFlags.EXCLUSIVE)


def try_lock(file: BinaryIO) -> bool:
    """Take this open file for oneself; False if another holds it. Raises ``OSError`` where there are no locks."""
    try:
        portalocker.lock(file, LockFlags.EXCLUSIVE | LockFlags.NON_BLOCKING)
    except portalocker.AlreadyLocked:
        return False
    except portalocker.LockException as error:
        raise OSError(f"{file.name}: cannot be locked ({error})") from error
    return True


@contextmanager
def writer_of(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open an empty file at ``path`` as its only writer, waiting for others; remove it unless it was renamed.

    Raises ``OSError``, also if a link is there: what it leads to is not ours to empty.
    """
    while True:
        file = open_own(path, mode)
        lock(file)
        if is_at(path, file):
            break
        file.close()  # its writer renamed or removed it meanwhile
    with file:
        try:
            file.truncate(0)  # one whose writer died
            yield file
        finally:
            unlink(path, file)


def is_at(path: Path, file: BinaryIO) -> bool:
    """Return whether an open file is still what its path names."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def unlink(path: Path, file: BinaryIO) -> bool:
    """Remove the open file's name; return whether that was still its own, and went."""
    if not is_at(path, file):
        return False
    try:
        path.unlink(missing_ok=True)
    except PermissionError:  # Windows keeps the name of what is open
        return False
    return True
