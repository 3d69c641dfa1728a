"""Interactive training: rounds of prompts, seven by default, on images embedded once (SUM, App. B.1, Sec. 3.2.4).

Round 1 gives a box or a point, rounds 2 to 6 add one click at an error each, round 7 adds nothing. From the second on,
a round also gets the logits of the one before as mask prompt, detached; HQ-SAM's first one may get a noisy mask. The
image embedding is a detached leaf: each round is backpropagated at once into its gradient, and the encoder is run
backwards once at the end, so that memory does not grow with the rounds while gradients stay those of the whole graph.
Masks do not depend on each other, so a round is played in subsets of them, and memory does not grow with the masks
either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.precision import autocast
from sum_factory.shared.sam.decode import ABSENT, BOX_MIN, PAD, Prompts, decode_prompts, dense_positions
from sum_factory.shared.sam.hq import add_vectors
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.by_rows import losses_by_rows
from sum_factory.trainer.losses import LossSettings, mask_loss, true_iou
from sum_factory.trainer.points import PixelMasks, draw_points, values_at
from sum_factory.trainer.prompts import clicks_at, draw_shares, first_prompts, hq_prompts
from sum_factory.trainer.randomness import Randomness, by_row

ELEMENTS_ON_CPU, ELEMENTS = 1 << 20, 1 << 26
"""How many numbers the embeddings of masks that are decoded together may have: each mask brings its image's."""
SEVERAL = slice(1, None)
"""The decoder's outputs for an ambiguous prompt, 1 to 3; output 0 is for a prompt that can mean one mask only."""
FedOutput = Literal["predicted", "best"]
"""Which output of an ambiguous prompt is the mask prompt of the next round: "predicted", the one of highest predicted
IoU, which inference without a user takes; or "best", the one of least mask loss, which is trained and which a user
would go on from."""


Indexes = Tensor | slice
"""Which of the masks: int64 numbers, or a slice."""
FirstPrompts = Literal["interactive", "hq"]
"""Which prompts a mask begins with: "interactive", a noisy box or a point; or "hq", those of HQ-SAM's training."""


@dataclass(frozen=True)
class InteractiveSettings:
    """How the rounds go. ``continuous_task_prompt`` gives the task in every round instead of the first."""

    rounds: int = 7
    """Rounds per mask: the first prompt, a click per round, and a last round without a new click."""
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
    masks_at_once: int | None = None
    """Masks that are decoded together at most; by default as many as ``masks_together`` returns."""


@dataclass(frozen=True)
class Targets:
    """What P masks of B images should be, on a grid of ``stride`` input pixels per cell.

    ``masks`` and ``valid`` are bool (P, H, W). ``certainty`` weighs the losses, ``sampling`` the drawing of points;
    both float (P, H, W), 1 for human masks. ``image_index`` is int64 (P,). Losses compare with ``masks``, unless there
    are ``coverage``, float32 (P, H, W), or ``pixel_masks``, on SAM's input.
    """

    masks: Tensor
    valid: Tensor
    certainty: Tensor
    sampling: Tensor
    image_index: Tensor
    stride: int
    coverage: Tensor | None = None
    pixel_masks: PixelMasks | None = None

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, indexes: Indexes) -> Targets:
        """Return those of some masks."""
        return Targets(
            self.masks[indexes],
            self.valid[indexes],
            self.certainty[indexes],
            self.sampling[indexes],
            self.image_index[indexes],
            self.stride,
            None if self.coverage is None else self.coverage[indexes],
            None if self.pixel_masks is None else self.pixel_masks[indexes],
        )

    def shifts(self, generator: Randomness) -> Tensor | None:
        """Draw what is random about the points of a round, float64 (P, 2); nothing where masks are compared whole."""
        if self.pixel_masks is None:
            return None
        return by_row(generator, len(self)).uniform(len(self), 2).to(self.masks.device)

    def loss(self, logits: Tensor, grid: Tensor, shifts: Tensor | None, settings: LossSettings) -> Tensor:
        """Return the mask losses (P,) of low-resolution logits (P, h, w), which on the grid are ``grid`` (P, H, W)."""
        if self.pixel_masks is None or shifts is None:
            wanted = self.masks if self.coverage is None else self.coverage
            return mask_loss(grid, wanted, self.valid, self.certainty, settings)
        points = draw_points(logits, self.pixel_masks, shifts)
        certainty = values_at(self.certainty, points, self.pixel_masks.side)
        in_photo = torch.ones_like(certainty, dtype=torch.bool)
        found = values_at(logits, points, self.pixel_masks.side)
        return mask_loss(found, self.pixel_masks.at(points), in_photo, certainty, settings)


@dataclass(frozen=True)
class RoundResult:
    """One round of R of the masks, ``indexes`` int64 (R,) in the batch: the loss of each with its graph, (R,), and what
    to log, detached, (R,) each.

    ``masks`` are those that the losses were taken of, bool (R, h, w), at SAM's low resolution.
    """

    number: int
    indexes: Tensor
    loss: Tensor
    mask_loss: Tensor
    iou: Tensor
    predicted_iou: Tensor
    masks: Tensor


@dataclass(frozen=True)
class _Tokens:
    """The prompt tokens of P masks; what a mask has fewer than another is filled up by tokens that are absent."""

    coords: Tensor
    token_types: Tensor

    @property
    def count(self) -> Tensor:
        """How many tokens each mask has, int64 (P,)."""
        return (self.token_types != ABSENT).sum(1)

    def add(self, coords: Tensor, token_types: Tensor, given: Tensor) -> _Tokens:
        """Put a click in front, for the masks that ``given`` (P,) marks; a first one has padding behind it."""
        longer_coords = torch.cat([coords[:, None], self.coords], 1)
        behind = self.token_types.clone()
        behind[self.count == 0, :1] = PAD
        longer_types = torch.cat([token_types[:, None], behind], 1)
        filled_coords = F.pad(self.coords, (0, 0, 0, 1))
        filled_types = F.pad(self.token_types, (0, 1), value=ABSENT)
        return _Tokens(
            torch.where(given[:, None, None], longer_coords, filled_coords),
            torch.where(given[:, None], longer_types, filled_types),
        )

    def at(self, indexes: Tensor) -> _Tokens:
        """Return the tokens of the masks ``indexes``, int64 (R,)."""
        return _Tokens(self.coords[indexes], self.token_types[indexes])

    def subsets(
        self, mask_prompts: Tensor | None, all_have_masks: bool, at_once: int
    ) -> Iterator[tuple[Tensor, Prompts]]:
        """Yield the indexes of masks that are decoded together, ``at_once`` at most, with their prompts.

        Those of a subset have about as many tokens, and all or none have one of ``mask_prompts`` (P, 1, h, w): unless
        ``all_have_masks``, those without a token.
        """
        count = self.count
        ordered = count.argsort(stable=True)
        masked = torch.ones_like(ordered, dtype=torch.bool) if all_have_masks else count[ordered] == 0
        for some, given in ((ordered[masked], mask_prompts), (ordered[~masked], None)):
            for indexes in some.tensor_split(-(-len(some) // at_once)) if len(some) else ():
                longest = int(count[indexes[-1]])
                tokens = self.coords[indexes, :longest], self.token_types[indexes, :longest]
                yield indexes, Prompts(*tokens, None if given is None else given[indexes])

    @property
    def ambiguous(self) -> Tensor:
        """Which masks have a single point and nothing else, bool (P,)."""
        return (self.count == 2) & (self.token_types != BOX_MIN).all(1)


@dataclass(frozen=True)
class Round:
    """A round that was played with P masks of a batch: their prompts, and what the model put out.

    ``indexes``, int64 (P,), are those of the masks in the batch. ``logits`` are (P, K, h, w), ``predicted_iou`` (P, K);
    ``ambiguous``, bool (P,), marks a single point and nothing else. ``shifts`` are what ``Targets.shifts`` drew, and
    ``mask_prompts`` are (P, 1, h, w), None in a first round without any.
    """

    number: int
    indexes: Tensor
    logits: Tensor
    predicted_iou: Tensor
    ambiguous: Tensor
    targets: Targets
    shifts: Tensor | None
    tokens: _Tokens
    mask_prompts: Tensor | None

    def again(
        self, sam: Sam, embeddings: Tensor, indexes: Tensor, image_index: Tensor, mask_prompts: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Decode the prompts of R of the masks by another model: logits (R, K, h, w), predicted IoU (R, K).

        ``indexes``, int64 (R,), are those of the masks in this round. ``embeddings`` are the other model's,
        ``image_index`` (R,) says which is whose, and ``mask_prompts`` (R, 1, h, w) are its own logits of the round
        before. In the first round the mask prompts are those of the round, if there were any.
        """
        if self.number == 1:
            mask_prompts = None if self.mask_prompts is None else self.mask_prompts[indexes]
        return _decode(sam, embeddings, image_index, self.tokens.at(indexes), mask_prompts, self.number > 1)


Judge = Callable[[Round, InteractiveSettings], tuple[RoundResult, Tensor]]
"""Takes the losses of a round, or of a subset of its masks; also returns the logits (P, 1, h, w) that are the mask
prompts of the next one."""


def play_rounds(
    sam: Sam,
    embeddings_BCHW: Tensor,
    task_vectors_BC: Tensor | None,
    targets: Targets,
    settings: InteractiveSettings,
    generator: Randomness,
    judge: Judge | None = None,
) -> Iterator[RoundResult]:
    """Play all rounds, and yield the result of each subset of the masks; the caller backpropagates it before the next.

    ``judge`` takes the losses, by default ``judge_round``.

    ``embeddings_BCHW`` are the image embeddings, ``task_vectors_BC`` the vector of each image's task, added to its
    embedding in the first round (in all with ``continuous_task_prompt``), or None. What is drawn does not depend on the
    subsets.
    """
    at_once = settings.masks_at_once or masks_together(sam, embeddings_BCHW)
    tokens, mask_prompts = _first(targets, settings, int(sam.image_encoder.img_size), generator)
    positions = dense_positions(sam)
    for number in range(1, settings.rounds + 1):
        if 1 < number < settings.rounds:
            assert mask_prompts is not None, "round 1 leaves logits"
            shares = draw_shares(generator, len(targets)).to(mask_prompts.device)
            tokens = tokens.add(*_clicks(mask_prompts, targets, shares, at_once))
        given = task_vectors_BC if number == 1 or settings.continuous_task_prompt else None
        embeddings = embeddings_BCHW if given is None else add_vectors(embeddings_BCHW, given)
        ambiguous, shifts = tokens.ambiguous & (number == 1), targets.shifts(generator)
        done, left = [], []
        for indexes, prompts in tokens.subsets(mask_prompts, number > 1, at_once):
            single = not bool(ambiguous[indexes].any())
            decoded = decode_prompts(sam, embeddings, targets.image_index[indexes], prompts, positions, single)
            logits, predicted_iou = (each.to(embeddings.dtype) for each in decoded)
            some_shifts, some_prompts = (None if each is None else each[indexes] for each in (shifts, mask_prompts))
            known = ambiguous[indexes], targets[indexes], some_shifts, tokens.at(indexes), some_prompts
            result, next_prompts = (judge or judge_round)(
                Round(number, indexes, logits, predicted_iou, *known), settings
            )
            done.append(indexes)
            left.append(next_prompts)
            yield result
        mask_prompts = torch.cat(left)[torch.cat(done).argsort()]


def whole_rounds(results: Iterable[RoundResult]) -> list[RoundResult]:
    """Put the subsets of each round together, with the masks in their order."""
    whole = []
    for number, subsets in groupby(results, key=lambda result: result.number):
        fields = ("indexes", "loss", "mask_loss", "iou", "predicted_iou", "masks")
        of_round = list(subsets)
        joined = [torch.cat([getattr(each, name) for each in of_round]) for name in fields]
        order = joined[0].argsort()
        whole.append(RoundResult(number, *(each[order] for each in joined)))
    return whole


def masks_together(sam: Sam, embeddings_BCHW: Tensor) -> int:
    """Return how many masks to decode together: as many as go through the cache of a CPU, or keep a GPU busy."""
    most = ELEMENTS_ON_CPU if embeddings_BCHW.device.type == "cpu" else ELEMENTS
    cells = embeddings_BCHW.shape[2] * embeddings_BCHW.shape[3]
    return max(1, most // (cells * int(sam.mask_decoder.transformer_dim)))


def _clicks(logits: Tensor, targets: Targets, shares: Tensor, at_once: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return clicks at what is wrong with masks of logits (P, 1, h, w), as ``click_errors``, of a few at a time."""
    clicks = []
    for start in range(0, len(targets), at_once):
        indexes = slice(start, start + at_once)
        masks, weights = targets.masks[indexes], targets.sampling[indexes] * targets.valid[indexes]
        model_masks = to_grid(logits[indexes], targets)[:, 0] > 0
        clicks.append(clicks_at(model_masks, masks, weights, targets.stride, shares[indexes]))
    coords, token_types, given = zip(*clicks, strict=True)
    return torch.cat(coords), torch.cat(token_types), torch.cat(given)


def _first(
    targets: Targets, settings: InteractiveSettings, side: int, generator: Randomness
) -> tuple[_Tokens, Tensor | None]:
    """Return the first tokens, and mask prompts (P, 1, h, w) for the masks without a token, if there may be any."""
    masks, weights = targets.masks, targets.sampling
    if settings.first_prompts == "interactive":
        drawn = first_prompts(masks, weights, settings.box_share, targets.stride, side, generator)
        return _Tokens(drawn.coords, drawn.token_types), None
    prompts, count, noised = hq_prompts(masks, weights, targets.stride, side // 4, generator)
    index = torch.arange(prompts.token_types.shape[1], device=masks.device)
    return _Tokens(prompts.coords, prompts.token_types.where(index < count[:, None], ABSENT)), noised


def to_grid(logits: Tensor, targets: Targets) -> Tensor:
    """Bring low-resolution logits (P, K, h, w) to the grid of the targets, (P, K, H, W), by bilinear interpolation.

    Written as products with the weights of rows and columns: on a CPU their backward pass takes a fifth of the time.
    """
    (height, width), (low_height, low_width) = targets.masks.shape[1:], logits.shape[2:]
    if (height, width) == (low_height, low_width):
        return logits
    with autocast(logits.device.type, "fp32"):
        rows, columns = _weights(low_height, height, logits), _weights(low_width, width, logits)
        return rows @ (logits @ columns.mT)


def _weights(cells: int, finer: int, like: Tensor) -> Tensor:
    """Return the weights of linear interpolation from ``cells`` to ``finer`` ones, (finer, cells)."""
    one_by_one = torch.eye(cells, device=like.device, dtype=like.dtype)
    return F.interpolate(one_by_one[None], finer, mode="linear", align_corners=False)[0].mT


def _decode(
    sam: Sam,
    embeddings: Tensor,
    image_index: Tensor,
    tokens: _Tokens,
    mask_prompts: Tensor | None,
    all_have_masks: bool,
) -> tuple[Tensor, Tensor]:
    """Decode the prompts of all masks at once; logits (P, K, h, w) and predicted IoU (P, K)."""
    positions = dense_positions(sam)
    done, logits, iou = [], [], []
    for indexes, prompts in tokens.subsets(mask_prompts, all_have_masks, len(tokens.coords)):
        some_logits, some_iou = decode_prompts(sam, embeddings, image_index[indexes], prompts, positions)
        done.append(indexes)
        logits.append(some_logits)
        iou.append(some_iou)
    order = torch.cat(done).argsort()
    return torch.cat(logits)[order].to(embeddings.dtype), torch.cat(iou)[order].to(embeddings.dtype)


def choose(played: Round, settings: InteractiveSettings) -> tuple[Tensor, Tensor]:
    """Return the outputs that are trained and those that the next round goes on from, int64 (P,) each.

    An ambiguous prompt trains the best of its three outputs by mask loss, and goes on from that one or the one of
    highest *predicted* IoU, as ``settings.fed_output`` says. Otherwise both are the single-mask output.
    """
    logits = played.logits.detach()
    trained = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    going_on = torch.zeros_like(trained)
    if logits.shape[1] > 1 and played.ambiguous.any():  # HQ-SAM has one output
        which = played.ambiguous.nonzero()[:, 0]
        targets, shifts = played.targets[which], None if played.shifts is None else played.shifts[which]
        losses = [_losses(output, targets, shifts, settings)[0] for output in logits[which, SEVERAL].unbind(1)]
        trained[which] = 1 + torch.stack(losses, 1).argmin(1)
        believed = 1 + played.predicted_iou[which, SEVERAL].detach().argmax(1)
        going_on[which] = trained[which] if settings.fed_output == "best" else believed
    return trained, going_on


def judge_round(
    played: Round, settings: InteractiveSettings, taught: Targets | None = None
) -> tuple[RoundResult, Tensor]:
    """Take the losses of the outputs that ``choose`` names, against ``taught`` in place of the round's own targets."""
    logits = played.logits
    each = torch.arange(len(logits), device=logits.device)
    trained, going_on = choose(played, settings)
    chosen = logits[each, trained] if logits.shape[1] > 1 else logits[:, 0]
    losses, iou = _losses(chosen, taught or played.targets, played.shifts, settings)
    predicted_iou = played.predicted_iou[each, trained]
    loss = losses + settings.loss.iou_weight * (predicted_iou - iou) ** 2
    logged = losses.detach(), iou, predicted_iou.detach(), chosen.detach() > 0
    return RoundResult(played.number, played.indexes, loss, *logged), logits[each, going_on][:, None].detach()


def _losses(
    logits: Tensor, targets: Targets, shifts: Tensor | None, settings: InteractiveSettings
) -> tuple[Tensor, Tensor]:
    """Return the mask loss of low-resolution logits (P, h, w), with its gradient, and their true IoU, (P,) each."""

    def losses_of(some: Tensor, indexes: slice) -> tuple[Tensor, Tensor]:
        wanted, some_shifts = targets[indexes], None if shifts is None else shifts[indexes]
        grid = to_grid(some[:, None], wanted)[:, 0]
        losses = wanted.loss(some, grid, some_shifts, settings.loss)
        return losses, true_iou(grid.detach(), wanted.masks, wanted.valid)

    return losses_by_rows(losses_of, logits, targets.masks[0].numel())
