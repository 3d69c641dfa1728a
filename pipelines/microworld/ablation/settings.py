"""How large the ablation is, and which world it is run in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from sum_factory.pipelines.microworld.coarse import Coarseness
from sum_factory.pipelines.microworld.scene import World
from sum_factory.shared.precision import PrecisionSetting
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.trainer.data.sets import Task
from sum_factory.trainer.methods import METHODS, MethodName

WORLD = World(
    distractors=(1, 3),
    dull_radius=(0.11, 0.20),
    dull_saturation=(0.3, 1.0),
    salient_sizes=(0.34, 0.4, 0.26),
    salient_radius=(0.13, 0.25),
    salient_saturation=(0.3, 1.0),
    appendage_share=0.9,
    grille_share=0.0,
    thin_widths=(5, 6, 6, 7),
    parts=(1, 2),
    thin_part_share=0.15,
    part_appendage_share=0.7,
    minimum_area=400,
)
"""Few objects that are not small, so that the frozen model is wrong mostly where its teacher was: it loses thin
structures and fills gaps. These are a cell of its grid wide, or more, and can be drawn once they are seen. Parts have
them as their objects do. A part that is nothing else is rare, and one under 20 x 20 px, not much more than a cell of
the encoder's grid, is not annotated: the frozen model labels few of either, so nothing could be kept or learnt of them.

Salient objects have the colours of all others and stand in front of them, near the middle: what is learnt from them is
true of others, and what others' labels say is taken for true of them. Two thirds are groups of entities: whoever has
human masks alone learns that a click means the group. A third is one entity, because of a group, one point shows SAM
a member, and that is no pair for the refiner.
"""

HUMAN_WORLD = replace(WORLD, dull_radius=(0.13, 0.24), salient_radius=(0.07, 0.24))
"""The scenes of human masks: sets of salient objects are other photos, and what is salient in them has any size and
often lies on something larger. That teaches where a thing ends, to the refiner above all: it must not take a part for
the object that carries it."""

QUICK_WORLD = World(
    distractors=(1, 3),
    dull_radius=(0.09, 0.18),
    dull_saturation=(0.05, 0.45),
    salient_sizes=(0.8, 0.14, 0.06),
    salient_radius=(0.09, 0.24),
    salient_saturation=(0.45, 1.0),
    appendage_share=0.8,
    grille_share=0.3,
    thin_widths=(4, 5, 5, 6),
    parts=(0, 2),
)
"""Few objects, of which the salient one is vivid: here ``vit_micro`` as it ships learns something in a few minutes."""

SettingName = Literal["small", "medium", "large"]
SETTINGS: dict[str, tuple[Task, ...]] = {
    "small": ("salient",),
    "medium": ("salient", "entity"),
    "large": ("salient", "entity", "part"),
}
"""The tasks of the human masks: those of the paper's FT-Small, FT-Medium and FT-Large. The refiner sees salient masks
in all."""

METHOD_CHANGES: dict[str, tuple[str, ...]] = {"sum-online": ("method_settings.every=100",)}
"""What changes the recipe for one method: by default a run here is hardly longer than until the first snapshot."""

VariantName = Literal["filled", "decoder", "hq", "hq-rounds"]

QUICK_SETTING: SettingName = "large"
"""Where the fewest steps show that training works."""

SEEDS = {"pool": 7_000_003, "human": 7_100_009, "validation": 7_200_017, "held_out": 7_300_021}
"""The worlds of the unlabelled scenes, of those with human masks, of those that settings were chosen on, and of those
that are reported."""


@dataclass(frozen=True)
class FrozenModel:
    """How the frozen model is made (``pipelines.microworld.ablation.frozen``). ``coarseness`` is that of the masks from
    which its decoder learns: the farther these are from exact masks, the more of its errors can a refiner mend that
    saw exact ones. Scenes, of the world ``world_seed``, are not those of any split."""

    scenes: int = 5_000
    world_seed: int = 11
    detail_steps: int = 600
    coarse_scenes: int = 1_500
    coarse_steps: int = 450
    coarseness: Coarseness = field(default_factory=lambda: Coarseness(close=41, open=15, smooth=4.0))


class AnyPlan(Protocol):
    """What every kind of plan has: the folder of its runs, its frozen model and its shard set.

    Of a photo in a set, at most ``most_masks`` are evaluated.
    """

    @property
    def out(self) -> Path: ...
    @property
    def sam(self) -> str: ...
    @property
    def shards(self) -> Path: ...
    @property
    def most_masks(self) -> int: ...


@dataclass(frozen=True)
class Plan:
    """What is run, and below which folder.

    ``pool``, ``human``, ``validation`` and ``held_out`` are numbers of scenes; of a scene at most ``masks_of_a_scene``
    masks of a task are evaluated. ``fit_changes`` and ``refiner_changes`` change the recipes of those names.
    """

    out: Path
    pool: int = 3_000
    human: int = 1_500
    validation: int = 200
    held_out: int = 120
    masks_of_a_scene: int = 2
    described: int = 200
    """Scenes of the pool whose labels are compared with their exact masks."""
    rounds: int = 6
    points_per_side: int = 16
    pred_iou_thresh: float = 0.6
    """Parts have low predicted IoU: at vit_micro's default of 0.7, one label in ten is of a part."""
    stability_score_thresh: float = 0.85
    """Where a part has no label of its own, the labels of what it is on say that a click there means the whole."""
    settings: tuple[SettingName, ...] = ("small", "medium")
    methods: tuple[MethodName, ...] = tuple(METHODS)
    variants: tuple[VariantName, ...] = ("filled", "decoder", "hq", "hq-rounds")
    """Which of ``cells.VARIANTS`` are run of these methods."""
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[str, ...] = ("5.0e-5", "1.0e-4", "2.0e-4")
    """Learning rates that are compared on scenes of validation (``--choose``)."""
    studies: bool = True
    precision: PrecisionSetting = "auto"
    """What the frozen model and all runs are trained in; the refiner, labels and scores are fp32's."""
    fit_changes: tuple[str, ...] = ()
    refiner_changes: tuple[str, ...] = ()
    world: World = field(default_factory=lambda: WORLD)
    human_world: World = field(default_factory=lambda: HUMAN_WORLD)
    frozen: FrozenModel | None = field(default_factory=FrozenModel)
    """The frozen model; None: ``vit_micro`` as it ships."""

    def world_of(self, split: str) -> World:
        """Return what the scenes of a split look like."""
        return self.human_world if split == "human" else self.world

    @property
    def coarseness(self) -> Coarseness:
        """What was lost in the masks that the frozen model learnt from."""
        return Coarseness() if self.frozen is None else self.frozen.coarseness

    @property
    def sam(self) -> str:
        """The weights of the frozen model, as ``load_sam`` takes them."""
        return PACKAGED if self.frozen is None else str(self.out / "frozen" / "coarse" / "weights.safetensors")

    def scenes(self, split: str) -> Path:
        """Return the folder of the scenes of a split, one of ``SEEDS``."""
        return self.out / "scenes" / split

    @property
    def shards(self) -> Path:
        """The folder of the shard set."""
        return self.out / "shards"

    @property
    def most_masks(self) -> int:
        """Masks of a scene that are evaluated for each task, at most."""
        return self.masks_of_a_scene


def quick_plan(out: Path) -> Plan:
    """Return the plan of ``make ablation-quick``: SAM, vanilla and SUM, one seed, one setting, few of everything."""
    return Plan(
        out,
        pool=60,
        human=200,
        validation=1,
        held_out=40,
        masks_of_a_scene=3,
        described=30,
        rounds=3,
        stability_score_thresh=0.9,
        settings=(QUICK_SETTING,),
        methods=("vanilla", "sum"),
        variants=(),
        seeds=(0,),
        studies=False,
        fit_changes=(
            "steps=200",
            "batch=6",
            "micro_batch=6",
            "masks=4",
            "mix.human=2",
            "rounds=7",
            "fed_output=predicted",
            "loss.temperature=1",
            "optimizer.learning_rate=3.0e-4",
            "optimizer.layer_decay=0.8",
            "optimizer.betas=[0.9, 0.999]",
            "optimizer.warmup=20",
        ),
        refiner_changes=("steps=100", "batch=16", "loss.temperature=1"),
        world=QUICK_WORLD,
        human_world=QUICK_WORLD,
        frozen=None,
    )
