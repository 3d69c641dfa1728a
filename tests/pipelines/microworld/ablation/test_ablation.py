"""The ablation in very small, from end to end: what it leaves, and that it goes on where it was."""

from __future__ import annotations

import csv
import fcntl
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from sum_factory.pipelines.microworld.ablation import frozen
from sum_factory.pipelines.microworld.ablation.__main__ import main
from sum_factory.pipelines.microworld.ablation.cells import FROZEN, Cell, cells_of, choices, identity_of, recipe_of
from sum_factory.pipelines.microworld.ablation.frozen import coarse_recipe, detail_settings
from sum_factory.pipelines.microworld.ablation.prepare import automask_of
from sum_factory.pipelines.microworld.ablation.report import BEGIN, END, fill
from sum_factory.pipelines.microworld.ablation.results import COLUMNS
from sum_factory.pipelines.microworld.ablation.settings import SEEDS, FrozenModel, Plan
from sum_factory.pipelines.microworld.ablation.study import run_ablation, write_results
from sum_factory.pipelines.microworld.ablation.work import SCORES_FILE, is_done, run_cells
from sum_factory.pipelines.microworld.ablation.world import exact_labels
from sum_factory.pipelines.microworld.coarse import coarsen
from sum_factory.pipelines.microworld.scene import make_scenes
from sum_factory.shared.automask.automask import LabelGenerator
from sum_factory.shared.errors import InputError, SettingsDifferError
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.refiner import load_refiner
from sum_factory.trainer.evaluation.metrics import boundary_iou
from sum_factory.trainer.methods import METHODS
from sum_factory.trainer.run import log as log_module

BLOCKS = ("progress", "world", "means small", "differences small", "claims small", "pictures", "studies", "anchors")
LARGE_BLOCKS = ("means large", "differences large", "claims large")


def plan_of(out: Path) -> Plan:
    return Plan(
        out,
        pool=6,
        human=8,
        validation=1,
        held_out=2,
        masks_of_a_scene=2,
        described=2,
        rounds=3,
        points_per_side=6,
        settings=("small",),
        methods=("human-only", "sum"),
        seeds=(0,),
        studies=False,
        precision="fp32",
        frozen=FrozenModel(scenes=8, detail_steps=1, coarse_scenes=4, coarse_steps=1),
        fit_changes=("steps=2", "batch=2", "masks=2", "rounds=3"),
        refiner_changes=("steps=4", "batch=4"),
    )


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a page that has all marks."""
    folder = tmp_path_factory.mktemp("docs")
    lines = [f"{BEGIN.format(name)}\n{END.format(name)}\n\nwords about {name}\n" for name in BLOCKS]
    (folder / "ablation_tables.md").write_text("# Words\n\n" + "\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, docs: Path) -> Plan:
    """A plan that has been carried out; no test may change its folder but for good.

    The frozen model sees two scenes per step instead of eight.
    """
    plan = plan_of(tmp_path_factory.mktemp("ablation") / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frozen, "detail_settings", lambda *of: replace(detail_settings(*of), images=2, masks=2))
        patch.setattr(log_module, "draw_curves", lambda lines: b"")  # drawn in tests of it
        patch.setattr(frozen, "coarse_recipe", lambda *of: replace(coarse_recipe(*of), batch=2, masks=2))
        run_ablation(plan, 1, docs)
    return plan


def test_every_run_left_scores_of_all_tasks_prompts_and_outputs(plan: Plan) -> None:
    rows = list(csv.DictReader((plan.out / "ablation.csv").read_text().splitlines()))
    assert tuple(rows[0]) == COLUMNS
    runs = {(row["setting"], row["method"], row["variant"], row["seed"]) for row in rows}
    assert runs == {
        ("small", "sam", "frozen", "0"),
        ("small", "human-only", "full", "0"),
        ("small", "human-only", "filled", "0"),
        ("small", "human-only", "decoder", "0"),
        ("small", "human-only", "hq", "0"),
        ("small", "human-only", "hq-rounds", "0"),
        ("small", "sum", "full", "0"),
        ("small", "sum", "hq", "0"),
        ("small", "sum", "hq-rounds", "0"),
    }
    assert {row["task"] for row in rows} == {"salient", "entity", "part", "all"}
    assert {(row["prompt"], row["output"], row["round"]) for row in rows} == {
        *(("point", output, str(number)) for output in ("oracle", "single") for number in (1, 2, 3)),
        ("box", "single", "1"),
    }
    assert all(0 <= float(row["value"]) <= 1 for row in rows)
    assert len(rows) == len(runs) * 4 * 7 * 2


def test_page_has_tables_between_its_words_and_charts_beside_it(plan: Plan, docs: Path) -> None:
    page = (docs / "ablation_tables.md").read_text()
    assert page.startswith("# Words\n")
    assert all(f"words about {name}" in page for name in BLOCKS)
    assert "| human-only, filled | 1 |" in page
    assert "| human-only, decoder | 1 |" in page
    assert "| sum, hq | 1 |" in page
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    assert (docs / "ablation.csv").read_bytes() == (plan.out / "ablation.csv").read_bytes()
    charts = {path.name for path in (docs / "images").iterdir()}
    assert charts == {link.removeprefix("images/") for link in re.findall(r"\]\((.*?)\)", page)}
    assert {f"ablation_small_{task}.svg" for task in ("salient", "entity", "part", "all")} <= charts
    assert {"ablation_calibration.svg", "ablation.jpg"} <= charts


def test_claims_stand_beside_the_differences_of_oracle_single_output_and_box(plan: Plan, docs: Path) -> None:
    rows = list(csv.DictReader((plan.out / "ablation.csv").read_text().splitlines()))
    means = {
        (row["method"], row["prompt"], row["output"]): float(row["value"])
        for row in rows
        if (row["task"], row["metric"]) == ("all", "mBIoU")
        and (row["prompt"], row["round"]) in (("point", "3"), ("box", "1"))
        and row["variant"] in ("full", "frozen")
    }
    (line,) = re.findall(r"\| SUM is better than SAM \|.*", (docs / "ablation_tables.md").read_text())
    *_, oracle, _, single, box, _ = line.split("|")
    for (prompt, output), found in (
        (("point", "oracle"), oracle),
        (("point", "single"), single),
        (("box", "single"), box),
    ):
        gain = 100 * (means["sum", prompt, output] - means["sam", prompt, output])
        assert float(found.split()[0]) == pytest.approx(gain, abs=0.051)
    assert len({oracle, single, box}) == 3


def test_share_of_errors_that_were_taught_is_that_of_coarse_versions_of_the_same_masks(plan: Plan) -> None:
    loaded = load_sam(plan.sam)
    refiner = load_refiner(plan.out / "refiner" / "refiner.safetensors", loaded)
    generator = LabelGenerator(loaded.sam, automask_of(plan), 256)
    both = wrong = coarse = 0
    overlaps: dict[str, list[float]] = {}
    for scene in make_scenes(SEEDS["pool"], 0, plan.described, plan.world):
        for task in ("salient", "entity", "part"):
            masks = scene.masks(task)
            overlaps.setdefault(task, []).extend(boundary_iou(coarsen(m, plan.coarseness), m) for m in masks)
        for label in exact_labels(generator, refiner, scene, plan.coarseness):
            if label is not None:
                mask = (label.logits > 0) ^ label.wrong
                assert any(np.array_equal(mask, each) for each in scene.masks(label.task))
                lost = coarsen(mask, plan.coarseness) != mask
                both, wrong, coarse = both + (lost & label.wrong).sum(), wrong + label.wrong.sum(), coarse + lost.sum()
    assert both
    world = json.loads((plan.out / "world.json").read_text())
    assert (world["wrong_pixels_taught"], world["taught_pixels_wrong"]) == (both / wrong, both / coarse)
    assert world["coarse_boundary_iou"] == pytest.approx({task: sum(v) / len(v) for task, v in overlaps.items() if v})


def test_page_can_be_written_before_anything_is_run(docs: Path, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "ablation_tables.md"
    page.parent.mkdir()
    page.write_text((docs / "ablation_tables.md").read_text())
    plan = plan_of(tmp_path / "out")
    write_results(plan, plan.out / "refiner" / "refiner.safetensors", page.parent)
    text = page.read_text()
    assert "| small | 0 | 0 of 8 |" in text
    assert "](images/" not in text
    assert "| SUM above SAM on part, after 1 point |  | not run |" in text


def test_page_keeps_a_setting_whose_runs_are_not_all_in_this_folder(
    plan: Plan, docs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = replace(plan, out=tmp_path / "out")
    shutil.copytree(plan.out, elsewhere.out)
    shutil.rmtree(Cell("small", "sum").folder(elsewhere))
    page = tmp_path / "docs"
    shutil.copytree(docs, page)
    before = {path: path.read_bytes() for path in page.rglob("*") if path.is_file()}
    write_results(elsewhere, elsewhere.out / "refiner" / "refiner.safetensors", page)
    assert {path: path.read_bytes() for path in page.rglob("*") if path.is_file()} == before
    assert f"small: the page keeps what it has, of runs that are not in {elsewhere.out}" in capsys.readouterr().out
    (stored,) = page.glob("ablation_world.json")
    stored.write_text(stored.read_text().replace('"human": 8', '"human": 9'))
    with pytest.raises(SettingsDifferError, match="human: there 9, asked for 8"):
        write_results(elsewhere, elsewhere.out / "refiner" / "refiner.safetensors", page)
    stored.write_bytes(before[stored])
    assert {path: path.read_bytes() for path in page.rglob("*") if path.is_file()} == before


def test_second_run_finds_all_present(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (plan.out / "cells").rglob("*") if path.is_file()}
    run_cells(plan, cells_of(plan), 1)
    assert "9 of 9 runs present, 0 to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (plan.out / "cells").rglob("*") if path.is_file()}


def test_run_that_lost_its_scores_is_done_again_to_the_same_bytes(plan: Plan) -> None:
    path = Cell("small", "sum").folder(plan) / SCORES_FILE
    before = path.read_bytes()
    path.unlink()
    run_cells(plan, cells_of(plan), 1)
    assert path.read_bytes() == before


def test_run_that_another_process_is_at_is_left_to_it(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    cell = Cell("small", "sum", seed=7)
    lock = plan.out / "locks" / cell.name
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run_cells(plan, [cell], 1)
    assert not cell.folder(plan).exists()
    assert f"1 runs are another process's: {cell.name}" in capsys.readouterr().out


def test_runs_of_other_settings_are_refused(plan: Plan) -> None:
    with pytest.raises(SettingsDifferError, match="recipe"):
        is_done(replace(plan, fit_changes=("steps=3", "batch=2", "masks=2")), Cell("small", "sum"))
    with pytest.raises(SettingsDifferError, match="scenes"):
        is_done(replace(plan, held_out=4), FROZEN)
    with pytest.raises(
        SettingsDifferError, match=r"precision: there fp32, here it would be bf16.*Give --precision fp32"
    ):
        is_done(replace(plan, precision="bf16"), Cell("small", "sum"))


def test_scores_tell_which_run_they_are_of(plan: Plan) -> None:
    metadata = pq.read_schema(Cell("small", "sum").folder(plan) / SCORES_FILE).metadata
    assert b'"method": "sum"' in metadata[b"ablation"]


def test_runs_hold_on_to_the_labels_and_maps_that_they_read(plan: Plan) -> None:
    layers = {method: set(identity_of(plan, Cell("small", method))["layers"]) for method in METHODS}
    assert layers["human-only"] == set()
    assert layers["vanilla"] == {"masks"}
    assert layers["sum"] == {"masks", "uncertainty/refinement"}
    assert layers["sum-confidence-uncer"] == {"masks", "uncertainty/confidence"}


def test_methods_join_by_name_and_every_run_has_a_folder_of_its_own() -> None:
    plan = Plan(Path("anywhere"))
    cells = cells_of(plan)
    assert {cell.method for cell in cells} == {"sam", *METHODS}
    names = [cell.name for cell in [*cells, *choices(plan)]]
    assert len(set(names)) == len(names)
    settings = [cell.setting for cell in cells]
    assert [*dict.fromkeys(settings)] == ["none", "small", "medium"]
    assert settings == sorted(settings, key=["none", "small", "medium"].index)


def test_settings_choose_the_human_masks() -> None:
    plan = Plan(Path("anywhere"))
    small, medium = (recipe_of(plan, Cell(setting, "sum", seed=3)) for setting in ("small", "medium"))
    assert [each.task for each in small.human] == ["salient"]
    assert [each.task for each in medium.human] == ["salient", "entity"]
    assert (small.method, small.seed) == ("sum", 3)
    decoder = next(cell for cell in cells_of(plan) if cell.variant == "decoder")
    assert recipe_of(plan, decoder).variant == "decoder"
    few = next(cell for cell in cells_of(plan) if cell.variant == "human=60")
    assert recipe_of(plan, few).human[0].limit == 60


def test_settings_are_chosen_on_scenes_and_seeds_that_are_not_reported() -> None:
    plan = Plan(Path("anywhere"))
    reported = cells_of(plan)
    assert {cell.split for cell in choices(plan)} == {"validation"}
    assert {cell.split for cell in reported} == {"held_out"}
    assert {cell.method for cell in choices(plan)} == {"sam", "human-only", "vanilla", "sum"}
    assert not {cell.seed for cell in choices(plan)} & {cell.seed for cell in reported}


def test_page_without_a_mark_is_refused() -> None:
    page = f"{BEGIN.format('a')}\nold\n{END.format('a')}\nafter\n"
    assert fill(page, {"a": "new"}, "page.md") == f"{BEGIN.format('a')}\n\nnew\n\n{END.format('a')}\nafter\n"
    with pytest.raises(InputError, match=r"page.md: expected the lines .*b"):
        fill(page, {"b": "new"}, "page.md")


def test_plan_is_turned_by_options(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    turned = ["--set", "seeds=[4]", "--set", "methods=[sum]", "--set", "studies=false", "--set", "settings=[large]"]
    turned += ["--set", "variants=[filled]"]
    page = tmp_path / "ablation_tables.md"
    page.write_text("".join(f"{BEGIN.format(name)}\n{END.format(name)}\n" for name in (*BLOCKS, *LARGE_BLOCKS)))
    done = CliRunner().invoke(main, ["--out", out, "--report-only", "--docs", str(tmp_path), *turned])
    assert done.exit_code == 0, done.output
    assert "| large | 4 | 0 of 1 |" in page.read_text()
    refused = CliRunner().invoke(main, ["--out", out, "--set", "frozen.coarse_step=3"])
    assert refused.exit_code == 1
    assert "plan: frozen.coarse_step: unknown key; did you mean coarse_steps?" in refused.output
    for name, value in (("variants", "hq-round"), ("settings", "smal"), ("methods", "som")):
        misspelt = CliRunner().invoke(main, ["--out", out, "--set", f"{name}=[{value}]"])
        assert misspelt.exit_code == 1
        assert f"plan: {name}" in misspelt.output
    assert not Path(out, "frozen").exists()
