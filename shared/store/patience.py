"""Puts to remote stores that end: a server that stalls is an error after a while, not a program that hangs.

Reading has the libraries' own timeouts. A put to S3 waits without any limit for the server to say that it may go on
(``Expect: 100-continue`` in aiohttp).
"""

from __future__ import annotations

from typing import Any

from fsspec.asyn import AsyncFileSystem, sync

PATIENCE_SECONDS = 300.0
"""So long a file may take to be written, attempts of the library included; a unit has tens of megabytes."""


def put(filesystem: Any, path: str, data: bytes, **options: Any) -> None:
    """Write a whole file by one call. Raises ``FSTimeoutError`` if that takes too long."""
    if isinstance(filesystem, AsyncFileSystem):
        sync(filesystem.loop, filesystem._pipe_file, path, data, timeout=PATIENCE_SECONDS, **options)
    else:
        filesystem.pipe_file(path, data, **options)
