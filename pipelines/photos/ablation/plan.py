"""Which runs the ablation on photos has, on which data, and how large it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sum_factory.pipelines.microworld.ablation.cells import (
    FILLED,
    FROZEN,
    Cell,
    identity_of,
    layers_of,
    protocols_of,
    protocols_of_rounds,
    recipe_of,
    sets_of,
)
from sum_factory.pipelines.photos.ablation.data import Data, read_data, require_named
from sum_factory.shared.automask.settings import AutomaskSettings, settings_for
from sum_factory.shared.precision import PrecisionSetting
from sum_factory.shared.sam.checkpoint import identify_weights, load_sam
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.evaluation.settings import Protocol
from sum_factory.trainer.methods import MethodName
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.refiner import RefinerRecipe
from sum_factory.trainer.settings import read_settings

SETTING = "photos"
"""Name of the one setting among those of runs."""
POOL_SEED = 0
UNUSED = {"SCENES": "", "SHARDS": ""}
"""Of the recipes, whose sets are others here."""


@dataclass(frozen=True)
class PhotosPlan:
    """What is run, on which data, and below which folder.

    ``data`` is a folder of sets (``data.py``), ``fine`` the names of those whose masks are the human ones: the refiner
    learns from them, too. Of a photo at most ``most_masks`` masks are tested.
    """

    out: Path
    data: Path
    fine: tuple[str, ...] = ("ecssd", "ecssd_rest", "horses_rest")
    untested: tuple[str, ...] = ()
    """Sets that methods are not tested on, say because photos of theirs hardly differ from some that are trained on."""
    joined: tuple[str, ...] = ()
    """Sets that count as one in means, as ``one+other``."""
    shown: tuple[str, ...] | None = None
    """Sets whose masks may be shown on the page; None: all."""
    sam: str = PACKAGED
    """The frozen model."""
    methods: tuple[MethodName, ...] = (
        "human-only",
        "vanilla",
        "mask-refinement",
        "sum-no-task-prompt",
        "sum",
        "sum-confidence-uncer",
        "self-distillation",
        "model-merging",
    )
    seeds: tuple[int, ...] = (0, 1, 2)
    pool: int | None = 450
    """Photos that the frozen model labels, at most; of more, so many are drawn at random, the same each time. With no
    more than a run takes, all methods train on the same ones."""
    described: int = 300
    """Labelled photos with human masks, drawn at random, whose labels are compared with these."""
    rounds: int = 5
    most_masks: int = 3
    points_per_side: int = 16
    crop_n_layers: int = 1
    """Layers of crops that are labelled beside the whole photos. They find small things, and what labels do not show is
    forgotten."""
    pred_iou_thresh: float = 0.4
    stability_score_thresh: float = 0.8
    """Filters of labels, and of what the refiner learns from. A tiny model is sure of little on photos."""
    precision: PrecisionSetting = "auto"
    """What runs are trained in; the refiner, labels and scores are fp32's."""
    fit_changes: tuple[str, ...] = (
        "steps=150",
        "batch=4",
        "micro_batch=4",
        "masks=6",
        "mix.human=1",
        "mix.pseudo=3",
        "rounds=5",
        "target=coverage",
        "optimizer.warmup=10",
        "optimizer.learning_rate=5.0e-5",
        "box_share=0.1",
        "loss.alpha=0.5",
        "loss.gamma=0",
        "loss.focal_weight=6",
    )
    """Chosen on a part of train (docs/photos.md). The losses are those that ``vit_micro`` learnt by."""
    refiner_changes: tuple[str, ...] = ("target=coverage", "steps=300")

    @property
    def shards(self) -> Path:
        """The folder of the shard set."""
        return self.out / "shards"

    @property
    def opened(self) -> Data:
        """The sets. Raises ``InputError``, also for names in ``joined`` and ``shown`` that no set has."""
        data = read_data(self.data, self.fine, self.untested)
        require_named(self.data, "joined", [name for joined in self.joined for name in joined.split("+")], data.sets)
        require_named(self.data, "shown", self.shown or (), data.sets)
        return data

    @property
    def labelled(self) -> list[Path]:
        """The photos that the frozen model labels, shuffled: those of a unit are trained on together.

        Raises ``InputError``.
        """
        found = list(self.opened.pool)
        drawn = np.random.default_rng(POOL_SEED).permutation(len(found))[: self.pool]
        return [found[index] for index in drawn]

    @property
    def human(self) -> tuple[SetSettings, ...]:
        """The human masks that runs and refiner learn from."""
        return tuple(each.settings("train") for each in self.opened.fine)

    @property
    def automask(self) -> AutomaskSettings:
        """Which masks are kept as labels."""
        return settings_for(
            load_sam(self.sam).architecture.name,
            points_per_side=self.points_per_side,
            crop_n_layers=self.crop_n_layers,
            pred_iou_thresh=self.pred_iou_thresh,
            stability_score_thresh=self.stability_score_thresh,
        )


def cells_of_photos(plan: PhotosPlan) -> list[Cell]:
    """Return all cells in the order in which they are done: all methods with one seed, then with the next."""
    return [FROZEN, *(cell for seed in plan.seeds for cell in _with_seed(plan, seed))]


def _with_seed(plan: PhotosPlan, seed: int) -> Iterator[Cell]:
    for method in plan.methods:
        yield Cell(SETTING, method, seed=seed)
        if method == "human-only":
            yield Cell(SETTING, method, "filled", seed, FILLED)


def refiner_recipe(plan: PhotosPlan) -> RefinerRecipe:
    """Return the recipe of the refiner. Raises ``SettingsError``."""
    thresholds = [f"{name}={getattr(plan, name)}" for name in ("pred_iou_thresh", "stability_score_thresh")]
    recipe = read_settings("refiner_ablation", RefinerRecipe, UNUSED, (*thresholds, *plan.refiner_changes))
    return replace(recipe, sam=plan.sam, human=plan.human)


@recipe_of.register
def _(plan: PhotosPlan, cell: Cell) -> Recipe:
    changes = (f"precision={plan.precision}", *plan.fit_changes, f"method={cell.method}", f"seed={cell.seed}")
    recipe = read_settings("ablation", Recipe, UNUSED, (*changes, *cell.changes))
    return replace(recipe, sam=plan.sam, shards=str(plan.shards), human=plan.human)


@protocols_of.register
def _(plan: PhotosPlan, cell: Cell) -> list[Protocol]:
    return protocols_of_rounds(plan.rounds, cell)


@sets_of.register
def _(plan: PhotosPlan, cell: Cell) -> list[SetSettings]:
    return [each.settings("val") for each in plan.opened.tested]


@identity_of.register
def _(plan: PhotosPlan, cell: Cell) -> dict[str, Any]:
    data = plan.opened
    identity: dict[str, Any] = {
        "cell": asdict(cell),
        "tested": {each.name: each.digest("val") for each in data.tested},
        "most_masks": plan.most_masks,
        "sam": identify_weights(plan.sam)["sha256"],
        "protocols": [asdict(protocol) for protocol in protocols_of(plan, cell)],
    }
    if not cell.is_frozen:
        recipe = recipe_of(plan, cell)
        human = {each.name: each.digest("train") for each in data.fine}
        identity |= {"recipe": recipe.identity(), "precision": recipe.computed_in, "human": human}
        identity["layers"] = layers_of(plan, recipe)
    return identity
