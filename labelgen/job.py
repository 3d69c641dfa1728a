"""What a worker is told, and what it tells.

Nothing here needs torch, whose import takes seconds: not every process that passes these on has a model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sum_factory.labelgen.settings import WAIT_SECONDS, Missing
from sum_factory.shared.relocation import UNMOVED, Relocation

if TYPE_CHECKING:
    from sum_factory.labelgen.settings import UncertaintySettings
    from sum_factory.shared.automask.settings import AutomaskSettings
    from sum_factory.shared.sam.runtime import Runtime
    from sum_factory.shared.shards.dataset import Layer, Unit


@dataclass(frozen=True)
class MasksWork:
    """The pseudo-labels that a job makes; what ``dataset.json`` says of their layer counts."""

    settings: AutomaskSettings


@dataclass(frozen=True)
class MapsWork:
    """The uncertainty maps that a job makes, and their layer. ``refiner`` and ``teacher`` are paths of weights."""

    settings: UncertaintySettings
    refiner: str | None
    layer: Layer
    use_kept: tuple[str, ...] = ()
    """Kept layers from which the maps are made; what they lack is made anew."""
    teacher: str | None = None


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know, besides which unit: the model, and the layers to make with it."""

    shards: str
    sam: str
    model_type: str | None
    runtime: Runtime
    points_per_batch: int | None
    """Points decoded together; None is as many as fit."""
    masks: MasksWork | None = None
    uncertainty: MapsWork | None = None
    kept: tuple[Layer, ...] = ()
    """Layers of what labelling has at hand anyway, such as the photos."""
    photos_from: Relocation = UNMOVED
    """Where the photos of committed masks lie now, for a job that makes no masks."""
    wait_for_photos: float = WAIT_SECONDS
    """Seconds that are waited, in all, for the place of photos where that is gone."""
    missing_photos: Missing = "wait"
    """Whether photos are waited for whose neighbours are gone too, or recorded as gone."""
    task: str | None = None
    """The task whose vector is given with every point; None for a SAM without a task prompt."""
    photos_per_batch: int | None = None
    """Photos that the encoder takes together; None is as many as fit."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that this job makes, in the order in which they are committed."""
        from sum_factory.shared.shards.shard_set import MASKS

        masks = () if self.masks is None else (MASKS,)
        return (*masks, *(layer.name for layer in self.added_layers))

    @property
    def added_layers(self) -> tuple[Layer, ...]:
        """The layers beside the masks, in the order in which they are committed."""
        return self.kept if self.uncertainty is None else (*self.kept, self.uncertainty.layer)


class Units(Protocol):
    """The units that a run is to make, as they are planned. Their plans lie in the shard set, only numbers are held.

    ``planned`` are the numbers of those that have a plan by now, all of them if ``is_whole``. ``moved`` are the plans
    of those whose photos lie elsewhere now.
    """

    @property
    def planned(self) -> Collection[int]: ...

    @property
    def moved(self) -> Mapping[int, Unit]: ...

    @property
    def is_whole(self) -> bool: ...

    def numbers(self) -> Iterator[int | None]:
        """Yield their numbers, and None while the next one is still to be planned."""

    def size_of(self, number: int) -> int:
        """Return how many images a unit has."""


@dataclass(frozen=True)
class PlannedUnits:
    """``Units`` that are all planned already. ``size`` gives how many images one has."""

    planned: Sequence[int]
    size: Callable[[int], int]
    moved: Mapping[int, Unit] = field(default_factory=dict)
    is_whole: bool = True

    def numbers(self) -> Iterator[int | None]:
        """Yield their numbers."""
        yield from self.planned

    def size_of(self, number: int) -> int:
        """Return how many images a unit has."""
        return self.size(number)


@dataclass(frozen=True)
class PendingUnits:
    """The ``Units`` of ``every`` that are not ``done``."""

    every: Units
    done: Collection[int]

    @property
    def planned(self) -> Collection[int]:
        """The numbers of those that are planned by now."""
        return [number for number in tuple(self.every.planned) if number not in self.done]

    @property
    def moved(self) -> Mapping[int, Unit]:
        """Plans of those whose photos lie elsewhere now."""
        return self.every.moved

    @property
    def is_whole(self) -> bool:
        """Whether no others are being planned."""
        return self.every.is_whole

    def numbers(self) -> Iterator[int | None]:
        """Yield their numbers, and None while the next one is still to be planned."""
        return (number for number in self.every.numbers() if number is None or number not in self.done)

    def size_of(self, number: int) -> int:
        """Return how many images a unit has."""
        return self.every.size_of(number)


@dataclass(frozen=True)
class ImageDone:
    """One image is done: how many masks it has, or why it has none, or why these have no maps."""

    masks: int
    error: str | None = None
    unit: int = 0
    attempt: int = 1
    note: str | None = None
    """What people should know of this image, or of others like it."""


@dataclass(frozen=True)
class UnitReport:
    """A unit is done, in all layers of the job. ``unknown`` counts masks whose uncertainty nothing is known of."""

    unit: int
    images: int
    masks: int
    errors: tuple[str, ...]
    unknown: int = 0
    attempt: int = 1
    gpu: tuple[float, float] | None = None
    """Seconds in which the worker's GPU had work meanwhile, and those that passed; None without one."""


@dataclass(frozen=True)
class Begun:
    """A unit was given to a worker. ``probed`` images, if any, are only tried, because the unit has killed workers."""

    unit: int
    attempt: int
    worker: str
    probed: int = 0


@dataclass(frozen=True)
class Lost:
    """A worker died, of ``why``, while it worked on a unit, which is queued again.

    ``left_out`` is the number of the image that is left out from now on, if this was one death too many over it.
    """

    unit: int
    attempt: int
    worker: str
    why: str
    left_out: int | None = None
    probed: int = 0


@dataclass(frozen=True)
class GivenUp:
    """A unit kills workers, though none of its images does: it is not made, and the run goes on."""

    unit: int
    why: str


@dataclass(frozen=True)
class Notice:
    """Something that people who watch the run should know."""

    text: str
    of_waiting: bool = False
    """Whether a worker waits for what it says; others may wait for the same."""


@dataclass(frozen=True)
class WeightsRead:
    """A process has the models: it has read files of SAM's weights so many times, so many bytes."""

    worker: str
    times: int
    bytes: int


Event = WeightsRead | ImageDone | UnitReport | Begun | Lost | GivenUp | Notice
