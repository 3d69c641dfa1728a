"""The page of the demo: the table, doubtful labels, and SAM beside SUM, as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import numpy.typing as npt

from sum_factory.labelgen.page.drawing import heat_map, jpeg_url
from sum_factory.labelgen.sets.export import at_full_size
from sum_factory.pipelines.demo.player import Player, draw_played, shown_targets
from sum_factory.shared.images import RgbImage, decode_image
from sum_factory.shared.photo_files import read_bytes
from sum_factory.shared.progress import track
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.shards.shard_set import ImageRows, ShardSet, UncertaintyRow
from sum_factory.trainer.data.sets import Task
from sum_factory.trainer.evaluation.protocol import Played
from sum_factory.trainer.predict import UserPrompt, draw_prediction

Results = Mapping[str, Mapping[str, Mapping[str, float]]]
"""For each model and each task (and "all") the mean of each metric at each round."""
SHOWN_ROUNDS = (1, 3, 5)
LABELS_SHOWN = 12
SCENES_OF_TASK: dict[Task, int] = {"salient": 6, "entity": 4, "part": 4}
SMALLEST_SHOWN = 0.02
"""Labels that cover less of the image are left out of the pictures."""


@dataclass(frozen=True)
class Compared:
    """What a page tells: facts in words, the results, how many held-out masks and scenes they are of, and how many
    clicks these got."""

    facts: str
    results: Results
    masks: int
    scenes: int
    rounds: int
    accuracy: str

    @property
    def keys(self) -> tuple[str, ...]:
        """The figures that the page shows."""
        return tuple(f"{metric}@{n}" for metric in ("mIoU", "mBIoU") for n in SHOWN_ROUNDS if n <= self.rounds)


def write_demo_page(
    out: Path, compared: Compared, shards: ShardSet, layer: str, models: Mapping[str, LoadedSam], held_out: Path
) -> None:
    """Write the page: ``models`` by name, SAM first; ``held_out`` is the folder of ``write_sets``."""
    template = jinja2.Template((files("sum_factory.pipelines.demo") / "page.html").read_text(), autoescape=True)
    steps = cv2.applyColorMap(np.linspace(0, 255, 8).astype(np.uint8)[:, None], cv2.COLORMAP_INFERNO)[:, 0, ::-1]
    html = template.render(
        facts=compared.facts,
        masks=compared.masks,
        scenes=compared.scenes,
        accuracy=compared.accuracy,
        keys=compared.keys,
        table=list(_table(compared)),
        scale=", ".join(f"rgb({r}, {g}, {b})" for r, g, b in steps.tolist()),
        labels=list(track(_labels(shards, layer), "drawing labels", "label")),
        comparisons=list(track(_comparisons(models, held_out), "drawing comparisons", "scene")),
    )
    out.write_text(html)


def _table(compared: Compared) -> Iterator[tuple[str, list[tuple[str, list[tuple[float, str]]]]]]:
    """Yield each task with its models' figures in percent, marked where they differ from the first model's."""
    first = next(iter(compared.results.values()))
    for task in first:
        rows = []
        for model, means in compared.results.items():
            differences = [means[task][key] - first[task][key] for key in compared.keys]
            marks = ["better" if d > 0 else "worse" if d < 0 else "" for d in differences]
            figures = (100 * means[task][key] for key in compared.keys)
            rows.append((model, list(zip(figures, marks, strict=True))))
        yield task, rows


def _labels(shards: ShardSet, layer: str) -> Iterator[dict[str, Any]]:
    """Yield labels from the most doubtful one to the median by mean u, in even steps; at most one per photo."""
    ranked: list[tuple[float, int, ImageRows, UncertaintyRow]] = []
    for number in shards.committed():
        rows = shards.uncertainty(number, layer)
        for image in shards.images(number):
            known = [row for row in rows[image.index] if row.mean_u is not None and _is_large(image, row.mask)]
            if known:
                row = max(known, key=lambda each: each.mean_u or 0.0)
                ranked.append((row.mean_u or 0.0, number, image, row))
    ranked.sort(key=lambda each: (-each[0], each[1], each[2].index))
    positions = np.linspace(0, len(ranked) // 2, min(LABELS_SHOWN, len(ranked)), dtype=int)
    for mean_u, number, image, row in (ranked[position] for position in np.unique(positions)):
        yield _label(shards, layer, number, image, row) | {"mean_u": mean_u}


def _is_large(image: ImageRows, mask: int) -> bool:
    return bool(image.masks[mask]["area"] >= SMALLEST_SHOWN * image.height * image.width)


def _label(shards: ShardSet, layer: str, number: int, image: ImageRows, row: UncertaintyRow) -> dict[str, Any]:
    planned = shards.unit(number).images[image.index]
    photo = decode_image(read_bytes(planned), planned.name)
    frame = image.frame(row.mask, shards.input_side)
    (logits,) = shards.read_label_logits(number, image, [row.mask])
    (doubt,) = shards.read_uncertainty(number, [row], layer)
    assert doubt is not None, "only known labels are shown"
    assert doubt.refined is not None, "the demo's layer has a refiner"

    def full(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return at_full_size(values, frame, image.height, image.width)

    facts = image.masks[row.mask]
    prompt = UserPrompt(((facts["point_x"], facts["point_y"]),))
    return {
        "key": image.key,
        "predicted_iou": facts["predicted_iou"],
        "image": jpeg_url(photo),
        "label": jpeg_url(draw_prediction(photo, full(logits) > 0, prompt)),
        "refined": jpeg_url(draw_prediction(photo, full(doubt.refined) > 0, prompt)),
        "uncertainty": jpeg_url(heat_map(photo, full(doubt.u))),
    }


def _comparisons(models: Mapping[str, LoadedSam], held_out: Path) -> Iterator[dict[str, Any]]:
    """Yield scenes with one mask of each task, prompted as the protocol does, for all models."""
    players = {name: Player(model) for name, model in models.items()}
    for task, count in SCENES_OF_TASK.items():
        for scene, target in shown_targets(held_out, task, count, SMALLEST_SHOWN):
            yield {
                "task": task,
                "key": scene.key,
                "image": jpeg_url(scene.image),
                "truth": jpeg_url(draw_prediction(scene.image, target, UserPrompt())),
                "models": [
                    _drawn(name, player.play(scene, target, task), scene.image) for name, player in players.items()
                ],
            }


def _drawn(name: str, played: Played, image: RgbImage) -> dict[str, Any]:
    score, picture = played.score, jpeg_url(draw_played(played, image))
    return {"name": name, "picture": picture, "iou": score.iou, "boundary_iou": score.boundary_iou}
