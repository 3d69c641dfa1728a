"""What masks are compared with in training, by name.

    authors    a bit per cell of SAM's low resolution, as in the authors' code
    bits       a bit per cell of the loss grid: whether a human mask covers half of it, and a label's sign there
    coverage   the share of each cell of the loss grid that the mask covers
    points     the mask on SAM's input, in points that are drawn: most of them where the logits are nearest to 0

Clicks are drawn, and IoU is taken, on the bits of the loss grid whatever the target is.
"""

from __future__ import annotations

from typing import Literal

from sum_factory.shared.placement import CELL

Target = Literal["authors", "bits", "coverage", "points"]
DEFAULT: Target = "coverage"


def require_target(target: Target, stride: int) -> None:
    """Raise ``ValueError`` if there is no such target on a grid of ``stride`` input pixels per cell."""
    if target == "authors" and stride != CELL:
        raise ValueError(
            f"the target authors is a bit per cell of SAM's low resolution, a stride of {CELL}, and the stride is "
            f"{stride}; give stride={CELL}, or the target bits"
        )
    if target == "coverage" and stride == 1:
        raise ValueError(
            "the target coverage is finer than labels are: with a stride of 1 a cell is one pixel of SAM's input; give "
            "a stride of 2 or 4, or the target bits or points"
        )


def target_in_identity(target: Target) -> dict[str, str]:
    """Return what a run's identity says of its target: nothing of bits, which runs had before there was a choice."""
    return {} if target in ("authors", "bits") else {"target": target}
