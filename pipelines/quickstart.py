"""The main job on embedded defaults: photos and scenes in, shards and a page of pictures out.

    python -m pipelines.quickstart --out out/demo

The photos are those of the scikit-image wheel, the scenes come from the micro-world, the SAM is the tiny ``vit_t``
that ships in the package. Run it again and it continues where it was.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import click
from PIL import Image
from tqdm import tqdm

from labelgen.automask import settings_for
from labelgen.export import export_coco
from labelgen.run import RunSettings, run
from labelgen.view.page import write_page
from pipelines.microworld.scene import make_scene
from pipelines.microworld.textures import photo_paths
from shared.sam.checkpoint import PACKAGED
from shared.shards.shard_set import ShardSet
from shared.shards.verify import verify

SCENE_SEED = 2_000_003
"""The world of the demo's scenes; pre-training never drew from it."""


def gather_images(folder: Path, scenes: int) -> None:
    """Put the photos of the scikit-image wheel and ``scenes`` micro-world scenes into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for photo in photo_paths():
        if not (folder / photo.name).exists():
            shutil.copyfile(photo, folder / photo.name)
    for index in tqdm(range(scenes), unit="scene", desc="drawing scenes", leave=False):
        path = folder / f"scene_{index:03d}.png"
        if not path.exists():
            Image.fromarray(make_scene(SCENE_SEED, index).image).save(path)


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out/demo"), show_default=True)
@click.option("--scenes", default=24, show_default=True)
@click.option("--points-per-side", default=16, show_default=True)
@click.option("--workers", default=0, show_default=True, help="Ray actors; 0 labels in this process.")
def main(out: Path, scenes: int, points_per_side: int, workers: int) -> None:
    """Label photos and scenes with the tiny SAM, and show the masks."""
    started = time.perf_counter()
    images, shards = out / "images", out / "shards"
    click.echo("1/4  gathering images: the photos of scikit-image and scenes of the micro-world")
    gather_images(images, scenes)
    click.echo(f"2/4  labelling them into {shards}")
    automask = settings_for(PACKAGED, points_per_side=points_per_side)
    settings = RunSettings((str(images),), str(shards), automask=automask, unit_size=8, workers=workers)
    click.echo("     " + run(settings).lines())
    click.echo("3/4  verifying the shards and exporting them as COCO")
    shard_set = ShardSet.open(str(shards))
    problems = [problem for check in verify(shard_set) for problem in check.problems]
    if problems:
        raise click.ClickException("\n".join(problems))
    _, masks = export_coco(shard_set, out / "instances.json")
    click.echo(f"4/4  drawing {masks} masks")
    page = out / "index.html"
    write_page(shard_set, page, limit=len(photo_paths()) + scenes)
    click.echo(f"done in {time.perf_counter() - started:.0f} s; open {page.resolve()}")


if __name__ == "__main__":
    main()
