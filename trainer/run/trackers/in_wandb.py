"""A run in Weights & Biases. ``WANDB_MODE=offline`` keeps it in the run's folder until `wandb sync` sends it.

The server takes steps in their order alone, and offline nobody is there to compare; so steps that an earlier process
has told of are not told again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from typing import Any

import wandb

from sum_factory.shared.images import RgbImage
from sum_factory.trainer.run.trackers import PROJECT, TrackedRun
from sum_factory.trainer.run.trackers.ids import keep_id, known_id

NAME = "wandb"


class InWandb:
    """Sends to ``run``, wandb's own, what belongs to steps after ``told``."""

    def __init__(self, run: Any, told: int) -> None:
        self._run, self._told = run, told

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers of a step."""
        if step > self._told:
            self._run.log(dict(values), step=step)

    def pictures(self, step: int, pictures: Mapping[str, RgbImage]) -> None:
        """Send pictures of a step."""
        if step > self._told and pictures:
            self._run.log({name: wandb.Image(picture) for name, picture in pictures.items()}, step=step)

    def close(self, failed: bool) -> None:
        """Send what is left."""
        self._run.finish(exit_code=int(failed))


def open_run(run: TrackedRun) -> InWandb:
    """Begin a run, or go on with the one that this folder's run is there."""
    known = known_id(run.out, NAME)
    id = known or uuid.uuid4().hex[:16]
    keep_id(run.out, NAME, id)
    offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun")
    begun = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.out.name,
        id=id,
        resume=None if offline else "allow",
        dir=str(run.out),
        config=dict(run.settings),
    )
    return InWandb(begun, 0 if known is None else run.told)
