"""Training takes ``--precision``; what runs a trained SAM takes ``--exactness``, and a precision that names a level."""

from __future__ import annotations

import click
import pytest

from sum_factory.labelgen import cli as labelgen_cli
from sum_factory.pipelines import quickstart
from sum_factory.pipelines.bench import automask, ray
from sum_factory.pipelines.microworld import pretrain
from sum_factory.pipelines.microworld.ablation import __main__ as ablation
from sum_factory.trainer import cli as trainer_cli

ALL, PROMPTED = ("exact", "encoder-bf16", "fast"), ("exact", "encoder-bf16")


def command_of(group: click.Group, name: str) -> click.Command:
    found = group.get_command(click.Context(group), name)
    assert found is not None
    return found


def choice_of(command: click.Command, name: str) -> tuple[tuple[str, ...], str | None]:
    """Return what an option of a command takes, and its default."""
    (option,) = (each for each in command.params if each.name == name)
    assert isinstance(option.type, click.Choice)
    return tuple(option.type.choices), option.get_default(click.Context(command))


@pytest.mark.parametrize(
    ("command", "default"),
    [
        (command_of(trainer_cli.main, "refiner"), None),
        (command_of(trainer_cli.main, "fit"), None),
        (pretrain.main, "auto"),
        (quickstart.main, "auto"),
        (ablation.main, None),
    ],
)
def test_training_takes_a_precision(command: click.Command, default: str | None) -> None:
    assert choice_of(command, "precision") == (("auto", "fp32", "bf16"), default)
    assert "exactness" not in {each.name for each in command.params}


@pytest.mark.parametrize(
    ("command", "levels", "default"),
    [
        (command_of(labelgen_cli.main, "run"), ALL, "exact"),
        (command_of(labelgen_cli.main, "uncertainty"), ALL, None),
        (command_of(labelgen_cli.main, "import"), ALL, "exact"),
        (command_of(trainer_cli.main, "evaluate"), PROMPTED, "exact"),
        (command_of(trainer_cli.main, "predict"), PROMPTED, "exact"),
        (command_of(trainer_cli.main, "gallery"), PROMPTED, "exact"),
        (automask.main, ALL, "exact"),
        (ray.main, ALL, "exact"),
    ],
)
def test_what_runs_a_sam_takes_an_exactness(
    command: click.Command, levels: tuple[str, ...], default: str | None
) -> None:
    assert choice_of(command, "exactness") == (levels, default)
    assert choice_of(command, "precision") == (("auto", "fp32", "bf16"), None)
