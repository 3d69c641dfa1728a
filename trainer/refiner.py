"""`trainer refiner`: train the mask-refinement module on human masks (SUM, Sec. 3.2.3, App. D).

A pair is what SAM makes of a human mask from one random point in it, and that mask. The image encoder is frozen; the
refiner, a copy of prompt encoder and decoder, sees SAM's logits, their box and the point, and learns the human mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import click
import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.allocator import tune_malloc
from sum_factory.shared.errors import InputError
from sum_factory.shared.precision import Precision, PrecisionSetting, autocast, resolve, settle
from sum_factory.shared.sam.checkpoint import LoadedSam, load_sam
from sum_factory.shared.sam.decode import PAD, POSITIVE, Prompts, decode_prompts
from sum_factory.shared.sam.quality import QualityFilter
from sum_factory.shared.sam.refiner import Refiner, save_refiner
from sum_factory.shared.sam.runtime import pick_device, require_device
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.batch import Batch, collate, no_masks
from sum_factory.trainer.data.coded import Sample
from sum_factory.trainer.data.order import Mix
from sum_factory.trainer.data.samples import SampleSettings, TrainingSample
from sum_factory.trainer.data.sets import SetSettings, Task, open_set
from sum_factory.trainer.data.stream import HumanStream, MixedStream
from sum_factory.trainer.interactive import to_grid
from sum_factory.trainer.losses import LossSettings, true_iou
from sum_factory.trainer.optimizer import OptimizerSettings, make_optimizer, set_learning_rate, take_step
from sum_factory.trainer.prompts import boxes_of, cells_to_input, sample_cells
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.run.loop import Run, software
from sum_factory.trainer.run.settings import CHECKED, MOST, MOST_STEPS, CheckpointSettings
from sum_factory.trainer.run.trackers import TrackerName, require_tracker
from sum_factory.trainer.target import DEFAULT, Target, require_target, target_in_identity

REFINER = "refiner.safetensors"
WORTHY_SHARE = 0.1
"""Share of the masks below which a refiner is said to have seen few of them."""


@checked_dataclass(frozen=True, config=CHECKED)
class RefinerRecipe:
    """All settings of the training of a refiner."""

    human: tuple[SetSettings, ...] = Field(min_length=1)
    """Sets of photos with human masks, which teach the refiner what exact masks are."""
    sam: str = PACKAGED
    """The frozen SAM whose masks are refined: a file, a folder, an id on the Hugging Face hub, or vit_micro. The
    refiner fits no other."""
    task: Task = "unspecified"
    """Of weights with a task prompt, the task whose masks are refined. Give the one that labelling gets."""
    steps: int = Field(default=6_000, ge=1, le=MOST_STEPS)
    """Steps of the optimizer."""
    batch: int = Field(default=8, ge=1, le=MOST)
    """Photos per step; the encoder sees them one by one."""
    masks: int = Field(default=30, ge=1, le=MOST)
    """Masks of a photo, at most; of more, so many are drawn at random."""
    least_iou: float = Field(default=0.7, ge=0, le=1)
    """A human mask is left out if the best of SAM's masks from a point in it has a smaller IoU: SAM meant something
    else."""
    pred_iou_thresh: float | None = None
    """SAM's mask is left out if SAM does not predict a larger IoU for it; by default as in labelling. 0 is no
    filter."""
    stability_score_thresh: float | None = None
    """SAM's mask is left out if its stability score is lower; by default as in labelling. 0 is no filter."""
    stride: Literal[1, 2, 4] = 4
    """Input pixels per cell of the grid on which losses are taken and points drawn. 4 is SAM's own low resolution; give
    less for structures that are thinner than a cell."""
    target: Target = DEFAULT
    """What refined masks are compared with, as in `trainer fit`: authors, bits, coverage or points."""
    loss: LossSettings = field(default_factory=LossSettings)
    """Weights and constants of the mask loss."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """Learning rate, how it changes over steps, and the other settings of AdamW."""
    seed: int = 0
    """Number that all that is random follows from: samples, masks and points."""
    precision: PrecisionSetting = "fp32"
    """What the models compute in. Take that of labelling, so that the refiner learns from the embeddings that it will
    get there."""
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    """How often the state of the training is written, from which it is resumed."""
    kept_embeddings: int = Field(default=512, ge=0, le=MOST)
    """Photos whose embeddings stay in memory. The encoder is frozen, so it need not see these again; give as many as
    fit."""
    tracker: TrackerName = "tensorboard"
    """What shows the numbers of the training while it goes: tensorboard, wandb, mlflow or none. The log has them in any
    case."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps. auto takes CUDA if it is there, then Apple's GPU, then the CPU."""
    data_threads: int = Field(default=4, ge=1, le=1_024)
    """Threads that read and decode photos ahead of the model."""

    @model_validator(mode="after")
    def _settings_fit(self) -> RefinerRecipe:
        require_target(self.target, self.stride)
        return self

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the result; of the precision, what it is on the device."""
        left_out = {"human", "sam", "task", "checkpoint", "kept_embeddings", "device", "data_threads", "target"}
        left_out |= {"tracker"}
        settings = {**asdict(self), "precision": self.computed_in, "loss": self.loss.identity()}
        kept = {name: value for name, value in settings.items() if name not in left_out}
        return kept | target_in_identity(self.target)

    @property
    def computed_in(self) -> Precision:
        """What the precision is on the recipe's device."""
        return resolve(self.precision, pick_device(self.device)).name

    def quality(self, model_type: str) -> QualityFilter:
        """Return the quality filters for a model."""
        chosen = {"pred_iou_thresh": self.pred_iou_thresh, "stability_score_thresh": self.stability_score_thresh}
        given = {name: value for name, value in chosen.items() if value is not None}
        return replace(QualityFilter.of_model(model_type), **given)


@dataclass(frozen=True)
class Pairs:
    """What SAM made of P human masks, and what was kept of it.

    ``logits`` float32 (P, h, w) are s, SAM's best output; ``points`` (P, 2) and ``boxes`` (P, 4) are in input pixels;
    ``iou`` (P,) is that with the human mask; ``indexes`` are those of their targets in the batch, int64 (P,).
    """

    logits: Tensor
    points: Tensor
    boxes: Tensor
    iou: Tensor
    indexes: Tensor

    def __len__(self) -> int:
        return len(self.indexes)


@torch.no_grad()
def make_pairs(sam: Sam, embeddings: Tensor, batch: Batch, least_iou: float, quality: QualityFilter) -> Pairs:
    """Prompt the frozen SAM with one random point in each human mask; of its three outputs take the best by IoU.

    Pairs under ``least_iou``, and those that the quality filters of automatic masks would drop, are left out.
    """
    targets = batch.targets
    cells, _ = sample_cells(targets.masks.float(), batch.random)
    points = cells_to_input(cells, targets.stride)
    coords = torch.stack([points, torch.zeros_like(points)], 1)
    token_types = torch.tensor([[POSITIVE, PAD]], device=points.device).expand(len(points), -1)
    logits, predicted_iou = decode_prompts(sam, embeddings, targets.image_index, Prompts(coords, token_types))
    grid = to_grid(logits[:, 1:].float(), targets)
    ious = torch.stack([true_iou(grid[:, k], targets.masks, targets.valid) for k in range(grid.shape[1])], 1)
    best = ious.argmax(1)
    each = torch.arange(len(best), device=best.device)
    chosen = logits[each, 1 + best].float()
    square = _at_input_size(chosen, int(sam.image_encoder.img_size))
    valid = F.interpolate(targets.valid[:, None].float(), square.shape[1:], mode="nearest")[:, 0] > 0
    keep = quality.keeps(square, valid, predicted_iou[each, 1 + best]) & (ious[each, best] >= least_iou)
    indexes = keep.nonzero()[:, 0]
    boxes = boxes_of((square[indexes] > 0) & valid[indexes], 1)
    return Pairs(chosen[indexes], points[indexes], boxes, ious[indexes, best[indexes]], indexes)


@dataclass
class RefinerTraining:
    """The frozen SAM, the refiner that is trained, and the embeddings that are kept, by photo."""

    recipe: RefinerRecipe
    loaded: LoadedSam
    refiner: Refiner
    optimizer: torch.optim.Optimizer
    quality: QualityFilter
    embeddings: dict[int, Tensor] = field(default_factory=dict)

    def step(self, loaded: Sequence[Sample], number: int) -> dict[str, Any]:
        """Take one optimizer step; return what to log.

        Raises ``InputError`` if it has no mask, or if it is the last and none had a pair.
        """
        recipe, sam = self.recipe, self.loaded.sam
        rate = set_learning_rate(self.optimizer, recipe.optimizer, number - 1, recipe.steps)
        self.optimizer.zero_grad(set_to_none=False)
        logged = {"loss": 0.0, "pairs": 0, "masks": 0, "iou_before": 0.0, "iou_after": 0.0}
        samples = [sample.on(sam.device) for sample in loaded]
        batch = collate(samples, sam, recipe.stride, recipe.seed)
        if batch is None:
            skipped = sum(sample.skipped for sample in samples)
            raise InputError(no_masks(number, recipe.batch, skipped, [sample.key for sample in samples]))
        with autocast(sam.device.type, recipe.computed_in):
            embeddings = self._embed([sample for sample in samples if len(sample)], batch)
            pairs = make_pairs(sam, embeddings, batch, recipe.least_iou, self.quality)
            logged["masks"] = len(batch.targets)
            if len(pairs):
                logged |= self._backpropagate(embeddings, batch, pairs)
        norm = take_step(self.optimizer, recipe.optimizer, number)
        if number == recipe.steps:
            self._require_learned()
        return {**logged, "gradient_norm": norm, "learning_rate": rate}

    def _require_learned(self) -> None:
        """Raise ``InputError`` if no step of the run, of this process or an earlier one, had a pair to learn from."""
        moments = [state["exp_avg_sq"] for state in self.optimizer.state.values() if "exp_avg_sq" in state]
        if not any(bool(moment.any()) for moment in moments):
            raise InputError(
                f"{self.recipe.steps} steps had no pair to learn from: of no human mask did SAM make one of IoU "
                f"{self.recipe.least_iou} or more that passes the quality filters; look at the masks with "
                "`trainer data check`, or lower least_iou"
            )

    def _backpropagate(self, embeddings: Tensor, batch: Batch, pairs: Pairs) -> dict[str, Any]:
        targets = batch.targets
        index = targets.image_index[pairs.indexes]
        refined = self.refiner.refine(embeddings, index, pairs.points, pairs.boxes, pairs.logits).float()
        grid = to_grid(refined[:, None], targets)[:, 0]
        wanted, shifts = targets[pairs.indexes], targets.shifts(batch.random)
        shifts = None if shifts is None else shifts[pairs.indexes]
        loss = wanted.loss(refined, grid, shifts, self.recipe.loss).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        after = true_iou(grid.detach(), wanted.masks, wanted.valid).mean()
        before = pairs.iou.mean()
        return {
            "loss": float(loss.detach()),
            "pairs": len(pairs),
            "iou_before": float(before),
            "iou_after": float(after),
        }

    @torch.no_grad()
    def _embed(self, samples: Sequence[TrainingSample], batch: Batch) -> Tensor:
        """Return the embeddings of the batch's photos, float32 (B, C, g, g); those that are kept are not made again.

        Each photo is encoded alone: the last bits depend on what is encoded together, and a resumed run has other
        photos to encode.
        """
        found = []
        for image, sample in zip(batch.images, samples, strict=True):
            embedding = self.embeddings.get(sample.id.index)
            if embedding is None:
                embedding = self.loaded.sam.image_encoder(image[None])[0].float()
                if len(self.embeddings) < self.recipe.kept_embeddings:
                    self.embeddings[sample.id.index] = embedding
            found.append(embedding)
        return torch.stack(found)


def train_refiner(recipe: RefinerRecipe, out: Path, say: Callable[[str], None] = click.echo) -> Path:
    """Train a refiner into ``out``, from its last checkpoint on if there is one; return the path of its weights.

    Raises ``SumError`` if data, weights or settings are wrong, or differ from those that the run began with.
    """
    require_tracker(recipe.tracker)
    tune_malloc()
    device = require_device(pick_device(recipe.device))
    precision = settle(recipe.precision, device)
    recipe = replace(recipe, precision=precision.name)
    sets = [open_set(each) for each in recipe.human]
    loaded = load_sam(recipe.sam, task=recipe.task)
    loaded.sam.to(device).requires_grad_(False)
    refiner = Refiner.copy_of(loaded.sam).to(loaded.sam.device).requires_grad_(True)
    optimizer = make_optimizer(refiner, None, recipe.optimizer)
    quality = recipe.quality(loaded.architecture.name)
    training = RefinerTraining(recipe, loaded, refiner, optimizer, quality)
    side = int(loaded.sam.image_encoder.img_size)
    sampled = SampleSettings(side, recipe.stride, recipe.masks, recipe.seed, recipe.target)
    human = HumanStream(sets, sampled)
    identity = {
        **recipe.identity(),
        "quality": asdict(quality),
        "sam_sha256": loaded.sha256,
        **({} if loaded.task is None else {"sam_task": loaded.task}),
        "human_data": human.order.identity,
    }
    run = Run(
        Checkpoints(out, recipe.checkpoint.keep),
        recipe.steps,
        recipe.checkpoint.every,
        refiner.state_dict(),
        optimizer,
        identity,
        {"kind": "refiner checkpoint"},
        tracker=recipe.tracker,
    )
    first = run.resume(precision)
    what = f"refiner of {loaded.architecture.name} in {precision.name}"
    say(f"{what}: {len(human.order)} photos, {recipe.steps} steps, from step {first}")
    stream = MixedStream({"human": human}, Mix(1, 0), recipe.batch, threads=recipe.data_threads)
    run.go_on(first, stream, training.step)
    for line in _learned_from(read_log(out), recipe.least_iou):
        say(line)
    save_refiner(out / REFINER, refiner, loaded, {"run": identity, "steps": recipe.steps, "software": software()})
    return out / REFINER


def _learned_from(lines: Sequence[Mapping[str, Any]], least_iou: float) -> list[str]:
    """Say how many of the masks of all steps gave a pair, and warn if few did."""
    pairs, masks = (sum(line[name] for line in lines) for name in ("pairs", "masks"))
    said = [f"learned from {pairs} pairs, of {masks} masks"]
    if pairs < WORTHY_SHARE * masks:
        said.append(
            f"warning: of {1 - pairs / masks:.0%} of the masks, this SAM made no mask of IoU {least_iou} or more that "
            "passes the quality filters, so the refiner saw few of your masks; look at them with `trainer data check`, "
            "take a SAM that fits such photos, or lower least_iou"
        )
    return said


def _at_input_size(logits: Tensor, side: int) -> Tensor:
    return F.interpolate(logits[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]
