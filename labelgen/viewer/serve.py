"""Start the server of the page on this machine, and stop it."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

import click

from sum_factory.labelgen.viewer.shown_set import ShownSet
from sum_factory.shared.errors import SettingsError, StorageError
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.store.refusals import reason_of

HOST = "127.0.0.1"
CLOSE_SECONDS = 2
"""How long answers that are under way may take when the server is stopped."""
OpenSet = Callable[[], ShardSet]


def serve(open_sets: Sequence[OpenSet], port: int, layer: str | None) -> None:
    """Serve the page over one set, or two side by side, until Ctrl-C; the address is printed, with its token.

    ``port`` 0 takes any that is free. Raises ``SettingsError`` if the port is taken, ``ShardError`` if there is no set
    or no such layer.
    """
    import uvicorn

    from sum_factory.labelgen.viewer.app import Viewer, make_app

    first, *others = open_sets
    viewer = Viewer([ShownSet(first, layer), *map(ShownSet, others)])
    token = secrets.token_urlsafe(24)
    with listening(port) as listener:
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(viewer, token),
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
        )
        click.echo(f"open http://{HOST}:{listener.getsockname()[1]}/{token}/ in a browser; Ctrl-C ends it")
        with suppress(KeyboardInterrupt):  # the server has ended, and passes on what ended it
            server.run(sockets=[listener])
    click.echo("ended")


def listening(port: int) -> socket.socket:
    """Return a socket that listens on this machine alone. Raises ``SettingsError`` if its port is taken."""
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        if isinstance(error, PermissionError):
            raise SettingsError(f"--port {port}: not allowed to this user; give one above 1023") from error
        if isinstance(error, OSError) and error.errno is not None and port:
            raise SettingsError(
                f"--port {port}: taken, perhaps by another `labelgen view`; give another, or leave it out for one that "
                "is free"
            ) from error
        raise StorageError(f"cannot listen on {HOST} ({reason_of(error)})") from error
