"""Photos of a set of human masks as what shows or judges whole photos reads them."""

from __future__ import annotations

from collections.abc import Iterator

from sum_factory.shared.errors import ImageError, InputError
from sum_factory.shared.masks import Mask
from sum_factory.shared.placement import Frame
from sum_factory.trainer.data.human import HumanSample, HumanSet


def load_sample(opened: HumanSet, index: int, name: str, side: int) -> HumanSample:
    """Return a photo of the set ``name``, for models whose square input has ``side`` pixels.

    Raises ``InputError`` for a file that cannot be read, ``ImageError`` for a photo that is too thin for SAM.
    """
    try:
        sample = opened.load(index)
    except OSError as error:
        raise InputError(f"{error.filename or opened.keys[index]}: cannot be read ({error.strerror})") from error
    height, width = sample.image.shape[:2]
    if 0 in Frame.whole(side, height, width).input_size:
        raise ImageError(f"{name}: {sample.key}: {width} x {height} is too thin for SAM; cut it up")
    return sample


def masks_with_pixels(sample: HumanSample) -> Iterator[tuple[int, Mask]]:
    """Yield the number of each human mask that is not empty, and the mask, bool (H, W); one is in memory at a time."""
    for number in range(sample.count):
        mask = sample.masks_at([number])[0]
        if mask.any():
            yield number, mask
