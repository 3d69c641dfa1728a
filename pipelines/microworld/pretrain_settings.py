"""What a pre-training of ``vit_micro`` is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from sum_factory.pipelines.microworld.coarse import Coarseness
from sum_factory.pipelines.microworld.scene import World
from sum_factory.shared.precision import PrecisionSetting


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
    masks: int = 12
    """Prompts an image."""
    empty_prompts: int = 2
    """Further points per image where there is no object: they teach the IoU head alone."""
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
