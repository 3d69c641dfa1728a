"""How every training goes: resume from the last checkpoint, take the steps, log each, validate and save."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol, TypeVar

from torch import Tensor

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.images import RgbImage
from sum_factory.shared.precision import Resolved
from sum_factory.trainer.run.checkpoints import Checkpoints, Stateful
from sum_factory.trainer.run.distributed import ALONE, Ranks
from sum_factory.trainer.run.log import RunLog
from sum_factory.trainer.run.sharding import gathered

Samples = TypeVar("Samples", covariant=True)
Scores = tuple[float, Mapping[str, float]]
"""The score of a validation, the higher the better, and what to log of it."""


class Stream(Protocol[Samples]):
    """The samples of each step; they depend on the number of the step alone."""

    waited: float
    """Seconds that steps have waited for their samples so far."""

    def steps(self, first: int, last: int) -> Iterator[Samples]:
        """Yield the samples of the steps ``first`` to ``last`` - 1, counted from 0."""
        ...


@dataclass(frozen=True)
class Run:
    """What is trained, for how many steps, and where it is saved.

    ``weights`` and ``optimizer`` are the state that a checkpoint holds; resuming changes both in place. ``identity`` is
    all that decides the result: a run can only be resumed with the same. ``header`` is written into the files of
    weights. If several processes share each step (``ranks``), all of them validate, and the one that leads logs and
    saves. ``what`` names the work in messages of progress, ``about`` says of it what `trainer runs` tells beside the
    steps: its method, variant, data, and the name of the logged value that is the score. ``tracker`` names what shows
    the run while it goes.
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
    about: Mapping[str, Any] = field(default_factory=dict)
    tracker: str = "tensorboard"

    def resume(self, precision: Resolved) -> int:
        """Load the last checkpoint, if there is one; return how many steps are done.

        Raises as ``Checkpoints.find``, and ``CheckpointError`` if processes see different checkpoints.
        """
        found = self.ranks.gather(self.checkpoints.find(self.steps, self.identity, precision))
        if len({*found}) > 1:
            steps = ", ".join(map(str, found))
            raise CheckpointError(
                f"{self.checkpoints.out}: processes find checkpoints of different steps ({steps}); "
                "give an --out folder that all nodes share"
            )
        return self.checkpoints.resume(self.steps, self.weights, self.optimizer, self.identity, precision)

    def go_on(
        self,
        done: int,
        stream: Stream[Samples],
        take_step: Callable[[Samples, int], Mapping[str, Any]],
        validate: Callable[[int], Scores | None] = lambda step: None,
        show: Callable[[int], Mapping[str, RgbImage]] = lambda step: {},
    ) -> None:
        """Take the steps that are left when ``done`` are done, ``done`` + 1 to the last.

        ``take_step(samples, step)`` returns the values to log by name, among them ``loss``. ``validate(step)`` is
        called after each step; it returns the score and the values to log, or None if no validation is due. Each
        validation saves a checkpoint, too. ``show(step)`` is called after each checkpoint; it returns pictures by name.
        """
        if done == self.steps:
            return
        out, settings = self.checkpoints.out, self.identity
        log = RunLog(out, done, self.steps, self.what, self.about, settings, self.tracker)
        started = time.perf_counter()
        with log if self.ranks.leads else nullcontext():
            for step, values in self._take(done, self.steps, stream, take_step):
                if self.ranks.leads:
                    log.step(step, values, stream.waited / (time.perf_counter() - started))
                validation = validate(step)
                if validation is not None and self.ranks.leads:
                    log.validation(step, validation[1])
                if step % self.save_every == 0 or step == self.steps or validation is not None:
                    self._save(step, None if validation is None else validation[0])
                    pictures = show(step)
                    if self.ranks.leads:
                        log.show(step, pictures)
        self.ranks.wait()

    def rehearse(
        self, done: int, stream: Stream[Samples], take_step: Callable[[Samples, int], Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """Take the step that follows ``done`` steps as ``go_on`` does; log and save nothing, and return its values."""
        [(_, values)] = self._take(done, done + 1, stream, take_step)
        return values

    @staticmethod
    def _take(
        done: int, last: int, stream: Stream[Samples], take_step: Callable[[Samples, int], Mapping[str, Any]]
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Take the steps ``done`` + 1 to ``last``; yield the number of each and the values to log."""
        for step, samples in enumerate(stream.steps(done, last), done + 1):
            yield step, take_step(samples, step)

    def _save(self, step: int, score: float | None) -> None:
        """Write a checkpoint; all processes bring together what is spread over them."""
        weights, moments = (gathered(each, self.ranks) for each in (self.weights, self.optimizer.state_dict()))
        if self.ranks.leads:
            self.checkpoints.save(step, weights, moments, self.identity, self.header, score)


def software() -> str:
    """Return the versions of this package and of PyTorch, for the header of weights."""
    return f"sum-factory {version('sum-factory')}, torch {version('torch')}"
