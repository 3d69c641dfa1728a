"""How fast one core draws micro-world scenes, and makes their coarse masks.

    python -m pipelines.bench.microworld [--quick]

The last line is a JSON object. ``scenes_equal`` says that a second process drew the same bytes.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import click
import cv2

from sum_factory.pipelines.bench.parts.last_line import last_line
from sum_factory.pipelines.microworld.coarse import coarse_masks
from sum_factory.pipelines.microworld.scene import make_scene, make_scenes
from sum_factory.shared.progress import track

SEED = 11


def digest_scenes(count: int) -> str:
    """Return a hash of all that ``count`` scenes hold."""
    hasher = hashlib.sha256()
    for scene in make_scenes(SEED, 0, count):
        for array in (scene.image, scene.entities, scene.parts, scene.salient):
            hasher.update(array.tobytes())
    return hasher.hexdigest()


def time_scenes(count: int, with_coarse: bool) -> float:
    """Return scenes per second on one core."""
    started = time.perf_counter()
    for scene in make_scenes(SEED, 0, count):
        if with_coarse:
            coarse_masks(scene)
    return count / (time.perf_counter() - started)


@click.command()
@click.option("--quick", is_flag=True)
def main(quick: bool) -> None:
    """Time the scene generator."""
    cv2.setNumThreads(1)
    count, repeats = (100, 3) if quick else (500, 5)
    make_scene(SEED, 0)  # loads the textures
    drawn = [time_scenes(count, False) for _ in track(range(repeats), "drawing scenes", "repeat")]
    coarse = [time_scenes(count, True) for _ in track(range(repeats), "drawing scenes and coarse masks", "repeat")]
    with ProcessPoolExecutor(1) as pool:
        equal = pool.submit(digest_scenes, 20).result() == digest_scenes(20)
    figures = {
        "scenes_per_second_per_core": round(statistics.median(drawn), 1),
        "spread": [round(min(drawn), 1), round(max(drawn), 1)],
        "with_coarse_masks": round(statistics.median(coarse), 1),
        "scenes_equal": equal,
    }
    for name, value in figures.items():
        click.echo(f"{name:28} {value}")
    click.echo(last_line(figures))


if __name__ == "__main__":
    main()
