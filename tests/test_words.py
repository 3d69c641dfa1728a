"""Nothing that a user can set is without words: every option of a command, every field of settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import click
import pytest

from sum_factory.labelgen.cli import main as labelgen
from sum_factory.labelgen.importing.settings import ImportSettings
from sum_factory.labelgen.run_settings import RunSettings, UncertaintyRunSettings
from sum_factory.labelgen.sets.export_settings import ExportSettings
from sum_factory.labelgen.sets.select import Filter
from sum_factory.shared.field_docs import docs_of
from sum_factory.trainer.cli import main as trainer
from sum_factory.trainer.evaluation.settings import Protocol
from sum_factory.trainer.evaluation.suites import Suite
from sum_factory.trainer.interactive import InteractiveSettings
from sum_factory.trainer.methods import METHODS
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.refiner import RefinerRecipe
from sum_factory.trainer.variants import variants


def settings_in(settings: type) -> Iterator[type]:
    """Yield a class of settings and those of its fields, however deep, each as often as it is met."""
    yield settings
    for hint in get_type_hints(settings, include_extras=True).values():
        yield from classes_in(hint)


def classes_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and is_dataclass(hint):
        yield from settings_in(hint)
    for part in get_args(hint):
        yield from classes_in(part)


ROOTS = (
    Recipe,
    RefinerRecipe,
    RunSettings,
    ImportSettings,
    ExportSettings,
    UncertaintyRunSettings,
    Filter,
    Suite,
    Protocol,
    InteractiveSettings,
)
OF_VARIANTS = {variant.settings for variant in variants().values()}
OF_METHODS = {method.settings for method in METHODS.values()}
ALL = {
    settings
    for root in (*ROOTS, *OF_VARIANTS, *OF_METHODS)
    for settings in settings_in(root)
    if settings.__name__ != "Relocation"
}


def test_settings_are_found_in_settings() -> None:
    assert len(ALL) > len(ROOTS) + 8


@pytest.mark.parametrize("settings", sorted(ALL, key=lambda each: each.__name__))
def test_every_field_says_what_it_means(settings: type) -> None:
    docs = docs_of(settings)
    assert list(docs) == [field.name for field in fields(settings)]
    assert [name for name, words in docs.items() if len(words.split()) < 3 or not words.endswith(".")] == []


def commands_in(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from commands_in(found, f"{path} {name}")


COMMANDS = [*commands_in(labelgen, "labelgen"), *commands_in(trainer, "trainer")]


def test_commands_are_found_in_programs() -> None:
    assert {path.split()[0] for path, _ in COMMANDS} == {"labelgen", "trainer"}
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("command", [pytest.param(command, id=path) for path, command in COMMANDS])
def test_every_option_says_what_it_does(command: click.Command) -> None:
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            words = (option.help or "").split("  [default:")[0]
            assert len(words.split()) >= 3, option.opts


@dataclass
class Example:
    with_words: int
    """What it
    means."""
    without: int
    many: str = "a"
    """First."""


def test_words_are_those_below_a_field() -> None:
    assert docs_of(Example) == {"with_words": "What it means.", "without": "", "many": "First."}
