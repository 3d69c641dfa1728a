"""Every command of ``trainer`` that can take long tells how it is getting on, on stderr alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image
from pydantic import TypeAdapter

from sum_factory.shared.progress import Speaker
from sum_factory.trainer.cli import main
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.settings import ValidationSettings

STEP = r"loss \d+\.\d{3}, \d+ % of the time waiting for data, \d+\.\d\d s/step"


def call(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def told(result: Result, *patterns: str) -> None:
    """Check that each pattern is in stderr, and that stdout has results alone."""
    for pattern in patterns:
        assert re.search(pattern, result.stderr), result.stderr
        assert not re.search(pattern, result.stdout)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any, Any], Path]:
    """``write(kind, value)`` is a YAML file of it."""

    def write(kind: Any, value: Any) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_text(yaml.safe_dump(TypeAdapter(kind).dump_python(value, mode="json")))
        return path

    return write


@pytest.mark.usefixtures("weights_read_again")
def test_fit_tells_of_steps_and_of_what_is_within(
    make_recipe: Callable[..., Recipe],
    human_sets: tuple[SetSettings, ...],
    write: Callable[[Any, Any], Path],
    tmp_path: Path,
    eager: Speaker,
) -> None:
    validation = ValidationSettings(sets=human_sets, every=2, rounds=1, max_masks=1)
    recipe = make_recipe(steps=3, batch=2, rounds=1, validation=validation)
    result = call("fit", "--recipe", write(Recipe, recipe), "--out", tmp_path / "out")
    told(
        result,
        r"(?m)^reading the weights ",
        r"(?m)^opening ",
        r"(?m)^checking \S+: \d+ of \d+ units",
        r"(?m)^training: 0 of 3 steps$",
        rf"(?m)^training: 1 of 3 steps, {STEP}, \d+ s left$",
        r"(?m)^training: (still at )?2 of 3 steps.*; evaluating \S+: 1 of \d+ images",
        r"(?m)^training: .*; saving step 3: ",
        rf"(?m)^training: 3 of 3 steps, {STEP}, in \d+ s$",
        r"(?m)^writing the weights: ",
    )
    again = call("fit", "--recipe", write(Recipe, recipe), "--out", tmp_path / "out")
    told(again, r"(?m)^reading the checkpoint of step 3: ")
    assert "training" not in again.stderr
    weights = tmp_path / "out"
    told(call("export", "--weights", weights, "--out", tmp_path / "x.pth"), r"(?m)^writing \S+x\.pth: ")
    suite = tmp_path / "suite.yaml"
    sets = TypeAdapter(tuple[SetSettings, ...]).dump_python(human_sets, mode="json")
    suite.write_text(yaml.safe_dump({"sets": [{**each, "name": f"set{k}"} for k, each in enumerate(sets)]}))
    options = ("--weights", weights, "--device=cpu")
    evaluated = call("evaluate", "--suite", suite, "--rounds=1", *options, "--out", tmp_path / "report")
    told(evaluated, r"(?m)^reading the weights ", r"(?m)^opening set1 in \S+: ")
    told(evaluated, r"(?m)^evaluating set0: (\d+) of \1 images")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "photo.png")
    predicted = call("predict", tmp_path / "photo.png", "--point=5,5", *options, "--out", tmp_path / "predicted")
    told(predicted, r"(?m)^segmenting: ")


def test_refiner_tells_of_steps(
    human_sets: tuple[SetSettings, ...], tiny_weights: str, tmp_path: Path, eager: Speaker
) -> None:
    recipe: dict[str, Any] = {
        "human": TypeAdapter(tuple[SetSettings, ...]).dump_python(human_sets, mode="json"),
        "steps": 2,
        "batch": 2,
        "least_iou": 0,
        "pred_iou_thresh": 0,
        "stability_score_thresh": 0,
        "device": "cpu",
    }
    (tmp_path / "refiner.yaml").write_text(yaml.safe_dump(recipe))
    options = ("--out", tmp_path / "out", "--sam", tiny_weights)
    result = call("refiner", "--recipe", tmp_path / "refiner.yaml", *options)
    told(
        result, rf"(?m)^training: 1 of 2 steps, {STEP}, \d+ s left$", rf"(?m)^training: 2 of 2 steps, {STEP}, in \d+ s$"
    )
