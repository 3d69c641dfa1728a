"""A folder on a local disk that one writer holds at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sum_factory.shared.store.storage import Storage


@contextmanager
def held(storage: Storage) -> Iterator[None]:
    """Keep all others out who hold this folder: threads, and processes of this machine.

    A folder that is not there, or on a file system that cannot be locked, such as an object store, is not held.
    """
    path = storage.local_folder
    if path is None or not os.path.isdir(path):
        yield
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)  # and with it the lock, as when the process dies
