"""Options that several commands of ``labelgen`` have, or that follow from a dataclass of settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import get_args

import click

from sum_factory.labelgen.settings import SILENT_SECONDS, STUCK_SECONDS, WAIT_SECONDS, Missing
from sum_factory.shared.automask.settings import DEFAULTS_OF_MODELS, AutomaskSettings
from sum_factory.shared.commands import threads_option
from sum_factory.shared.field_docs import docs_of
from sum_factory.shared.sam.settings import PACKAGED, WEIGHTS_HELP
from sum_factory.shared.shards.dataset import ENCODINGS, TAR

GRACE_SECONDS = 25.0
"""Kubernetes and spot machines give thirty."""

shards_option = click.option("--shards", required=True, help="Folder of the shard set: a path or an fsspec URL.")
extend_option = click.option("--extend", is_flag=True, help="Add photos that are new to the shard set that is there.")
encoding_option = click.option(
    "--encoding",
    type=click.Choice(ENCODINGS),
    default=TAR,
    help="How layers lie on disk: WebDataset tars hold masks in fewer bytes, sharded Zarr v3 arrays are read faster.",
)
out_option = click.option("--out", required=True, help="Folder of the selection: a path or an fsspec URL.")


def automask_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option for every field of ``AutomaskSettings``; one that is not given is None."""
    meaning = docs_of(AutomaskSettings)
    for setting in reversed(fields(AutomaskSettings)):
        own = [
            f"{model}: {values[setting.name]:g}"
            for model, values in DEFAULTS_OF_MODELS.items()
            if setting.name in values
        ]
        words = f"{meaning[setting.name]}  [default: {', '.join([f'{setting.default:g}', *own])}]"
        name = f"--{setting.name.replace('_', '-')}"
        command = click.option(name, type=_option_type(setting.default), default=None, help=words)(command)
    return command


def _option_type(default: int | float) -> click.IntRange | click.types.FloatParamType:
    """Return the type of a setting: a count may be 0 only if it is so by default."""
    return click.IntRange(min=min(default, 1)) if isinstance(default, int) else click.FLOAT


MODEL_TYPES = "Refuse weights of another type: vit_micro, vit_b, vit_l or vit_h  [default: read off the weights]"
SAM_OPTIONS = (
    click.option("--sam", default=PACKAGED, help=f"SAM weights: {WEIGHTS_HELP}."),
    click.option("--model-type", default=None, help=MODEL_TYPES),
)
PHOTO_OPTIONS = (
    click.option(
        "--wait-for-photos",
        type=click.FloatRange(min=0),
        default=WAIT_SECONDS,
        help="Seconds to wait, in all, for a disk, folder or store of photos that is gone; then the run ends.",
    ),
    click.option(
        "--missing-photos",
        type=click.Choice(get_args(Missing)),
        default="wait",
        help="What to do about photos that are gone with all beside them: wait for them, or record them as gone.",
    ),
    click.option(
        "--retry-errors",
        metavar="all|TEXT",
        default=None,
        help="Make units anew that lack photos because of an error: all, or those of which an error says TEXT.",
    ),
)
"""What is done about photos that cannot be read."""
END_OPTIONS = (
    click.option(
        "--max-errors",
        type=click.IntRange(min=0),
        default=None,
        help="Stop when more images than this could not be labelled  [default: go on, whatever happens]",
    ),
    click.option(
        "--grace",
        type=click.FloatRange(min=0),
        default=GRACE_SECONDS,
        help="Seconds in which units in work may be finished after SIGINT (Ctrl-C) or SIGTERM.",
    ),
    click.option(
        "--log",
        type=click.Path(dir_okay=False),
        default=None,
        help="File to which one JSON line is appended for everything that happens.",
    ),
)
WORK_OPTIONS = (
    *SAM_OPTIONS,
    click.option(
        "--workers", type=click.IntRange(min=0), default=0, help="Ray actors; 0 works in this process, without Ray."
    ),
    click.option(
        "--ray-address",
        default=None,
        help='HOST:PORT of a running Ray cluster, or "auto" for that of this machine.',
    ),
    click.option(
        "--gpus-per-worker",
        type=click.FloatRange(min=0),
        default=0.0,
        help="GPUs of each worker: 1, or 0.5 for two workers per GPU.",
    ),
    click.option(
        "--cpus-per-worker",
        type=click.FloatRange(min=0),
        default=None,
        help="Photos that a worker labels at once, one a CPU core; less than 1 shares a core  "
        "[default: the cores of this machine divided by --workers; 1 with --ray-address]",
    ),
    threads_option,
    *PHOTO_OPTIONS,
    click.option(
        "--silent-after",
        type=click.FloatRange(min=30),
        default=SILENT_SECONDS,
        help="Seconds after which a Ray worker is replaced that is not heard of, as when it was stopped.",
    ),
    click.option(
        "--stuck-after",
        type=click.FloatRange(min=60),
        default=STUCK_SECONDS,
        help="Seconds after which a Ray worker is replaced that gets nothing done, not even a part of a photo.",
    ),
    *END_OPTIONS,
    click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps."),
    click.option(
        "--compile",
        "compile_",
        is_flag=True,
        help="Compile encoder and decoder with torch.compile; what cannot be compiled runs as it is.",
    ),
    click.option(
        "--points-per-batch",
        type=click.IntRange(min=1),
        default=None,
        help="Points decoded together; fewer take less memory, and change results by rounding errors at most  "
        "[default: as many as fit into a GPU's memory; elsewhere 64]",
    ),
    click.option(
        "--photos-per-batch",
        type=click.IntRange(min=1),
        default=None,
        help="Photos that the image encoder takes together  "
        "[default: as many as fit into a GPU's memory, up to 8; elsewhere 1]",
    ),
    click.option(
        "--gpu-memory",
        type=click.FloatRange(0, 1, min_open=True),
        default=None,
        help="Share of a GPU's memory that a worker may take  [default: 0.9, divided among workers that share a GPU]",
    ),
)
"""Options of every command that works: which model, and where."""


def work_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``WORK_OPTIONS``."""
    return _with_options(command, WORK_OPTIONS)


def import_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of work for which no model is run."""
    return _with_options(command, (*SAM_OPTIONS, threads_option, *PHOTO_OPTIONS, *END_OPTIONS))


def _with_options(
    command: Callable[..., None], options: Sequence[Callable[[Callable[..., None]], Callable[..., None]]]
) -> Callable[..., None]:
    for option in reversed(options):
        command = option(command)
    return command


def refiner_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options about a refiner."""
    refiner = f"Weights that `trainer refiner` wrote, or {PACKAGED}; adds maps of uncertainty and refined masks."
    least = "Masks of fewer pixels, in a crop 1024 long, are not refined but taken as certain (published code: 10000)."
    command = click.option("--min-refine-area", type=click.IntRange(min=0), default=0, help=least)(command)
    return click.option("--refiner", default=None, help=refiner)(command)
