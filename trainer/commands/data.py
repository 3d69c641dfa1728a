"""The commands ``trainer data check``, ``list`` and ``fetch-help``."""

from __future__ import annotations

from pathlib import Path

import click

from sum_factory.shared.errors import InputError


@click.group("data")
def data_command() -> None:
    """Look at human masks before training or evaluating on them."""


@data_command.command("list")
def list_command() -> None:
    """List the public sets whose layouts are known, with published photos and licences.

    A recipe or suite names one by `- {set: NAME, root: FOLDER}`.
    """
    from sum_factory.trainer.data.public.help import in_columns, table_of_sets

    click.echo("\n".join(in_columns(table_of_sets())))


@data_command.command("fetch-help")
@click.argument("target")
@click.option("--root", default="DIR", show_default=True, help="The folder to name in what is said.")
def fetch_help_command(target: str, root: str) -> None:
    """Say where to get a public set, and what to unpack where. TARGET is a set of `trainer data list`, or a recipe or
    suite for all that it names."""
    from sum_factory.trainer.data.check import public_sets_of
    from sum_factory.trainer.data.public.help import help_of

    click.echo("\n".join(help_of(public_sets_of(target), root)))


@data_command.command("check")
@click.argument("target")
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="Fills ${NAME} in TARGET; repeatable.")
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    help="Folder that holds the public set TARGET, or the folders of several; it is looked for in and below it.",
)
@click.option(
    "--sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("contact_sheet.jpg"),
    show_default=True,
    help="The JPEG to draw: some photos of each set with their masks.",
)
@click.option(
    "--photos", type=click.IntRange(1, 50), default=6, show_default=True, help="Photos of each set on the sheet."
)
@click.option("--all", "read_all", is_flag=True, help="Read every photo and every mask, and not only some.")
@click.option("--subset", is_flag=True, help="Public sets may have fewer photos and masks than are published.")
def check_command(
    target: str,
    variables: tuple[str, ...],
    root: Path | None,
    sheet: Path,
    photos: int,
    read_all: bool,
    subset: bool,
) -> None:
    """Say what the sets of TARGET hold, and draw some of it. TARGET is a recipe, a suite, a folder, or with --root a
    public set of `trainer data list`.

    Of a recipe or suite, those variables have to be given that its sets need. Of a folder, it is guessed which sets it
    holds. A public set is compared with what is published of it. The exit status is 1 if a set cannot be used, or has
    other counts of photos or masks than are published.
    """
    from sum_factory.shared.store.storage import Storage
    from sum_factory.trainer.data.check import as_yaml, check_set, sets_of
    from sum_factory.trainer.data.contact_sheet import contact_sheet, jpeg
    from sum_factory.trainer.settings import parse_variables

    sets = sets_of(target, parse_variables(variables), root)
    checked = []
    for settings in sets:
        found = check_set(settings, photos, read_all, subset)
        checked.append(found)
        click.echo("\n  ".join([found.name, *found.lines]))
        if root is not None or Path(target).is_dir():
            click.echo(f"  in a recipe: - {as_yaml(settings)}")
    rows = [(found.name, found.samples) for found in checked if found.samples]
    if rows:
        Storage(str(sheet.absolute().parent)).write(sheet.name, jpeg(contact_sheet(rows)))
        click.echo(f"drew {sheet}")
    wrong = [found.name for found in checked if not found.is_sound]
    other = [found.name for found in checked if found.is_sound and not found.is_as_published]
    told = [f"{len(wrong)} of {len(sets)} sets cannot be used as they are: {', '.join(wrong)}"] if wrong else []
    told += [f"{len(other)} of {len(sets)} sets are not what is published: {', '.join(other)}"] if other else []
    if told:
        raise InputError("; ".join(told))
