"""Add up the gradients of a step: over the photos that do not go through the model together, and over processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sum_factory.trainer.run.distributed import Ranks
from sum_factory.trainer.run.sharding import is_sharded, local


class GradientSum:
    """The sum of what backward passes leave in the gradients of ``parameters``, over all processes.

    On a CPU it is kept in fp64 and rounded once, to the type of the gradients. So it is the same, to the bit but for
    one number in about 10^9, in whatever order photos come and however many processes share them. Elsewhere it is kept
    in the gradients, which needs no more memory: kernels there add up in an order that is not fixed, either.

    Of parameters that are sharded over processes, the gradients are those of all processes already.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
        self._ranks = ranks
        self._own = [parameter for parameter in parameters if not is_sharded(parameter)]
        self._parameters = [*self._own, *(parameter for parameter in parameters if is_sharded(parameter))]
        self._flat: Tensor | None = None
        if ranks.device.type == "cpu":
            sizes = [local(parameter).numel() for parameter in self._parameters]
            self._flat = torch.zeros(sum(sizes), dtype=torch.float64)
            self._shared = sum(sizes[: len(self._own)])
            self._parts = torch.split(self._flat, sizes)

    def clear(self) -> None:
        """Begin another step."""
        for gradient in self._gradients():
            gradient.zero_()
        if self._flat is not None:
            self._flat.zero_()

    def add(self) -> None:
        """Take up what a backward pass has left in the gradients, and leave them empty for the next one."""
        if self._flat is not None:
            for part, gradient in zip(self._parts, self._gradients(), strict=True):
                part += gradient.reshape(-1)
                gradient.zero_()

    def finish(self) -> None:
        """Leave in the gradients the sum over all passes and processes."""
        if self._flat is None:
            self._ranks.sum_gradients(self._own)
            return
        self._ranks.sum_tensor(self._flat[: self._shared])
        for part, gradient in zip(self._parts, self._gradients(), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _gradients(self) -> list[Tensor]:
        """Return the gradients of all parameters, of those that are sharded the part of this process."""
        gradients = [parameter.grad for parameter in self._parameters]
        return [local(gradient) for gradient in gradients if gradient is not None]
