"""What every layout of human masks gives: photos by index, each with its masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from sum_factory.shared.images import RgbImage

Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class HumanSample:
    """A photo, RGB uint8 (H, W, 3), its K masks, and the id of the task that they are masks for.

    A photo may have hundreds of masks, of which few are used: ``masks_at`` decodes those that are asked for.
    """

    key: str
    image: RgbImage
    task: int
    count: int
    """K, how many masks there are."""
    masks_at: Callable[[Sequence[int]], Masks]
    """Returns the masks of these numbers, bool (N, H, W). Raises ``InputError``, naming the file."""

    @cached_property
    def masks(self) -> Masks:
        """All masks, bool (K, H, W)."""
        return self.masks_at(range(self.count))


class HumanSet(Protocol):
    """Photos with human masks for one task."""

    @property
    def task(self) -> int:
        """Id of the task that the masks are masks for."""
        ...

    @property
    def keys(self) -> list[str]:
        """What to call each sample: the path of its photo in its folder, without the suffix.

        The first use opens the set, which checks it. Raises ``InputError`` for what cannot be used.
        """
        ...

    @property
    def mask_count(self) -> int | None:
        """Masks of all photos; None where only reading all of the set tells. Raises ``InputError``."""
        ...

    @property
    def findings(self) -> list[str]:
        """What was found and decided when the set was opened, a sentence each. Raises ``InputError``."""
        ...

    def load(self, index: int) -> HumanSample:
        """Read one sample. Raises ``InputError`` or ``ImageError``, naming the file."""
        ...


def stacked(masks: list[npt.NDArray[Any]], image: RgbImage) -> Masks:
    """Return masks of an image, each bool (h, w), as one array, bool (N, H, W), at the size of the image.

    A mask of another size, which was allowed when its set was opened, is brought to it by the nearest pixel.
    """
    height, width = image.shape[:2]
    whole = np.zeros((len(masks), height, width), bool)
    for place, mask in zip(whole, masks, strict=True):
        if mask.shape != (height, width):
            size = (width, height)
            mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT)
        place[:] = mask
    return whole
