"""Where are SAM's labels wrong, and does the uncertainty map say so?

    python -m pipelines.microworld.certainty --shards shards --scenes scenes --layer refinement

For every pseudo-label of a shard set over scenes whose exact masks are known (``pipelines.microworld.sets``): the
exact mask of any task that it overlaps most, if their IoU is 0.5 or more, is what it should have been. Pixels are those
of the photo; the map is upsampled like the label.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from sum_factory.pipelines.microworld.sets import SCENE_TASKS
from sum_factory.shared.masks import iou
from sum_factory.shared.placement import at_full_size
from sum_factory.shared.progress import Stage, track
from sum_factory.shared.shards.shard_set import ImageRows, ShardSet, UncertaintyRow

LEAST_IOU = 0.5
THRESHOLD = 0.6
"""Certainty above which a pixel is trusted: the paper's theta."""
BAND = 12
"""Pixels on both sides of a label's outline: far from it every source is right, and every source knows."""
PIXELS_OF_RANKS = 2_000_000
"""Pixels, drawn at random, from which the area under the ROC curve is taken."""

Values = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]
TruthOf = Callable[[ImageRows], Sequence[tuple[str, Masks]]]
"""The exact masks of an image, bool (H, W) each, with their tasks; none if they are not known."""


@dataclass(frozen=True)
class Judged:
    """One label beside the exact mask that it means: ``certainty`` float32, ``wrong`` and ``near`` bool, (H, W) each.

    ``near`` are the pixels within ``BAND`` of the label's outline. ``overlap`` is the label's IoU with the exact mask,
    ``refined_overlap`` that of the refined label, if the layer has one.
    """

    task: str
    overlap: float
    refined_overlap: float | None
    certainty: Values
    wrong: Masks
    near: Masks


def exact_masks(folder: Path, image: ImageRows) -> list[tuple[str, Masks]]:
    """Return the exact masks of a scene with their tasks, bool (H, W) each; none of what is no scene of the folder."""
    masks: list[tuple[str, Masks]] = []
    for task in SCENE_TASKS:
        path = folder / task / f"{image.key}.png"
        if path.exists():
            labels = np.asarray(Image.open(path))
            masks += [(task, labels == value) for value in np.unique(labels) if value != 0]
    return masks


def judge_labels(shards: ShardSet, layer: str, truth_of: TruthOf, units: int | None = None) -> Iterator[Judged]:
    """Compare every label whose map is known with the exact mask that it overlaps most, if it overlaps one by half.

    ``truth_of`` gives the exact masks of an image. Of the first ``units`` units, or of all.
    """
    for number in track(shards.committed()[:units], f"judging labels by {layer}", "unit"):
        rows = shards.uncertainty(number, layer)
        for image in shards.images(number):
            truth = truth_of(image) if image.masks else []
            if truth:
                yield from _judge_image(shards, number, image, rows[image.index], layer, truth)


def _judge_image(
    shards: ShardSet,
    number: int,
    image: ImageRows,
    rows: Sequence[UncertaintyRow],
    layer: str,
    truth: Sequence[tuple[str, Masks]],
) -> Iterator[Judged]:
    chosen = list(range(len(image.masks)))
    labels = shards.read_label_logits(number, image, chosen)
    maps = shards.read_uncertainty(number, rows, layer)
    for k, (label, doubt) in enumerate(zip(labels, maps, strict=True)):
        if doubt is None:
            continue
        place = (image.frame(k, shards.input_side), image.height, image.width)
        mask = at_full_size(label, *place) > 0
        overlaps = [iou(mask, exact) for _, exact in truth]
        best = int(np.argmax(overlaps))
        if overlaps[best] >= LEAST_IOU:
            task, exact = truth[best]
            refined = None if doubt.refined is None else iou(at_full_size(doubt.refined, *place) > 0, exact)
            yield Judged(
                task, overlaps[best], refined, 1 - at_full_size(doubt.u, *place), mask ^ exact, near_outline(mask)
            )


def near_outline(mask: Masks) -> Masks:
    """Return the pixels within ``BAND`` of the outline of a mask, bool (H, W) in and out."""
    inside, outside = (cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 5) for part in (mask, ~mask))
    return np.asarray(np.maximum(inside, outside) <= BAND)


def figures(judged: list[Judged]) -> dict[str, float]:
    """Return how often labels are right where they are trusted and where not, and how well the map ranks errors.

    ``auroc`` is the probability that a wrong pixel is less certain than a right one, ``auroc_near`` the same for pixels
    near the label's outline.
    """
    near = np.concatenate([each.near.ravel() for each in judged])
    certainty = np.concatenate([each.certainty.ravel() for each in judged])
    wrong = np.concatenate([each.wrong.ravel() for each in judged])
    trusted = certainty > THRESHOLD
    refined = [each.refined_overlap for each in judged if each.refined_overlap is not None]
    return {
        "labels": len(judged),
        "mean_iou": float(np.mean([each.overlap for each in judged])),
        **({"mean_refined_iou": float(np.mean(refined))} if refined else {}),
        "accuracy_certain": float(1 - wrong[trusted].mean()) if trusted.any() else float("nan"),
        "accuracy_doubtful": float(1 - wrong[~trusted].mean()) if (~trusted).any() else float("nan"),
        "share_doubtful": float((~trusted).mean()),
        "errors_doubtful": float((wrong & ~trusted).sum() / max(1, wrong.sum())),
        "auroc": auroc(-certainty, wrong),
        "auroc_near": auroc(-certainty[near], wrong[near]),
    }


def auroc(score: Values, positive: Masks) -> float:
    """Return the area under the ROC curve of ``score`` (N,) for ``positive`` (N,), ties counted half."""
    if len(score) > PIXELS_OF_RANKS:
        drawn = np.random.default_rng(0).choice(len(score), PIXELS_OF_RANKS, replace=False)
        score, positive = score[drawn], positive[drawn]
    count = int(positive.sum())
    if count in (0, len(positive)):
        return float("nan")
    from scipy.stats import mannwhitneyu  # takes seconds to import

    exact = score.astype(np.float64)  # ranks have the type of scores, and are summed
    statistic = mannwhitneyu(exact[positive], exact[~positive], method="asymptotic").statistic
    return float(statistic / (count * (len(positive) - count)))


def measure(shards: ShardSet, layer: str, scenes: Path) -> dict[str, dict[str, float]]:
    """Return ``figures`` for the labels of each task, and for all of them."""
    judged = list(judge_labels(shards, layer, partial(exact_masks, scenes)))
    with Stage("averaging"):
        return figures_by_task(judged)


def figures_by_task(judged: list[Judged]) -> dict[str, dict[str, float]]:
    """Return ``figures`` for the labels of each task that has any, and for all of them."""
    groups: dict[str, list[Judged]] = {task: [each for each in judged if each.task == task] for task in SCENE_TASKS}
    groups["all"] = judged
    return {name: figures(group) for name, group in groups.items() if group}


@click.command()
@click.option("--shards", required=True)
@click.option("--scenes", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--layer", default="refinement", show_default=True)
def main(shards: str, scenes: Path, layer: str) -> None:
    """Measure where labels are right, by their certainty."""
    click.echo(json.dumps(measure(ShardSet.open(shards), layer, scenes), indent=1))


if __name__ == "__main__":
    main()
