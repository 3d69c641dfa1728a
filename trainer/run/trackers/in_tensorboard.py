"""A run in TensorBoard: files of events in its folder. Steps that are done again replace those that were there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from sum_factory.shared.images import RgbImage
from sum_factory.trainer.run.trackers import TrackedRun

FOLDER = "tensorboard"
FLUSH_SECONDS = 30
"""How long numbers wait, at most, until TensorBoard can read them."""


class InTensorBoard:
    """Writes events; ``writer`` is torch's."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, step: int, pictures: Mapping[str, RgbImage]) -> None:
        """Write pictures, and have TensorBoard see all that was written."""
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, step, dataformats="HWC")
        self._writer.flush()

    def close(self, failed: bool) -> None:
        """Close the file of events."""
        self._writer.close()


def open_run(run: TrackedRun) -> InTensorBoard:
    """Begin a file of events in the run's folder, before which steps after ``run.first`` count no more."""
    events = run.out / FOLDER
    _wait_to_come_after(events)
    return InTensorBoard(SummaryWriter(str(events), purge_step=run.first + 1, flush_secs=FLUSH_SECONDS))


def _wait_to_come_after(events: Path) -> None:
    """Wait, less than a second, until a new file of events gets a name that sorts after those in the folder ``events``.

    TensorBoard reads files in the order of their names, which hold whole seconds; in the wrong order, steps that were
    done again would be shown as they were before.
    """
    now = time.time()
    if any(path.name.startswith(f"events.out.tfevents.{int(now):010d}.") for path in events.glob("events.*")):
        time.sleep(1 - now % 1)
