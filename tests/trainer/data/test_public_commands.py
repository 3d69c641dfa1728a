"""`trainer data check SET`, `list` and `fetch-help`: what they say of public sets, and when they fail."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sum_factory.trainer.cli import main
from sum_factory.trainer.data.public import declarations, public_sets
from sum_factory.trainer.data.sets import open_set
from sum_factory.trainer.evaluation.suites import read_suite

HQ = "thin_object_detection/HRSOD"


def data(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


def check(name: str, root: Path, *more: str) -> Result:
    return data("check", name, "--root", root, "--sheet", root / "sheet.jpg", *more)


def save(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def hrsod(root: Path, photos: int = 3) -> None:
    mask = np.zeros((24, 32), np.uint8)
    mask[3:9, 4:14] = 255
    for number in range(photos):
        save(root / HQ / f"images/{number}.jpg", np.full((24, 32, 3), 40 * number))
        save(root / HQ / f"masks_max255/{number}.png", mask)


def publish(monkeypatch: pytest.MonkeyPatch, name: str, **facts: Any) -> None:
    """Let a set be published with other facts."""
    known = {**public_sets(), name: replace(public_sets()[name], **facts)}
    monkeypatch.setattr(declarations, "public_sets", lambda: known)


def test_set_as_published_is_said_to_be_and_can_be_named_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hrsod(tmp_path)
    publish(monkeypatch, "hrsod", photos=3, masks=3)
    result = check("hrsod", tmp_path)
    assert result.exit_code == 0, result.output
    for line in (
        f"read from {tmp_path / HQ / 'images'}",
        "photos: 3, as published",
        "masks: 3, as published",
        "verdict: what is published",
    ):
        assert line in result.output
    assert (tmp_path / "sheet.jpg").is_file()
    (line,) = [line for line in result.output.splitlines() if "in a recipe: - " in line]
    (tmp_path / "suite.yaml").write_text("sets: [" + line.split("in a recipe: - ")[1] + "]")
    (settings,) = read_suite(tmp_path / "suite.yaml", {}).sets
    assert len(open_set(settings).keys) == 3


@pytest.mark.parametrize(
    ("facts", "options", "status", "words"),
    [
        ({"photos": 4, "masks": 4}, (), 1, "photos: 3 of 4 that are published: 1 are missing"),
        ({"photos": 4, "masks": 4}, ("--subset",), 0, "verdict: a part of what is published"),
        ({"photos": 2, "masks": 2}, (), 1, "photos: 3, more than the 2 that are published"),
        ({"photos": 2, "masks": 2}, ("--subset",), 1, "verdict: not what is published"),
        ({"photos": 3, "masks": 4}, (), 1, "masks: 3 of 4 that are published: 1 are missing"),
        ({"photos": 5, "masks": 5, "unusable": 2}, (), 0, "the others are known to be unusable"),
        ({"photos": 6, "masks": 6, "unusable": 2}, (), 1, "photos: 3 of 6"),
        ({"photos": 9, "masks": 3, "blank_photos": True}, (), 0, "those without a mask are left out"),
        ({"photos": 9, "masks": None, "not_checked": ("photos",)}, (), 0, "9 may be published, which was not checked"),
        ({"photos": None, "masks": None}, (), 0, "there is no count to compare with"),
    ],
)
def test_counts_are_compared_with_those_published(
    facts: dict[str, Any],
    options: tuple[str, ...],
    status: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hrsod(tmp_path)
    publish(monkeypatch, "hrsod", **facts)
    result = check("hrsod", tmp_path, *options)
    assert result.exit_code == status, result.output
    assert words in result.output
    assert ("1 of 1 sets are not what is published: HRSOD" in result.output) == (status == 1)


@pytest.mark.parametrize("missing", [0, 1])
def test_missing_photo_is_no_photo_without_masks(missing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where some photos have no mask, fewer are no sign; but those that are listed have to be there."""
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 32, "height": 24} for n in range(4)]
    square = [[4, 4, 14, 4, 14, 14, 4, 14]]
    annotations = [{"id": n, "image_id": n, "category_id": 1, "segmentation": square} for n in range(3)]
    trash = tmp_path / "dataset/instance_version"
    for number in range(4 - missing):
        save(trash / f"val/{3 - number}.jpg", np.full((24, 32, 3), 9))
    (trash / "instances_val_trashcan.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    publish(monkeypatch, "trashcan-val", photos=4)
    result = check("trashcan-val", tmp_path)
    assert (result.exit_code, "verdict: not what is published" in result.output) == (missing, bool(missing))


def test_masks_of_label_maps_are_compared_when_all_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.zeros((24, 32), np.uint8)
    labels[3:9, 4:14], labels[12:18, 4:14] = 1, 4
    save(tmp_path / "EgoHOS/val/image/a.jpg", np.full((24, 32, 3), 90))
    save(tmp_path / "EgoHOS/val/label/a.png", labels)
    publish(monkeypatch, "egohos-val", photos=1, masks=3, not_checked=())
    assert "masks: 3 are published; --all counts what is here" in check("egohos-val", tmp_path).output
    result = check("egohos-val", tmp_path, "--all")
    assert result.exit_code == 1
    assert "masks: 2 of 3 that are published: 1 are missing" in result.output


def test_chosen_photos_of_a_suite_are_not_compared(tmp_path: Path) -> None:
    hrsod(tmp_path)
    (tmp_path / "suite.yaml").write_text("sets: [{set: hrsod, root: '${D}', limit: 2}]")
    command = ("check", tmp_path / "suite.yaml", "--var", f"D={tmp_path}", "--sheet", tmp_path / "sheet.jpg")
    result = data(*command)
    assert result.exit_code == 0, result.output
    assert "not compared with what is published" in result.output
    (tmp_path / "suite.yaml").write_text("sets: [{set: hrsod, root: '${D}'}]")
    assert data(*command).exit_code == 1
    assert data(*command, "--subset").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "hrsod"), "hrsod: a public set; say where it lies with --root"),
        (("check", "hrsd", "--root", "."), "no public set of the name 'hrsd'; did you mean hrsod?"),
        (("check", "paper14", "--root", "."), "no public set of the name 'paper14'"),
        (("fetch-help", "hrsd"), "did you mean hrsod?"),
        (("fetch-help", "ft_large"), "ft_large: names no public set"),
    ],
)
def test_wrong_names_are_refused(arguments: tuple[str, ...], message: str) -> None:
    result = data(*arguments)
    assert result.exit_code == 1
    assert message in result.output


def test_list_has_every_set_and_marks_what_was_not_checked() -> None:
    _, *rows = data("list").output.splitlines()
    assert [row.split()[0] for row in rows] == list(public_sets())
    told = {row.split()[0]: row for row in rows}
    assert " 1,124 (not checked) " in told["egohos-val"]
    assert " 287 " in told["hrsod"]
    assert "not known" in told["ishape-val"]
    assert {name for name, each in public_sets().items() if "licence" in each.not_checked} == {
        name for name, row in told.items() if row.endswith("(not checked)")
    }


def test_help_names_source_and_tree_of_each_set_once() -> None:
    every = "\n".join(data("fetch-help", name, "--root", "/data").output for name in public_sets())
    for name, public in public_sets().items():
        assert f"then: trainer data check {name} --root /data" in every
        assert all(line in every for line in public.unpack.splitlines())
    suite = data("fetch-help", "paper14").output
    assert suite.count("sam-hq-team/sam-hq-training") == 1
    assert suite.count("then: trainer data check") == 14
    assert "what its values mean: not checked" in data("fetch-help", "coift").output


def test_tree_that_help_shows_begins_where_the_set_is_looked_for() -> None:
    """The first folder of each layout, or that of the set, stands in its tree."""
    for name, public in public_sets().items():
        first = {
            str(part["images"]).split("/")[0] for layout in public.layouts for part in layout.get("sets", [layout])
        }
        assert public.folder or any(each in public.unpack for each in first), name
        assert not public.folder or f"{public.folder}/" in public.unpack, name
