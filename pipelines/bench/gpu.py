"""What a GPU makes of the project: its tests there, automatic masks, training steps, and shards against its appetite.

    python -m pipelines.bench.gpu                           # on a GPU, under nine minutes
    python -m pipelines.bench.gpu --trace trace.json        # the same, and a Chrome trace of a few photos
    python -m pipelines.bench.gpu --quick                   # tiny models, on a CPU, too: that every line runs

A machine that has PyTorch and a GPU takes three commands, from the folder of the project:

    pip freeze | grep '^torch' > torch.txt
    pip install -c torch.txt -r pipelines/bench/gpu_requirements.txt && pip install --no-deps -e .
    python -m pipelines.bench.gpu

Every part runs beside its reference: masks beside ``segment_anything`` at each level, of ViT-B, L and H with random
weights and the same realistic candidates on both sides (``bench.parts.candidates``); steps beside the naive one
(``bench.parts.naive_step``); what levels cost in masks on scenes, by trained weights (``bench.parts.levels``). Parts
that would begin after ``--minutes`` are left out and named. The last line is a JSON object. The exit status is 1 if
tests failed or masks disagree, and 2 if there is no such device.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch

from sum_factory.pipelines.bench.parts.gpu_masks import MasksWork, measure_masks
from sum_factory.pipelines.bench.parts.gpu_training import TrainingWork, measure_step, measure_stream
from sum_factory.pipelines.bench.parts.last_line import last_line
from sum_factory.pipelines.bench.parts.levels import compare_levels
from sum_factory.shared.allocator import tune_malloc
from sum_factory.shared.errors import SettingsError
from sum_factory.shared.exactness import LEVELS, Exactness
from sum_factory.shared.precision import Precision
from sum_factory.shared.progress import SPEAKER, Stage
from sum_factory.shared.sam.runtime import pick_device, require_device

TESTS = Path(__file__).parents[2] / "tests"
NO_DEVICE = 2
FULL = MasksWork(photos=48, upstream_photos=2, points=32, size=(1500, 2250))
SMALL = MasksWork(photos=5, upstream_photos=1, points=4, size=(120, 160), small=True)
STEPS: tuple[tuple[str, str], ...] = (("vit_b", "full"), ("vit_h", "decoder"), ("vit_h", "lora"))
"""Models and variants whose training steps are taken."""


class Parts:
    """Runs parts of the benchmark until time is up, and collects their figures."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        self.figures: dict[str, Any] = {}
        self.failed: list[str] = []
        self.left_out: list[str] = []

    def run(self, name: str, part: Callable[[], dict[str, Any]]) -> None:
        """Run a part; what goes wrong in it is told at once, and the others run all the same."""
        if time.monotonic() > self.until:
            self.left_out.append(name)
            return
        try:
            with Stage(name):
                found = part()
        except (AssertionError, torch.OutOfMemoryError) as error:
            self.failed.append(name)
            SPEAKER.say(f"{name}: failed: {type(error).__name__}: {error}")
            return
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self.figures[name.replace(" ", "_").replace("-", "_")] = found
        click.echo(f"{name}: {found}")


def run_tests() -> dict[str, Any]:
    """Run the tests that need a GPU. Raises ``AssertionError`` with what pytest says if any failed."""
    files = [str(path) for path in sorted(TESTS.rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    assert files, f"{TESTS}: no tests that need a GPU"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=TESTS.parent)
    click.echo(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return {"passed": True, "files": len(files)}


def levels_in_masks(device: torch.device, scenes: int, points: int | None) -> dict[str, Any]:
    """Return in how many masks the levels in bf16 differ from exact ones."""
    return {
        name.replace("-", "_"): each.figures() for name, each in compare_levels(scenes, str(device), points).items()
    }


def write_trace(path: Path, device: torch.device, work: MasksWork) -> None:
    """Write a Chrome trace of a few photos by ViT-H at ``encoder-bf16``."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=[ProfilerActivity.CPU, *on_gpu]) as profiler:
        measure_masks("vit_h", device, ("encoder-bf16",), work)
    profiler.export_chrome_trace(str(path))


def device_of(name: str, quick: bool) -> torch.device:
    """Return the device that a name means, a GPU if that is left open; what is to be quick takes the CPU without one.

    Says so and ends with an exit status of its own if the device is not there.
    """
    if name == "auto" and quick and not torch.cuda.is_available():
        SPEAKER.say("no CUDA device: tiny models on the CPU show that every line runs, and no figure means a thing")
        return torch.device("cpu")
    try:
        device = require_device(pick_device("cuda" if name == "auto" else name))
    except SettingsError as error:
        click.echo(f"{error}. To see that every line runs, give --quick.", err=True)
        raise click.exceptions.Exit(NO_DEVICE) from error
    return device


@click.command()
@click.option("--quick", is_flag=True, help="Models of two blocks, few points and photos.")
@click.option(
    "--device",
    "name",
    default="auto",
    show_default=True,
    help="auto is a CUDA device, with --quick a CPU where there is none.",
)
@click.option("--minutes", default=8.5, show_default=True, help="No part begins after so many.")
@click.option("--compile", "compile_", is_flag=True, help="Also measure with encoder and decoder compiled.")
@click.option(
    "--trace", type=click.Path(path_type=Path, dir_okay=False), default=None, help="Write a Chrome trace here."
)
def main(quick: bool, name: str, minutes: float, compile_: bool, trace: Path | None) -> None:
    """Measure what a GPU makes of the project."""
    device = device_of(name, quick)
    if device.type != "cuda" and not quick:
        raise click.UsageError(f"the device {device} takes hours: give --quick too, or a CUDA device")
    tune_malloc()
    parts, work = Parts(60 * minutes), SMALL if quick else FULL
    precision: Precision = "fp32" if device.type == "cpu" else "bf16"
    training = TrainingWork(2, 2, 1) if quick else TrainingWork()
    models = ("vit_b",) if quick else ("vit_h", "vit_b", "vit_l")
    every: tuple[Exactness, ...] = tuple(LEVELS)
    called = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    click.echo(f"on {called}, torch {torch.__version__}")

    parts.run("tests", run_tests)
    for model in models:
        parts.run(f"masks {model}", lambda model=model: measure_masks(model, device, every, work))  # type: ignore[misc]
        if compile_:
            parts.run(
                f"masks {model} compiled",
                lambda model=model: measure_masks(model, device, every[1:], work, compile=True),  # type: ignore[misc]
            )
    with TemporaryDirectory() as folder:
        steps = (("vit_micro", "full"),) if quick else STEPS
        for model, variant in steps:
            own = Path(folder) / f"{model}-{variant}"
            parts.run(
                f"step {model} {variant}",
                lambda own=own, m=model, v=variant: measure_step(own, m, v, device, precision, training),  # type: ignore[misc]
            )
        stream = Path(folder) / "stream"
        parts.run("stream", lambda: measure_stream(stream, device, 4 if quick else 64, 2 if quick else 40))
    parts.run("levels", lambda: levels_in_masks(device, *((2, 12) if quick else (24, None))))
    if trace is not None:
        parts.run("trace", lambda: write_trace(trace, device, work) or {"written": True})  # type: ignore[func-returns-value]

    for told, names in (("failed", parts.failed), ("left out, as time was up", parts.left_out)):
        if names:
            click.echo(f"{told}: {', '.join(names)}", err=True)
    done = {"failed": len(parts.failed), "left_out": len(parts.left_out), "quick": quick}
    click.echo(json.dumps({"device": called, **json.loads(last_line({**parts.figures, **done}))}))
    if parts.failed:
        click.get_current_context().exit(1)


if __name__ == "__main__":
    main()
