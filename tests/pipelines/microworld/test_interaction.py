"""Losses and IoU of pre-training equal naive versions; clicks are at errors and nowhere else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sum_factory.pipelines.microworld.corpus import TARGET_SIDE
from sum_factory.pipelines.microworld.interaction import STRIDE, best_iou, correct, mask_loss, output_iou, upsample
from sum_factory.shared.sam.decode import NEGATIVE, PAD, POSITIVE, Prompts


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    """Return logits of both signs."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def random_masks(*shape: int, seed: int = 1) -> Tensor:
    """Return masks that cover about a third."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.3


def naive_iou(a: Tensor, b: Tensor) -> float:
    """Return the IoU of two masks, counted by NumPy; 0 for two empty ones."""
    x, y = a.numpy(), b.numpy()
    union = np.logical_or(x, y).sum()
    return float(np.logical_and(x, y).sum() / union) if union else 0.0


def naive_loss(logits: Tensor, target: Tensor, balance: float) -> float:
    """Return cross-entropy + Dice of one mask, pixel by pixel in double precision."""
    share = min(max(float(target.float().mean()), 1e-3), 1 - 1e-3)
    entropy = overlap = total = 0.0
    for logit, inside in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        weight = 3 * (1 - balance) + balance * 0.5 / (share if inside else 1 - share)
        entropy -= weight * math.log(p if inside else 1 - p)
        overlap += p * inside
        total += p + inside
    return entropy / logits.numel() + 1 - (2 * overlap + 1) / (total + 1)


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
def test_mask_loss_equals_a_naive_version(balance: float) -> None:
    logits, targets = random_logits(4, 16, 16), random_masks(4, 16, 16)
    targets[2], targets[3] = False, True
    expected = [naive_loss(a, b, balance) for a, b in zip(logits, targets, strict=True)]
    assert mask_loss(logits, targets, balance).tolist() == pytest.approx(expected, rel=1e-4)


def test_mask_loss_vanishes_for_a_sure_and_right_prediction() -> None:
    targets = random_masks(2, 16, 16)
    logits = torch.where(targets, 30.0, -30.0)
    assert mask_loss(logits, targets, 0.0).max() < 1e-4
    assert mask_loss(-logits, targets, 0.0).min() > 10


def test_output_iou_equals_numpys() -> None:
    logits, targets = random_logits(3, 4, 12, 12), random_masks(3, 12, 12)
    logits[1, 2], targets[2] = -1, False
    got = output_iou(logits, targets)
    expected = [[naive_iou(logits[p, k] > 0, targets[p]) for k in range(4)] for p in range(3)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_best_iou_is_over_the_targets_of_the_same_image() -> None:
    logits, targets = random_logits(6, 3, 12, 12), random_masks(6, 12, 12)
    image_index = torch.tensor([0, 0, 1, 1, 1, 2])
    empty = torch.tensor([False, True, False, False, True, True])
    expected = [
        [
            max(
                (
                    naive_iou(logits[p, k] > 0, targets[q])
                    for q in range(6)
                    if image_index[q] == image_index[p] and not empty[q]
                ),
                default=0.0,
            )
            for k in range(3)
        ]
        for p in range(6)
    ]
    np.testing.assert_allclose(best_iou(logits, targets, image_index, empty), expected, rtol=1e-6)
    assert expected[5] == [0, 0, 0]


def test_upsampling_keeps_the_centres_of_masks() -> None:
    logits = torch.full((1, 2, 64, 64), -4.0)
    logits[0, 1, 10:20, 30:50] = 4.0
    large = upsample(logits)
    assert large.shape == (1, 2, TARGET_SIDE, TARGET_SIDE)
    rows, columns = torch.nonzero(large[0, 1] > 0).float().mean(0).tolist()
    assert (rows, columns) == (29.5, 79.5)
    assert not (large[0, 0] > 0).any()


def test_corrections_are_clicks_in_the_error_region_with_the_label_of_what_was_missed() -> None:
    targets = torch.zeros(3, TARGET_SIDE, TARGET_SIDE, dtype=torch.bool)
    targets[:, 20:40, 20:40] = True
    logits = torch.where(targets, 5.0, -5.0)
    logits[0, 30, 25] = -1.0  # one pixel missed
    logits[1, 100, 7] = 1.0  # one pixel too many
    before = Prompts(torch.zeros(3, 2, 2), torch.full((3, 2), PAD))
    after = correct(before, logits, targets, torch.Generator().manual_seed(0))
    assert after.token_types[:, 0].tolist() == [POSITIVE, NEGATIVE, PAD]
    # The middle of the target's pixel, in pixels of the input, x first.
    assert after.coords[0, 0].tolist() == [(25 + 0.5) * STRIDE - 0.5, (30 + 0.5) * STRIDE - 0.5]
    assert after.coords[1, 0].tolist() == [(7 + 0.5) * STRIDE - 0.5, (100 + 0.5) * STRIDE - 0.5]
    assert torch.equal(after.coords[:, 1:], before.coords)
    assert torch.equal(after.token_types[:, 1:], before.token_types)
