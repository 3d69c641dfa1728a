"""Ask at an address whether a Ray cluster answers there, and whether it lets in everybody who asks.

Ray itself waits for minutes where something listens and does not answer, and then ends the process. So its first
question, for the id of the cluster, is put here before it starts: by gRPC over HTTP/2, without a token. Of what comes
back, only the kinds of frames are looked at, and whether a refusal is one for want of a token.
"""

from __future__ import annotations

import os
import queue
import socket
import ssl
import struct
import threading
import time
from typing import Literal

from sum_factory.shared.errors import WorkerError

ANSWER_SECONDS = 30.0
"""So long an address is waited for, in all."""
CONNECT_SECONDS = 10.0
"""So long each of the machines is waited for that a name stands for."""
LONGEST_REASON = 300
Door = Literal["open", "guarded"]
"""Whether a cluster answers those who have no token, or turns them away."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _AWAY = 0, 1, 3, 4, 7
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_LONGEST_FRAME = 1 << 14
_PATH = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_OF_GRPC, _WITHOUT_TOKEN = b"\x10application/grpc", b"\x0bgrpc-status\x0216"
"""In the headers of an answer, as Ray writes them: that it is one, and UNAUTHENTICATED."""


def require_cluster(address: str) -> Door:
    """Return whether the Ray cluster at ``host:port`` lets in those without a token.

    Raises ``WorkerError`` if none answers there within ``ANSWER_SECONDS``.
    """
    answers: queue.SimpleQueue[Door | Exception] = queue.SimpleQueue()
    begun = time.monotonic()
    threading.Thread(target=lambda: answers.put(_answer(address)), name="address", daemon=True).start()
    try:  # a thread can be left alone that waits for a name server, and nothing else ends that
        answer = answers.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        answer = TimeoutError()
    if isinstance(answer, TimeoutError):
        raise _no_cluster(address, f"nothing answers within {time.monotonic() - begun:.0f} s") from answer
    if isinstance(answer, Exception):
        raise _no_cluster(address, str(answer)) from answer
    return answer


def _answer(address: str) -> Door | Exception:
    host, _, port = address.rpartition(":")
    end = time.monotonic() + ANSWER_SECONDS
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
                return _ask(connection, end)
            connection.settimeout(ANSWER_SECONDS)
            with _with_tls(connection) as secured:
                _ask(secured, end)
            return "guarded"  # by certificates
    except (OSError, ValueError, OverflowError) as error:
        return error


def _with_tls(connection: socket.socket) -> socket.socket:
    """Return the connection with TLS, by the certificates that Ray takes, of both sides."""
    try:
        authority, certificate, key = (
            os.environ[f"RAY_TLS_{name}"] for name in ("CA_CERT", "SERVER_CERT", "SERVER_KEY")
        )
    except KeyError as error:
        raise ValueError(f"RAY_USE_TLS is set, and {error} is not") from None
    context = ssl.create_default_context(cafile=authority)
    context.check_hostname = False
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(connection)


def found_address(given: str) -> str:
    """Return the ``host:port`` of the cluster that ``--ray-address`` names.

    "auto" is the one that the environment names, else that of this machine. Raises ``WorkerError`` if there is none.
    """
    found = given
    if given == "auto":
        from ray._private.services import canonicalize_bootstrap_address_or_die

        try:
            found = str(canonicalize_bootstrap_address_or_die(os.environ.get("RAY_ADDRESS") or "auto"))
        except (ConnectionError, ValueError) as error:
            raise _no_cluster(given, str(error)) from error
    host, _, port = found.rpartition(":")
    if not host or "//" in host or not port.isdecimal():
        raise _no_cluster(found, "it has to be HOST:PORT, the port that `ray start --port` was given")
    return found


def shortened(why: str) -> str:
    """Return in one line, and not a long one, what a library tells."""
    return " ".join(why.split())[:LONGEST_REASON]


def _no_cluster(address: str, why: str) -> WorkerError:
    return WorkerError(
        f"no Ray cluster at {address!r} ({shortened(why)}); check --ray-address and that `ray start` was given there, "
        "or leave it out"
    )


def _ask(connection: socket.socket, end: float) -> Door:
    """Put the question; "open" if an answer comes, "guarded" if only a refusal does."""
    headers = {":method": "POST", ":scheme": "http", ":path": _PATH, ":authority": "ray"}
    headers |= {"content-type": "application/grpc", "te": "trailers"}
    message = bytes(5)  # not compressed, and empty
    connection.sendall(
        _PREFACE
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, 1, b"".join(_header(*header) for header in headers.items()))
        + _frame(_DATA, _END_STREAM, 1, message)
    )
    is_http2 = is_grpc = False
    while True:
        kind, flags, length = _frame_header(_read(connection, 9, end))
        if length > _LONGEST_FRAME or (kind != _SETTINGS and not is_http2):
            raise ValueError("what answers there is not Ray")
        payload = _read(connection, length, end)
        is_http2 = True
        if kind == _SETTINGS and not flags & _ACK:
            connection.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _HEADERS and _WITHOUT_TOKEN in payload:
            return "guarded"
        elif kind == _HEADERS and _OF_GRPC in payload and not flags & _END_STREAM:
            is_grpc = True
        elif kind == _DATA and is_grpc:
            return "open"
        elif kind in (_DATA, _HEADERS, _RESET, _AWAY):
            raise ValueError("what answers there is not Ray")


def _read(connection: socket.socket, count: int, end: float) -> bytes:
    data = b""
    while len(data) < count:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        received = connection.recv(count - len(data))
        if not received:
            raise ConnectionError("the connection was closed")
        data += received
    return data


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _frame_header(data: bytes) -> tuple[int, int, int]:
    """Return kind, flags and length of a frame."""
    return data[3], data[4], int.from_bytes(data[:3], "big")


def _header(name: str, value: str) -> bytes:
    """Return a header field as HPACK writes one that is neither in its table nor to be put there."""
    return b"\0" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    data = text.encode()
    assert len(data) < 127, "longer ones have their length in several bytes"
    return bytes([len(data)]) + data
