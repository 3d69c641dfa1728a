"""Bottleneck adapters in every block of the image encoder; the decoder is trained whole.

An adapter maps a token to few channels and back, and adds that. It starts at zero: at first the model is the SAM below.
"""

from __future__ import annotations

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from sum_factory.shared.sam.upstream import Sam, image_encoder
from sum_factory.trainer.run.settings import CHECKED
from sum_factory.trainer.variants.decoder import train_decoder
from sum_factory.trainer.variants.variant import Variant


@dataclass(frozen=True, config=CHECKED)
class AdapterSettings:
    """Where adapters are in a block, and how wide."""

    width: int = Field(default=64, ge=1, le=65_536)
    """Channels in the middle of an adapter. More learn more, with more weights."""
    after_attention: bool = True
    """Whether each block has an adapter behind its attention, of what that put out."""
    beside_mlp: bool = True
    """Whether each block has an adapter beside its MLP, of the same input."""
    scale: float = Field(default=0.5, gt=0, le=1e6)
    """Factor of what the adapter beside the MLP adds."""

    @model_validator(mode="after")
    def _has_one(self) -> AdapterSettings:
        if not (self.after_attention or self.beside_mlp):
            raise ValueError("after_attention and beside_mlp are both false: expected an adapter in one place at least")
        return self


class Adapter(nn.Module):
    """What is added to a token: (..., C) to (..., C), by way of ``width`` channels."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, width), nn.Linear(width, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens."""
        added: Tensor = self.up(F.gelu(self.down(x)))
        return added


class AdaptedBlock(image_encoder.Block):  # type: ignore[misc]
    """Upstream's block with its parameters, and adapters."""

    attention_adapter: Adapter | None
    mlp_adapter: Adapter | None
    adapter_scale: float

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, H, W, C) to as many."""
        height, width = x.shape[1:3]
        attended = self.norm1(x)
        if self.window_size > 0:
            attended, padded = image_encoder.window_partition(attended, self.window_size)
        attended = self.attn(attended)
        if self.window_size > 0:
            attended = image_encoder.window_unpartition(attended, self.window_size, padded, (height, width))
        if self.attention_adapter is not None:
            attended = attended + self.attention_adapter(attended)
        x = x + attended
        normed = self.norm2(x)
        if self.mlp_adapter is None:
            return x + self.mlp(normed)  # type: ignore[no-any-return]
        return x + self.mlp(normed) + self.adapter_scale * self.mlp_adapter(normed)  # type: ignore[no-any-return]


def _prepare(sam: Sam, settings: AdapterSettings) -> None:
    train_decoder(sam)
    for block in sam.image_encoder.blocks:
        channels = int(block.norm1.weight.numel())
        block.attention_adapter = Adapter(channels, settings.width) if settings.after_attention else None
        block.mlp_adapter = Adapter(channels, settings.width) if settings.beside_mlp else None
        block.adapter_scale = settings.scale
        block.__class__ = AdaptedBlock


VARIANT = Variant(
    "adapter",
    "adapters in the image encoder, with the prompt encoder and the mask decoder",
    _prepare,
    AdapterSettings,
    not_plain="its adapters are layers that plain SAM does not have",
)
