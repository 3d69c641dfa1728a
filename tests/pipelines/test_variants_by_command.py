"""Every variant by each kind of method in the micro-world, by the commands that people give: trained, killed, resumed,
judged, exported. Cheap tests of the same, in one process, are in ``tests/trainer/test_variants.py``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sum_factory.labelgen.run import run as label
from sum_factory.labelgen.run_settings import RunSettings
from sum_factory.pipelines.microworld.sets import write_sets
from sum_factory.shared.automask.settings import settings_for
from sum_factory.shared.sam.architecture import ARCHITECTURES, build_architecture
from sum_factory.shared.sam.settings import PACKAGED, WEIGHTS_FILE
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.log import LOG
from sum_factory.trainer.variants import variants
from sum_factory.trainer.variants.hq import is_own

pytestmark = pytest.mark.long
TRAINER = [sys.executable, "-m", "sum_factory.trainer.cli"]
RECIPES = {
    "full": "ft_small", "decoder": "ft_small", "lora": "lora", "adapter": "adapter", "sam-adapter": "sam_adapter",
    "hq": "hq_sam",
}  # fmt: skip
STEPS, EVERY, LAST = 30, 10, 17
"""Steps of a run, steps between its checkpoints, and the step after which it is killed."""
SMALL = {
    "steps": STEPS, "checkpoint.every": EVERY, "batch": 2, "micro_batch": 2, "masks": 2, "stride": 2,
    "data_threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of four scenes with maps of the packaged refiner, eight scenes with human masks, and a suite of these."""
    folder = tmp_path_factory.mktemp("data")
    write_sets(folder / "pool", 11, 4)
    write_sets(folder / "human", 12, 8)
    settings = settings_for(PACKAGED, points_per_side=12)
    photos, shards = (str(folder / "pool" / "images"),), str(folder / "shards")
    label(RunSettings(photos, shards, automask=settings, refiner=PACKAGED), say=lambda _: None)
    (folder / "suite.yaml").write_text(f"sets: [{salient_masks(folder)}]\n")
    return folder


def salient_masks(folder: Path) -> str:
    places = f"images: {folder / 'human' / 'images'}, masks: {folder / 'human' / 'salient'}"
    return f"{{kind: folder-pairs, name: scenes, task: salient, {places}}}"


def fit_command(data: Path, variant: str, method: str, out: Path) -> list[str]:
    """Train by the variant's recipe, but for its size and its data."""
    recipe = "sum_hq" if (variant, method) == ("hq", "sum") else RECIPES[variant]
    changes = {**SMALL, "human": f"[{salient_masks(data)}]"}
    if variant != "hq":
        changes["rounds"] = 3
    options = [f"--set={key}={value}" for key, value in changes.items()]
    options += ["--sam=vit_micro", "--device=cpu", "--precision=fp32", "--threads=1", "--processes=1"]
    chosen = [f"--shards={data / 'shards'}", f"--variant={variant}", f"--method={method}", f"--out={out}"]
    return [*TRAINER, "fit", f"--recipe={recipe}", *options, *chosen]


def call(*command: object) -> str:
    """Run a command to its end and return what it said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def die(command: list[str], out: Path) -> None:
    """Kill a run once it has logged step ``LAST``."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        log = out / LOG
        while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= LAST):
            time.sleep(0.05)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert Checkpoints(out).steps()[-1] == EVERY


@pytest.mark.parametrize("method", ["human-only", "vanilla", "sum"])
@pytest.mark.parametrize("variant", variants())
def test_variant_trains_goes_on_after_a_kill_is_judged_and_exported(
    data: Path, tmp_path: Path, variant: str, method: str
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    said = call(*fit_command(data, variant, method, straight))
    assert f"{method}, variant {variant}: " in said
    assert " parameters are trained (" in said
    die(fit_command(data, variant, method, killed), killed)
    assert f"from step {EVERY}" in call(*fit_command(data, variant, method, killed))
    assert (killed / LOG).read_text() == (straight / LOG).read_text()
    assert (straight / LOG).read_text().count("\n") == STEPS
    found, expected = load_file(killed / WEIGHTS_FILE), load_file(straight / WEIGHTS_FILE)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())

    suite, judged = data / "suite.yaml", tmp_path / "judged"
    call(*TRAINER, "evaluate", "--weights", killed, "--suite", suite, "--out", judged, "--rounds", 2, "--device", "cpu")
    assert json.loads((judged / "summary.json").read_text())["weights"]["path"] == str(killed)
    photo = next((data / "human" / "images").iterdir())
    call(*TRAINER, "predict", photo, "--point", "128,128", "--weights", killed, "--out", tmp_path, "--device", "cpu")
    assert (tmp_path / f"{photo.stem}_mask.png").stat().st_size > 0
    assert_exported(variant, killed, tmp_path / "exported.pth")


def assert_exported(variant: str, run: Path, out: Path) -> None:
    """Plain SAM's classes load the file strictly, or HQ-SAM's tensors are in it, or it is refused with the reason."""
    command = [*TRAINER, "export", "--weights", str(run), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if variants()[variant].not_plain:
        assert done.returncode != 0
        assert variants()[variant].not_plain in done.stderr
        return
    assert done.returncode == 0, done.stderr
    state = torch.load(out, weights_only=True)
    plain = {name: value for name, value in state.items() if not is_own(name)}
    build_architecture(ARCHITECTURES["vit_micro"]).load_state_dict(plain)
    assert len(state) - len(plain) == (25 if variant == "hq" else 0)
