"""Prompt a model as a simulated user would, and measure every round (SUM, Sec. 4.1, App. B.3).

The first prompt is a point or a box; each further round adds one click at the deeper error. Masks are judged at the
photo's own size. The first point has three outputs: *oracle* reports the one closest to the target, *single* the fixed
single-mask output. Every other round has the single-mask output alone. The logits of what was reported are the next
round's mask prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sum_factory.shared.masks import Mask
from sum_factory.shared.placement import Frame
from sum_factory.shared.sam.decode import BOX_MAX, BOX_MIN, NEGATIVE, PAD, POSITIVE, Prompts, decode_prompts
from sum_factory.shared.sam.hq import add_vectors
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.evaluation.clicks import Click, click_near_boundary, first_click, next_click
from sum_factory.trainer.evaluation.metrics import Cutout
from sum_factory.trainer.evaluation.settings import Output, Protocol
from sum_factory.trainer.evaluation.upsampling import upsampled_masks

Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class RoundScore:
    """IoU and boundary IoU of one mask after one round, and what the model thought its IoU was."""

    mask: int
    round: int
    iou: float
    boundary_iou: float
    predicted_iou: float


@dataclass(frozen=True)
class Played:
    """One mask after one round: its score, what the model reported, and the clicks so far."""

    score: RoundScore
    cutout: Cutout
    clicks: tuple[Click, ...]

    @property
    def mask(self) -> Mask:
        """What the model reported, bool (H, W)."""
        return self.cutout.mask


@dataclass
class _State:
    """One target while it is being prompted: its tokens in pixels of the square input, and the reported logits."""

    target: Cutout
    coords: list[list[float]]
    token_types: list[int]
    boxed: bool
    clicks: tuple[Click, ...] = ()
    logits: Tensor | None = None
    mask: Cutout | None = None

    def tokens(self) -> tuple[list[list[float]], list[int]]:
        """The tokens in upstream's order: points, then the box or one padding token."""
        return (self.coords, self.token_types) if self.boxed else ([*self.coords, [0.0, 0.0]], [*self.token_types, PAD])


def evaluate_image(
    sam: Sam,
    embedding: Tensor,
    task_vector: Tensor | None,
    frame: Frame,
    targets: Masks | Sequence[Cutout],
    name: str,
    protocol: Protocol,
    numbers: Sequence[int] | None = None,
) -> list[RoundScore]:
    """Play the protocol on the masks of one image and return a score for every mask and round, as ``play_image``."""
    played = play_image(sam, embedding, task_vector, frame, targets, name, protocol, numbers)
    return [each.score for each in played]


@torch.no_grad()
def play_image(
    sam: Sam,
    embedding: Tensor,
    task_vector: Tensor | None,
    frame: Frame,
    targets: Masks | Sequence[Cutout],
    name: str,
    protocol: Protocol,
    numbers: Sequence[int] | None = None,
) -> Iterator[Played]:
    """Play the protocol on the masks of one image; yield each round of each mask.

    ``embedding`` is (1, C, g, g), ``task_vector`` (C,) or None, ``targets`` bool (K, H, W) without empty masks, or
    their cutouts, which several models may share;
    ``name`` names the image for the near-boundary draw. ``numbers`` are the masks' numbers in their image, 0 to K - 1
    by default: with them, a part of an image's masks scores as it does among all.
    """
    numbers = range(len(targets)) if numbers is None else numbers
    cutouts = [target if isinstance(target, Cutout) else Cutout.of(target) for target in targets]
    named = zip(numbers, cutouts, strict=True)
    states = [_start(target, frame, f"{name}/{k}", protocol) for k, target in named]
    for number in range(1, protocol.rounds + 1):
        if number > 1:
            for state in states:
                _click(state, frame)
        given = task_vector if number <= protocol.task_rounds else None
        source = embedding if given is None else add_vectors(embedding, given[None])
        for count in sorted({len(state.tokens()[1]) for state in states}):
            rows = [k for k, state in enumerate(states) if len(state.tokens()[1]) == count]
            predicted = _decode(sam, source, [states[k] for k in rows], frame, protocol.output)
            for k, predicted_iou in zip(rows, predicted, strict=True):
                mask, target = states[k].mask, states[k].target
                assert mask is not None, "a decoded state has a mask"
                overlap, boundary = mask.iou(target), mask.band.iou(target.band)
                score = RoundScore(numbers[k], number, overlap, boundary, predicted_iou)
                yield Played(score, mask, states[k].clicks)


def _start(target: Cutout, frame: Frame, name: str, protocol: Protocol) -> _State:
    if protocol.first == "box":
        height, width = target.inside.shape
        corners = [(target.left, target.top), (target.left + width - 1, target.top + height - 1)]
        return _State(target, frame.to_input(np.array(corners, np.float64)).tolist(), [BOX_MIN, BOX_MAX], True)
    click = first_click(target) if protocol.first == "point" else click_near_boundary(target.mask, name)
    return _State(target, [_in_input(click, frame)], [POSITIVE], False, (click,))


def _in_input(click: Click, frame: Frame) -> list[float]:
    placed: list[float] = frame.to_input(np.array([click.x, click.y], np.float64)).tolist()
    return placed


def _click(state: _State, frame: Frame) -> None:
    """Add the next click; nothing where the mask is already the target."""
    assert state.mask is not None, "round 1 leaves a mask"
    click: Click | None = next_click(state.mask, state.target)
    if click is not None:
        state.clicks = (*state.clicks, click)
        state.coords.insert(0, _in_input(click, frame))
        state.token_types.insert(0, POSITIVE if click.positive else NEGATIVE)


def _decode(sam: Sam, source: Tensor, states: list[_State], frame: Frame, output: Output) -> list[float]:
    """Decode states of equal token count and set what they report; return their predicted IoU."""
    device = source.device
    tokens = [state.tokens() for state in states]
    previous = [state.logits for state in states]
    prompts = Prompts(
        torch.tensor([coords for coords, _ in tokens], dtype=torch.float32, device=device),
        torch.tensor([token_types for _, token_types in tokens], device=device),
        None if previous[0] is None else torch.stack([logits for logits in previous if logits is not None]),
    )
    index = torch.zeros(len(states), dtype=torch.long, device=device)
    logits, predicted = decode_prompts(sam, source, index, prompts)
    on_cpu, scores = logits.cpu(), predicted.tolist()
    reported = []
    for k, state in enumerate(states):
        ambiguous = output == "oracle" and not state.boxed and state.logits is None
        candidates = range(1, logits.shape[1]) if ambiguous and logits.shape[1] > 1 else range(1)
        masks = dict(
            zip(candidates, upsampled_masks(on_cpu[k, candidates.start : candidates.stop], frame), strict=True)
        )
        best = max(candidates, key=lambda c: masks[c].iou(state.target))
        state.mask, state.logits = masks[best], logits[k, best : best + 1]
        reported.append(scores[k][best])
    return reported
