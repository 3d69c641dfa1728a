"""The faster parts of the image encoder compute what upstream's do."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from segment_anything.modeling import Sam
from torch import nn
from torch.nn import functional as F

from shared.precision import autocast
from shared.sam import attention, fast_linear
from shared.sam.architecture import SamArchitecture, build_architecture
from shared.sam.attention import PiecewiseAttention, attend_in_pieces
from shared.sam.fast_linear import FastLinear, use_fast_linear


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


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("piece", [1, 100, 700, 5000, 1 << 20])
def test_pieces_of_any_size_give_upstreams_embedding(
    sam: Sam, images: torch.Tensor, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "PIECE_ON_CPU", piece)
    encoder = deepcopy(sam.image_encoder)
    attend_in_pieces(encoder)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), sam.image_encoder(images), rtol=1e-5, atol=1e-5)


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
