"""Photos and masks of miniatures of public sets: objects whose place follows from their number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

HEIGHT, WIDTH = 24, 32
Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]
Drawn = dict[str, list[Mask]]
"""The masks of each photo, by its key."""
Build = Callable[[Path], Drawn]
Shape = tuple[int, int]


def box(number: int) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right of the object of a number: no two of the first 420 are the same."""
    top, left = 2 + 2 * (number % 3), 3 + 3 * (number % 4)
    return top, left, top + 6 + number % 5, left + 8 + number % 7


def mask_of(number: int, shape: Shape = (HEIGHT, WIDTH)) -> Mask:
    mask = np.zeros(shape, bool)
    top, left, bottom, right = box(number)
    mask[top:bottom, left:right] = True
    return mask


def save_photo(path: Path, shape: Shape = (HEIGHT, WIDTH), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(noise).save(path, **options)


def save_values(path: Path, values: Values) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def save_palette(path: Path, values: Values) -> None:
    """Write places of a palette of which the first is black and others are colours, as VOC and DAVIS do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8), "P")
    image.putpalette([0, 0, 0] + [channel for n in range(1, 256) for channel in (n * 53 % 256, n * 91 % 256, 255 - n)])
    image.save(path)


def white(mask: Mask) -> Values:
    return np.where(mask, 255, 0).astype(np.uint8)


def soft(mask: Mask) -> Values:
    """An object with edges of 100 around it, and of 200 at its left: half of white and above is the object."""
    values = np.where(mask, 255, 0).astype(np.uint8)
    values[1:][mask[:-1] & ~mask[1:]] = 100
    values[:, :-1][mask[:, :-1] & mask[:, 1:] & ~np.roll(mask, 1, 1)[:, :-1]] = 200
    return values


def numbered(mask: Mask) -> Values:
    """Two objects, 1 and 2, that are one mask together."""
    return np.where(mask, 1 + (np.arange(mask.shape[1]) > 8), 0).astype(np.uint8)
