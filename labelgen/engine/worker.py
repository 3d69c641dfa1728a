"""What runs in a Ray actor: a labeler, and what it tells while it works."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from sum_factory.labelgen.engine.scheduler import MAX_DEATHS, Assignment, WorkerId
from sum_factory.labelgen.job import ImageDone, Job, Notice, UnitReport
from sum_factory.shared.allocator import tune_malloc
from sum_factory.shared.sam.readings import READINGS
from sum_factory.shared.shards.dataset import Unit

if TYPE_CHECKING:
    from sum_factory.labelgen.labeler import Labeler

TELL_SECONDS = 1.0
"""A worker tells of its progress so often at most."""
BOARD_SECONDS = 60.0
"""So long a worker waits, at the end of a unit, until what it has told is on the board."""
log = logging.getLogger(__name__)


class WorkerAddress(NamedTuple):
    """Where a worker is: the id of its Ray node, the host and the process."""

    node: str
    host: str
    process: int
    weights: tuple[int, int] = (0, 0)
    """How often it has read files of SAM's weights, and how many bytes."""


class Answer(NamedTuple):
    """What a worker returns of an assignment: the report, if it was no probe, and the progress not told of before."""

    report: UnitReport | None
    progress: Sequence[ImageDone] = ()


class Board:
    """Collects the progress of all workers for the driver, which takes it once in a while."""

    def __init__(self) -> None:
        self.events: list[ImageDone | Notice] = []
        self.beats: dict[WorkerId, int] = {}

    def put(self, events: Sequence[ImageDone | Notice]) -> None:
        """Add what a worker tells."""
        self.events += events

    def beat(self, worker: WorkerId, done: int) -> None:
        """Note that a worker is alive and has done so much."""
        self.beats[worker] = done

    def take(self) -> tuple[list[ImageDone | Notice], dict[WorkerId, int]]:
        """Return what was added since the last time, and how much the workers had done that were heard of."""
        events, beats = self.events, self.beats
        self.events, self.beats = [], {}
        return events, beats


class Worker:
    """A labeler in an actor. A thread of it tells the board, every ``beat_seconds``, that the process is alive."""

    beat_seconds = 5.0

    def __init__(self, job: Job, board: Any, cpus: float, number: WorkerId) -> None:
        self.job = job
        self.board = board
        self.cpus = cpus
        self.number = number
        self.done = 0
        """Photos and parts of them that were done, and looks at whether photos that are away are back."""

    def _beat(self) -> None:
        while True:
            self.board.beat.remote(self.number, self.done)
            time.sleep(self.beat_seconds)

    def _advance(self) -> None:
        self.done += 1

    def _tell_waiting(self, text: str) -> None:
        """Have the driver say what this worker waits for: what it prints is in a file of its node."""
        import ray

        said = self.board.put.remote([Notice(f"{socket.gethostname()}: {text}", of_waiting=True)])
        ray.wait([said], timeout=TELL_SECONDS)  # or an error that follows may be there before it

    def start(self) -> WorkerAddress:
        """Begin to be heard of, and load the models: not in the constructor, whose errors Ray does not hand on as they
        are."""
        import ray

        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        self.labeler = self.load()
        node = ray.get_runtime_context().get_node_id()
        return WorkerAddress(node, socket.gethostname(), os.getpid(), READINGS.since())

    def load(self) -> Labeler:
        """Return a labeler that uses as many cores as there are CPUs for it."""
        from sum_factory.labelgen.labeler import Labeler

        tune_malloc()
        labeler = Labeler(self.job, max(1, int(self.cpus)))
        labeler.lanes.on_step = labeler.outages.on_look = self._advance
        labeler.outages.say = self._tell_waiting
        return labeler

    def work(self, assignment: Assignment, moved: Unit | None) -> Answer:
        """Label a unit, or try some of its images. ``moved`` is its plan if that is not the one in the shard set.

        When it returns, the board has what was told before, unless it does not answer.
        """
        import ray

        unit = moved or self.labeler.shards.unit(assignment.unit)
        log.info("unit %06d, attempt %d: begun", assignment.unit, assignment.attempt)
        if assignment.probe is not None:
            self.labeler.try_unit(unit, {**_left_out(unit, assignment), **_not_probed(unit, assignment.probe)})
            return Answer(None)
        untold: list[ImageDone] = []
        on_board: list[Any] = []
        last_told = time.monotonic()
        for event in self.labeler.label_unit(unit, _left_out(unit, assignment)):
            if isinstance(event, UnitReport):
                log.info("unit %06d, attempt %d: done", assignment.unit, assignment.attempt)
                ray.wait(on_board, num_returns=len(on_board), timeout=BOARD_SECONDS)
                return Answer(replace(event, attempt=assignment.attempt), untold)
            assert isinstance(event, ImageDone), "a labeler tells nothing else"
            untold.append(replace(event, unit=assignment.unit, attempt=assignment.attempt))
            if time.monotonic() - last_told >= TELL_SECONDS:
                on_board = [self.board.put.remote(untold)]  # after all that it was told before
                untold, last_told = [], time.monotonic()
        raise AssertionError("a labeler ends with its report")


def _left_out(unit: Unit, assignment: Assignment) -> dict[str, str]:
    """Say of each image that is left out why it has no labels: words that do not depend on where and when it killed."""
    images = [unit.images[index] for index in assignment.left_out]
    why = f"killed its worker {MAX_DEATHS} times, alone; look at it, or leave it out"
    return {image.key: f"{image.name}: {why}" for image in images}


def _not_probed(unit: Unit, probe: Sequence[int]) -> dict[str, str]:
    probed = set(probe)
    return {image.key: "not tried" for index, image in enumerate(unit.images) if index not in probed}
