"""How large the ablation is, and which world it is run in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipelines.microworld.scene import World
from trainer.data.sets import Task
from trainer.methods import METHODS

WORLD = World(
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
"""Few objects that are not small, so that the frozen model is wrong mostly where its teacher was: it loses thin
structures and fills gaps. These are a cell of its grid wide, or more, and can be drawn once they are seen.

Salient objects are of all sizes and many colours, as in real sets, so that what is learnt from them is true of others;
mostly of one entity, because of a group, one point shows SAM a member, and that is no pair for the refiner.
"""

SETTINGS: dict[str, tuple[Task, ...]] = {
    "small": ("salient",),
    "medium": ("salient", "entity"),
    "large": ("salient", "entity", "part"),
}
"""The tasks of the human masks: those of the paper's FT-Small, FT-Medium and FT-Large. The refiner sees salient masks
in all."""

QUICK_SETTING = "large"
"""Where the fewest steps show that training works."""

SEEDS = {"pool": 7_000_003, "human": 7_100_009, "validation": 7_200_017, "held_out": 7_300_021}
"""The worlds of the unlabelled scenes, of those with human masks, of those that settings were chosen on, and of those
that are reported."""


@dataclass(frozen=True)
class Plan:
    """What is run, and below which folder.

    ``pool``, ``human``, ``validation`` and ``held_out`` are numbers of scenes; of a scene at most ``masks_of_a_scene``
    masks of a task are evaluated. ``fit_changes`` and ``refiner_changes`` change the recipes of those names.
    """

    out: Path
    pool: int = 3_000
    human: int = 1_500
    validation: int = 60
    held_out: int = 150
    masks_of_a_scene: int = 4
    described: int = 200
    """Scenes of the pool whose labels are compared with their exact masks."""
    rounds: int = 6
    points_per_side: int = 16
    pred_iou_thresh: float = 0.6
    """Parts have low predicted IoU: at vit_t's default of 0.7, one label in ten is of a part."""
    settings: tuple[str, ...] = ("small", "medium")
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = (0, 1, 2)
    studies: bool = True
    fit_changes: tuple[str, ...] = ()
    refiner_changes: tuple[str, ...] = ()
    world: World = field(default_factory=lambda: WORLD)

    def scenes(self, split: str) -> Path:
        """Return the folder of the scenes of a split, one of ``SEEDS``."""
        return self.out / "scenes" / split

    @property
    def shards(self) -> Path:
        """The folder of the shard set."""
        return self.out / "shards"


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
        settings=(QUICK_SETTING,),
        methods=("vanilla", "sum"),
        seeds=(0,),
        studies=False,
        fit_changes=(
            "steps=200",
            "batch=6",
            "micro_batch=6",
            "masks=4",
            "mix.human=2",
            "optimizer.learning_rate=3.0e-4",
        ),
        refiner_changes=("steps=100", "batch=16"),
    )
