"""What the command lines share: errors that are the user's to mend are printed plainly."""

from __future__ import annotations

from typing import Any

import click

from shared.errors import SumError

FAILED = 1


class Commands(click.Group):
    """A group whose commands print a ``SumError`` plainly and exit with status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except SumError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(FAILED)
