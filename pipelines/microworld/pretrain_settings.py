"""What a pre-training of ``vit_micro`` is asked to do."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import asdict, dataclass, field
from typing import Any

from sum_factory.pipelines.microworld.coarse import Coarseness
from sum_factory.pipelines.microworld.scene import World
from sum_factory.shared.errors import InputError
from sum_factory.shared.precision import PrecisionSetting
from sum_factory.trainer.interactive import FedOutput


@dataclass(frozen=True)
class PretrainSettings:
    """Settings of pre-training; the defaults are those of the packaged weights."""

    scenes: int = 20_000
    world_seed: int = 1
    world: World = field(default_factory=World)
    coarseness: Coarseness = field(default_factory=Coarseness)
    weights: str | None = None
    """What training starts from, as ``load_sam`` takes it; None: from scratch."""
    picture_weight: float = 0.0
    """Weight of the error with which the picture can be drawn from its embedding."""
    seed: int = 0
    precision: PrecisionSetting = "auto"
    """What model and Muon compute in; the packaged weights were trained in bf16."""
    steps: int = 2_500
    warmup: int = 200
    decay: float = 0.4
    """Last share of the steps, in which the learning rate falls linearly to 0; before, it is constant."""
    learning_rate: float = 8e-4
    weight_decay: float = 0.05
    images: int = 8
    """Scenes of a step."""
    masks: int = 12
    """Prompts per scene."""
    empty_prompts: int = 2
    """Further points per scene where there is no object: they teach the IoU head alone."""
    rounds: int = 3
    corrected_share: float = 0.5
    """Share of the prompts that go on after round 1: corrections are learnt from fewer than first guesses."""
    damaged_share: float = 0.0
    """Share of those that go on from an exact mask with an error (``damage.py``) instead of the model's own mask."""
    single_round_steps: int = 600
    balanced_steps: int = 1_500
    """Steps over which the class balance of the cross-entropy fades out."""
    box_share: float = 0.4
    iou_weight: float = 3.0
    temperature: float = 3.0
    """The loss sees logits / temperature: logits end up that much steeper, and the model as sure as SAM is."""
    photos: int = 0
    """Photos of a step, beside its scenes."""
    photo_masks: int = 6
    """Prompts per photo, at most."""
    fed_output: FedOutput = "predicted"
    """Of the three outputs of a single point, the one that the next round goes on from: that of highest predicted IoU,
    or the best."""

    def identity(self) -> dict[str, Any]:
        """Return the settings of a run; what came later is left out where it is as it was before it came."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in LATER or value != getattr(type(self), name)
        }

    def require_enough(self, photos: Sized | None) -> None:
        """Raise ``InputError`` unless there are photos for a step, or none are asked for."""
        count = 0 if photos is None else len(photos)
        if (photos is None) != (self.photos == 0) or count < self.photos:
            raise InputError(
                f"photos: each step takes {self.photos} with masks, and there are {count}; change the setting"
            )


LATER = ("photos", "photo_masks", "fed_output")
"""Settings that runs of earlier versions did not have."""

PHOTO_SETTINGS = PretrainSettings(
    scenes=4_000,
    steps=1_500,
    warmup=40,
    decay=0.6,
    learning_rate=5e-4,
    images=4,
    masks=8,
    empty_prompts=1,
    damaged_share=0.3,
    single_round_steps=0,
    balanced_steps=1,
    photos=8,
    fed_output="best",
)
"""With photos, and from weights that know scenes: a third of the images stay scenes, which are not forgotten then."""
