"""Decoding prompts of many images in one call gives what upstream gives, image by image."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sum_factory.shared.precision import autocast
from sum_factory.shared.sam.architecture import ARCHITECTURES, build_architecture
from sum_factory.shared.sam.decode import (
    ABSENT,
    BOX_MAX,
    BOX_MIN,
    NEGATIVE,
    PAD,
    POSITIVE,
    Prompts,
    decode_prompts,
    dense_positions,
    embed_prompts,
)

COUNT = 3
"""Prompts in a call."""


def random(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(tokens: int, seed: int = 1) -> Tensor:
    """Return coordinates of ``tokens`` points a prompt in a 128 px input, some of them fractions of pixels."""
    return torch.rand(COUNT, tokens, 2, generator=torch.Generator().manual_seed(seed)) * 128


def box_corners() -> Tensor:
    """Return the corners of a box a prompt."""
    corners = pixels(2, seed=4)
    return torch.stack([corners.amin(1), corners.amax(1)], 1)


@pytest.fixture(scope="module")
def embedding(tiny_sam: Sam) -> Tensor:
    """Embeddings of four images."""
    with torch.no_grad():
        encoded: Tensor = tiny_sam.image_encoder(random(4, 3, 128, 128))
    return encoded


Upstream = tuple[tuple[Tensor, Tensor] | None, Tensor | None, Tensor | None]


def build(kind: str) -> tuple[Upstream, Prompts]:
    """Return the same prompts as arguments of upstream's encoder (points, boxes, masks), and as ours."""
    masks = random(COUNT, 1, 32, 32, seed=2) * 8 if "mask" in kind else None
    points = pixels(3)
    token_types = torch.tensor([[POSITIVE, NEGATIVE, POSITIVE], [NEGATIVE, NEGATIVE, POSITIVE], [POSITIVE] * 3])
    if "pad" in kind:
        token_types = torch.tensor([[POSITIVE, PAD, PAD], [PAD, PAD, PAD], [NEGATIVE, PAD, POSITIVE]])
    corners = box_corners()
    corner_types = torch.tensor([[BOX_MIN, BOX_MAX]] * COUNT)
    if "points" in kind and "box" in kind:
        ours = Prompts(torch.cat([points, corners], 1), torch.cat([token_types, corner_types], 1), masks)
        return ((points, token_types), corners.flatten(1), masks), ours
    if "box" in kind:
        return (None, corners.flatten(1), masks), Prompts(corners, corner_types, masks)
    padded = torch.cat([points, torch.zeros(COUNT, 1, 2)], 1)
    padded_types = torch.cat([token_types, torch.full((COUNT, 1), PAD)], 1)
    return ((points, token_types), None, masks), Prompts(padded, padded_types, masks)


KINDS = ["points", "box", "points+box", "points+mask", "box+mask", "points+box+mask", "points+pad", "points+pad+box"]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_embeddings_of_prompts_equal_upstreams(tiny_sam: Sam, kind: str) -> None:
    (points, boxes, masks), prompts = build(kind)
    sparse, dense = tiny_sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
    our_sparse, our_dense = embed_prompts(tiny_sam, prompts)
    if points is None or boxes is None:
        assert torch.equal(our_sparse, sparse)
    else:  # upstream multiplies points and boxes apart: with fewer rows, MKL adds in another order on some processors
        torch.testing.assert_close(our_sparse, sparse, rtol=0, atol=1e-5)
    assert torch.equal(our_dense, dense)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_decoding_one_image_equals_upstreams_predict_masks(tiny_sam: Sam, embedding: Tensor, kind: str) -> None:
    (points, boxes, masks), prompts = build(kind)
    sparse, dense = tiny_sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
    expected = tiny_sam.mask_decoder.predict_masks(
        embedding[2:3], tiny_sam.prompt_encoder.get_dense_pe(), sparse, dense
    )
    logits, iou = decode_prompts(tiny_sam, embedding, torch.full((COUNT,), 2), prompts)
    assert logits.shape == (COUNT, 4, 32, 32)
    assert iou.shape == (COUNT, 4)
    torch.testing.assert_close((logits, iou), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["points", "points+box+mask"])
@torch.no_grad()
def test_decoding_several_images_equals_one_by_one(tiny_sam: Sam, embedding: Tensor, kind: str) -> None:
    _, prompts = build(kind)
    index = torch.tensor([3, 0, 3])
    logits, iou = decode_prompts(tiny_sam, embedding, index, prompts)
    for k, image in enumerate(index):
        alone = Prompts(
            prompts.coords[k : k + 1],
            prompts.token_types[k : k + 1],
            None if prompts.mask_logits is None else prompts.mask_logits[k : k + 1],
        )
        expected = decode_prompts(tiny_sam, embedding[image][None], torch.tensor([0]), alone)
        torch.testing.assert_close((logits[k : k + 1], iou[k : k + 1]), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_absent_tokens_change_nothing(tiny_sam: Sam, embedding: Tensor, kind: str) -> None:
    _, prompts = build(kind)
    longer = Prompts(
        torch.cat([prompts.coords, pixels(2, seed=9)], 1),
        torch.cat([prompts.token_types, torch.full((COUNT, 2), ABSENT)], 1),
        prompts.mask_logits,
    )
    index = torch.tensor([3, 0, 3])
    found, expected = (decode_prompts(tiny_sam, embedding, index, each) for each in (longer, prompts))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert longer.ambiguous.tolist() == prompts.ambiguous.tolist()


@torch.no_grad()
def test_the_single_output_alone_is_the_first_of_all(tiny_sam: Sam, embedding: Tensor) -> None:
    _, prompts = build("points+box+mask")
    index = torch.tensor([3, 0, 3])
    logits, iou = decode_prompts(tiny_sam, embedding, index, prompts, single=True)
    expected, expected_iou = decode_prompts(tiny_sam, embedding, index, prompts)
    torch.testing.assert_close((logits, iou), (expected[:, :1], expected_iou[:, :1]), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_positions_may_be_computed_once_and_given(tiny_sam: Sam, embedding: Tensor) -> None:
    _, prompts = build("points")
    index = torch.tensor([0, 1, 2])
    given = decode_prompts(tiny_sam, embedding, index, prompts, dense_positions(tiny_sam))
    assert all(map(torch.equal, given, decode_prompts(tiny_sam, embedding, index, prompts)))


def test_gradient_reaches_only_the_images_that_were_prompted(tiny_sam: Sam, embedding: Tensor) -> None:
    _, prompts = build("points")
    leaf = embedding.clone().requires_grad_()
    logits, _ = decode_prompts(tiny_sam, leaf, torch.tensor([1, 1, 3]), prompts)
    (gradient,) = torch.autograd.grad(logits.square().sum(), leaf)
    assert (gradient.flatten(1).abs().amax(1) > 0).tolist() == [False, True, False, True]


@torch.no_grad()
def test_coordinates_stay_fp32_under_bf16_autocast(tiny_sam: Sam) -> None:
    _, prompts = build("points+box")
    with autocast("cpu", "bf16"):
        sparse, _ = embed_prompts(tiny_sam, prompts)
        positions = dense_positions(tiny_sam)
    assert sparse.dtype == positions.dtype == torch.float32
    assert torch.equal(sparse, embed_prompts(tiny_sam, prompts)[0])
    assert torch.equal(positions, tiny_sam.prompt_encoder.get_dense_pe())


@torch.no_grad()
def test_bf16_coordinates_are_taken_as_the_numbers_that_they_are(tiny_sam: Sam) -> None:
    _, prompts = build("points")
    rounded = prompts.coords.bfloat16()
    expected = embed_prompts(tiny_sam, Prompts(rounded.float(), prompts.token_types))[0]
    assert torch.equal(embed_prompts(tiny_sam, Prompts(rounded, prompts.token_types))[0], expected)


@torch.no_grad()
def test_neighbouring_pixels_of_a_1024_input_differ_under_bf16_autocast() -> None:
    with torch.device("meta"):
        sam = build_architecture(ARCHITECTURES["vit_b"])
    sam.prompt_encoder.to_empty(device="cpu")
    torch.nn.init.normal_(sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix)
    for weight in sam.prompt_encoder.parameters():
        torch.nn.init.zeros_(weight)
    coords = torch.tensor([[[1000.0, 900.0]], [[1001.0, 900.0]], [[1000.0, 901.0]]])
    with autocast("cpu", "bf16"):
        sparse, _ = embed_prompts(sam, Prompts(coords, torch.full((3, 1), POSITIVE)))
    assert (sparse[1] - sparse[0]).abs().amax() > 1e-3
    assert (sparse[2] - sparse[0]).abs().amax() > 1e-3


def test_new_tokens_go_in_front_and_the_mask_stays() -> None:
    _, prompts = build("points+mask")
    coords, token_types = torch.ones(COUNT, 1, 2), torch.full((COUNT, 1), NEGATIVE)
    longer = prompts.with_tokens(coords, token_types)
    assert torch.equal(longer.coords[:, 0], coords[:, 0])
    assert torch.equal(longer.coords[:, 1:], prompts.coords)
    assert longer.token_types.tolist() == [[NEGATIVE, *row] for row in prompts.token_types.tolist()]
    assert longer.mask_logits is prompts.mask_logits
    assert len(longer) == COUNT


def test_new_mask_replaces_the_old_one() -> None:
    _, prompts = build("points+mask")
    mask = torch.zeros(COUNT, 1, 32, 32)
    replaced = prompts.with_mask(mask)
    assert replaced.mask_logits is mask
    assert replaced.coords is prompts.coords
    assert replaced.token_types is prompts.token_types
