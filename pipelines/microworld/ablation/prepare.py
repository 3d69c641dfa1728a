"""Make what all runs share, once: frozen model, scenes, refiner, shards with a layer for each source of uncertainty."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sum_factory.labelgen.run import add_uncertainty, run
from sum_factory.labelgen.run_settings import RunSettings, UncertaintyRunSettings
from sum_factory.labelgen.settings import SOURCES, UncertaintySettings
from sum_factory.pipelines.microworld.ablation.frozen import make_frozen_model
from sum_factory.pipelines.microworld.ablation.settings import SEEDS, Plan
from sum_factory.pipelines.microworld.sets import write_sets
from sum_factory.shared.automask.settings import AutomaskSettings, settings_for
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.shared.shards.dataset import LOGITS
from sum_factory.trainer.methods import METHODS
from sum_factory.trainer.refiner import RefinerRecipe, train_refiner
from sum_factory.trainer.settings import read_settings

UNIT_SIZE = 32


def prepare(plan: Plan, processes: int, say: Callable[[str], None]) -> Path:
    """Make what is not there yet, in so many processes; return the refiner. Raises ``SumError`` as the stages do."""
    workers = processes if processes > 1 else 0  # of Ray, or none and no Ray
    make_frozen_model(plan, processes)
    for split, seed in SEEDS.items():
        write_sets(plan.scenes(split), seed, getattr(plan, split), plan.world_of(split))
    label_photos(plan.scenes("pool") / "images", plan.shards, plan.sam, automask_of(plan), workers, say)
    refiner = train_refiner(refiner_recipe(plan), plan.out / "refiner", say)
    add_maps(plan.shards, refiner, plan.sam, sources_read(), workers, say)
    return refiner


def label_photos(
    photos: Path, shards: Path, sam: str, automask: AutomaskSettings, workers: int, say: Callable[[str], None]
) -> None:
    """Label the photos of a folder or a list, and keep all that maps and training need."""
    labels = RunSettings(
        (str(photos),),
        str(shards),
        sam=sam,
        automask=automask,
        keep_photos=True,
        keep_logits=True,
        keep_embeddings=True,
        unit_size=UNIT_SIZE,
        workers=workers,
    )
    say(run(labels, say).lines())


def add_maps(
    shards: Path, refiner: Path, sam: str, sources: Sequence[str], workers: int, say: Callable[[str], None]
) -> None:
    """Add a layer of maps for each source of uncertainty, called as the source."""
    for source in sources:
        uncertainty = UncertaintySettings(source)
        settings = UncertaintyRunSettings(
            str(shards),
            refiner=str(refiner) if uncertainty.needs_refiner or uncertainty.compares_models else None,
            sam=sam,
            layer_name=source,
            uncertainty=uncertainty,
            use_kept=uncertainty.outputs if uncertainty.needs_refiner or uncertainty.compares_models else (LOGITS,),
            workers=workers,
        )
        say(f"{source}: {add_uncertainty(settings, say).lines()}")


def sources_read(methods: Iterable[str] = METHODS) -> list[str]:
    """Return the sources of uncertainty that any of these methods reads."""
    read = {METHODS[name].source for name in methods if METHODS[name].needs_uncertainty}
    return [source for source in SOURCES if source in read]


def refiner_recipe(plan: Plan) -> RefinerRecipe:
    """Return the recipe of the refiner: its pairs pass the filters that labels pass. Raises ``SettingsError``."""
    variables = {"SCENES": str(plan.scenes("human"))}
    thresholds = [f"{name}={getattr(plan, name)}" for name in ("pred_iou_thresh", "stability_score_thresh")]
    recipe = read_settings("refiner_ablation", RefinerRecipe, variables, (*thresholds, *plan.refiner_changes))
    return replace(recipe, sam=plan.sam)


def automask_of(plan: Plan) -> AutomaskSettings:
    """Return which masks are kept as labels."""
    return settings_for(
        PACKAGED,
        points_per_side=plan.points_per_side,
        pred_iou_thresh=plan.pred_iou_thresh,
        stability_score_thresh=plan.stability_score_thresh,
    )
