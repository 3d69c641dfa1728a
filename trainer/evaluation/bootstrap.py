"""Bootstrap intervals: how far means would move with other images.

The masks of an image hang together, so images are drawn with replacement, not masks, and the same ones for all that is
compared.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DRAWS = 2_000
COVERAGE = 0.95

Values = npt.NDArray[np.float64]


def resampled_means(sums: Values, counts: Values, draws: int, random: np.random.Generator) -> Values:
    """Return means over the masks of N images, drawn with replacement ``draws`` times: (draws, S, T).

    ``sums`` (S, T, N) are the sums over the masks of each image, of S things that are compared and T kinds of masks,
    and ``counts`` (T, N) how many masks these are.
    """
    images = counts.shape[1]
    weights = random.multinomial(images, np.full(images, 1 / images), draws).astype(np.float64)
    drawn: Values = np.einsum("bn,stn->bst", weights, sums) / np.maximum(weights @ counts.T, 1)[:, None]
    return drawn


def interval(drawn: Values) -> tuple[float, float]:
    """Return the ends of the middle 95 % of drawn values, (draws,)."""
    low, high = np.quantile(drawn, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)
