"""HQ-SAM: its forward pass from the paper's equations, its public layout both ways, and its training."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.sam.architecture import ARCHITECTURES, NothingDrawn, build_architecture
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.decode import BOX_MAX, BOX_MIN, PAD, POSITIVE, Prompts, decode_prompts
from sum_factory.shared.sam.hq import HqMaskDecoder, HqOutput, add_vectors, embed
from sum_factory.shared.sam.runtime import Embedder, Runtime
from sum_factory.shared.sam.settings import WEIGHTS_FILE as WEIGHTS
from sum_factory.trainer.evaluation.run import load_weights
from sum_factory.trainer.export import export_plain_sam
from sum_factory.trainer.predict import UserPrompt, predict_mask
from sum_factory.trainer.prompts import HQ_POINTS, hq_prompts, noised
from sum_factory.trainer.randomness import RowGenerators
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.run.settings import NoSettings
from sum_factory.trainer.settings import read_settings
from sum_factory.trainer.training import fit
from sum_factory.trainer.variants import prepare, trainable
from sum_factory.trainer.variants.hq import is_own


@pytest.fixture(scope="module")
def hq_sam(tiny_sam: Sam) -> Sam:
    """The tiny SAM with HQ-SAM's modules, all of whose weights are random."""
    sam = copy.deepcopy(tiny_sam)
    prepare(sam, "hq", NoSettings(), 5)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in trainable(sam).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return sam


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))


POINT = Prompts(torch.tensor([[[30.0, 70.0], [0.0, 0.0]]]), torch.tensor([[POSITIVE, PAD]]))
BOX = Prompts(torch.tensor([[[10.0, 20.0], [90.0, 100.0]]]), torch.tensor([[BOX_MIN, BOX_MAX]]))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Norm over channels of (B, C, H, W)."""
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-6) * weight[:, None, None] + bias[:, None, None]


def by_the_equations(sam: Sam, image: Tensor, vector: Tensor | None, prompts: Prompts, output: HqOutput) -> Tensor:
    """Return the logits (1, 1, h, w) of HQ-SAM for one prompt: features of early and final ViT and of the decoder."""
    w = dict(sam.mask_decoder.named_parameters())
    caught: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, x, out: caught.append(out))
        for block in sam.image_encoder.blocks
        if block.window_size == 0
    ]
    raw = sam.image_encoder(image)
    for hook in hooks:
        hook.remove()

    def upscale(x: Tensor, name: str) -> Tensor:
        x = F.conv_transpose2d(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"], stride=2)
        x = F.gelu(layer_norm(x, w[f"{name}.1.weight"], w[f"{name}.1.bias"]))
        return F.conv_transpose2d(x, w[f"{name}.3.weight"], w[f"{name}.3.bias"], stride=2)

    features = upscale(raw, "embedding_encoder") + upscale(caught[0].permute(0, 3, 1, 2), "compress_vit_feat")
    box = prompts.coords.view(1, 4) if BOX_MIN in prompts.token_types else None
    points = None if box is not None else (prompts.coords[:, :1], prompts.token_types[:, :1])
    sparse, dense = sam.prompt_encoder(points, box, None)
    decoder = sam.mask_decoder
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, w["hf_token.weight"]])[None]
    source = raw + dense if vector is None else raw + vector[None, :, None, None] + dense
    decoded, s = decoder.transformer(source, sam.prompt_encoder.get_dense_pe(), torch.cat([tokens, sparse], 1))
    s = decoder.output_upscaling(s.transpose(1, 2).view(source.shape))
    m = F.conv2d(s, w["embedding_maskfeature.0.weight"], w["embedding_maskfeature.0.bias"], padding=1)
    m = F.gelu(layer_norm(m, w["embedding_maskfeature.1.weight"], w["embedding_maskfeature.1.bias"]))
    m = F.conv2d(m, w["embedding_maskfeature.3.weight"], w["embedding_maskfeature.3.bias"], padding=1)
    t = decoded[:, 5]
    for k in range(3):
        t = F.linear(t, w[f"hf_mlp.layers.{k}.weight"], w[f"hf_mlp.layers.{k}.bias"])
        t = F.relu(t) if k < 2 else t
    hq = torch.einsum("bc,bchw->bhw", t, m + features)[:, None]
    if output == "hq":
        return hq
    masks = [torch.einsum("bc,bchw->bhw", decoder.output_hypernetworks_mlps[k](decoded[:, 1 + k]), s) for k in range(4)]
    iou = decoder.iou_prediction_head(decoded[:, 0])
    return hq + (masks[0] if box is not None else masks[1 + int(iou[0, 1:].argmax())])[:, None]


@pytest.mark.parametrize("output", ["hq", "hq+sam"])
@pytest.mark.parametrize("prompts", [POINT, BOX])
@pytest.mark.parametrize("has_task", [True, False])
def test_forward_pass_is_that_of_the_equations(
    hq_sam: Sam, images: Tensor, prompts: Prompts, output: HqOutput, has_task: bool
) -> None:
    """With a task prompt, too: the features read the raw embedding, to which it was not added."""
    sam = copy.deepcopy(hq_sam)
    assert isinstance(sam.mask_decoder, HqMaskDecoder)
    sam.mask_decoder.hq_output = output
    vector = torch.randn(32, generator=torch.Generator().manual_seed(3)) if has_task else None
    with torch.no_grad():
        embedding = embed(sam, images)
        source = embedding if vector is None else add_vectors(embedding, vector.expand(2, -1))
        logits, iou = decode_prompts(sam, source, torch.tensor([1]), prompts)
        expected = by_the_equations(sam, images[1:], vector, prompts, output)
    assert iou.shape == (1, 1)
    assert torch.allclose(logits, expected, atol=1e-4)
    assert expected.std() > 0.05


@pytest.mark.parametrize(("size", "count"), [("vit_b", 1_071_104), ("vit_l", 1_333_248), ("vit_h", 1_595_392)])
def test_trains_as_many_parameters_as_published(size: str, count: int) -> None:
    with torch.device("meta"), NothingDrawn():
        sam = build_architecture(ARCHITECTURES[size])
        plain = set(sam.state_dict())
        prepare(sam, "hq", NoSettings(), 0)
    assert sum(parameter.numel() for parameter in trainable(sam).values()) == count
    assert len(set(sam.state_dict()) - plain) == 25
    assert trainable(sam).keys() == set(sam.state_dict()) - plain == {name for name in sam.state_dict() if is_own(name)}
    width = ARCHITECTURES[size].encoder_dim
    assert sam.mask_decoder.compress_vit_feat[0].weight.shape == (width, 256, 2, 2)
    assert sam.mask_decoder.embedding_maskfeature[3].weight.shape == (32, 64, 3, 3)
    if size == "vit_h":  # published as less than 0.5 % of SAM
        assert count / sum(parameter.numel() for parameter in sam.parameters()) < 0.005


@pytest.fixture
def hq_file(hq_sam: Sam, tiny_weights: str, tmp_path: Path) -> Path:
    """A file in HQ-SAM's public layout, as its authors write it."""
    path = tmp_path / "sam_hq_tiny.pth"
    torch.save(hq_sam.state_dict(), path)
    return path


def test_public_layout_goes_both_ways_bit_by_bit(hq_file: Path, hq_sam: Sam, tmp_path: Path) -> None:
    export_plain_sam(str(hq_file), tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    expected = hq_sam.state_dict()
    assert again.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in again.items())


def test_decoder_alone_needs_its_sam(hq_sam: Sam, tiny_weights: str, tmp_path: Path, images: Tensor) -> None:
    path = tmp_path / "epoch_11.pth"
    torch.save(hq_sam.mask_decoder.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"the decoder of HQ-SAM alone; give the SAM .* as --sam"):
        load_weights(str(path), Runtime("cpu"))
    loaded = load_weights(str(path), Runtime("cpu"), tiny_weights)
    expected = hq_sam.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.sam.state_dict().items())
    state = hq_sam.mask_decoder.state_dict()
    torch.save({name: value for name, value in state.items() if name != "hf_token.weight"}, path)
    with pytest.raises(CheckpointError, match=r"does not fit tiny: .*hf_token.weight"):
        load_weights(str(path), Runtime("cpu"), tiny_weights)


def test_loaded_model_predicts_with_its_one_output(hq_file: Path, hq_sam: Sam) -> None:
    """Box and single point, through the whole of inference, against the equations on the same pixels."""
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    for prompt, tokens in ((UserPrompt(((30, 70),)), POINT), (UserPrompt((), (), (10, 20, 90, 100)), BOX)):
        for output in ("hq", "hq+sam"):
            loaded = load_weights(str(hq_file), Runtime("cpu"), hq_output=output)  # type: ignore[arg-type]
            found = predict_mask(loaded, image, prompt)
            with torch.no_grad():
                pixels = hq_sam.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None].float())
                low = by_the_equations(hq_sam, pixels, None, tokens, output)  # type: ignore[arg-type]
                expected = F.interpolate(low, (128, 128), mode="bilinear", align_corners=False)[0, 0] > 0
            assert found.outputs == 1
            assert (found.mask == expected.numpy()).mean() > 0.999


def make_masks() -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    round_ = (rows - 16) ** 2 + (columns - 14) ** 2 < 80
    dot = (rows == 3) & (columns > 5) & (columns < 9)
    return torch.stack([round_, dot]).repeat(60, 1, 1)


def test_prompts_are_those_of_hq_sams_training() -> None:
    masks = make_masks()
    weights = torch.ones_like(masks, dtype=torch.float32)
    weights[:, :16] = 0  # nothing in the upper half is certain
    weights[1::2] = 1
    prompts, count, noise = hq_prompts(masks, weights, 4, 32, torch.Generator().manual_seed(0))
    large = count[::2].tolist()
    assert [large.count(n) for n in (2, HQ_POINTS + 1, 0)] == pytest.approx([20, 20, 20], abs=9)
    assert HQ_POINTS + 1 not in count[1::2].tolist()  # three cells are fewer than ten points
    for k in range(len(masks)):
        given, labels = prompts.coords[k, : count[k]], prompts.token_types[k, : count[k]].tolist()
        if count[k] == 2:
            ys, xs = masks[k].nonzero().T
            corners = [[4 * xs.min(), 4 * ys.min()], [4 * xs.max() + 3, 4 * ys.max() + 3]]
            assert labels == [BOX_MIN, BOX_MAX]
            assert given.tolist() == [[float(x), float(y)] for x, y in corners]
        elif count[k]:
            assert labels == [POSITIVE] * HQ_POINTS + [PAD]
            cells = ((given[:HQ_POINTS] + 0.5) / 4 - 0.5).long()
            assert len({tuple(cell) for cell in cells.tolist()}) == HQ_POINTS
            assert masks[k][cells[:, 1], cells[:, 0]].all()
            assert cells[:, 1].min() >= 16
    assert noise.shape == (len(masks), 1, 32, 32)
    assert set(noise.unique().tolist()) == {0.0, 255.0}


def test_points_are_drawn_in_proportion_to_the_certainty() -> None:
    """Of a mask whose left half is three times as certain, three of four first points are there."""
    masks = torch.zeros(900, 8, 12, dtype=torch.bool)
    masks[:, 1:7, 2:10] = True
    weights = torch.where(torch.arange(12) < 6, 0.9, 0.3).expand(900, 8, 12)
    prompts, count, _ = hq_prompts(masks, weights, 4, 32, torch.Generator().manual_seed(0))
    first = prompts.coords[count == HQ_POINTS + 1, 0, 0]
    assert len(first) == pytest.approx(300, abs=40)
    assert float((first < 24).float().mean()) == pytest.approx(0.75, abs=0.06)


def test_noise_is_where_a_mask_is_finer_than_eight_cells() -> None:
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, :, :20] = True
    found = noised(mask, 64, RowGenerators.of(torch.Generator().manual_seed(0), 1))[0, 0] > 0
    changed = (found != mask[0]).any(0).nonzero()[:, 0]
    assert changed.min() >= 12
    assert changed.max() < 28
    assert 0.1 < float((found != mask[0])[:, 16:24].float().mean()) < 0.5


@pytest.mark.parametrize("method", ["human-only", "vanilla", "sum"])
def test_hq_trains_by_its_own_protocol_and_in_seven_rounds(
    make_recipe: Callable[..., Recipe], tmp_path: Path, method: str
) -> None:
    small: dict[str, Any] = {"steps": 2, "batch": 2, "micro_batch": 2, "masks": 2, "method": method, "variant": "hq"}
    for rounds in (1, 7) if method == "sum" else (1,):
        recipe = make_recipe(rounds=rounds, first_prompts="hq", **small)
        out = tmp_path / str(rounds)
        fit(recipe, out, say=lambda _: None)
        weights = load_file(out / WEIGHTS)
        assert all(is_own(name) for name in weights if name != "task_prompt.weight")
        assert len(weights) == 25 + (method == "sum")
        assert len(read_log(out)[-1]["iou"]) == rounds
    loaded = load_weights(str(out), Runtime("cpu"))
    frozen = load_sam(recipe.sam).sam.state_dict()
    state = loaded.sam.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in frozen.items())
    export_plain_sam(str(out), tmp_path / "public.pth")
    public = torch.load(tmp_path / "public.pth", weights_only=True)
    assert public.keys() == state.keys()
    assert all(torch.equal(value, public[name]) for name, value in weights.items() if name in public)


def test_predicted_iou_teaches_nothing(hq_sam: Sam, images: Tensor) -> None:
    """SAM's IoU head is frozen and speaks of SAM's mask: no gradient of it may reach the HQ token."""
    with torch.no_grad():
        embedding = embed(hq_sam, images)
    _, iou = decode_prompts(hq_sam, embedding, torch.tensor([0]), POINT)
    assert not iou.requires_grad


@pytest.mark.parametrize(("name", "method"), [("hq_sam", "human-only"), ("sum_hq", "sum")])
def test_recipes_are_the_published_protocol(name: str, method: str) -> None:
    recipe = read_settings(name, Recipe, {"SAM": "a", "SHARDS": "b", "HQSEG44K": "c"})
    assert (recipe.variant, recipe.method, recipe.rounds, recipe.first_prompts) == ("hq", method, 1, "hq")
    assert recipe.stride == 1
    assert recipe.optimizer.learning_rate == 1e-3
    assert dataclasses.replace(recipe, rounds=7, first_prompts="interactive").rounds == 7


PUBLISHED = ["segment-anything-hq==0.3", "timm==0.9.16"]
"""What HQ-SAM's authors publish, and what it imports beside what is here."""


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_forward_pass_is_that_of_the_published_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ViT-B of random weights, in a file that either side reads; the package is installed into a folder for this."""
    folder = tmp_path / "package"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PUBLISHED]
    subprocess.run(pip, check=True)
    monkeypatch.syspath_prepend(folder)
    published = importlib.import_module("segment_anything_hq")
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"), NothingDrawn():
        ours = build_architecture(ARCHITECTURES["vit_b"])
        prepare(ours, "hq", NoSettings(), 0)
        shapes = ours.state_dict()
    state = {name: torch.randn(value.shape, generator=generator) * 0.05 for name, value in shapes.items()}
    state |= {name: 1 + value for name, value in state.items() if value.ndim == 1 and name.endswith("weight")}
    file = tmp_path / "sam_hq_vit_b.pth"
    torch.save(state, file)
    predictor = published.SamPredictor(published.sam_model_registry["vit_b"](checkpoint=str(file)))
    loaded = load_weights(str(file), Runtime("cpu"))
    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    predictor.set_image(image)
    embedding = Embedder(loaded.sam).embed(image)
    assert torch.allclose(embedding[:, :256], predictor.features, atol=1e-4 * float(predictor.features.abs().max()))
    point = ({"point_coords": np.array([[30.0, 60.0]]), "point_labels": np.array([1])}, [[30.0, 60.0], [0.0, 0.0]])
    box = ({"box": np.array([10, 20, 90, 80])}, [[10.0, 20.0], [90.0, 80.0]])
    for (asked, corners), types in ((point, [POSITIVE, PAD]), (box, [BOX_MIN, BOX_MAX])):
        coords = torch.tensor(corners) * (1024 / 128)
        prompts = Prompts(coords[None], torch.tensor([types]))
        for output in ("hq", "hq+sam"):
            loaded.sam.mask_decoder.hq_output = output
            with torch.no_grad():
                logits, _ = decode_prompts(loaded.sam, embedding, torch.tensor([0]), prompts)
            how = {"multimask_output": "point_coords" in asked, "hq_token_only": output == "hq"}
            *_, expected = predictor.predict(**asked, **how)
            assert expected.std() > 0.05 * np.abs(expected).max()
            np.testing.assert_allclose(logits[0].numpy(), expected, rtol=0, atol=1e-3 * float(expected.std()))
