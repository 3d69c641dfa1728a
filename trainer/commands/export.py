"""The command ``trainer export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import click

from sum_factory.shared.sam.settings import TASKS, WEIGHTS_HELP
from sum_factory.shared.store.local_files import is_stream
from sum_factory.trainer.commands.train import below_option, hq_option

if TYPE_CHECKING:
    from sum_factory.shared.sam.hq import HqOutput

ModelFormat = Literal["sam", "safetensors", "hf", "onnx"]


@click.command("export")
@click.option("--weights", required=True, help=f"A SUM checkpoint or SAM weights: {WEIGHTS_HELP}.")
@click.option(
    "--format",
    type=click.Choice(get_args(ModelFormat)),
    default="sam",
    show_default=True,
    help="What is to load it: segment_anything (sam, a .pth, or safetensors), SamModel of transformers (hf), or "
    "onnxruntime (onnx).",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The file to write; with hf and onnx, a folder."
)
@click.option(
    "--task",
    type=click.Choice(TASKS),
    default=TASKS[0],
    show_default=True,
    help="The task whose vector becomes part of the weights: plain SAM has no task prompt.",
)
@below_option
@hq_option
def export_command(
    weights: str, format: ModelFormat, out: Path, task: str, sam: str | None, hq_output: HqOutput
) -> None:
    """Write a model for other software, for one task, with a card that says what it was made of.

    What transformers and onnxruntime make of it is compared with the model here before it counts. HQ-SAM is written as
    its own software loads it; onnx takes any variant.
    """
    if hq_output != "hq" and format != "onnx":
        raise click.BadParameter("is for --format onnx: weights are the same for either", param_hint="--hq-output")
    match format:
        case "hf":
            from sum_factory.trainer.export_hf import TOLERANCE, export_hf

            difference = export_hf(weights, out, task, sam)
            click.echo(f"wrote {out}: {_equal('SamModel', difference, TOLERANCE)}")
        case "onnx":
            from sum_factory.trainer.export_onnx import TOLERANCE, export_onnx

            exported = export_onnx(weights, _folder(out), task, sam, hq_output)
            files = ", ".join(map(str, exported.files))
            click.echo(f"wrote {files}: {_equal('onnxruntime', exported.difference, TOLERANCE)}")
        case _:
            from sum_factory.trainer.export import export_plain_sam

            if out.is_dir():
                raise click.BadParameter(f"{out} is a folder; give a file, or --format hf or onnx", param_hint="--out")
            export_plain_sam(weights, out, task, sam, format)
            click.echo(f"wrote {out}", err=is_stream(out))


def _equal(where: str, difference: float, allowed: float) -> str:
    """Say that outputs are equal there."""
    return (
        f"in {where} its outputs are equal to torch's to {difference:.1e} of the largest value ({allowed:g} is allowed)"
    )


def _folder(out: Path) -> Path:
    if out.exists() and not out.is_dir():
        raise click.BadParameter(f"{out} is there, and is no folder", param_hint="--out")
    return out
