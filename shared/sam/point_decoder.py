"""SAM's mask decoder for many points on one image: the numbers of upstream's decoder at a fraction of its work.

In names, tokens *read* an image by attention from token to image, and *say* to it what attention from image to token
adds to it; *positioned* keys are keys with positions added. The products are in ``by_head``.

Upstream's ``TwoWayTransformer`` carries an image of N positions x C channels for every prompt. What it does to that
image takes few numbers to say: each layer adds an attention over T tokens (7 for a point, in H = 8 heads), and then
normalises every position. So with A_l (J, N), J = H T, the attention of layer l and M_l (J, C) what its tokens say, the
images of a prompt are

    keys_1 = d_1 (K + A_0' M_0) g_0 + b_0                                        after layer 0
    keys_2 = d_2 (d_1 K g_0 + d_1 A_0' M_0 g_0 + A_1' M_1 + b) g_1 + b_1         after layer 1

K (N, C) is the same for all prompts; d_1 and d_2 (N) are one over the standard deviations in the norms of layers 0 and
1, g_l and b_l are the weights of layer l's norm, b is a constant. Here the image of a prompt is never made. Scores and
values of the next attention are linear in it, variances quadratic: the products of K with weights are made once an
image, those of A and M are small. K, M and b are centred over C, so that a variance is a sum of squares in which
nothing cancels.

The quality of a mask is known (``decode``) before its image is upscaled, which is done for wanted masks alone
(``masks``).

Shape suffixes: P prompts, T tokens, H heads, E channels of a head, J = H T, N positions, C channels.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sum_factory.shared.precision import Precision
from sum_factory.shared.sam.by_head import (
    add_scaled,
    centred,
    inverse_deviation,
    output_by_head,
    own_head,
    project_by_head,
    quadratic,
    said_by,
    softmax_over_tokens,
    split_heads,
    times_said,
    times_shared,
)
from sum_factory.shared.sam.decode import PromptedModel, dense_positions
from sum_factory.shared.sam.fast_linear import linear
from sum_factory.shared.sam.upstream import MaskDecoder

POINT_OUTPUTS = 3
"""Masks for a single point: outputs 1 to 3 of the decoder."""
CACHED_ELEMENTS = 1 << 21
"""Elements of the largest array on a CPU: with more, prompts go through memory instead of the cache."""


@dataclass(frozen=True)
class PointImage:
    """What all points on one image share; made by ``PointDecoder.prepare``.

    Numbers name the layer, 2 the last attention. Keys and queries are (H, E, N), values (H, N, E).
    ``square_l`` (N) is |K|^2 as the norm of layer l sees it, ``cross_lk`` (H, E, N) its product with what attention k
    says, ``constant_1`` (N) that with the constant b; ``upscaled`` (N, 4 U) is K as the first upscaling sees it.
    """

    key_0: Tensor
    value_0: Tensor
    query_0: Tensor
    square_0: Tensor
    cross_00: Tensor
    key_1: Tensor
    value_1: Tensor
    query_1: Tensor
    square_1: Tensor
    constant_1: Tensor
    cross_10: Tensor
    cross_11: Tensor
    key_2: Tensor
    value_2: Tensor
    upscaled: Tensor


@dataclass(frozen=True)
class DecodedPoints:
    """P points on ``image``, decoded as far as the quality of their masks.

    ``predicted_iou`` is (P, 3). The rest says what ``PointDecoder.masks`` upscales: ``mask_weights`` (P, 3, V) over the
    upscaled channels; ``a_0`` and ``a_1`` (P, J, N), d_1 A_0 and A_1; ``m_0`` and ``m_1`` (P, J, C), M_0 g_0 and M_1;
    ``d_1`` and ``d_2`` (P, N).
    """

    image: PointImage
    predicted_iou: Tensor
    mask_weights: Tensor
    a_0: Tensor
    a_1: Tensor
    m_0: Tensor
    m_1: Tensor
    d_1: Tensor
    d_2: Tensor


class PointDecoder:
    """Decodes points as ``sam.mask_decoder`` does with ``multimask_output``, on one image at a time.

    Equal to upstream in exact arithmetic; in fp32 sums are taken in another order. In bf16, all but the head that
    predicts IoU is computed in it, on a copy of the weights: thresholds of that IoU are finer than bf16. Logits and IoU
    come in the dtype of the weights, which are those at the time it is made. Raises ``ValueError`` for a decoder that
    is not built as SAM's.
    """

    @torch.no_grad()
    def __init__(self, sam: PromptedModel, precision: Precision = "fp32") -> None:
        self.sam = sam
        self.decoder: MaskDecoder = sam.mask_decoder
        self.quality_head: nn.Module = sam.mask_decoder.iou_prediction_head
        self.dtype_out: torch.dtype = sam.mask_decoder.iou_token.weight.dtype
        if precision == "bf16":
            self.decoder = deepcopy(self.decoder).to(torch.bfloat16)
        self.dtype: torch.dtype = self.decoder.iou_token.weight.dtype
        transformer = self.decoder.transformer
        if len(transformer.layers) != 2 or self.decoder.num_mask_tokens != POINT_OUTPUTS + 1:
            raise ValueError("not SAM's mask decoder, which has two layers and four mask tokens")
        self.layers = tuple(transformer.layers)
        first, second = self.layers
        self.to_image = (
            *(layer.cross_attn_token_to_image for layer in self.layers),
            transformer.final_attn_token_to_image,
        )
        self.to_tokens = tuple(layer.cross_attn_image_to_token for layer in self.layers)
        self.heads = int(self.to_image[0].num_heads)
        self.positions = dense_positions(sam).flatten(2)[0].T.to(self.dtype)

        gain_0, gain_1 = first.norm4.weight, second.norm4.weight
        self.constant = centred(first.norm4.bias + self.to_tokens[1].out_proj.bias)
        # What an attention says, from the values of its tokens (H, E, C): M_0, M_0 g_0 and M_1, centred.
        self.say_00 = centred(output_by_head(self.to_tokens[0]))
        self.say_10 = centred(self.say_00 * gain_0)
        self.say_11 = centred(output_by_head(self.to_tokens[1]))

        up = self.decoder.output_upscaling[0]
        up_weight = up.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 U, C): position in the 2 x 2, then channel
        # Each attention as it reads K: the gain of the norm before it, folded into its projection.
        self.key_1, self.value_1, self.query_1 = (
            layer.weight * gain_0
            for layer in (self.to_image[1].k_proj, self.to_image[1].v_proj, self.to_tokens[1].q_proj)
        )
        self.key_2, self.value_2, self.up = (
            weight * gain_1 for weight in (self.to_image[2].k_proj.weight, self.to_image[2].v_proj.weight, up_weight)
        )
        # ... and as it reads what an attention before it said, (H, E, D).
        self.key_10, self.value_10, self.query_10 = (
            self.say_00 @ w.T for w in (self.key_1, self.value_1, self.query_1)
        )
        self.key_20, self.value_20 = (self.say_10 @ w.T for w in (self.key_2, self.value_2))
        self.key_21, self.value_21 = (self.say_11 @ w.T for w in (self.key_2, self.value_2))
        # ... and the constants that it reads.
        bias_0, bias_1 = first.norm4.bias, second.norm4.bias
        self.value_bias_0: Tensor = self.to_image[0].v_proj.bias
        self.value_bias_1 = self.to_image[1].v_proj(bias_0)
        self.value_bias_2: Tensor = self.to_image[2].v_proj(bias_1)
        self.value_constant_2 = self.value_2 @ self.constant
        self.key_constant_2 = self.key_2 @ self.constant
        self.up_constant = self.up @ self.constant
        self.up_bias = up_weight @ bias_1 + up.bias.repeat(4)
        # Positions enter after the norms.
        self.position_key_1 = project_by_head(self.heads, self.positions, self.to_image[1].k_proj.weight)
        self.position_key_2 = project_by_head(self.heads, self.positions, self.to_image[2].k_proj.weight)
        position_query_1 = project_by_head(self.heads, self.positions, self.to_tokens[1].q_proj.weight)
        self.position_query_1 = position_query_1 + self.to_tokens[1].q_proj(bias_0).view(self.heads, -1, 1)

    def points_at_once(self, most: int) -> int:
        """Return how many points to decode together, at most ``most``."""
        tokens = 1 + self.decoder.num_mask_tokens + 2  # a point has a token of its own and one of padding
        return self._at_once(self.heads * tokens * len(self.positions), most)

    def _at_once(self, each: int, most: int) -> int:
        """Return how many prompts to work on together whose largest array has ``each`` elements."""
        return most if self.positions.device.type != "cpu" else max(1, min(most, CACHED_ELEMENTS // each))

    @torch.no_grad()
    def prepare(self, embedding: Tensor) -> PointImage:
        """Return what all points on an image embedding (1, C, g, g) share."""
        no_mask = self.sam.prompt_encoder.no_mask_embed.weight[..., None, None]
        keys = (embedding + no_mask).to(self.dtype).flatten(2)[0].T
        positioned = keys + self.positions
        query = self.to_tokens[0].q_proj
        k_0 = centred(keys + self.to_tokens[0].out_proj.bias)
        k_1 = centred(k_0 * self.layers[0].norm4.weight)
        return PointImage(
            key_0=project_by_head(self.heads, positioned, self.to_image[0].k_proj.weight),
            value_0=project_by_head(self.heads, keys, self.to_image[0].v_proj.weight).mT,
            query_0=project_by_head(self.heads, positioned, query.weight) + query.bias.view(self.heads, -1, 1),
            square_0=k_0.square().sum(1),
            cross_00=self.say_00 @ k_0.T,
            key_1=project_by_head(self.heads, k_0, self.key_1),
            value_1=project_by_head(self.heads, k_0, self.value_1).mT,
            query_1=project_by_head(self.heads, k_0, self.query_1),
            square_1=k_1.square().sum(1),
            constant_1=k_1 @ self.constant,
            cross_10=self.say_10 @ k_1.T,
            cross_11=self.say_11 @ k_1.T,
            key_2=project_by_head(self.heads, k_1, self.key_2),
            value_2=project_by_head(self.heads, k_1, self.value_2).mT,
            upscaled=k_1 @ self.up.T,
        )

    @torch.no_grad()
    def decode(self, image: PointImage, sparse: Tensor) -> DecodedPoints:
        """Decode P points, given as what ``PromptEncoder`` makes of them, (P, 2, C)."""
        decoder = self.decoder
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse.to(self.dtype)], 1)

        queries, v_0, a_0, d_1 = self._first_layer(image, tokens)
        queries, v_1, a_1 = self._second_layer(image, tokens, queries, v_0, a_0, d_1)
        m_0, m_1 = said_by(v_0, self.say_10), said_by(v_1, self.say_11)
        d_2 = self._second_norm(image, v_0, v_1, a_0, a_1, m_0, m_1, d_1)

        outputs = [0, *range(2, 2 + POINT_OUTPUTS)]  # the quality token, and the mask tokens for an ambiguous prompt
        q = self._scaled(self.to_image[2].q_proj, (queries + tokens)[:, outputs])
        read = self._read_last(image, q, v_0, v_1, a_0, a_1, d_1, d_2)
        final = decoder.transformer.norm_final_attn(queries[:, outputs] + self.to_image[2].out_proj(read))
        weights = [decoder.output_hypernetworks_mlps[1 + k](final[:, 1 + k]) for k in range(POINT_OUTPUTS)]
        return DecodedPoints(
            image=image,
            predicted_iou=self.quality_head(final[:, 0].to(self.dtype_out))[:, 1:],
            mask_weights=torch.stack(weights, 1),
            a_0=a_0,
            a_1=a_1,
            m_0=m_0,
            m_1=m_1,
            d_1=d_1,
            d_2=d_2,
        )

    def _first_layer(self, image: PointImage, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run layer 0: return its tokens (P, T, C), v_0 (P, H, T, E), d_1 A_0 (P, J, N) and d_1 (P, N)."""
        layer = self.layers[0]
        queries = layer.norm1(layer.self_attn(q=tokens, k=tokens, v=tokens))
        read = self._read_first(image, self._scaled(self.to_image[0].q_proj, queries + tokens))
        queries = self._update(0, queries, read)
        a_0 = softmax_over_tokens(times_shared(image.query_0, self._scaled(self.to_tokens[0].k_proj, queries + tokens)))
        v_0 = split_heads(self.heads, self.to_tokens[0].v_proj(queries))
        linear = times_shared(image.cross_00, 2 * v_0).flatten(1, 2)
        d_1 = inverse_deviation(quadratic(a_0, said_by(v_0, self.say_00), linear) + image.square_0, layer.norm4)
        return queries, v_0, a_0.mul_(d_1[:, None]), d_1

    def _second_layer(
        self, image: PointImage, tokens: Tensor, queries: Tensor, v_0: Tensor, a_0: Tensor, d_1: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run layer 1: return its tokens (P, T, C), v_1 (P, H, T, E) and A_1 (P, J, N)."""
        layer, positioned = self.layers[1], queries + tokens
        queries = layer.norm1(queries + layer.self_attn(q=positioned, k=positioned, v=queries))
        q = self._scaled(self.to_image[1].q_proj, queries + tokens)
        scores = add_scaled(times_shared(self.position_key_1, q), times_shared(image.key_1, q), d_1)
        attention = scores.baddbmm_(times_said(said_by(v_0, self.key_10), q), a_0).softmax(-1)
        said = own_head(self.heads, (attention @ a_0.mT) @ said_by(v_0, self.value_10))
        queries = self._update(1, queries, said + self._read_shared(attention, image.value_1, d_1) + self.value_bias_1)
        k = self._scaled(self.to_tokens[1].k_proj, queries + tokens)
        scores = add_scaled(times_shared(self.position_query_1, k), times_shared(image.query_1, k), d_1)
        scores.baddbmm_(times_said(said_by(v_0, self.query_10), k), a_0)
        a_1 = softmax_over_tokens(torch.unflatten(scores, 1, (self.heads, -1)))
        return queries, split_heads(self.heads, self.to_tokens[1].v_proj(queries)), a_1

    def _second_norm(
        self,
        image: PointImage,
        v_0: Tensor,
        v_1: Tensor,
        a_0: Tensor,
        a_1: Tensor,
        m_0: Tensor,
        m_1: Tensor,
        d_1: Tensor,
    ) -> Tensor:
        """Return d_2 (P, N)."""
        linear_0, linear_1 = (
            add_scaled(
                torch.unflatten(2 * m @ self.constant, 1, (self.heads, -1))[..., None], times_shared(cross, 2 * v), d_1
            )
            for m, cross, v in ((m_0, image.cross_10, v_0), (m_1, image.cross_11, v_1))
        )
        linear_0.baddbmm_(m_0 @ m_1.mT, a_1, alpha=2)
        square = d_1 * (d_1 * image.square_1 + 2 * image.constant_1) + self.constant.square().sum()
        square += quadratic(a_0, m_0, linear_0)
        square += quadratic(a_1, m_1, linear_1)
        return inverse_deviation(square, self.layers[1].norm4)

    def _read_first(self, image: PointImage, q: Tensor) -> Tensor:
        """Return what layer 0's tokens read in the image, (P, T, D): scores, softmax and values are all by head."""
        prompts, heads, count, width = q.shape
        attention = times_shared(image.key_0, q).transpose(0, 1).flatten(1, 2).softmax(-1)  # (H, P T, N)
        read = attention @ image.value_0
        return read.view(heads, prompts, count, width).permute(1, 2, 0, 3).flatten(2) + self.value_bias_0

    def _read_last(
        self,
        image: PointImage,
        q: Tensor,
        v_0: Tensor,
        v_1: Tensor,
        a_0: Tensor,
        a_1: Tensor,
        d_1: Tensor,
        d_2: Tensor,
    ) -> Tensor:
        """Return what the tokens ``q`` (P, H, T, E) read in the image after layer 1, (P, T, D)."""
        constant = (q * split_heads(self.heads, self.key_constant_2.expand(1, 1, -1))).sum(-1, keepdim=True)
        scores = add_scaled(constant, times_shared(image.key_2, q), d_1)
        scores.baddbmm_(times_said(said_by(v_0, self.key_20), q), a_0)
        scores.baddbmm_(times_said(said_by(v_1, self.key_21), q), a_1)
        scores = add_scaled(times_shared(self.position_key_2, q), torch.unflatten(scores, 1, (self.heads, -1)), d_2)
        attention = scores.softmax(-1).mul_(d_2[:, None])
        said = (attention @ a_0.mT) @ said_by(v_0, self.value_20) + (attention @ a_1.mT) @ said_by(v_1, self.value_21)
        said += attention.sum(-1, keepdim=True) * self.value_constant_2
        return own_head(self.heads, said) + self._read_shared(attention, image.value_2, d_1) + self.value_bias_2

    def _read_shared(self, attention: Tensor, value_HNE: Tensor, scale: Tensor) -> Tensor:
        """Read values that all prompts share with an ``attention`` (P, J, N) times ``scale`` (P, N): (P, T, D)."""
        by_head = torch.unflatten(attention, 1, (self.heads, -1))
        prompts, heads, count, positions = by_head.shape
        if torch.compiler.is_compiling():
            scaled = (by_head * scale[:, None, None]).transpose(0, 1).contiguous()
        else:
            scaled = attention.new_empty(heads, prompts, count, positions)
            torch.mul(by_head, scale[:, None, None], out=scaled.transpose(0, 1))
        read = scaled.flatten(1, 2) @ value_HNE
        return read.view(heads, prompts, count, -1).permute(1, 2, 0, 3).flatten(2)

    @torch.no_grad()
    def masks(self, decoded: DecodedPoints, wanted: Tensor) -> Tensor:
        """Return the low-resolution logits of ``wanted``, bool (P, 3), in order: (K, 4 g, 4 g)."""
        positions = len(self.positions)
        prompts = wanted.any(1).nonzero()[:, 0]
        step = self._at_once(16 * positions * decoded.mask_weights.shape[-1], max(1, len(prompts)))
        logits = [decoded.d_1.new_empty(0, 16 * positions)]
        for start in range(0, len(prompts), step):
            some = prompts[start : start + step]
            logits.append((decoded.mask_weights[some] @ self._upscale(decoded, some).mT)[wanted[some]])
        side = int(sqrt(positions))
        nested = torch.cat(logits).view(-1, side, side, 2, 2, 2, 2)  # row, column, then twice the position in a 2 x 2
        return nested.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, 4 * side, 4 * side).to(self.dtype_out)

    def _upscale(self, decoded: DecodedPoints, some: Tensor) -> Tensor:
        """Return the upscaled images of some prompts, (P, 16 N, V): the decoder's ``output_upscaling``."""
        _, norm, act, second, _ = self.decoder.output_upscaling
        d_1, d_2 = decoded.d_1[some, :, None], decoded.d_2[some, :, None]
        image = torch.addcmul(self.up_constant, decoded.image.upscaled, d_1)
        image.baddbmm_(decoded.a_0[some].mT, decoded.m_0[some] @ self.up.T)
        image.baddbmm_(decoded.a_1[some].mT, decoded.m_1[some] @ self.up.T)
        image = torch.addcmul(self.up_bias, image, d_2).view(-1, norm.weight.numel())  # (P 4 N, U)
        image = act(F.layer_norm(image, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        weight = second.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 V, U)
        upscaled: Tensor = act(linear(image, weight, second.bias.repeat(4)))
        return upscaled.view(len(some), -1, second.bias.numel())

    def _scaled(self, projection: nn.Linear, tokens: Tensor) -> Tensor:
        """Project tokens for an attention, by head, (P, H, T, E), with the scale of its scores."""
        projected = split_heads(self.heads, projection(tokens))
        return projected / sqrt(projected.shape[-1])

    def _update(self, number: int, queries: Tensor, read: Tensor) -> Tensor:
        """Add what the tokens of a layer read in the image, (P, T, D), and run its MLP."""
        layer = self.layers[number]
        queries = layer.norm2(queries + self.to_image[number].out_proj(read))
        updated: Tensor = layer.norm3(queries + layer.mlp(queries))
        return updated
