"""What each round is prompted with, what is fed back, and where gradients go, seen at the decoder's door."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sum_factory.shared.sam.architecture import SamArchitecture, build_architecture
from sum_factory.shared.sam.decode import ABSENT, BOX_MAX, BOX_MIN, NEGATIVE, PAD, POSITIVE
from sum_factory.trainer import interactive
from sum_factory.trainer.interactive import FedOutput, InteractiveSettings, RoundResult, Targets, play_rounds
from sum_factory.trainer.losses import LossSettings

TINY = SamArchitecture("tiny", 32, 2, 2, (), 64, window_size=0, prompt_dim=32, decoder_mlp_dim=32)
CELLS, STRIDE = 16, 4
VALID = 11, 16
"""Rows and columns of the grid that show the photo."""
POINTS = InteractiveSettings(box_share=0.0)
BOXES = InteractiveSettings(box_share=1.0)


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    return build_architecture(TINY)


@pytest.fixture(scope="module")
def embedding() -> Tensor:
    return torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def targets() -> Targets:
    """Six masks of two images, all in the photo."""
    masks = torch.zeros(6, CELLS, CELLS, dtype=torch.bool)
    for k in range(6):
        masks[k, k : k + 5, 3 : 8 + k] = True
    valid = torch.zeros_like(masks)
    valid[:, : VALID[0], : VALID[1]] = True
    ones = torch.ones(6, CELLS, CELLS)
    return Targets(masks & valid, valid, ones, ones, torch.arange(6) % 2, STRIDE)


@dataclass
class Call:
    """One call of the decoder: the rows it is for, what it was given, what it gave."""

    index: Tensor
    source: Tensor
    coords: Tensor
    token_types: Tensor
    mask_logits: Tensor | None
    logits: Tensor
    iou: Tensor


@dataclass
class Played:
    """A whole game: its results, and the calls of each round."""

    results: list[RoundResult]
    calls: list[list[Call]]

    def tokens(self, number: int, row: int) -> list[tuple[float, float, int]]:
        """Return the prompt tokens of one row in a round, told apart by the row's coordinates in round 1."""
        (only,) = self.calls[number - 1]
        return [
            (*xy, label) for xy, label in zip(only.coords[row].tolist(), only.token_types[row].tolist(), strict=True)
        ]


Play = Callable[..., Played]


@pytest.fixture
def play(sam: Sam, embedding: Tensor, targets: Targets, monkeypatch: pytest.MonkeyPatch) -> Play:
    """``play(settings, targets, vectors, seed, change)`` plays all rounds; ``change`` edits what the decoder gives."""
    decode = interactive.decode_prompts

    def play(
        settings: InteractiveSettings,
        targets: Targets = targets,
        vectors: Tensor | None = None,
        seed: int = 2,
        change: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> Played:
        calls: list[list[Call]] = [[]]

        def recorded(
            sam: Sam, source: Tensor, index: Tensor, prompts: Any, positions: Tensor, single: bool
        ) -> tuple[Tensor, Tensor]:
            logits, iou = decode(sam, source, index, prompts, positions, single)
            if change is not None:
                logits, iou = change(len(calls), logits, iou)
            calls[-1].append(Call(index, source, prompts.coords, prompts.token_types, prompts.mask_logits, logits, iou))
            return logits, iou

        monkeypatch.setattr(interactive, "decode_prompts", recorded)
        results = []
        generator = torch.Generator().manual_seed(seed)
        for result in play_rounds(sam, embedding, vectors, targets, settings, generator):
            results.append(result)
            calls.append([])
        return Played(results, calls[:-1])

    return play


def truth(targets: Targets) -> Tensor:
    """Return logits (P, 1, h, w) that are right everywhere."""
    return torch.where(targets.masks, 5.0, -5.0)[:, None]


def inverted(targets: Targets) -> Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Make the decoder wrong everywhere."""
    return lambda number, logits, iou: (-truth(targets).expand_as(logits) + 0 * logits, iou)


def test_every_round_but_the_last_adds_one_click(play: Play, targets: Targets) -> None:
    played = play(POINTS, change=inverted(targets))
    counts = [[call.token_types.shape[1] for call in calls] for calls in played.calls]
    assert counts == [[2], [3], [4], [5], [6], [7], [7]]
    for number in range(2, 7):
        for row in range(6):
            assert played.tokens(number, row)[1:] == played.tokens(number - 1, row)
    assert [played.tokens(7, row) for row in range(6)] == [played.tokens(6, row) for row in range(6)]


def test_points_start_positive_with_one_padding_token_and_boxes_have_none(play: Play, targets: Targets) -> None:
    (points,) = play(POINTS).calls[0]
    assert (points.token_types == torch.tensor([POSITIVE, PAD])).all()
    cells = ((points.coords[:, 0] + 0.5) / STRIDE).floor().long()
    assert targets.masks[torch.arange(6), cells[:, 1], cells[:, 0]].all()
    boxed = play(BOXES, change=inverted(targets))
    assert (boxed.calls[0][0].token_types == torch.tensor([BOX_MIN, BOX_MAX])).all()
    assert (boxed.calls[6][0].token_types[:, -2:] == torch.tensor([BOX_MIN, BOX_MAX])).all()
    assert not (boxed.calls[6][0].token_types == PAD).any()


def test_clicks_are_positive_on_what_is_missed_and_negative_on_what_is_wrong_and_never_on_padding(
    play: Play, targets: Targets
) -> None:
    """The decoder is wrong everywhere, also in the padding, which is larger than any mask."""
    seen = set()
    for seed in range(4):
        played = play(POINTS, seed=seed, change=inverted(targets))
        for number in range(2, 7):
            for row in range(6):
                x, y, label = played.tokens(number, row)[0]
                column, line = int((x + 0.5) / STRIDE), int((y + 0.5) / STRIDE)
                assert line < VALID[0]
                assert label == (POSITIVE if targets.masks[row, line, column] else NEGATIVE)
                seen.add(label)
    assert seen == {POSITIVE, NEGATIVE}


def test_without_errors_the_prompts_are_repeated(play: Play, targets: Targets) -> None:
    """Right in the photo and wrong in the padding: there is nothing to click at."""

    def right(number: int, logits: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
        everything = torch.where(targets.valid, truth(targets)[:, 0], 5.0)[:, None]
        return everything.expand_as(logits) + 0 * logits, iou

    for settings in (POINTS, BOXES):
        played = play(settings, change=right)
        first = [played.tokens(1, row) for row in range(6)]
        for number in range(2, 8):
            assert [played.tokens(number, row) for row in range(6)] == first
        assert all((result.iou == 1).all() for result in played.results)


def test_point_that_is_repeated_is_no_longer_ambiguous(play: Play, targets: Targets) -> None:
    """Right at once, so that round 2 adds nothing; with a mask to go by, its single-mask output counts."""

    def right(number: int, logits: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
        return truth(targets).expand_as(logits) + 0 * logits, torch.tensor([0.1, 0.9, 0.9, 0.9]).expand(6, -1)

    played = play(POINTS, change=right)
    assert played.calls[1][0].token_types.shape[1] == 2
    assert [round(float(result.predicted_iou[0]), 4) for result in played.results] == [0.9, *[0.1] * 6]


def test_doubtful_errors_are_never_clicked_at(play: Play, targets: Targets) -> None:
    """Certain in one row of the photo alone: clicks fall there, in the proportion of the certainty."""
    sampling = torch.zeros(6, CELLS, CELLS)
    sampling[:, 5, :8] = 1.0
    sampling[:, 5, 8:] = 0.25
    doubtful = replace(targets, sampling=sampling)
    left = right = 0
    for seed in range(6):
        played = play(BOXES, doubtful, seed=seed, change=inverted(targets))
        for number in range(2, 7):
            for row in range(6):
                x, y, _ = played.tokens(number, row)[0]
                assert int((y + 0.5) / STRIDE) == 5
                left, right = left + (x < 32), right + (x > 32)
    assert 0.68 < left / (left + right) < 0.92


def test_rows_with_and_without_errors_go_on_side_by_side(play: Play, targets: Targets) -> None:
    doubtful = replace(targets, sampling=targets.sampling.clone())
    doubtful.sampling[::2] = 0.0  # nothing may be clicked at in every second row, which is prompted by its box
    played = play(POINTS, doubtful)
    (last,) = played.calls[6]
    assert (last.token_types[:3] == torch.tensor([BOX_MIN, BOX_MAX, *[ABSENT] * 5])).all()
    assert (last.token_types[3:, -2:] == torch.tensor([POSITIVE, PAD])).all()
    assert last.index.tolist() == [0, 0, 0, 1, 1, 1]


FIELDS = ("masks", "valid", "certainty", "sampling", "image_index")


@pytest.mark.parametrize(("setting", "fed_output"), [("predicted", 3), ("best", 2)])
def test_ambiguous_point_is_trained_on_its_best_output_and_fed_the_one_it_believes_in_or_the_best(
    play: Play, targets: Targets, setting: FedOutput, fed_output: int
) -> None:
    """Output 2 is right, output 3 has the highest predicted IoU, output 0 is never in question."""

    def change(number: int, logits: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
        wrong = -truth(targets)[:, 0]
        outputs = torch.stack([truth(targets)[:, 0], wrong, truth(targets)[:, 0] * 0.9, wrong * 0.7], 1)
        return (outputs, torch.tensor([0.99, 0.2, 0.3, 0.9]).expand(6, -1)) if number == 1 else (logits, iou)

    played = play(replace(POINTS, fed_output=setting), change=change)
    first = played.results[0]
    assert (first.iou == 1).all()
    assert torch.allclose(first.predicted_iou, torch.full((6,), 0.3))
    assert torch.allclose(first.loss, first.mask_loss + (0.3 - 1.0) ** 2)
    fed = played.calls[1][0].mask_logits
    assert fed is not None
    assert torch.equal(fed, played.calls[0][0].logits[:, fed_output : fed_output + 1])


def test_what_is_fed_back_is_unthresholded_and_detached(play: Play, sam: Sam) -> None:
    played = play(BOXES)
    for before, after in zip(played.calls[:-1], played.calls[1:], strict=True):
        fed = after[0].mask_logits
        assert fed is not None
        assert not fed.requires_grad
        rows = torch.cat([call.logits[:, :1] for call in before]).detach()
        if len(before) == len(after) == 1:
            assert torch.equal(fed, rows)
        assert fed.unique().numel() > 100
    assert played.calls[0][0].mask_logits is None
    assert played.calls[0][0].logits.requires_grad


def test_later_rounds_train_and_feed_back_the_single_mask_output(play: Play, targets: Targets) -> None:
    def change(number: int, logits: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
        predicted = torch.tensor([0.1, 0.9, 0.9, 0.9]).expand(len(iou), -1)
        right = torch.cat([logits[:, :1], truth(targets).expand(-1, 3, -1, -1)], 1) if len(logits) == 6 else logits
        return (right, predicted) if number > 1 else (logits, iou)

    played = play(POINTS, change=change)
    for number in range(2, 8):
        assert torch.allclose(played.results[number - 1].predicted_iou, torch.tensor(0.1))
        assert (played.results[number - 1].iou < 1).all()


def gradients_of_outputs(sam: Sam, result: RoundResult) -> list[bool]:
    """Return which of the four outputs the loss of a round reaches."""
    sam.zero_grad()
    result.loss.sum().backward()
    weights = [mlp.layers[0].weight.grad for mlp in sam.mask_decoder.output_hypernetworks_mlps]
    return [weight is not None and bool(weight.any()) for weight in weights]


@pytest.fixture
def rounds_of(sam: Sam, embedding: Tensor) -> Iterator[Callable[..., list[RoundResult]]]:
    def rounds_of(settings: InteractiveSettings, targets: Targets) -> list[RoundResult]:
        return list(play_rounds(sam, embedding, None, targets, settings, torch.Generator().manual_seed(2)))

    yield rounds_of
    sam.zero_grad()


def test_gradient_flows_through_the_chosen_output_alone(
    sam: Sam, rounds_of: Callable[..., list[RoundResult]], targets: Targets
) -> None:
    one = replace(targets, **{name: getattr(targets, name)[:1] for name in FIELDS})
    first, *later = rounds_of(POINTS, one)
    reached = gradients_of_outputs(sam, first)
    assert sum(reached) == 1
    assert not reached[0]
    for result in later:
        assert gradients_of_outputs(sam, result) == [True, False, False, False]


def test_true_iou_is_a_target_without_gradient(
    sam: Sam, rounds_of: Callable[..., list[RoundResult]], targets: Targets
) -> None:
    """With the mask losses at weight zero, only the IoU head and what feeds it learn."""
    only_iou = InteractiveSettings(box_share=1.0, rounds=1, loss=LossSettings(focal_weight=0, dice_weight=0))
    (result,) = rounds_of(only_iou, targets)
    assert not result.iou.requires_grad
    assert torch.allclose(result.loss, (result.predicted_iou - result.iou) ** 2)
    assert gradients_of_outputs(sam, result) == [False] * 4
    head = sam.mask_decoder.iou_prediction_head.layers[-1].weight.grad
    assert head is not None
    assert head.abs().amax(1).gt(0).tolist() == [True, False, False, False]


def test_each_image_gets_its_own_task_vector_in_the_first_round(play: Play, embedding: Tensor) -> None:
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(4))
    played = play(InteractiveSettings(rounds=3), vectors=vectors)
    sources = [calls[0].source for calls in played.calls]
    assert torch.equal(sources[0], embedding + vectors[:, :, None, None])
    assert torch.equal(sources[1], embedding)
    always = play(InteractiveSettings(rounds=3, continuous_task_prompt=True), vectors=vectors)
    assert all(torch.equal(calls[0].source, sources[0]) for calls in always.calls)
    none = play(InteractiveSettings(rounds=3, continuous_task_prompt=True))
    assert all(torch.equal(calls[0].source, embedding) for calls in none.calls)
