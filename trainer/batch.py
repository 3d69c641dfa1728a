"""Put samples together on the training device, and backpropagate the rounds of their masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sum_factory.shared.precision import Precision, autocast
from sum_factory.shared.sam.hq import embed
from sum_factory.shared.sam.task_prompt import TaskPrompt
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.data.samples import TrainingSample
from sum_factory.trainer.interactive import InteractiveSettings, Judge, Targets, judge_round, play_rounds
from sum_factory.trainer.losses import kept_fraction
from sum_factory.trainer.points import PixelMasks
from sum_factory.trainer.randomness import RowGenerators, generator_of

COUNTED = ("loss", "photos", "masks", "skipped", "kept")


@dataclass(frozen=True)
class Batch:
    """B photos as SAM takes them, float32 (B, 3, S, S), normalised and padded; their task ids, int64 (B,); the targets
    of P masks; and for each photo its number of masks."""

    images: Tensor
    tasks: Tensor
    targets: Targets
    counts: list[int]
    random: RowGenerators


@dataclass
class Sums:
    """Sums over a step's masks: ``counts`` by name, and for each round the mask loss and the true IoU."""

    rounds: int
    counts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0.0))
    mask_loss: list[float] = field(default_factory=list)
    iou: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.mask_loss = self.mask_loss or [0.0] * self.rounds
        self.iou = self.iou or [0.0] * self.rounds

    def to_list(self) -> list[float]:
        """Return all sums as numbers, for adding up over processes."""
        return [*self.counts.values(), *self.mask_loss, *self.iou]

    @classmethod
    def from_list(cls, values: Sequence[float], rounds: int) -> Sums:
        """The inverse of ``to_list``."""
        rest = len(COUNTED)
        counts = dict(zip(COUNTED, values[:rest], strict=True))
        return cls(rounds, counts, list(values[rest : rest + rounds]), list(values[rest + rounds :]))

    def means(self) -> dict[str, Any]:
        """Return what to log: the loss, the counts, and means over the masks, those of mask loss and IoU by round."""
        masks = max(1.0, self.counts["masks"])
        return {
            "loss": self.counts["loss"],
            "photos": int(self.counts["photos"]),
            "masks": int(self.counts["masks"]),
            "skipped_masks": int(self.counts["skipped"]),
            "dice_kept": self.counts["kept"] / masks,
            "mask_loss": [value / masks for value in self.mask_loss],
            "iou": [value / masks for value in self.iou],
        }


def collate(samples: Sequence[TrainingSample], sam: Sam, stride: int, seed: int) -> Batch | None:
    """Make a batch of the samples that have masks, all on the model's device; None if there are none."""
    used = [sample for sample in samples if len(sample)]
    if not used:
        return None
    device = sam.device
    side = int(sam.image_encoder.img_size)
    images = torch.zeros(len(used), 3, side, side, device=device)
    for b, sample in enumerate(used):
        height, width = sample.image.shape[1:]
        pixels = sample.image.to(torch.float32)
        images[b, :, :height, :width] = (pixels - sam.pixel_mean) / sam.pixel_std
    counts = [len(sample) for sample in used]
    masks = torch.cat([sample.masks for sample in used])
    valid = torch.zeros_like(masks)
    row = 0
    for sample in used:
        valid[row : row + len(sample), : sample.valid[0], : sample.valid[1]] = True
        row += len(sample)
    ones = [torch.ones(sample.masks.shape, device=device) for sample in used]
    certainty = [one if s.certainty is None else s.certainty for s, one in zip(used, ones, strict=True)]
    sampling = [one if s.sampling is None else s.sampling for s, one in zip(used, ones, strict=True)]
    index = torch.repeat_interleave(torch.arange(len(used)), torch.tensor(counts))
    targets = Targets(
        masks=masks & valid,
        valid=valid,
        certainty=torch.cat(certainty),
        sampling=torch.cat(sampling) * valid,
        image_index=index.to(device),
        stride=stride,
        coverage=_together([sample.coverage for sample in used]),
        pixel_masks=_pixel_masks(used, index),
    )
    generators = [generator_of(seed, "rounds", s.id.stream, s.id.epoch, s.id.index) for s in used]
    tasks = torch.tensor([sample.task for sample in used], device=device)
    return Batch(images, tasks, targets, counts, RowGenerators(generators, counts))


def _together(of_samples: Sequence[Tensor | None]) -> Tensor | None:
    """Return one tensor of what samples have, if all of them have it; else None."""
    given = [each for each in of_samples if each is not None]
    return torch.cat(given) if len(given) == len(of_samples) else None


def _pixel_masks(samples: Sequence[TrainingSample], index: Tensor) -> PixelMasks | None:
    masks = _together([sample.pixel_masks for sample in samples])
    sizes = torch.tensor([sample.image.shape[1:] for sample in samples])
    return None if masks is None else PixelMasks(masks, sizes[index].to(masks.device))


def no_masks(step: int, photos: int, skipped: int, keys: Sequence[str]) -> str:
    """Return what to say of a step in which no photo has a mask that can be trained on; ``keys`` are some of them."""
    some = ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
    why = f"{skipped} masks are smaller than a cell or of unknown certainty" if skipped else "their photos have none"
    return (
        f"step {step}: none of its {photos} photos has a mask to train on ({why}): {some}; look at the masks with "
        "`trainer data check`, or give more photos per step"
    )


def keep_company(sam: Sam, precision: Precision) -> None:
    """Take part in what other processes compute of blocks that are sharded: embed an empty photo, and learn nothing.

    A process calls this where others have masks and it has none; else they would wait for it.
    """
    side = int(sam.image_encoder.img_size)
    with autocast(sam.device.type, precision):
        embeddings = embed(sam, torch.zeros(1, 3, side, side, device=sam.device))
    if embeddings.requires_grad:
        embeddings.backward(torch.zeros_like(embeddings))  # type: ignore[no-untyped-call]


def backpropagate(
    sam: Sam,
    task_prompt: TaskPrompt | None,
    batch: Batch,
    settings: InteractiveSettings,
    photos: int,
    sums: Sums,
    precision: Precision = "fp32",
    judge: Judge = judge_round,
    extra: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Add the gradients of a batch to those of the parameters, and what is logged of it to ``sums``.

    The loss is the mean over the rounds and a photo's masks, summed over the photos and divided by ``photos``, the
    number in the whole step. The image embedding and the task vectors are leaves: each round goes backwards at once,
    the encoder once at the end, so that memory does not grow with the rounds. ``extra`` is a loss of the embeddings, a
    sum over the batch's photos, which is added.
    """
    device = batch.images.device
    with autocast(device.type, precision):
        embeddings = embed(sam, batch.images).to(batch.images.dtype)
        leaf = embeddings.detach().requires_grad_(embeddings.requires_grad)
        vectors = None if task_prompt is None else task_prompt(batch.tasks)
        vector_leaf = None if vectors is None else vectors.detach().requires_grad_()
        counts = torch.tensor(batch.counts, device=device, dtype=leaf.dtype)[batch.targets.image_index]
        weight = 1 / (counts * settings.rounds * photos)
        played = torch.zeros(settings.rounds, 3, device=device, dtype=leaf.dtype)
        for result in play_rounds(sam, leaf, vector_leaf, batch.targets, settings, batch.random, judge):
            loss = (result.loss * weight[result.indexes]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            played[result.number - 1] += torch.stack([loss.detach(), result.mask_loss.sum(), result.iou.sum()])
        if extra is not None:
            added = extra(leaf) / photos
            added.backward()  # type: ignore[no-untyped-call]
            sums.counts["loss"] += float(added.detach())
    graphs = [(embeddings, leaf)] if embeddings.requires_grad else []
    graphs += [(vectors, vector_leaf)] if vectors is not None and vector_leaf is not None else []
    if graphs:
        torch.autograd.backward([root for root, _ in graphs], [reached.grad for _, reached in graphs])
    for number, (loss, mask_loss, iou) in enumerate(played.tolist()):  # one wait for the device
        sums.counts["loss"] += loss
        sums.mask_loss[number] += mask_loss
        sums.iou[number] += iou
    sums.counts["photos"] += len(batch.counts)
    sums.counts["masks"] += len(batch.targets)
    sums.counts["kept"] += float(kept_fraction(batch.targets.valid, batch.targets.certainty, settings.loss).sum())
