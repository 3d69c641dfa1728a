"""Every command that computes a model takes ``--precision``, and those whose results are a promise default to fp32."""

from __future__ import annotations

import click
import pytest

from sum_factory.labelgen import cli as labelgen_cli
from sum_factory.pipelines import quickstart
from sum_factory.pipelines.bench import automask, ray
from sum_factory.pipelines.microworld import pretrain
from sum_factory.pipelines.microworld.ablation import __main__ as ablation
from sum_factory.trainer import cli as trainer_cli


def command_of(group: click.Group, name: str) -> click.Command:
    found = group.get_command(click.Context(group), name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("command", "default"),
    [
        (command_of(labelgen_cli.main, "run"), "fp32"),
        (command_of(labelgen_cli.main, "uncertainty"), None),
        (command_of(trainer_cli.main, "refiner"), None),
        (command_of(trainer_cli.main, "fit"), None),
        (command_of(trainer_cli.main, "evaluate"), "fp32"),
        (command_of(trainer_cli.main, "predict"), "fp32"),
        (command_of(trainer_cli.main, "gallery"), "fp32"),
        (pretrain.main, "auto"),
        (quickstart.main, "auto"),
        (ablation.main, None),
        (automask.main, "fp32"),
        (ray.main, "fp32"),
    ],
)
def test_command_takes_the_option(command: click.Command, default: str | None) -> None:
    (option,) = (each for each in command.params if each.name == "precision")
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == ("auto", "fp32", "bf16")
    assert option.get_default(click.Context(command)) == default
    assert "bf16" not in {each.name for each in command.params}
