"""Workers that pretend to label: they write down what they do, hang and die as they are told."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sum_factory.labelgen.engine.worker import Board, Worker
from sum_factory.labelgen.job import Event, ImageDone, UnitReport
from sum_factory.shared.errors import StorageError
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.shards.dataset import Unit

IMAGES = 4
"""Images per unit."""


LONGEST_WAIT = 600.0
"""Seconds after which a test that waits fails, however busy the machine is."""


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LONGEST_WAIT
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError("what was waited for has not come")
        time.sleep(0.01)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Pretender:
    """Takes the place of a labeler: writes down what it does, in ``folder``, and does what files there tell it to."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.shards = self
        (self.folder / f"worker-{os.getpid()}").touch()

    def unit(self, number: int) -> Unit:
        return Unit(number, tuple(PhotoFile(f"{number}-{i}", f"/photos/{number}-{i}") for i in range(IMAGES)))

    def label_unit(self, unit: Unit, refused: Mapping[str, str]) -> Iterator[Event]:
        self.write(f"begun {unit.number}")
        for image in unit.images:
            self.look_at(image, refused)
            yield ImageDone(1, refused.get(image.key))
        self.write(f"done {unit.number}")
        yield UnitReport(unit.number, len(unit.images), IMAGES - len(refused), tuple(refused.values()))

    def try_unit(self, unit: Unit, refused: Mapping[str, str]) -> None:
        for image in unit.images:
            self.look_at(image, refused)

    def look_at(self, image: PhotoFile, refused: Mapping[str, str]) -> None:
        if image.key in refused:
            return
        what = self.folder / image.key
        wait_until(lambda: not (self.folder / "hold").exists())
        match what.read_text() if what.exists() else "":
            case "abort":
                os.abort()
            case "fail":
                raise ZeroDivisionError("division by zero")
            case "memory once":
                what.unlink()
                raise MemoryError("nothing left")
            case "memory":
                raise MemoryError("nothing left")
            case "hang once":
                what.unlink()
                time.sleep(LONGEST_WAIT)
            case "refuse":
                raise StorageError("cannot write there: No space left on device; free some")
            case "meet":
                wait_until(lambda: len(workers_in(self.folder)) > 1)
            case "":
                time.sleep(0.02)

    def write(self, line: str) -> None:
        with open(self.folder / "journal", "a") as journal:
            journal.write(f"{line}\n")


class Light(Worker):
    """A worker with a pretender."""

    def load(self) -> Any:
        return Pretender(self.job.shards)


class Lively(Light):
    """A worker that is heard of often, so that it need not be missed for long."""

    beat_seconds = 0.2


class HangsAtStart(Lively):
    """A worker that hangs while it loads its models, if it is the first."""

    def load(self) -> Any:
        hang = Path(self.job.shards) / "hang"
        if hang.exists():
            hang.unlink()
            time.sleep(LONGEST_WAIT)
        return super().load()


class HangsAtFirst(Board):
    """A board that does not answer, until it is started anew."""

    def take(self) -> Any:
        import ray

        if not ray.get_runtime_context().was_current_actor_reconstructed:
            time.sleep(LONGEST_WAIT)
        return super().take()


class DiesAtStart(Worker):
    """A worker that dies while it loads its models."""

    def load(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class DiesOfUnit1(Light):
    """A worker that unit 1 kills as a whole, but none of its images."""

    def work(self, assignment: Any, moved: Any) -> Any:
        if assignment.unit == 1 and assignment.probe is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().work(assignment, moved)


class DiesOfEverything(Light):
    """A worker that whatever it is given kills."""

    def work(self, assignment: Any, moved: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class TellsAndRefuses(Light):
    """A worker that says why it waits, and then cannot go on."""

    def work(self, assignment: Any, moved: Any) -> Any:
        self._tell_waiting("what it waits for")
        raise StorageError("cannot be helped")


def workers_in(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("worker-")) for path in folder.glob("worker-*")]
