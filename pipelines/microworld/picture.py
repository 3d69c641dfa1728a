"""Make embeddings hold the picture: a linear head draws it from them, and is thrown away after training.

What an encoder learns from masks alone is what those masks need. SAM's encoder was pre-trained on drawing pictures, and
keeps more than its masks show; this does the same to ``vit_micro``, at the resolution of its mask logits.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sum_factory.shared.placement import CELL

CELLS = 4
"""Cells to a side of a token."""


class PictureHead(nn.Module):
    """Draws the mean colour of every cell from the token that it lies in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.colours = nn.Conv2d(channels, 3 * CELLS**2, 1)

    def forward(self, embeddings: Tensor, images: Tensor) -> Tensor:
        """Return the mean squared error of what ``embeddings`` (B, C, g, g) show of ``images``, normalised
        (B, 3, 16 g, 16 g)."""
        cells = F.pixel_unshuffle(F.avg_pool2d(images, CELL), CELLS)
        return F.mse_loss(self.colours(embeddings), cells)
