"""Automatic masks: ours against ``segment_anything``'s generator, stage by stage and end to end.

    python -m pipelines.bench.automask [--quick] [--model vit_b|vit_micro] [--size HxW] [--threads N] [--repeats N]

Both sides label the same photo with the same weights, settings, threads and malloc, in turn, each time in a process
of its own, from the pixels to COCO's RLE. Before the clock starts each has labelled it with few points (with
``--quick``: a tiny image by a tiny model), so that no code is compiled and no memory taken for the first time while it
runs. With ``--quick`` the image encoder is a quarter of ViT-B's, there are 4 x 4 points, and our side has no process
of its own. ``vit_micro`` has its own weights; those of the others are random, and after it has computed them the
decoder's outputs are replaced on both sides by the same realistic ones (``bench.parts.candidates``).

The masks must agree (``bench.parts.agreement``); of the levels in bf16 that is shown, not required. What these cost in
masks is measured apart, on scenes by ``vit_micro`` (``bench.parts.levels``). The last line is a JSON object: ratios are
upstream's time over ours, end to end and part by part, medians over the repeats with the spread beside them;
``peak_rss_gb`` is the peak of a process, all included.
"""

from __future__ import annotations

import os
import pickle
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import cv2
import numpy as np
import skimage.data
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, automatic_mask_generator
from torch import Tensor

from sum_factory.pipelines.bench.parts.agreement import compare
from sum_factory.pipelines.bench.parts.candidates import Candidates, Replacing, ReplacingDecoder, replace_upstream
from sum_factory.pipelines.bench.parts.last_line import last_line
from sum_factory.pipelines.bench.parts.levels import compare_levels
from sum_factory.pipelines.microworld.scene import make_scene
from sum_factory.shared.allocator import tune_malloc
from sum_factory.shared.automask import automask
from sum_factory.shared.automask.automask import LabelGenerator
from sum_factory.shared.automask.settings import AutomaskSettings, settings_for
from sum_factory.shared.exactness import LEVELS, Exactness, Level, exactness_option, settle
from sum_factory.shared.images import RgbImage
from sum_factory.shared.precision import autocast
from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.architecture import ARCHITECTURES, build_architecture
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.runtime import Runtime, move_to_device
from sum_factory.shared.sam.upstream import Sam

SIDES = ("theirs", "ours")
QUICK_DEPTH, QUICK_GLOBAL = 3, (2,)
"""Blocks of the image encoder with ``--quick``, and which attend globally: a quarter of ViT-B's, in proportion."""
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "68719476736",
    "MALLOC_TOP_PAD_": "268435456",
}
PARTS: dict[str, Callable[[str], bool]] = {
    "end_to_end": lambda stage: True,
    "without_encoder": lambda stage: stage != "encoder",
    "encoder": lambda stage: stage == "encoder",
    "decoder": lambda stage: stage == "decoder",
    "rest": lambda stage: stage not in ("encoder", "decoder"),
}
"""The stages that a ratio is of."""
SAMPLE = 8
"""Prompts whose real logits are compared where they are replaced."""


class StageClock:
    """Adds up the seconds that calls take, by stage; a stage within another counts in its own alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Attribute what happens inside to ``name``."""
        self._turn()
        self._running.append(name)
        yield
        self._turn()
        self._running.pop()

    def _turn(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def watch(self, owner: Any, name: str, stage: str) -> None:
        """Time every call of ``owner.name``."""
        call = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.stage(stage):
                return call(*arguments, **options)

        setattr(owner, name, timed)


def make_model(model: str, quick: bool = False) -> Sam:
    """Build the model, with a quarter of its image encoder if it is to be quick; random weights are the same always."""
    if model == "vit_micro":
        return load_sam().sam
    torch.manual_seed(0)
    architecture = ARCHITECTURES[model]
    if quick:
        architecture = replace(architecture, encoder_depth=QUICK_DEPTH, global_attention_blocks=QUICK_GLOBAL)
    sam = build_architecture(architecture)
    with torch.no_grad():
        for name, parameter in sam.image_encoder.named_parameters():
            if "pos" in name:  # upstream starts these at zero, which would make their arithmetic trivial
                parameter.normal_(0, 0.02)
    return sam


def make_photo(model: str, size: tuple[int, int]) -> RgbImage:
    """Return an image of ``size`` height, width: a scene that ``vit_micro`` knows its way in, else a photo."""
    image = make_scene(0, 5).image if model == "vit_micro" else skimage.data.astronaut()  # type: ignore[no-untyped-call]
    return np.ascontiguousarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


class RoughPredictor(SamPredictor):  # type: ignore[misc]
    """Upstream's predictor, whose parts compute in what a level says; what comes out of them is fp32."""

    level: Level

    def set_torch_image(self, transformed_image: Tensor, original_image_size: tuple[int, ...]) -> None:
        """Embed as upstream does."""
        with autocast(self.device.type, self.level.encoder):
            super().set_torch_image(transformed_image, original_image_size)
        self.features: Tensor = self.features.float()

    def predict_torch(self, *arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        """Decode as upstream does."""
        with autocast(self.device.type, self.level.decoder):
            return tuple(each.float() for each in super().predict_torch(*arguments, **options))


def label_with_upstream(
    sam: Sam, settings: AutomaskSettings, image: RgbImage, clock: StageClock, exactness: Exactness
) -> Any:
    """Label with upstream's generator, in COCO's RLE. It knows no bf16: for that, it gets another predictor.

    At ``fast`` its candidates are fp32 again, but masks were cut at the threshold in bf16.
    """
    options = {name: value for name, value in vars(settings).items() if name != "max_area_share"}
    generator = SamAutomaticMaskGenerator(sam, output_mode="coco_rle", **options)
    if exactness != "exact":
        generator.predictor = RoughPredictor(sam)
        generator.predictor.level = LEVELS[exactness]
    clock.watch(generator.predictor, "set_image", "encoder")
    clock.watch(generator.predictor, "predict_torch", "decoder")
    clock.watch(generator.predictor.model, "postprocess_masks", "upsampling")
    with clock.stage("rest"):
        return generator.generate(image)


def label_with_ours(generator: LabelGenerator, image: RgbImage, clock: StageClock) -> Any:
    """Label with our generator, in COCO's RLE."""
    clock.watch(generator.embedder, "embed_crops", "encoder")
    for name in ("prepare", "decode", "masks"):
        clock.watch(generator.decoder, name, "decoder")
    with clock.stage("rest"):
        labels = generator.label(image)
        with clock.stage("RLE"):
            labels.rles()
    return labels


def make_generator(sam: Sam, settings: AutomaskSettings, exactness: Exactness) -> LabelGenerator:
    """Return our generator as labelling uses it on a CPU."""
    return LabelGenerator(move_to_device(sam, Runtime("cpu", exactness)), settings, exactness=exactness)


def warm_up(side: str, sam: Sam, image: RgbImage, exactness: Exactness) -> None:
    """Do everything once: as many masks of one batch of points as there are."""
    settings = AutomaskSettings(points_per_side=8, pred_iou_thresh=-1000.0, stability_score_thresh=0.0)
    if side == "theirs":
        label_with_upstream(sam, settings, image, StageClock(), exactness)
    else:
        label_with_ours(make_generator(sam, settings, exactness), image, StageClock())


def work(
    side: str, model: str, size: tuple[int, int], points: int, quick: bool, exactness: Exactness, folder: Path
) -> None:
    """Label once; leave seconds by stage, peak memory and the result in ``folder``."""
    sam, clock = make_model(model, quick), StageClock()
    settings = settings_for(model, points_per_side=points, max_area_share=2.0)
    image = make_photo(model, size)
    warm_up(side, *((load_sam().sam, make_photo("vit_micro", (64, 64))) if quick else (sam, image)), exactness)
    replacing = Replacing(Candidates(ARCHITECTURES[model].low_res_side), SAMPLE)
    if side == "theirs":
        if model != "vit_micro":
            replace_upstream(sam, replacing)
        upstream = automatic_mask_generator
        for name in ("calculate_stability_score", "batched_mask_to_box"):
            clock.watch(upstream, name, "stability, boxes")
        clock.watch(upstream, "mask_to_rle_pytorch", "RLE")
        clock.watch(upstream, "coco_encode_rle", "RLE")
        result = label_with_upstream(sam, settings, image, clock, exactness)
    else:
        generator = make_generator(sam, settings, exactness)
        if model != "vit_micro":
            generator.decoder = ReplacingDecoder(sam, replacing, LEVELS[exactness].decoder)
        clock.watch(automask, "measure", "stability, boxes")
        result = label_with_ours(generator, image, clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    real = replacing.sampled() if replacing.real else None
    (folder / side).write_bytes(pickle.dumps((dict(clock.seconds), peak, result, real)))


def run_side(side: str, arguments: list[str], folder: Path) -> None:
    """Do ``work`` in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "sum_factory.pipelines.bench.automask",
        *arguments,
        f"--side={side}",
        f"--folder={folder}",
    ]
    subprocess.run(command, check=True, env={**os.environ, **MALLOC})


def ratios_of(runs: dict[str, list[dict[str, float]]], part: str, counts: Callable[[str], bool]) -> dict[str, Any]:
    """Return upstream's seconds over ours in the stages that ``counts`` names: the median of repeats and the spread."""
    totals = {side: [sum(took for stage, took in run.items() if counts(stage)) for run in runs[side]] for side in SIDES}
    ratios = [theirs / ours for theirs, ours in zip(totals["theirs"], totals["ours"], strict=True)]
    return {
        f"{part}_ratio": round(statistics.median(ratios), 2),
        f"{part}_spread": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def figures_of_levels(scenes: int, points: int | None) -> dict[str, Any]:
    """Say what each level in bf16 makes of scenes; return the figures."""
    figures = {}
    for level, found in compare_levels(scenes, points=points).items():
        click.echo(f"{level}: {found.line()}")
        figures[level.replace("-", "_")] = found.figures()
    return figures


@click.command()
@click.option("--quick", is_flag=True, help="One repeat with 4 x 4 points, and a quarter of the image encoder.")
@click.option(
    "--model", type=click.Choice(["vit_b", "vit_l", "vit_h", "vit_micro"]), default="vit_b", show_default=True
)
@click.option("--size", default="1500x2250", show_default=True, help="Height x width of the photo.")
@click.option("--threads", default=0, help="Of each side; by default as many as there are cores.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--points", default=32, show_default=True, help="Points per side.")
@exactness_option("Of both sides; but at exact, that their masks agree is shown but not required.")
@click.option("--scenes", default=24, show_default=True, help="Scenes on which levels are compared; 0 leaves it out.")
@click.option("--side", type=click.Choice(SIDES), default=None, hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), default=None, hidden=True)
def main(
    quick: bool,
    model: str,
    size: str,
    threads: int,
    repeats: int,
    points: int,
    exactness: Exactness,
    scenes: int,
    side: str | None,
    folder: Path | None,
) -> None:
    """Compare the automatic masks of an image."""
    if threads:
        torch.set_num_threads(threads)
    settle(exactness, torch.device("cpu"))
    height, width = (int(part) for part in size.split("x"))
    if side is not None and folder is not None:
        work(side, model, (height, width), points, quick, exactness, folder)
        return
    if quick:
        repeats, points = 1, 4
    arguments = [
        f"--model={model}",
        f"--size={size}",
        f"--points={points}",
        f"--threads={threads}",
        f"--exactness={exactness}",
    ]
    arguments += ["--quick"] if quick else []
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    peaks: dict[str, list[float]] = {name: [] for name in SIDES}
    with TemporaryDirectory() as temporary:
        for repeat in range(repeats):
            results = {}
            for name in SIDES:
                with Stage(f"labelling by {name}, repeat {repeat + 1} of {repeats}"):
                    if quick and name == "ours":  # here, which saves the start of a process
                        tune_malloc()
                        work(name, model, (height, width), points, quick, exactness, Path(temporary))
                    else:
                        run_side(name, arguments, Path(temporary))
                    seconds, peak, *results[name] = pickle.loads((Path(temporary) / name).read_bytes())
                runs[name].append(seconds)
                peaks[name].append(peak)
                click.echo(f"repeat {repeat + 1}: {name:6} {sum(seconds.values()):7.2f} s, {peak:.2f} GB", err=True)
    (records, theirs_real), (labels, ours_real) = results["theirs"], results["ours"]
    with Stage("comparing masks"):
        agreement = compare(labels, records, settings_for(model))
    assert exactness != "exact" or not agreement.unexplained, agreement.unexplained
    figures: dict[str, Any] = {}
    if theirs_real is not None:
        differences = [float((a - b).abs().max()) for a, b in zip(theirs_real, ours_real, strict=True)]
        in_fp32 = LEVELS[exactness].decoder == "fp32"
        assert not in_fp32 or max(differences) <= 1e-5, f"the decoders differ by {differences}"
        figures["decoder_logits_differ_by"], figures["predicted_iou_differs_by"] = differences
    click.echo(f"{model}, {height} x {width}, {points} x {points} points, {threads or torch.get_num_threads()} threads")
    for stage in sorted({stage for side_runs in runs.values() for run in side_runs for stage in run}):
        medians = [statistics.median(run.get(stage, 0.0) for run in runs[name]) for name in SIDES]
        click.echo(f"  {stage:18} {medians[0]:8.2f} s {medians[1]:8.2f} s")
    for part, counts in PARTS.items():
        figures |= ratios_of(runs, part, counts)
    figures |= {
        "peak_rss_gb": {name: round(max(peaks[name]), 2) for name in SIDES},
        "exact": exactness == "exact",
        "masks": agreement.theirs,
        "masks_equal": agreement.exact,
        "masks_equal_to_the_pixel": agreement.equal,
        "pixels_that_differ": agreement.pixels,
    }
    if scenes:
        figures |= figures_of_levels(*((min(scenes, 2), 12) if quick else (scenes, None)))
    click.echo(last_line(figures))


if __name__ == "__main__":
    main()
