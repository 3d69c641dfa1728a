"""What the command lines share: commands that are loaded when used, options, and errors that are the user's to mend."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from sum_factory.shared.cores import rest_while_waiting
from sum_factory.shared.credentials import concealed
from sum_factory.shared.errors import SumError
from sum_factory.shared.names import printable_lines

if TYPE_CHECKING:
    from sum_factory.shared.relocation import Relocation

FAILED = 1


def _relocation(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> Relocation:
    from sum_factory.shared.relocation import Relocation  # brings fsspec, which no help text needs

    return Relocation.parse(texts)


photos_from_option = click.option(
    "--photos-from",
    multiple=True,
    metavar="OLD=NEW",
    callback=_relocation,
    help="Where photos lie now that were labelled elsewhere: all that is recorded below OLD is below NEW; repeatable.",
)

threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=None,
    help="Cores to use  [default: those that this process may use]",
)


class Commands(click.Group):
    """A group whose commands print a ``SumError`` plainly and exit with status 1.

    ``modules`` says where each command is, as ``module:name``; the module is imported when the command is asked for. To
    show a page of help these modules are all that is imported, so they import what works inside their commands.
    """

    def __init__(self, *arguments: Any, modules: Mapping[str, str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return sorted(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of this name, or None if there is none."""
        if cmd_name not in self.modules:
            return None
        module, _, name = self.modules[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command line; torch, if it is not loaded yet, will have threads that rest while they wait."""
        rest_while_waiting()
        sys.excepthook = _tell_without_credentials
        return super().main(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except SumError as error:
            click.echo(f"error: {printable_lines(str(error))}", err=True)
            ctx.exit(FAILED)


def _tell_without_credentials(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that nobody expected, with where it came from: libraries name the URLs that they read."""
    lines = "".join(traceback.format_exception(kind, error, trace))
    click.echo(printable_lines(concealed(lines)), err=True, nl=False)
