"""Attention of SAM's image encoder in pieces that fit a cache: upstream's numbers without its N x N matrices.

For a global block of 64 x 64 tokens and 12 heads, upstream writes 0.8 GB of scores, adds positions to them twice, and
reads them back. Rows of a softmax do not depend on each other, so a piece of rows at a time gives the same.

Where windows do not divide the grid, upstream pads it with zeros, 70 x 70 tokens instead of 64 x 64. Query, key and
value of a zero are the bias of the projection, which takes no product, and what padded tokens read is thrown away. So
on a CPU the projections before and after the attention see the real tokens alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sum_factory.shared.sam import fast_linear
from sum_factory.shared.sam.upstream import ImageEncoderViT, image_encoder

PIECE_OF_THREAD, PIECE_ON_CPU, PIECE = 1 << 19, 1 << 21, 1 << 27
"""Scores that are computed at a time: 2 MB of fp32 for each thread of a CPU that works on a head of its own, 8 MB where
all of them work on one by oneDNN, elsewhere as many as keep a GPU busy."""


class PiecewiseAttention(image_encoder.Attention):  # type: ignore[misc]
    """Upstream's attention with relative positions, with its parameters, a piece of the scores at a time."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each of B images or windows of tokens, (B, H, W, C)."""
        attended: Tensor = self.proj(self._attend(self.qkv(x)))
        return attended

    def attend_in_windows(self, x: Tensor, side: int) -> Tensor:
        """Attend within windows of ``side`` x ``side`` tokens of B images, (B, H, W, C), padded as upstream pads."""
        qkv = self.qkv(x)
        padding = 0 if self.qkv.bias is None else self.qkv.bias.to(qkv.dtype)
        out = qkv.new_empty(x.shape)
        for top in range(0, x.shape[1], side):  # a row of windows at a time, which fits a cache
            real = qkv[:, top : top + side]
            count, height, width, channels = real.shape
            across = -(-width // side)
            padded = qkv.new_empty(count, side, across * side, channels)
            padded[:, :height, :width] = real
            padded[:, height:] = padding
            padded[:, :height, width:] = padding
            windows = torch.unflatten(padded, 2, (across, side)).transpose(1, 2)
            attended = torch.unflatten(self._attend(windows.flatten(0, 1)), 0, (count, across))
            out[:, top : top + side] = attended.transpose(1, 2).flatten(2, 3)[:, :height, :width]
        projected: Tensor = self.proj(out)
        return projected

    def _attend(self, qkv: Tensor) -> Tensor:
        """Return what tokens read, (B, H, W, C), given their queries, keys and values, (B, H, W, 3 C)."""
        count, height, width, _ = qkv.shape
        tokens = height * width
        by_head = qkv.reshape(count, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = by_head.reshape(3, count * self.num_heads, tokens, -1).unbind(0)
        positions = self._positions(torch.unflatten(q, 1, (height, width))) if self.use_rel_pos else None
        out = torch.empty_like(q)
        across, rows = _piece_of(q, height, width)
        for start in range(0, len(q), across):
            here = slice(start, start + across)
            for top in range(0, height, rows):
                part = slice(top * width, (top + rows) * width)
                if positions is None:
                    scores = _product(q[here, part] * self.scale, k[here])
                else:
                    vertical, horizontal = (added[here, top : top + rows] for added in positions)
                    base = (vertical[..., None] + horizontal[..., None, :]).flatten(3).flatten(1, 2)
                    scores = _add_product(base, q[here, part], k[here], self.scale)
                out[here, part] = _product(scores.softmax(-1), v[here].mT)
        out = out.view(count, self.num_heads, height, width, -1).permute(0, 2, 3, 1, 4)
        return out.reshape(count, height, width, -1)

    def _positions(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return what relative positions add to the scores of queries (B, H, W, E): by row of the key, (B, H, W, H),
        and by its column, (B, H, W, W)."""
        height, width = queries.shape[1:3]
        by_row = image_encoder.get_rel_pos(height, height, self.rel_pos_h)
        by_column = image_encoder.get_rel_pos(width, width, self.rel_pos_w)
        vertical = torch.einsum("bhwc,hkc->bhwk", queries, by_row)
        horizontal = torch.einsum("bhwc,wkc->bhwk", queries, by_column)
        return vertical.contiguous(), horizontal.contiguous()  # or sums of theirs, which are large, would be copied


class WindowedBlock(image_encoder.Block):  # type: ignore[misc]
    """Upstream's block with its parameters, which on a CPU projects no padding."""

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to as many."""
        if self.window_size == 0 or x.device.type != "cpu":
            return super().forward(x)  # type: ignore[no-any-return]
        x = x + self.attn.attend_in_windows(self.norm1(x), self.window_size)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


def _piece_of(q: Tensor, height: int, width: int) -> tuple[int, int]:
    """Return how many heads of ``q`` (B, N, E), and of each how many rows of queries, make a piece."""
    tokens, piece, least = height * width, PIECE, 1
    if q.device.type == "cpu":
        piece, least = PIECE_ON_CPU, 1
        if tokens**2 <= piece or not fast_linear.onednn_helps():
            least = min(len(q), torch.get_num_threads())
            piece = PIECE_OF_THREAD * torch.get_num_threads()
    across = max(least, piece // tokens**2)
    return across, min(height, max(1, piece // (across * tokens * width)))


def _add_product(base: Tensor, q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Return ``base`` (B, n, m) plus ``scale`` times q (B, n, E) times k (B, m, E) transposed. Overwrites ``base``."""
    if base.device.type != "cpu" or base.dtype != torch.float32 or _is_for_onednn(q):
        return base.add_(_product(q * scale, k))
    return base.baddbmm_(q, k.mT, alpha=scale)  # saves a pass over the scores


def _product(one: Tensor, other: Tensor) -> Tensor:
    """Return ``one`` (B, n, k) times ``other`` (B, m, k) transposed."""
    if _is_for_onednn(one):
        return fast_linear.linear(one[0], other[0].contiguous())[None]
    return one @ other.mT


def _is_for_onednn(one: Tensor) -> bool:
    return len(one) == 1 and one.device.type == "cpu" and fast_linear.onednn_helps()


def attend_in_pieces(encoder: ImageEncoderViT) -> None:
    """Make ``encoder`` attend by ``PiecewiseAttention``, on the parameters that it has. For inference.

    Blocks that do more than upstream's stay what they are.
    """
    for block in encoder.blocks:
        if type(block) is image_encoder.Block:
            block.__class__ = WindowedBlock
        block.attn.__class__ = PiecewiseAttention
