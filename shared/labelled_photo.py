"""A photo with its masks, their maps of doubt and what is known of them, as numpy arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sum_factory.shared.images import RgbImage

Mask = npt.NDArray[np.bool_]
Map = npt.NDArray[np.float32]


class Drawn(Protocol):
    """What draws the masks and maps of one photo, at its own size (H, W)."""

    def image(self) -> RgbImage:
        """Return the photo, uint8 (H, W, 3)."""

    def mask(self, index: int) -> Mask:
        """Return a mask, bool (H, W)."""

    def uncertainty(self, index: int, layer: str) -> Map | None:
        """Return the map u of a mask, float32 (H, W), or None if nothing is known of its doubt."""

    def refined(self, index: int, layer: str) -> Mask | None:
        """Return what the refiner made of a mask, bool (H, W), or None if there is nothing."""


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo of ``height`` x ``width`` pixels and its K masks, whose indexes go from 0 to K - 1.

    Masks and maps are drawn when they are asked for, one at a time: those of a large photo together take gigabytes. A
    photo that could not be labelled has no masks, and ``error`` says why.
    """

    key: str
    """What names the photo: its path without the extension, or its number among those that were handed over."""
    height: int
    """Pixels; 0 if the photo could not be read."""
    width: int
    """Pixels; 0 if the photo could not be read."""
    boxes: npt.NDArray[np.int64]
    """Int64 (K, 4): x, y, width, height in pixels, the last two as the largest index minus the smallest."""
    areas: npt.NDArray[np.int64]
    """Int64 (K,): pixels of each mask."""
    points: npt.NDArray[np.float64]
    """Float64 (K, 2): x, y of the point that each mask was found from, in pixels."""
    predicted_iou: npt.NDArray[np.float64]
    """Float64 (K,): the IoU that SAM predicts. NaN for an imported mask that came without."""
    stability: npt.NDArray[np.float64]
    """Float64 (K,): the stability score. NaN for an imported mask that came without."""
    mean_u: Mapping[str, npt.NDArray[np.float64]]
    """Float64 (K,) for each uncertainty layer: the mean of each map. NaN where nothing is known."""
    error: str | None
    """Why the photo has no masks, if it could not be labelled."""
    drawn: Drawn = field(repr=False)
    """What draws it all. Call the methods of the photo in place of those."""

    def __len__(self) -> int:
        return len(self.areas)

    def image(self) -> RgbImage:
        """Return the photo, RGB uint8 (H, W, 3), upright. Raises as reading its file does if it is read again."""
        return self.drawn.image()

    def mask(self, index: int) -> Mask:
        """Return a mask, bool (H, W). Raises ``IndexError`` if there is none of this index."""
        return self.drawn.mask(self._checked(index))

    def masks(self) -> Iterator[Mask]:
        """Yield the masks, bool (H, W) each."""
        return (self.mask(index) for index in range(len(self)))

    def uncertainty(self, index: int, layer: str = "refinement") -> Map | None:
        """Return the map u of a mask, float32 (H, W), from 0, certain, to 1; 0 beyond the crop that it was found in.

        None means that nothing is known of its doubt, which is not 0. Raises ``KeyError`` if there is no such layer,
        ``IndexError`` if there is no such mask.
        """
        self._require(layer)
        return self.drawn.uncertainty(self._checked(index), layer)

    def refined(self, index: int, layer: str = "refinement") -> Mask | None:
        """Return what the refiner made of a mask, bool (H, W); None where no refiner did. Raises as ``uncertainty``."""
        self._require(layer)
        return self.drawn.refined(self._checked(index), layer)

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.key}: mask {index} of {len(self)}")
        return index % len(self)

    def _require(self, layer: str) -> None:
        if layer not in self.mean_u:
            raise KeyError(f"{self.key}: no maps {layer!r}; there are {', '.join(self.mean_u) or 'none'}")


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, npt.NDArray[Any]]:
    """Return what the rows of a manifest say of masks, as the fields of ``LabelledPhoto`` have it."""

    def column(*names: str, kind: type[np.generic]) -> npt.NDArray[Any]:
        found = [[np.nan if row[name] is None else row[name] for name in names] for row in rows]
        return np.array(found, kind).reshape(len(rows), len(names))

    return {
        "boxes": column("box_x", "box_y", "box_w", "box_h", kind=np.int64),
        "areas": column("area", kind=np.int64)[:, 0],
        "points": column("point_x", "point_y", kind=np.float64),
        "predicted_iou": column("predicted_iou", kind=np.float64)[:, 0],
        "stability": column("stability", kind=np.float64)[:, 0],
    }
