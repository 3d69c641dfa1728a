"""The ``labelgen`` command: where each of its commands is."""

from __future__ import annotations

import sys

import click

from sum_factory.shared.commands import Commands

MODULES = {
    "run": "sum_factory.labelgen.commands.label:run_command",
    "import": "sum_factory.labelgen.commands.label:import_command",
    "uncertainty": "sum_factory.labelgen.commands.label:uncertainty_command",
    "status": "sum_factory.labelgen.commands.check:status_command",
    "verify": "sum_factory.labelgen.commands.check:verify_command",
    "repair": "sum_factory.labelgen.commands.check:repair_command",
    "gc": "sum_factory.labelgen.commands.check:gc_command",
    "select": "sum_factory.labelgen.commands.derive:select_command",
    "merge": "sum_factory.labelgen.commands.derive:merge_command",
    "convert": "sum_factory.labelgen.commands.derive:convert_command",
    "export": "sum_factory.labelgen.commands.show:export_command",
    "view": "sum_factory.labelgen.commands.show:view_command",
}


@click.group(cls=Commands, modules=MODULES, context_settings={"show_default": True})
@click.version_option(package_name="sum-factory")
def main() -> None:
    """Label photos with a frozen SAM, once; train from the labels as often as you like."""


if __name__ == "__main__":
    sys.exit(main())
