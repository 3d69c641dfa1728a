"""Draw the pictures of the guides: what each setting of labelling changes, on scenes of the micro-world.

    python -m pipelines.docs.pictures                # into docs/images
    python -m pipelines.docs.pictures --out FOLDER
    python -m pipelines.docs.pictures --demo out/demo      # and SAM and SUM of a demo

Every picture is made by the functions that the commands call, with the SAM and the refiner that ship here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import click
import numpy as np
from PIL import Image

from sum_factory.labelgen import LabelledPhoto, label
from sum_factory.labelgen.page.drawing import colour_of, heat_map
from sum_factory.pipelines.demo.player import Player, draw_played, shown_targets
from sum_factory.pipelines.microworld.scene import make_scene
from sum_factory.pipelines.microworld.textures import photo_paths
from sum_factory.pipelines.photos.ablation.pictures import framed
from sum_factory.shared.drawing import draw_mask
from sum_factory.shared.images import RgbImage
from sum_factory.shared.labelled_photo import Map, Mask
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.shared.store.local_files import whole_file
from sum_factory.trainer.evaluation.run import load_weights
from sum_factory.trainer.predict import UserPrompt, draw_prediction
from sum_factory.trainer.shown import join

HOME = Path(__file__).resolve().parents[2]
SEED, NUMBER = 0, 6
"""The scene of the micro-world that settings are shown on."""
ACROSS = 2
"""Photos in a row of the picture of photos."""
SCENES_SHOWN, LEAST_SHOWN = 3, 0.03
"""Scenes of the demo in the picture of SUM, and the share of them that a mask covers at least."""
LOOSE = 0.5
"""A predicted IoU that lets many masks through."""
CHOICES: Mapping[str, Sequence[Mapping[str, float | None]]] = {
    "points_per_side": [{"points_per_side": points} for points in (4, 8, 16, 28)],
    "pred_iou_thresh": [{"pred_iou_thresh": least} for least in (0.5, 0.7, 0.8, 0.88)],
    "stability_score_thresh": [
        {"pred_iou_thresh": LOOSE, "stability_score_thresh": least} for least in (0.6, 0.8, 0.9, 0.95)
    ],
    "box_nms_thresh": [{"box_nms_thresh": most} for most in (0.3, 0.7, 0.9, 0.97)],
    "max_area_share": [{"max_area_share": most} for most in (0.005, 0.02, 0.06, 0.95)],
    "crop_n_layers": [{"crop_n_layers": layers, "points_per_side": 16} for layers in (0, 1)],
}
"""For each setting the values that are shown, with what else is set then."""
SHOWN = ("astronaut", "chelsea", "coffee", "coins", "motorcycle_left", "rocket")
"""Photos of scikit-image in the picture of photos."""
DOUBTS = (1.0, 0.02, 0.01)
"""Largest means of u, as `labelgen select --max-mean-u` takes them."""


def settings_picture(scene: RgbImage, setting: str) -> RgbImage:
    """Return the masks of a scene, uint8 (H, W, 3), for some values of a setting, side by side."""
    panels = []
    for chosen in CHOICES[setting]:
        (photo,) = label(scene, automask=chosen)
        panels.append((f"{setting} {chosen[setting]:g}: {len(photo)} masks", drawn(photo, range(len(photo)))))
    return join(panels)


def doubt_picture(scene: RgbImage) -> RgbImage:
    """Return the doubt of a scene's masks, and the masks that are left below some means of u, side by side."""
    (photo,) = label(scene, refiner="vit_micro")
    means = photo.mean_u["refinement"]
    panels = [("largest u of any mask", heat_map(photo.image(), largest_u(photo)))]
    for most in DOUBTS:
        kept = [k for k in range(len(photo)) if means[k] <= most]
        panels.append((f"mean u up to {most:g}: {len(kept)} masks", drawn(photo, kept)))
    return join(panels)


def example_picture(numbers: Sequence[int]) -> RgbImage:
    """Return a row per scene: the photo, its masks, what the refiner makes of them, and where they are doubtful."""
    rows = []
    for number in numbers:
        (photo,) = label(make_scene(SEED, number).image, refiner="vit_micro")
        refined = [mask for k in range(len(photo)) if (mask := photo.refined(k)) is not None]
        panels = [
            ("photo", photo.image()),
            (f"{len(photo)} masks", drawn(photo, range(len(photo)))),
            ("refined masks", overlaid(photo.image(), refined)),
            ("uncertainty", heat_map(photo.image(), largest_u(photo))),
        ]
        rows.append(join(panels))
    return np.concatenate(rows)


def photos_picture(paths: Sequence[Path]) -> RgbImage:
    """Return pairs of a photo and its masks, ``ACROSS`` in a row; the photos are those of scikit-image."""
    pairs = []
    for photo in label([str(path) for path in paths]):
        panels = [(photo.key, framed(photo.image())), (f"{len(photo)} masks", framed(drawn(photo, range(len(photo)))))]
        pairs.append(join(panels))
    rows = [np.concatenate(pairs[start : start + ACROSS], 1) for start in range(0, len(pairs), ACROSS)]
    return np.concatenate(rows)


def played_picture(demo: Path) -> RgbImage:
    """Return a row for each of some scenes of a demo: the scene, SAM and SUM after three clicks, and the truth."""
    players = {
        name: Player(load_weights(weights, Runtime()))
        for name, weights in (("SAM", PACKAGED), ("SUM", str(demo / "sum")))
    }
    rows = []
    for scene, target in shown_targets(demo / "held_out", "salient", SCENES_SHOWN, LEAST_SHOWN):
        played = {name: player.play(scene, target, "salient") for name, player in players.items()}
        panels = [(f"salient, {scene.key}", scene.image)]
        for name, each in played.items():
            scores = f"{100 * each.score.iou:.1f} / {100 * each.score.boundary_iou:.1f}"
            panels.append((f"{name}: {scores}", draw_played(each, scene.image)))
        rows.append(join([*panels, ("ground truth", draw_prediction(scene.image, target, UserPrompt()))]))
    return np.concatenate(rows)


def drawn(photo: LabelledPhoto, masks: Sequence[int]) -> RgbImage:
    """Return a photo with some of its masks over it."""
    return overlaid(photo.image(), [photo.mask(k) for k in masks])


def overlaid(photo: RgbImage, masks: Sequence[Mask]) -> RgbImage:
    """Draw masks, bool (H, W), over a photo, large ones first, each in its own colour with an outline."""
    canvas = photo.astype(np.float32)
    for k in sorted(range(len(masks)), key=lambda k: -int(masks[k].sum())):
        draw_mask(canvas, photo, masks[k], colour_of(k))
    return canvas.astype(np.uint8)


def largest_u(photo: LabelledPhoto) -> Map:
    """Return the largest u of any mask, float32 (H, W)."""
    largest = np.zeros((photo.height, photo.width), np.float32)
    for k in range(len(photo)):
        u = photo.uncertainty(k)
        if u is not None:
            np.maximum(largest, u, out=largest)
    return largest


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=HOME / "docs/images", help="The folder."
)
@click.option(
    "--demo",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A demo's folder: SAM and SUM on its scenes are drawn, too.",
)
def main(out: Path, demo: Path | None) -> None:
    """Draw the pictures of the guides into a folder."""
    scene = make_scene(SEED, NUMBER).image
    pictures = {f"setting_{name}": settings_picture(scene, name) for name in CHOICES}
    pictures |= {"setting_max_mean_u": doubt_picture(scene), "half_hour_labels": example_picture((6, 9))}
    pictures["demo"] = photos_picture([path for path in photo_paths() if path.stem in SHOWN])
    if demo is not None:
        pictures["sum"] = played_picture(demo)
    for name, picture in pictures.items():
        buffer = BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=85)
        with whole_file(out / f"{name}.jpg") as file:
            file.write(buffer.getvalue())
        click.echo(f"wrote {out / name}.jpg")


if __name__ == "__main__":
    main()
