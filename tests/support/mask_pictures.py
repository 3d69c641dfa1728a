"""Mask files of every kind that users have, drawn by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sum_factory.trainer.data.human import FolderPairs
from sum_factory.trainer.data.sets import FolderPairsSettings, open_set

HEIGHT, WIDTH = 24, 32
Mask = npt.NDArray[np.bool_]
Draw = Callable[[Mask], Image.Image]


def objects() -> list[Mask]:
    """Return the masks of four photos: rectangles of less than half of the photo."""
    masks = []
    for number in range(4):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[4 + number : 16, 5 : 14 + 2 * number] = True
        masks.append(mask)
    return masks


def write(folder: Path, draw: Draw, suffix: str = ".png", masks: list[Mask] | None = None, **options: Any) -> None:
    """Write photos of noise, and masks as ``draw`` makes them."""
    for name in ("images", "masks"):
        (folder / name).mkdir(exist_ok=True)
    for number, mask in enumerate(objects() if masks is None else masks):
        noise = np.random.default_rng(number).integers(0, 256, (*mask.shape, 3), np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{number}.jpg")
        draw(mask).save(folder / "masks" / f"{number}{suffix}", **options)


def opened(folder: Path, **changes: Any) -> FolderPairs:
    found = open_set(FolderPairsSettings("folder-pairs", folder / "images", folder / "masks", "salient", **changes))
    assert isinstance(found, FolderPairs)
    return found


def grey(low: int, high: int, dtype: Any = np.uint8) -> Draw:
    return lambda mask: Image.fromarray(np.where(mask, high, low).astype(dtype))


def palette(*colours: tuple[int, int, int], index: int = 1) -> Draw:
    def draw(mask: Mask) -> Image.Image:
        image = Image.fromarray(np.where(mask, index, 0).astype(np.uint8))
        image.putpalette([channel for colour in colours for channel in colour])
        return image

    return draw


def coloured(mask: Mask) -> Image.Image:
    return Image.fromarray(np.where(mask[..., None], (200, 30, 40), (0, 0, 0)).astype(np.uint8))


def cut_out(mask: Mask) -> Image.Image:
    """The photo where the object is, transparent elsewhere, where most programs leave black."""
    noise = np.random.default_rng(9).integers(0, 256, (*mask.shape, 3), np.uint8)
    return Image.fromarray(np.dstack([np.where(mask[..., None], noise, 0), np.where(mask, 255, 0)]).astype(np.uint8))


def white_on_nothing(mask: Mask) -> Image.Image:
    """White everywhere, and seen only where the object is: laid over white it would be full."""
    return Image.fromarray(np.dstack([np.full((*mask.shape, 3), 255), np.where(mask, 255, 0)]).astype(np.uint8))


def opaque(mask: Mask) -> Image.Image:
    return Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).convert("RGBA")


def soft(mask: Mask) -> Image.Image:
    """A mask with soft edges: its values at half and above are the mask."""
    return Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).resize(
        (WIDTH * 4, HEIGHT * 4), Image.Resampling.BICUBIC
    )


def colours(mask: Mask) -> Image.Image:
    picture = np.where(mask[..., None], (200, 30, 40), (0, 0, 0)).astype(np.uint8)
    picture[:2] = (0, 99, 0)
    return Image.fromarray(picture)


def white_on_black_and_nothing(mask: Mask) -> Image.Image:
    """A mask in its colours and another in its alpha."""
    alpha = np.full(mask.shape, 255, np.uint8)
    alpha[:, :3] = 0
    return Image.fromarray(np.dstack([np.where(mask[..., None], 255, 0).repeat(3, 2), alpha]).astype(np.uint8))


def height_in_alpha(mask: Mask) -> Image.Image:
    slope = np.linspace(0, 255, mask.size).reshape(mask.shape)
    return Image.fromarray(np.dstack([np.where(mask[..., None], 255, 0).repeat(3, 2), slope]).astype(np.uint8))


def stripes(*parts: int) -> Draw:
    """Return what draws the first value as background, and the others as stripes of the object."""

    def draw(mask: Mask) -> Image.Image:
        rows, columns = np.nonzero(mask)
        picture = np.full(mask.shape, parts[0], np.uint8)
        picture[rows, columns] = np.asarray(parts[1:], np.uint8)[columns % (len(parts) - 1)]
        return Image.fromarray(picture)

    return draw
