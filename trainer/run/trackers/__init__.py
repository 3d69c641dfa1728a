"""Trackers: what shows the numbers and sample predictions of a run while it goes, by their own libraries.

The log of the run, ``log.jsonl``, has all numbers in any case. A run that goes on does so in the same run of its
tracker, and no step is there twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from sum_factory.shared.errors import SettingsError

if TYPE_CHECKING:
    from sum_factory.shared.images import RgbImage

TrackerName = Literal["tensorboard", "wandb", "mlflow", "none"]
TRACKERS: tuple[str, ...] = get_args(TrackerName)
PROJECT = "sum-factory"
"""The project of wandb, and the experiment of MLflow, unless their own variables of the environment name another."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run when it opens.

    ``out`` is its folder. It goes on after step ``first``; an earlier process may have told the tracker of steps up to
    ``told``, which are done again then. ``settings`` are all that decides the result, and what people call it.
    """

    out: Path
    first: int
    told: int
    settings: Mapping[str, Any]


class Tracker(Protocol):
    """Shows a run. It is closed when the run ends, or fails."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers of a step, by name."""

    def pictures(self, step: int, pictures: Mapping[str, RgbImage]) -> None:
        """Take pictures of a step, uint8 (H, W, 3), by name, and show all that it has so far."""

    def close(self, failed: bool) -> None:
        """Write what is left, and say how the run ended."""


class NoTracker:
    """Shows nothing."""

    def __init__(self, run: TrackedRun) -> None:
        """Take a run."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Pass numbers over."""

    def pictures(self, step: int, pictures: Mapping[str, RgbImage]) -> None:
        """Pass pictures over."""

    def close(self, failed: bool) -> None:
        """Do nothing."""


def require_tracker(name: str) -> None:
    """Raise ``SettingsError`` if there is no such tracker, or its library is not installed."""
    if name not in TRACKERS:
        raise SettingsError(f"tracker {name!r}: there is none; expected {', '.join(TRACKERS)}")
    spec = None if name == "none" else find_spec(name)
    if name != "none" and (spec is None or spec.origin is None):  # a folder of that name is no library
        raise SettingsError(
            f"tracker {name}: its library is not installed; pip install 'sum-factory[{name}]', or give --tracker none"
        )


def open_tracker(name: str, run: TrackedRun) -> Tracker:
    """Open a tracker for a run. Raises ``SettingsError`` as ``require_tracker``, and if it cannot go on there."""
    require_tracker(name)
    if name == "none":
        return NoTracker(run)
    made: Tracker = import_module(f"{__name__}.in_{name}").open_run(run)
    return made
