"""`trainer refiner` on a tiny SAM: what is trained on what, what is written, and that it can be resumed."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sum_factory.shared.errors import CheckpointError, InputError, SettingsDifferError, SettingsError
from sum_factory.shared.sam import refiner as refiner_module
from sum_factory.shared.sam.checkpoint import HEADER, LoadedSam, load_sam, read_header, to_safetensors
from sum_factory.shared.sam.decode import BOX_MAX, BOX_MIN, PAD, POSITIVE, Prompts, decode_prompts
from sum_factory.shared.sam.quality import QualityFilter
from sum_factory.shared.sam.refiner import Refiner, load_refiner
from sum_factory.shared.sam.task_prompt import STATE_KEY
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer import refiner as training_module
from sum_factory.trainer.batch import Batch
from sum_factory.trainer.data.samples import SampleId, SampleSettings
from sum_factory.trainer.data.sets import SetSettings, open_set
from sum_factory.trainer.data.stream import HumanStream
from sum_factory.trainer.losses import LossSettings, mask_loss
from sum_factory.trainer.optimizer import OptimizerSettings, make_optimizer
from sum_factory.trainer.refiner import REFINER, Pairs, RefinerRecipe, RefinerTraining, make_pairs, train_refiner
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.run.settings import CheckpointSettings

MakeRecipe = Callable[..., RefinerRecipe]


@pytest.fixture
def make_refiner_recipe(tiny_weights: str, human_sets: tuple[SetSettings, ...]) -> MakeRecipe:
    """``make_refiner_recipe(**changes)`` is a run of four steps of three photos that keeps every pair."""

    def make(**changes: Any) -> RefinerRecipe:
        settings: dict[str, Any] = {
            "human": human_sets,
            "sam": tiny_weights,
            "steps": 4,
            "batch": 3,
            "masks": 2,
            "least_iou": 0.0,
            "pred_iou_thresh": 0.0,
            "stability_score_thresh": 0.0,
            "optimizer": OptimizerSettings(learning_rate=1e-3, schedule="linear"),
            "checkpoint": CheckpointSettings(every=2),
            "device": "cpu",
            "data_threads": 2,
        }
        return RefinerRecipe(**{**settings, **changes})

    return make


def run(recipe: RefinerRecipe, out: Path) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Train without a word; return the log and the weights."""
    path = train_refiner(recipe, out, say=lambda _: None)
    assert path == out / REFINER
    return read_log(out), load_file(path)


def assert_same(found: tuple[Any, dict[str, Tensor]], expected: tuple[Any, dict[str, Tensor]]) -> None:
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    assert all(torch.equal(found[1][name], value) for name, value in expected[1].items())


@pytest.fixture
def training(make_refiner_recipe: MakeRecipe) -> RefinerTraining:
    """A training that has not begun."""
    recipe = make_refiner_recipe()
    loaded = load_sam(recipe.sam)
    loaded.sam.requires_grad_(False)
    refiner = Refiner.copy_of(loaded.sam).requires_grad_(True)
    optimizer = make_optimizer(refiner, None, recipe.optimizer)
    return RefinerTraining(recipe, loaded, refiner, optimizer, recipe.quality("tiny"))


def samples_of(recipe: RefinerRecipe, count: int = 3) -> list[Any]:
    stream = HumanStream([open_set(each) for each in recipe.human], SampleSettings(128, recipe.stride, 2, 0))
    return [stream.load(index, SampleId("human", 0, index)) for index in range(4, 4 + count)]


def test_loss_is_that_of_refined_masks_against_human_ones(training: RefinerTraining) -> None:
    samples = samples_of(training.recipe)
    sam = training.loaded.sam
    untrained = copy.deepcopy(training.refiner)
    logged = training.step(samples, 1)
    batch = training_module.collate(samples, sam, 4, 0)
    assert batch is not None
    targets = batch.targets
    with torch.no_grad():
        embeddings = sam.image_encoder(batch.images)
        pairs = make_pairs(sam, embeddings, batch, 0.0, training.quality)
        index = targets.image_index[pairs.indexes]
        refined = untrained.refine(embeddings, index, pairs.points, pairs.boxes, pairs.logits)
        loss = mask_loss(refined, targets.masks[pairs.indexes], targets.valid[pairs.indexes], None, LossSettings())
    assert logged["pairs"] == len(pairs) > 2
    assert logged["masks"] == len(targets)
    assert logged["loss"] == pytest.approx(float(loss.mean()), rel=1e-4)
    assert logged["iou_before"] == pytest.approx(float(pairs.iou.mean()), rel=1e-4)


def test_point_box_and_mask_are_given_together_always(
    training: RefinerTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    decode = refiner_module.decode_prompts

    def recorded(model: Any, embeddings: Tensor, index: Tensor, prompts: Any) -> Any:
        seen.append(prompts)
        return decode(model, embeddings, index, prompts)

    monkeypatch.setattr(refiner_module, "decode_prompts", recorded)
    for number in (1, 2):
        training.step(samples_of(training.recipe), number)
    assert len(seen) == 2
    for prompts in seen:
        assert (prompts.token_types == torch.tensor([POSITIVE, BOX_MIN, BOX_MAX])).all()
        assert prompts.mask_logits.shape == (len(prompts), 1, 32, 32)
        assert (prompts.mask_logits.flatten(1).amax(1) > 0).all()  # logits, each of a mask that is not empty
        x0, y0, x1, y1 = prompts.coords[:, 1:].flatten(1).unbind(1)
        assert ((x0 <= x1) & (y0 <= y1)).all()


def test_sam_stays_as_it_is_and_the_refiner_does_not(
    make_refiner_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: list[LoadedSam] = []

    def load(weights: str, task: str) -> LoadedSam:
        caught.append(load_sam(weights, task=task))
        return caught[-1]

    monkeypatch.setattr(training_module, "load_sam", load)
    recipe = make_refiner_recipe(steps=2)
    _, refined = run(recipe, tmp_path)
    before = load_sam(recipe.sam).sam.state_dict()
    after = caught[0].sam.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in caught[0].sam.parameters())
    changed = {name.split(".")[0] for name, value in refined.items() if not torch.equal(before[name], value)}
    assert changed == {"prompt_encoder", "mask_decoder"}


def test_training_lowers_the_loss(make_refiner_recipe: MakeRecipe, tmp_path: Path) -> None:
    steep = OptimizerSettings(learning_rate=3e-3)
    log, _ = run(make_refiner_recipe(steps=25, optimizer=steep, checkpoint=CheckpointSettings(every=25)), tmp_path)
    first, last = log[:5], log[-5:]
    assert sum(line["loss"] for line in last) < 0.7 * sum(line["loss"] for line in first)


def test_resumed_training_ends_bit_identical_whatever_embeddings_are_kept(
    make_refiner_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_refiner_recipe(steps=6)
    straight = run(recipe, tmp_path / "straight")
    for kept in (0, 3, 512):
        out = shutil.copytree(tmp_path / "straight", tmp_path / str(kept))
        shutil.rmtree(Checkpoints(out).path(6))
        (out / REFINER).unlink()
        assert_same(run(dataclasses.replace(recipe, kept_embeddings=kept), out), straight)
    assert_same(run(recipe, tmp_path / "straight"), straight)  # nothing left to do


def test_other_settings_are_refused(make_refiner_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_refiner_recipe(steps=1), tmp_path)
    with pytest.raises(SettingsDifferError, match=r"(?s)  least_iou: there 0\.0, asked for 0\.7"):
        run(make_refiner_recipe(steps=1, least_iou=0.7), tmp_path)


def test_step_without_pairs_changes_no_more_than_weight_decay(training: RefinerTraining) -> None:
    recipe = dataclasses.replace(training.recipe, least_iou=1.0)
    strict = dataclasses.replace(training, recipe=recipe)
    before = copy.deepcopy(training.refiner.state_dict())
    logged = strict.step(samples_of(recipe), 1)
    assert (logged["pairs"], logged["loss"]) == (0, 0.0)
    for name, value in training.refiner.state_dict().items():
        assert torch.allclose(value, before[name], rtol=1e-4), name


def test_file_holds_both_modules_alone_and_names_its_sam(make_refiner_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_refiner_recipe(steps=1)
    run(recipe, tmp_path)
    sam = load_sam(recipe.sam)
    with safe_open(tmp_path / REFINER, "pt") as file:
        names = set(file.keys())
        header = json.loads(file.metadata()[HEADER])
    assert names == {name for name in sam.sam.state_dict() if name.startswith(("prompt_encoder.", "mask_decoder."))}
    assert header["kind"] == "refiner"
    assert header["sam"]["sha256"] == sam.sha256
    assert header["run"]["human_data"]


def test_refiner_of_another_sam_is_refused(make_refiner_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_refiner_recipe(steps=1)
    _, weights = run(recipe, tmp_path)
    sam = load_sam(recipe.sam)
    loaded = load_refiner(tmp_path / REFINER, sam)
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(CheckpointError, match="was trained for a tiny with SHA-256"):
        load_refiner(tmp_path / REFINER, dataclasses.replace(sam, sha256="1" * 64))


@pytest.fixture
def tiny_sum(tiny_weights: str, tmp_path: Path) -> str:
    """SUM weights of the tiny SAM, trained for "unspecified" and "salient"."""
    table = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    state = {**load_sam(tiny_weights).sam.state_dict(), STATE_KEY: table}
    path = tmp_path / "sum.safetensors"
    path.write_bytes(to_safetensors(state, {"trained_tasks": ["unspecified", "salient"]}))
    return str(path)


@pytest.mark.parametrize("task", ["unspecified", "salient"])
def test_masks_are_those_of_the_task(
    task: str, make_refiner_recipe: MakeRecipe, tiny_sum: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Pairs] = []

    def recorded(sam: Sam, embeddings: Tensor, batch: Batch, least_iou: float, quality: QualityFilter) -> Pairs:
        pairs = make_pairs(sam, embeddings, batch, least_iou, quality)
        vector = load_sam(tiny_sum).task_vector(task)
        assert vector is not None
        coords = torch.stack([pairs.points, torch.zeros_like(pairs.points)], 1)
        labels = torch.tensor([[POSITIVE, PAD]]).expand(len(pairs), -1)
        index = batch.targets.image_index[pairs.indexes]
        prompted = embeddings + vector[:, None, None]  # as evaluation gives a task
        logits, _ = decode_prompts(load_sam(tiny_sum).sam, prompted, index, Prompts(coords, labels))
        nearest = (logits[:, 1:] - pairs.logits[:, None]).abs().amax((2, 3)).amin(1)
        assert nearest.max() < 4e-5
        made.append(pairs)
        return pairs

    monkeypatch.setattr(training_module, "make_pairs", recorded)
    path = train_refiner(make_refiner_recipe(steps=1, sam=tiny_sum, task=task), tmp_path / "out", say=lambda _: None)
    assert len(made[0]) > 2
    header = read_header(path)
    assert header["sam"] == {**load_sam(tiny_sum).identity, "task": task}
    assert header["run"]["sam_task"] == task
    assert load_refiner(path, load_sam(tiny_sum, task=task)).sha256
    other = {"unspecified": "salient", "salient": "unspecified"}[task]
    with pytest.raises(CheckpointError, match=f"trained for masks of the task {task}, and these are of {other}"):
        load_refiner(path, load_sam(tiny_sum, task=other))


def test_task_that_the_weights_do_not_know_is_refused(
    make_refiner_recipe: MakeRecipe, tiny_sum: str, tmp_path: Path
) -> None:
    for weights, why in ((tiny_sum, "never trained for the task 'part'"), (None, "no task prompt")):
        chosen = {} if weights is None else {"sam": weights}
        with pytest.raises(SettingsError, match=why):
            train_refiner(make_refiner_recipe(task="part", **chosen), tmp_path / "out", say=lambda _: None)
    assert not (tmp_path / "out").exists()


def test_quality_filters_are_those_of_the_model_unless_given(make_refiner_recipe: MakeRecipe) -> None:
    recipe = make_refiner_recipe(pred_iou_thresh=None, stability_score_thresh=None)
    for model, thresholds in {"vit_h": (0.88, 0.95), "vit_micro": (0.5, 0.8)}.items():
        quality = recipe.quality(model)
        assert (quality.pred_iou_thresh, quality.stability_score_thresh) == thresholds
    chosen = make_refiner_recipe(pred_iou_thresh=0.5, stability_score_thresh=None).quality("vit_h")
    assert (chosen.pred_iou_thresh, chosen.stability_score_thresh, chosen.max_area_share) == (0.5, 0.95, 0.95)


def test_defaults_are_the_papers(human_sets: tuple[SetSettings, ...]) -> None:
    recipe = RefinerRecipe(human=human_sets)
    assert recipe.least_iou == 0.7
    assert (recipe.loss.focal_weight, recipe.loss.dice_weight) == (20, 1)
    assert recipe.optimizer.learning_rate == 1e-5


def test_bf16_trains_about_as_fp32_does(make_refiner_recipe: MakeRecipe, tmp_path: Path) -> None:
    (exact,), _ = run(make_refiner_recipe(steps=1), tmp_path / "fp32")
    (rough,), weights = run(make_refiner_recipe(steps=1, precision="bf16"), tmp_path / "bf16")
    assert rough["loss"] != exact["loss"]
    assert rough["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_run_without_a_pair_leaves_no_refiner(make_refiner_recipe: MakeRecipe, tmp_path: Path) -> None:
    for _ in range(2):  # nor when it goes on from its last checkpoint
        with pytest.raises(InputError, match=r"4 steps had no pair to learn from: .* IoU 1\.0 or more"):
            run(make_refiner_recipe(least_iou=1.0), tmp_path)
        assert not (tmp_path / REFINER).exists()


def test_run_says_how_few_pairs_it_learned_from(
    make_refiner_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SAM fits one mask of the first step, and none later; the run goes on after half of its steps."""
    pairs_of, made = make_pairs, []

    def one_pair(*arguments: Any) -> Pairs:
        made.append(pairs_of(*arguments))
        first = slice(0, 1 if len(made) == 1 else 0)
        return Pairs(**{name: value[first] for name, value in vars(made[-1]).items()})

    monkeypatch.setattr(training_module, "make_pairs", one_pair)
    said: list[str] = []
    train_refiner(make_refiner_recipe(), tmp_path, said.append)
    masks = sum(len(pairs) for pairs in made)
    assert masks > 10
    assert said[-2] == f"learned from 1 pairs, of {masks} masks"
    assert said[-1].startswith(
        f"warning: of {1 - 1 / masks:.0%} of the masks, this SAM made no mask of IoU 0.0 or more"
    )

    said.clear()
    train_refiner(make_refiner_recipe(), tmp_path, said.append)
    assert said[-2] == f"learned from 1 pairs, of {masks} masks", "all steps count, whoever took them"
