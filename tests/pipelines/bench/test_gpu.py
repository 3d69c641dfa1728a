"""The benchmark of a GPU says where it cannot run, what failed and what was left out, and runs on a CPU in small."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from sum_factory.pipelines.bench import gpu
from sum_factory.pipelines.bench.gpu import NO_DEVICE, Parts, main
from sum_factory.pipelines.bench.parts.gpu_masks import MasksWork, TabledCandidates, measure_masks
from sum_factory.pipelines.bench.parts.gpu_training import TrainingWork, measure_step
from sum_factory.shared.sam.settings import PACKAGED

ROOT = Path(gpu.__file__).resolve().parents[2]
CPU = torch.device("cpu")


def test_requirements_are_the_projects_but_for_torch() -> None:
    listed = (ROOT / "pipelines/bench/gpu_requirements.txt").read_text().splitlines()
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    own = {line for line in listed if line and not line.startswith("#")}
    for_tests = {line for line in own if re.match("(hypothesis|pytest)>=", line)}
    assert len(for_tests) == 2
    assert own - for_tests == {line for line in wanted if not line.startswith("torch")}, (
        "list what was added there, too"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_has_a_status_of_its_own() -> None:
    result = CliRunner().invoke(main, [])
    assert result.exit_code == NO_DEVICE
    assert "PyTorch finds 0 of these here" in result.stderr
    assert "give --quick." in result.stderr
    assert CliRunner().invoke(main, ["--device", "cpu"]).exit_code == 2


def test_part_that_fails_is_named_and_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> dict[str, object]:
        raise AssertionError("they differ")

    monkeypatch.setattr(gpu, "run_tests", dict)
    monkeypatch.setattr(gpu, "measure_masks", fail)
    for name in ("measure_step", "measure_stream", "levels_in_masks"):
        monkeypatch.setattr(gpu, name, lambda *_: {"ratio": 2.0})
    result = CliRunner().invoke(main, ["--quick", "--device", "cpu"])
    assert result.exit_code == 1
    assert "failed: masks vit_b" in result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    assert (figures["failed"], figures["left_out"], figures["device"]) == (1, 0, "cpu")
    assert figures["step_vit_micro_full_ratio"] == 2.0


def test_parts_that_would_begin_too_late_are_left_out() -> None:
    parts = Parts(seconds=-1)
    parts.run("masks", lambda: pytest.fail("begun"))
    assert parts.left_out == ["masks"]


def test_candidates_on_a_device_are_those_that_are_drawn_there_and_come_again() -> None:
    tabled, wanted = TabledCandidates(16, 9, CPU), torch.tensor([[True, False, True]] * 4)
    drawn = super(TabledCandidates, tabled)
    expected = drawn._draw(2, 4)
    assert torch.equal(tabled._draw(2, 4), expected)
    assert torch.equal(tabled._draw(2 + 9, 4), expected)
    assert torch.equal(tabled.logits(2, wanted), tabled.logits(11, wanted))
    assert torch.equal(tabled.predicted_iou(7, 4)[2:], tabled.predicted_iou(0, 2))


def test_masks_of_small_models_agree_and_are_measured() -> None:
    work = MasksWork(photos=3, upstream_photos=1, points=3, size=(60, 80), small=True)
    ((level, figures),) = measure_masks("vit_b", CPU, ("exact",), work).items()
    assert level == "exact"
    assert figures["masks"] > 0
    assert figures["masks_equal"]
    assert figures["ratio"] > 0
    assert sum(figures["share_of"].values()) == pytest.approx(1, abs=0.01)


def test_step_is_measured_beside_the_naive_one(tmp_path: Path) -> None:
    figures = measure_step(tmp_path, PACKAGED, "decoder", CPU, "fp32", TrainingWork(masks=1, rounds=1, repeats=1))
    assert figures["naive_fits"]
    assert figures["step_ratio"] > 0


@pytest.mark.long
def test_whole_benchmark_runs_on_a_cpu(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    command = [sys.executable, "-m", "sum_factory.pipelines.bench.gpu", "--quick", "--device", "cpu", "--minutes", "60"]
    done = subprocess.run([*command, "--trace", str(trace)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["failed"], figures["left_out"]) == (0, 0)
    assert json.loads(trace.read_text())["traceEvents"]
