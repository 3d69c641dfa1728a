"""How large the demo is: a short one for two cores and a few minutes, and a long one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sum_factory.shared.precision import PrecisionSetting

POOL_SEED, HUMAN_SEED, HELD_OUT_SEED = 2_000_003, 3_000_017, 5_000_011
"""The worlds of the unlabelled scenes, of those with human masks, and of those that are reported; neither the packaged
SAM nor its refiner was trained on any of them."""


@dataclass(frozen=True)
class DemoPlan:
    """What the demo makes below ``out``.

    ``photos`` and ``scenes`` are labelled, ``human`` come with human masks, ``held_out`` are evaluated on: at most
    ``masks_of_a_scene`` masks of a task in ``rounds`` clicks. ``recipe`` trains SUM. With ``trains_refiner`` the demo
    trains a refiner of its own on the human masks, else it takes the one that ships. ``refiner_changes`` and
    ``fit_changes`` change the recipes.
    """

    out: Path
    photos: int = 14
    scenes: int = 24
    human: int = 120
    held_out: int = 40
    rounds: int = 3
    masks_of_a_scene: int = 4
    points_per_side: int = 24
    recipe: str = "demo"
    trains_refiner: bool = False
    workers: int = 0
    precision: PrecisionSetting = "auto"
    """What SUM is trained in; the refiner, labels and scores are fp32's."""
    refiner_changes: tuple[str, ...] = ()
    fit_changes: tuple[str, ...] = ()


def full_plan(out: Path) -> DemoPlan:
    """Return the plan of the long demo, which trains longer, on more, and its own refiner."""
    return DemoPlan(
        out,
        scenes=72,
        human=300,
        held_out=48,
        rounds=5,
        masks_of_a_scene=6,
        recipe="microworld",
        trains_refiner=True,
    )
