"""The main job on embedded defaults: photos and scenes in; shards, a refiner, SUM, and a page of pictures out.

    python -m pipelines.quickstart --out out/demo

The photos are those of the scikit-image wheel, the scenes come from the micro-world, the SAM is the tiny ``vit_t``
that ships in the package. Run it again and it continues where it was.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import click
import pyarrow as pa

from labelgen.export import export_coco
from labelgen.run import RunSettings, run
from labelgen.settings import settings_for
from labelgen.view.page import write_page
from pipelines.demo.page import Compared, Results, write_demo_page
from pipelines.microworld.certainty import measure
from pipelines.microworld.sets import TASKS, describe_set, write_sets
from pipelines.microworld.textures import photo_paths
from shared.precision import PrecisionSetting, precision_option
from shared.sam.checkpoint import LoadedSam
from shared.sam.runtime import Runtime
from shared.sam.settings import PACKAGED
from shared.shards.dataset import REFINEMENT
from shared.shards.shard_set import ShardSet
from shared.shards.verify import verify
from shared.storage import Storage
from trainer.evaluate.report import summarise
from trainer.evaluate.run import evaluate_sets, load_weights
from trainer.evaluate.settings import Protocol
from trainer.loop import fit_on_ranks
from trainer.recipe import Recipe
from trainer.refiner import RefinerRecipe, train_refiner
from trainer.settings import read_settings

POOL_SEED, HUMAN_SEED, HELD_OUT_SEED = 2_000_003, 3_000_017, 5_000_011
"""The worlds of the unlabelled scenes, of those with human masks, and of those that are reported; pre-training drew
from none of them."""
ROUNDS = 5
MASKS_OF_A_SCENE = 6
"""Held-out masks of a task that are evaluated in one scene, at most."""


@dataclass(frozen=True)
class DemoSettings:
    """How large the demo is."""

    out: Path
    scenes: int = 72
    human: int = 300
    held_out: int = 48
    points_per_side: int = 16
    workers: int = 0
    precision: PrecisionSetting = "auto"
    """What SUM is trained in; the refiner, labels and scores are fp32's."""
    refiner_changes: tuple[str, ...] = ()
    fit_changes: tuple[str, ...] = ()


@dataclass
class Announcer:
    """Says which step of how many begins, and how long all took."""

    total: int
    number: int = 0
    started: float = field(default_factory=time.perf_counter)

    def __call__(self, text: str) -> None:
        self.number += 1
        click.echo(f"{self.number}/{self.total}  {text}")

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self.started


def demo(settings: DemoSettings) -> Results:
    """Do it all; return the results that ``results.json`` holds."""
    say = Announcer(7)
    out = settings.out
    say("gathering images: the photos of scikit-image and scenes of the micro-world")
    images, human, held_out = gather_images(settings)

    say("training the refiner on human masks")
    scenes = {"SCENES": str(human)}
    refiner = train_refiner(
        read_settings("refiner_microworld", RefinerRecipe, scenes, settings.refiner_changes), out / "refiner", _indented
    )

    say(f"labelling {len(list(images.iterdir()))} images, with uncertainty maps, into {out / 'shards'}")
    shards = label(settings, images, refiner)

    say("verifying the shards and exporting them as COCO")
    problems = [problem for check in verify(shards) for problem in check.problems]
    if problems:
        raise click.ClickException("\n".join(problems))
    export_coco(shards, out / "instances.json")
    write_page(shards, out / "labels.html", limit=48)

    say("training SUM on shards and human masks")
    changes = (f"precision={settings.precision}", *settings.fit_changes)
    recipe = read_settings("microworld", Recipe, {**scenes, "SHARDS": str(out / "shards")}, changes)
    _indented(fit_on_ranks(recipe, out / "sum").lines())

    say(f"evaluating SAM and SUM on {settings.held_out} held-out scenes")
    models = {
        name: load_weights(weights, Runtime()) for name, weights in (("SAM", PACKAGED), ("SUM", str(out / "sum")))
    }
    results, masks = compare(models, held_out, settings.held_out)
    Storage(str(out)).write("results.json", (json.dumps(results, indent=1) + "\n").encode())
    for name, means in results.items():
        _indented(f"{name}: " + ", ".join(f"{task} {100 * means[task]['mBIoU@3']:.1f}" for task in means) + " mBIoU@3")

    say("drawing the pages")
    minutes = say.seconds / 60
    facts = (
        f"{PACKAGED} labelled {shards.dataset.image_count} images; the refiner saw {settings.human} scenes with human "
        f"masks; SUM trained {recipe.steps} steps of {recipe.batch} photos. {minutes:.1f} minutes in all."
    )
    compared = Compared(facts, results, masks, settings.held_out, describe_accuracy(shards, out / "pool"))
    write_demo_page(out / "index.html", compared, shards, REFINEMENT, models, held_out)
    click.echo(f"done in {say.seconds:.0f} s; open {(out / 'index.html').resolve()}")
    return results


def gather_images(settings: DemoSettings) -> tuple[Path, Path, Path]:
    """Write the unlabelled images, the scenes with human masks and the held-out ones; return their three folders.

    The unlabelled folder holds photos and scenes without masks; what the scenes' masks are is kept apart, in ``pool``.
    """
    out = settings.out
    images, pool, human, held_out = (out / name for name in ("images", "pool", "human", "held_out"))
    write_sets(pool, POOL_SEED, settings.scenes)
    write_sets(human, HUMAN_SEED, settings.human)
    write_sets(held_out, HELD_OUT_SEED, settings.held_out)
    images.mkdir(parents=True, exist_ok=True)
    for photo in [*photo_paths(), *sorted((pool / "images").iterdir())]:
        if not (images / photo.name).exists():
            shutil.copyfile(photo, images / photo.name)
    return images, human, held_out


def label(settings: DemoSettings, images: Path, refiner: Path) -> ShardSet:
    """Label all images, with uncertainty maps in the same pass."""
    folder = settings.out / "shards"
    automask = settings_for(PACKAGED, points_per_side=settings.points_per_side)
    summary = run(
        RunSettings(
            (str(images),), str(folder), automask=automask, unit_size=8, workers=settings.workers, refiner=str(refiner)
        )
    )
    _indented(summary.lines())
    return ShardSet.open(str(folder))


def compare(models: dict[str, LoadedSam], held_out: Path, scenes: int) -> tuple[Results, int]:
    """Evaluate the models; return their means by task, and the number of masks."""
    sets = [describe_set(held_out, task, scenes) for task in TASKS]
    results, masks = {}, 0
    for name, model in models.items():
        scores = list(evaluate_sets(model, sets, [Protocol(rounds=ROUNDS)], MASKS_OF_A_SCENE))
        results[name] = summarise(pa.concat_tables([score.rows for score in scores]))
        masks = sum(score.masks for score in scores)
    return results, masks


def describe_accuracy(shards: ShardSet, scenes: Path) -> str:
    """Say how right labels are where they are certain and where not; the scenes' exact masks were shown to nobody."""
    found = measure(shards, REFINEMENT, scenes)
    return "Pixels of the labels that are right: " + "; ".join(
        f"{task}, {100 * each['accuracy_certain']:.1f} % where c > 0.6, {100 * each['accuracy_doubtful']:.1f} % "
        f"elsewhere ({100 * each['share_doubtful']:.1f} % of the pixels; {each['labels']:.0f} labels)"
        for task, each in found.items()
    )


def _indented(text: str) -> None:
    click.echo(f"     {text}")


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out/demo"), show_default=True)
@click.option("--scenes", default=DemoSettings.scenes, show_default=True, help="Unlabelled scenes.")
@click.option("--human", default=DemoSettings.human, show_default=True, help="Scenes with human masks.")
@click.option("--held-out", default=DemoSettings.held_out, show_default=True, help="Scenes to evaluate on.")
@click.option("--points-per-side", default=DemoSettings.points_per_side, show_default=True)
@click.option("--workers", default=0, show_default=True, help="Ray actors; 0 labels in this process.")
@precision_option(DemoSettings.precision, "What SUM is trained in: auto is bf16 where the device has it, else fp32.")
@click.option("--set-refiner", multiple=True, help="key=value for the recipe refiner_microworld; repeatable.")
@click.option("--set-fit", multiple=True, help="key=value for the recipe microworld; repeatable.")
def main(
    out: Path,
    scenes: int,
    human: int,
    held_out: int,
    points_per_side: int,
    workers: int,
    precision: PrecisionSetting,
    set_refiner: tuple[str, ...],
    set_fit: tuple[str, ...],
) -> None:
    """Label photos and scenes with the tiny SAM, train a refiner and SUM, and show both."""
    demo(DemoSettings(out, scenes, human, held_out, points_per_side, workers, precision, set_refiner, set_fit))


if __name__ == "__main__":
    main()
