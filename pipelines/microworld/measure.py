"""Measure ``vit_micro`` on held-out scenes: from a point, from a box, and in automatic mode.

    python -m pipelines.microworld.measure --scenes 200 --out out/vit_micro.json

The figures of ``docs/vit_micro.md`` come from this command. Prompts are deterministic: the first point is the pixel of
the target farthest from its boundary, the box is the target's own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from sum_factory.pipelines.microworld.coarse import Coarseness, coarsen
from sum_factory.pipelines.microworld.scene import Scene, make_scenes
from sum_factory.shared.allocator import tune_malloc
from sum_factory.shared.automask.automask import GeneratedMasks, LabelGenerator
from sum_factory.shared.automask.settings import AutomaskSettings, settings_for
from sum_factory.shared.masks import box_of, iou
from sum_factory.shared.progress import track
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.decode import BOX_MAX, BOX_MIN, PAD, POSITIVE, Prompts, decode_prompts
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.evaluation.clicks import first_click

Masks = npt.NDArray[np.bool_]

HELD_OUT_SEED = 1_000_003
"""The world that pre-training never draws from."""
LEAST_SHARE = 0.01
"""Masks smaller than this share of the image are left out of the prompted figures."""


@dataclass(frozen=True)
class Outcome:
    """One prompted target.

    ``iou`` and ``iou_exact`` are the IoU of the three outputs, (3,), with the coarse and with the exact mask,
    ``predicted_iou`` what the model thinks they are. Of the best output: ``wrong`` pixels against the exact mask,
    ``systematic`` ones among them, where the coarse mask is wrong as well, and the sums of the confidence
    |2 sigmoid - 1| over both.
    """

    task: str
    prompt: str
    iou: npt.NDArray[np.float64]
    iou_exact: npt.NDArray[np.float64]
    predicted_iou: npt.NDArray[np.float64]
    wrong: int
    systematic: int
    confidence_wrong: float
    confidence_systematic: float


@torch.no_grad()
def prompt_scene(sam: Sam, scene: Scene) -> list[Outcome]:
    """Prompt every entity and part of a scene with a point and with a box."""
    targets: list[tuple[str, Masks, Masks]] = []
    for task in ("entity", "part"):
        for exact in scene.masks(task):
            coarse = coarsen(exact, Coarseness())
            if coarse.mean() >= LEAST_SHARE:
                targets.append((task, coarse, exact))
    if not targets:
        return []
    image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].to(sam.device)
    embedding = sam.image_encoder(sam.preprocess(image.float()))
    outcomes = []
    for prompt in ("point", "box"):
        tokens = [_tokens(coarse, prompt) for _, coarse, _ in targets]
        token_types = (POSITIVE, PAD) if prompt == "point" else (BOX_MIN, BOX_MAX)
        prompts = Prompts(
            torch.tensor(np.array(tokens), dtype=torch.float32, device=sam.device),
            torch.tensor([token_types] * len(targets), device=sam.device),
        )
        index = torch.zeros(len(targets), dtype=torch.long, device=sam.device)
        logits, predicted_iou = decode_prompts(sam, embedding, index, prompts)
        large = upsample(logits[:, 1:], scene.image.shape[0])
        for k, (task, coarse, exact) in enumerate(targets):
            outcomes.append(judge(task, prompt, large[k], predicted_iou[k, 1:].double().cpu().numpy(), coarse, exact))
    return outcomes


def _tokens(mask: Masks, prompt: str) -> npt.NDArray[np.int64]:
    """Return the point that means a mask and a token of padding, or the corners of its box, (2, 2)."""
    if prompt == "box":
        return np.reshape(box_of(mask), (2, 2))
    click = first_click(mask)
    return np.array([(click.x, click.y), (0, 0)])


def judge(
    task: str,
    prompt: str,
    logits: npt.NDArray[np.float32],
    predicted_iou: npt.NDArray[np.float64],
    coarse: Masks,
    exact: Masks,
) -> Outcome:
    """Compare the three outputs of one prompt, logits float32 (3, S, S), with the coarse and the exact mask."""
    overlap = ious(logits > 0, coarse)
    best = logits[int(overlap.argmax())]
    confidence = np.abs(np.tanh(best.astype(np.float64) / 2))  # |2 sigmoid(x) - 1|
    wrong = (best > 0) ^ exact
    systematic = wrong & (coarse ^ exact)
    return Outcome(
        task=task,
        prompt=prompt,
        iou=overlap,
        iou_exact=ious(logits > 0, exact),
        predicted_iou=predicted_iou,
        wrong=int(wrong.sum()),
        systematic=int(systematic.sum()),
        confidence_wrong=float(confidence[wrong].sum()),
        confidence_systematic=float(confidence[systematic].sum()),
    )


def upsample(logits: Tensor, side: int) -> npt.NDArray[np.float32]:
    """Bring low-resolution logits (P, K, h, w) to float32 (P, K, side, side)."""
    large = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
    return np.asarray(large.cpu().numpy(), np.float32)


def ious(masks: Masks, target: Masks) -> npt.NDArray[np.float64]:
    """Return the IoU of each of ``masks`` (K, H, W) with ``target`` (H, W); empty with empty is 1."""
    return np.array([iou(mask, target) for mask in masks])


def automatic(generator: LabelGenerator, scene: Scene) -> tuple[GeneratedMasks, dict[str, list[bool]], list[float]]:
    """Label a scene automatically.

    Returns the labels; by task, for each coarse mask of at least 1 %, whether a kept mask has IoU >= 0.5 with it;
    and for each kept mask its best IoU with any coarse mask.
    """
    labels = generator.label(scene.image)
    side = scene.image.shape[0]
    kept = upsample(torch.from_numpy(labels.logits)[:, None], side)[:, 0] > 0
    found: dict[str, list[bool]] = {"entity": [], "part": []}
    best = np.zeros(len(labels))
    for task, hits in found.items():
        for exact in scene.masks(task):
            coarse = coarsen(exact, Coarseness())
            if not coarse.any():
                continue
            overlap = ious(kept, coarse)
            best = np.maximum(best, overlap)
            if coarse.mean() >= LEAST_SHARE:
                hits.append(bool((overlap >= 0.5).any()))
    return labels, found, best.tolist()


class AutomaticFigures:
    """What automatic mode finds with some settings, scene after scene."""

    def __init__(self, sam: Sam, settings: AutomaskSettings) -> None:
        self.settings = settings
        self.generator = LabelGenerator(sam, settings, points_per_batch=256)
        self.kept: list[int] = []
        self.best: list[float] = []
        self.found: dict[str, list[bool]] = {"entity": [], "part": []}

    def add(self, scene: Scene) -> None:
        """Label a scene and compare with its coarse masks."""
        labels, hits, best = automatic(self.generator, scene)
        self.kept.append(len(labels))
        self.best += best
        for task, values in hits.items():
            self.found[task] += values

    def figures(self) -> dict[str, float]:
        """Return the means over all scenes."""
        return {
            "points_per_side": self.settings.points_per_side,
            "pred_iou_thresh": self.settings.pred_iou_thresh,
            "stability_score_thresh": self.settings.stability_score_thresh,
            "masks_per_scene": float(np.mean(self.kept)),
            "recall_of_entities_at_0.5": float(np.mean(self.found["entity"])),
            "recall_of_parts_at_0.5": float(np.mean(self.found["part"])),
            "mean_best_iou_of_kept_masks": float(np.mean(self.best)) if self.best else 0.0,
        }


def measure(sam: Sam, model_type: str, scenes: int, points_per_side: int) -> dict[str, Any]:
    """Return all figures on ``scenes`` held-out scenes."""
    outcomes: list[Outcome] = []
    automatic_modes = {
        "automatic": AutomaticFigures(sam, settings_for(model_type, points_per_side=points_per_side)),
        "automatic_at_published_thresholds": AutomaticFigures(sam, AutomaskSettings(points_per_side=points_per_side)),
    }
    for scene in track(make_scenes(HELD_OUT_SEED, 0, scenes), "measuring", "scene", scenes):
        outcomes += prompt_scene(sam, scene)
        for mode in automatic_modes.values():
            mode.add(scene)
    return {
        "scenes": scenes,
        "prompted": {prompt: _prompted([o for o in outcomes if o.prompt == prompt]) for prompt in ("point", "box")},
        **{name: mode.figures() for name, mode in automatic_modes.items()},
    }


def _prompted(outcomes: list[Outcome]) -> dict[str, float]:
    best = np.array([o.iou.max() for o in outcomes])
    chosen = np.array([o.iou[o.predicted_iou.argmax()] for o in outcomes])
    predicted_iou = np.array([o.predicted_iou.max() for o in outcomes])
    exact = np.array([o.iou_exact.max() for o in outcomes])
    entity = np.array([o.task == "entity" for o in outcomes])
    wrong = max(1, sum(o.wrong for o in outcomes))
    return {
        "masks": len(outcomes),
        "mIoU_best_of_3": float(best.mean()),
        "mIoU_best_of_3_entity": float(best[entity].mean()),
        "mIoU_best_of_3_part": float(best[~entity].mean()),
        "mIoU_highest_predicted": float(chosen.mean()),
        "mIoU_best_of_3_exact_masks": float(exact.mean()),
        "share_of_wrong_pixels_that_coarse_masks_share": sum(o.systematic for o in outcomes) / wrong,
        "confidence_where_wrong": sum(o.confidence_wrong for o in outcomes) / wrong,
        "confidence_where_coarse_masks_are_wrong_too": sum(o.confidence_systematic for o in outcomes)
        / max(1, sum(o.systematic for o in outcomes)),
        "predicted_iou_error": float(np.abs(predicted_iou - chosen).mean()),
        "predicted_iou_correlation": float(np.corrcoef(predicted_iou, chosen)[0, 1]),
    }


@click.command()
@click.option("--sam", "weights", default=PACKAGED, show_default=True)
@click.option("--scenes", default=200, show_default=True)
@click.option("--points-per-side", default=16, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=None)
def main(weights: str, scenes: int, points_per_side: int, out: Path | None) -> None:
    """Measure a tiny SAM on held-out micro-world scenes."""
    tune_malloc()
    loaded = load_sam(weights)
    figures = measure(loaded.sam, loaded.architecture.name, scenes, points_per_side)
    text = json.dumps(figures, indent=1)
    click.echo(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
