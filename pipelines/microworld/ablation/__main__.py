"""Run the ablation: one command, hours in the background, safe to stop and repeat.

python -m pipelines.microworld.ablation                               # all of it into runs/ablation
python -m pipelines.microworld.ablation --report-only --docs docs     # put what is there so far into the page
python -m pipelines.microworld.ablation --choose                      # the runs that settings were chosen by
python -m pipelines.microworld.ablation --out runs/few --set human=300        # in another world
python -m pipelines.microworld.ablation --quick --out out/ablation    # SAM, vanilla and SUM in small
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sum_factory.shared.cores import usable_cores
from sum_factory.shared.errors import SumError
from sum_factory.shared.precision import PrecisionSetting, precision_option
from sum_factory.shared.progress import Stage


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/ablation"),
    show_default=True,
    help="Folder of all runs.",
)
@click.option("--processes", type=int, default=min(2, usable_cores()), show_default=True, help="Runs at a time.")
@click.option(
    "--docs", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of ablation_tables.md."
)
@click.option("--report-only", is_flag=True, help="Train nothing; write down what is there.")
@click.option("--choose", is_flag=True, help="Do the runs that settings are chosen by, on scenes of validation.")
@click.option("--quick", is_flag=True, help="A small ablation, which fails unless training beats SAM.")
@precision_option(None, "What models are trained in: auto (the default), bf16 where the device has it, or fp32, bf16.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Turn the world, or anything of the plan.")
def main(
    out: Path,
    processes: int,
    docs: Path | None,
    report_only: bool,
    choose: bool,
    quick: bool,
    precision: PrecisionSetting | None,
    changes: tuple[str, ...],
) -> None:
    """Run the paper's ablation in the micro-world."""
    from sum_factory.pipelines.microworld.ablation.cells import choices
    from sum_factory.pipelines.microworld.ablation.prepare import prepare
    from sum_factory.pipelines.microworld.ablation.quick import judge_quick
    from sum_factory.pipelines.microworld.ablation.report import choices_table
    from sum_factory.pipelines.microworld.ablation.results import Results
    from sum_factory.pipelines.microworld.ablation.settings import Plan, quick_plan
    from sum_factory.pipelines.microworld.ablation.study import run_ablation, write_results
    from sum_factory.pipelines.microworld.ablation.work import run_cells
    from sum_factory.trainer.settings import change_settings

    try:
        chosen = () if precision is None else (f"precision={precision}",)
        plan = change_settings(quick_plan(out) if quick else Plan(out), (*changes, *chosen), "plan")
        if choose:
            prepare(plan, processes, click.echo)
            run_cells(plan, choices(plan), processes)
            click.echo(choices_table(Results.read(plan, choices(plan))))
        elif report_only:
            write_results(plan, out / "refiner" / "refiner.safetensors", docs)
        else:
            results = run_ablation(plan, processes, docs)
            if quick:
                with Stage("comparing methods"):
                    text, passed = judge_quick(results)
                click.echo(text)
                sys.exit(0 if passed else 1)
    except SumError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
