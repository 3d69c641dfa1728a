"""The main job on embedded defaults: photos and scenes in; shards, SUM, and pages of pictures out.

python -m pipelines.quickstart --out out/demo            # four minutes on two cores
python -m pipelines.quickstart --full --out out/demo     # longer, with a refiner of its own
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import click

from sum_factory.pipelines.demo.plan import DemoPlan, full_plan
from sum_factory.shared.cores import rest_while_waiting
from sum_factory.shared.errors import SettingsDifferError, SumError
from sum_factory.shared.precision import PrecisionSetting, precision_option


@click.command()
@click.option("--full", is_flag=True, help="The long demo: more scenes, more steps, a refiner of its own.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="[default: out/demo, with --full out/demo-full]",
)
@click.option("--workers", default=0, show_default=True, help="Ray actors; 0 labels in this process.")
@precision_option(DemoPlan.precision, "What SUM is trained in: auto is bf16 where the device has it, else fp32.")
@click.option("--set-refiner", multiple=True, help="key=value for the recipe of the refiner (--full); repeatable.")
@click.option("--set-fit", multiple=True, help="key=value for the recipe of SUM; repeatable.")
def main(
    full: bool,
    out: Path | None,
    workers: int,
    precision: PrecisionSetting,
    set_refiner: tuple[str, ...],
    set_fit: tuple[str, ...],
) -> None:
    """Label photos and scenes with the tiny SAM, train SUM, and show both."""
    started = time.perf_counter()
    rest_while_waiting()
    from sum_factory.pipelines.demo.run import demo

    plan = full_plan(out or Path("out/demo-full")) if full else DemoPlan(out or Path("out/demo"))
    plan = replace(plan, workers=workers, precision=precision, refiner_changes=set_refiner, fit_changes=set_fit)
    try:
        demo(plan, started)
    except SettingsDifferError as error:
        raise click.ClickException(
            f"{error}\n{plan.out} was made with other settings, or by another version: remove that folder, or choose "
            "another one by --out (make demo OUT=FOLDER)"
        ) from error
    except SumError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
