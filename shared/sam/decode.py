"""Decode prompts that belong to several images in one call.

Upstream's ``MaskDecoder.predict_masks`` repeats the embedding of *one* image for all prompts. Training
needs many prompts for each of many images, so these functions take, beside the prompts, the index of
the image that each belongs to. For one image they compute what upstream computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sum_factory.shared.precision import autocast
from sum_factory.shared.sam.hq import hq_logits, put_out, split
from sum_factory.shared.sam.upstream import MaskDecoder, PromptEncoder

PAD, NEGATIVE, POSITIVE, BOX_MIN, BOX_MAX = -1, 0, 1, 2, 3
"""Types of prompt tokens: padding, background point, foreground point, the two corners of a box."""


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
    ``token_types`` is int64 (P, N) of the types above. ``mask_logits`` is float32 (P, 1, h, w), the previous
    low-resolution logits, or None. Upstream gives a prompt without a box exactly one ``PAD`` token: so should
    whoever builds these, for equal outputs.
    """

    coords: Tensor
    token_types: Tensor
    mask_logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def ambiguous(self) -> Tensor:
        """Which prompts are a single point and nothing else, bool (P,)."""
        single = self.token_types.shape[1] == 2 and self.mask_logits is None
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
        padding = (prompts.token_types == PAD)[..., None]
        sparse = sparse.masked_fill(padding, 0.0) + of_types[prompts.token_types + 1]
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
) -> tuple[Tensor, Tensor]:
    """Decode P prompts on B image embeddings; prompt p belongs to image ``image_index_P[p]``.

    Returns the logits of all mask tokens (P, 4, h, w) and their predicted IoU (P, 4). Token 0 is the
    single-mask output, 1 to 3 are the outputs for an ambiguous prompt. HQ-SAM has one output, (P, 1, h, w) and (P, 1).
    """
    decoder = sam.mask_decoder
    embeddings_BCHW, features = split(decoder, embeddings_BCHW)
    sparse, dense = embed_prompts(sam, prompts)
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    own = len(output_tokens)
    if features is not None:
        output_tokens = torch.cat([output_tokens, decoder.hf_token.weight])
    tokens = torch.cat([output_tokens.expand(len(prompts), -1, -1), sparse], 1)
    source = embeddings_BCHW[image_index_P] + dense
    count, channels, height, width = source.shape
    positions = dense_positions(sam) if positions is None else positions
    decoded, source = decoder.transformer(source, positions.expand(count, -1, -1, -1), tokens)
    source = source.transpose(1, 2).reshape(count, channels, height, width)
    upscaled = decoder.output_upscaling(source)
    mask_tokens = decoded[:, 1 : 1 + decoder.num_mask_tokens]
    weights = torch.stack([mlp(mask_tokens[:, i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], 1)
    logits = (weights @ upscaled.flatten(2)).view(count, -1, *upscaled.shape[2:])
    iou = decoder.iou_prediction_head(decoded[:, 0])
    if features is None:
        return logits, iou
    hq = hq_logits(decoder, decoded[:, own], upscaled, features[image_index_P])
    return put_out(decoder.hq_output, hq, logits, iou, prompts.ambiguous)
