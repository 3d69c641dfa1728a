"""How many points ``vit_micro`` needs: the masks of 32 x 32 points that a coarser grid keeps too, and what it saves.

    python -m pipelines.bench.points [--quick] [--photos FOLDER]

On the photos of the scikit-image wheel and on scenes of the micro-world, or on the photos of a folder. A mask is kept
if the coarser grid has one of an IoU of 0.7 with it, at which box NMS takes two for the same. On one thread. The last
line is a JSON object: by points per side, the share of masks kept, and processor time per photo over that of 32.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import click
import torch

from sum_factory.labelgen.listing import list_photos
from sum_factory.pipelines.bench.parts.last_line import last_line
from sum_factory.pipelines.microworld.scene import make_scene
from sum_factory.pipelines.microworld.textures import photo_paths
from sum_factory.shared.automask.automask import LabelGenerator
from sum_factory.shared.automask.rle import Mask
from sum_factory.shared.automask.settings import settings_for
from sum_factory.shared.images import RgbImage, decode_image
from sum_factory.shared.masks import iou
from sum_factory.shared.photo_files import read_bytes
from sum_factory.shared.progress import track
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.runtime import Runtime, move_to_device
from sum_factory.shared.sam.settings import PACKAGED

FINEST = 32
SIDES = (12, 16, 20, 24, 28, FINEST)
SAME_MASK = settings_for(PACKAGED).box_nms_thresh
SEED = 17


@dataclass
class Grid:
    """What so many points per side made of all photos."""

    generator: LabelGenerator
    masks: int = 0
    kept: int = 0
    seconds: float = 0.0


def measure_grids(images: list[RgbImage], sides: tuple[int, ...]) -> dict[int, Grid]:
    """Label every image with every grid; count the masks of the finest one that each has too."""
    sam = move_to_device(load_sam(PACKAGED).sam, Runtime("cpu"))
    grids = {side: Grid(LabelGenerator(sam, settings_for(PACKAGED, points_per_side=side))) for side in sides}
    grids[FINEST].generator.label(images[0])  # compiles kernels, or reads them from their cache
    for image in track(images, "labelling", "image"):
        found: dict[int, list[Mask]] = {}
        for side, grid in grids.items():
            started = time.process_time()
            labels = grid.generator.label(image)
            grid.seconds += time.process_time() - started
            found[side] = list(labels.masks())
        for side, grid in grids.items():
            grid.masks += len(found[side])
            grid.kept += sum(any(iou(mask, other) >= SAME_MASK for other in found[side]) for mask in found[FINEST])
    return grids


@click.command()
@click.option("--quick", is_flag=True, help="Two photos and two scenes, three grids.")
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Label these instead.")
@click.option("--limit", default=40, show_default=True, help="Photos of the folder, at most.")
def main(quick: bool, photos: Path | None, limit: int) -> None:
    """Compare grids of points."""
    torch.set_num_threads(1)
    if photos is not None:
        files = islice(list_photos([str(photos)]), limit)
        images = [decode_image(read_bytes(each), each.name) for each in files]
    else:
        count, scenes = (2, 2) if quick else (len(photo_paths()), 16)
        images = [decode_image(path.read_bytes(), path.name) for path in photo_paths()[:count]]
        images += [make_scene(SEED, index).image for index in range(scenes)]
    grids = measure_grids(images, (16, 24, FINEST) if quick else SIDES)
    finest = grids[FINEST]
    assert finest.kept == finest.masks > 0, "a grid has all of its own masks"
    figures: dict[str, float] = {"images": len(images), "masks_32": finest.masks}
    for side, grid in grids.items():
        click.echo(f"{side:3} x {side:<3} {grid.masks:5} masks, {grid.seconds / len(images):.2f} s a photo")
        figures |= {f"kept_{side}": round(grid.kept / finest.masks, 3)}
        figures |= {f"cpu_ratio_{side}": round(grid.seconds / finest.seconds, 3)}
    click.echo(last_line(figures))


if __name__ == "__main__":
    main()
