"""`trainer data check`: what it says of recipes, suites and folders, and what it draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sum_factory.trainer.cli import main
from sum_factory.trainer.data.contact_sheet import CAPTION, GAP, HEIGHT, contact_sheet
from sum_factory.trainer.data.human import HumanSample
from sum_factory.trainer.data.sets import open_set
from sum_factory.trainer.evaluation.suites import read_suite
from sum_factory.trainer.settings import read_settings


def check(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", "check", *map(str, arguments)])


def pairs(folder: Path, images: str = "images", masks: str = "masks", masks_end: str = ".png") -> None:
    for number in range(3):
        for name in (images, masks):
            (folder / name).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / images / f"{number}.jpg")
        mask = np.zeros((30, 40), np.uint8)
        mask[:15, : 10 + number] = 1
        Image.fromarray(mask).save(folder / masks / f"{number}{masks_end}")


def test_recipe_is_told_of_without_variables_that_its_sets_do_not_need(tmp_path: Path) -> None:
    pairs(tmp_path)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "sam: ${SAM}\nshards: ${SHARDS}\nhuman:\n"
        "- {kind: folder-pairs, name: one, task: salient, images: '${D}/images', masks: '${D}/masks'}\n"
        "validation:\n  every: 3\n  sets:\n"
        "  - {kind: label-maps, name: two, task: part, images: '${D}/images', labels: '${D}/masks'}\n"
    )
    result = check(recipe, "--var", f"D={tmp_path}", "--sheet", tmp_path / "sheet.jpg")
    assert result.exit_code == 0, result.output
    assert "one\n  3 photos, the first is 0\n  foreground is 1 (of 0 and 1)" in result.output
    assert "two\n  3 photos" in result.output
    assert "3 photos were read, with 3 masks: 0 empty, 0 full, 14% of the photo on average" in result.output
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.height == GAP + 2 * (CAPTION + HEIGHT + GAP)


def test_set_that_cannot_be_used_is_told_beside_those_that_can(tmp_path: Path) -> None:
    pairs(tmp_path)
    suite = tmp_path / "suite.yaml"
    one = "{kind: folder-pairs, task: salient, images: '${D}/images', masks: '${D}/MASKS', name: NAME}"
    bad, good = (
        one.replace("MASKS", "none").replace("NAME", "bad"),
        one.replace("MASKS", "masks").replace("NAME", "good"),
    )
    suite.write_text(f"sets:\n- {bad}\n- {good}\n")
    result = check(suite, "--var", f"D={tmp_path}", "--sheet", tmp_path / "sheet.jpg")
    assert result.exit_code == 1
    assert "bad\n  cannot be used: " in result.output
    assert f"{tmp_path}/none: no such folder" in result.output
    assert "good\n  3 photos" in result.output
    assert "error: 1 of 2 sets cannot be used as they are: bad" in result.output
    assert (tmp_path / "sheet.jpg").is_file()


def test_all_photos_are_read_if_asked_for(tmp_path: Path) -> None:
    pairs(tmp_path)
    path = tmp_path / "images" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-80])
    sheet = ("--sheet", tmp_path / "sheet.jpg", "--photos", 1)
    assert check(tmp_path, *sheet).exit_code == 0
    result = check(tmp_path, *sheet, "--all")
    assert result.exit_code == 1
    assert "2 photos were read, with 2 masks" in result.output
    assert "cannot be read: " in result.output
    assert "1.jpg: damaged" in result.output


@pytest.mark.parametrize(
    ("images", "masks", "masks_end"),
    [("images", "masks", ".png"), ("im", "gt", ".png"), ("", "", ".png"), ("", "", "_mask.png"), ("x", "x", ".png")],
)
def test_folder_is_guessed_and_described_as_a_recipe_would(
    images: str, masks: str, masks_end: str, tmp_path: Path
) -> None:
    pairs(tmp_path / "set", images, masks, masks_end)
    result = check(tmp_path / "set", "--sheet", tmp_path / "sheet.jpg")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if "in a recipe: - " in line]
    (tmp_path / "suite.yaml").write_text("sets: [" + line.split("in a recipe: - ")[1] + "]")
    (settings,) = read_suite(tmp_path / "suite.yaml", {}).sets
    assert len(open_set(settings).keys) == 3


def test_coco_file_in_a_folder_is_guessed(tmp_path: Path) -> None:
    pairs(tmp_path)
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 40, "height": 30} for n in range(3)]
    annotations = [{"id": n, "image_id": n, "segmentation": [[1, 1, 9, 1, 9, 9]]} for n in range(3)]
    (tmp_path / "annotations").mkdir()
    content = {"images": images, "annotations": annotations}
    (tmp_path / "annotations" / "all.json").write_text(json.dumps(content))
    (tmp_path / "package.json").write_text("{}")
    result = check(tmp_path, "--sheet", tmp_path / "sheet.jpg")
    assert result.exit_code == 0, result.output
    assert "kind: coco" in result.output


def test_folder_of_something_else_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpg")
    result = check(tmp_path)
    assert result.exit_code == 1
    assert "no photos with masks found; expected folders of photos and of masks" in result.output


def test_sheet_shows_masks_where_they_are() -> None:
    photo = np.full((HEIGHT, HEIGHT, 3), 100, np.uint8)
    mask = np.zeros((1, HEIGHT, HEIGHT), bool)
    mask[0, :90] = True
    sheet = contact_sheet([("t\u00eftle", [HumanSample("a", photo, 1, 1, lambda numbers: mask[list(numbers)])])])
    top, bottom = sheet[GAP + CAPTION + 45, GAP + 90], sheet[GAP + CAPTION + 135, GAP + 90]
    assert np.array_equal(bottom, (100, 100, 100))
    assert np.abs(top.astype(int) - 100).max() > 30
    assert sheet[: GAP + CAPTION].min() < 128, "the title"


def test_only_asked_keys_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x: ${NONE}\ny: [1]\n")
    assert read_settings(tmp_path / "a.yaml", dict[str, list[int]], {}, only=("y",)) == {"y": [1]}


def test_recipe_without_sets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("humans:\n- {kind: folder-pairs}\n")
    result = check(tmp_path / "mine.yaml")
    assert result.exit_code == 1
    assert "has no sets of photos and masks; expected some under" in result.output
