"""The log of a run: a line of JSON a step, numbers and pictures for its tracker, curves and progress for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sum_factory.shared.images import RgbImage
from sum_factory.shared.progress import Stage
from sum_factory.shared.store.canonical_json import to_json
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.run.curves import draw_curves
from sum_factory.trainer.run.overview import ABOUT, LOG
from sum_factory.trainer.run.trackers import TrackedRun, open_tracker

CURVES = "curves.png"


@dataclass
class RunLog:
    """The log of the run in ``out``. Lines of steps after ``first``, left by a run that died, are dropped.

    ``about`` is what `trainer runs` tells of the run beside its steps, and ``settings`` all that decides its result.
    ``tracker`` names what else shows the run.
    """

    out: Path
    first: int
    steps: int
    what: str = "training"
    about: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    tracker: str = "tensorboard"
    _tracker: Any = None
    _file: Any = None
    _stage: Any = None

    def __enter__(self) -> Self:
        self.out.mkdir(parents=True, exist_ok=True)
        path, storage = self.out / LOG, Storage(str(self.out))
        lines = storage.read(LOG).decode().splitlines() if path.exists() else []
        steps = [_step_of(line) for line in lines]
        told = max((int(step) for step in steps if step < float("inf")), default=0)
        flat = flattened(self.settings)
        self._tracker = open_tracker(self.tracker, TrackedRun(self.out, self.first, told, {**self.about, **flat}))
        about = {"what": self.what, "steps": self.steps, **self.about, "settings": flat}
        storage.write(ABOUT, to_json(about))
        if path.exists():
            kept = [line for line, step in zip(lines, steps, strict=True) if step <= self.first]
            storage.write(LOG, "".join(f"{line}\n" for line in kept).encode())
        self._file = path.open("a", buffering=1)
        self._stage = Stage(self.what, self.steps, "step", self.first, seconds_each=True).__enter__()
        return self

    def step(self, step: int, values: Mapping[str, Any], waited: float) -> None:
        """Log a step. ``waited`` is the share of the time so far that was spent waiting for data."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._tracker.numbers(step, {**_by_name(values), "train/data_wait": waited})
        self._stage.reach(step, f"loss {values['loss']:.3f}, {100 * waited:.0f} % of the time waiting for data")

    def validation(self, step: int, scores: Mapping[str, float]) -> None:
        """Log the scores of a validation after ``step``."""
        self._file.write(json.dumps({"step": step, "validation": dict(scores)}) + "\n")
        self._tracker.numbers(step, {f"validation/{name}": value for name, value in scores.items()})

    def show(self, step: int, pictures: Mapping[str, RgbImage]) -> None:
        """Draw the curves up to ``step``, and give ``pictures``, uint8 (H, W, 3), to the tracker."""
        self._tracker.pictures(step, {f"samples/{name}": picture for name, picture in pictures.items()})
        Storage(str(self.out)).write(CURVES, draw_curves(read_log(self.out)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stage.__exit__(kind, error, traceback)
        self._file.close()
        self._tracker.close(failed=error is not None)


def read_log(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log."""
    return [json.loads(line) for line in (out / LOG).read_text().splitlines()]


def flattened(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return settings within settings by dotted keys; lists stay whole."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flattened(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = value
    return found


def _by_name(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a step by their names in a tracker; those of several rounds each by its round."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, int | float):
            found[f"train/{name}"] = value
        else:
            found |= {f"train/{name}_round_{number}": of_round for number, of_round in enumerate(value, 1)}
    return found


def _step_of(line: str) -> float:
    """Return the step of a line; infinity for a line that was cut short, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
