"""Make the ablation's frozen model: ``vit_micro``, whose encoder sees detail and whose decoder was taught to lose it.

SAM's encoder was pre-trained on pictures alone and keeps fine structure; what loses it are the masks that SAM was
trained on. ``vit_micro`` as it ships learnt all it knows from coarse masks, and its embeddings hardly hold what those
lack: no refiner can bring that back. So the whole of ``vit_micro`` is first trained on drawing pictures and on exact
masks of entities and parts. Then its decoder alone learns coarse masks, until it is wrong as they are, and sure of it:
by the trainer's own rounds and losses, as SAM was, so that it is at rest when it is fine-tuned on its own labels.
"""

from __future__ import annotations

from pathlib import Path

from sum_factory.pipelines.microworld.ablation.settings import FrozenModel, Plan
from sum_factory.pipelines.microworld.coarse import Coarseness
from sum_factory.pipelines.microworld.pretrain import pretrain
from sum_factory.pipelines.microworld.pretrain_settings import PretrainSettings
from sum_factory.pipelines.microworld.scene import World
from sum_factory.pipelines.microworld.sets import write_sets
from sum_factory.shared.precision import PrecisionSetting
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.trainer.launch import fit_on_ranks
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.settings import read_settings

EXACT = Coarseness(close=1, largest_hole=0, open=1, smooth=0.01, minimum_area=60, smallest_component=0.0)
"""Loses nothing but crumbs."""


def make_frozen_model(plan: Plan, processes: int) -> str:
    """Train the frozen model of ``plan`` unless it is there; return its weights, as ``load_sam`` takes them.

    Raises ``SettingsDifferError`` if one of its stages is there with other settings.
    """
    frozen, weights = plan.frozen, Path(plan.sam)
    if frozen is None:
        return plan.sam
    folder = weights.parent.parent
    detail = pretrain(detail_settings(frozen, plan.world, plan.precision), folder / "detail", processes)
    scenes = folder / "scenes"
    write_sets(scenes, frozen.world_seed, frozen.coarse_scenes, plan.world, frozen.coarseness)
    fit_on_ranks(coarse_recipe(frozen, detail, scenes, plan.precision), weights.parent, processes)
    return plan.sam


def detail_settings(frozen: FrozenModel, world: World, precision: PrecisionSetting) -> PretrainSettings:
    """Return how the encoder is brought to keep detail, and the decoder to go on from its mask prompt."""
    return PretrainSettings(
        scenes=frozen.scenes,
        world_seed=frozen.world_seed,
        world=world,
        coarseness=EXACT,
        weights=PACKAGED,
        picture_weight=1.0,
        precision=precision,
        steps=frozen.detail_steps,
        warmup=min(40, frozen.detail_steps),
        decay=0.6,
        learning_rate=6e-4,
        masks=10,
        empty_prompts=1,
        rounds=2,
        corrected_share=0.6,
        damaged_share=0.6,
        single_round_steps=0,
        balanced_steps=1,
    )


def coarse_recipe(frozen: FrozenModel, weights: Path, scenes: Path, precision: PrecisionSetting) -> Recipe:
    """Return how the decoder of ``weights`` is brought to lose it. Raises ``SettingsError``."""
    changes = (f"steps={frozen.coarse_steps}", f"sam={weights}", f"precision={precision}")
    return read_settings("frozen_ablation", Recipe, {"SCENES": str(scenes)}, changes)
