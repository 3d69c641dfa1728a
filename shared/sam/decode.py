"""Decode prompts that belong to several images in one call.

Upstream's ``MaskDecoder.predict_masks`` repeats the embedding of *one* image for all prompts. Training
needs many prompts for each of many images, so these functions take, beside the prompts, the index of
the image that each belongs to. For one image they compute what upstream computes, with sums in another order.

Between a dozen tokens and thousands of positions of an image, upstream projects every position to keys, values, queries
and outputs. Here the projections are folded onto the tokens: a token's query times the weights of the keys is its
product with the image itself, and so on. That takes half of the multiplications, and leaves nothing of a position's
projections to be kept for a backward pass. Positions stay rows of channels, which norms and products read in order.

Shape suffixes: P prompts, T tokens, H heads, E channels of a head, J = H T, N positions of the image, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sum_factory.shared.precision import autocast
from sum_factory.shared.sam.by_head import output_by_head, split_heads
from sum_factory.shared.sam.hq import hq_logits, put_out, split
from sum_factory.shared.sam.upstream import MaskDecoder, PromptEncoder, TwoWayTransformer, transformer

ABSENT, PAD, NEGATIVE, POSITIVE, BOX_MIN, BOX_MAX = -2, -1, 0, 1, 2, 3
"""Types of prompt tokens: none at all, padding, background point, foreground point, the two corners of a box. Padding
is a token that changes the result, as upstream has it; what is absent fills rows up, and changes nothing."""


class PromptedModel(Protocol):
    """What decodes prompts on an image embedding: a SAM, or a refiner."""

    @property
    def prompt_encoder(self) -> PromptEncoder: ...

    @property
    def mask_decoder(self) -> MaskDecoder: ...


@dataclass(frozen=True)
class Prompts:
    """Prompts of P masks.

    ``coords`` is float32 (P, N, 2): x, y in pixels of the network's square input, pixel centres on whole numbers.
    ``token_types`` is int64 (P, N) of the types above. ``mask_logits`` is float32 (P, 1, h, w), the mask prompt: mostly
    low-resolution logits of the round before, or None. Upstream gives a prompt without a box exactly one ``PAD`` token:
    so should whoever builds these, for equal outputs.
    """

    coords: Tensor
    token_types: Tensor
    mask_logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def ambiguous(self) -> Tensor:
        """Which prompts are a single point and nothing else, bool (P,)."""
        single = ((self.token_types != ABSENT).sum(1) == 2) & (self.mask_logits is None)
        return (self.token_types == PAD).any(1) & single

    def with_tokens(self, coords: Tensor, token_types: Tensor) -> Prompts:
        """Return these prompts with the tokens ``coords`` (P, M, 2) and ``token_types`` (P, M) put in front."""
        longer = torch.cat([coords, self.coords], 1), torch.cat([token_types, self.token_types], 1)
        return Prompts(*longer, self.mask_logits)

    def with_mask(self, mask_logits: Tensor) -> Prompts:
        """Return these prompts with ``mask_logits`` (P, 1, h, w) as mask prompt."""
        return Prompts(self.coords, self.token_types, mask_logits)


def embed_prompts(sam: PromptedModel, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Embed prompts as ``PromptEncoder`` does; boxes are two tokens among the others.

    Returns sparse embeddings (P, N, C) and dense embeddings (P, C, g, g). Coordinates are encoded in fp32 even
    under autocast: in bf16 neighbouring pixels of a 1024 input could not be told apart.
    """
    encoder = sam.prompt_encoder
    with autocast(prompts.coords.device.type, "fp32"):
        sparse = encoder.pe_layer.forward_with_coords(prompts.coords.float() + 0.5, encoder.input_image_size)
        of_types = torch.cat([encoder.not_a_point_embed.weight, *(e.weight for e in encoder.point_embeddings)])
        padding = (prompts.token_types <= PAD)[..., None]
        sparse = sparse.masked_fill(padding, 0.0) + of_types[prompts.token_types.clamp(min=PAD) + 1]
    if prompts.mask_logits is not None:
        dense = encoder.mask_downscaling(prompts.mask_logits)
    else:
        grid = encoder.image_embedding_size
        dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(len(prompts), -1, *grid)
    return sparse, dense


def dense_positions(sam: PromptedModel) -> Tensor:
    """Return the positional encoding of the image grid, float32 (1, C, g, g), whatever the autocast state."""
    device = sam.prompt_encoder.no_mask_embed.weight.device
    with autocast(device.type, "fp32"):
        positions: Tensor = sam.prompt_encoder.get_dense_pe()
    return positions


def decode_prompts(
    sam: PromptedModel,
    embeddings_BCHW: Tensor,
    image_index_P: Tensor,
    prompts: Prompts,
    positions: Tensor | None = None,
    single: bool = False,
) -> tuple[Tensor, Tensor]:
    """Decode P prompts on B image embeddings; prompt p belongs to image ``image_index_P[p]``.

    Returns the logits of all mask tokens (P, 4, h, w) and their predicted IoU (P, 4). Token 0 is the
    single-mask output, 1 to 3 are the outputs for an ambiguous prompt; if a ``single`` one is asked for, it is alone.
    HQ-SAM has one output, (P, 1, h, w) and (P, 1).
    """
    decoder = sam.mask_decoder
    embeddings_BCHW, features = split(decoder, embeddings_BCHW)
    sparse, dense = embed_prompts(sam, prompts)
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    sams = len(output_tokens)
    if features is not None:
        output_tokens = torch.cat([output_tokens, decoder.hf_token.weight])
    own = len(output_tokens)
    masks = 1 if single and features is None else sams - 1
    tokens = torch.cat([output_tokens.expand(len(prompts), -1, -1), sparse], 1)
    absent = F.pad(prompts.token_types == ABSENT, (own, 0))
    side = embeddings_BCHW.shape[-1]
    image = (embeddings_BCHW.index_select(0, image_index_P) + dense).flatten(2).mT
    positions = (dense_positions(sam) if positions is None else positions)[0].flatten(1).T
    decoded, image = _two_way(
        decoder.transformer, image, positions, tokens, absent, 1 + masks if features is None else own
    )
    upscaled = _upscale(decoder, image)
    weights = torch.stack([decoder.output_hypernetworks_mlps[i](decoded[:, 1 + i]) for i in range(masks)], 1)
    logits = _as_maps(upscaled @ weights.mT, side)
    iou = decoder.iou_prediction_head(decoded[:, 0])
    if features is None:
        return logits, iou[:, :masks]
    maps = _as_maps(upscaled, side)
    hq = hq_logits(decoder, decoded[:, sams], maps, features.index_select(0, image_index_P))
    return put_out(decoder.hq_output, hq, logits, iou, prompts.ambiguous)


def _two_way(
    two_way: TwoWayTransformer,
    image_PNC: Tensor,
    positions_NC: Tensor,
    tokens_PTC: Tensor,
    absent_PT: Tensor,
    outputs: int,
) -> tuple[Tensor, Tensor]:
    """Return the first ``outputs`` tokens and the image, as the transformer leaves them."""
    queries = tokens_PTC
    for layer in two_way.layers:
        if layer.skip_first_layer_pe:
            queries = layer.norm1(_attend(layer.self_attn, queries, queries, absent_PT))
        else:
            queries = layer.norm1(queries + _attend(layer.self_attn, queries + tokens_PTC, queries, absent_PT))
        positioned = image_PNC + positions_NC
        read = _read(layer.cross_attn_token_to_image, queries + tokens_PTC, image_PNC, positioned)
        queries = layer.norm2(queries + read)
        queries = layer.norm3(queries + layer.mlp(queries))
        said = _say(layer.cross_attn_image_to_token, queries + tokens_PTC, queries, image_PNC, positioned, absent_PT)
        image_PNC = layer.norm4(said)
    queries = queries[:, :outputs]
    positioned = image_PNC + positions_NC
    read = _read(two_way.final_attn_token_to_image, queries + tokens_PTC[:, :outputs], image_PNC, positioned)
    decoded: Tensor = two_way.norm_final_attn(queries + read)
    return decoded, image_PNC


def _attend(attention: transformer.Attention, positioned: Tensor, tokens: Tensor, absent: Tensor) -> Tensor:
    """Return what tokens (P, T, C) read among themselves; ``positioned`` are those with what they stand for added."""
    q, k, v = (
        split_heads(attention.num_heads, projection(given))
        for projection, given in (
            (attention.q_proj, positioned),
            (attention.k_proj, positioned),
            (attention.v_proj, tokens),
        )
    )
    scores = (q / sqrt(q.shape[-1]) @ k.mT).masked_fill(absent[:, None, None], -torch.inf)
    read: Tensor = attention.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    return read


def _read(attention: transformer.Attention, tokens: Tensor, image: Tensor, positioned: Tensor) -> Tensor:
    """Return what tokens (P, T, C) read in the image (P, N, C); ``positioned`` is the image with positions added."""
    scores = _scores(attention.q_proj(tokens), attention.k_proj, attention.num_heads, positioned)
    seen = torch.unflatten(scores.softmax(-1) @ image, 1, (attention.num_heads, -1))  # (P, H, T, C)
    values = seen @ _by_head(attention.v_proj, attention.num_heads).mT
    read: Tensor = attention.out_proj(values.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return read


def _say(
    attention: transformer.Attention, keys: Tensor, values: Tensor, image: Tensor, positioned: Tensor, absent: Tensor
) -> Tensor:
    """Return the image (P, N, C) with what it reads in the tokens (P, T, C) added."""
    heads = attention.num_heads
    scores = _scores(attention.k_proj(keys), attention.q_proj, heads, positioned, absent)
    weights = torch.unflatten(scores, 1, (heads, -1)).softmax(2).flatten(1, 2)
    said = split_heads(heads, attention.v_proj(values)) @ output_by_head(attention)
    said = (said + attention.out_proj.bias / heads).flatten(1, 2)  # the weights of each head add up to 1
    if torch.is_autocast_enabled(image.device.type):
        added: Tensor = image + weights.mT @ said
        return added
    return torch.baddbmm(image, weights.mT, said)


def _scores(tokens: Tensor, of_image: nn.Linear, heads: int, image: Tensor, absent: Tensor | None = None) -> Tensor:
    """Return products of projected tokens (P, T, D) with the image (P, N, C) projected by ``of_image``: (P, J, N).

    They are those of an attention, with its scale; of tokens that are ``absent`` (P, T) they are minus infinity.
    """
    tokens = split_heads(heads, tokens)
    tokens = tokens / sqrt(tokens.shape[-1])
    folded = (tokens @ _by_head(of_image, heads)).flatten(1, 2)
    constant = tokens @ of_image.bias.view(heads, -1, 1)
    if absent is not None:
        constant = constant.masked_fill(absent[:, None, :, None], -torch.inf)
    return torch.baddbmm(constant.flatten(1, 2), folded, image.mT)


def _by_head(projection: nn.Linear, heads: int) -> Tensor:
    """Return the weights of a projection by head, (H, E, C)."""
    return torch.unflatten(projection.weight, 0, (heads, -1))


def _upscale(decoder: MaskDecoder, image: Tensor) -> Tensor:
    """Return the cells of an image (P, N, C) as 16 finer ones each, (P, 16 N, C / 8): ``output_upscaling``."""
    first, norm, act, second, last_act = decoder.output_upscaling
    finer = _quarter(first, image)
    finer = act(F.layer_norm(finer, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    upscaled: Tensor = last_act(_quarter(second, finer))
    return upscaled


def _quarter(up: nn.ConvTranspose2d, cells: Tensor) -> Tensor:
    """Return cells (P, N, C) as four each, (P, 4 N, D): row by row of 2 x 2 one after the other."""
    weight = up.weight.permute(2, 3, 1, 0).flatten(0, 2)
    assert up.bias is not None, "SAM's have one"
    return F.linear(cells, weight, up.bias.repeat(4)).view(len(cells), -1, up.out_channels)


def _as_maps(values: Tensor, side: int) -> Tensor:
    """Put values of cells that were quartered twice, (P, 16 N, K), where they lie: (P, K, 4 side, 4 side)."""
    count, _, channels = values.shape
    nested = values.view(count, side, side, 2, 2, 2, 2, channels)  # row, column, then twice the position in a 2 x 2
    return nested.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(count, channels, 4 * side, 4 * side)
