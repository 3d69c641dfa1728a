"""The rounds of interactive training on a tiny random SAM in double precision."""

from __future__ import annotations

import dataclasses
from copy import deepcopy

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sum_factory.shared.sam.architecture import SamArchitecture, build_architecture
from sum_factory.trainer import by_rows
from sum_factory.trainer.interactive import (
    FirstPrompts,
    InteractiveSettings,
    RoundResult,
    Targets,
    play_rounds,
    to_grid,
    whole_rounds,
)
from sum_factory.trainer.points import PixelMasks

TINY = SamArchitecture("tiny", 32, 2, 2, (), 64, window_size=0, prompt_dim=32, decoder_mlp_dim=32)


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    model = build_architecture(TINY).double()
    model.prompt_encoder.pe_layer.float()  # upstream encodes coordinates in single precision
    return model


def make_targets(count: int = 5) -> Targets:
    masks = torch.zeros(count, 16, 16, dtype=torch.bool)
    for k in range(count):
        masks[k, k : k + 6, 2 : 9 + k % 3] = True
    valid = torch.ones_like(masks)
    valid[:, 12:] = False
    generator = torch.Generator().manual_seed(5)
    certainty = torch.rand(count, 16, 16, generator=generator, dtype=torch.float64)
    return Targets(masks & valid, valid, certainty, certainty, torch.arange(count) % 2, 4)


def run(sam: Sam, settings: InteractiveSettings, targets: Targets, at_once: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Return all gradients, by the naive graph of all rounds or round by round on a leaf."""
    sam.zero_grad()
    generator = torch.Generator().manual_seed(9)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    tasks = torch.full((2, 32), 0.1, dtype=torch.float64, requires_grad=True)
    embedding = sam.image_encoder(images)
    if at_once:
        torch.stack(
            [r.loss.mean() for r in play_rounds(sam, embedding, tasks, targets, settings, generator)]
        ).sum().backward()
    else:
        leaf = embedding.detach().requires_grad_()
        for result in play_rounds(sam, leaf, tasks, targets, settings, generator):
            result.loss.mean().backward()
        embedding.backward(leaf.grad)
    gradients = {name: p.grad.clone() for name, p in sam.named_parameters() if p.grad is not None}
    assert tasks.grad is not None
    return gradients, tasks.grad


@pytest.mark.parametrize("continuous", [False, True])
def test_round_by_round_gradients_equal_the_naive_graph(sam: Sam, continuous: bool) -> None:
    settings = InteractiveSettings(continuous_task_prompt=continuous)
    naive, naive_tasks = run(sam, settings, make_targets(), at_once=True)
    flat, flat_tasks = run(sam, settings, make_targets(), at_once=False)
    assert naive.keys() == flat.keys()
    assert {"image_encoder.pos_embed", "mask_decoder.iou_token.weight"} <= naive.keys()
    for name, gradient in naive.items():
        assert torch.allclose(gradient, flat[name], rtol=1e-9, atol=1e-12), name
    assert torch.allclose(naive_tasks, flat_tasks, rtol=1e-9, atol=1e-12)
    assert naive_tasks.abs().max() > 0


@pytest.mark.parametrize("first_prompts", ["interactive", "hq"])
def test_subsets_of_masks_change_neither_draws_nor_losses_nor_gradients(
    sam: Sam, first_prompts: FirstPrompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    single, whole = deepcopy(sam).float(), make_targets()
    pixels = whole.masks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    in_points = dataclasses.replace(whole, pixel_masks=PixelMasks(pixels, torch.tensor([[48, 64]] * len(whole))))
    shares = torch.rand(whole.masks.shape, generator=torch.Generator().manual_seed(8))
    for targets in (in_points, dataclasses.replace(whole, coverage=shares)):
        played = []
        for at_once, cells in ((5, 1 << 20), (2, 256)):
            monkeypatch.setattr(by_rows, "CELLS_ON_CPU", cells)
            settings = InteractiveSettings(rounds=3, first_prompts=first_prompts, masks_at_once=at_once)
            played.append(in_order(single, settings, targets))
        for one, other in zip(*played, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def in_order(sam: Sam, settings: InteractiveSettings, targets: Targets) -> list[Tensor]:
    """Return losses and predicted IoU by round and mask, predicted masks, and the gradient of the embedding."""
    leaf = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    losses, believed = (torch.full((settings.rounds, len(targets)), torch.nan) for _ in range(2))
    predicted = torch.zeros(settings.rounds, len(targets), 16, 16, dtype=torch.bool)
    for result in play_rounds(sam, leaf, None, targets, settings, torch.Generator().manual_seed(2)):
        assert len(result.indexes) <= (settings.masks_at_once or len(targets))
        indexes = result.number - 1, result.indexes
        losses[indexes], believed[indexes] = result.loss.detach(), result.predicted_iou
        predicted[indexes] = result.masks
        result.loss.sum().backward()
    assert leaf.grad is not None
    return [losses, believed, predicted, leaf.grad]


def play(sam: Sam, settings: InteractiveSettings, targets: Targets, tasks: Tensor | None = None) -> list[RoundResult]:
    embedding = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        return list(play_rounds(sam, embedding, tasks, targets, settings, torch.Generator().manual_seed(2)))


def test_seven_rounds_are_played(sam: Sam) -> None:
    assert [result.number for result in play(sam, InteractiveSettings(), make_targets())] == list(range(1, 8))


def test_task_prompt_acts_in_the_first_round_only(sam: Sam) -> None:
    """With one round the task changes the loss; what follows sees it through the fed-back mask alone."""
    targets = make_targets()
    tasks = torch.full((2, 32), 0.5, dtype=torch.float64)
    without = play(sam, InteractiveSettings(rounds=2), targets)
    first = play(sam, InteractiveSettings(rounds=2), targets, tasks)
    always = play(sam, InteractiveSettings(rounds=2, continuous_task_prompt=True), targets, tasks)
    assert not torch.allclose(without[0].loss, first[0].loss)
    assert torch.equal(first[0].loss, always[0].loss)
    assert not torch.allclose(first[1].loss, always[1].loss)


def test_padding_of_the_square_changes_nothing(sam: Sam) -> None:
    targets = make_targets()
    changed = dataclasses.replace(
        targets,
        masks=targets.masks | ~targets.valid,
        certainty=torch.where(targets.valid, targets.certainty, 0.3),
    )
    settings = InteractiveSettings(box_share=0.0)
    inside = dataclasses.replace(targets, sampling=targets.sampling * targets.valid)
    outside = dataclasses.replace(changed, sampling=targets.sampling * targets.valid)
    for a, b in zip(play(sam, settings, inside), play(sam, settings, outside), strict=True):
        assert torch.equal(a.loss, b.loss)


def test_ambiguous_point_trains_the_best_of_three_outputs(sam: Sam) -> None:
    """The loss of round 1 is the smallest of the three outputs' losses, computed here from the decoder's own output."""
    from sum_factory.shared.sam.decode import decode_prompts
    from sum_factory.trainer.losses import mask_loss
    from sum_factory.trainer.prompts import first_prompts

    targets = make_targets()
    settings = InteractiveSettings(rounds=1, box_share=0.0)
    embedding = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prompts = first_prompts(targets.masks, targets.sampling, 0.0, 4, 64, torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits, _ = decode_prompts(sam, embedding, targets.image_index, prompts)
        grid = to_grid(logits, targets)
        losses = torch.stack(
            [mask_loss(grid[:, k], targets.masks, targets.valid, targets.certainty, settings.loss) for k in range(4)], 1
        )
    (result,) = play(sam, settings, targets)
    assert torch.allclose(result.mask_loss, losses[:, 1:].min(1).values)


def test_boxes_train_the_single_mask_output(sam: Sam) -> None:
    settings = InteractiveSettings(rounds=1, box_share=1.0)
    (result,) = play(sam, settings, make_targets())
    sam.zero_grad()
    embedding = torch.randn(2, 32, 4, 4, dtype=torch.float64)
    (graph,) = play_rounds(sam, embedding, None, make_targets(), settings, torch.Generator().manual_seed(2))
    graph.loss.sum().backward()
    untouched = [sam.mask_decoder.output_hypernetworks_mlps[k].layers[0].weight.grad for k in (1, 2, 3)]
    assert all(g is None or not g.any() for g in untouched)
    assert sam.mask_decoder.output_hypernetworks_mlps[0].layers[0].weight.grad.any()
    assert result.number == 1


@pytest.mark.parametrize("finer", [(16, 16), (32, 16), (64, 48)])
def test_logits_come_to_the_grid_as_torch_interpolates_them(finer: tuple[int, int]) -> None:
    """Upsampled to whole multiples and to others, with its gradient."""
    blank = torch.zeros(2, *finer, dtype=torch.bool)
    targets = Targets(blank, blank, blank.double(), blank.double(), torch.zeros(2, dtype=torch.int64), 4)
    logits = torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    found = to_grid(logits, targets)
    expected = torch.nn.functional.interpolate(logits, finer, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    of_found, of_expected = (torch.autograd.grad(each.square().sum(), logits)[0] for each in (found, expected))
    torch.testing.assert_close(of_found, of_expected, rtol=1e-12, atol=1e-12)


def test_subsets_of_a_round_are_put_together_in_the_order_of_the_masks(sam: Sam) -> None:
    whole = play(sam, InteractiveSettings(rounds=3), make_targets())
    subsets = play(sam, InteractiveSettings(rounds=3, masks_at_once=2), make_targets())
    assert [len(subset.indexes) for subset in subsets] == [2, 2, 1] * 3
    for one, other in zip(whole, whole_rounds(subsets), strict=True):
        assert other.indexes.tolist() == [0, 1, 2, 3, 4]
        torch.testing.assert_close(other.loss, one.loss[one.indexes.argsort()], rtol=1e-7, atol=1e-9)
