"""A training run, as every one goes: from the last checkpoint on, a line a step, a checkpoint now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from sum_factory.shared.precision import Resolved
from sum_factory.trainer.checkpoint import Checkpoints
from sum_factory.trainer.log import RunLog

Sample = TypeVar("Sample", covariant=True)
Scores = tuple[float, Mapping[str, float]]


class Stream(Protocol[Sample]):
    """The samples of each step, which depend on the number of the step alone."""

    waited: float
    """Seconds in which a step waited for its samples, in all."""

    def steps(self, first: int, last: int) -> Iterator[Sequence[Sample]]:
        """Yield the samples of the steps ``first`` to ``last`` - 1, counted from 0."""
        ...


@dataclass(frozen=True)
class Run:
    """What is trained, for how long, and what decides the result.

    ``weights`` are those that a checkpoint holds, as ``state_dict`` gives them: changed in place by the optimizer.
    ``identity`` is what a resumed run is held to, ``header`` goes with the weights. Of several processes that share
    each step, the one that ``leads`` logs and saves.
    """

    checkpoints: Checkpoints
    steps: int
    save_every: int
    weights: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    identity: Mapping[str, Any]
    header: Mapping[str, Any]
    leads: bool = True

    def resume(self, precision: Resolved) -> int:
        """Load the last checkpoint, if there is one; return how many steps are done. Raises as ``Checkpoints``."""
        return self.checkpoints.resume(self.steps, self.weights, self.optimizer, self.identity, precision)

    def go_on(
        self,
        first: int,
        stream: Stream[Sample],
        take_step: Callable[[Sequence[Sample], int], Mapping[str, Any]],
        validate: Callable[[int], Scores | None] = lambda step: None,
    ) -> None:
        """Take the steps ``first`` + 1 to the last.

        ``take_step(samples, step)`` returns what to log; ``validate(step)``, called after each step, the score and what
        to log of a validation, if one is due. A checkpoint is saved with every score, too.
        """
        self.checkpoints.out.mkdir(parents=True, exist_ok=True)
        log = RunLog(self.checkpoints.out, first, self.steps)
        started = time.perf_counter()
        with log if self.leads else nullcontext():
            for step, samples in enumerate(stream.steps(first, self.steps), first + 1):
                values = take_step(samples, step)
                if not self.leads:
                    continue
                log.step(step, values, stream.waited / (time.perf_counter() - started))
                validation = validate(step)
                if validation is not None:
                    log.validation(step, validation[1])
                if step % self.save_every == 0 or step == self.steps or validation is not None:
                    score = None if validation is None else validation[0]
                    self.checkpoints.save(step, self.weights, self.optimizer, self.identity, self.header, score)
