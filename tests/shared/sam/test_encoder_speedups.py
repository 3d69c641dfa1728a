"""The faster parts of the image encoder compute what upstream's do."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, Sam
from torch import nn
from torch.nn import functional as F

from sum_factory.shared.precision import autocast
from sum_factory.shared.sam import attention, fast_linear
from sum_factory.shared.sam.architecture import SamArchitecture, build_architecture
from sum_factory.shared.sam.attention import PiecewiseAttention, WindowedBlock, attend_in_pieces
from sum_factory.shared.sam.fast_linear import FastLinear, use_fast_linear


@pytest.fixture(scope="module")
def sam() -> Sam:
    """Windows of 3 (which pad 8 tokens to 9) and a global block, with relative positions that count."""
    torch.manual_seed(0)
    sam = build_architecture(
        SamArchitecture("s", 48, 3, 4, (1,), 128, window_size=3, prompt_dim=32, decoder_mlp_dim=64)
    )
    with torch.no_grad():
        for name, parameter in sam.image_encoder.named_parameters():
            if "pos" in name:
                parameter.normal_(0, 0.5)
    return sam


def _encoder(qkv_bias: bool, **changed: Any) -> ImageEncoderViT:
    """A small encoder whose relative positions count."""
    sizes: dict[str, Any] = {"depth": 2, "num_heads": 4, "img_size": 128, "embed_dim": 48, "out_chans": 32} | changed
    encoder = ImageEncoderViT(qkv_bias=qkv_bias, use_rel_pos=True, norm_layer=partial(nn.LayerNorm, eps=1e-6), **sizes)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "pos" in name or name.endswith("bias"):
                parameter.normal_(0, 0.5)
    return encoder.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("piece", [1, 100, 700, 5000, 1 << 20])
def test_pieces_of_any_size_give_upstreams_embedding(
    sam: Sam, images: torch.Tensor, piece: int, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_linear, "onednn_helps", lambda: onednn and torch.backends.mkldnn.is_available())
    monkeypatch.setattr(attention, "PIECE_ON_CPU", piece)
    monkeypatch.setattr(attention, "PIECE_OF_THREAD", piece)
    encoder = deepcopy(sam.image_encoder)
    attend_in_pieces(encoder)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), sam.image_encoder(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("piece", [100, 700, 1 << 20])
def test_gradients_of_pieces_are_upstreams(
    sam: Sam, images: torch.Tensor, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "PIECE_ON_CPU", piece)
    monkeypatch.setattr(attention, "PIECE_OF_THREAD", piece)
    upstream, encoder = deepcopy(sam.image_encoder).double(), deepcopy(sam.image_encoder).double()
    attend_in_pieces(encoder)
    for each in (upstream, encoder):
        each(images.double()).square().sum().backward()
    for (name, expected), found in zip(upstream.named_parameters(), encoder.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-9, atol=1e-9, msg=name)


def test_gradients_of_pieces_in_bf16_are_upstreams_but_for_rounding(sam: Sam, images: torch.Tensor) -> None:
    wanted = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(2))
    found = []
    for change in (lambda encoder: None, attend_in_pieces):
        encoder = deepcopy(sam.image_encoder)
        change(encoder)
        with autocast("cpu", "bf16"):
            (encoder(images).float() * wanted).sum().backward()
        found.append({name: parameter.grad for name, parameter in encoder.named_parameters()})
    upstream, ours = found
    largest = max(float(gradient.abs().max()) for gradient in upstream.values())
    for name, expected in upstream.items():
        assert float((ours[name] - expected).norm()) < 0.03 * float(expected.norm()) + 1e-3 * largest, name


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 7, 8, 11])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_windows_of_any_size_give_upstreams_embedding(images: torch.Tensor, window: int, qkv_bias: bool) -> None:
    """A grid of 8 x 8: windows that divide it, that leave one row over, and one that is larger than it."""
    torch.manual_seed(window)
    encoder = _encoder(qkv_bias, window_size=window, global_attn_indexes=(1,))
    with torch.no_grad():
        expected = encoder(images)
        attend_in_pieces(encoder)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-5, atol=1e-5)


def test_windows_of_a_grid_that_is_not_square_are_upstreams() -> None:
    torch.manual_seed(0)
    block = _encoder(True, window_size=3, global_attn_indexes=()).blocks[0]
    tokens = torch.randn(2, 5, 7, 48)
    with torch.no_grad():
        expected = block(tokens)
        block.__class__, block.attn.__class__ = WindowedBlock, PiecewiseAttention
        torch.testing.assert_close(block(tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("depth", "heads", "global_blocks"), [(12, 12, (2, 5, 8, 11)), (24, 16, (5, 11, 17, 23))])
def test_deep_encoders_with_sams_windows_give_upstreams_embedding(
    depth: int, heads: int, global_blocks: tuple[int, ...]
) -> None:
    """Blocks, heads and windows of ViT-B and ViT-L on a grid of 16, which windows of 14 pad to 28."""
    torch.manual_seed(0)
    encoder = _encoder(
        True, depth=depth, num_heads=heads, img_size=256, embed_dim=4 * heads, window_size=14,
        global_attn_indexes=global_blocks,
    )  # fmt: skip
    images = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        expected = encoder(images)
        attend_in_pieces(encoder)
        use_fast_linear(encoder)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders that attend in pieces do so as on a GPU."""
    monkeypatch.setattr(attention._Attend, "apply", attention.attend_fused)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize(("window", "grid"), [(3, 8), (4, 8), (11, 8), (14, 16), (0, 8), (5, 12)])
def test_positions_folded_into_queries_and_keys_give_upstreams_embedding(window: int, grid: int) -> None:
    """Windows that divide the grid, that pad it and that are larger, beside a global block: in fp64, exactly."""
    torch.manual_seed(window)
    encoder = _encoder(True, img_size=16 * grid, window_size=window, global_attn_indexes=(1,), depth=3).double()
    images = torch.randn(2, 3, 16 * grid, 16 * grid, dtype=torch.float64)
    with torch.no_grad():
        expected = encoder(images)
        attend_in_pieces(encoder)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(encoder.float()(images.float()), expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("positions", [True, False])
def test_fused_attention_on_a_grid_that_is_not_square_is_upstreams(positions: bool) -> None:
    torch.manual_seed(0)
    block = _encoder(True, window_size=0, global_attn_indexes=(0, 1)).blocks[0]
    block.attn.use_rel_pos = positions
    block.attn.rel_pos_h, block.attn.rel_pos_w = (nn.Parameter(torch.randn(2 * side - 1, 12)) for side in (5, 7))
    tokens = torch.randn(2, 5, 7, 48)
    with torch.no_grad():
        expected = block(tokens)
        block.__class__, block.attn.__class__ = WindowedBlock, PiecewiseAttention
        torch.testing.assert_close(block(tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("fused")
def test_gradients_of_fused_attention_are_upstreams(sam: Sam, images: torch.Tensor) -> None:
    upstream, encoder = deepcopy(sam.image_encoder).double(), deepcopy(sam.image_encoder).double()
    attend_in_pieces(encoder)
    for each in (upstream, encoder):
        each(images.double()).square().sum().backward()
    for (name, expected), found in zip(upstream.named_parameters(), encoder.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-9, atol=1e-9, msg=name)


def test_projections_see_no_padding(sam: Sam, images: torch.Tensor) -> None:
    encoder = deepcopy(sam.image_encoder)
    attend_in_pieces(encoder)
    seen: list[int] = []
    for block in encoder.blocks:
        for projection in (block.attn.qkv, block.attn.proj):
            projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:-1].numel()))
    with torch.no_grad():
        encoder(images)
    assert seen == [2 * 8 * 8] * 2 * len(encoder.blocks)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_embedding_is_the_same_to_the_bit_when_it_is_made_again(
    sam: Sam, images: torch.Tensor, threads: int
) -> None:
    encoder, before = deepcopy(sam.image_encoder), torch.get_num_threads()
    attend_in_pieces(encoder)
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            assert torch.equal(encoder(images), encoder(images))
    finally:
        torch.set_num_threads(before)


def test_attention_without_relative_positions_is_upstreams(images: torch.Tensor) -> None:
    encoder = build_architecture(SamArchitecture("s", 48, 2, 4, (), 128, window_size=0, prompt_dim=32)).image_encoder
    for block in encoder.blocks:
        block.attn.use_rel_pos = False
    with torch.no_grad():
        expected = encoder(images)
        attend_in_pieces(encoder)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "kind"),
    [(attend_in_pieces, PiecewiseAttention), (use_fast_linear, FastLinear)],
    ids=["pieces", "linear"],
)
def test_parameters_stay_as_they_are(sam: Sam, change: Callable[[nn.Module], None], kind: type) -> None:
    encoder = deepcopy(sam.image_encoder)
    change(encoder)
    assert sum(type(module) is kind for module in encoder.modules()) >= 3
    before, after = sam.image_encoder.state_dict(), encoder.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("helps", [True, False])
def test_fast_linear_is_torchs(monkeypatch: pytest.MonkeyPatch, helps: bool) -> None:
    monkeypatch.setattr(fast_linear, "onednn_helps", lambda: helps and torch.backends.mkldnn.is_available())
    x, weight, bias = torch.randn(2, 5, 7, 16), torch.randn(24, 16), torch.randn(24)
    torch.testing.assert_close(fast_linear.linear(x, weight, bias), F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast_linear.linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)


def test_fast_linear_obeys_autocast_and_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_linear, "onednn_helps", lambda: True)
    x, weight = torch.randn(3, 8), torch.randn(4, 8)
    with autocast("cpu", "bf16"):
        assert fast_linear.linear(x, weight).dtype == torch.bfloat16
    assert fast_linear.linear(x.double(), weight.double()).dtype == torch.float64


def test_embedding_under_bf16_is_near_that_of_fp32(sam: Sam, images: torch.Tensor) -> None:
    encoder = deepcopy(sam.image_encoder)
    attend_in_pieces(encoder)
    use_fast_linear(encoder)
    with torch.no_grad():
        exact = sam.image_encoder(images)
        with autocast("cpu", "bf16"):
            rough = encoder(images).float()
    assert 1e-5 < float((rough - exact).abs().max()) < 0.3
