"""SAM's architectures: the three official ones and ``vit_micro``, all from ``segment_anything``'s own classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sum_factory.shared.sam.upstream import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer, common

PATCH = 16
PIXEL_MEAN = [123.675, 116.28, 103.53]
PIXEL_STD = [58.395, 57.12, 57.375]


@dataclass(frozen=True)
class SamArchitecture:
    """The sizes that tell one SAM from another. ``image_size`` is the side of the square input in pixels."""

    name: str
    encoder_dim: int
    encoder_depth: int
    encoder_heads: int
    global_attention_blocks: tuple[int, ...]
    image_size: int = 1024
    window_size: int = 14
    prompt_dim: int = 256
    decoder_mlp_dim: int = 2048
    stem_channels: tuple[int, ...] = ()
    """Widths of a convolutional stem that takes the place of the plain patch embedding; empty: none."""

    @property
    def grid_size(self) -> int:
        """Side of the image embedding."""
        return self.image_size // PATCH

    @property
    def low_res_side(self) -> int:
        """Side of the mask logits: a quarter of the input side."""
        return self.image_size // 4


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        SamArchitecture("vit_micro", 256, 6, 8, (), 256, window_size=0, prompt_dim=192, decoder_mlp_dim=768,
                        stem_channels=(24, 48, 96)),
        SamArchitecture("vit_b", 768, 12, 12, (2, 5, 8, 11)),
        SamArchitecture("vit_l", 1024, 24, 16, (5, 11, 17, 23)),
        SamArchitecture("vit_h", 1280, 32, 16, (7, 15, 23, 31)),
    )
}  # fmt: skip


class ConvStem(nn.Module):
    """Patch embedding by strided 3 x 3 convolutions, halving the image at each.

    Trained from scratch on few images, a plain 16 x 16 patch embedding stays on a plateau for hundreds of
    steps; this does not. Takes (B, 3, H, W), returns (B, H / 16, W / 16, C) as upstream's ``PatchEmbed``.
    """

    def __init__(self, channels: tuple[int, ...], out_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in channels:
            layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), common.LayerNorm2d(width), nn.GELU()]
            before = width
        layers.append(nn.Conv2d(before, out_channels, 3, stride=2, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        embedded: Tensor = self.layers(images)
        return embedded.permute(0, 2, 3, 1)


def build_architecture(architecture: SamArchitecture) -> Sam:
    """Build a SAM with freshly initialised weights, in eval mode, on the current default device."""
    encoder = ImageEncoderViT(
        depth=architecture.encoder_depth,
        embed_dim=architecture.encoder_dim,
        img_size=architecture.image_size,
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=architecture.encoder_heads,
        patch_size=PATCH,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=architecture.global_attention_blocks,
        window_size=architecture.window_size,
        out_chans=architecture.prompt_dim,
    )
    if architecture.stem_channels:
        encoder.patch_embed = ConvStem(architecture.stem_channels, architecture.encoder_dim)
    sam = Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=architecture.prompt_dim,
            image_embedding_size=(architecture.grid_size, architecture.grid_size),
            input_image_size=(architecture.image_size, architecture.image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=architecture.prompt_dim, mlp_dim=architecture.decoder_mlp_dim, num_heads=8
            ),
            transformer_dim=architecture.prompt_dim,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
        pixel_mean=PIXEL_MEAN,
        pixel_std=PIXEL_STD,
    )
    return sam.eval()


class NothingDrawn(TorchFunctionMode):
    """Has new layers draw no numbers: for weights that are overwritten, or whose shapes alone are asked for.

    That is quicker, and on the meta device to draw takes torch's compiler, which takes seconds to load.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func is torch.randn:
            return torch.zeros(*args, **{**kwargs, "device": "cpu"})
        return func(*args, **kwargs)


@cache
def meta_state(architecture: SamArchitecture) -> dict[str, Tensor]:
    """Return the architecture's state dict: names, shapes and dtypes, almost without memory and without numbers."""
    with torch.device("meta"), NothingDrawn():
        state: dict[str, Tensor] = build_architecture(architecture).state_dict()
    return state
