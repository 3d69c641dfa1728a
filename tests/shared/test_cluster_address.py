"""What is at the address of a Ray cluster is found out before Ray is asked, which would wait for minutes."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sum_factory.shared import progress
from sum_factory.shared.cluster import address as module
from sum_factory.shared.cluster import connect
from sum_factory.shared.cluster.address import found_address, require_cluster
from sum_factory.shared.errors import WorkerError
from sum_factory.shared.progress import Speaker

SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
AWAY = bytes([0, 0, 8, 7, 0, 0, 0, 0, 0]) + bytes(8)
PING = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + bytes(8)


def headers(content: bytes, flags: int) -> bytes:
    """Return a frame of headers: the status 200, and ``content`` as a Ray cluster writes it."""
    return (len(content) + 1).to_bytes(3, "big") + bytes([1, flags, 0, 0, 0, 1, 0x88]) + content


def refusal(status: int) -> bytes:
    """Return what a server of gRPC answers that refuses: headers, and the end of the stream."""
    told = b"\x0bgrpc-status" + bytes([len(str(status))]) + str(status).encode()
    return headers(b"@\x0ccontent-type\x10application/grpc\0" + told + b"\0\x0cgrpc-message\x02No", 5)


MESSAGE = bytes([0, 0, 5, 0, 0, 0, 0, 0, 1]) + bytes(5)
ANSWER = headers(b"@\x0ccontent-type\x10application/grpc", 4) + MESSAGE
UNAUTHENTICATED, UNIMPLEMENTED = 16, 12

Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """``serve(talk)`` has a server read what is asked, and talk to whoever connects; returns its address."""
    opened: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(talk: Callable[[socket.socket], None], reads: bool = True) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        opened.append(listener)

        def accept() -> None:
            try:
                client, _ = listener.accept()
                opened.append(client)
                if reads:
                    client.recv(4096)
                talk(client)
            except OSError:
                pass  # whoever connected has gone, or nobody ever has

        threads.append(threading.Thread(target=accept, daemon=True))
        threads[-1].start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    for one in list(opened):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)  # also wakes who waits in accept
    for thread in threads:
        thread.join(10)
    for one in opened:
        one.close()


def test_cluster_that_answers_without_a_token_is_open(serve: Serve) -> None:
    assert require_cluster(serve(lambda client: client.sendall(SETTINGS + PING + ANSWER))) == "open"


def test_cluster_that_turns_away_who_has_no_token_is_guarded(serve: Serve) -> None:
    assert require_cluster(serve(lambda client: client.sendall(SETTINGS + refusal(UNAUTHENTICATED)))) == "guarded"


def test_answers_come_in_any_pieces(serve: Serve) -> None:
    def talk(client: socket.socket) -> None:
        for byte in SETTINGS + ANSWER:
            client.sendall(bytes([byte]))

    assert require_cluster(serve(talk)) == "open"


def drip(client: socket.socket) -> None:
    while True:
        client.sendall(b"\0")
        time.sleep(0.05)


def repeat(client: socket.socket) -> None:
    while True:
        client.sendall(SETTINGS)
        time.sleep(0.05)


@pytest.mark.parametrize("talk", [lambda client: client.recv(1), repeat], ids=["silent", "settings and no answer"])
def test_what_does_not_answer_is_waited_for_so_long_and_no_longer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, talk: Callable[[socket.socket], None]
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.5)
    begun = time.monotonic()
    with pytest.raises(
        WorkerError, match=r"no Ray cluster at '127.*nothing answers within .* s\); check --ray-address"
    ):
        require_cluster(serve(talk))
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    "talk",
    [
        lambda client: client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
        lambda client: client.sendall(b"SSH-2.0-OpenSSH_9.6\r\n"),
        lambda client: client.sendall(SETTINGS + AWAY),
        lambda client: client.sendall(SETTINGS + refusal(UNIMPLEMENTED)),
        lambda client: client.sendall(SETTINGS + headers(b"@\x0ccontent-type\x09text/html", 4) + MESSAGE),
        lambda client: client.close(),
        drip,
    ],
    ids=["http", "ssh", "goes away", "other gRPC", "pages by HTTP/2", "closes", "drips"],
)
def test_what_is_not_ray_is_told(serve: Serve, talk: Callable[[socket.socket], None]) -> None:
    with pytest.raises(WorkerError, match=r"no Ray cluster at '127.*(not Ray|closed|reset)"):
        require_cluster(serve(talk))


def test_port_on_which_nobody_listens_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(WorkerError, match="refused"):
        require_cluster(free)


def test_name_server_that_does_not_answer_is_waited_for_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.2)
    end = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **others: end.wait(60) and [])
    with pytest.raises(WorkerError, match=r"no Ray cluster at 'head:6379' \(nothing answers within"):
        require_cluster("head:6379")
    end.set()


@pytest.mark.parametrize("given", ["head", "127.0.0.1", "ray://head:10001", "http://head:8265", ":6379", "head:x", ""])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(WorkerError, match=f"no Ray cluster at '{given}' .it has to be HOST:PORT"):
        found_address(given)


@pytest.mark.parametrize("given", ["head:6379", "[::1]:6379"])
def test_address_is_taken_as_it_is(given: str) -> None:
    assert found_address(given) == given


def test_auto_is_what_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.1.2.3:6379")
    assert found_address("auto") == "10.1.2.3:6379"


def test_auto_where_there_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: str) -> str:
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify the one to connect to")

    monkeypatch.setattr("ray._private.services.canonicalize_bootstrap_address_or_die", refuse)
    with pytest.raises(
        WorkerError, match=r"no Ray cluster at 'auto' \(Could not find any running Ray instance\. Please"
    ):
        found_address("auto")


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A certificate, with its key, and an environment that has Ray use it on both sides."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=ray"]
    command = ["openssl", "req", "-x509", *curve, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    named = {"CA_CERT": certificate, "SERVER_CERT": certificate, "SERVER_KEY": key}
    monkeypatch.setenv("RAY_USE_TLS", "1")
    for name, file in named.items():
        monkeypatch.setenv(f"RAY_TLS_{name}", str(file))
    return certificate


def test_cluster_with_tls_is_guarded_by_its_certificates(serve: Serve, certificate: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))

    def talk(client: socket.socket) -> None:
        with context.wrap_socket(client, server_side=True) as secured:
            secured.recv(4096)
            secured.sendall(SETTINGS + ANSWER)

    assert require_cluster(serve(talk, reads=False)) == "guarded"
    with pytest.raises(WorkerError, match=r"no Ray cluster at .*(SSL|TLS|closed|reset)"):
        require_cluster(serve(lambda client: client.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")))


def test_certificate_that_is_not_named_is_told(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.delenv("RAY_TLS_CA_CERT", raising=False)
    with pytest.raises(WorkerError, match="RAY_USE_TLS is set, and 'RAY_TLS_CA_CERT' is not"):
        require_cluster(serve(lambda client: None))


# What is said of it


@pytest.fixture
def joining(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``joining(door, error)`` joins a pretended cluster, whose door is found to be like that, and where Ray fails."""
    import ray

    def joining(door: str, error: Exception | None = None) -> None:
        def init(**options: object) -> None:
            assert options["address"] == "head:6379"
            if error is not None:
                raise error

        monkeypatch.setattr(progress, "SPEAKER", Speaker(timer=False))  # silent of stages that take no time
        monkeypatch.setattr(connect, "require_cluster", lambda address: door)
        for name, pretended in {"init": init, "nodes": list, "shutdown": lambda: None}.items():
            monkeypatch.setattr(ray, name, pretended)
        with connect.connected(connect.Workers(1, "head:6379")):
            pass

    return joining


@pytest.mark.parametrize("door", ["open", "guarded"])
def test_cluster_that_lets_everybody_in_is_told_of_in_one_line(
    joining: Callable[..., None], capsys: pytest.CaptureFixture[str], door: str
) -> None:
    joining(door)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == (door == "open")
    assert all("Ray at head:6379 has no token authentication" in line for line in told)


@pytest.mark.parametrize("door", ["open", "guarded"])
def test_why_a_cluster_cannot_be_joined_is_told(joining: Callable[..., None], door: str) -> None:
    with pytest.raises(WorkerError, match=r"cannot join the Ray cluster at 'head:6379' \(Failed to connect\)") as told:
        joining(door, ConnectionError("Failed\nto connect"))
    assert ("set RAY_AUTH_MODE=token" in str(told.value)) == (door == "guarded")
