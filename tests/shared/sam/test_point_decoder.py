"""The decoder for points computes what upstream's does: exactly in fp64, and in fp32 no worse than upstream itself."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from sum_factory.shared.sam.architecture import ARCHITECTURES, build_architecture
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.point_decoder import POINT_OUTPUTS, PointDecoder


def official() -> Sam:
    """SAM's own decoder on its own 64 x 64 positions, with weights that leave no term of the algebra idle."""
    torch.manual_seed(0)
    sam = build_architecture(ARCHITECTURES["vit_b"])
    with torch.no_grad():
        for name, parameter in sam.mask_decoder.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
            elif "bias" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return sam


@pytest.fixture(scope="module", params=["tiny", "vit_micro", "official"])
def sam(request: pytest.FixtureRequest, tiny_sam: Sam) -> Sam:
    if request.param == "tiny":
        return tiny_sam
    return load_sam().sam if request.param == "vit_micro" else official()


def inputs(sam: Sam, count: int) -> tuple[Tensor, Tensor]:
    """Return an image embedding, and what the prompt encoder makes of ``count`` points."""
    generator = torch.Generator().manual_seed(1)
    side, channels = sam.prompt_encoder.image_embedding_size[0], sam.prompt_encoder.embed_dim
    embedding = torch.randn(1, channels, side, side, generator=generator)
    points = torch.rand(count, 1, 2, generator=generator) * sam.prompt_encoder.input_image_size[0]
    labels = torch.ones(count, 1, dtype=torch.int)
    with torch.no_grad():
        sparse, _ = sam.prompt_encoder(points=(points, labels), boxes=None, masks=None)
    return embedding, sparse


@torch.no_grad()
def decode_upstream(sam: Sam, embedding: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
    no_mask = sam.prompt_encoder.no_mask_embed.weight[..., None, None]
    logits, iou = sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=no_mask.expand(len(sparse), -1, *embedding.shape[2:]),
        multimask_output=True,
    )
    return logits.flatten(0, 1), iou


def decode(sam: Sam, embedding: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
    decoder = PointDecoder(sam)
    decoded = decoder.decode(decoder.prepare(embedding), sparse)
    return decoder.masks(decoded, torch.ones(len(sparse), POINT_OUTPUTS, dtype=torch.bool)), decoded.predicted_iou


def in_double(sam: Sam) -> Sam:
    """Return a copy in fp64; the positions of the image are those of fp32."""
    double, positions = deepcopy(sam).double(), sam.prompt_encoder.get_dense_pe().double()
    double.prompt_encoder.get_dense_pe = lambda: positions
    return double


def test_algebra_is_exact(sam: Sam) -> None:
    double = in_double(sam)
    embedding, sparse = (values.double() for values in inputs(sam, 5))
    expected, expected_iou = decode_upstream(double, embedding, sparse)
    logits, iou = decode(double, embedding, sparse)
    assert float(expected.std()) > 1e-2
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(iou, expected_iou, rtol=1e-9, atol=1e-9)


def test_error_in_fp32_is_at_most_a_hundred_thousandth_or_that_of_upstream(sam: Sam) -> None:
    embedding, sparse = inputs(sam, 5)
    exact, exact_iou = decode_upstream(in_double(sam), embedding.double(), sparse.double())
    upstream, upstream_iou = decode_upstream(sam, embedding, sparse)
    ours, iou = decode(sam, embedding, sparse)
    for exact_values, theirs, our_own in ((exact, upstream, ours), (exact_iou, upstream_iou, iou)):
        their_error = float((theirs - exact_values).abs().max())
        assert float((our_own - exact_values).abs().max()) <= max(1e-5, 2 * their_error)


def test_only_wanted_masks_are_returned_in_their_order(sam: Sam) -> None:
    embedding, sparse = inputs(sam, 4)
    decoder = PointDecoder(sam)
    decoded = decoder.decode(decoder.prepare(embedding), sparse)
    everything = decoder.masks(decoded, torch.ones(4, POINT_OUTPUTS, dtype=torch.bool)).view(4, POINT_OUTPUTS, -1)
    wanted = torch.tensor([[False, True, False], [False, False, False], [True, False, True], [True, True, True]])
    some = decoder.masks(decoded, wanted)
    torch.testing.assert_close(some.flatten(1), everything[wanted], rtol=0, atol=1e-4)
    assert decoder.masks(decoded, torch.zeros(4, POINT_OUTPUTS, dtype=torch.bool)).shape == (0, *some.shape[1:])


def test_points_do_not_disturb_each_other(sam: Sam) -> None:
    embedding, sparse = inputs(sam, 6)
    together, iou = decode(sam, embedding, sparse)
    alone = [decode(sam, embedding, sparse[k : k + 1]) for k in range(6)]
    torch.testing.assert_close(torch.cat([logits for logits, _ in alone]), together, rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.cat([ious for _, ious in alone]), iou, rtol=0, atol=1e-5)


def test_points_at_once_fit_the_cache_and_the_limit(tiny_sam: Sam) -> None:
    assert PointDecoder(tiny_sam).points_at_once(64) == 64
    assert PointDecoder(tiny_sam).points_at_once(3) == 3
    assert 1 <= PointDecoder(official()).points_at_once(64) < 16


def test_decoder_of_another_make_is_refused(tiny_sam: Sam) -> None:
    other = deepcopy(tiny_sam)
    other.mask_decoder.transformer.layers = nn.ModuleList(other.mask_decoder.transformer.layers[:1])
    with pytest.raises(ValueError, match="two layers"):
        PointDecoder(other)


def test_decoder_in_bf16_is_no_further_from_exact_than_upstreams(sam: Sam) -> None:
    """Upstream's in bf16 is the module itself in it. What comes out is fp32, and IoU is finer than bf16."""
    embedding, sparse = inputs(sam, 6)
    logits, iou = decode_upstream(sam, embedding, sparse)
    rough_sam = deepcopy(sam).to(torch.bfloat16)
    rough_sam.prompt_encoder.pe_layer.float()
    rough_sam.prompt_encoder.get_dense_pe = lambda: sam.prompt_encoder.get_dense_pe().bfloat16()
    rough, rough_iou = (each.float() for each in decode_upstream(rough_sam, embedding.bfloat16(), sparse.bfloat16()))
    decoder = PointDecoder(sam, "bf16")
    decoded = decoder.decode(decoder.prepare(embedding), sparse)
    ours = decoder.masks(decoded, torch.ones(6, POINT_OUTPUTS, dtype=torch.bool))
    assert (ours.dtype, decoded.predicted_iou.dtype) == (torch.float32, torch.float32)
    assert 0 < float((ours - logits).norm()) < 1.5 * float((rough - logits).norm())
    assert float((decoded.predicted_iou - iou).norm()) < 1.5 * float((rough_iou - iou).norm())
    assert not torch.equal(decoded.predicted_iou, decoded.predicted_iou.bfloat16().float())
    assert all(parameter.dtype == torch.float32 for parameter in sam.parameters())
