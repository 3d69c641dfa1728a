"""A training run as data: what `trainer fit` reads from a recipe."""

from __future__ import annotations

from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass

from sum_factory.shared.precision import Precision, PrecisionSetting, resolve
from sum_factory.shared.relocation import Relocation
from sum_factory.shared.sam.runtime import pick_device
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.shared.store.cache import Cache, default_folder
from sum_factory.trainer.data.order import Mix
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.interactive import FedOutput, InteractiveSettings
from sum_factory.trainer.losses import LossSettings
from sum_factory.trainer.methods import METHODS, Method
from sum_factory.trainer.optimizer import OptimizerSettings

CHECKED = ConfigDict(extra="forbid")
_Place = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, config=CHECKED)
class CheckpointSettings:
    """A checkpoint every so many steps; the last ``keep`` are kept, and the best."""

    every: int = Field(default=500, ge=1)
    """Steps from one checkpoint to the next; the last step always leaves one."""
    keep: int = Field(default=2, ge=1)
    """How many of the latest checkpoints stay on disk, beside the best."""


@dataclass(frozen=True, config=CHECKED)
class ValidationSettings:
    """Evaluation while training, which decides which checkpoint is the best: mean boundary IoU over the sets after
    ``rounds`` prompts from a first point."""

    sets: tuple[SetSettings, ...] = Field(min_length=1)
    """The sets of photos with human masks to evaluate on; not those that are trained on."""
    every: int = Field(default=500, ge=1)
    """Steps from one evaluation to the next."""
    rounds: int = Field(default=3, ge=1, le=9)
    """Prompts a mask: a first point, then corrections. Those of the last round count."""
    max_masks: int = Field(default=10, ge=1)
    """Masks of a photo, at most."""


@dataclass(frozen=True, config=CHECKED)
class CacheSettings:
    """Copies of shards that lie at a remote URL, on a disk of this machine; shards on a disk are read where they are.

    ``limit_gb`` (1 GB is 10^9 bytes) bounds all that is in ``folder``, which the processes and runs of a machine may
    share; 0 means no copies. Without a ``folder``, it is one below ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """

    folder: Path | None = None
    """Where copies are kept; None: below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    limit_gb: float = Field(default=20, ge=0, allow_inf_nan=False)
    """What all copies may take together, in units of 10^9 bytes; 0: nothing is copied."""

    def make(self) -> Cache | None:
        """Return the cache, or None if there is to be none."""
        folder = default_folder() if self.folder is None else self.folder.expanduser()
        return Cache(folder, int(self.limit_gb * 1e9)) if self.limit_gb else None


@dataclass(frozen=True, config=CHECKED)
class Recipe:
    """All settings of a training run. The defaults are the paper's, but for the model."""

    human: tuple[SetSettings, ...] = Field(min_length=1)
    """The sets of photos with human masks; samples are drawn from all of them together."""
    shards: str | None = None
    """Folder or URL of a shard set or selection. Every method but human-only needs one."""
    photos_from: dict[_Place, _Place] = field(default_factory=dict)
    """Where photos lie now that were labelled elsewhere: new places by old ones (``shared/relocation.py``)."""
    cache: CacheSettings = field(default_factory=CacheSettings)
    """Copies of remote shards on this machine."""
    method: str = "sum"
    """What is trained on and how doubt counts: a row of ``trainer.methods.METHODS``, such as sum, vanilla or
    human-only."""
    variant: Literal["full", "decoder"] = "full"
    """Which weights are trained: full, all of them; decoder, the mask decoder alone."""
    sam: str = PACKAGED
    """The weights that fine-tuning starts from: a .pth or .safetensors file, or the name of those that ship here."""
    uncertainty: str | None = None
    """Name of the uncertainty layer; by default that of the method's source."""
    mix: Mix = field(default_factory=Mix)
    """How many human samples come with how many pseudo-labelled ones."""
    steps: int = Field(default=6_000, ge=1)
    """Steps of the optimizer. With a constant learning rate a finished run can be continued with more."""
    batch: int = Field(default=40, ge=1)
    """Photos a step, over all processes and both streams."""
    micro_batch: int = Field(default=1, ge=1)
    """Photos that go through the model at once."""
    masks: int = Field(default=30, ge=1)
    """Random masks a photo, at most."""
    rounds: int = Field(default=7, ge=1)
    """Prompts a mask: a first point or box, then points where the mask is wrong."""
    box_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the masks whose first prompt is a box; the others start from a point."""
    fed_output: FedOutput = "predicted"
    """Which output of a single point the second round goes on from: "predicted", that of highest predicted IoU, or
    "best", that of least mask loss, which is also the one that is trained."""
    stride: Literal[1, 2, 4] = 4
    """Input pixels a cell of the grid on which losses are taken and points drawn; 4 is SAM's own low resolution."""
    loss: LossSettings = field(default_factory=LossSettings)
    """Weights and constants of the mask loss."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """Learning rate, its decay over the encoder's blocks and its schedule."""
    seed: int = 0
    """All that is random is drawn from it: samples, masks and prompts. Other seeds show the spread of a result."""
    precision: PrecisionSetting = "auto"
    """What the model computes in; "auto" is bf16 where the device has instructions for it, else fp32."""
    validation: ValidationSettings | None = None
    """Evaluation while training, which says which checkpoint is the best; None: none of them is."""
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    """When the state of a run is written, for resuming it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps; auto picks CUDA, then Apple's GPU, then the CPU."""
    data_threads: int = Field(default=4, ge=1)
    """Threads that read and decode samples ahead of the model."""

    @field_validator("method")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"no such method; there are {', '.join(METHODS)}")
        return name

    @property
    def chosen_method(self) -> Method:
        """The row of the methods table."""
        return METHODS[self.method]

    @property
    def layer(self) -> str | None:
        """Name of the uncertainty layer that is read, if any."""
        method = self.chosen_method
        return (self.uncertainty or method.uncertainty) if method.needs_uncertainty else None

    @property
    def relocation(self) -> Relocation:
        """Where the photos of the shards lie now. Raises ``SettingsError`` if an old place has two new ones."""
        return Relocation.of(self.photos_from.items())

    @property
    def streams(self) -> Mix:
        """The mix of streams: human samples alone for a method without pseudo-labels."""
        return Mix(1, 0) if self.chosen_method.pseudo_labels == "none" else self.mix

    @property
    def interactive(self) -> InteractiveSettings:
        """How the rounds go."""
        return InteractiveSettings(
            rounds=self.rounds,
            box_share=self.box_share,
            fed_output=self.fed_output,
            continuous_task_prompt=self.chosen_method.task_prompt == "all",
            loss=self.loss,
        )

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the result: a run is resumed with these unchanged.

        Paths are no part of it, the data's own identity is recorded beside it; nor is the number of steps if the
        learning rate does not depend on it. Of the precision, what it is on the device counts.
        """
        left_out = {
            "human",
            "shards",
            "photos_from",
            "sam",
            "validation",
            "checkpoint",
            "device",
            "data_threads",
            "uncertainty",
            "cache",
        }
        if self.optimizer.schedule == "constant":
            left_out.add("steps")
        settings = {**asdict(self), "precision": self.computed_in}
        return {name: value for name, value in settings.items() if name not in left_out}

    @property
    def computed_in(self) -> Precision:
        """What the precision is on the recipe's device."""
        return resolve(self.precision, pick_device(self.device)).name
