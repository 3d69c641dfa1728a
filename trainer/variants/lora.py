"""LoRA: low-rank updates of the image encoder's linear layers, by the ``peft`` library; the decoder is trained whole.

SAM projects to queries, keys and values by one layer. It is cut into three here, so that an update can be that of
queries and values alone, as in SAMed. An update starts at zero, and ends as a part of the weights.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.run.settings import CHECKED
from sum_factory.trainer.variants.decoder import train_decoder
from sum_factory.trainer.variants.variant import Variant

Layer = Literal["q", "k", "v", "mlp"]


@dataclass(frozen=True, config=CHECKED)
class LoraSettings:
    """The updates of rank ``rank``: W + alpha / rank x B A."""

    rank: int = Field(default=4, ge=1, le=65_536)
    """Rank of an update. More rank learns more, with more weights."""
    alpha: float = Field(default=4, gt=0, le=1e6)
    """Factor of an update, divided by the rank. As large as the rank, it is 1, as in SAMed."""
    layers: tuple[Layer, ...] = Field(default=("q", "v"), min_length=1)
    """Which layers of each block of the image encoder get an update: q, k, v (queries, keys, values), mlp (both layers
    of the MLP)."""


class SplitQkv(nn.Module):
    """A layer that projects to queries, keys and values, as three layers: (..., C) to (..., 3 C)."""

    def __init__(self, joint: nn.Linear) -> None:
        super().__init__()
        weights = joint.weight.detach().chunk(3)
        biases = [None] * 3 if joint.bias is None else joint.bias.detach().chunk(3)
        self.q, self.k, self.v = (_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """Project tokens."""
        return torch.cat([self.q(x), self.k(x), self.v(x)], -1)

    @property
    def bias(self) -> Tensor | None:
        """What a token of zeros is projected to, (3 C,)."""
        biases = self.q.bias, self.k.bias, self.v.bias
        return None if biases[0] is None else torch.cat(biases)

    def joint(self) -> nn.Linear:
        """Return the one layer again."""
        parts = (self.q, self.k, self.v)
        bias = None if self.q.bias is None else torch.cat([part.bias.detach() for part in parts])
        return _linear(torch.cat([part.weight.detach() for part in parts]), bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta", dtype=weight.dtype)
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer


def _prepare(sam: Sam, settings: LoraSettings) -> None:
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to load

    encoder = sam.image_encoder
    for block in encoder.blocks:
        block.attn.qkv = SplitQkv(block.attn.qkv)
    parts = [r"mlp\.lin[12]" if layer == "mlp" else rf"attn\.qkv\.{layer}" for layer in settings.layers]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number will do
        target_modules=rf"blocks\.\d+\.({'|'.join(parts)})",
    )
    inject_adapter_in_model(config, encoder)
    train_decoder(sam)
    for name, parameter in encoder.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def merge(sam: Sam) -> None:
    """Make the updates a part of the weights of a plain SAM, in place."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(sam.image_encoder.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            above, _, last = name.rpartition(".")
            setattr(sam.image_encoder.get_submodule(above), last, copy.deepcopy(layer.get_base_layer()))
    for block in sam.image_encoder.blocks:
        block.attn.qkv = block.attn.qkv.joint()


VARIANT = Variant(
    "lora",
    "low-rank updates of the image encoder, with the prompt encoder and the mask decoder",
    _prepare,
    LoraSettings,
    merge=merge,
)
