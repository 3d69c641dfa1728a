"""Products of tokens and an image, by head, of which ``PointDecoder`` is made: functions that hold no weights.

Shape suffixes: P prompts, T tokens, H heads, E channels of a head, D = H E, J = H T, N positions, C channels, X any.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sum_factory.shared.sam.upstream import transformer


def project_by_head(heads: int, image_NC: Tensor, weight_DC: Tensor) -> Tensor:
    """Project an image to the heads, (H, E, N)."""
    return torch.unflatten(weight_DC @ image_NC.T, 0, (heads, -1))


def split_heads(heads: int, tokens_PTD: Tensor) -> Tensor:
    """Split tokens by head, (P, H, T, E)."""
    split: Tensor = torch.unflatten(tokens_PTD, 2, (heads, -1)).transpose(1, 2)
    return split


def own_head(heads: int, read_PJD: Tensor) -> Tensor:
    """Of what each head's tokens read for all heads, keep what is its own: (P, T, D)."""
    by_head = torch.unflatten(torch.unflatten(read_PJD, 2, (heads, -1)), 1, (heads, -1))  # (P, H, T, H, E)
    return by_head.diagonal(dim1=1, dim2=3).permute(0, 1, 3, 2).flatten(2)


def centred(values: Tensor) -> Tensor:
    """Return values less their mean over the last dimension."""
    return values - values.mean(-1, keepdim=True)


def output_by_head(attention: transformer.Attention) -> Tensor:
    """Return the output projection by head, (H, E, C)."""
    return torch.unflatten(attention.out_proj.weight.T, 0, (attention.num_heads, -1))


def times_shared(image_HEN: Tensor, tokens_PHTE: Tensor) -> Tensor:
    """Multiply tokens with an image that all prompts share: (P, H, T, N), with H before P in memory."""
    prompts, heads, count, _ = tokens_PHTE.shape
    rows = tokens_PHTE.transpose(0, 1).flatten(1, 2)
    return (rows @ image_HEN).view(heads, prompts, count, -1).transpose(0, 1)


def add_scaled(base_PHTN: Tensor, image_PHTN: Tensor, scale_PN: Tensor) -> Tensor:
    """Return ``base`` plus ``image`` times ``scale`` at each position, (P, H T, N), contiguous whatever they are."""
    if torch.compiler.is_compiling():  # to which what is written into other memory keeps its own order
        return torch.addcmul(base_PHTN, image_PHTN, scale_PN[:, None, None]).contiguous().flatten(1, 2)
    total = image_PHTN.new_empty(image_PHTN.shape)
    return torch.addcmul(base_PHTN, image_PHTN, scale_PN[:, None, None], out=total).flatten(1, 2)


def said_by(values_PHTE: Tensor, weight_HEX: Tensor) -> Tensor:
    """Return what tokens say through a projection of their heads, (P, H T, X)."""
    return (values_PHTE @ weight_HEX).flatten(1, 2)


def times_said(said_PJD: Tensor, tokens_PHTE: Tensor) -> Tensor:
    """Multiply each head's tokens with what was said to that head: (P, H T, J)."""
    said = torch.unflatten(said_PJD, 2, (tokens_PHTE.shape[1], -1)).permute(0, 2, 3, 1)
    return (tokens_PHTE @ said).flatten(1, 2)


def softmax_over_tokens(scores_PHTN: Tensor) -> Tensor:
    """Let each position of the image attend to the tokens: (P, H T, N)."""
    return scores_PHTN.contiguous().softmax(2).flatten(1, 2)


def quadratic(a_PJN: Tensor, m_PJC: Tensor, linear_PJN: Tensor) -> Tensor:
    """Return |a' m|^2 + sum of a * linear at each position, (P, N). Overwrites ``linear``."""
    return linear_PJN.baddbmm_(m_PJC @ m_PJC.mT, a_PJN).mul_(a_PJN).sum(1)


def inverse_deviation(square_PN: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Return one over the standard deviation that ``norm`` divides by, (P, N), given sums of squares."""
    return (square_PN / norm.weight.numel() + norm.eps).rsqrt()
