"""How the uncertainty u follows from logits (SUM, Sec. 3.2.3).

Torch is imported where it computes: the command line shows the names of ``FORMULAS`` as sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sum_factory.shared.shards.dataset import CERTAIN

if TYPE_CHECKING:
    from torch import Tensor


def difference(s: Tensor, r: Tensor) -> Tensor:
    """Return u = |sigmoid(s) - sigmoid(r)| of logits s and refined logits r (Eq. 3), in [0, 1].

    It is also how far two models differ in what they make of one prompt.
    """
    return (s.sigmoid() - r.sigmoid()).abs()


def lack_of_confidence(s: Tensor) -> Tensor:
    """Return u = 1 - |2 sigmoid(s) - 1| of logits s: 1 where SAM is undecided, 0 where it is sure."""
    return 1 - (2 * s.sigmoid() - 1).abs()


def binary_entropy(s: Tensor) -> Tensor:
    """Return the entropy of sigmoid(s) in bits: 1 where SAM is undecided, 0 where it is sure."""
    from torch.nn import functional as F

    nats = s.sigmoid() * F.softplus(-s) + (-s).sigmoid() * F.softplus(s)
    return (nats / math.log(2)).clamp(max=1)


def no_doubt(s: Tensor) -> Tensor:
    """Return u = 0 for all logits s: of masks that people drew or corrected."""
    return s.new_zeros(s.shape)


FORMULAS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "confidence": lack_of_confidence,
    "entropy": binary_entropy,
}
"""How u follows from SAM's own logits, by the name of the source."""
LABEL_FORMULAS: Mapping[str, Callable[[Tensor], Tensor]] = {
    **{f"label-{name}": each for name, each in FORMULAS.items()},
    CERTAIN: no_doubt,
}
"""How u follows from the logits that a stored label decodes to, by the name of the source: no model is run."""
