"""Interactive training: seven rounds of prompts on one encoding of the images (SUM, App. B.1, Sec. 3.2.4).

Round 1 gives a box or a point, rounds 2 to 6 add one click at an error each, round 7 adds nothing. Every round also
gets the logits of the one before as mask prompt, detached. The image embedding is a detached leaf: each round is
backpropagated at once into its gradient, and the encoder is run backwards once at the end, so that memory does not
grow with the rounds while gradients stay those of the whole graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.sam.decode import BOX_MIN, PAD, Prompts, decode_prompts, dense_positions
from sum_factory.shared.sam.hq import add_vectors
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.losses import LossSettings, mask_loss, true_iou
from sum_factory.trainer.points import PixelMasks, draw_points, values_at
from sum_factory.trainer.prompts import click_errors, first_prompts, hq_prompts
from sum_factory.trainer.randomness import Randomness, by_row

SEVERAL = slice(1, None)
"""The mask tokens for an ambiguous prompt; token 0 is the one for prompts that leave no doubt."""
FedOutput = Literal["predicted", "best"]
"""Which output of an ambiguous prompt is the mask prompt of the next round: "predicted", the one of highest predicted
IoU, which inference without a user takes; or "best", the one of least mask loss, which is trained and which a user
would go on from."""


Rows = Tensor | slice
"""Which of the masks: int64 numbers, or a slice."""
FirstPrompts = Literal["interactive", "hq"]
"""Which prompts a mask begins with: "interactive", a noisy box or a point; or "hq", those of HQ-SAM's training."""


@dataclass(frozen=True)
class InteractiveSettings:
    """How the rounds go. ``continuous_task_prompt`` gives the task in every round instead of the first."""

    rounds: int = 7
    """Rounds a mask: the first prompt, a click a round, and a last round without a new click."""
    box_share: float = 0.5
    """Share of the masks whose first prompt is a box. The others begin with a point."""
    fed_output: FedOutput = "predicted"
    """Which of the three outputs of a single point the second round goes on from: predicted or best."""
    first_prompts: FirstPrompts = "interactive"
    """Which prompts a mask begins with: interactive (a noisy box or a point), or hq (as HQ-SAM's training)."""
    continuous_task_prompt: bool = False
    """Whether the task is given in every round, not in the first alone."""
    loss: LossSettings = field(default_factory=LossSettings)
    """Weights and constants of the mask loss."""


@dataclass(frozen=True)
class Targets:
    """What P masks of B images should be, on a grid of ``stride`` input pixels a cell.

    ``masks`` and ``valid`` are bool (P, H, W). ``certainty`` weighs the losses, ``sampling`` the drawing of points;
    both float (P, H, W), 1 for human masks. ``image_index`` is int64 (P,). Losses compare with ``masks``, unless there
    are ``coverage``, float32 (P, H, W), or ``pixels``.
    """

    masks: Tensor
    valid: Tensor
    certainty: Tensor
    sampling: Tensor
    image_index: Tensor
    stride: int
    coverage: Tensor | None = None
    pixels: PixelMasks | None = None

    def __len__(self) -> int:
        return len(self.masks)

    def shifts(self, generator: Randomness) -> Tensor | None:
        """Draw what is random about the points of a round, float64 (P, 2); nothing where masks are compared whole."""
        if self.pixels is None:
            return None
        return by_row(generator, len(self)).uniform(len(self), 2).to(self.masks.device)

    def loss(
        self, logits: Tensor, grid: Tensor, shifts: Tensor | None, settings: LossSettings, rows: Rows = slice(None)
    ) -> Tensor:
        """Return the mask loss of R of the masks, ``rows``, by their low-resolution logits (R, h, w), which on the grid
        are ``grid`` (R, H, W): (R,)."""
        if self.pixels is None or shifts is None:
            wanted = self.masks if self.coverage is None else self.coverage
            return mask_loss(grid, wanted[rows], self.valid[rows], self.certainty[rows], settings)
        pixels = self.pixels[rows]
        places = draw_points(logits, pixels, shifts[rows])
        certainty = values_at(self.certainty[rows], places, pixels.side)
        in_photo = torch.ones_like(certainty, dtype=torch.bool)
        found = values_at(logits, places, pixels.side)
        return mask_loss(found, pixels.at(places), in_photo, certainty, settings)


@dataclass(frozen=True)
class RoundResult:
    """One round: the loss of each mask with its graph, (P,), and what to log, detached, (P,) each.

    ``predicted`` are the masks that the losses were taken of, bool (P, H, W), on the grid of the targets.
    """

    number: int
    loss: Tensor
    mask_loss: Tensor
    iou: Tensor
    predicted_iou: Tensor
    predicted: Tensor


@dataclass(frozen=True)
class _Tokens:
    """The prompt tokens of P masks. The first ``count`` tokens of each row are given, the others fill it up."""

    coords: Tensor
    token_types: Tensor
    count: Tensor

    @classmethod
    def of(cls, prompts: Prompts) -> _Tokens:
        full = torch.full((len(prompts),), prompts.token_types.shape[1], device=prompts.token_types.device)
        return cls(prompts.coords, prompts.token_types, full)

    def add(self, coords: Tensor, token_types: Tensor, given: Tensor) -> _Tokens:
        """Put one click in front of the rows that ``given`` (P,) marks."""
        longer_coords = torch.cat([coords[:, None], self.coords], 1)
        longer_types = torch.cat([token_types[:, None], self.token_types], 1)
        padded_coords = F.pad(self.coords, (0, 0, 0, 1))
        padded_types = F.pad(self.token_types, (0, 1), value=PAD)
        return _Tokens(
            torch.where(given[:, None, None], longer_coords, padded_coords),
            torch.where(given[:, None], longer_types, padded_types),
            torch.where(given & (self.count == 0), 2, self.count + given.long()),  # the first has padding behind it
        )

    def at(self, rows: Tensor) -> _Tokens:
        """Return the tokens of these rows, int64 (R,)."""
        return _Tokens(self.coords[rows], self.token_types[rows], self.count[rows])

    def alike(self, mask_logits: Tensor | None, all_have_masks: bool) -> Iterator[tuple[Tensor, Prompts]]:
        """Yield rows of equal token count with their prompts: one more padding token would change the result."""
        for count in torch.unique(self.count).tolist():
            rows = (self.count == count).nonzero()[:, 0]
            given = all_have_masks or count == 0
            masks = mask_logits[rows] if given and mask_logits is not None else None
            yield rows, Prompts(self.coords[rows, :count], self.token_types[rows, :count], masks)

    @property
    def ambiguous(self) -> Tensor:
        """Which rows hold a single point and nothing else, bool (P,)."""
        return (self.count == 2) & (self.token_types != BOX_MIN).all(1)


@dataclass(frozen=True)
class Round:
    """A round that was played with P masks of a batch, ``rows`` int64 (P,): their prompts, and what the model put out.

    ``logits`` are (P, K, h, w), ``predicted_iou`` (P, K); ``ambiguous``, bool (P,), marks a single point and nothing
    else. ``shifts`` are what ``Targets.shifts`` drew, and ``fed`` the mask prompts (P, 1, h, w), None in a first round
    without any.
    """

    number: int
    rows: Tensor
    logits: Tensor
    predicted_iou: Tensor
    ambiguous: Tensor
    targets: Targets
    shifts: Tensor | None
    tokens: _Tokens
    fed: Tensor | None

    def again(
        self, sam: Sam, source: Tensor, places: Tensor, image_index: Tensor, fed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Decode the prompts of the masks at ``places``, int64 (R,), by another model: logits (R, K, h, w), IoU (R, K).

        ``source`` are its embeddings, ``image_index`` (R,) says which is whose, and ``fed`` (R, 1, h, w) are its own
        logits of the round before. In the first round the mask prompts are those of the round, if there were any.
        """
        if self.number == 1:
            fed = None if self.fed is None else self.fed[places]
        return _decode(sam, source, image_index, self.tokens.at(places), fed, self.number > 1)


Judge = Callable[[Round, InteractiveSettings], tuple[RoundResult, Tensor]]
"""Takes the losses of a round; also returns the logits (P, 1, h, w) that are the mask prompts of the next one."""


def play_rounds(
    sam: Sam,
    embeddings_BCHW: Tensor,
    task_vectors_BC: Tensor | None,
    targets: Targets,
    settings: InteractiveSettings,
    generator: Randomness,
    judge: Judge | None = None,
) -> Iterator[RoundResult]:
    """Play all rounds and yield each one's result; the caller backpropagates a result before asking for the next.

    ``judge`` takes the losses, by default ``judge_round``.

    ``embeddings_BCHW`` are the image embeddings, ``task_vectors_BC`` the vector of each image's task, added to its
    embedding in the first round (in all with ``continuous_task_prompt``), or None.
    """
    side = int(sam.image_encoder.img_size)
    tokens, noised = _first(targets, settings, side, generator)
    previous: Tensor | None = None
    for number in range(1, settings.rounds + 1):
        if 1 < number < settings.rounds:
            assert previous is not None, "round 1 leaves logits"
            predicted = to_grid(previous, targets)[:, 0] > 0
            weights = targets.sampling * targets.valid
            tokens = tokens.add(*click_errors(predicted, targets.masks, weights, targets.stride, generator))
        given = task_vectors_BC if number == 1 or settings.continuous_task_prompt else None
        source = embeddings_BCHW if given is None else add_vectors(embeddings_BCHW, given)
        fed = noised if number == 1 else previous
        logits, predicted_iou = _decode(sam, source, targets.image_index, tokens, fed, number > 1)
        rows = torch.arange(len(targets), device=logits.device)
        ambiguous, shifts = tokens.ambiguous & (number == 1), targets.shifts(generator)
        played = Round(number, rows, logits, predicted_iou, ambiguous, targets, shifts, tokens, fed)
        result, previous = (judge or judge_round)(played, settings)
        yield result


def _first(
    targets: Targets, settings: InteractiveSettings, side: int, generator: Randomness
) -> tuple[_Tokens, Tensor | None]:
    """Return the first tokens, and mask prompts (P, 1, h, w) for the rows without a token, if there may be any."""
    masks, weights = targets.masks, targets.sampling
    if settings.first_prompts == "interactive":
        drawn = first_prompts(masks, weights, settings.box_share, targets.stride, side, generator)
        return _Tokens.of(drawn), None
    prompts, count, noised = hq_prompts(masks, weights, targets.stride, side // 4, generator)
    return _Tokens(prompts.coords, prompts.token_types, count), noised


def to_grid(logits: Tensor, targets: Targets) -> Tensor:
    """Bring low-resolution logits (P, K, h, w) to the grid of the targets, (P, K, H, W)."""
    return F.interpolate(logits, targets.masks.shape[1:], mode="bilinear", align_corners=False)


def _decode(
    sam: Sam,
    source: Tensor,
    image_index: Tensor,
    tokens: _Tokens,
    mask_logits: Tensor | None,
    all_have_masks: bool,
) -> tuple[Tensor, Tensor]:
    """Decode all rows, those of equal token count together; logits (P, K, h, w) and predicted IoU (P, K).

    Unless ``all_have_masks``, the mask prompts are those of the rows without a token.
    """
    positions = dense_positions(sam)
    rows, logits, iou = [], [], []
    for index, prompts in tokens.alike(mask_logits, all_have_masks):
        some_logits, some_iou = decode_prompts(sam, source, image_index[index], prompts, positions)
        rows.append(index)
        logits.append(some_logits)
        iou.append(some_iou)
    order = torch.cat(rows).argsort()
    return torch.cat(logits)[order].to(source.dtype), torch.cat(iou)[order].to(source.dtype)


def choose(played: Round, settings: InteractiveSettings) -> tuple[Tensor, Tensor]:
    """Return the outputs that are trained and those that are fed back, int64 (P,) each.

    An ambiguous prompt trains the best of its three outputs by mask loss, and feeds back that one or the one of highest
    *predicted* IoU, as ``settings.fed_output`` says. Otherwise both are the single-mask output.
    """
    logits, targets = played.logits, played.targets
    trained = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    fed = torch.zeros_like(trained)
    if logits.shape[1] > 1 and played.ambiguous.any():  # HQ-SAM has one output
        which = played.ambiguous.nonzero()[:, 0]
        with torch.no_grad():
            grids = to_grid(logits[which, SEVERAL], targets)
            losses = [
                targets.loss(logits[which, 1 + k], grids[:, k], played.shifts, settings.loss, which)
                for k in range(grids.shape[1])
            ]
        trained[which] = 1 + torch.stack(losses, 1).argmin(1)
        believed = 1 + played.predicted_iou[which, SEVERAL].detach().argmax(1)
        fed[which] = trained[which] if settings.fed_output == "best" else believed
    return trained, fed


def judge_round(
    played: Round, settings: InteractiveSettings, taught: Targets | None = None
) -> tuple[RoundResult, Tensor]:
    """Take the losses of the outputs that ``choose`` names, against ``taught`` in place of the round's own targets."""
    logits, targets = played.logits, taught or played.targets
    row = torch.arange(len(logits), device=logits.device)
    trained, fed = choose(played, settings)
    chosen = logits[row, trained]
    grid = to_grid(chosen[:, None], targets)[:, 0]
    losses = targets.loss(chosen, grid, played.shifts, settings.loss)
    iou = true_iou(grid, targets.masks, targets.valid)
    predicted = played.predicted_iou[row, trained]
    loss = losses + settings.loss.iou_weight * (predicted - iou) ** 2
    result = RoundResult(played.number, loss, losses.detach(), iou, predicted.detach(), grid.detach() > 0)
    return result, logits[row, fed][:, None].detach()
