"""Draw prompts from masks: noisy boxes, first points, and clicks at errors (SUM, Sec. 3.2.2, App. B.1).

Masks live on a grid of ``stride`` input pixels per cell, (P, H, W). The centre of cell x is input coordinate
(x + 0.5) * stride - 0.5. Prompts are in input pixels, x before y.

Every function draws its random numbers on the CPU, from one generator for all masks or from one for the masks of each
sample, so that a run does not depend on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.sam.decode import BOX_MAX, BOX_MIN, NEGATIVE, PAD, POSITIVE, Prompts
from sum_factory.trainer.randomness import Randomness, RowGenerators, by_row

HQ_POINTS = 10
"""Points that HQ-SAM's training draws in a mask."""
BOX_NOISE = 0.1
"""Standard deviation of the noise on a box coordinate, as a share of the side."""
BOX_NOISE_LIMIT = 20 / 1024
"""The noise is clipped to this share of the input's side: 20 px of 1024."""


def cells_to_input(cells: Tensor, stride: int) -> Tensor:
    """Map cell coordinates to input pixels."""
    return (cells.float() + 0.5) * stride - 0.5


def sample_cells(weights: Tensor, generator: Randomness) -> tuple[Tensor, Tensor]:
    """Draw one cell of each map (P, H, W) in proportion to its weight, which must not be negative.

    Returns the cells as int64 (P, 2), x and y, and bool (P,): False where a map is zero everywhere; then the cell means
    nothing. A cell of weight zero is never drawn.
    """
    return cells_at(weights, draw_shares(generator, len(weights)).to(weights.device))


def draw_shares(generator: Randomness, count: int) -> Tensor:
    """Draw at which share of the weights of each of so many masks a cell is taken, float64 (P, 1) in [0, 1)."""
    return by_row(generator, count).uniform(count, 1)


def cells_at(weights: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each map of (P, H, W) the cell at which its weights, added up, pass ``shares`` (P, 1) of their sum.

    The cells are as those of ``sample_cells``.
    """
    cumulative = weights.flatten(1).double().cumsum(1)
    total = cumulative[:, -1:]
    cell = torch.searchsorted(cumulative, shares * total, right=True)[:, 0]
    last = torch.searchsorted(cumulative, total.contiguous())[:, 0]  # the first cell at which the total is reached
    cell = torch.minimum(cell, last)  # rounding can put the threshold on the total itself
    return torch.stack([cell % weights.shape[2], cell // weights.shape[2]], 1), total[:, 0] > 0


def boxes_of(masks: Tensor, stride: int) -> Tensor:
    """Return the boxes of masks, bool (P, H, W), as float32 (P, 4) x0, y0, x1, y1: the centres of their outer pixels.

    An empty mask gives the box of the whole grid.
    """
    height, width = masks.shape[1:]
    columns, rows = masks.any(1).int(), masks.any(2).int()
    low = torch.stack([columns.argmax(1), rows.argmax(1)], 1)
    high = torch.stack([width - 1 - columns.flip(1).argmax(1), height - 1 - rows.flip(1).argmax(1)], 1)
    return torch.cat([low.float() * stride, (high.float() + 1) * stride - 1], 1)


def jitter_boxes(boxes: Tensor, input_side: int, generator: Randomness) -> Tensor:
    """Add Gaussian noise to each coordinate independently: 10 % of the side, clipped to 20 px of 1024, both ways."""
    sides = (boxes[:, 2:] - boxes[:, :2] + 1).repeat(1, 2)
    noise = by_row(generator, len(boxes)).normal(len(boxes), 4).to(boxes.device) * BOX_NOISE * sides
    limit = BOX_NOISE_LIMIT * input_side
    return (boxes + noise.clamp(-limit, limit)).clamp(0, input_side - 1)


def first_prompts(
    masks: Tensor,
    weights: Tensor,
    box_share: float | Tensor,
    stride: int,
    input_side: int,
    generator: Randomness,
) -> Prompts:
    """Prompt each mask with its noisy box, with probability ``box_share`` (one, or one per mask), or a point inside it.

    ``weights`` (P, H, W) says how likely each cell of the mask is drawn: 1 for human masks, the certainty for
    pseudo-labels. Where all weights inside the mask are zero the box is taken.
    """
    cells, found = sample_cells(weights * masks, generator)
    boxes = jitter_boxes(boxes_of(masks, stride), input_side, generator).view(-1, 2, 2)
    share = box_share.cpu() if isinstance(box_share, Tensor) else box_share
    chosen = (by_row(generator, len(masks)).uniform(len(masks), 1)[:, 0] < share).to(masks.device) | ~found
    points = cells_to_input(cells, stride)
    point_tokens = torch.stack([points, torch.zeros_like(points)], 1)
    coords = torch.where(chosen[:, None, None], boxes, point_tokens)
    token_types = torch.tensor([[POSITIVE, PAD], [BOX_MIN, BOX_MAX]], device=masks.device)
    return Prompts(coords, token_types[chosen.long()])


def hq_prompts(
    masks: Tensor, weights: Tensor, stride: int, grid: int, generator: Randomness
) -> tuple[Prompts, Tensor, Tensor]:
    """Prompt each mask as HQ-SAM's training does: with its exact box, with ``HQ_POINTS`` points in it, or with itself,
    noised, in equal shares. Where fewer cells of the mask than points have a weight, the box is taken for points.

    Returns the prompts; how many of the tokens of each row are given, int64 (P,): none with a mask prompt; and mask
    prompts of ``grid`` x ``grid`` cells, float32 (P, 1, h, w), of 0 and 255 as HQ-SAM has them, for the rows without a
    token. ``weights`` (P, H, W) says how likely each cell is drawn, as in ``first_prompts``.
    """
    rows, count = by_row(generator, len(masks)), len(masks)
    shares = rows.uniform(count, 1 + HQ_POINTS).to(masks.device)
    likely = weights * masks
    few = (likely > 0).flatten(1).sum(1) < HQ_POINTS
    which = (shares[:, 0] * 3).long()
    which = torch.where(few & (which == 1), 0, which)
    coords = torch.zeros(count, HQ_POINTS + 1, 2, device=masks.device)
    token_types = torch.full((count, HQ_POINTS + 1), PAD, device=masks.device)
    boxed, pointed = (which == 0).nonzero()[:, 0], (which == 1).nonzero()[:, 0]
    coords[boxed, :2] = boxes_of(masks[boxed], stride).view(-1, 2, 2)
    token_types[boxed, 0], token_types[boxed, 1] = BOX_MIN, BOX_MAX
    left = likely[pointed]
    for k in range(HQ_POINTS):
        cells, _ = cells_at(left, shares[pointed, 1 + k : 2 + k])
        left[torch.arange(len(left), device=left.device), cells[:, 1], cells[:, 0]] = 0  # each cell once
        coords[pointed, k], token_types[pointed, k] = cells_to_input(cells, stride), POSITIVE
    given = torch.tensor([2, HQ_POINTS + 1, 0], device=masks.device)[which]
    return Prompts(coords, token_types), given, noised(masks, grid, rows)


def noised(masks: Tensor, grid: int, generator: RowGenerators) -> Tensor:
    """Return masks with noise where they are finest, on a grid of ``grid`` x ``grid``: float32 (P, 1, h, w), 0 or 255.

    Standard normal noise goes to the cells that differ by 0.01 or more when the mask is scaled down by 8 and up again;
    then the mask is what exceeds 0.5 (HQ-SAM's training).
    """
    sized = F.interpolate(masks[:, None].float(), (grid, grid), mode="bilinear", align_corners=False)
    coarse = F.interpolate(sized, (grid // 8, grid // 8), mode="bilinear", align_corners=False)
    lost = (F.interpolate(coarse, (grid, grid), mode="bilinear", align_corners=False) - sized).abs() >= 0.01
    noise = generator.normal(len(masks), grid * grid).to(masks.device).view_as(sized)
    return ((sized + noise * lost) > 0.5) * 255.0


def click_errors(
    model_masks: Tensor, masks: Tensor, weights: Tensor, stride: int, generator: Randomness
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one click of each mask in the region where ``model_masks`` and ``masks``, bool (P, H, W), differ.

    A cell i of the error region R is drawn with probability w_i / sum_R w_j (Sec. 3.2.2). A false negative gives a
    positive point, a false positive a negative one. Returns coordinates float32 (P, 2), token types int64 (P,), and
    bool (P,): False where R is empty or all its weights are zero; then there is nothing to click, and the rest means
    nothing.
    """
    return clicks_at(model_masks, masks, weights, stride, draw_shares(generator, len(masks)).to(masks.device))


def clicks_at(
    model_masks: Tensor, masks: Tensor, weights: Tensor, stride: int, shares: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the clicks of ``click_errors`` that ``shares`` (P, 1), of ``draw_shares``, stand for."""
    cells, found = cells_at(weights * (model_masks ^ masks), shares)
    wanted = masks[torch.arange(len(masks), device=masks.device), cells[:, 1], cells[:, 0]]
    token_types = torch.where(wanted, POSITIVE, NEGATIVE)
    return cells_to_input(cells, stride), token_types, found
