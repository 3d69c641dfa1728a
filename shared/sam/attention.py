"""Attention of SAM's image encoder in pieces that fit a cache: upstream's numbers without its N x N matrices.

For a global block of 64 x 64 tokens and 12 heads, upstream writes 0.8 GB of scores, adds positions to them twice, and
reads them back. Rows of a softmax do not depend on each other, so a piece of rows at a time gives the same.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor

from shared.sam.fast_linear import linear

PIECE_ON_CPU, PIECE = 1 << 21, 1 << 27
"""Scores that are computed at a time: on a CPU 8 MB of fp32, elsewhere as many as keep a GPU busy."""


class PiecewiseAttention(Attention):  # type: ignore[misc]
    """Upstream's attention with relative positions, with its parameters, a piece of the scores at a time."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each of B images or windows of tokens, (B, H, W, C)."""
        count, height, width, channels = x.shape
        tokens = height * width
        qkv = self.qkv(x).reshape(count, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, count * self.num_heads, tokens, -1).unbind(0)
        out = torch.empty_like(q)
        piece = PIECE_ON_CPU if x.device.type == "cpu" else PIECE
        across = max(1, piece // tokens**2)
        rows = max(1, piece // (across * tokens * width)) if across == 1 else height
        for start in range(0, len(q), across):
            here = slice(start, start + across)
            for top in range(0, height, rows):
                part = slice(top * width, (top + rows) * width)
                scores = _product(q[here, part] * self.scale, k[here])
                scores += self._positions(q[here, part], top, height, width)
                out[here, part] = _product(scores.softmax(-1), v[here].mT)
        out = out.view(count, self.num_heads, height, width, -1).permute(0, 2, 3, 1, 4)
        attended: Tensor = self.proj(out.reshape(count, height, width, channels))
        return attended

    def _positions(self, queries: Tensor, top: int, height: int, width: int) -> Tensor:
        """Return what relative positions add to the scores of queries (B, n, E) from row ``top`` on, (B, n, N)."""
        if not self.use_rel_pos:
            return queries.new_zeros(1, 1, 1)
        placed = torch.unflatten(queries, 1, (-1, width))
        by_row = get_rel_pos(height, height, self.rel_pos_h)[top : top + placed.shape[1]]
        by_column = get_rel_pos(width, width, self.rel_pos_w)
        vertical = torch.einsum("bhwc,hkc->bhwk", placed, by_row)
        horizontal = torch.einsum("bhwc,wkc->bhwk", placed, by_column)
        return (vertical[..., None] + horizontal[..., None, :]).flatten(3).flatten(1, 2)


def _product(one: Tensor, other: Tensor) -> Tensor:
    """Return ``one`` (B, n, k) times ``other`` (B, m, k) transposed."""
    return linear(one[0], other[0].contiguous())[None] if len(one) == 1 else one @ other.mT


def attend_in_pieces(encoder: ImageEncoderViT) -> None:
    """Make the blocks of ``encoder`` use ``PiecewiseAttention``, on the parameters that they have. For inference."""
    for block in encoder.blocks:
        block.attn.__class__ = PiecewiseAttention
