"""The demo in small: every step runs, and what it leaves is what it promises."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from sum_factory.pipelines.demo.announcer import Announcer
from sum_factory.pipelines.demo.plan import DemoPlan, full_plan
from sum_factory.pipelines.demo.run import demo, first_page
from sum_factory.pipelines.microworld.textures import PHOTOS
from sum_factory.pipelines.quickstart import main
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.refiner import load_refiner
from sum_factory.shared.shards.shard_set import ShardSet

SMALL = ("steps=2", "batch=2")


def small_plan(out: Path) -> DemoPlan:
    return DemoPlan(out, 3, 2, 4, 3, points_per_side=4, fit_changes=(*SMALL, "masks=2"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "out"
    demo(small_plan(folder))
    return folder


@pytest.fixture(scope="module")
def told(out: Path) -> str:
    """What the demo says when it is run once more."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        demo(small_plan(out))
    return said.getvalue()


def test_results_have_both_models_all_tasks_and_both_metrics(out: Path) -> None:
    results = json.loads((out / "results.json").read_text())
    assert list(results) == ["SAM", "SUM"]
    for means in results.values():
        assert set(means) == {"salient", "entity", "part", "all"}
        for values in means.values():
            assert {f"{metric}@{k}" for metric in ("mIoU", "mBIoU") for k in range(1, 4)} == set(values)
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


def test_maps_are_those_of_the_refiner_that_ships(out: Path) -> None:
    layer = ShardSet.open(str(out / "shards")).layer("uncertainty/refinement")
    assert layer.weights["refiner"] == {"sha256": load_refiner("vit_micro", load_sam("vit_micro")).sha256}


def test_second_demo_finds_everything_done(out: Path, request: pytest.FixtureRequest) -> None:
    before = (out / "sum" / "weights.safetensors").read_bytes()
    told = request.getfixturevalue("told")
    assert "present, nothing to do" in told
    assert "2 of 2 steps present" in told
    assert (out / "sum" / "weights.safetensors").read_bytes() == before


def test_first_page_is_told_before_training_begins(out: Path, told: str) -> None:
    assert -1 < told.index(str(out / "labels.html")) < told.index("training SUM")


def test_every_step_says_how_long_it_will_about_take(told: str) -> None:
    steps = [line for line in told.splitlines() if re.match(r"\d/\d  ", line)]
    assert [line[:3] for line in steps] == [f"{number}/6" for number in range(1, 7)]
    assert all(re.search(r"\(about [\d.]+ (s|min)\)$", line) for line in steps)


def test_long_demo_trains_its_own_refiner(tmp_path: Path) -> None:
    plan = dataclasses.replace(
        full_plan(tmp_path), photos=1, scenes=1, human=4, points_per_side=4, refiner_changes=SMALL
    )
    layer = first_page(plan, Announcer(3)).layer("uncertainty/refinement")
    own = load_refiner(tmp_path / "refiner" / "refiner.safetensors", load_sam("vit_micro"))
    assert layer.weights["refiner"] == {"sha256": own.sha256}


def test_estimates_follow_the_pace_of_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    say = Announcer(3, pace=2.0, clock=lambda: 0.0)
    say("drawing", 1.0)
    say("labelling", 20.0)
    say("training", 75.0)
    assert capsys.readouterr().out.splitlines() == [
        "1/3  drawing (about 5 s)",
        "2/3  labelling (about 40 s)",
        "3/3  training (about 2.5 min)",
    ]


def test_demo_labels_all_photos_that_are_at_hand() -> None:
    assert DemoPlan(Path()).photos == len(PHOTOS)


def test_a_folder_of_other_settings_is_named_with_what_to_do(out: Path, tmp_path: Path) -> None:
    """As `make demo` leaves one, if the software is brought up to date between two."""
    left = shutil.copytree(out, tmp_path / "left")
    outcome = CliRunner().invoke(main, ["--out", str(left)])
    assert outcome.exit_code == 1
    assert "points_per_side: there 4, asked for 24" in outcome.output
    assert f"{left} was made with other settings, or by another version: remove that folder" in outcome.output
