"""Variants train, resume, are saved, loaded and exported."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.sam.checkpoint import LoadedSam, load_sam, read_header, to_safetensors
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.sam.settings import WEIGHTS_FILE as WEIGHTS
from sum_factory.trainer.commands.train import fit_command
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.evaluation.run import evaluate_sets, load_weights
from sum_factory.trainer.evaluation.settings import Protocol
from sum_factory.trainer.export import export_plain_sam
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.distributed import ALONE
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.run.settings import CheckpointSettings, NoSettings
from sum_factory.trainer.settings import read_settings
from sum_factory.trainer.training import fit, make_model
from sum_factory.trainer.variants import trainable, variants
from sum_factory.trainer.variants.adapter import AdapterSettings
from sum_factory.trainer.variants.lora import LoraSettings
from sum_factory.trainer.variants.sam_adapter import SamAdapterSettings

MakeRecipe = Callable[..., Recipe]
PARTS = [name for name, variant in variants().items() if not variant.saves_all_of_sam]


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
