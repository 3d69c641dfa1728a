"""Weights of Hugging Face's ``SamModel``: other names for the tensors of the official files.

The model that they are run in is the official one. That matters: Hugging Face's decoder normalises with an epsilon of
1e-6, the official one with 1e-5, for which SAM was trained; outputs differ by 1e-4 to 1e-3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sum_factory.shared.errors import CheckpointError

POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
"""The official name of what Hugging Face has under two names, of which a file may leave one out."""
RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?:shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding", POSITIONS),
        (r"vision_encoder\.patch_embed\.projection\.(\w+)", r"image_encoder.patch_embed.proj.\1"),
        (r"vision_encoder\.layers\.(\d+)\.layer_norm([12])\.(\w+)", r"image_encoder.blocks.\1.norm\2.\3"),
        (r"vision_encoder\.layers\.(\d+)\.(attn|mlp)\.(.+)", r"image_encoder.blocks.\1.\2.\3"),
        (r"vision_encoder\.neck\.conv1\.(\w+)", r"image_encoder.neck.0.\1"),
        (r"vision_encoder\.neck\.layer_norm1\.(\w+)", r"image_encoder.neck.1.\1"),
        (r"vision_encoder\.neck\.conv2\.(\w+)", r"image_encoder.neck.2.\1"),
        (r"vision_encoder\.neck\.layer_norm2\.(\w+)", r"image_encoder.neck.3.\1"),
        (r"vision_encoder\.pos_embed", r"image_encoder.pos_embed"),
        (r"prompt_encoder\.point_embed\.(\d+)\.weight", r"prompt_encoder.point_embeddings.\1.weight"),
        (r"prompt_encoder\.mask_embed\.conv1\.(\w+)", r"prompt_encoder.mask_downscaling.0.\1"),
        (r"prompt_encoder\.mask_embed\.layer_norm1\.(\w+)", r"prompt_encoder.mask_downscaling.1.\1"),
        (r"prompt_encoder\.mask_embed\.conv2\.(\w+)", r"prompt_encoder.mask_downscaling.3.\1"),
        (r"prompt_encoder\.mask_embed\.layer_norm2\.(\w+)", r"prompt_encoder.mask_downscaling.4.\1"),
        (r"prompt_encoder\.mask_embed\.conv3\.(\w+)", r"prompt_encoder.mask_downscaling.6.\1"),
        (
            r"mask_decoder\.transformer\.layers\.(\d+)\.layer_norm([1-4])\.(\w+)",
            r"mask_decoder.transformer.layers.\1.norm\2.\3",
        ),
        (r"mask_decoder\.transformer\.layer_norm_final_attn\.(\w+)", r"mask_decoder.transformer.norm_final_attn.\1"),
        (r"mask_decoder\.upscale_conv1\.(\w+)", r"mask_decoder.output_upscaling.0.\1"),
        (r"mask_decoder\.upscale_layer_norm\.(\w+)", r"mask_decoder.output_upscaling.1.\1"),
        (r"mask_decoder\.upscale_conv2\.(\w+)", r"mask_decoder.output_upscaling.3.\1"),
        (r"mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.proj_in\.(\w+)",
         r"mask_decoder.\1.layers.0.\2"),
        (r"mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.layers\.0\.(\w+)",
         r"mask_decoder.\1.layers.1.\2"),
        (r"mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.proj_out\.(\w+)",
         r"mask_decoder.\1.layers.2.\2"),
    )
)  # fmt: skip
"""Hugging Face's names, whole, and the official ones; a name that fits no rule is the same in both."""
BUILT_AS: Mapping[str, Mapping[str, Any]] = {
    "vision_config": {"hidden_act": "gelu", "window_size": 14, "use_rel_pos": True, "qkv_bias": True},
    "mask_decoder_config": {
        "hidden_act": "relu",
        "num_attention_heads": 8,
        "attention_downsample_rate": 2,
        "num_multimask_outputs": 3,
    },
    "prompt_encoder_config": {"hidden_act": "gelu"},
}
"""Settings in ``config.json`` that the shapes of weights do not show, and what they are in the official model."""
MODEL_TYPES = ("sam", "sam_hq")


def has_names(state: Mapping[str, Tensor]) -> bool:
    """Whether these are weights under Hugging Face's names."""
    return any(name.startswith("vision_encoder.") for name in state)


def rename(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return weights under their official names. Raises ``CheckpointError`` where two that should be one differ."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        official = official_name(name)
        if official in renamed and not torch.equal(renamed[official], value):
            raise CheckpointError(f"{where}: {name} differs from another tensor that stands for {official}")
        renamed[official] = value
    return renamed


def official_name(name: str) -> str:
    """Return the official name of a tensor that Hugging Face calls ``name``."""
    for pattern, replacement in RULES:
        matched = pattern.fullmatch(name)
        if matched is not None:
            return matched.expand(replacement)
    return name


def require_config(config: Mapping[str, Any], where: str) -> None:
    """Raise ``CheckpointError`` if ``config.json`` tells of another model than SAM, or of one built otherwise."""
    kind = config.get("model_type", MODEL_TYPES[0])
    if kind not in MODEL_TYPES:
        raise CheckpointError(
            f"{where}: a model of type {kind!r}, says its config.json; of the Hugging Face models SAM alone is read "
            f"({', '.join(MODEL_TYPES)})"
        )
    for module, settings in BUILT_AS.items():
        told = config.get(module)
        for name, expected in settings.items():
            found = told.get(name, expected) if isinstance(told, dict) else expected
            if found != expected:
                raise CheckpointError(
                    f"{where}: config.json says {module}.{name} {found!r}; the official model, which is run here, has "
                    f"{expected!r}"
                )
