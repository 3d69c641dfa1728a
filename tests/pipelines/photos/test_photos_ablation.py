"""The ablation on photos, in miniature: every stage runs, comes back to what is there, and says what is compared.

What runs it is that of the micro-world's, whose miniature is no long test.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as rle

from sum_factory.pipelines.microworld.ablation.cells import FROZEN, Cell, recipe_of
from sum_factory.pipelines.microworld.ablation.results import Measure, Results
from sum_factory.pipelines.microworld.ablation.rows import FROZEN_ROW, OURS, row_of
from sum_factory.pipelines.microworld.ablation.work import is_done
from sum_factory.pipelines.photos.ablation.compare import FILLED_ROW, difference_of, read_results, scores_of_row
from sum_factory.pipelines.photos.ablation.data import read_data
from sum_factory.pipelines.photos.ablation.labels import Coverage
from sum_factory.pipelines.photos.ablation.pictures import ADDED, MISSED, RIGHT, draw_errors
from sum_factory.pipelines.photos.ablation.plan import SETTING, PhotosPlan, cells_of_photos
from sum_factory.pipelines.photos.ablation.report import labels_tables
from sum_factory.pipelines.photos.ablation.study import run_photos
from sum_factory.pipelines.photos.ablation.where import differences_by_kind, kinds_of_masks, thin_share
from sum_factory.shared.errors import InputError, SettingsDifferError
from sum_factory.trainer.evaluation.report import ALL

SIDE = 96
KINDS = {"fine": "salient", "things": "entity", "pieces": "part", "plain": "unlabelled"}
BLOCKS = ("progress", "labels", "means", "differences", "where", "charts", "pictures")


def masks_of(number: int) -> np.ndarray:
    """Return two discs that do not touch, bool (2, SIDE, SIDE)."""
    ys, xs = np.mgrid[:SIDE, :SIDE]
    return np.stack([(xs - x) ** 2 + (ys - 48) ** 2 < (10 + number) ** 2 for x in (26, 70)])


def write_set(folder: Path, kind: str, seed: int) -> None:
    """Write a set of six photos of bright discs, two of them to train on and two to test."""
    (folder / "images").mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"kind": "none" if kind == "unlabelled" else kind}))
    rng = np.random.default_rng(seed)
    coco: dict[str, list[object]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "disc"}]}
    for number in range(6):
        masks, key = masks_of(number), f"p{number}"  # the same names in every set
        photo = rng.integers(0, 60, (SIDE, SIDE, 3)) + 180 * masks.any(0)[..., None]
        cv2.imwrite(str(folder / "images" / f"{key}.jpg"), photo.astype(np.uint8))
        if kind == "salient":
            (folder / "masks").mkdir(exist_ok=True)
            cv2.imwrite(str(folder / "masks" / f"{key}.png"), masks[0].astype(np.uint8) * 255)
        coco["images"].append({"id": number, "file_name": f"{key}.jpg", "width": SIDE, "height": SIDE})
        for mask in masks:
            encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
            segmentation = {"size": [SIDE, SIDE], "counts": encoded["counts"].decode()}
            entry = {"id": len(coco["annotations"]) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
            coco["annotations"].append({**entry, "segmentation": segmentation})
    if kind in ("entity", "part"):
        (folder / "instances.json").write_text(json.dumps(coco))
    (folder / "train.txt").write_text("p0\np1\n")
    if kind != "unlabelled":
        (folder / "val.txt").write_text("p4\np5\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set of each kind."""
    folder = tmp_path_factory.mktemp("data")
    for seed, (name, kind) in enumerate(KINDS.items()):
        write_set(folder / name, kind, seed)
    return folder


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a page that has all marks."""
    folder = tmp_path_factory.mktemp("docs")
    marks = [f"<!-- {each}: made by pipelines.photos.ablation -->\n<!-- end of {each} -->\n" for each in BLOCKS]
    (folder / "photos.md").write_text("# Words\n\n" + "\n".join(marks))
    return folder


@pytest.fixture(scope="module")
def plan(data: Path, docs: Path, tmp_path_factory: pytest.TempPathFactory) -> PhotosPlan:
    """A plan that has been carried out; no test may change its folder but for good."""
    plan = PhotosPlan(
        tmp_path_factory.mktemp("photos ablation") / "out",
        data,
        fine=("fine",),
        methods=("human-only", "sum"),
        seeds=(0,),
        rounds=3,
        most_masks=1,
        points_per_side=5,
        precision="fp32",
        fit_changes=("steps=1", "batch=2", "micro_batch=2", "masks=1", "rounds=2"),
        refiner_changes=("steps=1", "batch=2"),
    )
    text = run_photos(plan, 1, docs)
    assert "| sum above SAM, frozen |" in text
    return plan


def results_of(plan: PhotosPlan) -> Results:
    return read_results(plan, cells_of_photos(plan))


@pytest.mark.long
def test_every_run_is_scored_on_the_test_photos_of_all_sets(plan: PhotosPlan) -> None:
    results = results_of(plan)
    assert [cell.name for cell in results.tables] == [cell.name for cell in cells_of_photos(plan)]
    for table in results.tables.values():
        rows = {(row["set"], row["task"], row["image"].partition("/")[2]) for row in table.to_pylist()}
        tested = {name: kind for name, kind in KINDS.items() if kind != "unlabelled"}
        assert rows == {(name, kind, image) for name, kind in tested.items() for image in ("p4", "p5")}
    rows = list(csv.DictReader((plan.out / "ablation.csv").read_text().splitlines()))
    assert {row["task"] for row in rows} == {"salient", "entity", "part", "all"}


@pytest.mark.long
def test_labels_are_of_train_photos_outside_the_fine_sets_and_human_masks_of_these(plan: PhotosPlan) -> None:
    listed = {"/".join(Path(line).parts[-3::2]) for line in (plan.out / "pool.txt").read_text().split()}
    assert listed == {f"{name}/p{n}.jpg" for name in ("things", "pieces", "plain") for n in range(2)}
    for variant, photos in ((Cell(SETTING, "human-only"), 1), (Cell(SETTING, "sum"), 2)):
        recipe = recipe_of(plan, variant)
        assert [each.name for each in recipe.human] == ["fine"]
        assert recipe.photos_of(0) == photos
    filled = next(cell for cell in cells_of_photos(plan) if cell.variant == "filled")
    assert recipe_of(plan, filled).photos_of(0) == 2


@pytest.mark.long
def test_what_is_there_is_left_and_another_plan_refused(plan: PhotosPlan) -> None:
    scores = {cell: (cell.folder(plan) / "scores.parquet").stat().st_mtime_ns for cell in cells_of_photos(plan)}
    run_photos(plan, 1)
    assert scores == {cell: (cell.folder(plan) / "scores.parquet").stat().st_mtime_ns for cell in scores}
    with pytest.raises(SettingsDifferError, match="most_masks"):
        is_done(replace(plan, most_masks=2), FROZEN)
    with pytest.raises(SettingsDifferError, match="steps"):
        is_done(replace(plan, fit_changes=("steps=2", *plan.fit_changes[1:])), Cell(SETTING, "sum"))


@pytest.mark.long
def test_page_has_tables_charts_and_pictures(plan: PhotosPlan, docs: Path) -> None:
    page = (docs / "photos.md").read_text()
    assert "Nothing of this has been run" not in page
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    assert "| human-only, filled | 1 |" in page
    assert "Of 4 labelled photos whose human masks are known" in page
    assert "| 1 to 10 % | 6 |" in page
    assert re.search(r"\| 1 to 10 % \| \d+ % of 4 \| \d+ % of 4 \| \d+ % \|", page)  # entities, parts, labels
    links = set(re.findall(r"\]\(images/(.*?)\)", page))
    assert links == {path.name for path in (docs / "images").iterdir()} >= {"photos_all.svg", "photos.png"}
    overlays, shapes = (cv2.imread(str(path)) for path in (plan.out / "photos.jpg", docs / "images" / "photos.png"))
    assert overlays is not None
    assert shapes is not None
    assert overlays.shape[1] == 5 * 256  # photo, human mask, SAM, human-only, sum: no photo in what enters the page
    assert shapes.shape[1] == 4 * 256


@pytest.mark.long
def test_every_set_counts_once_and_photos_of_equal_names_are_different(plan: PhotosPlan) -> None:
    results, measure = results_of(plan), Measure("mIoU", "box", 1, "single")
    (scores,) = scores_of_row(results, FROZEN_ROW, measure, ALL).values()
    rows = [row for row in results.tables[FROZEN].to_pylist() if row["first"] == "box"]
    by_set = {name: [row["iou"] for row in rows if row["set"] == name] for name in KINDS if name != "plain"}
    assert scores.mean(ALL) == pytest.approx(np.mean([np.mean(values) for values in by_set.values()]))
    assert len(set(scores.images)) == 6
    found = difference_of(results, OURS, FROZEN_ROW, measure, ALL)
    (ours,) = scores_of_row(results, OURS, measure, ALL).values()
    assert found is not None
    assert found.mean == pytest.approx(ours.mean(ALL) - scores.mean(ALL))
    assert difference_of(results, row_of("vanilla"), FILLED_ROW, measure, ALL) is None


@pytest.mark.long
def test_kinds_of_masks_are_of_all_that_were_tested(plan: PhotosPlan) -> None:
    results, measure, ours = results_of(plan), Measure("mIoU"), OURS
    kinds = kinds_of_masks(plan, results, measure)
    sizes, thinness = kinds[:3], kinds[3:]
    assert sum(kind.chosen for kind in sizes).tolist() == sum(kind.chosen for kind in thinness).tolist() == [1] * 6
    # discs of 14 and 15 px in 96: none is thin, all are 1 to 10 % of the photo
    assert [kind.chosen.all() for kind in kinds] == [False, True, False, False, True]
    found = dict(differences_by_kind(results, kinds, ours, FROZEN_ROW, measure))
    (first,), (second,) = (scores_of_row(results, row, measure, ALL).values() for row in (ours, FROZEN_ROW))
    middle = found[kinds[1]]
    assert middle is not None
    assert middle.mean == pytest.approx((first.values - second.values).mean())
    assert found[kinds[0]] is None


def test_share_of_human_masks_that_labels_show_is_told_by_size() -> None:
    labels = [0.001, 0.02, 0.1, 0.5]
    masks = [("part", 0.005, 0.7), ("part", 0.005, 0.2), ("part", 0.01, 0.5), ("entity", 1.0, 0.9)]
    small, middle, large = Coverage(labels, masks).by_size().values()
    assert small == {"labels": 0.25, "masks": {"entity": 0, "part": 2}, "found": {"part": 0.5}}
    assert middle == {"labels": 0.25, "masks": {"entity": 0, "part": 1}, "found": {"part": 1.0}}
    assert large == {"labels": 0.5, "masks": {"entity": 1, "part": 0}, "found": {"entity": 1.0}}


def test_labels_that_nothing_is_known_of_are_told_in_words() -> None:
    found = {"photos": 0, "by size": Coverage([], []).by_size(), "sources": {}}
    assert labels_tables(found).startswith("No label of a photo whose human masks are known")


def test_folders_that_are_no_sets_and_photos_in_both_splits_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fine sets: expected some of fine, pieces, things, found plain"):
        read_data(data, ("plain",))
    folder = shutil.copytree(data, tmp_path / "data")
    (folder / "things" / "val.txt").write_text("p1\np5\n")
    with pytest.raises(InputError, match=r"p1 is in train\.txt and in val\.txt"):
        read_data(folder, ("fine",))
    (folder / "things" / "meta.json").write_text('{"kind": "stuff"}')
    with pytest.raises(InputError, match=r"meta\.json: kind: expected one of .*, found 'stuff'"):
        read_data(folder, ("fine",))
    (folder / "plain" / "train.txt").write_text("p0\np9\n")
    (folder / "things" / "meta.json").write_text('{"kind": "entity"}')
    (folder / "things" / "val.txt").write_text("p5\n")
    with pytest.raises(InputError, match=r"1 photos of train\.txt are missing: p9"):
        list(read_data(folder, ("fine",)).pool)


def test_a_smaller_pool_is_drawn_from_all_sets_the_same_each_time(data: Path, tmp_path: Path) -> None:
    plan = PhotosPlan(tmp_path, data, fine=("fine",))
    assert sorted(plan.labelled) == sorted(plan.opened.pool)
    assert plan.labelled != list(plan.opened.pool)  # photos of a set are not neighbours
    few = replace(plan, pool=4).labelled
    assert few == plan.labelled[:4] == replace(plan, pool=4).labelled
    assert {path.parts[-3] for path in few} > {"things"}


@pytest.mark.long
def test_sets_that_count_as_one_are_one_in_means_and_their_photos_stay_apart(plan: PhotosPlan) -> None:
    measure = Measure("mIoU", "box", 1, "single")
    (apart,) = scores_of_row(results_of(plan), FROZEN_ROW, measure, ALL).values()
    joined = read_results(replace(plan, joined=("things+pieces",)), cells_of_photos(plan))
    (one,) = scores_of_row(joined, FROZEN_ROW, measure, ALL).values()
    assert set(one.tasks) == {"fine", "things+pieces"}
    assert sorted(one.images) == sorted(apart.images)
    by_set = {name: apart.mean(name) for name in ("fine", "things", "pieces")}
    assert one.mean(ALL) == pytest.approx((by_set["fine"] + (by_set["things"] + by_set["pieces"]) / 2) / 2)


def test_sets_are_left_out_of_tests_by_name(data: Path, tmp_path: Path) -> None:
    plan = PhotosPlan(tmp_path, data, fine=("fine",), untested=("things",))
    assert [each.name for each in plan.opened.tested] == ["fine", "pieces"]
    assert "things" in {path.parts[-3] for path in plan.labelled}
    with pytest.raises(
        InputError, match="untested: expected some of fine, pieces, plain, things, once each, found other"
    ):
        read_data(data, ("fine",), ("other",))


@pytest.mark.parametrize("changes", [{"joined": ("things+peices",)}, {"shown": ("peices",)}])
def test_a_name_that_no_set_has_is_refused(data: Path, tmp_path: Path, changes: dict[str, tuple[str, ...]]) -> None:
    plan = PhotosPlan(tmp_path, data, fine=("fine",), **changes)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"{next(iter(changes))}: expected some of .*, once each, found peices"):
        _ = plan.opened


def test_a_set_is_joined_once(data: Path, tmp_path: Path) -> None:
    plan = PhotosPlan(tmp_path, data, fine=("fine",), joined=("things+pieces", "things+fine"))
    with pytest.raises(InputError, match=r"joined: .* found things"):
        _ = plan.opened


def test_errors_are_drawn_apart_from_what_is_right() -> None:
    mask, target = np.zeros((2, 4, 6), bool)
    mask[:, :3], target[:, 2:4] = True, True
    image = draw_errors(mask, target)
    assert [tuple(image[0, x]) for x in range(6)] == [ADDED, ADDED, RIGHT, MISSED, (255,) * 3, (255,) * 3]


def test_what_is_thin_is_told_from_what_is_full() -> None:
    disc, comb = np.zeros((2, 200, 200), bool)
    disc[50:150, 50:150] = True
    comb[50:60, 20:180] = True  # ten wide
    comb[60:120, 20:180:8] = True  # and teeth of one
    assert thin_share(disc) == 0
    assert thin_share(comb) == pytest.approx(20 * 60 / comb.sum())
    assert thin_share(np.ones((90, 90), bool)) == 0  # the edge of a photo is no outline
