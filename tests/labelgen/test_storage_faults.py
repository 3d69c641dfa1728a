"""Disks fill up and object stores fail: the same command goes on to the same bytes."""

from __future__ import annotations

import random
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import fsspec
import pytest
import s3fs

from sum_factory.shared.errors import StorageError, UnreachableError
from sum_factory.shared.store import patience
from undisturbed import Finished, Label, Snapshot, require_undisturbed

# A disk fills up


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """``small_disk(bytes)`` mounts a file system of that size, or gives the mounted one that size."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int) -> Path:
        again = ["-o", f"remount,size={size}"] if place.is_mount() else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        try:
            done = subprocess.run(["mount", *again, str(place)], capture_output=True)
        except FileNotFoundError:
            pytest.skip("no mount command")
        if done.returncode:
            pytest.skip("not allowed to mount a file system")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_disk_that_is_full_is_named_and_when_it_has_room_the_run_goes_on(
    photos: Path, finished: Finished, tmp_path: Path, label: Label, snapshot: Snapshot,
    small_disk: Callable[[int], Path], workers: int,
) -> None:  # fmt: skip
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in finished[0].rglob("*") if path.is_file())
    shards = small_disk(size - 3 * 4096) / "shards"
    with pytest.raises(StorageError, match=rf"cannot write {shards}/.*: No space left on device; .*free space"):
        label(photos, shards, workers=workers)
    whole, left = snapshot(finished[0]), snapshot(shards)
    assert left == {name: whole[name] for name in left}
    small_disk(10 * size)
    label(photos, shards)
    require_undisturbed(shards, finished[0], snapshot)


# An object store fails


Fault = Literal["", "refuse", "stall", "drop"]
LONGEST_STALL = 20.0
"""Seconds: as long as the busiest machine may take for one answer."""


class BadNetwork:
    """Stands between a client and a server on this machine, and does to connections what ``fault`` says.

    It refuses them, lets them wait for ever, or cuts those that have carried some bytes; of ``share`` of them, chosen
    by a seed.
    """

    def __init__(self, server: tuple[str, int], seed: int = 0) -> None:
        self.server, self.chance = server, random.Random(seed)
        self.fault: Fault = ""
        self.share = 1.0
        self.faults: Counter[str] = Counter()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.sockets: list[socket.socket] = []
        self.threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *values: Any) -> None:
        self.threads.append(threading.Thread(target=work, args=values))
        self.threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.sockets.append(client)
            fault = self.fault if self.chance.random() < self.share else ""
            self.faults[fault] += 1
            if fault == "refuse":
                client.close()
            elif fault != "stall":
                server = socket.create_connection(self.server)
                self.sockets.append(server)
                limit = self.chance.randrange(20, 2000) if fault == "drop" else None
                self._start(self._carry, client, server, None)
                self._start(self._carry, server, client, limit)

    def _carry(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        carried = 0
        try:
            while (data := source.recv(65536)) and (limit is None or carried < limit):
                sink.sendall(data if limit is None else data[: limit - carried])
                carried += len(data)
        except OSError:
            pass
        shut(source, sink)

    def cut(self) -> None:
        """Close every connection that there is."""
        shut(*self.sockets)

    def close(self) -> None:
        shut(self.listener)
        self.cut()
        for thread in self.threads:
            thread.join()
        for end in (self.listener, *self.sockets):
            end.close()


def shut(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):  # the other side was first
            end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def network(object_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[BadNetwork]:
    """A bad network in front of the object store."""
    host, port = object_store.removeprefix("http://").split(":")
    network = BadNetwork((host, int(port)))
    monkeypatch.setenv("AWS_ENDPOINT_URL", network.url)
    s3fs.S3FileSystem.clear_instance_cache()
    yield network
    network.close()
    s3fs.S3FileSystem.clear_instance_cache()


def impatient(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Have clients try everything once, and wait no longer than ``LONGEST_STALL`` where nobody answers."""
    if fault == "stall":  # with the others there is nothing to wait for, and a busy machine may take its time
        timeouts = {"connect_timeout": LONGEST_STALL, "read_timeout": LONGEST_STALL}
        monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": timeouts})
        monkeypatch.setattr(patience, "PATIENCE_SECONDS", LONGEST_STALL)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    ("fault", "seed"),
    [(fault, seed) if seed == 0 and fault == "drop" else pytest.param(fault, seed, marks=pytest.mark.long)
     for fault in ("refuse", "drop") for seed in range(5)],
)  # fmt: skip
def test_connections_that_fail_now_and_then_are_tried_again(
    photos: Path, bucket: str, finished: Finished, label: Label, download: Callable[[str], dict[str, bytes]],
    network: BadNetwork, fault: Fault, seed: int,
) -> None:  # fmt: skip
    network.chance.seed(seed)
    network.fault, network.share = fault, 0.1
    label(photos, f"{bucket}/shards")
    assert network.faults[fault] > 0
    network.fault = ""
    assert download(f"{bucket}/shards") == bytes_of(finished[0])


@pytest.mark.parametrize(
    "fault", ["refuse", pytest.param("stall", marks=pytest.mark.long), pytest.param("drop", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("photos_too", [False, pytest.param(True, marks=pytest.mark.long)])
def test_store_that_fails_in_mid_run_is_named_and_the_same_command_goes_on(
    photos: Path, bucket: str, finished: Finished, label: Label, download: Callable[[str], dict[str, bytes]],
    upload: Callable[[Path, str], None], network: BadNetwork, monkeypatch: pytest.MonkeyPatch, fault: Fault,
    photos_too: bool,
) -> None:  # fmt: skip
    images = f"{bucket}/photos" if photos_too else photos
    if photos_too:
        upload(photos, images)
    commit_of_unit_0 = "manifest/masks/000000.parquet"
    with monkeypatch.context() as patch:
        impatient(patch, fault)
        break_after(patch, commit_of_unit_0, network, fault)
        with pytest.raises((StorageError, UnreachableError), match=r"s3://.*; check "):
            label(images, f"{bucket}/shards")
    network.fault = ""
    network.cut()
    s3fs.S3FileSystem.clear_instance_cache()
    whole, left = bytes_of(finished[0]), download(f"{bucket}/shards")
    assert commit_of_unit_0 in left
    assert len(left) < len(whole)
    summary = label(images, f"{bucket}/shards")
    assert (summary.units_before, summary.errors) == (1, ())
    assert without_plans(download(f"{bucket}/shards")) == without_plans(whole)


def break_after(patch: pytest.MonkeyPatch, name: str, network: BadNetwork, fault: Fault) -> None:
    """Have the network fail right after a file has been created."""
    from sum_factory.shared.store.storage import Storage

    create = Storage.create

    def create_and_break(self: Storage, file: str, data: bytes) -> bool:
        created = create(self, file, data)
        if file == name:
            network.fault, network.share = fault, 1.0
            network.cut()
        return created

    patch.setattr(Storage, "create", create_and_break)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_plans(files: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out the plans, which say where the photos are."""
    return {name: data for name, data in files.items() if not name.startswith("units/")}
