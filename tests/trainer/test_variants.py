"""Variants: what each computes, trains and saves, on a tiny SAM; how many weights it trains of the real ones."""

from __future__ import annotations

import copy
import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor, nn

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.sam.architecture import ARCHITECTURES, NothingDrawn, build_architecture
from sum_factory.shared.sam.attention import attend_in_pieces
from sum_factory.shared.sam.checkpoint import LoadedSam, load_sam, read_header, to_safetensors
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.sam.settings import WEIGHTS_FILE as WEIGHTS
from sum_factory.trainer.commands.train import fit_command
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.evaluation.run import evaluate_sets, load_weights
from sum_factory.trainer.evaluation.settings import Protocol
from sum_factory.trainer.export import export_plain_sam
from sum_factory.trainer.optimizer import OptimizerSettings, make_optimizer
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.distributed import ALONE
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.run.settings import CheckpointSettings
from sum_factory.trainer.settings import read_settings
from sum_factory.trainer.training import fit, make_model
from sum_factory.trainer.variants import prepare, trainable, variants
from sum_factory.trainer.variants.adapter import AdapterSettings
from sum_factory.trainer.variants.lora import LoraSettings, SplitQkv, merge
from sum_factory.trainer.variants.sam_adapter import SamAdapterSettings, high_pass
from sum_factory.trainer.variants.variant import NoSettings

MakeRecipe = Callable[..., Recipe]
PARTS = [name for name, variant in variants().items() if not variant.saves_all_of_sam]


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


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))


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


def outcome(recipe: Recipe, out: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Train, and return the log and the weights."""
    fit(recipe, out, say=lambda _: None)
    return read_log(out), load_file(out / WEIGHTS)


@pytest.mark.parametrize("method", ["human-only", pytest.param("vanilla", marks=pytest.mark.long), "sum"])
@pytest.mark.parametrize("variant", variants())
def test_variant_trains_resumes_is_judged_and_exported(
    make_recipe: MakeRecipe, human_sets: tuple[SetSettings, ...], tmp_path: Path, variant: str, method: str
) -> None:
    small = {"steps": 2, "batch": 2, "micro_batch": 2, "rounds": 2, "masks": 1, "data_threads": 1}
    recipe = make_recipe(variant=variant, method=method, checkpoint=CheckpointSettings(every=1), **small)
    log, weights = outcome(recipe, tmp_path / "straight")
    assert_saved_what_it_trained(recipe, tmp_path / "straight", weights)

    out = shutil.copytree(tmp_path / "straight", tmp_path / "again")
    shutil.rmtree(Checkpoints(out).path(2))
    (out / WEIGHTS).unlink()
    again = outcome(recipe, out)
    assert again[0] == log
    assert all(torch.equal(value, again[1][name]) for name, value in weights.items())

    (scores,) = evaluate_sets(load_weights(str(out), Runtime("cpu")), human_sets[:1], [Protocol("point", 2)], 1)
    assert scores.rows.num_rows == 2 * scores.images > 0
    assert scores.prompted_task == ("salient" if method == "sum" else None)

    if variants()[variant].not_plain:
        with pytest.raises(CheckpointError, match=rf"the variant {variant}, which cannot be written as plain SAM: "):
            export_plain_sam(str(out), tmp_path / "no.pth")
        assert not (tmp_path / "no.pth").exists()
    else:
        export_plain_sam(str(out), tmp_path / "plain.pth")
        assert load_weights(str(tmp_path / "plain.pth"), Runtime("cpu")).architecture.name == "tiny"


def assert_saved_what_it_trained(recipe: Recipe, out: Path, weights: dict[str, Tensor]) -> None:
    """Of a variant that is not a whole SAM, no more than that, and the SAM below; and all parts have learnt."""
    model, header = make_model(recipe, ALONE), read_header(out / WEIGHTS)
    assert weights.keys() == model.weights.keys()
    of_sam = weights.keys() - {"task_prompt.weight"}
    if variants()[recipe.variant].saves_all_of_sam:
        assert of_sam == model.sam.state_dict().keys()
        assert "base" not in header
    else:
        assert of_sam == trainable(model.sam).keys()
        assert header["base"] == {"place": recipe.sam, "sha256": load_sam(recipe.sam).sha256, "model_type": "tiny"}
        assert header["trained_parameters"] == sum(value.numel() for value in weights.values())
    moved = {name for name, value in model.weights.items() if not torch.equal(value, weights[name])}
    assert moved <= trainable(model.sam).keys() | {"task_prompt.weight"}
    learns = "mask_decoder." if recipe.variant in ("hq", "decoder") else "image_encoder."
    assert any(name.startswith(learns) for name in moved)


@pytest.fixture
def trained_part(make_recipe: MakeRecipe, tmp_path: Path) -> Callable[[str], tuple[Recipe, Path]]:
    """``trained_part(variant)`` is the recipe and the folder of a run of one step."""

    def train(variant: str) -> tuple[Recipe, Path]:
        recipe = make_recipe(variant=variant, steps=1, batch=2, rounds=1, masks=1)
        fit(recipe, tmp_path / variant, say=lambda _: None)
        return recipe, tmp_path / variant

    return train


@pytest.mark.parametrize("variant", PARTS)
def test_weights_load_as_the_model_that_was_trained(
    trained_part: Callable[[str], tuple[Recipe, Path]], images: Tensor, variant: str
) -> None:
    recipe, out = trained_part(variant)
    model = make_model(recipe, ALONE)
    with torch.no_grad():
        for name, value in load_file(out / WEIGHTS).items():
            model.weights[name].copy_(value)
        loaded = load_weights(str(out), Runtime("cpu"))
        expected = model.sam.image_encoder(images)
        assert torch.allclose(loaded.sam.image_encoder(images), expected, atol=1e-4)
    assert loaded.trained_tasks == ("unspecified", "salient", "part")
    assert loaded.task_prompt is not None
    assert model.task_prompt is not None
    assert torch.equal(loaded.task_prompt.weight, model.task_prompt.weight)


def test_lora_is_exported_as_plain_sam(
    trained_part: Callable[[str], tuple[Recipe, Path]], tmp_path: Path, images: Tensor
) -> None:
    _, out = trained_part("lora")
    export_plain_sam(str(out), tmp_path / "plain.pth")
    plain: LoadedSam = load_sam(str(tmp_path / "plain.pth"))
    with torch.no_grad():
        expected = load_weights(str(out), Runtime("cpu")).sam.image_encoder(images)
        assert torch.allclose(plain.sam.image_encoder(images), expected, atol=1e-4)


def test_part_needs_the_very_sam_that_it_sits_on(
    trained_part: Callable[[str], tuple[Recipe, Path]], tiny_sam: Sam, tmp_path: Path
) -> None:
    recipe, out = trained_part("adapter")
    with pytest.raises(CheckpointError, match=r"adapter trained, without the SAM.*trainer export"):
        load_sam(str(out / WEIGHTS))
    other = tmp_path / "other.safetensors"
    state = tiny_sam.state_dict()
    other.write_bytes(to_safetensors({**state, "mask_decoder.iou_token.weight": torch.zeros(1, 32)}, {}))
    with pytest.raises(CheckpointError, match=r"sits on a tiny with SHA-256 .*trained on as --sam"):
        load_weights(str(out), Runtime("cpu"), str(other))
    with pytest.raises(CheckpointError, match=r"sits on no other SAM; leave --sam out"):
        load_weights(recipe.sam, Runtime("cpu"), str(other))
    moved = shutil.copy(recipe.sam, tmp_path / "moved.safetensors")
    header = read_header(out / WEIGHTS)
    gone = {**header, "base": {**header["base"], "place": str(tmp_path / "gone.safetensors")}}
    (out / WEIGHTS).write_bytes(to_safetensors(load_file(out / WEIGHTS), gone))
    with pytest.raises(CheckpointError, match=r"cannot be loaded \(.*gone.safetensors: no such file.*give it as --sam"):
        load_weights(str(out), Runtime("cpu"))
    assert load_weights(str(out), Runtime("cpu"), str(moved)).architecture.name == "tiny"


def test_settings_are_those_of_the_variant(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(variant="lora", variant_settings={"rank": 4})
    assert recipe.settings_of_variant == LoraSettings(rank=4)
    assert recipe.identity() == dataclasses.replace(recipe, variant_settings={}).identity()  # 4 is the default
    assert recipe.identity() != dataclasses.replace(recipe, variant_settings={"rank": 8}).identity()
    assert make_recipe().settings_of_variant == NoSettings()
    assert "variant_settings" not in make_recipe().identity()


@pytest.mark.parametrize(
    ("variant", "settings", "message"),
    [
        ("lorra", {}, "no such variant; there are adapter, decoder, full, "),
        ("lora", {"rnk": 4}, "variant_settings of lora: unknown key rnk; there are rank, alpha, layers"),
        ("lora", {"rank": 0}, "variant_settings of lora: rank: .*greater than or equal to 1, found 0"),
        ("lora", {"rank": True}, "variant_settings of lora: rank: expected a number, found true or false"),
        ("lora", {"layers": ["w"]}, "variant_settings of lora: layers.0: "),
        ("adapter", {"after_attention": False, "beside_mlp": False}, "expected an adapter in one place"),
        ("full", {"rank": 4}, "variant_settings of full: unknown key rank; there are none"),
    ],
)
def test_settings_that_no_variant_has_are_refused(
    make_recipe: MakeRecipe, variant: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        make_recipe(variant=variant, variant_settings=settings)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("lora", ["rank=8", "alpha=16", "layers=[q, k, mlp]"], LoraSettings(8, 16, ("q", "k", "mlp"))),
        ("adapter", ["width=16", "after_attention=false", "scale=1"], AdapterSettings(16, False, True, 1)),
        ("sam_adapter", ["rank=6", "frequency_share=0.1"], SamAdapterSettings(6, 0.1)),
    ],
)
def test_recipe_of_a_variant_takes_its_settings_and_another_method(
    name: str, changes: list[str], expected: Any
) -> None:
    filled = {"SAM": "sam.pth", "HQSEG44K": "human"}
    recipe = read_settings(name, Recipe, filled)
    assert (recipe.variant.replace("-", "_"), recipe.method) == (name, "human-only")
    assert recipe.settings_of_variant == variants()[recipe.variant].settings()
    changed = [f"variant_settings.{change}" for change in changes]
    recipe = read_settings(name, Recipe, filled, [*changed, "method=sum", "shards=a"])
    assert recipe.settings_of_variant == expected
    assert recipe.layer == "refinement"


def test_help_names_every_variant() -> None:
    told = next(option for option in fit_command.params if option.name == "variant").to_info_dict()["help"]
    assert set(variants()) <= set(re.findall(r"[\w-]+", told))


def test_a_split_projection_has_the_bias_of_the_joint_one() -> None:
    """Attention pads windows with it."""
    joint = nn.Linear(6, 18)
    bias = SplitQkv(joint).bias
    assert bias is not None
    assert torch.equal(bias, joint.bias)
    assert SplitQkv(nn.Linear(6, 18, bias=False)).bias is None
