"""A training run as data: what `trainer fit` reads from a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.dataclasses import dataclass

from sum_factory.shared.precision import Precision, PrecisionSetting, resolve
from sum_factory.shared.relocation import Relocation
from sum_factory.shared.sam.runtime import pick_device
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.shared.store.cache import Cache, default_folder
from sum_factory.trainer.data.order import Mix
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.interactive import FedOutput, FirstPrompts, InteractiveSettings
from sum_factory.trainer.losses import LossSettings
from sum_factory.trainer.methods import METHODS, Method, MethodName
from sum_factory.trainer.optimizer import OptimizerSettings
from sum_factory.trainer.run.settings import CHECKED, MOST, MOST_STEPS, CheckpointSettings, ValidationSettings
from sum_factory.trainer.run.trackers import TrackerName
from sum_factory.trainer.settings import read_settings
from sum_factory.trainer.target import DEFAULT, Target, require_target, target_in_identity
from sum_factory.trainer.variants import variants

_Place = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, config=CHECKED)
class CacheSettings:
    """Copies of shards that lie at a remote URL, on a disk of this machine; shards on a disk are read where they are.

    ``limit_gb`` (1 GB is 10^9 bytes) bounds all that is in ``folder``, which the processes and runs of a machine may
    share; 0 means no copies. Without a ``folder``, it is one below ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """

    folder: Path | None = None
    """Where copies are kept; by default ``sum-factory/shards`` below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    limit_gb: float = Field(default=20, ge=0, le=1e9)
    """What all copies may take together, in units of 10^9 bytes; 0 copies nothing. Best is the size of the shards: with
    less, every epoch fetches most files again."""

    def make(self) -> Cache | None:
        """Return the cache, or None if there is to be none."""
        folder = default_folder() if self.folder is None else self.folder.expanduser()
        return Cache(folder, int(self.limit_gb * 1e9)) if self.limit_gb else None


@dataclass(frozen=True, config=CHECKED)
class Recipe:
    """All settings of a training run. The defaults are the paper's, but for the model and the target."""

    human: tuple[SetSettings, ...] = Field(min_length=1)
    """Sets of photos with human masks. Each photo of all sets together comes once an epoch."""
    shards: str | None = None
    """Folder or URL of the shard set or selection with the pseudo-labels. Every method but human-only needs it."""
    photos_from: dict[_Place, _Place] = field(default_factory=dict)
    """Where photos lie now that have moved since they were labelled: new places by old ones."""
    cache: CacheSettings = field(default_factory=CacheSettings)
    """Copies of remote shards on a disk of this machine. Shards on a disk are read where they are."""
    method: MethodName = "sum"
    """Which labels are trained on, what their certainty weighs, and what is added to the losses: human-only, vanilla,
    mask-refinement, sum, sum-no-task-prompt, sum-continuous-tp, sum-no-ua-sampling, sum-confidence-uncer,
    sum-discrepancy-uncer, sum-discrepancy-online, sum-soft, sum-online, augseg-mixed-prompt, augseg-box-prompt, u2pl,
    u2pl-entropy, self-distillation or model-merging."""
    method_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the method, for those that have any: keys of AugSegSettings, U2plSettings, DiscrepancySettings,
    OnlineSettings, DistillationSettings or MergingSettings."""
    variant: str = "full"
    """Which weights are trained: all of them (full), those of the prompt encoder and the mask decoder (decoder), or
    what another one adds to SAM: adapter, hq, lora or sam-adapter."""
    variant_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the variant, for those that have any: keys of LoraSettings, AdapterSettings or SamAdapterSettings."""
    sam: str = PACKAGED
    """The weights that fine-tuning starts from: a file, a folder, an id on the Hugging Face hub, or vit_micro."""
    uncertainty: str | None = None
    """Name of the uncertainty layer, as in ``uncertainty/NAME``; by default that of the method: refinement,
    confidence, discrepancy or entropy."""
    mix: Mix | None = None
    """How many photos with human masks come with how many with pseudo-labels, by default 1 : 1. A method without
    pseudo-labels leaves the others out: each step has the human photos that it has with any method. Without a mix, or
    with ``pseudo: 0``, all photos of its steps have human masks."""
    steps: int = Field(default=6_000, ge=1, le=MOST_STEPS)
    """Steps of the optimizer. If the learning rate is constant, a finished run goes on when it is given more; U2PL's
    does not, since its unreliable cells become fewer with every step."""
    batch: int = Field(default=40, ge=1, le=MOST)
    """Photos per step, of both kinds and over all processes; fewer where a method leaves out those of a kind."""
    micro_batch: int = Field(default=1, ge=1, le=MOST)
    """Photos that go through the model at once, in each process. More is faster on a GPU, and takes more memory."""
    activation_checkpointing: bool = False
    """Whether blocks of the encoder keep their input alone, and compute the rest again for the gradients: less memory,
    more time, the same losses. Give true where a photo does not fit."""
    fsdp: bool = False
    """Whether weights, gradients and moments of the encoder's blocks are spread over the processes, instead of each
    having all of them: PyTorch's FSDP2. Give true where ViT-H does not fit beside its activations."""
    masks: int = Field(default=30, ge=1, le=MOST)
    """Masks of a photo, at most; of more, so many are drawn at random. Fewer take less time and memory."""
    masks_at_once: int | None = Field(default=None, ge=1, le=MOST)
    """Masks that are decoded and compared together, at most. By default as many as fit the cache of a CPU or keep a GPU
    busy. Fewer take less memory; losses differ by rounding alone."""
    rounds: int = Field(default=7, ge=1, le=1_000)
    """Rounds per mask: a first point or box, then a click per round where the mask is wrong, and no new click in the
    last."""
    box_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the masks whose first prompt is a box. The others begin with a point."""
    first_prompts: FirstPrompts = "interactive"
    """Which prompts a mask begins with: interactive, a noisy box or a point; or hq, as HQ-SAM's training, its exact
    box, ten points in it or the noised mask itself, in equal shares."""
    fed_output: FedOutput = "predicted"
    """Which of the three outputs of a single point the second round goes on from: "predicted", the one of highest
    predicted IoU, as in the paper; or "best", the one of least mask loss, which is also the one that is trained. Take
    "best" where a second click makes masks worse."""
    stride: Literal[1, 2, 4] = 4
    """Input pixels per cell of the grid on which losses are taken and clicks drawn. 4 is SAM's own low resolution; give
    less for structures that are thinner than a cell, at the price of memory."""
    target: Target = DEFAULT
    """What masks are compared with: authors, a bit per cell of stride 4, as the authors' code; bits, a bit per cell;
    coverage, the share of each cell that the mask covers; or points, the mask on SAM's input itself, in points of which
    most are drawn where the logits are nearest to 0."""
    loss: LossSettings = field(default_factory=LossSettings)
    """Weights and constants of the mask loss."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """Learning rate, how it changes over steps and over the encoder's blocks, and the other settings of AdamW."""
    seed: int = 0
    """Number that all that is random follows from: samples, masks and prompts. Other seeds show the spread of a
    result."""
    precision: PrecisionSetting = "auto"
    """What the model computes in. "auto" is bf16 where the device has instructions for it, else fp32."""
    validation: ValidationSettings | None = None
    """Evaluation while training, which tells which checkpoint is the best. Without it no checkpoint is."""
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    """How often the state of the run is written, from which it is resumed."""
    tracker: TrackerName = "tensorboard"
    """What shows the numbers of the run while it goes: tensorboard, wandb, mlflow or none. The log has them in any
    case."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps. auto takes CUDA if it is there, then Apple's GPU, then the CPU."""
    data_threads: int = Field(default=4, ge=1, le=1_024)
    """Threads, in each process, that read and decode photos ahead of the model. Give more if it waits for data (the log
    says how long)."""

    @field_validator("variant")
    @classmethod
    def _is_variant(cls, name: str) -> str:
        if name not in variants():
            raise ValueError(f"no such variant; there are {', '.join(variants())}")
        return name

    @model_validator(mode="after")
    def _settings_fit(self) -> Recipe:
        if self.variant in variants():
            assert self.settings_of_variant is not None
        if self.method in METHODS:
            assert self.settings_of_method is not None
            if self.target == "points" and not self.chosen_method.takes_points:
                raise ValueError(
                    f"target: the method {self.method} makes targets on the loss grid, not on SAM's input; give the "
                    "target bits or coverage"
                )
        if self.method in METHODS and not self.streams.pseudo and self.chosen_method.reads_pseudo_labels:
            raise ValueError(
                f"mix: no pseudo-labels, which the method {self.method} is about; give human-only for none"
            )
        if not self.streams.human:
            raise ValueError(
                "mix: no photos with human masks, so that their tasks would never be learnt; give 1 or more"
            )
        if self.method in METHODS and self._leaves_out and self.batch <= self.streams.pseudo:
            raise ValueError(
                f"mix: some steps of {self.batch} photos have none with human masks, and no others go into "
                f"{self.method}; give a larger batch"
            )
        require_target(self.target, self.stride)
        return self

    @classmethod
    def read(
        cls, path_or_name: str | Path, variables: Mapping[str, str] | None = None, changes: Sequence[str] = ()
    ) -> Recipe:
        """Read a recipe from a YAML file, or the built-in one of that name.

        ``variables`` fill its ``${NAME}``; ``changes`` are ``key=value`` in place of what it says. Raises
        ``SettingsError`` that names file and key.
        """
        return read_settings(path_or_name, cls, variables or {}, changes)

    @property
    def settings_of_variant(self) -> Any:
        """The settings of the variant, checked. Raises ``ValueError`` for those that it does not have."""
        return _settings_of("variant", self.variant, variants()[self.variant].settings, self.variant_settings)

    @property
    def settings_of_method(self) -> Any:
        """The settings of the method, checked. Raises ``ValueError`` for those that it does not have."""
        return _settings_of("method", self.method, METHODS[self.method].settings, self.method_settings)

    @property
    def chosen_method(self) -> Method:
        """The row of the methods table."""
        return METHODS[self.method]

    @property
    def layer(self) -> str | None:
        """Name of the uncertainty layer that is read, if any."""
        method = self.chosen_method
        return (self.uncertainty or method.source) if method.needs_uncertainty else None

    @property
    def relocation(self) -> Relocation:
        """Where the photos of the shards lie now. Raises ``SettingsError`` if an old place has two new ones."""
        return Relocation.of(self.photos_from.items())

    @property
    def streams(self) -> Mix:
        """The mix of streams, whose pseudo-labelled samples a method without pseudo-labels leaves out."""
        return self.mix or (Mix() if self.chosen_method.reads_pseudo_labels else Mix(1, 0))

    @property
    def _leaves_out(self) -> bool:
        """Whether the method leaves out the pseudo-labelled photos of a mix."""
        return bool(self.streams.pseudo) and not self.chosen_method.reads_pseudo_labels

    def photos_of(self, step: int) -> int:
        """Return how many photos a step (counted from 0) has, over all processes."""
        slots = range(step * self.batch, (step + 1) * self.batch)
        return self.streams.human_in(slots) if self._leaves_out else self.batch

    @property
    def interactive(self) -> InteractiveSettings:
        """How the rounds go."""
        return InteractiveSettings(
            rounds=self.rounds,
            box_share=self.box_share,
            fed_output=self.fed_output,
            first_prompts=self.first_prompts,
            continuous_task_prompt=self.chosen_method.task_prompt == "all",
            loss=self.loss,
            masks_at_once=self.masks_at_once,
        )

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the result: a run is resumed with these unchanged.

        Paths are left out: what the data are is recorded beside it. The number of steps is left out if neither
        the learning rate nor the method depends on it. The precision is the one that is computed in, never "auto".
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
            "activation_checkpointing",
            "fsdp",
            "target",
            "tracker",
        }
        if self.optimizer.schedule == "constant" and not self.chosen_method.reads_steps:
            left_out.add("steps")
        of_variant = asdict(self.settings_of_variant)
        if not of_variant:
            left_out.add("variant_settings")
        of_method = asdict(self.settings_of_method)
        if not of_method:
            left_out.add("method_settings")
        if self.masks_at_once is None:
            left_out.add("masks_at_once")
        if self.first_prompts == "interactive":  # what runs were before there was a choice
            left_out.add("first_prompts")
        of_parts = {"variant_settings": of_variant, "method_settings": of_method}
        settings = {**asdict(self), "precision": self.computed_in, "loss": self.loss.identity(), **of_parts}
        kept = {name: value for name, value in settings.items() if name not in left_out}
        return kept | self._mix_in_identity() | target_in_identity(self.target)

    def _mix_in_identity(self) -> dict[str, Any]:
        """Return what is recorded of the mix. Methods without pseudo-labels once took photos in place of theirs."""
        mix = self.streams if self.streams.pseudo else Mix()
        return {"mix": asdict(mix), **({"left_out_of_mix": "pseudo"} if self._leaves_out else {})}

    @property
    def computed_in(self) -> Precision:
        """What the precision is on the recipe's device."""
        return resolve(self.precision, pick_device(self.device)).name


def _settings_of(kind: str, name: str, settings: type[Any], given: dict[str, Any]) -> Any:
    """Return the settings of a variant or method. Raises ``ValueError`` for what it does not have."""
    where = f"{kind}_settings of {name}"
    try:
        made = TypeAdapter(settings).validate_python(given)
    except ValidationError as error:
        raise ValueError(f"{where}: {_first_of(error, settings)}") from error
    for key, value in given.items():
        if isinstance(value, bool) and not isinstance(getattr(made, key), bool):
            raise ValueError(f"{where}: {key}: expected a number, found true or false")
    return made


def _first_of(error: ValidationError, settings: type[Any]) -> str:
    """Return what is wrong with settings, and which there are if it is a key."""
    detail = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "unexpected_keyword_argument":
        known = ", ".join(each.name for each in fields(settings)) or "none"
        return f"unknown key {key}; there are {known}"
    return f"{key}: {detail['msg']}, found {detail['input']!r}" if key else detail["msg"].partition(", ")[2]
