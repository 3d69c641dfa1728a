"""Which runs there are: a cell of the table is one method with one seed, in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import singledispatch
from pathlib import Path
from typing import Any

from sum_factory.pipelines.microworld.ablation.prepare import refiner_recipe
from sum_factory.pipelines.microworld.ablation.settings import METHOD_CHANGES, SETTINGS, AnyPlan, Plan, VariantName
from sum_factory.pipelines.microworld.sets import SCENE_TASKS, describe_set
from sum_factory.shared.sam.checkpoint import identify_weights
from sum_factory.shared.shards.dataset import uncertainty_layer
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.evaluation.settings import Protocol
from sum_factory.trainer.methods import METHODS
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.settings import read_settings

SAM = "sam"
"""Name of the frozen model among the methods; it is in no setting and has one seed."""
SINGLE_ROUNDS = 3
"""Rounds with one fixed output, at most; the curves are those of the oracle's."""
FULL = "full"
STUDIED = ("vanilla", "sum")
"""Methods whose gain is followed over what is turned."""
FOLLOWED = ("human-only", *STUDIED)
"""Methods that settings are chosen by, and of which runs of fewer steps are made: does human-only forget more, does
SUM's lead grow?"""
STUDY_SETTING = "small"
"""Where things are turned, and settings are chosen."""
WHICH_RUNS = ("out", "settings", "methods", "variants", "seeds", "rates", "studies", "validation")
"""What of a plan says which runs there are, and where, and nothing of their world."""
FILLED = ("mix.pseudo=0",)
"""Has human photos fill the batch: without, a step has those that it has with any method, and no others."""
CHOOSING_SEED = 100
"""That of the runs which settings are chosen by; none that is reported has it."""


@dataclass(frozen=True)
class Variant:
    """A row of the tables beside the methods themselves: ``method`` with ``changes`` to its recipe, called ``name``."""

    method: str
    name: VariantName
    changes: tuple[str, ...]

    @property
    def title(self) -> str:
        """What the row is called."""
        return f"{self.method}, {self.name}"


HQ_RATES = (
    "loss.iou_weight=0",
    "optimizer.learning_rate=1.0e-3",
    "optimizer.layer_decay=1",
    "optimizer.weight_decay=0",
)
"""What HQ-SAM's modules are trained with, as published: they are new, and the rest of SAM is frozen."""
HQ = ("variant=hq", "first_prompts=hq", "rounds=1", "stride=1", *HQ_RATES)
"""HQ-SAM as published: one round, of a box, points or a noised mask."""
HQ_ROUNDS = ("variant=hq", *HQ_RATES)
VARIANTS = (
    Variant("human-only", "filled", FILLED),
    Variant("human-only", "decoder", (*FILLED, "variant=decoder")),
    Variant("human-only", "hq", HQ),
    Variant("human-only", "hq-rounds", HQ_ROUNDS),
    Variant("sum", "hq", HQ),
    Variant("sum", "hq-rounds", HQ_ROUNDS),
)
"""Human-only with human photos in place of pseudo-labelled ones, of which it then sees more than any other method: all
weights, and the decoder alone. HQ-SAM, taught by human masks alone and by SUM, as published and in the rounds of all
others."""


@dataclass(frozen=True)
class Cell:
    """One run. ``variant`` is ``full``, or names what ``changes`` do to the recipe;
    ``split`` are the scenes that it is evaluated on."""

    setting: str
    method: str
    variant: str = FULL
    seed: int = 0
    changes: tuple[str, ...] = ()
    split: str = "held_out"

    @property
    def is_frozen(self) -> bool:
        """Whether it is the frozen model, which is not trained."""
        return self.method == SAM

    @property
    def name(self) -> str:
        """The name of its folder."""
        return "_".join((self.setting, self.method, self.variant, str(self.seed)))

    def folder(self, plan: AnyPlan) -> Path:
        """Return the folder of the run."""
        return plan.out / "cells" / self.name


FROZEN = Cell("none", SAM, "frozen")


def cells_of(plan: Plan) -> list[Cell]:
    """Return all cells in the order in which they are done: a whole table, its studies, then the next table."""
    cells = [FROZEN]
    for setting in plan.settings:
        for seed in plan.seeds:
            cells += [Cell(setting, method, seed=seed) for method in plan.methods]
            cells += [Cell(setting, each.method, each.name, seed, each.changes) for each in variants_of(plan)]
        if plan.studies and setting == STUDY_SETTING:
            cells += studies(plan, plan.seeds[0])
    return cells


def variants_of(plan: Plan) -> list[Variant]:
    """Return the variants that are run."""
    return [each for each in VARIANTS if each.method in plan.methods and each.name in plan.variants]


def studies(plan: Plan, seed: int) -> Iterator[Cell]:
    """Yield what is turned, with one seed: steps, the exponent of the certainty, how much focal loss comes with Dice,
    and the number of human masks.

    Theta acts on Dice alone, of which there is a twentieth: turned, it changed nothing.
    """
    usual = recipe_of(plan, Cell(STUDY_SETTING, "sum")).steps
    for steps in (steps for steps in (60, 120, 300) if steps < usual):
        for method in FOLLOWED:
            yield Cell(STUDY_SETTING, method, f"steps={steps}", seed, (f"steps={steps}",))
    for exponent in (0.5, 2.0):
        yield Cell(STUDY_SETTING, "sum", f"exponent={exponent:g}", seed, (f"loss.certainty_exponent={exponent}",))
    for weight in (1, 5):
        for method in STUDIED:
            yield Cell(STUDY_SETTING, method, f"focal={weight}", seed, (f"loss.focal_weight={weight}",))
    for count in (60, 300):
        for method in STUDIED:
            yield Cell(STUDY_SETTING, method, f"human={count}", seed, (f"human.0.limit={count}",))


def choices(plan: Plan) -> list[Cell]:
    """Return the cells that the learning rate is chosen by, on the scenes of validation: the frozen model first."""
    runs = [
        Cell(STUDY_SETTING, method, f"lr={rate}", CHOOSING_SEED, (f"optimizer.learning_rate={rate}",), "validation")
        for rate in plan.rates
        for method in FOLLOWED
    ]
    return [replace(FROZEN, seed=CHOOSING_SEED, split="validation"), *runs]


@singledispatch
def recipe_of(plan: AnyPlan, cell: Cell) -> Recipe:
    """Return the recipe of a cell that is trained. Raises ``SettingsError``.

    This, and the functions below that say so, are registered for each kind of plan.
    """
    raise NotImplementedError(type(plan))


@recipe_of.register
def _(plan: Plan, cell: Cell) -> Recipe:
    variables = {"SCENES": str(plan.scenes("human")), "SHARDS": str(plan.shards)}
    changes = (
        f"precision={plan.precision}",
        *plan.fit_changes,
        f"method={cell.method}",
        *METHOD_CHANGES.get(cell.method, ()),
        f"seed={cell.seed}",
        *cell.changes,
    )
    recipe = read_settings("ablation", Recipe, variables, changes)
    human = tuple(each for each in recipe.human if each.task in SETTINGS[cell.setting])
    return replace(recipe, sam=plan.sam, human=human)


@singledispatch
def protocols_of(plan: AnyPlan, cell: Cell) -> list[Protocol]:
    """Return how a cell is evaluated, for each kind of plan."""
    raise NotImplementedError(type(plan))


@protocols_of.register
def _(plan: Plan, cell: Cell) -> list[Protocol]:
    return protocols_of_rounds(plan.rounds, cell)


def protocols_of_rounds(rounds: int, cell: Cell) -> list[Protocol]:
    """Return protocols of so many rounds: points with both outputs, and a box, which has one output."""
    every = not cell.is_frozen and METHODS[cell.method].task_prompt == "all"
    task_rounds = rounds if every else 1
    return [
        Protocol("point", rounds, "oracle", task_rounds),
        Protocol("point", min(rounds, SINGLE_ROUNDS), "single", task_rounds),
        Protocol("box", 1, "single", task_rounds),
    ]


@singledispatch
def sets_of(plan: AnyPlan, cell: Cell) -> list[SetSettings]:
    """Return the sets that a cell is evaluated on, for each kind of plan."""
    raise NotImplementedError(type(plan))


@sets_of.register
def _(plan: Plan, cell: Cell) -> list[SetSettings]:
    return [describe_set(plan.scenes(cell.split), task) for task in SCENE_TASKS]


@singledispatch
def identity_of(plan: AnyPlan, cell: Cell) -> dict[str, Any]:
    """Return what decides the scores of a cell beside the data, for each kind of plan: a cell that is there with
    another identity is refused."""
    raise NotImplementedError(type(plan))


@identity_of.register
def _(plan: Plan, cell: Cell) -> dict[str, Any]:
    scenes = {name: getattr(plan, name) for name in ("pool", "human", cell.split, "masks_of_a_scene")}
    identity: dict[str, Any] = {"cell": asdict(cell), "scenes": scenes, "world": asdict(plan.world)}
    identity["human_world"] = asdict(plan.human_world)
    identity["sam"] = identify_weights(plan.sam)["sha256"]
    identity["protocols"] = [asdict(protocol) for protocol in protocols_of(plan, cell)]
    if not cell.is_frozen:
        recipe = recipe_of(plan, cell)
        identity["recipe"] = recipe.identity()
        identity["precision"] = recipe.computed_in
        identity["human"] = {each.task: each.limit for each in recipe.human}
        identity["layers"] = layers_of(plan, recipe)
    return identity


def identity_of_world(plan: Plan) -> dict[str, Any]:
    """Return what was asked for, of all runs: the plan but for which runs there are, and the recipes.

    Frozen models that were trained for the same world on two kinds of processor may still differ: each rounds in its
    way. Of the precision, the recipes say what it came to.
    """
    asked = {name: value for name, value in asdict(plan).items() if name not in (*WHICH_RUNS, "precision")}
    recipe = recipe_of(plan, Cell(STUDY_SETTING, "sum"))
    return {**asked, "recipe": recipe.identity(), "refiner": refiner_recipe(plan).identity()}


def layers_of(plan: AnyPlan, recipe: Recipe) -> dict[str, str]:
    """Return the ids of the layers that a run reads: they change with the labels and with the refiner."""
    if not recipe.chosen_method.reads_pseudo_labels:
        return {}
    shards = ShardSet.open(str(plan.shards))
    names = [MASKS] if recipe.layer is None else [MASKS, uncertainty_layer(recipe.layer)]
    return {name: shards.layer_id(name) for name in names}
