"""Linear layers through oneDNN, where that is faster than the BLAS that torch calls.

For fp32 torch calls MKL, which leaves the wide vector instructions of other makers' processors alone: on an AMD Zen 5
its products run at half the speed of oneDNN's, which is in every build of torch. The results differ in the last bits,
since sums are taken in another order. Which of the two is used follows from the processor's instructions alone, so that
processors of one kind give equal bits.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sum_factory.shared.sam.upstream import ImageEncoderViT


@cache
def onednn_helps() -> bool:
    """Whether oneDNN is the faster one here: with AVX2 alone, both are as fast as the processor can multiply."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available) and torch.backends.cpu.get_cpu_capability() == "AVX512"


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x`` (..., K) times ``weight`` (N, K) transposed, plus ``bias`` (N): ``torch.nn.functional.linear``."""
    device = x.device.type
    if device != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled(device):
        return F.linear(x, weight, bias)
    if torch.compiler.is_compiling() or not onednn_helps():  # a compiler cannot look into oneDNN's tensors
        return F.linear(x, weight, bias)
    product: Tensor = F.linear(x.to_mkldnn(), weight, bias).to_dense()
    return product


class FastLinear(nn.Linear):
    """``torch.nn.Linear`` by ``linear``. For inference."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., K) to (..., N)."""
        return linear(input, self.weight, self.bias)


def use_fast_linear(encoder: ImageEncoderViT) -> None:
    """Make the linear layers of ``encoder`` ``FastLinear``, on the parameters that they have. For inference."""
    for module in encoder.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear
