"""Run the ablation on photos: one command, hours in the background, safe to stop and repeat.

python -m pipelines.photos.ablation --data DIR                          # all of it into runs/photos_ablation
python -m pipelines.photos.ablation --data DIR --report-only --docs docs
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sum_factory.shared.cores import usable_cores
from sum_factory.shared.errors import SumError
from sum_factory.shared.sam.settings import PACKAGED


@click.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder with a folder a set: images, masks or instances.json, meta.json, train.txt, val.txt.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/photos_ablation"),
    show_default=True,
    help="Folder of all runs.",
)
@click.option("--sam", default=PACKAGED, show_default=True, help="The frozen model, which labels the photos.")
@click.option(
    "--fine", help="Sets whose masks are the human ones, with commas  [default: ecssd,ecssd_rest,horses_rest]"
)
@click.option("--processes", type=int, default=min(2, usable_cores()), show_default=True, help="Runs at a time.")
@click.option("--docs", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of photos.md.")
@click.option("--report-only", is_flag=True, help="Train nothing; write down what is there.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Turn anything of the plan; repeatable.")
def main(
    data: Path,
    out: Path,
    sam: str,
    fine: str | None,
    processes: int,
    docs: Path | None,
    report_only: bool,
    changes: tuple[str, ...],
) -> None:
    """Run the ablation on real photos."""
    from sum_factory.pipelines.photos.ablation.plan import PhotosPlan
    from sum_factory.pipelines.photos.ablation.study import run_photos
    from sum_factory.trainer.settings import change_settings

    try:
        named: dict[str, Any] = {} if fine is None else {"fine": tuple(fine.split(","))}
        plan = change_settings(PhotosPlan(out, data, sam=sam, **named), changes, "plan")
        click.echo(run_photos(plan, processes, docs, report_only))
    except SumError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
