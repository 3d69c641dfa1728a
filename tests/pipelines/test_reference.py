"""The pages that are made of the code lack nothing, and what they name is there. Tests need no MkDocs for that."""

from __future__ import annotations

import re
from dataclasses import fields
from importlib import import_module

import pytest

from sum_factory.labelgen.cli import MODULES as LABELGEN
from sum_factory.pipelines.docs.errors import error_classes, messages_by_error
from sum_factory.pipelines.docs.reference import API, pages
from sum_factory.shared.errors import SumError
from sum_factory.trainer.cli import MODULES as TRAINER
from sum_factory.trainer.data.public import public_sets
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.refiner import RefinerRecipe
from sum_factory.trainer.settings import built_in_names


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


def headings(page: str) -> list[str]:
    return re.findall(r"^#+ (.*)$", page, re.MULTILINE)


def section(page: str, title: str) -> str:
    """Return what stands below a heading, up to the next one."""
    (found,) = re.findall(rf"^#+ {re.escape(title)}$(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
    return str(found)


def test_every_command_has_a_section_with_its_options(made: dict[str, str]) -> None:
    inner = {"data": ["data check", "data fetch-help", "data list"]}
    for program, places in (("labelgen", LABELGEN), ("trainer", TRAINER)):
        page = made[f"reference/{program}.md"]
        names = [each for name in sorted(places) for each in inner.get(name, [name])]
        assert headings(page) == [program, *(f"{program} {name}" for name in names)]
        assert all("| `--help` |" in section(page, f"{program} {name}") for name in names)
    assert "| `--photos-from OLD=NEW` |" in section(made["reference/trainer.md"], "trainer fit")


def test_every_key_has_a_row(made: dict[str, str]) -> None:
    page = made["reference/recipes.md"]
    for command, settings in (("trainer fit", Recipe), ("trainer refiner", RefinerRecipe)):
        keys = re.findall(r"^\| `(\w+)` \|", section(page, command), re.MULTILINE)
        assert keys == [field.name for field in fields(settings)]
    assert "| `theta` | number, at least 0 and below 1 | `0.6` | " in section(page, "LossSettings")
    assert "| `ignored` | list of whole number | none | " in section(page, "LabelMapsSettings")
    assert "`validation.sets` for `trainer fit`" in section(page, "CocoSettings")
    assert set(built_in_names()) <= set(headings(page))


def test_every_public_set_has_a_row_and_a_section(made: dict[str, str]) -> None:
    page = made["reference/public_sets.md"]
    for name, public in public_sets().items():
        assert f"| [`{name}`](#{name}) | {public.task} | " in page
        assert public.source in section(page, name)
        assert public.unpack in section(page, name).replace("\n    ", "\n")
    assert "1,124 (not checked)" in page


def test_links_within_the_page_of_keys_lead_somewhere(made: dict[str, str]) -> None:
    page = made["reference/recipes.md"]
    links = set(re.findall(r"\]\(#(\w+)\)", page))
    assert links <= {heading.lower() for heading in headings(page)}
    assert len(links) > 8


def test_every_error_says_what_to_do_and_shows_its_messages(made: dict[str, str]) -> None:
    page = made["reference/errors.md"]
    assert headings(page) == ["Errors", *error_classes()]
    for name, kind in error_classes().items():
        assert issubclass(kind, SumError)
        assert "xit status" in section(page, name)
    assert "`` {model_type} is no model type; there are ... ``" in section(page, "CheckpointError")
    assert "{folder}: damaged ({reason}); delete this folder" in section(page, "CheckpointError")
    assert len(messages_by_error()["ShardError"]) > 40


def test_public_names_have_words() -> None:
    names = [(module, name) for modules in API.values() for module, some in modules.items() for name in some]
    without = [name for module, name in names if not getattr(import_module(f"sum_factory.{module}"), name).__doc__]
    assert without == []


def test_pages_of_the_folder_link_to_pages_of_the_site(made: dict[str, str]) -> None:
    assert "](shards.md)" in made["index.md"]
    assert not re.findall(r"\]\((?:docs|trainer)/", made["index.md"] + made["contributing.md"])
