"""The ``trainer`` command: where each of its commands is."""

from __future__ import annotations

import sys

import click

from sum_factory.shared.commands import Commands

MODULES = {
    "data": "sum_factory.trainer.commands.data:data_command",
    "refiner": "sum_factory.trainer.commands.train:refiner_command",
    "fit": "sum_factory.trainer.commands.train:fit_command",
    "merge": "sum_factory.trainer.commands.merge:merge_command",
    "runs": "sum_factory.trainer.commands.runs:runs_command",
    "export": "sum_factory.trainer.commands.export:export_command",
    "evaluate": "sum_factory.trainer.commands.evaluate:evaluate_command",
    "gallery": "sum_factory.trainer.commands.gallery:gallery_command",
    "predict": "sum_factory.trainer.commands.predict:predict_command",
}


@click.group(cls=Commands, modules=MODULES, context_settings={"show_default": True})
@click.version_option(package_name="sum-factory")
def main() -> None:
    """Fine-tune SUM on shards of pseudo-labels and human masks."""


if __name__ == "__main__":
    sys.exit(main())
