"""The ``trainer`` command: what it trains, what it prints, and how it refuses."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from pydantic import TypeAdapter
from safetensors.torch import load_file

from sum_factory.shared.sam.checkpoint import NO_MASK, load_sam, read_header
from sum_factory.shared.sam.settings import WEIGHTS_FILE
from sum_factory.shared.sam.task_prompt import STATE_KEY
from sum_factory.trainer.cli import main
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.refiner import REFINER
from sum_factory.trainer.run.log import read_log


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def file(make_recipe: Callable[..., Recipe], tmp_path: Path) -> Path:
    """A recipe of two steps as YAML."""
    recipe = make_recipe(steps=2, batch=2, rounds=1)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(TypeAdapter(Recipe).dump_python(recipe, mode="json")))
    return path


def test_fit_trains_and_says_so_and_again_has_nothing_to_do(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = call("fit", "--recipe", file, "--out", out)
    assert first.exit_code == 0, first.output
    assert "sum, variant full: " in first.output
    assert "10 human photos, 7 pseudo photos; 2 steps of 2, from the start" in first.output
    assert len(read_log(out)) == 2
    second = call("fit", "--recipe", file, "--out", out)
    assert second.exit_code == 0
    assert "2 of 2 steps present, nothing to do" in second.output


def test_options_go_before_the_recipe(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--method", "vanilla", "--target", "points", "--set", "loss.theta=0.5", "--set=steps=1")
    result = call("fit", "--recipe", file, "--out", out, *options)
    assert result.exit_code == 0, result.output
    run = read_header(out / WEIGHTS_FILE)["run"]
    assert (run["method"], run["target"], run["loss"]["theta"]) == ("vanilla", "points", 0.5)
    assert len(read_log(out)) == 1


@pytest.mark.parametrize("command", ["fit", "refiner"])
def test_run_is_not_written_into_a_pipe(command: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    result = call(command, "--recipe", "ft_small", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "out is there, and is no folder" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "som"], "no such method; there are human-only"),
        (["--set", "loss.tetha=0.5"], "loss.tetha"),
        (["--target", "shares"], "target: expected 'authors', 'bits', 'coverage' or 'points', found 'shares'"),
        (["--target", "authors", "--set", "stride=2"], "the stride is 2; give stride=4, or the target bits"),
        (["--shards", "nowhere"], "nowhere is no shard set"),
        (["--sam", "none.pth"], "none.pth: no such file"),
    ],
)
def test_mistakes_are_told_in_a_line_without_a_traceback(
    file: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = call("fit", "--recipe", file, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_refiner_is_trained_and_its_use_is_told(
    human_sets: tuple[SetSettings, ...], tiny_weights: str, tmp_path: Path
) -> None:
    recipe: dict[str, Any] = {
        "human": TypeAdapter(tuple[SetSettings, ...]).dump_python(human_sets, mode="json"),
        "steps": 1,
        "batch": 2,
        "least_iou": 0,
        "pred_iou_thresh": 0,
        "stability_score_thresh": 0,
        "device": "cpu",
    }
    (tmp_path / "refiner.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "out"
    result = call("refiner", "--recipe", tmp_path / "refiner.yaml", "--out", out, "--sam", tiny_weights)
    assert result.exit_code == 0, result.output
    assert f"wrote {out / REFINER}; use it with `labelgen run --refiner {out / REFINER}`" in result.output


def test_export_writes_what_plain_sam_loads(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("fit", "--recipe", file, "--out", out).exit_code == 0
    result = call("export", "--weights", out, "--out", tmp_path / "plain.pth")
    assert result.exit_code == 0, result.output
    plain = torch.load(tmp_path / "plain.pth", weights_only=True)
    trained = load_sam(str(out / WEIGHTS_FILE)).sam.state_dict()
    assert plain.keys() == trained.keys()
    # the vector of the task "unspecified", which plain SAM has no prompt for
    trained[NO_MASK] = trained[NO_MASK] + load_file(out / WEIGHTS_FILE)[STATE_KEY][:1]
    assert all(torch.equal(value, trained[name]) for name, value in plain.items())
