"""A training run, as every one goes: from the last checkpoint on, a line a step, a checkpoint now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol, TypeVar

from torch import Tensor

from sum_factory.shared.precision import Resolved
from sum_factory.trainer.distributed import ALONE, Ranks
from sum_factory.trainer.run.checkpoints import Checkpoints, Stateful
from sum_factory.trainer.run.log import RunLog

Samples = TypeVar("Samples", covariant=True)
Scores = tuple[float, Mapping[str, float]]
"""The score of a validation, the higher the better, and what to log of it."""


class Stream(Protocol[Samples]):
    """The samples of each step, which depend on the number of the step alone."""

    waited: float
    """Seconds in which a step waited for its samples, in all."""

    def steps(self, first: int, last: int) -> Iterator[Samples]:
        """Yield the samples of the steps ``first`` to ``last`` - 1, counted from 0."""
        ...


@dataclass(frozen=True)
class Run:
    """What is trained, for how long, and what decides the result.

    ``weights`` are those that a checkpoint holds, as ``state_dict`` gives them: changed in place by the optimizer.
    ``identity`` is what a resumed run is held to, ``header`` goes with the weights. Of several processes that share
    each step (``ranks``), the one that leads logs, validates and saves. ``what`` is what people are told is going on.
    """

    checkpoints: Checkpoints
    steps: int
    save_every: int
    weights: Mapping[str, Tensor]
    optimizer: Stateful
    identity: Mapping[str, Any]
    header: Mapping[str, Any]
    ranks: Ranks = ALONE
    what: str = "training"

    def resume(self, precision: Resolved) -> int:
        """Load the last checkpoint, if there is one; return how many steps are done. Raises as ``Checkpoints.find``."""
        return self.checkpoints.resume(self.steps, self.weights, self.optimizer, self.identity, precision)

    def go_on(
        self,
        first: int,
        stream: Stream[Samples],
        take_step: Callable[[Samples, int], Mapping[str, Any]],
        validate: Callable[[int], Scores | None] = lambda step: None,
    ) -> None:
        """Take the steps ``first`` + 1 to the last, if any are left.

        ``take_step(samples, step)`` returns what to log by name, ``loss`` among it; ``validate(step)``, called after
        each step, the score and what to log of a validation, if one is due. A checkpoint is saved with every score,
        too.
        """
        if first == self.steps:
            return
        log = RunLog(self.checkpoints.out, first, self.steps, self.what)
        started = time.perf_counter()
        with log if self.ranks.leads else nullcontext():
            for step, samples in enumerate(stream.steps(first, self.steps), first + 1):
                values = take_step(samples, step)
                if not self.ranks.leads:
                    continue
                log.step(step, values, stream.waited / (time.perf_counter() - started))
                validation = validate(step)
                if validation is not None:
                    log.validation(step, validation[1])
                if step % self.save_every == 0 or step == self.steps or validation is not None:
                    score = None if validation is None else validation[0]
                    self.checkpoints.save(step, self.weights, self.optimizer, self.identity, self.header, score)
        self.ranks.wait()


def software() -> str:
    """Return what trains, and its version, as the header of weights says it."""
    return f"sum-factory {version('sum-factory')}, torch {version('torch')}"
