"""The folder that a Ray which is started here works in, looked at before that: Ray would not say what is wrong."""

from __future__ import annotations

import os
import sys
import tempfile

from sum_factory.shared.errors import WorkerError

LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Bytes of the name of a socket, at most: a limit of the operating system (AF_UNIX)."""
_BELOW = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""What Ray puts behind the folder to name its longest socket."""
NEEDED = 8 << 20
"""Bytes that have to be free: Ray's own logs alone take as many."""


def ray_folder() -> str:
    """Return the folder that Ray takes for its sockets and logs: ``$RAY_TMPDIR``, ``$TMPDIR``, or ``/tmp``."""
    given = os.environ.get("RAY_TMPDIR") or (os.environ.get("TMPDIR") if sys.platform == "linux" else None)
    return given or ("/tmp" if sys.platform in ("linux", "darwin") else tempfile.gettempdir())


def require_ray_folder() -> None:
    """Raise ``WorkerError`` if Ray cannot work in its folder: its name is too long, or nothing can be written there."""
    folder = ray_folder()
    length = len(os.fsencode(folder + _BELOW))
    if length > LONGEST_SOCKET:
        raise WorkerError(
            f"{folder}: too long a name for Ray's sockets, {length} bytes with what Ray puts behind it, and "
            f"{LONGEST_SOCKET} at most; set RAY_TMPDIR to a folder with a shorter name, such as /tmp"
        )
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(NEEDED))
            file.flush()
    except OSError as error:
        raise WorkerError(
            f"{folder}: Ray cannot work there ({error.strerror}); free some space, or set RAY_TMPDIR to another folder"
        ) from error
