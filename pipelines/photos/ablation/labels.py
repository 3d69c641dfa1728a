"""Are the labels right where the photos have human masks, and does the certainty say where they are not?

Labels of photos that no method sees the human masks of are compared with these, here alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sum_factory.pipelines.microworld.ablation.world import calibration
from sum_factory.pipelines.microworld.certainty import LEAST_IOU, Judged, Masks, figures_by_task, judge_labels
from sum_factory.pipelines.photos.ablation.data import PhotoSet
from sum_factory.pipelines.photos.ablation.plan import PhotosPlan
from sum_factory.pipelines.photos.ablation.where import SIZES, is_of_size
from sum_factory.shared.masks import iou
from sum_factory.shared.placement import at_full_size
from sum_factory.shared.progress import Stage, track
from sum_factory.shared.sam.checkpoint import file_sha256
from sum_factory.shared.shards.dataset import uncertainty_layer
from sum_factory.shared.shards.shard_set import MASKS, ImageRows, ShardSet
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.data.human import HumanSet
from sum_factory.trainer.data.sets import open_set

LABELS_FILE = "labels.json"
DRAWN_SEED = 1


@dataclass(frozen=True)
class KnownPhotos:
    """Photos whose human masks are known, by the SHA-256 of their files: their set, its task, and their place in it."""

    places: dict[str, tuple[HumanSet, str, int]]

    @classmethod
    def of(cls, plan: PhotosPlan) -> KnownPhotos:
        """Find those among the labelled photos: so many of them, drawn at random, as ``plan.described`` says."""
        labelled = set(plan.labelled)
        found = [place for each in plan.opened.tested for place in _places(each) if place[0] in labelled]
        drawn = np.random.default_rng(DRAWN_SEED).permutation(len(found))[: plan.described]
        return cls({file_sha256(found[index][0]): found[index][1:] for index in sorted(drawn)})

    def truth_of(self, image: ImageRows) -> list[tuple[str, Masks]]:
        """Return the human masks of a labelled photo with their task, bool (H, W) each; none if they are not known."""
        if image.digest not in self.places:
            return []
        opened, task, index = self.places[image.digest]
        return [(task, mask) for mask in opened.load(index).masks if mask.any()]


def _places(photos: PhotoSet) -> Iterator[tuple[Path, HumanSet, str, int]]:
    """Yield the photos of a set that may be trained on: file, set, task and place."""
    opened = open_set(photos.settings("train"))
    place_of = {key: index for index, key in enumerate(opened.keys)}
    for path in photos.photos("train"):
        if path.stem in place_of:
            yield path, opened, photos.kind, place_of[path.stem]


@dataclass(frozen=True)
class Coverage:
    """What the labels of some photos show of their human masks.

    ``labels`` has the share of the photo that each label covers; ``masks`` has of each human mask its task, its share
    of the photo, and the IoU of the label that is most like it (0 if there is none).
    """

    labels: list[float]
    masks: list[tuple[str, float, float]]

    @classmethod
    def of(cls, shards: ShardSet, known: KnownPhotos) -> Coverage:
        """Compare the labels of known photos with their human masks."""
        found = cls([], [])
        for number in track(shards.committed(), "looking for human masks among labels", "unit"):
            for image in shards.images(number):
                truth = known.truth_of(image)
                labels = list(_pixels(shards, number, image)) if truth else []
                found.labels.extend(float(label.mean()) for label in labels)
                for task, mask in truth:
                    best = max((iou(label, mask) for label in labels), default=0.0)
                    found.masks.append((task, float(mask.mean()), best))
        return found

    def by_size(self) -> dict[str, Any]:
        """Return by size the share of all labels, and by task the number of human masks and the share that is found: a
        label overlaps it by half."""
        labels, shares = np.array(self.labels), np.array([share for _, share, _ in self.masks])
        found = np.array([best >= LEAST_IOU for *_, best in self.masks])
        tasks = np.array([task for task, *_ in self.masks])
        table: dict[str, Any] = {}
        for size in SIZES:
            of_size = {task: is_of_size(shares, size) & (tasks == task) for task in np.unique(tasks).tolist()}
            table[size] = {
                "labels": float(is_of_size(labels, size).mean()) if len(labels) else 0.0,
                "masks": {task: int(chosen.sum()) for task, chosen in of_size.items()},
                "found": {task: float(found[chosen].mean()) for task, chosen in of_size.items() if chosen.any()},
            }
        return table


def _pixels(shards: ShardSet, number: int, image: ImageRows) -> Iterator[Masks]:
    """Yield the labels of a photo in its pixels, bool (H, W) each; of those from a crop, what lies in the crop."""
    for k, label in enumerate(shards.read_label_logits(number, image, list(range(len(image.masks))))):
        yield at_full_size(label, image.frame(k, shards.input_side), image.height, image.width) > 0


def describe_labels(plan: PhotosPlan) -> dict[str, Any]:
    """Return figures of the labels by source of uncertainty and task; they are kept beside the ids of their layers.

    Raises ``SumError`` for shards or sets that cannot be read.
    """
    shards = ShardSet.open(str(plan.shards))
    layers = {MASKS: shards.layer_id(MASKS)}
    layers |= {source: shards.layer_id(uncertainty_layer(source)) for source in shards.uncertainty_layers}
    key = {"layers": layers, "photos": plan.described}
    path = plan.out / LABELS_FILE
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text())
        if stored["of"] == key and "by size" in stored:
            return stored
    known = KnownPhotos.of(plan)
    coverage = Coverage.of(shards, known).by_size()
    found: dict[str, Any] = {"of": key, "photos": len(known.places), "by size": coverage, "sources": {}}
    for source in shards.uncertainty_layers:
        judged: list[Judged] = list(judge_labels(shards, source, known.truth_of))
        if judged:
            with Stage(f"averaging labels by {source}"):
                found["sources"][source] = {**figures_by_task(judged), "calibration": calibration(judged)}
    Storage(str(plan.out)).write(LABELS_FILE, (json.dumps(found, indent=1) + "\n").encode())
    return found
