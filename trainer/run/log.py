"""The log of a run: a line of JSON for each step, the same numbers for TensorBoard, and the progress for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from sum_factory.shared.progress import Stage
from sum_factory.shared.store.storage import Storage

LOG = "log.jsonl"


@dataclass
class RunLog:
    """The log of the run in ``out``. Lines of steps after ``first``, left by a run that died, are dropped."""

    out: Path
    first: int
    steps: int
    what: str = "training"
    _writer: Any = None
    _file: Any = None
    _stage: Any = None

    def __enter__(self) -> Self:
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / LOG
        if path.exists():
            kept = [
                line for line in Storage(str(self.out)).read(LOG).decode().splitlines() if _step_of(line) <= self.first
            ]
            Storage(str(self.out)).write(LOG, "".join(f"{line}\n" for line in kept).encode())
        self._file = path.open("a", buffering=1)
        self._writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.first + 1)
        self._stage = Stage(self.what, self.steps, "step", self.first, seconds_each=True).__enter__()
        return self

    def step(self, step: int, values: Mapping[str, Any], waited: float) -> None:
        """Log a step. ``waited`` is the share of the time so far that was spent waiting for data."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"train/{name}", value, step)
            else:
                for number, part in enumerate(value, 1):
                    self._writer.add_scalar(f"train/{name}_round_{number}", part, step)
        self._writer.add_scalar("train/data_wait", waited, step)
        self._stage.reach(step, f"loss {values['loss']:.3f}, {100 * waited:.0f} % of the time waiting for data")

    def validation(self, step: int, scores: Mapping[str, float]) -> None:
        """Log the scores of a validation after ``step``."""
        self._file.write(json.dumps({"step": step, "validation": dict(scores)}) + "\n")
        for name, value in scores.items():
            self._writer.add_scalar(f"validation/{name}", value, step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stage.__exit__(kind, error, traceback)
        self._writer.close()
        self._file.close()


def read_log(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log."""
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]


def _step_of(line: str) -> float:
    """Return the step of a line; infinity for a line that was cut short, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
