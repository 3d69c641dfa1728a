"""Muon (https://kellerjordan.github.io/posts/muon) in the precision of the run: PyTorch's own is always in bfloat16."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sum_factory.shared.precision import Precision, dtype_of

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Momentum whose updates of matrices are made orthogonal, then scaled to the RMS that AdamW's have.

    With "bf16" it takes the steps of ``torch.optim.Muon(..., adjust_lr_fn="match_rms_adamw")``.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float, precision: Precision) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self.precision = precision

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take a step with every matrix that has a gradient."""
        assert closure is None, "gradients are there before a step"
        for group in self.param_groups:
            rate, decay = group["lr"], group["weight_decay"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                momentum = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix.grad))
                momentum.lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonalise(matrix.grad.lerp(momentum, MOMENTUM), self.precision)
                matrix.mul_(1 - rate * decay)
                matrix.add_(update, alpha=-rate * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonalise(matrix: Tensor, precision: Precision) -> Tensor:
    """Bring the singular values of a matrix (M, N) near 1, by Newton and Schulz's iteration in ``precision``."""
    a, b, c = COEFFICIENTS
    x = matrix.to(dtype_of(precision), copy=True)
    if matrix.shape[0] > matrix.shape[1]:
        x = x.T
    x.div_(x.norm().clamp(min=1e-7))
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
