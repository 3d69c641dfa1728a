"""The pages of the site that nobody writes: commands, recipe keys, errors and the Python API, from the code itself.

A hook of MkDocs (``mkdocs.yml``): ``make docs`` builds the site, and fails at any warning, such as a dead link.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from sum_factory.labelgen.run import RunSettings
from sum_factory.shared import errors
from sum_factory.shared.field_docs import docs_of
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.refiner import RefinerRecipe

HOME = Path(__file__).parents[2]
EXAMPLES = HOME / "docs/examples"
FRONT = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages that stand in the folder of the project, by their names on the site."""
COMMANDS = ("labelgen", "trainer")
API: Mapping[str, Mapping[str, Sequence[str]]] = {
    "labelgen": {
        "labelgen.run": ("run", "RunSettings", "add_uncertainty", "UncertaintyRunSettings"),
        "labelgen.settings": ("AutomaskSettings", "UncertaintySettings", "settings_for"),
        "labelgen.progress": ("RunSummary",),
        "labelgen.masks.automask": ("LabelGenerator", "ImageLabels"),
        "labelgen.sets.select": ("select", "Filter"),
        "labelgen.sets.merge": ("merge",),
        "labelgen.sets.convert": ("convert",),
        "labelgen.sets.export": ("export_coco",),
    },
    "trainer": {
        "trainer.recipe": ("Recipe",),
        "trainer.loop": ("fit", "fit_on_ranks", "FitSummary"),
        "trainer.methods": ("Method",),
        "trainer.losses": ("focal_loss", "dice_loss", "LossSettings"),
        "trainer.evaluate.run": ("load_weights", "evaluate_sets"),
        "trainer.evaluate.settings": ("Protocol",),
        "trainer.evaluate.metrics": ("iou", "boundary_iou"),
    },
    "shared": {
        "shared.shards.selection.opened": ("open_shards",),
        "shared.shards.shard_set": ("ShardSet",),
        "shared.shards.verify": ("verify", "UnitCheck"),
        "shared.sam.checkpoint": ("load_sam", "LoadedSam", "identify_weights"),
        "shared.sam.refiner": ("load_refiner", "Refiner"),
        "shared.placement": ("Frame",),
    },
    "pipelines": {
        "pipelines.microworld.scene": ("make_scene", "Scene"),
        "pipelines.microworld.sets": ("write_sets", "describe_set"),
    },
}
"""What other programs may build on: names by their modules, by package."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to those that are written."""
    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def pages() -> dict[str, str]:
    """Return the Markdown of every page that is made, by its name on the site."""
    return {
        **{name: as_page((HOME / source).read_text(), source) for name, source in FRONT.items()},
        **{f"reference/{name}.md": commands_page(name) for name in COMMANDS},
        "reference/recipes.md": recipes_page(),
        "reference/errors.md": errors_page(),
        **{f"reference/api_{package}.md": api_page(package) for package in API},
    }


def as_page(text: str, source: str) -> str:
    """Return a page of the project's folder as one of the site: its links start from ``docs/``."""
    text = text.replace("](docs/", "](")
    return re.sub(r"\[([^]]+)\]\((?!https?:|#|[\w/]+\.(?:md|jpg|svg))[^)]+\)", r"\1", text)


def commands_page(program: str) -> str:
    """Return the page of all commands of a program, with their options: what ``--help`` says."""
    group: click.Group = import_module(f"sum_factory.{program}.cli").main
    context = click.Context(group, info_name=program, **group.context_settings)
    parts = [f"# {program}\n\n{group.help}\n"]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, "it was listed"
        parts.append(command_section(click.Context(command, info_name=name, parent=context)))
    return "\n".join(parts)


def command_section(context: click.Context) -> str:
    """Return what the page of a program says of one command."""
    usage = context.command.get_usage(context).removeprefix("Usage: ")
    rows = ["| option | what it does |", "|---|---|"]
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            option, words = record
            rows.append(row_of(f"`{option}`", words))
    words = inspect.cleandoc(context.command.help or "").replace("\b\n", "")
    return f"## {context.command_path}\n\n    {usage}\n\n{words}\n\n" + "\n".join(rows) + "\n"


def recipes_page() -> str:
    """Return the page of all keys of recipes."""
    words = (
        "# Recipe keys\n\nA recipe is a YAML file. `trainer fit --recipe FILE --set KEY=VALUE` changes one key; a key "
        "of a part is written with a dot, such as `optimizer.learning_rate`.\n"
    )
    parts = [words]
    for title, settings in (("trainer fit", Recipe), ("trainer refiner", RefinerRecipe), ("labelgen run", RunSettings)):
        parts.append(f"## {title}\n\n{inspect.getdoc(settings)}\n\n{table_of(settings)}")
        parts += [
            f"### {title}: {path} ({part.__name__})\n\n{inspect.getdoc(part)}\n\n{table_of(part)}"
            for path, part in parts_of(settings)
        ]
    return "\n".join(parts)


def row_of(*cells: str) -> str:
    """Return a row of a table; within backticks a bar is no end of a cell."""
    return f"| {' | '.join(cell if cell.startswith('`') else cell.replace('|', '&#124;') for cell in cells)} |"


def table_of(settings: type[Any]) -> str:
    """Return a table of the fields of settings: name, type, default, meaning."""
    hints, docs = get_type_hints(settings), docs_of(settings)
    rows = ["| key | type | default | what it means |", "|---|---|---|---|"]
    for field in fields(settings):
        meaning = docs[field.name].replace("``", "`")
        rows.append(row_of(f"`{field.name}`", f"`{type_of(hints[field.name])}`", default_of(field), meaning))
    return "\n".join(rows) + "\n"


def type_of(hint: Any) -> str:
    """Return a type as people write it."""
    if get_origin(hint) is Annotated:
        return type_of(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_args(hint) and get_origin(hint) in (tuple, dict):
        held = [type_of(part) for part in get_args(hint) if part is not Ellipsis]
        return f"{get_origin(hint).__name__} of {' to '.join(dict.fromkeys(held))}"
    if get_args(hint):
        return " or ".join(dict.fromkeys(type_of(part) for part in get_args(hint)))
    return "nothing" if hint is type(None) else getattr(hint, "__name__", str(hint))


def default_of(field: Any) -> str:
    """Return the default of a field; settings of their own have theirs in their own table."""
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    default = getattr(default, "default", default)  # pydantic's description of a field
    if default is MISSING or type(default).__name__ == "PydanticUndefinedType":
        return "required"
    return "see below" if is_dataclass(default) else f"`{default!r}`"


def parts_of(settings: type[Any], path: str = "") -> Iterator[tuple[str, type[Any]]]:
    """Yield the settings that are fields of settings, however deep, with the key that leads to them."""
    for name, hint in get_type_hints(settings, include_extras=True).items():
        for part in classes_in(hint):
            here = f"{path}{name}"
            yield here, part
            yield from parts_of(part, f"{here}.")


def classes_in(hint: Any) -> Iterator[type[Any]]:
    """Yield the dataclasses that a type is made of."""
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint
    for part in get_args(hint):
        yield from classes_in(part)


def errors_page() -> str:
    """Return the page of errors: all that a user can mend."""
    rows = ["| error | what it says |", "|---|---|"]
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        rows.append(f"| `{name}` | {' '.join((inspect.getdoc(kind) or '').split())} |")
    return (
        "# Errors\n\nAn error that is the input's fault, or the machine's, derives from `SumError`. A command prints "
        "`error: ` and one line that names the file, what was expected and what to do, and exits with status 1; wrong "
        "usage exits with 2. Anything else is a mistake in this software: please report it with the traceback.\n\n"
    ) + "\n".join(rows)


def api_page(package: str) -> str:
    """Return the page of a package's public API, with its example."""
    example = (EXAMPLES / f"{package}_example.py").read_text()
    parts = [f"# sum_factory.{package}\n\n```python\n{example}```\n\nThis example is run by the tests.\n"]
    for module, names in API[package].items():
        parts += [f"::: sum_factory.{module}.{name}\n" for name in names]
    return "\n".join(parts)
