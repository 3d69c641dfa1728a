"""`trainer fit` on a tiny SAM: what one step does, what methods share, what is kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sum_factory.shared.errors import InputError, SettingsDifferError
from sum_factory.shared.sam.checkpoint import load_sam, read_header
from sum_factory.shared.sam.settings import WEIGHTS_FILE
from sum_factory.shared.sam.task_prompt import STATE_KEY
from sum_factory.trainer import training as module
from sum_factory.trainer.data.order import Mix
from sum_factory.trainer.data.sets import FolderPairsSettings, LabelMapsSettings, SetSettings
from sum_factory.trainer.optimizer import OptimizerSettings
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.distributed import ALONE
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.run.settings import CheckpointSettings, ValidationSettings
from sum_factory.trainer.training import fit, make_model, open_stream

MakeRecipe = Callable[..., Recipe]


def run(recipe: Recipe, out: Path) -> list[dict[str, Any]]:
    """Train without a word; return the log."""
    fit(recipe, out, say=lambda _: None)
    return read_log(out)


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The total norm of the gradients at each step that AdamW takes."""
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def recorded(self: torch.optim.AdamW, *args: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(math.sqrt(sum(float(g.double().square().sum()) for g in gradients)))
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    return norms


def test_mixed_batch_is_one_optimizer_step(make_recipe: MakeRecipe, tmp_path: Path, updates: list[float]) -> None:
    log = run(make_recipe(steps=3, micro_batch=1), tmp_path)
    assert len(updates) == 3
    assert [line["step"] for line in log] == [1, 2, 3]
    assert [line["gradient_norm"] for line in log] == pytest.approx(updates, rel=1e-5)


def test_gradient_of_a_step_is_that_of_both_streams(make_recipe: MakeRecipe) -> None:
    """The mixed step's gradient is the sum of what its human and its pseudo-labelled photos give alone."""
    recipe = make_recipe(micro_batch=2)
    steps = open_stream(recipe, 128, ALONE).steps(0, 6)
    samples = next(step for step in ([each.on(ALONE.device) for each in step] for step in steps) if all(map(len, step)))
    assert [sample.id.stream for sample in samples] == ["human", "pseudo"] * 2
    gradients = []
    for chosen in (samples, samples[::2], samples[1::2]):
        model = make_model(recipe, ALONE)
        model.optimizer.step = lambda: None  # type: ignore[method-assign]
        module.train_step(recipe, model, chosen, 1, ALONE)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters if p.grad is not None]))
    mixed, human, pseudo = gradients
    assert torch.allclose(mixed, human + pseudo, atol=1e-6)
    assert human.norm() > 1e-2
    assert pseudo.norm() > 1e-2


def test_micro_batches_change_nothing_but_rounding(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """AdamW turns the sign of a gradient that is rounding noise into a step: a few weights may differ by that."""
    logs, weights = [], []
    for size in (1, 3, 4):
        logs.append(run(make_recipe(steps=3, micro_batch=size), tmp_path / str(size)))
        state = load_file(tmp_path / str(size) / WEIGHTS_FILE)
        weights.append(torch.cat([value.flatten() for value in state.values()]))
    for log, state in zip(logs[1:], weights[1:], strict=True):
        for line, first in zip(log, logs[0], strict=True):
            assert line["loss"] == pytest.approx(first["loss"], rel=1e-5)
            assert line["mask_loss"] == pytest.approx(first["mask_loss"], rel=1e-4)
            assert (line["masks"], line["skipped_masks"]) == (first["masks"], first["skipped_masks"])
        assert float(((state - weights[0]).abs() > 1e-5).float().mean()) < 0.01


def test_gradients_are_clipped_to_the_norm_that_is_asked_for(
    make_recipe: MakeRecipe, tmp_path: Path, updates: list[float]
) -> None:
    clipped = make_recipe(steps=2, optimizer=OptimizerSettings(learning_rate=1e-3, clip_norm=0.25))
    log = run(clipped, tmp_path)
    assert all(line["gradient_norm"] > 0.5 for line in log)
    assert updates == pytest.approx([0.25, 0.25], rel=1e-4)


def test_rate_of_the_first_step_is_that_of_step_0(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    falling = OptimizerSettings(learning_rate=1e-3, warmup=1, schedule="linear")
    log = run(make_recipe(batch=2, rounds=1, steps=3, optimizer=falling), tmp_path)
    assert [line["learning_rate"] for line in log] == pytest.approx([0.5e-3, 1e-3, 0.5e-3])


def test_training_lowers_the_loss(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    steep = OptimizerSettings(learning_rate=3e-3)
    recipe = make_recipe(method="vanilla", steps=20, rounds=1, optimizer=steep, checkpoint=CheckpointSettings(every=20))
    losses = [line["loss"] for line in run(recipe, tmp_path)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_same_shards_serve_every_method(
    make_recipe: MakeRecipe, tmp_path: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    recipe = make_recipe(steps=1)
    assert recipe.shards is not None
    before = snapshot(Path(recipe.shards))
    layers, losses = {}, {}
    for method in ("human-only", "vanilla", "sum"):
        losses[method] = run(dataclasses.replace(recipe, method=method), tmp_path / method)[0]["loss"]
        header = read_header(tmp_path / method / WEIGHTS_FILE)
        layers[method] = {name for name in header["run"] if name.startswith("layer_")}
    assert snapshot(Path(recipe.shards)) == before
    assert layers == {
        "human-only": set(),
        "vanilla": {"layer_masks"},
        "sum": {"layer_masks", "layer_uncertainty/refinement"},
    }
    assert len(set(losses.values())) == 3


def test_human_data_alone_needs_no_shards_and_others_say_so(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(shards=None, steps=1)
    (line,) = run(dataclasses.replace(recipe, method="human-only"), tmp_path / "human")
    assert line["photos"] == recipe.batch
    fair = dataclasses.replace(recipe, method="human-only", mix=Mix(1, 1), batch=4)
    assert run(fair, tmp_path / "fair")[0]["photos"] == 2
    with pytest.raises(SettingsDifferError, match="left_out_of_mix: there pseudo, asked for"):
        run(dataclasses.replace(fair, mix=None), tmp_path / "fair")
    with pytest.raises(InputError, match="method sum trains on pseudo-labels: give --shards"):
        run(recipe, tmp_path / "sum")


def test_decoder_variant_leaves_the_encoder_as_it_is(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(variant="decoder", steps=2)
    model = make_model(recipe, ALONE)
    samples = next(open_stream(recipe, 128, ALONE).steps(1, 2))
    module.train_step(recipe, model, samples, 1, ALONE)
    assert all(p.grad is None for p in model.sam.image_encoder.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.sam.mask_decoder.parameters())
    run(recipe, tmp_path)
    start, end = load_sam(recipe.sam).sam.state_dict(), load_file(tmp_path / WEIGHTS_FILE)
    changed = {name.split(".")[0] for name, value in start.items() if not torch.equal(end[name], value)}
    assert changed == {"prompt_encoder", "mask_decoder"}


def test_full_variant_trains_every_part(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(steps=1)
    run(recipe, tmp_path)
    start, end = load_sam(recipe.sam).sam.state_dict(), load_file(tmp_path / WEIGHTS_FILE)
    changed = {name.split(".")[0] for name, value in start.items() if not torch.equal(end[name], value)}
    assert changed == {"image_encoder", "prompt_encoder", "mask_decoder"}
    assert end[STATE_KEY].any(1).tolist() == [True, True, False, True]  # no photo of the task "entity"


def test_weights_load_as_a_model_that_knows_its_tasks(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe(steps=1), tmp_path / "sum")
    run(make_recipe(steps=1, method="vanilla"), tmp_path / "vanilla")
    model = load_sam(str(tmp_path / "sum" / WEIGHTS_FILE))
    assert model.trained_tasks == ("unspecified", "salient", "part")
    assert model.task_prompt is not None
    assert torch.equal(model.task_prompt.weight, load_file(tmp_path / "sum" / WEIGHTS_FILE)[STATE_KEY])
    assert load_sam(str(tmp_path / "vanilla" / WEIGHTS_FILE)).task_prompt is None


def test_header_says_what_made_the_weights(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(steps=1)
    run(recipe, tmp_path)
    header = read_header(tmp_path / WEIGHTS_FILE)
    assert (header["kind"], header["model_type"], header["step"]) == ("sum", "tiny", 1)
    assert header["run"]["sam_sha256"] == load_sam(recipe.sam).sha256
    assert header["run"]["loss"]["theta"] == 0.6


def test_best_checkpoint_by_validation_is_kept(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, human_sets: tuple[SetSettings, ...]
) -> None:
    scores = iter([0.3, 0.8, 0.8, 0.5])

    def validate(*arguments: object) -> tuple[float, dict[str, float]]:
        score = next(scores)
        return score, {"all_mBIoU@3": score}

    monkeypatch.setattr(module, "validate", validate)
    recipe = make_recipe(
        steps=4,
        batch=2,
        rounds=2,
        validation=ValidationSettings(human_sets, every=1),
        checkpoint=CheckpointSettings(every=5, keep=1),
    )
    log = run(recipe, tmp_path)
    assert Checkpoints(tmp_path).steps() == [2, 4]
    assert Checkpoints(tmp_path).best() == 2
    validations = [line for line in log if "validation" in line]
    assert [(line["step"], line["validation"]["all_mBIoU@3"]) for line in validations] == [
        (1, 0.3), (2, 0.8), (3, 0.8), (4, 0.5),
    ]  # fmt: skip


def test_validation_does_not_disturb_the_run(
    make_recipe: MakeRecipe, tmp_path: Path, human_sets: tuple[SetSettings, ...]
) -> None:
    few = tuple(dataclasses.replace(each, limit=1) for each in human_sets)
    recipe = make_recipe(steps=3, batch=2, rounds=2)
    plain = run(recipe, tmp_path / "plain")
    validated = run(
        dataclasses.replace(recipe, validation=ValidationSettings(few, every=1, rounds=2)), tmp_path / "validated"
    )
    assert [line for line in validated if "validation" not in line] == plain
    scores = [line["validation"] for line in validated if "validation" in line]
    assert len(scores) == 3
    assert {"all_mBIoU@2", "salient_mBIoU@2", "part_mBIoU@2"} <= scores[0].keys()
    ends = [load_file(tmp_path / name / WEIGHTS_FILE) for name in ("plain", "validated")]
    assert all(torch.equal(ends[1][name], value) for name, value in ends[0].items())
    assert Checkpoints(tmp_path / "validated").best() is not None


@pytest.fixture
def blank_sets(human_folder: Path, tmp_path: Path) -> tuple[SetSettings, ...]:
    """Label maps without a mask for three photos, allowed to be so."""
    (tmp_path / "blank").mkdir()
    for photo in sorted((human_folder / "images").iterdir()):
        with Image.open(photo) as image:
            Image.new("L", image.size).save(tmp_path / "blank" / photo.name)
    settings = {"images": human_folder / "images", "labels": tmp_path / "blank", "task": "part", "most_blank": 1}
    return (LabelMapsSettings(kind="label-maps", **settings),)


def test_step_without_a_mask_ends_the_run_before_weights_change(
    make_recipe: MakeRecipe, blank_sets: tuple[SetSettings, ...], updates: list[float], tmp_path: Path
) -> None:
    recipe = make_recipe(human=blank_sets, method="human-only")
    with pytest.raises(
        InputError, match=r"step 1: none of its 4 photos has a mask to train on \(their photos have none"
    ):
        run(recipe, tmp_path / "out")
    assert updates == []
    assert not (tmp_path / "out" / WEIGHTS_FILE).exists()


def test_masks_too_small_for_a_cell_end_the_run_too(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number in range(4):
        Image.new("RGB", (800, 600), (0, 50 * number, 9)).save(tmp_path / "images" / f"{number}.png")
        dot = Image.new("L", (800, 600))
        dot.putpixel((401, 301), 255)
        dot.save(tmp_path / "masks" / f"{number}.png")
    dots = FolderPairsSettings("folder-pairs", tmp_path / "images", tmp_path / "masks", "salient")
    with pytest.raises(InputError, match=r"step 1: .*4 masks are smaller than a cell"):
        run(make_recipe(human=(dots,), method="human-only"), tmp_path / "out")


@pytest.mark.parametrize("where", ["human", "validation"])
def test_sets_are_checked_before_anything_else(
    where: str, make_recipe: MakeRecipe, blank_sets: tuple[SetSettings, ...], tmp_path: Path
) -> None:
    wrong = (dataclasses.replace(blank_sets[0], most_blank=0.1),)
    changes = {"human": wrong} if where == "human" else {"validation": ValidationSettings(sets=wrong)}
    with pytest.raises(InputError, match="5 of 5 label maps that were looked at have no mask"):
        run(make_recipe(sam=str(tmp_path / "none.pth"), **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()
