"""Losses against naive versions written pixel by pixel."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from sum_factory.trainer.losses import LossSettings, dice_loss, focal_loss, kept_fraction, mask_loss, true_iou

SETTINGS = LossSettings()


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, targets, valid area (not square) and certainty of three masks."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 9, 12, generator=generator, dtype=torch.float64) * 3
    targets = torch.rand(3, 9, 12, generator=generator) > 0.6
    valid = torch.zeros(3, 9, 12, dtype=torch.bool)
    valid[0, :5], valid[1, :, :7], valid[2] = True, True, True
    certainty = torch.rand(3, 9, 12, generator=generator, dtype=torch.float64)
    return logits, targets, valid, certainty


def naive_focal(logits: Tensor, targets: Tensor, valid: Tensor, certainty: Tensor) -> float:
    total = 0.0
    for y in range(logits.shape[0]):
        for x in range(logits.shape[1]):
            if not valid[y, x]:
                continue
            p = 1 / (1 + math.exp(-float(logits[y, x])))
            value = 0.25 * (1 - p) ** 2 * -math.log(p) if targets[y, x] else 0.75 * p**2 * -math.log(1 - p)
            total += float(certainty[y, x]) * value
    return total / int(valid.sum())


def naive_dice(logits: Tensor, targets: Tensor, valid: Tensor, certainty: Tensor, theta: float) -> float:
    overlap = both = 0.0
    for y in range(logits.shape[0]):
        for x in range(logits.shape[1]):
            if valid[y, x] and float(certainty[y, x]) > theta:
                p = 1 / (1 + math.exp(-float(logits[y, x])))
                overlap += p * bool(targets[y, x])
                both += p + bool(targets[y, x])
    return 1 - (2 * overlap + 1) / (both + 1)


def test_losses_equal_naive_sums_over_the_valid_area() -> None:
    logits, targets, valid, certainty = example()
    focal = focal_loss(logits, targets, valid, certainty, SETTINGS)
    dice = dice_loss(logits, targets, valid, certainty, SETTINGS)
    for k in range(3):
        assert float(focal[k]) == pytest.approx(naive_focal(logits[k], targets[k], valid[k], certainty[k]), rel=1e-10)
        assert float(dice[k]) == pytest.approx(
            naive_dice(logits[k], targets[k], valid[k], certainty[k], 0.6), rel=1e-10
        )
    assert torch.allclose(mask_loss(logits, targets, valid, certainty, SETTINGS), 20 * focal + dice)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 2.0])
def test_an_exponent_raises_the_certainty_of_focal_and_leaves_dice_alone(exponent: float) -> None:
    logits, targets, valid, certainty = example()
    turned, raised = replace(SETTINGS, certainty_exponent=exponent), certainty**exponent
    focal, dice = (loss(logits, targets, valid, certainty, turned) for loss in (focal_loss, dice_loss))
    for k in range(3):
        assert float(focal[k]) == pytest.approx(naive_focal(logits[k], targets[k], valid[k], raised[k]), rel=1e-10)
    assert torch.equal(dice, dice_loss(logits, targets, valid, certainty, SETTINGS))
    leaf = logits.clone().requires_grad_()
    mask_loss(leaf, targets, valid, certainty, turned).sum().backward()
    plain = logits.clone().requires_grad_()
    (
        20 * focal_loss(plain, targets, valid, certainty, turned) + dice_loss(plain, targets, valid, certainty, turned)
    ).sum().backward()
    assert torch.allclose(mask_loss(logits, targets, valid, certainty, turned), 20 * focal + dice)
    assert leaf.grad is not None
    assert plain.grad is not None
    assert torch.allclose(leaf.grad, plain.grad)


def test_identity_tells_of_an_exponent_that_is_not_1() -> None:
    assert "certainty_exponent" not in SETTINGS.identity()
    assert replace(SETTINGS, certainty_exponent=2.0).identity() == {**SETTINGS.identity(), "certainty_exponent": 2.0}


def shares(seed: int = 1) -> Tensor:
    """Targets of cells that masks cover in part, with some that they cover whole or not at all."""
    drawn = torch.rand(3, 9, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((drawn - 0.25) * 2).clamp(0, 1)


def test_losses_of_shares_equal_naive_sums() -> None:
    logits, _, valid, certainty = example()
    targets = shares()
    assert 0.2 < float(((targets > 0) & (targets < 1)).double().mean()) < 0.8
    for k in range(3):
        focal = overlap = both = 0.0
        for y, x in valid[k].nonzero().tolist():
            p, t, c = 1 / (1 + math.exp(-float(logits[k, y, x]))), float(targets[k, y, x]), float(certainty[k, y, x])
            entropy = -t * math.log(p) - (1 - t) * math.log(1 - p)
            focal += c * (0.25 * t + 0.75 * (1 - t)) * abs(t - p) ** 2 * entropy
            if c > 0.6:
                overlap, both = overlap + min(p, t), both + p + t
        each = logits[k : k + 1], targets[k : k + 1], valid[k : k + 1], certainty[k : k + 1], SETTINGS
        assert float(focal_loss(*each)) == pytest.approx(focal / int(valid[k].sum()), rel=1e-10)
        assert float(dice_loss(*each)) == pytest.approx(1 - (2 * overlap + 1) / (both + 1), rel=1e-10)


def test_shares_of_none_and_all_have_the_losses_and_gradients_of_bits() -> None:
    found = []
    logits, targets, valid, certainty = example()
    for each in (targets, targets.double()):
        leaf = logits.clone().requires_grad_()
        losses = torch.stack([loss(leaf, each, valid, certainty, SETTINGS) for loss in (focal_loss, dice_loss)])
        losses.sum().backward()
        found.append((losses.detach(), leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(*(gradient for _, gradient in found if gradient is not None))


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_losses_of_shares_are_least_where_the_prediction_is_the_share(loss: Any) -> None:
    """As published they would not be: Dice of a share of 0.4 is least at 1, focal of one of 0.5 below 0.5."""
    valid = torch.ones(1, 1, 99, dtype=torch.bool)
    for share in (0.1, 0.4, 0.5, 0.75):
        predicted = torch.arange(1, 100, dtype=torch.float64).view(99, 1, 1).expand(-1, 1, 99) / 100
        targets = torch.full((99, 1, 99), share, dtype=torch.float64)
        losses = loss(torch.logit(predicted), targets, valid.expand(99, -1, -1), None, SETTINGS)
        assert int(losses.argmin()) + 1 == round(100 * share)
        assert (losses.diff()[: int(losses.argmin())] < 0).all()
        assert (losses.diff()[int(losses.argmin()) :] > 0).all()


def test_padding_has_no_effect_on_any_loss() -> None:
    logits, targets, valid, certainty = example()
    noise = torch.where(valid, logits, logits + 50)
    flipped = torch.where(valid, targets, ~targets)
    doubted = torch.where(valid, certainty, 1 - certainty)
    for loss in (focal_loss, dice_loss):
        assert torch.equal(
            loss(logits, targets, valid, certainty, SETTINGS), loss(noise, flipped, valid, doubted, SETTINGS)
        )
    assert torch.equal(true_iou(logits, targets, valid), true_iou(noise, flipped, valid))


def test_full_certainty_gives_the_losses_of_human_masks() -> None:
    logits, targets, valid, _ = example()
    ones = torch.ones_like(logits)
    for loss in (focal_loss, dice_loss):
        assert torch.allclose(
            loss(logits, targets, valid, ones, SETTINGS), loss(logits, targets, valid, None, SETTINGS)
        )


def test_dice_filter_is_strict_and_applies_to_prediction_and_label() -> None:
    logits = torch.tensor([[[2.0, -1.0, 3.0]]], dtype=torch.float64)
    targets = torch.tensor([[[True, True, False]]])
    valid = torch.ones(1, 1, 3, dtype=torch.bool)
    at_theta = torch.tensor([[[0.9, 0.6, 0.6]]], dtype=torch.float64)
    p = 1 / (1 + math.exp(-2.0))
    expected = 1 - (2 * p + 1) / (1 + p + 1)
    assert float(dice_loss(logits, targets, valid, at_theta, SETTINGS)) == pytest.approx(expected)
    assert float(kept_fraction(valid, at_theta, SETTINGS)) == pytest.approx(1 / 3)


def test_everything_doubtful_gives_no_dice_loss_and_no_gradient() -> None:
    logits, targets, valid, _ = example()
    logits.requires_grad_()
    dice = dice_loss(logits, targets, valid, torch.full_like(logits, 0.6), SETTINGS)
    assert torch.equal(dice, torch.zeros_like(dice))
    dice.sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_focal_divides_by_all_valid_pixels_not_by_the_certainty() -> None:
    logits, targets, valid, _ = example()
    half = torch.full_like(logits, 0.5)
    whole = focal_loss(logits, targets, valid, None, SETTINGS)
    assert torch.allclose(focal_loss(logits, targets, valid, half, SETTINGS), whole / 2)


def test_iou_of_empty_masks_is_one_and_carries_no_gradient() -> None:
    logits = torch.full((1, 4, 4), -3.0, requires_grad=True)
    nothing = torch.zeros(1, 4, 4, dtype=torch.bool)
    iou = true_iou(logits, nothing, ~nothing)
    assert iou.item() == 1.0
    assert not iou.requires_grad


def test_focal_is_torchvisions_over_the_valid_pixels() -> None:
    logits, targets, valid, certainty = example(3)
    per_pixel = torchvision.ops.sigmoid_focal_loss(logits, targets.double(), alpha=0.25, gamma=2)
    expected = torch.stack([(per_pixel * certainty)[k][valid[k]].mean() for k in range(3)])
    assert torch.allclose(focal_loss(logits, targets, valid, certainty, SETTINGS), expected)


def test_true_iou_and_kept_share_count_valid_pixels_alone() -> None:
    logits, targets, valid, certainty = example(4)
    iou, kept = true_iou(logits, targets, valid), kept_fraction(valid, certainty, SETTINGS)
    for k in range(3):
        found, wanted = logits[k][valid[k]] > 0, targets[k][valid[k]]
        assert float(iou[k]) == pytest.approx(int((found & wanted).sum()) / int((found | wanted).sum()))
        assert float(kept[k]) == pytest.approx(float((certainty[k][valid[k]] > 0.6).double().mean()))
    assert torch.equal(kept_fraction(valid, None, SETTINGS), torch.ones(3))


def test_logit_of_zero_is_background() -> None:
    assert true_iou(torch.zeros(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool), torch.ones(1, 2, 2) > 0).item() == 0


@pytest.mark.parametrize("magnitude", [50.0, 500.0])
def test_extreme_logits_give_finite_losses_and_gradients(magnitude: float) -> None:
    logits = (torch.tensor([[[-1.0, 1.0], [1.0, -1.0]]]) * magnitude).requires_grad_()
    targets = torch.tensor([[[True, True], [False, False]]])
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    loss = mask_loss(logits, targets, valid, None, SETTINGS)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert float(logits.grad[0, 0, 0]) < 0 < float(logits.grad[0, 1, 0])


def test_mask_without_valid_pixels_has_no_loss() -> None:
    logits, targets, valid, certainty = example()
    nothing = torch.zeros_like(valid)
    assert mask_loss(logits, targets, nothing, certainty, SETTINGS).tolist() == [0, 0, 0]
    assert kept_fraction(nothing, certainty, SETTINGS).tolist() == [0, 0, 0]


def test_every_constant_is_a_setting() -> None:
    logits, targets, valid, certainty = example()
    other = LossSettings(focal_weight=3, dice_weight=2, alpha=0.5, gamma=0, theta=0.2, epsilon=5, temperature=3)
    p, y, kept = (logits / 3).sigmoid(), targets.double(), (valid & (certainty > 0.2)).double()
    entropy = -(y * p.log() + (1 - y) * (1 - p).log())
    focal = (0.5 * entropy * certainty * valid).sum((1, 2)) / valid.sum((1, 2))
    dice = 1 - (2 * (y * p * kept).sum((1, 2)) + 5) / (((y + p) * kept).sum((1, 2)) + 5)
    assert torch.allclose(mask_loss(logits, targets, valid, certainty, other), 3 * focal + 2 * dice)


@pytest.mark.parametrize("gamma", [2.0, 0.0, 0.5, 3.0])
@pytest.mark.parametrize("doubtful", [True, False])
def test_gradient_in_closed_form_is_that_of_the_formulas(gamma: float, doubtful: bool) -> None:
    logits, bits, valid, certainty = example()
    shares = torch.rand(logits.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    settings = LossSettings(gamma=gamma, temperature=3.0)
    weights = torch.tensor([0.5, 1.0, 2.0])
    for targets in (bits, shares):
        scaled, c = logits.clone().requires_grad_(), certainty if doubtful else None
        terms = [each(scaled / 3, targets, valid, c, settings) for each in (focal_loss, dice_loss)]
        expected = settings.focal_weight * terms[0] + settings.dice_weight * terms[1]
        given = logits.clone().requires_grad_()
        found = mask_loss(given, targets, valid, c, settings)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        (of_found,) = torch.autograd.grad((found * weights).sum(), given)
        (of_expected,) = torch.autograd.grad((expected * weights).sum(), scaled)
        torch.testing.assert_close(of_found, of_expected, rtol=1e-10, atol=1e-12)
        assert torch.autograd.gradcheck(
            lambda z, y=targets, c=c: mask_loss(z, y, valid, c, settings), given, fast_mode=True
        )


def test_loss_has_no_second_derivative_and_says_so() -> None:
    logits, targets, valid, certainty = example()
    leaf, weights = logits.requires_grad_(), torch.ones(3, dtype=torch.float64, requires_grad=True)
    losses = mask_loss(leaf, targets, valid, certainty, SETTINGS) * weights
    (once,) = torch.autograd.grad(losses.sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()
