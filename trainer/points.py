"""Points of SAM's input in which masks are compared exactly: a fine stride where it is needed alone (PointRend).

Of each mask three times as many points are drawn as are used, and of these the ones are kept where the logits are
nearest to 0: three quarters of all that are used. The last quarter is drawn anywhere, so that no error is too sure of
itself to be seen (Kirillov et al., PointRend, Sec. 3.1; Mask2Former and HQ-SAM train in as many points). A point is the
centre of a pixel of SAM's input, and lies in the photo. Its logit is that of bilinear upsampling to the input, as at
inference.

Points are spread evenly: they are those of a lattice whose steps are powers of the plastic number, shifted by two
random numbers per mask (Roberts' R2 sequence). So a round draws two numbers per mask, whatever the number of points,
and the rest is computed on the training device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

POINTS, POINTS_SIDE = 112 * 112, 1024
"""Points per mask of a SAM whose input has so many pixels per side; of others in proportion to their pixels."""
OVERSAMPLED = 3
"""Points that are looked at for each that is used."""
NEAR_ZERO = 0.75
"""Share of the points that is chosen by the logits."""
PLASTIC = 1.324717957244746
"""The real root of x^3 = x + 1."""


@dataclass(frozen=True)
class PixelMasks:
    """Masks of P targets on SAM's input, bool (P, S, S), with the rows and columns of it that show the photo, int64
    (P, 2)."""

    masks: Tensor
    sizes: Tensor

    @property
    def side(self) -> int:
        """Pixels per side of SAM's input."""
        return self.masks.shape[-1]

    def __getitem__(self, indexes: Tensor | slice) -> PixelMasks:
        """Return those of ``indexes``, int64 or a slice."""
        return PixelMasks(self.masks[indexes], self.sizes[indexes])

    def at(self, points: Tensor) -> Tensor:
        """Return whether the masks have the pixels ``points``, int64 (P, N, 2) of x and y: bool (P, N)."""
        each = torch.arange(len(points), device=points.device)[:, None]
        return self.masks[each, points[..., 1], points[..., 0]]


def count_of(side: int) -> int:
    """Return the number of points per mask, for a SAM whose input has ``side`` pixels per side."""
    return max(1, round(POINTS * (side / POINTS_SIDE) ** 2))


def draw_points(logits: Tensor, pixel_masks: PixelMasks, shifts: Tensor) -> Tensor:
    """Return the points of P masks in which they are compared, int64 (P, N, 2), x and y on SAM's input.

    ``logits`` (P, h, w) are those that decide which are kept, ``shifts`` float64 (P, 2), in [0, 1), what is random.
    """
    count = count_of(pixel_masks.side)
    kept = round(NEAR_ZERO * count)
    looked_at = spread(shifts, pixel_masks.sizes, 0, OVERSAMPLED * count)
    distance = values_at(logits.detach(), looked_at, pixel_masks.side).abs()
    nearest = distance.topk(kept, largest=False).indices
    chosen = looked_at.gather(1, nearest[..., None].expand(-1, -1, 2))
    anywhere = spread(shifts, pixel_masks.sizes, OVERSAMPLED * count, count - kept)
    return torch.cat([chosen, anywhere], 1)


def spread(shifts: Tensor, sizes: Tensor, first: int, count: int) -> Tensor:
    """Return points ``first`` to ``first + count`` - 1 of each mask's lattice as pixels, int64 (P, count, 2), x and y.

    They lie in the first rows and columns of SAM's input, as many as ``sizes``, int64 (P, 2), says.
    """
    number = torch.arange(first, first + count, device=shifts.device, dtype=torch.float64)
    steps = torch.tensor([1 / PLASTIC, 1 / PLASTIC**2], device=shifts.device, dtype=torch.float64)
    shares = (shifts[:, None] + number[:, None] * steps) % 1
    limits = sizes.flip(1)[:, None]
    return torch.minimum((shares * limits).long(), limits - 1)


def values_at(values: Tensor, points: Tensor, side: int) -> Tensor:
    """Return values (P, h, w) on a grid of SAM's square input, upsampled bilinearly to its ``side``, at pixels
    ``points``, int64 (P, N, 2) of x and y: (P, N)."""
    coords = (points.to(values.dtype) + 0.5) * (2 / side) - 1
    found = F.grid_sample(values[:, None], coords[:, None], "bilinear", "border", align_corners=False)
    return found[:, 0, 0]
