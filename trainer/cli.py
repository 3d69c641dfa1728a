"""The ``trainer`` command."""

from __future__ import annotations

import click


@click.group()
@click.version_option(package_name="sum-factory")
def main() -> None:
    """Fine-tune SUM on shards of pseudo-labels and human masks.

    Still missing here: `refiner`, `fit`, `evaluate` and `predict`. The shards that `labelgen run` makes now are the
    input that they will read.
    """


if __name__ == "__main__":
    main()
