"""Who may ask the server: those who have the token that is in the address of the page, from this machine."""

from __future__ import annotations

import hmac
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

HOSTS = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?")
"""What a browser calls this machine; a page of somebody else's, whose name leads here, calls it by that name."""
NO_TOKEN = "This address lacks the token of the page. Open the address that `labelgen view --serve` printed.\n"
NO_HOST = (
    "The server answers to 127.0.0.1 and localhost alone. On another machine, open a tunnel to it "
    "(ssh -L PORT:127.0.0.1:PORT MACHINE) and the address that `labelgen view --serve` printed.\n"
)
NO_ORIGIN = "This was asked by a page of another origin.\n"


@dataclass(frozen=True)
class Guard:
    """Lets through what comes with the token as the first component of its path, and takes it off.

    The names of the host, and of the page that asks, have to be those of this machine.
    """

    app: ASGIApp
    token: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it with status 403."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refused = self._refusal(scope)
        if refused is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await PlainTextResponse(refused, 403)(scope, receive, send)

    def _refusal(self, scope: MutableMapping[str, Any]) -> str | None:
        headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or not HOSTS.fullmatch(hosts[0]):
            return NO_HOST
        if any(value != f"http://{hosts[0]}" for name, value in headers if name == b"origin"):
            return NO_ORIGIN
        given, slash, rest = str(scope["path"]).removeprefix("/").partition("/")
        if scope["type"] != "http" or not slash or not hmac.compare_digest(given.encode(), self.token.encode()):
            return NO_TOKEN
        scope["path"] = f"/{rest}"
        scope["raw_path"] = scope["path"].encode()
        return None
