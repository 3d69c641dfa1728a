"""Three levels, told apart in records, also in those that are older than levels; and what they cost is said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args

import click
import pytest
import torch
from click.testing import CliRunner

from sum_factory.shared import precision
from sum_factory.shared.errors import SettingsDifferError
from sum_factory.shared.exactness import (
    LEVELS,
    Exactness,
    allow_tf32,
    exactness_of,
    exactness_option,
    parts_in,
    require_level,
    settle,
    with_encoder,
)
from sum_factory.shared.precision import TOLD, Hardware

CPU = torch.device("cpu")


@pytest.fixture
def tf32_as_before() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("exactness", get_args(Exactness))
def test_record_tells_the_level(exactness: Exactness) -> None:
    settings = {"points_per_side": 32, **LEVELS[exactness].settings()}
    assert exactness_of(settings) == exactness
    assert {"points_per_side": 32, **parts_in(settings)} == settings


@pytest.mark.parametrize(("recorded", "level"), [("fp32", "exact"), ("bf16", "encoder-bf16"), ("fp8", None), (3, None)])
def test_record_older_than_levels_tells_one(recorded: Any, level: Exactness | None) -> None:
    assert exactness_of({"precision": recorded}) == level
    assert exactness_of({}) is None


def test_another_level_is_refused_with_the_option_that_goes_on() -> None:
    require_level("here", {"precision": "fp32"}, "exact")
    with pytest.raises(SettingsDifferError) as refused:
        require_level("s3://labels, layer masks", {"precision": "bf16"}, "fast")
    assert str(refused.value) == (
        "s3://labels, layer masks: exactness: there encoder-bf16, here it would be fast. Give --exactness encoder-bf16 "
        "to go on with it, or another folder for another level."
    )


def test_only_exact_is_all_fp32_without_tf32() -> None:
    in_fp32 = {name for name, level in LEVELS.items() if (level.encoder, level.decoder) == ("fp32", "fp32")}
    assert in_fp32 == {"exact"}
    assert {name for name, level in LEVELS.items() if level.tf32} == {"fast"}
    assert [with_encoder(each) for each in get_args(precision.Precision)] == ["exact", "encoder-bf16"]


@pytest.mark.usefixtures("tf32_as_before")
@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_switched_for_products_and_convolutions(allowed: bool) -> None:
    allow_tf32(allowed)
    assert torch.backends.cuda.matmul.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is allowed
    assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")


@pytest.mark.parametrize(("exactness", "told"), [("exact", False), ("encoder-bf16", True), ("fast", True)])
def test_emulated_bf16_is_told_of(
    exactness: Exactness, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TOLD, "")
    monkeypatch.setattr(precision, "hardware_of", lambda device: Hardware(False, "a slow machine"))
    monkeypatch.setattr(precision, "measure_slowdown", lambda device: 9.87)
    settle(exactness, CPU)
    said = f"exactness {exactness} is asked for on a slow machine: a linear layer takes 9.9 times as long as in fp32; "
    assert capsys.readouterr().err == (f"{said}exactness exact does without\n" if told else "")


@click.command()
@click.option("--device", default="cpu")
@exactness_option("The level.")
def command(device: str, exactness: Exactness) -> None:
    click.echo(f"{device} {exactness}")


@pytest.mark.parametrize(
    ("options", "has_bf16", "level"),
    [
        ([], True, "exact"),
        (["--exactness", "fast"], False, "fast"),
        (["--precision", "fp32"], True, "exact"),
        (["--precision", "bf16"], False, "encoder-bf16"),
        (["--precision", "auto"], True, "encoder-bf16"),
        (["--precision", "auto"], False, "exact"),
    ],
)
def test_precision_names_a_level_by_its_encoder(
    options: list[str], has_bf16: bool, level: Exactness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "hardware_of", lambda device: Hardware(has_bf16, f"{device}"))
    assert CliRunner().invoke(command, options).output == f"cpu {level}\n"


def test_precision_and_exactness_are_refused_together() -> None:
    refused = CliRunner().invoke(command, ["--exactness", "exact", "--precision", "fp32"])
    assert refused.exit_code == 2
    assert "--precision and --exactness both name the level: give one of them" in refused.output


def test_levels_are_there_without_torch() -> None:
    script = "import sys, sum_factory.shared.exactness; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
