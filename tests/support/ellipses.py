"""Round masks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def ellipse(height: int, width: int, seed: int) -> Mask:
    """A slanted ellipse that fills a good part of the photo."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    middle = np.array([height, width]) * random.uniform(0.4, 0.6, 2)
    turn = random.uniform(0, np.pi)
    along = (y - middle[0]) * np.cos(turn) + (x - middle[1]) * np.sin(turn)
    across = (x - middle[1]) * np.cos(turn) - (y - middle[0]) * np.sin(turn)
    shape: Mask = (along / (0.4 * height)) ** 2 + (across / (0.2 * width)) ** 2 < 1
    return shape
