"""Methods with an addition: they train, and a run that is killed ends as one that was not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sum_factory.shared.errors import CheckpointError, SettingsDifferError, SettingsError
from sum_factory.shared.sam.settings import WEIGHTS_FILE
from sum_factory.trainer.merge import merge_weights
from sum_factory.trainer.methods import METHODS, Method
from sum_factory.trainer.methods.addition import Addition
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.checkpoints import TRAINING, Checkpoints
from sum_factory.trainer.run.distributed import ALONE
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.run.settings import CheckpointSettings
from sum_factory.trainer.training import fit, make_model, open_stream

SETTINGS: dict[str, dict[str, Any]] = {
    "sum-online": {"every": 1},
    "u2pl": {"bank": 40, "anchors": 8, "negatives": 4, "unreliable": 0.5},
}
"""Settings under which a short run uses all that a method has."""
ALIKE = {"augseg-box-prompt", "u2pl-entropy"}
"""Methods whose additions are those of others."""
WITH_STATE = ("augseg-mixed-prompt", "u2pl", "sum-discrepancy-online", "sum-online")


@pytest.fixture
def recipe_of(make_recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    """``recipe_of(method, **changes)`` is a run of two steps, with a checkpoint after each."""

    def recipe_of(method: str, **changes: Any) -> Recipe:
        settings: dict[str, Any] = {
            "method": method,
            "method_settings": SETTINGS.get(method, {}),
            "uncertainty": "refinement",
            "steps": 2,
            "batch": 2,
            "micro_batch": 1,
            "rounds": 2,
            "masks": 1,
            "checkpoint": CheckpointSettings(every=1, keep=2),
        }
        return make_recipe(**{**settings, **changes})

    return recipe_of


def run(recipe: Recipe, out: Path) -> tuple[Any, ...]:
    """Return what a run logs, its weights, and the bytes of the state beside these."""
    fit(recipe, out, say=lambda _: None)
    path = Checkpoints(out).path(recipe.steps) / TRAINING
    return read_log(out), load_file(out / WEIGHTS_FILE), path.read_bytes()


def equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        return torch.equal(found, expected)
    if isinstance(expected, dict):
        return bool(found.keys() == expected.keys() and all(equal(found[name], expected[name]) for name in expected))
    return bool(found == expected)


def test_methods_with_a_state_are_these(recipe_of: Callable[..., Recipe]) -> None:
    made = {name: make_model(recipe_of(name), ALONE).addition for name, method in METHODS.items() if adds(method)}
    assert {name for name, each in made.items() if each.state_dict()} == {*WITH_STATE, *ALIKE}


def adds(method: Method) -> bool:
    return method.addition is not Addition


@pytest.mark.parametrize("method", [*WITH_STATE, "self-distillation", "dual-decoder"])
def test_run_that_lost_its_last_step_ends_bit_identical(
    method: str, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    """What is not in the checkpoint of the first step is gone, as it is when a process is killed in the second."""
    if method == "dual-decoder":
        recipe = recipe_of("sum-discrepancy-online", method_settings={"models": method})
    else:
        recipe = recipe_of(method)
    straight = run(recipe, tmp_path / "straight")
    out = shutil.copytree(tmp_path / "straight", tmp_path / "killed")
    shutil.rmtree(Checkpoints(out).path(2))
    (out / WEIGHTS_FILE).unlink()
    again = run(recipe, out)
    assert [equal(*pair) for pair in zip(again, straight, strict=True)] == [True, True, True]


@pytest.mark.parametrize(
    ("method", "variant"),
    [
        ("augseg-box-prompt", "adapter"),
        ("self-distillation", "hq"),
        pytest.param("u2pl-entropy", "lora", marks=pytest.mark.long),
        pytest.param("sum-online", "sam-adapter", marks=pytest.mark.long),
        pytest.param("sum-discrepancy-online", "hq", marks=pytest.mark.long),
        pytest.param("sum-soft", "decoder", marks=pytest.mark.long),
        pytest.param("model-merging", "decoder", marks=pytest.mark.long),
    ],
)
def test_methods_go_with_variants(method: str, variant: str, recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of(method, variant=variant, steps=1, activation_checkpointing=True)
    log, weights, _ = run(recipe, tmp_path)
    assert log[0]["gradient_norm"] > 0
    assert all(bool(value.isfinite().all()) for value in weights.values())


@pytest.mark.long
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.addition is not Addition])
def test_methods_compute_in_bf16_and_accumulate(method: str, recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    """Photos that go through the model apart give the gradient that they give together, but for rounding."""
    logs = {}
    for together in (1, 4):
        changes: dict[str, Any] = {"batch": 4, "micro_batch": together, "steps": 1, "masks": 2}
        fp32 = run(recipe_of(method, **changes), tmp_path / f"fp32_{together}")
        bf16 = run(recipe_of(method, precision="bf16", **changes), tmp_path / f"bf16_{together}")
        logs[together] = fp32[0][0]
        assert bf16[0][0]["loss"] == pytest.approx(fp32[0][0]["loss"], rel=0.1)
    for name in ("loss", "gradient_norm", "iou", "mask_loss"):
        assert logs[1][name] == pytest.approx(logs[4][name], rel=1e-3)


def test_partners_follow_from_the_place_in_the_order(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("augseg-mixed-prompt", batch=4)
    paired, plain = (open_stream(replace(recipe, method=name), 128, ALONE) for name in (recipe.method, "vanilla"))
    found = {slot: paired.load(slot) for slot in range(6)}
    for turn in range(2):  # slots take human and pseudo-labelled samples in turn
        human, pseudo, following = (plain.load(2 * turn + each) for each in (0, 1, 3))
        assert found[2 * turn].partners == ()
        assert torch.equal(found[2 * turn + 1].image, pseudo.image)
        for partner, expected in zip(found[2 * turn + 1].partners, (human, following), strict=True):
            assert torch.equal(partner, expected.image)


def test_merged_run_of_0_is_sam_and_of_1_the_run_on_human_masks(
    recipe_of: Callable[..., Recipe], tmp_path: Path, tiny_file: Path
) -> None:
    ends = {alpha: recipe_of("model-merging", steps=1, method_settings={"alpha": alpha}) for alpha in (0, 1)}
    human = run(recipe_of("human-only", steps=1), tmp_path / "human")[1]
    sam = load_file(tiny_file)
    for alpha, recipe in ends.items():
        merged = run(recipe, tmp_path / f"alpha{alpha}")[1]
        assert merged.keys() == sam.keys() == human.keys()
        for name, value in merged.items():
            assert torch.equal(value, human[name] if alpha else sam[name])
    assert any(not torch.equal(human[name], sam[name]) for name in sam)


def test_command_merges_two_files(tmp_path: Path, tiny_weights: str) -> None:
    sam = load_file(tiny_weights)
    generator = torch.Generator().manual_seed(0)
    tuned = {name: value + torch.randn(value.shape, generator=generator) for name, value in sam.items()}
    save_file(tuned, tmp_path / "tuned.safetensors")
    for alpha, expected in ((0.0, sam), (1.0, tuned)):
        merge_weights(tiny_weights, str(tmp_path / "tuned.safetensors"), alpha, tmp_path / "merged.safetensors")
        assert equal(load_file(tmp_path / "merged.safetensors"), expected)
    save_file({**tuned, "task_prompt.weight": torch.zeros(4, 32)}, tmp_path / "sum.safetensors")
    with pytest.raises(CheckpointError, match=r"sum\.safetensors: has a task prompt.*trainer export"):
        merge_weights(tiny_weights, str(tmp_path / "sum.safetensors"), 0.5, tmp_path / "merged.safetensors")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"method": "u2pl", "method_settings": {"weigth": 1}},
            "settings of u2pl: unknown key weigth; there are weight",
        ),
        ({"method": "u2pl", "method_settings": {"weight": -1}}, "method_settings of u2pl: weight: .*found -1"),
        ({"method": "model-merging", "method_settings": {"alpha": True}}, "alpha: expected a number, found true"),
        ({"method": "sum", "method_settings": {"alpha": 1}}, "unknown key alpha; there are none"),
        ({"method": "sum-soft", "target": "points"}, "sum-soft makes targets on the loss grid"),
    ],
)
def test_settings_that_a_method_does_not_have_are_refused(
    changes: dict[str, Any], named: str, recipe_of: Callable[..., Recipe]
) -> None:
    with pytest.raises(ValueError, match=named):
        recipe_of(**changes)


def test_state_that_cannot_be_spread_is_refused(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"augseg-mixed-prompt keeps a state .* leave fsdp out"):
        fit(recipe_of("augseg-mixed-prompt", fsdp=True), tmp_path, say=lambda _: None)
    with pytest.raises(SettingsError, match="variant adapter adds others"):
        fit(recipe_of("model-merging", variant="adapter"), tmp_path, say=lambda _: None)
    decoders = {"method_settings": {"models": "dual-decoder"}, "target": "points"}
    with pytest.raises(SettingsError, match="a second decoder learns on the loss grid"):
        fit(recipe_of("sum-discrepancy-online", **decoders), tmp_path, say=lambda _: None)


def test_run_is_not_resumed_with_other_settings_of_its_method(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    fit(recipe_of("self-distillation", steps=1), tmp_path, say=lambda _: None)
    with pytest.raises(SettingsDifferError, match="method_settings"):
        fit(recipe_of("self-distillation", method_settings={"weight": 1}), tmp_path, say=lambda _: None)
