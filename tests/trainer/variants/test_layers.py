"""What each variant computes, on a tiny SAM; how many weights it trains of the real ones."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from sum_factory.shared.sam.architecture import ARCHITECTURES, NothingDrawn, build_architecture
from sum_factory.shared.sam.attention import attend_in_pieces
from sum_factory.trainer.optimizer import OptimizerSettings, make_optimizer
from sum_factory.trainer.variants import prepare, trainable, variants
from sum_factory.trainer.variants.adapter import AdapterSettings
from sum_factory.trainer.variants.lora import LoraSettings, SplitQkv, merge
from sum_factory.trainer.variants.sam_adapter import SamAdapterSettings, high_pass


def made(sam: Sam, name: str, settings: Any) -> Sam:
    """Return a copy of ``sam`` as a variant."""
    copied = copy.deepcopy(sam)
    prepare(copied, name, settings, 3)
    return copied


def stirred(sam: Sam) -> Sam:
    """Move all that is trained in the encoder off its start, in place."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in trainable(sam.image_encoder).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return sam


def test_variants_find_themselves() -> None:
    assert set(variants()) == {"adapter", "decoder", "full", "hq", "lora", "sam-adapter"}
    assert all(variant.merge is not None or variant.not_plain or variant.public_form for variant in variants().values())


def counts_by_hand(channels: int, depth: int) -> dict[str, int]:
    """Return the numbers that each variant adds to the encoder, from their descriptions."""
    rank = channels // 32
    return {
        "lora": depth * 2 * 2 * 4 * channels,
        "adapter": depth * 2 * (2 * 64 * channels + 64 + channels),
        "sam-adapter": 768 * rank
        + rank
        + channels * rank
        + rank
        + depth * (rank**2 + rank)
        + rank * channels
        + channels,
    }


@pytest.mark.parametrize("size", ["vit_b", "vit_l", "vit_h"])
@pytest.mark.parametrize("name", ["lora", "adapter", "sam-adapter"])
def test_parameters_of_real_sizes_are_as_many_as_described(name: str, size: str) -> None:
    architecture = ARCHITECTURES[size]
    with torch.device("meta"), NothingDrawn():
        sam = build_architecture(architecture)
        decoder = sum(parameter.numel() for parameter in sam.mask_decoder.parameters())
        if name != "sam-adapter":
            decoder += sum(parameter.numel() for parameter in sam.prompt_encoder.parameters())
        prepare(sam, name, variants()[name].settings(), 0)
    count = sum(parameter.numel() for parameter in trainable(sam).values())
    assert count - decoder == counts_by_hand(architecture.encoder_dim, architecture.encoder_depth)[name]


@pytest.mark.parametrize("name", ["lora", "adapter"])
def test_model_starts_as_the_sam_below(tiny_sam: Sam, images: Tensor, name: str) -> None:
    with torch.no_grad():
        found = made(tiny_sam, name, variants()[name].settings()).image_encoder(images)
        assert torch.allclose(found, tiny_sam.image_encoder(images), atol=1e-5)


@pytest.mark.parametrize("layers", [("q", "v"), ("k",), ("q", "k", "v", "mlp")])
def test_lora_adds_its_products_to_the_weights_that_are_named(tiny_sam: Sam, images: Tensor, layers: Any) -> None:
    """Merged or not, the encoder is SAM's with W + alpha / rank x B A, written out here."""
    rank, alpha = 3, 6.0
    tuned = stirred(made(tiny_sam, "lora", LoraSettings(rank, alpha, layers)))
    plain = copy.deepcopy(tiny_sam)
    updates = trainable(tuned.image_encoder)
    places = {"q": slice(0, 32), "k": slice(32, 64), "v": slice(64, 96)}
    with torch.no_grad():
        for number, block in enumerate(plain.image_encoder.blocks):
            for layer in layers:
                names = [f"mlp.lin{k}" for k in (1, 2)] if layer == "mlp" else [f"attn.qkv.{layer}"]
                for name in names:
                    a, b = (updates.pop(f"blocks.{number}.{name}.lora_{k}.default.weight") for k in "AB")
                    target = block.get_submodule(name) if layer == "mlp" else block.attn.qkv
                    rows = slice(None) if layer == "mlp" else places[layer]
                    target.weight[rows] += alpha / rank * b @ a
        assert not updates
        expected = plain.image_encoder(images)
        assert not torch.allclose(expected, tiny_sam.image_encoder(images), atol=1e-2)
        assert torch.allclose(tuned.image_encoder(images), expected, atol=1e-4)
        merge(tuned)
        assert torch.allclose(tuned.image_encoder(images), expected, atol=1e-4)
    assert list(tuned.state_dict()) == list(tiny_sam.state_dict())


def test_adapters_add_what_they_are_described_to_add(tiny_sam: Sam, images: Tensor) -> None:
    """By hooks on upstream's own blocks: behind the attention, where windows do not matter, and on the MLP."""
    tuned = stirred(made(tiny_sam, "adapter", AdapterSettings(5, scale=0.3)))
    weights = trainable(tuned.image_encoder)
    plain = copy.deepcopy(tiny_sam)

    def bottleneck(x: Tensor, path: str) -> Tensor:
        down, up = (weights[f"{path}.{k}.weight"] for k in ("down", "up"))
        middle = x @ down.T + weights[f"{path}.down.bias"]
        middle = 0.5 * middle * (1 + torch.erf(middle / 2**0.5))
        return middle @ up.T + weights[f"{path}.up.bias"]

    for number, block in enumerate(plain.image_encoder.blocks):
        path = f"blocks.{number}"
        block.attn.register_forward_hook(lambda _, x, out, p=path: out + bottleneck(out, f"{p}.attention_adapter"))
        block.mlp.register_forward_hook(lambda _, x, out, p=path: out + 0.3 * bottleneck(x[0], f"{p}.mlp_adapter"))
    with torch.no_grad():
        expected = plain.image_encoder(images)
        assert not torch.allclose(expected, tiny_sam.image_encoder(images), atol=1e-2)
        assert torch.allclose(tuned.image_encoder(images), expected, atol=1e-5)
        attend_in_pieces(tuned.image_encoder)  # as inference does: it must not lose the adapters
        assert torch.allclose(tuned.image_encoder(images), expected, atol=1e-4)


@pytest.mark.parametrize("place", ["after_attention", "beside_mlp"])
def test_adapters_are_only_where_they_are_asked_for(tiny_sam: Sam, place: str) -> None:
    tuned = made(tiny_sam, "adapter", AdapterSettings(**{"after_attention": False, "beside_mlp": False, place: True}))
    kinds = {name.split(".")[2] for name in trainable(tuned.image_encoder)}
    assert kinds == {{"after_attention": "attention_adapter", "beside_mlp": "mlp_adapter"}[place]}


@pytest.mark.parametrize("share", [0.25, 0.1])
def test_high_pass_leaves_out_the_lowest_frequencies(share: float) -> None:
    image = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    spectrum = np.fft.fftshift(np.fft.fft2(image.double().numpy()), axes=(-2, -1))
    half = int((48 * 48 * share) ** 0.5 // 2)
    spectrum[..., 24 - half : 24 + half, 24 - half : 24 + half] = 0
    expected = np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(-2, -1))).real)
    np.testing.assert_allclose(high_pass(image, share).numpy(), expected, atol=1e-5)


def test_sam_adapter_prompts_every_block(tiny_sam: Sam, images: Tensor) -> None:
    """Upstream's encoder, with the prompts added by hooks, from the equations."""
    tuned = stirred(made(tiny_sam, "sam-adapter", SamAdapterSettings(rank=4)))
    plain, w = copy.deepcopy(tiny_sam), trainable(tuned.image_encoder)
    with torch.no_grad():
        seen = torch.nn.functional.conv2d(
            high_pass(images, 0.25), w["prompt_generator.photo.weight"], w["prompt_generator.photo.bias"], stride=16
        )
        patches = plain.image_encoder.patch_embed(images)
        f = seen.permute(0, 2, 3, 1)
        e = patches @ w["prompt_generator.patches.weight"].T + w["prompt_generator.patches.bias"]

        def prompt(i: int) -> Tensor:
            x = (f + e) @ w[f"prompt_generator.of_block.{i}.weight"].T + w[f"prompt_generator.of_block.{i}.bias"]
            x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
            return x @ w["prompt_generator.shared.weight"].T + w["prompt_generator.shared.bias"]

        for number, block in enumerate(plain.image_encoder.blocks):
            block.register_forward_pre_hook(lambda _, x, n=number: (x[0] + prompt(n),))
        expected = plain.image_encoder(images)
        assert not torch.allclose(expected, tiny_sam.image_encoder(images), atol=1e-2)
        assert torch.allclose(tuned.image_encoder(images), expected, atol=1e-4)


def test_new_weights_follow_from_the_seed(tiny_sam: Sam) -> None:
    before = torch.get_rng_state()
    one, same, other = (copy.deepcopy(tiny_sam) for _ in range(3))
    for sam, seed in ((one, 1), (same, 1), (other, 2)):
        prepare(sam, "sam-adapter", SamAdapterSettings(), seed)
    name = "prompt_generator.photo.weight"
    first, second, third = (trainable(sam.image_encoder)[name] for sam in (one, same, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(before, torch.get_rng_state())


def test_layers_of_a_variant_decay_as_the_block_that_they_are_in(tiny_sam: Sam) -> None:
    sam = made(tiny_sam, "lora", LoraSettings())
    optimizer = make_optimizer(sam, None, OptimizerSettings(layer_decay=0.5))
    scales = {id(p): group["scale"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: scales[id(p)] for name, p in trainable(sam).items()}
    assert {scale for name, scale in names.items() if ".blocks.0." in name} == {0.25}
    assert {scale for name, scale in names.items() if ".blocks.1." in name} == {0.5}
    assert {scale for name, scale in names.items() if "blocks" not in name} == {1.0}


def test_a_split_projection_has_the_bias_of_the_joint_one() -> None:
    """Attention pads windows with it."""
    joint = nn.Linear(6, 18)
    bias = SplitQkv(joint).bias
    assert bias is not None
    assert torch.equal(bias, joint.bias)
    assert SplitQkv(nn.Linear(6, 18, bias=False)).bias is None
