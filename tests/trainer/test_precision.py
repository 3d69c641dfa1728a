"""A run is trained in what its precision comes to, says so, and goes on in nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image
from pydantic import TypeAdapter

from sum_factory.shared import precision
from sum_factory.shared.errors import SettingsDifferError
from sum_factory.shared.precision import Hardware
from sum_factory.shared.sam.checkpoint import read_header
from sum_factory.shared.sam.settings import WEIGHTS_FILE
from sum_factory.trainer.cli import main
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.refiner import REFINER, RefinerRecipe, train_refiner
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.distributed import Ranks
from sum_factory.trainer.run.settings import CheckpointSettings
from sum_factory.trainer.training import agree_on_precision, fit

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def on_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """``on_machine(has_bf16)`` says of this machine whether it has instructions for bfloat16."""

    def pretend(has_bf16: bool) -> None:
        name = "a fast machine" if has_bf16 else "a slow machine"
        monkeypatch.setattr(precision, "hardware_of", lambda device: Hardware(has_bf16, name))

    return pretend


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def quiet(text: str) -> None:
    """Say nothing."""


def test_run_records_what_it_was_trained_in_and_is_refused_where_that_would_be_another(
    make_recipe: MakeRecipe, tmp_path: Path, on_machine: Callable[[bool], None]
) -> None:
    recipe = make_recipe(steps=1, batch=2, rounds=1, precision="auto", checkpoint=CheckpointSettings(every=1))
    said: list[str] = []
    on_machine(False)
    fit(recipe, tmp_path, say=said.append)
    assert " on cpu in fp32; " in said[0]
    assert read_header(tmp_path / WEIGHTS_FILE)["run"]["precision"] == "fp32"
    state = json.loads((Checkpoints(tmp_path).path(1) / "state.json").read_text())
    assert state["identity"]["precision"] == "fp32"
    on_machine(True)
    with pytest.raises(SettingsDifferError) as refused:
        fit(replace(recipe, steps=2), tmp_path, say=quiet)
    assert str(refused.value).startswith(
        f"{tmp_path}: precision: there fp32, here it would be bf16 (auto is bf16 on a fast machine). "
        "Give --precision fp32 (or --set precision=fp32) to go on with it"
    )
    assert fit(replace(recipe, steps=2, precision="fp32"), tmp_path, say=quiet).first_step == 1


def test_refiner_is_refused_in_the_same_way(
    tiny_weights: str, human_sets: tuple[SetSettings, ...], tmp_path: Path
) -> None:
    recipe = RefinerRecipe(
        human=human_sets,
        sam=tiny_weights,
        steps=1,
        batch=1,
        masks=1,
        device="cpu",
        checkpoint=CheckpointSettings(1),
        least_iou=0,
        pred_iou_thresh=0,
        stability_score_thresh=0,
    )
    train_refiner(recipe, tmp_path, say=quiet)
    assert read_header(tmp_path / REFINER)["run"]["precision"] == "fp32"
    with pytest.raises(SettingsDifferError, match=r"precision: there fp32, here it would be bf16 \(bf16 is asked for"):
        train_refiner(replace(recipe, precision="bf16"), tmp_path, say=quiet)


class Told(Ranks):
    """Two processes, of which the other one's number is known."""

    def sum_numbers(self, values: Sequence[float]) -> list[float]:
        return [values[0] + float(self.device.index == 1)]


@pytest.mark.parametrize(
    ("own", "others", "expected"), [(False, 0, "fp32"), (True, 0, "fp32"), (False, 1, "fp32"), (True, 1, "bf16")]
)
def test_processes_agree_on_bf16_only_if_each_has_it(
    on_machine: Callable[[bool], None], own: bool, others: int, expected: str
) -> None:
    on_machine(own)
    ranks = Told(0, 2, torch.device("cpu", others))
    assert agree_on_precision("auto", ranks).name == expected
    assert agree_on_precision("bf16", ranks).name == "bf16"


@pytest.mark.parametrize("command", ["fit", "refiner"])
def test_option_goes_before_the_recipe_and_before_set(
    command: str, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "sum_factory.trainer.launch.fit_on_ranks", lambda recipe, *_: seen.append(recipe) or pytest.skip
    )
    monkeypatch.setattr("sum_factory.trainer.refiner.train_refiner", lambda recipe, out: seen.append(recipe) or out)
    adapter = TypeAdapter(Recipe)
    data = adapter.dump_python(make_recipe(), mode="json")
    shared = {name: data[name] for name in ("human", "sam", "precision")}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data if command == "fit" else shared))
    call(command, "--recipe", path, "--out", tmp_path / "out", "--set", "precision=auto", "--precision", "bf16")
    assert [recipe.precision for recipe in seen] == ["bf16"]


@pytest.mark.parametrize("chosen", ["fp32", "bf16"])
def test_evaluation_and_prediction_take_it_and_scores_say_so(
    tiny_weights: str, human_sets: tuple[SetSettings, ...], tmp_path: Path, chosen: str
) -> None:
    suite = tmp_path / "suite.yaml"
    sets = TypeAdapter(tuple[SetSettings, ...]).dump_python(human_sets, mode="json")
    suite.write_text(yaml.safe_dump({"sets": sets}))
    shared = ("--weights", tiny_weights, "--device", "cpu", "--out", tmp_path, "--precision", chosen)
    done = call("evaluate", "--suite", suite, "--rounds", "1", "--max-masks", "1", *shared)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "summary.json").read_text())["precision"] == chosen
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    done = call("predict", tmp_path / "photo.png", "--point", "9,9", *shared)
    assert done.exit_code == 0, done.output
