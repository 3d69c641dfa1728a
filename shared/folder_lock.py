"""A folder on a local disk that one writer holds at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import fsspec

from shared.storage import Storage


@contextmanager
def held(storage: Storage) -> Iterator[None]:
    """Keep all others out who hold this folder: threads, and processes of this machine.

    A folder that is not there, or on a file system that cannot be locked, such as an object store, is not held.
    """
    path = fsspec.core.url_to_fs(storage.url)[1]
    if not storage.is_local or not os.path.isdir(path):
        yield
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)  # and with it the lock, as when the process dies
