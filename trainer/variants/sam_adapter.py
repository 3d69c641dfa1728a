"""SAM-Adapter: prompts for every block of the image encoder, of the photo's high frequencies and its patches.

With the high-pass photo h, its convolution f, and e, a projection of the patch embedding before positions are added,
the tokens of block i get p_i = U(GELU(V_i(f + e))); U is shared by all blocks. The mask decoder is trained, too.
"""

from __future__ import annotations

from math import sqrt

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from sum_factory.shared.sam.architecture import PATCH
from sum_factory.shared.sam.upstream import ImageEncoderViT, Sam
from sum_factory.trainer.run.settings import CHECKED
from sum_factory.trainer.variants.variant import Variant


@dataclass(frozen=True, config=CHECKED)
class SamAdapterSettings:
    """The prompts: how many channels they go through, and which frequencies they are made of."""

    rank: int | None = Field(default=None, ge=1, le=65_536)
    """Channels of f and e; by default a 32nd of the encoder's, as published."""
    frequency_share: float = Field(default=0.25, gt=0, lt=1)
    """Share of the frequencies, the lowest, that are left out of the photo."""


def high_pass(images: Tensor, share: float) -> Tensor:
    """Return photos (B, 3, H, W), float32, without the square of their lowest frequencies: absolute values."""
    spectrum = torch.fft.fftshift(torch.fft.fft2(images.float(), norm="forward"), dim=(-2, -1))
    height, width = images.shape[-2:]
    half = int(sqrt(height * width * share)) // 2
    kept = torch.ones_like(spectrum.real)
    kept[..., height // 2 - half : height // 2 + half, width // 2 - half : width // 2 + half] = 0
    passed: Tensor = torch.fft.ifft2(torch.fft.ifftshift(spectrum * kept, dim=(-2, -1)), norm="forward").real.abs()
    return passed


class PromptGenerator(nn.Module):
    """Makes the prompts of ``depth`` blocks of ``channels`` channels."""

    def __init__(self, channels: int, depth: int, rank: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.photo = nn.Conv2d(3, rank, PATCH, stride=PATCH)
        self.patches = nn.Linear(channels, rank)
        self.of_block = nn.ModuleList(nn.Linear(rank, rank) for _ in range(depth))
        self.shared = nn.Linear(rank, channels)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        nn.init.normal_(self.photo.weight, 0, sqrt(2 / (PATCH * PATCH * rank)))
        nn.init.zeros_(self.photo.bias)  # type: ignore[arg-type]

    def features(self, images: Tensor, patches: Tensor) -> Tensor:
        """Return f + e, (B, g, g, rank), of photos (B, 3, H, W) and their patch embedding (B, g, g, C)."""
        seen: Tensor = self.photo(high_pass(images, self.share)).permute(0, 2, 3, 1)
        features: Tensor = seen + self.patches(patches)
        return features

    def prompt(self, features: Tensor, block: int) -> Tensor:
        """Return the prompt of a block, (B, g, g, C)."""
        made: Tensor = self.shared(F.gelu(self.of_block[block](features)))
        return made


class PromptedEncoder(ImageEncoderViT):  # type: ignore[misc]
    """Upstream's image encoder with its parameters, whose blocks get prompts."""

    prompt_generator: PromptGenerator

    def forward(self, x: Tensor) -> Tensor:
        """Encode photos (B, 3, S, S) to (B, C, g, g)."""
        patches = self.patch_embed(x)
        features = self.prompt_generator.features(x, patches)
        x = patches if self.pos_embed is None else patches + self.pos_embed
        for number, block in enumerate(self.blocks):
            x = block(x + self.prompt_generator.prompt(features, number))
        encoded: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return encoded


def _prepare(sam: Sam, settings: SamAdapterSettings) -> None:
    sam.requires_grad_(False)
    sam.mask_decoder.requires_grad_(True)
    encoder = sam.image_encoder
    channels = int(encoder.blocks[0].norm1.weight.numel())
    rank = settings.rank or max(1, channels // 32)
    encoder.prompt_generator = PromptGenerator(channels, len(encoder.blocks), rank, settings.frequency_share)
    encoder.__class__ = PromptedEncoder


VARIANT = Variant(
    "sam-adapter",
    "prompts of high frequencies and patches in the image encoder, with the mask decoder",
    _prepare,
    SamAdapterSettings,
    not_plain="its prompts depend on the photo, and plain SAM has no layers that make them",
)
