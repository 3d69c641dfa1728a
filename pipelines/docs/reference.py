"""The pages of the site that nobody writes: commands, recipe keys, errors and the Python API, from the code itself.

A hook of MkDocs (``mkdocs.yml``): ``make docs`` builds the site, and fails at any warning, such as a dead link.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import click

from sum_factory.pipelines.docs.errors import errors_page
from sum_factory.pipelines.docs.public_sets import public_sets_page
from sum_factory.pipelines.docs.troubleshooting import troubleshooting_page
from sum_factory.shared.field_docs import docs_of
from sum_factory.trainer.evaluation.suites import Suite
from sum_factory.trainer.methods import METHODS
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.refiner import RefinerRecipe
from sum_factory.trainer.settings import built_in_names
from sum_factory.trainer.variants import variants

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

HOME = Path(__file__).resolve().parents[2]
EXAMPLES, RECIPES = HOME / "docs/examples", HOME / "trainer/recipes"
NOTEBOOKS = HOME / "docs/notebooks"
FRONT = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages that stand in the folder of the project, by their names on the site."""
COMMANDS = ("labelgen", "trainer")
KEYS: Mapping[str, type[Any]] = {
    "trainer fit": Recipe,
    "trainer refiner": RefinerRecipe,
    "trainer evaluate": Suite,
}
"""What is read from YAML, by the command that reads it."""
TYPES = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", Path: "path"}
LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
API: Mapping[str, Mapping[str, Sequence[str]]] = {
    "labelgen": {
        "labelgen.in_memory": ("label",),
        "shared.labelled_photo": ("LabelledPhoto",),
        "shared.shards.selection.opened": ("open_shards",),
        "labelgen.run": ("run", "add_uncertainty"),
        "labelgen.run_settings": ("RunSettings", "UncertaintyRunSettings"),
        "labelgen.importing.run": ("import_masks", "ImportSummary"),
        "labelgen.importing.settings": ("ImportSettings",),
        "labelgen.settings": ("UncertaintySettings",),
        "labelgen.progress": ("RunSummary",),
        "labelgen.sets.status": ("status_of",),
        "labelgen.sets.select": ("select", "Filter"),
        "labelgen.sets.merge": ("merge",),
        "labelgen.sets.convert": ("convert",),
        "labelgen.sets.export": ("export", "ExportSummary"),
        "labelgen.sets.export_settings": ("ExportSettings",),
        "labelgen.sets.repair": ("diagnose", "take_back"),
        "labelgen.page.write": ("write_page",),
    },
    "trainer": {
        "trainer.recipe": ("Recipe",),
        "trainer.training": ("fit", "FitSummary"),
        "trainer.launch": ("fit_on_ranks",),
        "trainer.evaluation.in_memory": ("evaluate", "Scores"),
        "trainer.predict": ("load_model", "Predictor", "Prediction"),
        "trainer.data.torch_datasets": ("ShardDataset", "HumanDataset", "ShuffledDataset", "Item"),
        "trainer.settings": ("read_settings", "built_in_names"),
        "trainer.refiner": ("train_refiner", "RefinerRecipe"),
        "trainer.methods": ("Method",),
        "trainer.losses": ("focal_loss", "dice_loss", "mask_loss", "LossSettings"),
        "trainer.data.sets": (
            "open_set",
            "FolderPairsSettings",
            "CocoSettings",
            "LabelMapsSettings",
            "PascalPartSettings",
            "JoinedSettings",
            "PublicSettings",
        ),
        "trainer.evaluation.suites": ("read_suite", "Suite"),
        "trainer.evaluation.run": ("load_weights", "evaluate_sets"),
        "trainer.evaluation.settings": ("Protocol",),
        "trainer.evaluation.metrics": ("boundary_iou",),
        "trainer.evaluation.automatic": ("compare_automatic", "AutomaticScores"),
        "trainer.evaluation.gallery.page": ("write_gallery", "GallerySettings"),
        "trainer.dry_run": ("rehearse", "Rehearsal"),
        "trainer.export": ("export_plain_sam",),
        "trainer.export_hf": ("export_hf",),
        "trainer.merge": ("merge_weights",),
        "trainer.export_onnx": ("export_onnx", "Exported"),
        "trainer.run.overview": ("find_runs", "RunState", "Skipped"),
    },
    "shared": {
        "shared.shards.shard_set": ("ShardSet",),
        "shared.shards.verify": ("verify", "UnitCheck"),
        "shared.sam.checkpoint": ("load_sam", "LoadedSam", "identify_weights"),
        "shared.sam.runtime": ("Runtime",),
        "shared.sam.refiner": ("load_refiner", "Refiner"),
        "shared.automask.settings": ("AutomaskSettings", "settings_for"),
        "shared.automask.automask": ("LabelGenerator", "GeneratedMasks"),
        "shared.placement": ("Frame",),
        "shared.masks": ("iou", "ious", "box_of"),
        "shared.errors": ("SumError",),
    },
    "pipelines": {
        "pipelines.microworld.scene": ("make_scene", "Scene"),
        "pipelines.microworld.sets": ("write_sets", "describe_set"),
    },
}
"""What other programs may build on: names by their modules, by package."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to those that are written."""
    from mkdocs.structure.files import File  # the pages themselves can be made, and are tested, without MkDocs

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def pages() -> dict[str, str]:
    """Return the Markdown of every page that is made, by its name on the site."""
    return {
        **{name: as_page((HOME / file).read_text(), file) for name, file in FRONT.items()},
        **{f"reference/{name}.md": commands_page(name) for name in COMMANDS},
        "reference/recipes.md": recipes_page(),
        "reference/errors.md": errors_page(),
        "troubleshooting.md": troubleshooting_page(),
        **{f"notebooks/{path.stem}.md": notebook_page(path.read_text()) for path in sorted(NOTEBOOKS.glob("*.py"))},
        "reference/public_sets.md": public_sets_page(),
        **{f"reference/api_{package}.md": api_page(package) for package in API},
    }


def as_page(text: str, file: str) -> str:
    """Return ``file``, a page of the project's folder, as one of the site: its links start from ``docs/``."""
    text = text.replace("](docs/", "](")
    for page, name in FRONT.items():
        text = text.replace(f"]({name})", f"]({page})")
    return re.sub(r"\[([^]]+)\]\((?!https?:|#|[\w/]+\.(?:md|jpg|svg))[^)]+\)", r"\1", text)


def commands_page(program: str) -> str:
    """Return the page of all commands of a program, with their options: what ``--help`` says."""
    group: click.Group = import_module(f"sum_factory.{program}.cli").main
    context = click.Context(group, info_name=program, **group.context_settings)
    parts = [f"# {program}\n\n{group.help}\n"]
    parts += [command_section(command) for command in commands_of(group, context)]
    return "\n".join(parts)


def commands_of(group: click.Group, context: click.Context) -> Iterator[click.Context]:
    """Yield the context of each command of a group, also of those that are in a group of their own."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, "it was listed"
        inner = click.Context(command, info_name=name, parent=context, **command.context_settings)
        if isinstance(command, click.Group):
            yield from commands_of(command, inner)
        else:
            yield inner


def command_section(context: click.Context) -> str:
    """Return what the page of a program says of one command."""
    usage = context.command.get_usage(context).removeprefix("Usage: ")
    rows = ["| option | what it does |", "|---|---|"]
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1]:  # an argument has no words of its own: those above name it
            option, words = record
            rows.append(row_of(f"`{option}`", words))
    words = inspect.cleandoc(context.command.help or "").replace("\b\n", "")
    return f"## {context.command_path}\n\n    {usage}\n\n{words}\n\n" + "\n".join(rows) + "\n"


def recipes_page() -> str:
    """Return the page of all keys of recipes and suites, and of those that ship here."""
    parts = [
        "# Recipe keys\n\nA recipe is a YAML file; so is a suite. `--set KEY=VALUE` changes one key of a recipe for "
        "one run. What is inside another key is written with a dot, such as `optimizer.learning_rate`; a number is an "
        "index in a list, such as `human.0.limit`. A key that is not listed here, or a value of another type, is an "
        "error.\n"
    ]
    parts += [f"## {command}\n\n{described(settings)}" for command, settings in KEYS.items()]
    parts.append("## What is inside these keys\n")
    for part, uses in uses_of_parts().items():
        parts.append(f"### {part.__name__}\n\nThe value of {', and of '.join(uses)}.\n\n{described(part)}")
    parts.append("## Settings of variants\n\nWhat `variant_settings` holds, for the variants that have settings.\n")
    parts += [
        f"### {variant.settings.__name__}\n\nOf the variant `{variant.name}`.\n\n{described(variant.settings)}"
        for variant in variants().values()
        if fields(variant.settings)
    ]
    parts.append("## Settings of methods\n\nWhat `method_settings` holds, for the methods that have settings.\n")
    for settings in dict.fromkeys(method.settings for method in METHODS.values()):
        named = ", ".join(f"`{name}`" for name, method in METHODS.items() if method.settings is settings)
        if fields(settings):
            parts.append(f"### {settings.__name__}\n\nOf {named}.\n\n{described(settings)}")
    parts.append("## Recipes and suites that ship here\n\nGive their names to `--recipe` and `--suite`.\n")
    parts += [f"### {name}\n\n```yaml\n{(RECIPES / f'{name}.yaml').read_text()}```\n" for name in built_in_names()]
    return "\n".join(parts)


def uses_of_parts() -> dict[type[Any], list[str]]:
    """Return the settings that are inside recipes and suites, each with the keys that hold it."""
    uses: dict[type[Any], list[str]] = {}
    for command, settings in KEYS.items():
        for key, part in parts_of(settings):
            uses.setdefault(part, []).append(f"`{key}` for `{command}`")
    return uses


def described(settings: type[Any]) -> str:
    """Return what is said of settings on the page of recipes: their docstring, and their keys with links to others."""
    return f"{words_of(settings)}\n\n{table_of(settings, linked=True)}"


def words_of(documented: Any) -> str:
    """Return the docstring of what has one, as Markdown."""
    return (inspect.getdoc(documented) or "").replace("``", "`")


def row_of(*cells: str) -> str:
    """Return a row of a table; within backticks a bar is no end of a cell."""
    return f"| {' | '.join(cell if cell.startswith('`') else cell.replace('|', '&#124;') for cell in cells)} |"


def table_of(settings: type[Any], linked: bool = False) -> str:
    """Return a table of the fields of settings: name, type, default, meaning."""
    hints, docs = get_type_hints(settings, include_extras=True), docs_of(settings)
    rows = ["| key | type | default | what it means |", "|---|---|---|---|"]
    for field in fields(settings):
        meaning = docs[field.name].replace("``", "`")
        kind = type_of(hints[field.name], linked) + limits_of(field.default)
        rows.append(row_of(f"`{field.name}`", kind, default_of(field), meaning))
    return "\n".join(rows) + "\n"


def type_of(hint: Any, linked: bool = False) -> str:
    """Return a type in words; ``linked`` to the section of the page that describes it, if there is one."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return type_of(parts[0], linked)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in parts)
    names = list(dict.fromkeys(type_of(part, linked) for part in parts if part not in (Ellipsis, type(None))))
    if origin is tuple:
        return f"list of {' or '.join(names)}"
    if origin is dict:
        return f"table of {' to '.join(names)}"
    if is_dataclass(hint) and isinstance(hint, type):
        return f"[`{hint.__name__}`](#{hint.__name__.lower()})" if linked else f"`{hint.__name__}`"
    return " or ".join(names) or TYPES.get(hint, getattr(hint, "__name__", str(hint)))


def limits_of(described: object) -> str:
    """Return the limits of a field that pydantic checks."""
    limits = [
        f"{words} {getattr(limit, sign):g}"
        for limit in getattr(described, "metadata", ())
        for sign, words in LIMITS.items()
        if hasattr(limit, sign)
    ]
    return f", {' and '.join(limits)}" if limits else ""


def default_of(field: Field[Any]) -> str:
    """Return the default of a field as YAML; settings have those of their fields in a table of their own."""
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    default = getattr(default, "default", default)  # pydantic's description of a field
    if default is MISSING or type(default).__name__ == "PydanticUndefinedType":
        return "required"
    if is_dataclass(default):
        return "its own"
    if default is None:
        return "none"
    return f"`{default or repr(default)}`" if isinstance(default, str) else f"`{json.dumps(default)}`"


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


def notebook_page(script: str) -> str:
    """Return the page of a script with cells: its comments between these as text, all else as code."""
    parts, code = [], ""
    for line in [*script.splitlines(), "# "]:
        is_text = line.startswith("# ") and (not code or line == "# " or code.endswith("\n\n"))
        if line == "# %%" or is_text:
            if code.strip():
                parts.append(f"\n```python\n{code.strip()}\n```\n")
            code = ""
            parts.append(line.removeprefix("# ") if is_text and line != "# %%" else "")
        elif line == "#":
            parts.append("")
        else:
            code += f"{line}\n"
    return "\n".join(parts) + "\n"


def api_page(package: str) -> str:
    """Return the page of a package's public API, with its example."""
    example = (EXAMPLES / f"{package}_example.py").read_text()
    parts = [f"# sum_factory.{package}\n\n```python\n{example}```\n\nThis example is run by the tests.\n"]
    for module, names in API[package].items():
        parts += [api_section(f"sum_factory.{module}", name) for name in names]
    return "\n".join(parts)


def api_section(module: str, name: str) -> str:
    """Return what the page of a package says of one name; the fields of settings, each with words, are a table."""
    value = getattr(import_module(module), name)
    if not (is_dataclass(value) and isinstance(value, type) and all(docs_of(value).values())):
        return f"::: {module}.{name}\n"
    methods = [
        f"::: {module}.{name}.{method}\n    options: {{heading_level: 3, show_root_full_path: false}}\n"
        for method, each in vars(value).items()
        if not method.startswith("_") and isinstance(each, FunctionType | property | classmethod)
    ]
    return "\n".join([f"::: {module}.{name}\n    options: {{members: false}}\n", table_of(value), *methods])
