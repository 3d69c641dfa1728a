"""The training of the refiner that ships, made tiny: it learns from scenes and photos, and is written in halves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from sum_factory.pipelines.microworld import packaged_refiner
from sum_factory.pipelines.microworld.packaged_refiner import SEED, main
from sum_factory.pipelines.microworld.sets import write_sets
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.refiner import PACKAGED_FILE, load_refiner
from sum_factory.shared.sam.settings import PACKAGED

SUITE = (
    "sets:\n  - {kind: folder-pairs, name: fine, images: '${DATA}/images', masks: '${DATA}/salient', task: salient}\n"
)


def test_it_learns_from_scenes_and_photos_and_is_written_in_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    write_sets(photos, SEED + 1, 2)
    (tmp_path / "fine.yaml").write_text(SUITE)
    monkeypatch.setattr(packaged_refiner, "SCENES", 2)
    asked = ["--out", str(tmp_path / "out"), "--photos", str(tmp_path / "fine.yaml"), "--var", f"DATA={photos}"]
    few = [f"--set={each}" for each in ("steps=2", "batch=8", "least_iou=0", "pred_iou_thresh=0", "checkpoint.every=2")]
    outcome = CliRunner().invoke(main, [*asked, *few], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    assert "fine: 2 photos" in outcome.output

    shipped = tmp_path / "out" / PACKAGED_FILE
    assert {value.dtype for value in load_file(shipped).values()} == {torch.float16}
    load_refiner(shipped, load_sam(PACKAGED))
    first = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[0])
    assert first["pairs"] > 0


def test_a_suite_that_is_not_there_is_named(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(main, ["--out", str(tmp_path / "out"), "--photos", str(tmp_path / "none.yaml")])
    assert outcome.exit_code == 1
    assert "none.yaml" in outcome.output
