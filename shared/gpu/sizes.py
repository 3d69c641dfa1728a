"""How much a GPU works on at once, by the memory that may be taken of it.

What a photo and a point take is counted from the sizes of the model: the largest arrays that are alive together, of
four bytes an element. It need not be exact: the share is a bound that PyTorch keeps, and work that does not fit is
halved (``shared.memory``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sum_factory.shared.sam.architecture import PATCH
from sum_factory.shared.sam.upstream import Sam

MEMORY_SHARE = 0.9
"""Share of a GPU's memory that a process takes at most, unless told otherwise."""
GPU_LANES = 3
"""Batches of photos that a GPU has at once: while the host waits for the results of one, it works on the others."""
MOST_PHOTOS, MOST_POINTS = 8, 512
"""More at once would keep no GPU busier."""
OF_PHOTOS, OF_POINTS = 0.25, 0.5
"""Shares of the memory for the encoder and for the decoder of all batches; the rest is for weights and results."""
ENCODER_ARRAYS = 24
"""Arrays of tokens x channels that a block of the encoder has at once: its MLP's, queries and keys with positions."""
DECODER_ARRAYS, UPSCALED_ARRAYS = 12, 3
"""Arrays of heads x tokens x positions that decoding a point has at once, and of its upscaled image."""
FP32 = 4
POINT_TOKENS = 7


@dataclass(frozen=True)
class AtOnce:
    """How many photos the encoder takes together, and how many points the decoder."""

    photos: int
    points: int


def bytes_of_photo(sam: Sam) -> int:
    """Return about what a photo takes in the image encoder."""
    tokens = (int(sam.image_encoder.img_size) // PATCH) ** 2
    return FP32 * ENCODER_ARRAYS * tokens * int(sam.image_encoder.blocks[0].norm1.weight.numel())


def bytes_of_point(sam: Sam) -> int:
    """Return about what a point takes in the decoder, if all its masks are wanted."""
    positions = (int(sam.image_encoder.img_size) // PATCH) ** 2
    heads = int(sam.mask_decoder.transformer.layers[0].self_attn.num_heads)
    upscaled = 16 * positions * int(sam.mask_decoder.transformer_dim) // 8
    return FP32 * (DECODER_ARRAYS * heads * POINT_TOKENS * positions + UPSCALED_ARRAYS * upscaled)


def fitting(sam: Sam, memory: int, lanes: int = GPU_LANES) -> AtOnce:
    """Return how much to work on at once with ``memory`` bytes, for so many batches of photos. Points are a power of 2:
    a grid of 32 x 32 then has no smaller rest."""
    photos = int(OF_PHOTOS * memory) // (lanes * bytes_of_photo(sam))
    points = int(OF_POINTS * memory) // (lanes * bytes_of_point(sam))
    return AtOnce(max(1, min(MOST_PHOTOS, photos)), 1 << (max(1, min(MOST_POINTS, points)).bit_length() - 1))


def bound_memory(device: torch.device, share: float) -> int:
    """Have this process take no more than a share of the memory of ``device``, a CUDA device; return it in bytes."""
    torch.cuda.set_per_process_memory_fraction(share, device)
    return int(share * torch.cuda.get_device_properties(device).total_memory)
