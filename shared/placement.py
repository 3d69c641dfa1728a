"""Where a photo lies in SAM's square input, and where its pixels lie in the low-resolution grid.

SAM scales the longer side of a photo (or of a crop of it) to the side of its square input and pads the rest with
zeros, right and below. Mask logits live on a grid a quarter as fine, over the whole square.

Torch is imported where tensors are, as most who ask about sizes have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

CELL = 4
"""Input pixels per side of a low-resolution cell."""
CropBox = tuple[int, int, int, int]
"""A rectangle of an image: x0, y0, x1, y1, the last two exclusive."""


def resized_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Return the height and width that a photo has in the square input, as ``ResizeLongestSide`` rounds them.

    Either may come out as 0 for a photo that is more than twice ``side`` times as long as wide.
    """
    scale = side / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


@dataclass(frozen=True)
class Frame:
    """The square input of ``side`` pixels that shows ``crop_box`` of a photo."""

    side: int
    crop_box: CropBox

    @classmethod
    def whole(cls, side: int, height: int, width: int) -> Frame:
        """Return the frame that shows all of a photo."""
        return cls(side, (0, 0, width, height))

    @classmethod
    def crop(cls, side: int, box: Sequence[int]) -> Frame:
        """Return the frame that shows the crop ``box``, x0, y0, x1, y1."""
        x0, y0, x1, y1 = (int(value) for value in box)
        return cls(side, (x0, y0, x1, y1))

    @property
    def crop_size(self) -> tuple[int, int]:
        """Height and width of the crop in the photo."""
        x0, y0, x1, y1 = self.crop_box
        return y1 - y0, x1 - x0

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the crop in the square input; the rest is padding."""
        return resized_size(*self.crop_size, self.side)

    @property
    def photo_cells(self) -> tuple[int, int]:
        """Rows and columns of the low-resolution grid that show any of the photo (the frame's crop)."""
        height, width = self.input_size
        return -(-height // CELL), -(-width // CELL)

    @property
    def interpolation_cells(self) -> tuple[int, int]:
        """Rows and columns that the photo's pixels are interpolated from: at most one more than ``photo_cells``."""
        limit = self.side // CELL
        height, width = (min(limit, (2 * size + CELL - 1) // (2 * CELL) + 1) for size in self.input_size)
        return height, width

    def to_input(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Map points (..., 2), x and y in the crop, to the square input, as ``ResizeLongestSide.apply_coords``."""
        (height, width), (input_height, input_width) = self.crop_size, self.input_size
        return points * (input_width / width, input_height / height)

    def upsample(self, logits: Tensor) -> Tensor:
        """Bring logits (K, h, w) of the low-resolution square to the crop's own size, as ``Sam.postprocess_masks``.

        ``logits`` may be cut to ``interpolation_cells``: nothing beyond is read. Returns float (K, H, W).
        """
        from torch.nn import functional as F

        grid = self.side // CELL
        padded = F.pad(logits[:, None], (0, grid - logits.shape[2], 0, grid - logits.shape[1]), mode="replicate")
        square = F.interpolate(padded, (self.side, self.side), mode="bilinear", align_corners=False)
        height, width = self.input_size
        square = square[..., :height, :width]
        return F.interpolate(square, self.crop_size, mode="bilinear", align_corners=False)[:, 0]


def paste(crop_masks: Tensor, frame: Frame, height: int, width: int) -> Tensor:
    """Put masks or maps (K, h, w) of a frame's crop into zeros of the whole photo, (K, height, width)."""
    import torch

    x0, y0, x1, y1 = frame.crop_box
    whole = torch.zeros(len(crop_masks), height, width, dtype=crop_masks.dtype, device=crop_masks.device)
    whole[:, y0:y1, x0:x1] = crop_masks
    return whole


def at_full_size(grid: npt.NDArray[np.float32], frame: Frame, height: int, width: int) -> npt.NDArray[np.float32]:
    """Bring logits or a map, float32 (h, w) of ``frame``, to the photo's size (H, W); 0 beyond the frame's crop."""
    import numpy as np
    import torch

    crop = frame.upsample(torch.from_numpy(grid)[None])
    return np.asarray(paste(crop, frame, height, width)[0].numpy())
