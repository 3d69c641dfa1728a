"""The evaluation of HQ-SAM's training script: one box per photo, and photo and label squeezed into SAM's square.

Photo and label are resized without keeping their aspect. The box is that of the resized label. The logits of the one
mask go back to the label's own size in one bilinear step, and scores are taken there.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.images import RgbImage
from sum_factory.shared.masks import Mask, box_of
from sum_factory.shared.sam.decode import BOX_MAX, BOX_MIN, Prompts, decode_prompts
from sum_factory.shared.sam.hq import add_vectors
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.evaluation.metrics import Cutout

Box = tuple[int, int, int, int]


def squeezed(image: RgbImage, side: int) -> RgbImage:
    """Return a photo, uint8 (H, W, 3), as ``side`` x ``side`` pixels: bilinear, what follows the point cut off."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    return _resized(pixels, (side, side))[0].permute(1, 2, 0).numpy().astype(np.uint8)


def squeezed_box(target: Mask, side: int) -> Box | None:
    """Return the box of a label, bool (H, W), resized to ``side`` x ``side``: the least and largest x and y of what is
    above 128 of 255. None if nothing is left of it."""
    label = _resized(torch.from_numpy(target)[None, None].float() * 255, (side, side))[0, 0] > 128
    return box_of(label.numpy()) if label.any() else None


@torch.no_grad()
def predict_squeezed(
    sam: Sam, embedding: Tensor, task_vector: Tensor | None, box: Box, size: tuple[int, int]
) -> tuple[Cutout, float]:
    """Return the mask for a box in the square, at the photo's ``size``, height and width, and its predicted IoU.

    ``embedding`` (1, C, g, g) is that of the squeezed photo, ``task_vector`` (C,) or None.
    """
    source = embedding if task_vector is None else add_vectors(embedding, task_vector[None])
    corners = torch.tensor([[box[:2], box[2:]]], dtype=torch.float32, device=source.device)
    prompts = Prompts(corners, torch.tensor([[BOX_MIN, BOX_MAX]], device=source.device))
    index = torch.zeros(1, dtype=torch.long, device=source.device)
    logits, predicted = decode_prompts(sam, source, index, prompts)
    return Cutout.of((_resized(logits[:, :1].cpu(), size)[0, 0] > 0).numpy()), float(predicted[0, 0])


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(values, size, mode="bilinear", align_corners=False)
