"""Label unit after unit in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from sum_factory.labelgen.engine.stop import Stop
from sum_factory.labelgen.job import Begun, Event, ImageDone, Job, Units, WeightsRead
from sum_factory.labelgen.labeler import Labeler
from sum_factory.shared.allocator import tune_malloc
from sum_factory.shared.errors import SumError, WorkerError
from sum_factory.shared.sam.checkpoint import SamWeights
from sum_factory.shared.sam.readings import READINGS
from sum_factory.shared.shards.dataset import Unit
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shortages import is_shortage

IDLE_SECONDS = 0.05


@dataclass(frozen=True)
class SerialExecutor:
    """Labels units in order, with one model, in this process, on so many cores.

    ``weights`` are those of the job's SAM, if they have been read; ``readings`` is how many files
    of weights this process had read before the run, and how many bytes.
    """

    job: Job
    cores: int = 1
    weights: SamWeights | None = None
    readings: tuple[int, int] = (0, 0)

    def run(self, units: Units, stop: Stop) -> Iterator[Event]:
        """Label ``units``; a stop is heeded between units, and when it is overdue between images."""
        tune_malloc()
        threads = torch.get_num_threads()
        try:
            labeler = Labeler(self.job, self.cores, self.weights)
            labeler.outages.is_stopping = lambda: stop.is_requested
            yield WeightsRead(f"process {os.getpid()}", *READINGS.since(*self.readings))
            yield from in_order(labeler, units, stop)
        finally:
            torch.set_num_threads(threads)


class UnitMaker(Protocol):
    """Makes what a unit lacks of a job's layers, and commits it."""

    shards: ShardSet

    def label_unit(self, unit: Unit) -> Iterator[Event]: ...


def in_order(maker: UnitMaker, units: Units, stop: Stop) -> Iterator[Event]:
    """Make unit after unit; a stop is heeded between units, and when it is overdue between images.

    Raises ``WorkerError`` if memory, open files or threads are short.
    """
    for number in units.numbers():
        if stop.is_requested:
            return
        if number is None:
            time.sleep(IDLE_SECONDS)  # until a unit is planned
            continue
        yield Begun(number, 1, f"process {os.getpid()}")
        try:
            for event in maker.label_unit(units.moved.get(number) or maker.shards.unit(number)):
                yield replace(event, unit=number) if isinstance(event, ImageDone) else event
                if stop.is_overdue:
                    return
        except Exception as error:
            if isinstance(error, SumError) or not is_shortage(error):
                raise
            why = f"not enough memory, open files or threads ({error})"
            raise WorkerError(f"unit {number:06d}: {why}; {REMEDY_FOR_MEMORY}") from error


REMEDY_FOR_MEMORY = (
    "give the process more, or a smaller --unit-size or --sam; with --workers 1 or more, a single image that needs too "
    "much is found and named"
)
