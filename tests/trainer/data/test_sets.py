"""Sets of human masks as recipes describe them: which samples are in, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from sum_factory.shared.errors import InputError
from sum_factory.trainer.data.human import CocoInstances, FolderPairs, LabelMaps
from sum_factory.trainer.data.sets import CocoSettings, FolderPairsSettings, LabelMapsSettings, SetSettings, open_set

ADAPTER: TypeAdapter[SetSettings] = TypeAdapter(SetSettings)


@pytest.fixture
def salient(human_sets: tuple[SetSettings, ...]) -> FolderPairsSettings:
    """Five folder pairs, photo0 to photo4."""
    settings = human_sets[0]
    assert isinstance(settings, FolderPairsSettings)
    return settings


def test_each_kind_opens_as_its_layout(human_folder: Path, tmp_path: Path) -> None:
    images = human_folder / "images"
    annotation = {"id": 1, "image_id": 1, "segmentation": [[1, 1, 20, 1, 20, 20]]}
    listed = {"images": [{"id": 1, "file_name": "photo0.png"}], "annotations": [annotation]}
    (tmp_path / "coco.json").write_text(json.dumps(listed))
    kinds: list[tuple[dict[str, Any], type, int]] = [
        ({"kind": "folder-pairs", "masks": human_folder / "salient", "task": "salient"}, FolderPairs, 1),
        ({"kind": "label-maps", "labels": human_folder / "part", "task": "part"}, LabelMaps, 3),
        ({"kind": "coco", "annotations": tmp_path / "coco.json", "task": "entity"}, CocoInstances, 2),
    ]
    for fields, layout, task in kinds:
        opened = open_set(ADAPTER.validate_python({"images": images, **fields}))
        assert isinstance(opened, layout)
        assert opened.task == task
        assert opened.load(0).key == opened.keys[0] == "photo0"


def test_ignored_values_are_the_recipes(human_folder: Path) -> None:
    settings = LabelMapsSettings("label-maps", human_folder / "images", human_folder / "part", "part")
    assert len(open_set(settings).load(1).masks) == 3
    assert len(open_set(replace(settings, ignored=(0, 3, 255))).load(1).masks) == 2
    assert len(open_set(replace(settings, ignored=())).load(1).masks) == 4


def test_list_and_limit_choose_samples_in_the_sets_order(salient: FolderPairsSettings, tmp_path: Path) -> None:
    chosen = tmp_path / "list.txt"
    chosen.write_text("photo3\n\n  photo1\nphoto0\n")
    listed = open_set(replace(salient, list=chosen))
    assert listed.keys == ["photo0", "photo1", "photo3"]
    assert [listed.load(index).key for index in range(3)] == listed.keys
    assert listed.task == 1
    assert open_set(replace(salient, limit=2)).keys == ["photo0", "photo1"]
    assert open_set(replace(salient, list=chosen, limit=1)).keys == ["photo0"]
    assert open_set(replace(salient, limit=99)).keys == [f"photo{n}" for n in range(5)]


def test_stem_that_is_not_in_the_set_is_named(salient: FolderPairsSettings, tmp_path: Path) -> None:
    chosen = tmp_path / "list.txt"
    chosen.write_text("photo1\nphoto9\nphoto8\n")
    with pytest.raises(InputError, match=r"list\.txt: 2 of its stems are not in the set, the first is 'photo8'"):
        open_set(replace(salient, list=chosen))
    with pytest.raises(InputError, match=r"none\.txt: cannot be read"):
        open_set(replace(salient, list=tmp_path / "none.txt"))


def test_set_without_samples_is_refused(salient: FolderPairsSettings, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(InputError, match="images: no samples; check list, match, limit"):
        open_set(replace(salient, list=tmp_path / "list.txt"))


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "folder-pears"},
        {"task": "saliency"},
        {"labels": "c"},
        {"masks": None},
        {"limit": 0},
        {"foreground": "white"},
        {"skip": "all"},
        {"orientation": "upright"},
        {"most_blank": 2},
    ],
)
def test_wrong_descriptions_are_refused(fields: dict[str, Any]) -> None:
    right = {"kind": "folder-pairs", "images": "a", "masks": "b", "task": "salient"}
    assert ADAPTER.validate_python(right) == FolderPairsSettings("folder-pairs", Path("a"), Path("b"), "salient")
    with pytest.raises(ValidationError):
        ADAPTER.validate_python({**right, **fields})


def test_kinds_are_told_apart_by_their_name() -> None:
    coco = ADAPTER.validate_python({"kind": "coco", "annotations": "a.json", "images": "b", "task": "part", "limit": 3})
    assert coco == CocoSettings("coco", Path("a.json"), Path("b"), "part", limit=3)
