"""HQ-SAM: a frozen SAM whose mask decoder has one more output token, and features of fine structures.

With the image embedding e, the tokens x behind the encoder's first global attention, and the decoder's upscaled
embedding s:

    features = embedding_encoder(e) + compress_vit_feat(x)
    mask     = hf_mlp(HQ token) . (embedding_maskfeature(s) + features)

The features read the *raw* embedding, to which no task prompt was added. They are of the photo alone, so they are made
once: the embedding of such a model, (B, 3 C, g, g), is the image embedding and behind it its features, (B, C / 8, 4 g,
4 g), with 4 x 4 cells as channels. The names of the tensors are those that HQ-SAM publishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sum_factory.shared.sam.upstream import ImageEncoderViT, MaskDecoder, Sam, common

HqOutput = Literal["hq", "hq+sam", "single"]
"""What such a model puts out: the mask of its own token, the sum of its logits and SAM's, or SAM's alone."""
OWN = ("hf_token", "hf_mlp", "compress_vit_feat", "embedding_encoder", "embedding_maskfeature")
"""The modules that HQ-SAM adds to SAM's mask decoder."""
FINER = 4
"""Cells of the features along a side of a cell of the image embedding."""


class HqMaskDecoder(MaskDecoder):  # type: ignore[misc]
    """Upstream's decoder with its parameters, and those of HQ-SAM."""

    hf_token: nn.Embedding
    hf_mlp: nn.Module
    compress_vit_feat: nn.Module
    embedding_encoder: nn.Module
    embedding_maskfeature: nn.Module
    hq_output: HqOutput

    def own(self) -> list[nn.Parameter]:
        """Return the parameters that HQ-SAM adds."""
        return [parameter for name in OWN for parameter in getattr(self, name).parameters()]


def add_hq(sam: Sam) -> None:
    """Make ``sam`` an HQ-SAM, in place, with new weights beside its own."""
    decoder = sam.mask_decoder
    channels, tokens = int(decoder.transformer_dim), int(sam.image_encoder.blocks[0].norm1.weight.numel())
    decoder.hf_token = nn.Embedding(1, channels)
    decoder.hf_mlp = type(decoder.output_hypernetworks_mlps[0])(channels, channels, channels // 8, 3)
    decoder.compress_vit_feat = _upscaling(tokens, channels, channels // 8)
    decoder.embedding_encoder = _upscaling(channels, channels // 4, channels // 8)
    decoder.embedding_maskfeature = nn.Sequential(
        nn.Conv2d(channels // 8, channels // 4, 3, 1, 1),
        common.LayerNorm2d(channels // 4),
        nn.GELU(),
        nn.Conv2d(channels // 4, channels // 8, 3, 1, 1),
    )
    decoder.hq_output = "hq"
    decoder.__class__ = HqMaskDecoder


def _upscaling(channels: int, middle: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(channels, middle, 2, 2),
        common.LayerNorm2d(middle),
        nn.GELU(),
        nn.ConvTranspose2d(middle, out, 2, 2),
    )


def embed(sam: Sam, images: Tensor) -> Tensor:
    """Encode photos (B, 3, S, S) to what ``decode_prompts`` takes: (B, C, g, g), of HQ-SAM (B, 3 C, g, g)."""
    return embed_for_decoders(sam.image_encoder, [sam.mask_decoder], images)[0]


def embed_for_decoders(encoder: ImageEncoderViT, decoders: Sequence[MaskDecoder], images: Tensor) -> list[Tensor]:
    """Encode photos (B, 3, S, S) once for several decoders; return for each what ``embed`` gives its model."""
    if not any(isinstance(decoder, HqMaskDecoder) for decoder in decoders):
        return [encoder(images)] * len(decoders)
    x = encoder.patch_embed(images)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    early = None
    for block in encoder.blocks:
        x = block(x)
        if early is None and block.window_size == 0:
            early = x.permute(0, 3, 1, 2)
    assert early is not None, "every SAM has a block with global attention"
    raw = encoder.neck(x.permute(0, 3, 1, 2))
    return [_with_features(decoder, raw, early) for decoder in decoders]


def _with_features(decoder: MaskDecoder, raw: Tensor, early: Tensor) -> Tensor:
    if not isinstance(decoder, HqMaskDecoder):
        return raw
    features = decoder.embedding_encoder(raw) + decoder.compress_vit_feat(early)
    return torch.cat([raw, F.pixel_unshuffle(features, FINER)], 1)


def add_vectors(embeddings: Tensor, vectors: Tensor) -> Tensor:
    """Add task vectors (B, C) to embeddings as ``embed`` makes them; HQ-SAM's features stay those of the raw ones."""
    added = vectors[:, :, None, None]
    channels = vectors.shape[1]
    if embeddings.shape[1] == channels:
        return embeddings + added
    return torch.cat([embeddings[:, :channels] + added, embeddings[:, channels:]], 1)


def split(decoder: MaskDecoder, embeddings: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the image embeddings (B, C, g, g), and of HQ-SAM its features (B, C / 8, 4 g, 4 g)."""
    if not isinstance(decoder, HqMaskDecoder):
        return embeddings, None
    channels = int(decoder.transformer_dim)
    return embeddings[:, :channels], F.pixel_shuffle(embeddings[:, channels:], FINER)


def hq_logits(decoder: HqMaskDecoder, token: Tensor, upscaled: Tensor, features: Tensor) -> Tensor:
    """Return the logits (P, 1, h, w) of HQ tokens (P, C) on upscaled embeddings and features, both (P, C / 8, h, w)."""
    fused = decoder.embedding_maskfeature(upscaled) + features
    logits: Tensor = decoder.hf_mlp(token)[:, None] @ fused.flatten(2)
    return logits.view(len(token), 1, *fused.shape[2:])


def put_out(output: HqOutput, hq: Tensor, sam: Tensor, iou: Tensor, ambiguous: Tensor) -> tuple[Tensor, Tensor]:
    """Return the one output (P, 1, h, w) of HQ-SAM and the IoU that SAM predicts of its own mask, (P, 1).

    ``sam`` (P, 4, h, w) and ``iou`` (P, 4) are SAM's. Its mask is the best of its three by predicted IoU for an
    ``ambiguous`` prompt, bool (P,), else the single-mask output. SAM is frozen, so no gradient goes through the IoU.
    """
    chosen = torch.where(ambiguous, 1 + iou[:, 1:].argmax(1), 0)
    each = torch.arange(len(hq), device=hq.device)
    predicted_iou = iou[each, chosen][:, None].detach()
    own = sam[each, chosen][:, None]
    return (own if output == "single" else hq + own if output == "hq+sam" else hq), predicted_iou
