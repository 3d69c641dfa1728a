"""A loss of each mask, of a few masks at a time: none of what is computed on the way stays for the backward pass.

On a grid as fine as SAM's input, a mask has a million cells, and a loss of it a dozen arrays of them. Since the loss of
a mask depends on its own logits alone, its gradient is known as soon as the loss is, and that, at the low resolution of
the logits, is all that is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CELLS_ON_CPU, CELLS = 1 << 18, 1 << 27
"""Cells of masks that are compared at a time: as many as fit a CPU's cache, elsewhere as many as keep a GPU busy."""

LossesOf = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""Takes logits (R, h, w) and which of all rows they are; returns the loss of each, (R,), and what else is known of it,
(R,), which has no gradient."""


def losses_by_rows(losses_of: LossesOf, logits: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Return what ``losses_of`` finds of all rows of ``logits`` (P, h, w), with the gradient of the losses.

    A row's loss must depend on its own logits alone. ``cells`` is how many cells a row is compared in.
    """
    most = CELLS_ON_CPU if logits.device.type == "cpu" else CELLS
    return _ByRows.apply(logits, losses_of, max(1, most // cells))  # type: ignore[no-any-return]


class _ByRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, losses_of: LossesOf, at_once: int) -> tuple[Tensor, Tensor]:
        losses: list[Tensor] = []
        others: list[Tensor] = []
        gradients: list[Tensor] = []
        for start in range(0, len(logits), at_once):
            rows = slice(start, min(start + at_once, len(logits)))
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                some = logits[rows].detach().requires_grad_(ctx.needs_input_grad[0])
                loss, other = losses_of(some, rows)
                gradients += torch.autograd.grad(loss.sum(), some) if ctx.needs_input_grad[0] else ()
            losses.append(loss.detach())
            others.append(other)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        found = torch.cat(losses), torch.cat(others)
        ctx.mark_non_differentiable(found[1])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_losses: Tensor, of_others: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * of_losses[:, None, None], None, None
