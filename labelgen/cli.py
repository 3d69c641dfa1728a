"""The ``labelgen`` command: where each of its commands is."""

from __future__ import annotations

import sys

import click

from shared.commands import Commands

PLACES = {
    "run": "labelgen.commands.label:run_command",
    "uncertainty": "labelgen.commands.label:uncertainty_command",
    "status": "labelgen.commands.check:status_command",
    "verify": "labelgen.commands.check:verify_command",
    "repair": "labelgen.commands.check:repair_command",
    "gc": "labelgen.commands.check:gc_command",
    "select": "labelgen.commands.derive:select_command",
    "merge": "labelgen.commands.derive:merge_command",
    "migrate": "labelgen.commands.derive:migrate_command",
    "export": "labelgen.commands.show:export_command",
    "view": "labelgen.commands.show:view_command",
}


@click.group(cls=Commands, places=PLACES, context_settings={"show_default": True})
@click.version_option(package_name="sum-factory")
def main() -> None:
    """Label photos with a frozen SAM, once; train from the labels as often as you like."""


if __name__ == "__main__":
    sys.exit(main())
