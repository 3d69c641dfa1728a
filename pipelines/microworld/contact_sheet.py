"""Draw a contact sheet of micro-world scenes: image, entities, parts, salient object, coarse masks.

python -m pipelines.microworld.contact_sheet --out out/scenes.png
"""

from __future__ import annotations

from pathlib import Path

import click
import cv2
import numpy as np
import numpy.typing as npt

from sum_factory.pipelines.microworld.coarse import coarse_masks
from sum_factory.pipelines.microworld.scene import Scene, make_scenes
from sum_factory.shared.progress import track

Picture = npt.NDArray[np.uint8]


def draw_row(scene: Scene) -> Picture:
    """Return a scene's five pictures side by side, RGB uint8 (S, 5 S, 3)."""
    palette = np.random.default_rng(7).integers(70, 256, (256, 3)).astype(np.uint8)
    palette[0] = 0
    coarse = np.zeros_like(scene.image)
    for k, mask in enumerate(coarse_masks(scene)):
        coarse[mask] = palette[k + 1]
    salient = np.where(scene.salient[..., None], scene.image, scene.image // 5)
    return np.hstack([scene.image, palette[scene.entities], palette[scene.parts], salient, coarse])


@click.command()
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--count", default=16, show_default=True, help="Scenes; two a row.")
def main(out: Path, seed: int, count: int) -> None:
    """Write a PNG with image, entities, parts, salient object and coarse masks of some scenes."""
    count += count % 2
    rows = [draw_row(scene) for scene in track(make_scenes(seed, 0, count), "drawing scenes", "scene", count)]
    pairs = [np.hstack(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), np.vstack(pairs)[..., ::-1]):
        raise click.ClickException(f"cannot write {out}")
    click.echo(f"wrote {out}")


if __name__ == "__main__":
    main()
