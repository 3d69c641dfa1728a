"""Damaged masks: one error each, the rest exact."""

from __future__ import annotations

import torch
from torch import Tensor

from sum_factory.pipelines.microworld.damage import STEEPNESS, damaged_logits
from sum_factory.pipelines.microworld.scene import make_scenes

SIDE = 256


def targets_of(scenes: int) -> Tensor:
    masks = [torch.from_numpy(mask) for scene in make_scenes(5, 0, scenes) for mask in scene.masks("entity")]
    return torch.stack([mask for mask in masks if mask.sum() > 400])


def damaged(targets: Tensor, seed: int = 0, side: int = SIDE) -> Tensor:
    return damaged_logits(targets, side, torch.Generator().manual_seed(seed))


def test_masks_lose_a_piece_or_gain_one_and_never_both() -> None:
    targets = targets_of(12)
    masks = damaged(targets)[:, 0] > 0
    lost, gained = (targets & ~masks).flatten(1).sum(1), (masks & ~targets).flatten(1).sum(1)
    assert bool(((lost == 0) | (gained == 0)).all())
    assert 0.25 < (lost > 0).float().mean() < 0.75
    assert (gained > 0).float().mean() > 0.2


def test_most_of_a_mask_is_right() -> None:
    targets = targets_of(12)
    masks = damaged(targets)[:, 0] > 0
    ious = (masks & targets).flatten(1).sum(1) / (masks | targets).flatten(1).sum(1)
    assert 0.6 < ious.mean() < 0.95
    assert (ious < 0.95).float().mean() > 0.5
    assert ious.min() > 0.2


def test_prompts_have_the_size_and_the_steepness_of_logits() -> None:
    prompts = damaged(targets_of(2), side=64)
    assert prompts.shape[1:] == (1, 64, 64)
    assert prompts.dtype == torch.float32
    largest = prompts.abs().flatten(1).amax(1)
    assert bool((largest >= STEEPNESS[0]).all())
    assert bool((largest <= STEEPNESS[1]).all())


def test_same_generator_damages_alike_and_another_does_not() -> None:
    targets = targets_of(2)
    assert torch.equal(damaged(targets), damaged(targets))
    assert not torch.equal(damaged(targets), damaged(targets, seed=1))


def test_mask_without_a_pixel_stays_empty() -> None:
    targets = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    targets[1, 40:90, 40:90] = True
    masks = damaged(targets)[:, 0] > 0
    assert masks.flatten(1).any(1).tolist() == [False, True, False]
