"""The command ``trainer runs``."""

from __future__ import annotations

from pathlib import Path

import click

from sum_factory.shared.errors import InputError


@click.command("runs")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs in place of a table.")
def runs_command(folder: Path, as_json: bool) -> None:
    """Tell of the runs in FOLDER and below: method, variant, data, steps, loss, scores of validations, and when; and
    below that the settings in which they differ.

    Reads no weights. Folders that hold no run, or a damaged one, are named on standard error, and the exit status is 1.
    """
    from sum_factory.shared.names import printable
    from sum_factory.trainer.run import overview

    runs, skipped = overview.find_runs(folder)
    if as_json:
        click.echo(overview.as_json(runs, skipped))
    elif runs:
        click.echo(overview.as_table(runs))
    for each in skipped:
        click.echo(f"{printable(each.folder)}: {each.reason}", err=True)
    if skipped:
        raise InputError(f"{folder}: {len(runs)} runs, and {len(skipped)} folders were skipped")
