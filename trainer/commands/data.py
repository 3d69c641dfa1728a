"""The command ``trainer data check``."""

from __future__ import annotations

from pathlib import Path

import click

from sum_factory.shared.errors import InputError


@click.group("data")
def data_command() -> None:
    """Look at human masks before training or evaluating on them."""


@data_command.command("check")
@click.argument("target")
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="Fills ${NAME} in TARGET; repeatable.")
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
def check_command(target: str, variables: tuple[str, ...], sheet: Path, photos: int, read_all: bool) -> None:
    """Say what the sets of TARGET hold, and draw some of it. TARGET is a recipe, a suite or a folder.

    Of a recipe or suite, those variables have to be given that its sets need. Of a folder, it is guessed which sets it
    holds. The exit status is 1 if a set cannot be used.
    """
    from sum_factory.shared.store.storage import Storage
    from sum_factory.trainer.data.check import as_yaml, check_set, sets_of
    from sum_factory.trainer.data.contact_sheet import contact_sheet, jpeg
    from sum_factory.trainer.settings import parse_variables

    sets = sets_of(target, parse_variables(variables))
    checked = []
    for settings in sets:
        found = check_set(settings, photos, read_all)
        checked.append(found)
        click.echo("\n  ".join([found.name, *found.lines]))
        if Path(target).is_dir():
            click.echo(f"  in a recipe: - {as_yaml(settings)}")
    rows = [(found.name, found.samples) for found in checked if found.samples]
    if rows:
        Storage(str(sheet.absolute().parent)).write(sheet.name, jpeg(contact_sheet(rows)))
        click.echo(f"drew {sheet}")
    wrong = [found.name for found in checked if not found.is_sound]
    if wrong:
        raise InputError(f"{len(wrong)} of {len(sets)} sets cannot be used as they are: {', '.join(wrong)}")
