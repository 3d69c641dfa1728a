"""Make the frozen model of the ablation: ``vit_t``, whose encoder sees detail and whose decoder was taught to lose it.

SAM's encoder was pre-trained on pictures alone and keeps fine structure; what loses it are the masks that SAM was
trained on. ``vit_t`` as it ships learnt all it knows from coarse masks, and its embeddings hardly hold what those lack:
no refiner can bring that back. So the whole of ``vit_t`` is first trained on drawing pictures and on exact masks of
entities and parts, then its decoder alone on coarse masks, until it is wrong as they are, and sure of it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipelines.microworld.ablation.settings import FrozenModel, Plan
from pipelines.microworld.coarse import Coarseness
from pipelines.microworld.pretrain import pretrain
from pipelines.microworld.pretrain_settings import PretrainSettings
from pipelines.microworld.scene import World
from shared.sam.checkpoint import PACKAGED

EXACT = Coarseness(close=1, largest_hole=0, open=1, smooth=0.01, minimum_area=60, smallest_component=0.0)
"""Loses nothing but crumbs."""


def make_frozen_model(plan: Plan, processes: int) -> str:
    """Train the frozen model of ``plan`` unless it is there; return its weights, as ``load_sam`` takes them."""
    if plan.frozen is not None:
        folder = Path(plan.sam).parent.parent
        detail = pretrain(detail_settings(plan.frozen, plan.world), folder / "detail", processes)
        pretrain(coarse_settings(plan.frozen, plan.world, detail), folder / "coarse", processes)
    return plan.sam


def detail_settings(frozen: FrozenModel, world: World) -> PretrainSettings:
    """Return how the encoder is brought to keep detail."""
    settings = _settings(frozen, world, frozen.detail_steps, PACKAGED, EXACT)
    return replace(settings, picture_weight=1.0)


def coarse_settings(frozen: FrozenModel, world: World, weights: Path) -> PretrainSettings:
    """Return how the decoder of ``weights`` is brought to lose it."""
    settings = _settings(frozen, world, frozen.coarse_steps, str(weights), frozen.coarseness)
    return replace(settings, trains_encoder=False)


def _settings(frozen: FrozenModel, world: World, steps: int, weights: str, coarseness: Coarseness) -> PretrainSettings:
    return PretrainSettings(
        scenes=frozen.scenes,
        world_seed=frozen.world_seed,
        world=world,
        coarseness=coarseness,
        weights=weights,
        steps=steps,
        warmup=min(40, steps),
        decay=0.6,
        learning_rate=frozen.learning_rate,
        masks=10,
        empty_prompts=1,
        rounds=2,
        single_round_steps=0,
        balanced_steps=1,
    )
