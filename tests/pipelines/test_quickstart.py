"""The demo in small: every step runs, and what it leaves is what it promises."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from pipelines.quickstart import DemoSettings, demo

SMALL = (
    "steps=2",
    "batch=2",
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    demo(DemoSettings(folder, 2, 4, 3, points_per_side=4, refiner_changes=SMALL, fit_changes=(*SMALL, "masks=2")))
    return folder


def test_results_have_both_models_all_tasks_and_both_metrics(out: Path) -> None:
    results = json.loads((out / "results.json").read_text())
    assert list(results) == ["SAM", "SUM"]
    for means in results.values():
        assert set(means) == {"salient", "entity", "part", "all"}
        for values in means.values():
            assert {f"{metric}@{k}" for metric in ("mIoU", "mBIoU") for k in range(1, 6)} == set(values)
            assert all(0 <= value <= 1 for value in values.values())


def test_all_is_the_mean_over_the_three_sets(out: Path) -> None:
    for means in json.loads((out / "results.json").read_text()).values():
        mean = sum(means[task]["mBIoU@3"] for task in ("salient", "entity", "part")) / 3
        assert math.isclose(means["all"]["mBIoU@3"], mean)


def test_page_shows_the_table_labels_and_comparisons(out: Path) -> None:
    html = (out / "index.html").read_text()
    results = json.loads((out / "results.json").read_text())
    for means in results.values():
        assert f">{100 * means['all']['mBIoU@3']:.1f}<" in html
    assert html.count("uncertainty, mean") >= 1
    assert len(re.findall(r"alt=\"(SAM|SUM)\"", html)) == 2 * html.count('alt="ground truth"') > 0
    assert html.count("data:image/jpeg;base64,") >= 8
    assert (out / "labels.html").exists()


def test_second_demo_finds_everything_done(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (out / "sum" / "weights.safetensors").read_bytes()
    demo(DemoSettings(out, 2, 4, 3, points_per_side=4, refiner_changes=SMALL, fit_changes=(*SMALL, "masks=2")))
    printed = capsys.readouterr().out
    assert "present, nothing to do" in printed
    assert "2 of 2 steps present" in printed
    assert (out / "sum" / "weights.safetensors").read_bytes() == before
