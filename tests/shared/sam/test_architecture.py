"""The architectures are upstream's: same names, same shapes, same classes; the packaged one is small."""

from __future__ import annotations

from importlib.resources import files

import pytest
import segment_anything
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from sum_factory.shared.sam.architecture import ARCHITECTURES, ConvStem, build_architecture, meta_state


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_official_architecture_has_the_state_of_upstreams(name: str) -> None:
    with torch.device("meta"):
        upstream = segment_anything.sam_model_registry[name]().state_dict()
    ours = meta_state(ARCHITECTURES[name])
    assert list(ours) == list(upstream)
    assert {key: (value.shape, value.dtype) for key, value in ours.items()} == {
        key: (value.shape, value.dtype) for key, value in upstream.items()
    }


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_official_architecture_is_configured_as_upstreams(name: str) -> None:
    with torch.device("meta"):
        upstream, ours = segment_anything.sam_model_registry[name](), build_architecture(ARCHITECTURES[name])
    # What a state dict does not show: strides, paddings, window sizes, heads, epsilons.
    assert repr(ours) == repr(upstream)
    assert [block.window_size for block in ours.image_encoder.blocks] == [
        block.window_size for block in upstream.image_encoder.blocks
    ]
    assert [block.attn.num_heads for block in ours.image_encoder.blocks] == [
        block.attn.num_heads for block in upstream.image_encoder.blocks
    ]
    assert ours.prompt_encoder.input_image_size == upstream.prompt_encoder.input_image_size
    assert ours.image_encoder.img_size == upstream.image_encoder.img_size == ARCHITECTURES[name].image_size
    assert ours.mask_threshold == upstream.mask_threshold


def test_pixel_statistics_are_upstreams() -> None:
    ours, upstream = build_architecture(ARCHITECTURES["vit_micro"]), segment_anything.sam_model_registry["vit_b"]
    with torch.device("meta"):
        shape = upstream().pixel_mean.shape
    assert ours.pixel_mean.shape == ours.pixel_std.shape == shape
    assert ours.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert ours.pixel_std.flatten().tolist() == pytest.approx([58.395, 57.12, 57.375])


def test_vit_t_has_between_5_and_8_5_million_parameters() -> None:
    with torch.device("meta"):
        sam = build_architecture(ARCHITECTURES["vit_micro"])
    assert 5_000_000 <= sum(parameter.numel() for parameter in sam.parameters()) <= 8_500_000


def test_vit_t_is_made_of_upstreams_classes() -> None:
    with torch.device("meta"):
        sam = build_architecture(ARCHITECTURES["vit_micro"])
    assert type(sam) is Sam
    assert type(sam.image_encoder) is ImageEncoderViT
    assert type(sam.prompt_encoder) is PromptEncoder
    assert type(sam.mask_decoder) is MaskDecoder
    assert type(sam.mask_decoder.transformer) is TwoWayTransformer
    own = {
        type(module)
        for module in sam.modules()
        if not type(module).__module__.startswith(("segment_anything", "torch"))
    }
    assert own == {ConvStem}


def test_stem_embeds_as_many_patches_as_upstreams_patch_embedding() -> None:
    with torch.device("meta"):
        vit_micro, vit_b = (build_architecture(ARCHITECTURES[name]).image_encoder for name in ("vit_micro", "vit_b"))
        images = torch.empty(2, 3, 256, 256)
        stem, plain = vit_micro.patch_embed(images), vit_b.patch_embed(images)
    assert stem.shape[:3] == plain.shape[:3] == (2, 16, 16)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_architecture_knows_its_grids(name: str) -> None:
    architecture = ARCHITECTURES[name]
    with torch.device("meta"):
        sam = build_architecture(architecture)
    assert sam.prompt_encoder.image_embedding_size == (architecture.grid_size, architecture.grid_size)
    assert sam.prompt_encoder.mask_input_size == (architecture.low_res_side, architecture.low_res_side)
    assert not sam.training


def test_packaged_weights_take_at_most_20_megabytes() -> None:
    packaged = files("sum_factory.shared.sam") / "weights" / "vit_micro.safetensors"
    assert 0 < len(packaged.read_bytes()) <= 20_000_000
