"""How busy GPUs were while a shard set was made: a small file for each worker, which it writes anew after each unit.

It is no part of any layer, and nothing is read from it but what people are told.
"""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

from sum_factory.shared.gpu.busy import Busy
from sum_factory.shared.store.storage import Storage

if TYPE_CHECKING:
    from sum_factory.shared.gpu.clock import BusyClock

FOLDER = "gpus"


class GpuRecord:
    """Writes down when the GPU of this worker had work. ``called`` is the GPU's name, ``clock`` measures."""

    def __init__(self, storage: Storage, called: str, clock: BusyClock) -> None:
        self.storage, self.called, self.clock = storage, called, clock
        self.path = f"{FOLDER}/{socket.gethostname()}-{os.getpid()}.json"
        self.total = Busy()

    def take(self) -> tuple[float, float]:
        """Return the seconds in which the GPU had work since the last time, and those that passed; write the file."""
        busy = self.clock.take()
        self.total += busy
        told = {"gpu": self.called, "busy_seconds": self.total.busy, "seconds": self.total.seconds}
        self.storage.write(self.path, json.dumps(told).encode())
        return busy.busy, busy.seconds


def gpus_line(storage: Storage) -> str | None:
    """Return what people are told of all GPUs that worked on a shard set; None if there were none."""
    found = [record for name in storage.names(FOLDER) if (record := _read(storage, f"{FOLDER}/{name}")) is not None]
    total = sum((Busy(record["busy_seconds"], record["seconds"]) for record in found), Busy())
    if not total.seconds:
        return None
    names = ", ".join(sorted({str(record["gpu"]) for record in found}))
    return f"GPUs ({names}): busy {total.share:.0%} of {total.seconds / 3600:.2f} h that they were at it"


def _read(storage: Storage, path: str) -> dict[str, Any] | None:
    """Return a record; None for a file that is none, which only people would have read."""
    try:
        record = json.loads(storage.read(path))
        return {"gpu": str(record["gpu"]), **{key: float(record[key]) for key in ("busy_seconds", "seconds")}}
    except (OSError, ValueError, KeyError, TypeError):
        return None
