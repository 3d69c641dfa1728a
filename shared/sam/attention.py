"""Attention of SAM's image encoder without upstream's N x N matrices: in pieces that fit a cache, on a GPU fused.

For a global block of 64 x 64 tokens and 12 heads, upstream writes 0.8 GB of scores, adds positions to them twice, and
reads them back. Rows of a softmax do not depend on each other, so a piece of rows at a time gives the same. For a
backward pass nothing of the scores is kept: they are computed again, piece by piece.

Where windows do not divide the grid, upstream pads it with zeros, 70 x 70 tokens instead of 64 x 64. Query, key and
value of a zero are the bias of the projection, which takes no product, and what padded tokens read is thrown away. So
on a CPU the projections before and after the attention see the real tokens alone.

On a GPU there are kernels that never write a score (flash attention), but they take no bias of N x N. What positions
add to the score of a query and a key is a number of the query for the key's row, and one for its column. So these
numbers become further channels of the query, and the key gets a 1 for its row and one for its column: the product is
the score, positions included, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sum_factory.shared.sam import fast_linear
from sum_factory.shared.sam.upstream import ImageEncoderViT, image_encoder

PIECE_OF_THREAD, PIECE_ON_CPU, PIECE = 1 << 19, 1 << 21, 1 << 27
"""Scores that are computed at a time: 2 MB of fp32 for each thread of a CPU that works on a head of its own, 8 MB where
all of them work on one by oneDNN, elsewhere as many as keep a GPU busy."""
ALIGNED = 8
"""Channels of a head are filled up with zeros to a multiple of this, which all fused kernels take."""


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
        rows = []
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
            rows.append(attended.transpose(1, 2).flatten(2, 3)[:, :height, :width])
        projected: Tensor = self.proj(torch.cat(rows, 1))
        return projected

    def _attend(self, qkv: Tensor) -> Tensor:
        """Return what tokens read, (B, H, W, C), given their queries, keys and values, (B, H, W, 3 C)."""
        count, height, width, _ = qkv.shape
        tokens = height * width
        by_head = qkv.reshape(count, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = by_head.reshape(3, count * self.num_heads, tokens, -1).unbind(0)
        positions = self._positions(torch.unflatten(q, 1, (height, width))) if self.use_rel_pos else (None, None)
        attend: Callable[..., Tensor] = attend_fused if q.device.type == "cuda" else _Attend.apply
        out: Tensor = attend(q, k, v, *positions, (height, width), self.scale)
        by_token = out.view(count, self.num_heads, height, width, -1).permute(0, 2, 3, 1, 4)
        return by_token.reshape(count, height, width, -1)

    def _positions(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return what relative positions add to the scores of queries (B, H, W, E): by row of the key, (B, H, W, H),
        and by its column, (B, H, W, W)."""
        height, width = queries.shape[1:3]
        by_row = image_encoder.get_rel_pos(height, height, self.rel_pos_h)
        by_column = image_encoder.get_rel_pos(width, width, self.rel_pos_w)
        vertical = torch.einsum("bhwc,hkc->bhwk", queries, by_row)
        horizontal = torch.einsum("bhwc,wkc->bhwk", queries, by_column)
        return vertical.contiguous(), horizontal.contiguous()  # or sums of theirs, which are large, would be copied


def attend_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    by_row: Tensor | None,
    by_column: Tensor | None,
    size: tuple[int, int],
    scale: float,
) -> Tensor:
    """As ``_Attend``, by PyTorch's fused attention, with positions folded into queries and keys."""
    channels, added = q.shape[-1], 0
    q = q * scale
    if by_row is not None and by_column is not None:
        (height, width), added = size, sum(size)
        rows = torch.eye(height, dtype=k.dtype, device=k.device).repeat_interleave(width, 0)
        columns = torch.eye(width, dtype=k.dtype, device=k.device).repeat(height, 1)
        q = torch.cat([q, by_row.flatten(1, 2).to(q.dtype), by_column.flatten(1, 2).to(q.dtype)], -1)
        k = torch.cat([k, torch.cat([rows, columns], 1).expand(len(k), -1, -1)], -1)
    missing = -(channels + added) % ALIGNED
    q, k = (F.pad(each, (0, missing))[None] for each in (q, k))
    v = F.pad(v, (0, added + missing))[None]
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[0, ..., :channels]


class _Attend(torch.autograd.Function):
    """What queries (B, N, E) read, (B, N, E), given keys, values, and what positions add, a piece at a time.

    Takes what positions add by row and by column, or None twice, the height and width that N is made of, and the scale.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        by_row: Tensor | None,
        by_column: Tensor | None,
        size: tuple[int, int],
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, by_row, by_column)
        ctx.size, ctx.scale = size, scale
        out = torch.empty_like(q)
        for here, rows, part in _pieces(q, *size):
            scores = _scores(q[here, part], k[here], _added(by_row, by_column, here, rows), scale)
            out[here, part] = _product(scores.softmax(-1), v[here].mT)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, by_row, by_column = ctx.saved_tensors
        height, width = ctx.size
        of_q, of_k, of_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        of_row, of_column = (None if each is None else torch.empty_like(each) for each in (by_row, by_column))
        for here, rows, part in _pieces(q, height, width):
            scores = _scores(q[here, part], k[here], _added(by_row, by_column, here, rows), ctx.scale)
            weights = scores.softmax(-1).to(v.dtype)
            of_piece = of_out[here, part]
            of_v[here] += weights.mT @ of_piece
            of_scores = torch._softmax_backward_data(of_piece @ v[here].mT, weights, -1, weights.dtype)
            of_q[here, part] = (of_scores @ k[here]).mul_(ctx.scale)
            of_k[here] += (of_scores.mT @ q[here, part]).mul_(ctx.scale)
            if of_row is not None and of_column is not None:
                by_cell = of_scores.view(len(of_scores), -1, width, height, width)
                of_row[here, rows], of_column[here, rows] = by_cell.sum(-1), by_cell.sum(-2)
        return of_q, of_k, of_v, of_row, of_column, None, None


def _pieces(q: Tensor, height: int, width: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield which heads, which rows of queries, and which queries these are, of each piece."""
    across, rows = _piece_of(q, height, width)
    for start in range(0, len(q), across):
        for top in range(0, height, rows):
            yield slice(start, start + across), slice(top, top + rows), slice(top * width, (top + rows) * width)


def _added(by_row: Tensor | None, by_column: Tensor | None, here: slice, rows: slice) -> Tensor | None:
    """Return what positions add to the scores of a piece, (B, n, N), if anything."""
    if by_row is None or by_column is None:
        return None
    return (by_row[here, rows][..., None] + by_column[here, rows][..., None, :]).flatten(3).flatten(1, 2)


def _scores(q: Tensor, k: Tensor, added: Tensor | None, scale: float) -> Tensor:
    return _product(q * scale, k) if added is None else _add_product(added, q, k, scale)


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
    """Make ``encoder`` attend by ``PiecewiseAttention``, on the parameters that it has.

    Blocks that do more than upstream's stay what they are.
    """
    for block in encoder.blocks:
        if type(block) is image_encoder.Block:
            block.__class__ = WindowedBlock
        block.attn.__class__ = PiecewiseAttention
