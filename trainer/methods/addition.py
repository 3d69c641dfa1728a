"""What a method adds to a step: what the student is shown, how its rounds are judged, and what is done after the step.

A class here or in a module beside it is all of a method beside its entry in ``METHODS``. It has no part in the training
loop: ``train_step`` asks it for the lesson of each micro-batch, and tells it when a step is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sum_factory.shared.precision import autocast
from sum_factory.shared.sam.task_prompt import TaskPrompt
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.batch import Batch, collate
from sum_factory.trainer.data.samples import TrainingSample
from sum_factory.trainer.interactive import Judge, Targets, judge_round
from sum_factory.trainer.randomness import generator_of
from sum_factory.trainer.run.checkpoints import Stateful
from sum_factory.trainer.run.distributed import Ranks

if TYPE_CHECKING:
    from sum_factory.trainer.recipe import Recipe

ADDED = "addition"
"""Where the state of what a method adds lies beside the optimizer's in a checkpoint."""


@dataclass(frozen=True)
class Student:
    """The model that is trained, with its task prompt if the method has one, and the recipe."""

    sam: Sam
    task_prompt: TaskPrompt | None
    recipe: Recipe

    def collate(self, samples: Sequence[TrainingSample]) -> Batch | None:
        """Make a batch of the samples that have masks; None if there are none."""
        return collate(samples, self.sam, self.recipe.stride, self.recipe.seed)

    def random(self, what: str, sample: TrainingSample) -> torch.Generator:
        """Return the generator of ``what`` is drawn for a sample: it depends on nothing else."""
        return generator_of(self.recipe.seed, what, sample.id.stream, sample.id.epoch, sample.id.index)

    def autocast(self) -> AbstractContextManager[object]:
        """Compute in the precision of the run."""
        return autocast(self.sam.device.type, self.recipe.computed_in)


@dataclass(frozen=True)
class Lesson:
    """A batch for the student, how its rounds are judged, and a loss of its embeddings (B, C, g, g) if there is one."""

    batch: Batch
    judge: Judge = judge_round
    extra: Callable[[Tensor], Tensor] | None = None


class Addition:
    """Adds nothing. What adds something is a subclass.

    What ``state_dict`` returns goes into checkpoints, so that a run that is resumed goes on with the same.
    """

    companion: nn.Module | None = None
    """What is trained beside the student, by the loss of the lessons' embeddings."""

    def __init__(self, student: Student, settings: Any) -> None:
        self.student, self.settings = student, settings

    def lesson(self, samples: Sequence[TrainingSample], step: int) -> Lesson | None:
        """Return the lesson of a micro-batch, on the training device, of a step counted from 1; None without masks."""
        batch = self.student.collate(samples)
        return None if batch is None else Lesson(batch)

    def after_step(self, step: int, ranks: Ranks) -> None:
        """Do what is due after the optimizer's ``step``: the weights of all processes are equal then."""

    def final(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights that the run ends with."""
        return weights

    def state_dict(self) -> dict[str, Any]:
        """Return what is neither in the weights nor in the recipe; empty if there is nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Go back to such a state."""


@dataclass(frozen=True)
class Together:
    """The optimizer and what a method adds, as one state of a checkpoint."""

    optimizer: torch.optim.Optimizer
    addition: Addition

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both."""
        return {**self.optimizer.state_dict(), ADDED: self.addition.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Set both to a state."""
        self.addition.load_state_dict(state_dict[ADDED])
        self.optimizer.load_state_dict({name: value for name, value in state_dict.items() if name != ADDED})


def state_of(optimizer: torch.optim.Optimizer, addition: Addition) -> Stateful:
    """Return what a checkpoint holds beside the weights."""
    return Together(optimizer, addition) if addition.state_dict() else optimizer


def are_pseudo(samples: Sequence[TrainingSample]) -> Tensor:
    """Return which masks of all samples together are pseudo-labels, bool (P,) on the CPU."""
    each = [torch.full((len(sample),), is_pseudo(sample)) for sample in samples]
    return torch.cat([torch.zeros(0, dtype=torch.bool), *each])


def is_pseudo(sample: TrainingSample) -> bool:
    """Whether the masks of a sample are pseudo-labels."""
    return sample.id.stream == "pseudo"


def targets_at(targets: Targets, indexes: Tensor) -> Targets:
    """Return the targets of the masks ``indexes``, int64 (R,)."""
    return replace(
        targets,
        masks=targets.masks[indexes],
        valid=targets.valid[indexes],
        certainty=targets.certainty[indexes],
        sampling=targets.sampling[indexes],
        image_index=targets.image_index[indexes],
        coverage=None if targets.coverage is None else targets.coverage[indexes],
        pixel_masks=None if targets.pixel_masks is None else targets.pixel_masks[indexes],
    )


def in_common(played: Tensor, judged: Tensor) -> tuple[Tensor, Tensor]:
    """Find the masks of a batch that are both in ``played``, int64 (P,), and in ``judged``, int64 (R,), ascending.

    Return where they stand in ``played``, and where in ``judged``, int64 (N,) each.
    """
    index = torch.searchsorted(judged, played).clamp(max=len(judged) - 1)
    here = (judged[index] == played).nonzero()[:, 0]
    return here, index[here]


def put(whole: Tensor, indexes: Tensor, values: Tensor) -> Tensor:
    """Return a copy of ``whole`` (P, ...) with ``values`` (R, ...) at ``indexes``; gradients pass through both."""
    return whole.index_put((indexes,), values.to(whole.dtype))


def with_certainty(targets: Targets, indexes: Tensor, certainty: Tensor) -> Targets:
    """Return targets whose masks ``indexes`` are weighed, in losses and in the drawing of points, by another certainty,
    float (R, H, W)."""
    return replace(
        targets,
        certainty=put(targets.certainty, indexes, certainty),
        sampling=put(targets.sampling, indexes, certainty * targets.valid[indexes]),
    )
