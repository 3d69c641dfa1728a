"""The log of a run: a line of JSON a step, numbers and pictures for TensorBoard, curves and progress for people."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from sum_factory.shared.images import RgbImage
from sum_factory.shared.progress import Stage
from sum_factory.shared.store.canonical_json import to_json
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.run.curves import draw_curves
from sum_factory.trainer.run.overview import ABOUT, LOG

CURVES = "curves.png"
FLUSH_SECONDS = 30
"""How long numbers wait, at most, until TensorBoard can read them."""


@dataclass
class RunLog:
    """The log of the run in ``out``. Lines of steps after ``first``, left by a run that died, are dropped.

    ``about`` is what `trainer runs` tells of the run beside its steps.
    """

    out: Path
    first: int
    steps: int
    what: str = "training"
    about: Mapping[str, Any] = field(default_factory=dict)
    _writer: Any = None
    _file: Any = None
    _stage: Any = None

    def __enter__(self) -> Self:
        self.out.mkdir(parents=True, exist_ok=True)
        path, storage = self.out / LOG, Storage(str(self.out))
        storage.write(ABOUT, to_json({"what": self.what, "steps": self.steps, **self.about}))
        if path.exists():
            kept = [line for line in storage.read(LOG).decode().splitlines() if _step_of(line) <= self.first]
            storage.write(LOG, "".join(f"{line}\n" for line in kept).encode())
        self._file = path.open("a", buffering=1)
        events = self.out / "tensorboard"
        _wait_to_come_after(events)
        self._writer = SummaryWriter(str(events), purge_step=self.first + 1, flush_secs=FLUSH_SECONDS)
        self._stage = Stage(self.what, self.steps, "step", self.first, seconds_each=True).__enter__()
        return self

    def step(self, step: int, values: Mapping[str, Any], waited: float) -> None:
        """Log a step. ``waited`` is the share of the time so far that was spent waiting for data."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"train/{name}", value, step)
            else:
                for number, of_round in enumerate(value, 1):
                    self._writer.add_scalar(f"train/{name}_round_{number}", of_round, step)
        self._writer.add_scalar("train/data_wait", waited, step)
        self._stage.reach(step, f"loss {values['loss']:.3f}, {100 * waited:.0f} % of the time waiting for data")

    def validation(self, step: int, scores: Mapping[str, float]) -> None:
        """Log the scores of a validation after ``step``."""
        self._file.write(json.dumps({"step": step, "validation": dict(scores)}) + "\n")
        for name, value in scores.items():
            self._writer.add_scalar(f"validation/{name}", value, step)

    def show(self, step: int, pictures: Mapping[str, RgbImage]) -> None:
        """Draw the curves up to ``step``, and give ``pictures``, uint8 (H, W, 3), to TensorBoard."""
        for name, picture in pictures.items():
            self._writer.add_image(f"samples/{name}", picture, step, dataformats="HWC")
        self._writer.flush()
        Storage(str(self.out)).write(CURVES, draw_curves(read_log(self.out)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stage.__exit__(kind, error, traceback)
        self._writer.close()
        self._file.close()


def read_log(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log."""
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]


def _wait_to_come_after(events: Path) -> None:
    """Wait, less than a second, until a new file of events gets a name that sorts after those in the folder ``events``.

    TensorBoard reads files in the order of their names, which hold whole seconds; in the wrong order, steps that were
    done again would be shown as they were before.
    """
    now = time.time()
    if any(path.name.startswith(f"events.out.tfevents.{int(now):010d}.") for path in events.glob("events.*")):
        time.sleep(1 - now % 1)


def _step_of(line: str) -> float:
    """Return the step of a line; infinity for a line that was cut short, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
