"""The demo from top to bottom: photos and scenes in; shards, SUM, and pages of pictures out.

The photos are those of the scikit-image wheel, the scenes come from the micro-world, the SAM is the tiny ``vit_micro``
that ships in the package, as its refiner does. Run it again and it continues where it was.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import pyarrow as pa

from sum_factory.labelgen.page.write import write_page
from sum_factory.labelgen.run import run
from sum_factory.labelgen.run_settings import RunSettings
from sum_factory.labelgen.sets.export import export
from sum_factory.pipelines.demo.announcer import Announcer
from sum_factory.pipelines.demo.pace import pace_of_this_machine
from sum_factory.pipelines.demo.page import Compared, Results, write_demo_page
from sum_factory.pipelines.demo.plan import HELD_OUT_SEED, HUMAN_SEED, POOL_SEED, DemoPlan
from sum_factory.pipelines.microworld.certainty import measure
from sum_factory.pipelines.microworld.sets import SCENE_TASKS, describe_set, write_sets
from sum_factory.pipelines.microworld.textures import photo_paths
from sum_factory.shared.automask.settings import settings_for
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.shared.shards.dataset import REFINEMENT
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.verify import verify
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.evaluation.report import summarise
from sum_factory.trainer.evaluation.run import evaluate_sets, load_weights
from sum_factory.trainer.evaluation.settings import Protocol
from sum_factory.trainer.launch import fit_on_ranks
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.refiner import RefinerRecipe, train_refiner
from sum_factory.trainer.settings import read_settings

SECONDS = {"scene": 0.06, "image": 1.0, "refiner step": 2.0, "check": 6.0, "evaluated scene": 1.0, "page": 8.0}
"""What one of these takes on two cores of an AMD Zen 3 server (AVX2). Estimates are made of it, and nothing else."""
STEP_SECONDS = {"demo": 1.4, "microworld": 4.3}
"""The same of a training step, by recipe."""


def demo(plan: DemoPlan, started: float | None = None) -> Results:
    """Do it all; return the results that ``results.json`` holds. It counts from ``started``, by ``perf_counter``."""
    say = Announcer(7 if plan.trains_refiner else 6, pace_of_this_machine(), started=started)
    shards = first_page(plan, say)
    say("verifying the shards and exporting them as COCO", SECONDS["check"])
    problems = [problem for check in verify(shards) for problem in check.problems]
    if problems:
        raise click.ClickException("\n".join(problems))
    (plan.out / "instances.json").unlink(missing_ok=True)
    export(shards, plan.out / "instances.json")
    recipe = train_sum(plan, say)
    models = {
        name: load_weights(weights, Runtime()) for name, weights in (("SAM", PACKAGED), ("SUM", str(plan.out / "sum")))
    }
    results, masks = compare(plan, models, say)

    say("drawing the page", SECONDS["page"])
    page = plan.out / "index.html"
    facts, accuracy = facts_of(plan, recipe, shards, say.seconds), describe_accuracy(shards, plan.out / "pool")
    compared = Compared(facts, results, masks, plan.held_out, plan.rounds, accuracy)
    write_demo_page(page, compared, shards, REFINEMENT, models, plan.out / "held_out")
    click.echo(f"done in {say.seconds:.0f} s; open {page.resolve()}")
    return results


def first_page(plan: DemoPlan, say: Announcer) -> ShardSet:
    """Label photos and scenes, with maps, and write the page that shows them."""
    count = plan.photos + plan.scenes
    say(
        f"gathering {plan.photos} photos of scikit-image, and {plan.scenes} scenes of the micro-world",
        _scenes(plan.scenes),
    )
    images = gather_images(plan)
    refiner = own_refiner(plan, say) if plan.trains_refiner else PACKAGED
    say(f"labelling {count} images, with uncertainty maps, into {plan.out / 'shards'}", SECONDS["image"] * count)
    shards = label(plan, images, refiner, say)
    page = plan.out / "labels.html"
    write_page(shards, page, limit=count)
    say.tell(f"labels and maps after {say.seconds:.0f} s: open {page.resolve()}")
    return shards


def _scenes(count: int) -> float:
    return SECONDS["scene"] * count


def gather_images(plan: DemoPlan) -> Path:
    """Write the unlabelled images, photos and scenes without masks, and return their folder.

    What the scenes' masks are is kept apart, in ``pool``.
    """
    images, pool = plan.out / "images", plan.out / "pool"
    write_sets(pool, POOL_SEED, plan.scenes)
    images.mkdir(parents=True, exist_ok=True)
    for photo in [*photo_paths()[: plan.photos], *sorted((pool / "images").iterdir())]:
        if not (images / photo.name).exists():
            shutil.copyfile(photo, images / photo.name)
    return images


def own_refiner(plan: DemoPlan, say: Announcer) -> str:
    """Train the refiner of the long demo on human masks; return its path."""
    human = plan.out / "human"
    recipe = read_settings("refiner_microworld", RefinerRecipe, {"SCENES": str(human)}, plan.refiner_changes)
    seconds = _scenes(plan.human) + SECONDS["refiner step"] * recipe.steps
    say(f"training a refiner on {plan.human} scenes with human masks, {recipe.steps} steps", seconds)
    write_sets(human, HUMAN_SEED, plan.human)
    return str(train_refiner(recipe, plan.out / "refiner", say.tell))


def label(plan: DemoPlan, images: Path, refiner: str, say: Announcer) -> ShardSet:
    """Label all images, with uncertainty maps in the same pass."""
    folder = plan.out / "shards"
    automask = settings_for(PACKAGED, points_per_side=plan.points_per_side)
    settings = RunSettings(
        (str(images),), str(folder), automask=automask, unit_size=8, workers=plan.workers, refiner=refiner
    )
    say.tell(run(settings, say.tell).lines())
    return ShardSet.open(str(folder))


def train_sum(plan: DemoPlan, say: Announcer) -> Recipe:
    """Train SUM on the labels and on human masks; return the recipe."""
    human = plan.out / "human"
    variables = {"SCENES": str(human), "SHARDS": str(plan.out / "shards")}
    changes = (f"precision={plan.precision}", *plan.fit_changes)
    recipe = read_settings(plan.recipe, Recipe, variables, changes)
    seconds = _scenes(plan.human) + STEP_SECONDS[plan.recipe] * recipe.steps
    say(f"training SUM on these labels and {plan.human} scenes with human masks, {recipe.steps} steps", seconds)
    write_sets(human, HUMAN_SEED, plan.human)
    say.tell(fit_on_ranks(recipe, plan.out / "sum").lines())
    return recipe


def compare(plan: DemoPlan, models: dict[str, LoadedSam], say: Announcer) -> tuple[Results, int]:
    """Evaluate the models on held-out scenes; return their means by task, and the number of masks."""
    say(f"evaluating SAM and SUM on {plan.held_out} held-out scenes", SECONDS["evaluated scene"] * plan.held_out)
    held_out = plan.out / "held_out"
    write_sets(held_out, HELD_OUT_SEED, plan.held_out)
    sets = [describe_set(held_out, task, plan.held_out) for task in SCENE_TASKS]
    results, masks = {}, 0
    for name, model in models.items():
        scores = list(evaluate_sets(model, sets, [Protocol(rounds=plan.rounds)], plan.masks_of_a_scene))
        results[name] = summarise(pa.concat_tables([score.rows for score in scores]))
        masks = sum(score.masks for score in scores)
    Storage(str(plan.out)).write("results.json", (json.dumps(results, indent=1) + "\n").encode())
    for name, means in results.items():
        say.tell(f"{name}: " + ", ".join(f"{task} {100 * means[task]['mBIoU@3']:.1f}" for task in means) + " mBIoU@3")
    return results, masks


def facts_of(plan: DemoPlan, recipe: Recipe, shards: ShardSet, seconds: float) -> str:
    """Say in two sentences what was done."""
    seen = f"{plan.human} scenes with human masks"
    refiner = f"the refiner saw {seen}" if plan.trains_refiner else "with the refiner that ships beside it"
    return (
        f"{PACKAGED} labelled {shards.dataset.image_count} images, {refiner}; SUM trained {recipe.steps} steps of "
        f"{recipe.batch} photos, on these labels and {seen}. {seconds / 60:.1f} minutes in all."
    )


def describe_accuracy(shards: ShardSet, scenes: Path) -> str:
    """Say how right labels are where they are certain and where not; the scenes' exact masks were shown to nobody."""
    found = measure(shards, REFINEMENT, scenes)
    return "Pixels of the labels that are right: " + "; ".join(
        f"{task}, {100 * each['accuracy_certain']:.1f} % where c > 0.6, {100 * each['accuracy_doubtful']:.1f} % "
        f"elsewhere ({100 * each['share_doubtful']:.1f} % of the pixels; {each['labels']:.0f} labels)"
        for task, each in found.items()
    )
