"""Damaged masks as mask prompts: what a first guess looks like when most of it is right.

A model that is trained on its own guesses alone learns to look at the photo instead of its mask prompt, because the
guesses are not good enough to be worth keeping. From an exact mask with something cut out of it, or grown onto it, the
rest has to be taken over.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

RADII = (0.2, 0.8)
"""Radius of the hole or of the growth, in radii of a disc of the mask's area."""
STEEPNESS = (5.0, 60.0)
"""|logit| where a whole cell is inside or outside: first guesses of ``vit_micro`` have 50 on average."""


def damaged_logits(targets: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Return mask prompts (P, 1, side, side), float32, of ``targets`` bool (P, T, T), each with one error.

    A disc around a random pixel of the mask is cut out of it, or, for every other mask on average, added to it.
    Masks without a pixel stay empty.
    """
    count, height, width = targets.shape
    flat = targets.flatten(1).float()
    present = flat.sum(1) > 0
    weights = torch.where(present[:, None], flat, torch.ones_like(flat))
    centre = torch.multinomial(weights, 1, generator=generator)[:, 0]
    ys, xs = torch.arange(height)[None, :, None], torch.arange(width)[None, None]
    share = torch.empty(count).uniform_(*RADII, generator=generator)
    radius = share * (flat.sum(1) / torch.pi).sqrt()
    # a growth begins at the rim: its middle is moved outwards from the middle of the mask
    cut = torch.rand(count, generator=generator) < 0.5
    y, x = (centre // width).float(), (centre % width).float()
    area = flat.sum(1).clamp(min=1)
    middle_y, middle_x = (targets * ys).flatten(1).sum(1) / area, (targets * xs).flatten(1).sum(1) / area
    away = torch.where(cut, 0.0, 1.0)
    y, x = y + away * (y - middle_y), x + away * (x - middle_x)
    disc = (ys - y[:, None, None]) ** 2 + (xs - x[:, None, None]) ** 2 <= radius[:, None, None] ** 2
    damaged = torch.where(cut[:, None, None], targets & ~disc, targets | disc) & present[:, None, None]
    steep = torch.empty(count, 1, 1, 1).uniform_(*STEEPNESS, generator=generator)
    return (2 * F.adaptive_avg_pool2d(damaged[:, None].float(), side) - 1) * steep
