"""Is this a world in which the claims can be told apart? Where labels are wrong, how sure the model is there, and which
source of uncertainty finds it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sum_factory.labelgen.formulas import difference
from sum_factory.pipelines.microworld.ablation.prepare import UNIT_SIZE, automask_of, sources_read
from sum_factory.pipelines.microworld.ablation.settings import SEEDS, Plan
from sum_factory.pipelines.microworld.certainty import (
    LEAST_IOU,
    Judged,
    Masks,
    Values,
    auroc,
    exact_masks,
    figures_by_task,
    judge_labels,
    near_outline,
)
from sum_factory.pipelines.microworld.coarse import Coarseness, coarsen
from sum_factory.pipelines.microworld.scene import Scene, make_scenes
from sum_factory.pipelines.microworld.sets import SCENE_TASKS
from sum_factory.shared.automask.automask import LabelGenerator
from sum_factory.shared.masks import iou
from sum_factory.shared.placement import Frame
from sum_factory.shared.progress import Stage, track
from sum_factory.shared.sam.checkpoint import file_sha256, load_sam
from sum_factory.shared.sam.refiner import Refiner, load_refiner
from sum_factory.shared.shards.dataset import DATASET, uncertainty_layer
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.evaluation.metrics import boundary_iou
from sum_factory.trainer.run.log import read_log

WORLD_FILE = "world.json"
BINS = 10
SURE = 0.9
"""Confidence |2p - 1| above which the model counts as sure."""


@dataclass(frozen=True)
class Exact:
    """One label before anything is rounded for storage: the logits s and u of refinement, float32 (H, W); what is
    wrong, what is near its outline and what is wrong in the coarse version of the mask that it means, bool (H, W); its
    IoU, and that of its refined version, with the mask that it means."""

    task: str
    logits: Values
    doubt: Values
    wrong: Masks
    near: Masks
    taught: Masks
    iou: float
    refined_iou: float


def is_prepared(plan: Plan, refiner: Path) -> bool:
    """Say whether refiner, labels and maps are there, so that the world can be described."""
    if not (refiner.is_file() and (plan.shards / DATASET).is_file()):
        return False
    shards = ShardSet.open(str(plan.shards))
    units = shards.unit_count
    return set(sources_read()) <= set(shards.uncertainty_layers) and all(
        len(shards.committed(uncertainty_layer(source))) == units for source in sources_read()
    )


def describe_world(plan: Plan, refiner: Path) -> dict[str, Any]:
    """Return the figures of the world, from the first scenes of the pool; they are kept beside the refiner's hash."""
    key = {"refiner": file_sha256(refiner), "scenes": plan.described, "coarseness": asdict(plan.coarseness)}
    path = plan.out / WORLD_FILE
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text())
        if stored["of"] == key:
            return stored
    world: dict[str, Any] = {"of": key, **_exact_figures(plan, refiner), "pairs": pairs_share(plan.out / "refiner")}
    shards = ShardSet.open(str(plan.shards))
    units = max(1, plan.described // UNIT_SIZE)
    world["sources"] = {}
    for source in sources_read():
        judged = list(judge_labels(shards, source, partial(exact_masks, plan.scenes("pool")), units))
        with Stage(f"averaging labels by {source}"):
            world["sources"][source] = {**figures_by_task(judged), "calibration": calibration(judged)}
    Storage(str(plan.out)).write(WORLD_FILE, (json.dumps(world, indent=1) + "\n").encode())
    return world


def pairs_share(run: Path) -> float:
    """Return the share of human masks of which SAM made a pair for the refiner, over its training."""
    lines = read_log(run)
    return float(sum(line["pairs"] for line in lines) / max(1, sum(line["masks"] for line in lines)))


def calibration(judged: Sequence[Judged]) -> list[dict[str, float]]:
    """Return, for bins of u, its mean, the share of pixels in it and the share of those that are wrong."""
    doubt = 1 - np.concatenate([each.certainty.ravel() for each in judged])
    wrong = np.concatenate([each.wrong.ravel() for each in judged])
    number = np.minimum((doubt * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(number, minlength=BINS)
    means = np.bincount(number, doubt, BINS) / np.maximum(counts, 1)
    wrongs = np.bincount(number, wrong, BINS) / np.maximum(counts, 1)
    return [
        {"u": float(means[b]), "pixels": float(counts[b] / len(doubt)), "wrong": float(wrongs[b])}
        for b in range(BINS)
        if counts[b]
    ]


def _exact_figures(plan: Plan, path: Path) -> dict[str, Any]:
    labels_of: list[int] = []
    exact: list[Exact] = []
    coarse: dict[str, list[float]] = {task: [] for task in SCENE_TASKS}
    loaded = load_sam(plan.sam)
    refiner = load_refiner(path, loaded)
    generator = LabelGenerator(loaded.sam, automask_of(plan), 256)
    scenes = make_scenes(SEEDS["pool"], 0, plan.described, plan.world)
    for scene in track(scenes, "describing the world", "scene", plan.described):
        found = list(exact_labels(generator, refiner, scene, plan.coarseness))
        labels_of.append(len(found))
        exact += [each for each in found if each is not None]
        for task in SCENE_TASKS:
            coarse[task] += [boundary_iou(coarsen(mask, plan.coarseness), mask) for mask in scene.masks(task)]
    logits = np.concatenate([each.logits.ravel() for each in exact])
    doubt = np.concatenate([each.doubt.ravel() for each in exact])
    wrong = np.concatenate([each.wrong.ravel() for each in exact])
    near = np.concatenate([each.near.ravel() for each in exact])
    taught = np.concatenate([each.taught.ravel() for each in exact])
    confidence = np.abs(np.tanh(logits / 2))
    tasks = {task: [each for each in exact if each.task == task] for task in SCENE_TASKS}
    return {
        "coarse_boundary_iou": {task: float(np.mean(values)) for task, values in coarse.items() if values},
        "labels_a_scene": float(np.mean(labels_of)),
        "labels_with_a_meaning": len(exact) / max(1, sum(labels_of)),
        "wrong_pixels": float(wrong.mean()),
        "wrong_pixels_near": float(wrong[near].sum() / max(1, wrong.sum())),
        "wrong_pixels_taught": float((wrong & taught).sum() / max(1, wrong.sum())),
        "taught_pixels_wrong": float((wrong & taught).sum() / max(1, taught.sum())),
        "confidence_where_wrong": float(confidence[wrong].mean()),
        "sure_where_wrong": float((confidence[wrong] > SURE).mean()),
        "auroc_exact": {"refinement": auroc(doubt, wrong), "magnitude of logits": auroc(-np.abs(logits), wrong)},
        "auroc_exact_near": {
            "refinement": auroc(doubt[near], wrong[near]),
            "magnitude of logits": auroc(-np.abs(logits[near]), wrong[near]),
        },
        "iou": {
            task: {
                "labels": len(group),
                "raw": float(np.mean([each.iou for each in group])),
                "refined": float(np.mean([each.refined_iou for each in group])),
            }
            for task, group in tasks.items()
            if group
        },
    }


@torch.no_grad()
def exact_labels(
    generator: LabelGenerator, refiner: Refiner, scene: Scene, coarseness: Coarseness
) -> Iterator[Exact | None]:
    """Label a scene; yield each label, or None for one that overlaps no exact mask by half.

    Of exact masks of equal overlap that of the first task counts.
    """
    labels = generator.label(scene.image)
    if len(labels) == 0:
        return
    side = scene.image.shape[0]
    (embedding,) = labels.embeddings.values()
    s = torch.from_numpy(labels.logits)
    corners = torch.from_numpy(labels.boxes).float()
    boxes = torch.cat([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
    index = torch.zeros(len(s), dtype=torch.int64)
    r = refiner.refine(embedding, index, torch.from_numpy(labels.points).float(), boxes, s)
    frame = Frame.whole(side, side, side)
    raw, refined, doubt = (frame.upsample(values).numpy() for values in (s, r, difference(s, r)))
    truth = [(task, mask) for task in SCENE_TASKS for mask in scene.masks(task)]
    for k in range(len(s)):
        overlaps = [iou(raw[k] > 0, mask) for _, mask in truth]
        best = int(np.argmax(overlaps))
        if overlaps[best] < LEAST_IOU:
            yield None
            continue
        task, mask = truth[best]
        yield Exact(
            task=task,
            logits=raw[k],
            doubt=doubt[k],
            wrong=(raw[k] > 0) ^ mask,
            near=near_outline(raw[k] > 0),
            taught=coarsen(mask, coarseness) ^ mask,
            iou=overlaps[best],
            refined_iou=iou(refined[k] > 0, mask),
        )
