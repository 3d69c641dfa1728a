"""A training step as one would first write it: what the step of ``trainer fit`` is compared with.

One graph of all rounds, by upstream's own modules: the image encoder, ``PromptEncoder`` and
``MaskDecoder.predict_masks``, the prompts of one image and of one kind at a time, as these take them. Logits are
brought to the photo's full resolution, where the losses are taken: focal by torchvision's formula, and Dice. What is
drawn at random is drawn by the trainer's functions, so that both sides have the same prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.sam.decode import BOX_MIN
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.batch import Batch
from sum_factory.trainer.interactive import InteractiveSettings, Targets
from sum_factory.trainer.losses import LossSettings
from sum_factory.trainer.prompts import click_errors, first_prompts


@dataclass
class _Prompt:
    """The prompt of one mask so far: a box (4,) or none, and points (2,) with their labels."""

    image: int
    box: Tensor | None
    points: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    @property
    def kind(self) -> tuple[int, bool, int]:
        """Masks of one kind go through upstream's modules together."""
        return self.image, self.box is None, len(self.points)


def naive_loss(sam: Sam, batch: Batch, settings: InteractiveSettings) -> Tensor:
    """Return the mean loss of a photo's masks and all rounds, summed over photos and divided by their number."""
    targets, side = batch.targets, int(sam.image_encoder.img_size)
    embeddings = sam.image_encoder(batch.images)
    prompts = _first(targets, settings, side, batch)
    logits: Tensor | None = None
    rounds = []
    for number in range(1, settings.rounds + 1):
        if logits is not None and number < settings.rounds:
            predicted = full_size(logits, side) > 0
            _click(prompts, predicted, targets, batch)
        losses, logits = _play(sam, embeddings, prompts, logits, targets, settings)
        rounds.append(losses)
    counts = torch.tensor(batch.counts, device=batch.images.device)[targets.image_index]
    return (torch.stack(rounds).mean(0) / counts).sum() / len(batch.counts)


def _first(targets: Targets, settings: InteractiveSettings, side: int, batch: Batch) -> list[_Prompt]:
    drawn = first_prompts(targets.masks, targets.sampling, settings.box_share, targets.stride, side, batch.random)
    prompts = []
    for image, coords, kinds in zip(targets.image_index.tolist(), drawn.coords, drawn.token_types, strict=True):
        if kinds[0] == BOX_MIN:
            prompts.append(_Prompt(image, coords.flatten()))
        else:
            prompts.append(_Prompt(image, None, [coords[0]], [kinds[0]]))
    return prompts


def _click(prompts: Sequence[_Prompt], predicted: Tensor, targets: Targets, batch: Batch) -> None:
    weights = targets.sampling * targets.valid
    points, labels, found = click_errors(predicted, targets.masks, weights, targets.stride, batch.random)
    for k in found.nonzero()[:, 0].tolist():
        prompts[k].points.insert(0, points[k])
        prompts[k].labels.insert(0, labels[k])


def _play(
    sam: Sam,
    embeddings: Tensor,
    prompts: Sequence[_Prompt],
    previous: Tensor | None,
    targets: Targets,
    settings: InteractiveSettings,
) -> tuple[Tensor, Tensor]:
    """Play a round: return the loss of each mask, and the logits that the next round begins with, (P, h, w)."""
    alike = defaultdict(list)
    for k, prompt in enumerate(prompts):
        alike[prompt.kind].append(k)
    losses: dict[int, Tensor] = {}
    left: dict[int, Tensor] = {}
    for (image, is_point, _), rows in alike.items():
        some = [prompts[k] for k in rows]
        points = (_stacked([p.points for p in some]), _stacked([p.labels for p in some])) if some[0].points else None
        boxes = None if is_point else torch.stack([p.box for p in some if p.box is not None])
        masks = None if previous is None else previous[rows][:, None]
        sparse, dense = sam.prompt_encoder(points, boxes, masks)
        positions = sam.prompt_encoder.get_dense_pe()
        low_res, iou = sam.mask_decoder.predict_masks(embeddings[image : image + 1], positions, sparse, dense)
        several = is_point and previous is None
        for k, outputs, believed in zip(rows, low_res, iou, strict=True):
            trained, fed = _choose(outputs, believed, targets[k : k + 1], settings) if several else (0, 0)
            chosen = full_size(outputs[trained][None], int(sam.image_encoder.img_size))
            found = (chosen > 0) & targets.valid[k]
            truth = targets.masks[k] & targets.valid[k]
            true = (found & truth).sum() / (found | truth).sum()
            error = settings.loss.iou_weight * (believed[trained] - true) ** 2
            losses[k] = full_size_loss(chosen, targets[k : k + 1], settings.loss) + error
            left[k] = outputs[fed].detach()
    order = range(len(prompts))
    return torch.stack([losses[k] for k in order]), torch.stack([left[k] for k in order])


def _stacked(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(list(row)) for row in rows])


def _choose(outputs: Tensor, believed: Tensor, targets: Targets, settings: InteractiveSettings) -> tuple[int, int]:
    """Return the output of least loss, which is trained, and that of highest predicted IoU, which is fed back."""
    side = targets.masks.shape[-1]
    with torch.no_grad():
        losses = [full_size_loss(full_size(output[None], side), targets, settings.loss) for output in outputs[1:]]
    return 1 + int(torch.stack(losses).argmin()), 1 + int(believed[1:].argmax())


def full_size(logits: Tensor, side: int) -> Tensor:
    """Bring logits (P, h, w) to the input's resolution, (P, side, side), as upstream's ``postprocess_masks`` does."""
    return F.interpolate(logits[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]


def full_size_loss(logits: Tensor, targets: Targets, settings: LossSettings) -> Tensor:
    """Return the loss of one mask, all (1, side, side): UA-focal and UA-Dice on the pixels of the photo."""
    logits = logits / settings.temperature
    wanted, valid = targets.masks.to(logits.dtype), targets.valid.to(logits.dtype)
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    at_truth = probability * wanted + (1 - probability) * (1 - wanted)
    alpha = settings.alpha * wanted + (1 - settings.alpha) * (1 - wanted)
    focal = (targets.certainty * valid * alpha * (1 - at_truth) ** settings.gamma * entropy).sum() / valid.sum()
    kept = valid * (targets.certainty > settings.theta)
    overlap, total = (probability * wanted * kept).sum(), ((probability + wanted) * kept).sum()
    dice = 1 - (2 * overlap + settings.epsilon) / (total + settings.epsilon)
    return settings.focal_weight * focal + settings.dice_weight * dice
