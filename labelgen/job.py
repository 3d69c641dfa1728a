"""What a worker is told, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass

from labelgen.automask import AutomaskSettings
from labelgen.uncertainty import UncertaintySettings
from shared.sam.runtime import Runtime
from shared.shards.dataset import Layer
from shared.shards.shard_set import MASKS


@dataclass(frozen=True)
class MasksTask:
    """The pseudo-labels that a job makes; what ``dataset.json`` says of their layer counts."""

    settings: AutomaskSettings


@dataclass(frozen=True)
class UncertaintyTask:
    """The uncertainty maps that a job makes, and their layer. ``refiner`` is the path of its file."""

    settings: UncertaintySettings
    refiner: str | None
    layer: Layer
    use_kept: tuple[str, ...] = ()
    """Kept layers from which the maps are made; what they lack is made anew."""


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know, besides which unit: the model, and the layers to make with it."""

    shards: str
    sam: str
    model_type: str | None
    runtime: Runtime
    points_per_batch: int
    masks: MasksTask | None = None
    uncertainty: UncertaintyTask | None = None
    kept: tuple[Layer, ...] = ()
    """Layers of what labelling has at hand anyway, such as the photos."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that this job makes, in the order in which they are committed."""
        masks = () if self.masks is None else (MASKS,)
        return (*masks, *(layer.name for layer in self.added_layers))

    @property
    def added_layers(self) -> tuple[Layer, ...]:
        """The layers beside the masks, in the order in which they are committed."""
        return self.kept if self.uncertainty is None else (*self.kept, self.uncertainty.layer)


@dataclass(frozen=True)
class Progress:
    """One image is done: how many masks it has, or why it has none, or they no maps."""

    masks: int
    error: str | None = None


@dataclass(frozen=True)
class UnitReport:
    """A unit is done, in all layers of the job. ``unknown`` counts masks whose uncertainty nothing is known of."""

    unit: int
    images: int
    masks: int
    errors: tuple[str, ...]
    unknown: int = 0
