"""Ids, names, crowds and categories of COCO files, however people write them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from coco_content import HEIGHT, WIDTH, Record, annotation, image, opened, save_photo, square
from sum_factory.shared.errors import InputError
from sum_factory.trainer.data.sets import CocoSettings, open_set


@pytest.mark.parametrize("yes", [1, True, 1.0, "1", "true", " True "])
@pytest.mark.parametrize("no", [0, False, 0.0, "0", "false", "", None])
def test_crowds_are_told_by_whatever_tools_write_for_truth(yes: Any, no: Any, tmp_path: Path) -> None:
    found = opened(tmp_path, [annotation(number=1, iscrowd=yes), annotation([[1, 1, 9, 1, 9, 9]], 2, iscrowd=no)])
    expected = coco_mask.decode(coco_mask.frPyObjects([[1, 1, 9, 1, 9, 9]], HEIGHT, WIDTH)[0]).astype(bool)
    assert np.array_equal(found.load(0).masks, expected[None])
    assert any("left out 1 crowds" in line for line in found.findings)


@pytest.mark.parametrize("strange", [2, -1, "perhaps", [1], {"is": 1}, float("nan")])
def test_crowds_of_no_known_truth_are_refused_or_left_out(strange: Any, tmp_path: Path) -> None:
    annotations = [annotation(number=1), annotation(number=2, iscrowd=strange), annotation(number=3, iscrowd="1")]
    with pytest.raises(InputError, match=r"1 have an iscrowd that is neither 0 nor 1 \(the first: annotation 2, "):
        opened(tmp_path, annotations)
    assert opened(tmp_path, annotations, skip="problems").load(0).count == 1


def test_nulls_are_as_if_nothing_stood_there(tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "a.png")
    listed = [{"id": 1, "file_name": "a.png", "width": None, "height": None, "coco_url": None, "license": None}]
    nulls = dict.fromkeys(("id", "iscrowd", "bbox", "area", "category_id", "score"))
    found = opened(tmp_path, [annotation(**nulls)], listed, {"info": None, "categories": None, "licenses": None})
    assert np.array_equal(found.load(0).masks, square()[None])
    unnamed = {"categories": [{"id": 1, "name": None, "supercategory": None}, {"id": None, "name": "None"}]}
    with pytest.raises(InputError, match="has no category 'None'"):
        opened(tmp_path, [annotation()], listed, unnamed, categories=("None",))


def test_ids_are_the_same_as_numbers_floats_and_texts(tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "a.png")
    named = {"categories": [{"id": "7", "name": "cat"}]}
    kinds = [annotation(number=n, image_id=image_id, category_id=7.0) for n, image_id in enumerate((1, 1.0, "1"))]
    for listed in ([image("1")], [image(1.0)]):  # type: ignore[arg-type]
        assert opened(tmp_path, kinds, listed, named, categories=("cat",)).load(0).count == 3
    with pytest.raises(InputError, match="1 are of images that the file does not list"):
        opened(tmp_path, [*kinds, annotation(image_id=True)], [image(1)])


def test_id_of_two_photos_is_refused_and_equal_entries_are_one(tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "a.png")
    save_photo(tmp_path / "images" / "b.png")
    with pytest.raises(InputError, match=r"1 is of a\.png and of a\.png, of another size"):
        opened(tmp_path, [annotation()], [image(), {**image(), "width": 2 * WIDTH}])
    images = [image(), image(2, "b.png"), image(1, "b.png")]
    other = annotation(number=2, image_id=2)
    with pytest.raises(InputError, match=r"1 have the id of another \(the first: 1 is of a\.png and of b\.png\)"):
        opened(tmp_path, [annotation(), other], images)
    assert opened(tmp_path, [annotation(), other], images, skip="problems").keys == ["b"]
    assert opened(tmp_path, [annotation()], [image(), image()]).keys == ["a"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": 1}, "have no file_name"),
        ({"file_name": "a.png"}, "have no id"),
        (image(width=0), "is no size"),
        (image(width="wide"), "is no size"),
        (image(width=10**6, height=10**6), "is no size"),
        (image(width=float("inf")), "is no size"),
        (image(width=WIDTH + 4), r"a\.png: 40 x 30, but .* 44 x 30"),
        (image(name="gone.png"), r"gone\.png: missing"),
        (image(name="../a.png"), "leads out of"),
        (image(name="/etc/a.png"), "leads out of"),
    ],
)
def test_images_that_cannot_be_used_are_refused(entry: Record, message: str, tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "a.png")
    with pytest.raises(InputError, match=message):
        opened(tmp_path, [annotation()], [entry])


def test_photo_that_is_missing_is_left_out_if_told(tmp_path: Path) -> None:
    for name in "abc":
        save_photo(tmp_path / "images" / f"{name}.png")
    images = [image(n, f"{name}.png") for n, name in enumerate("abcd", 1)]
    annotations = [annotation(number=n, image_id=n) for n in range(1, 5)]
    assert opened(tmp_path, annotations, images, skip="problems").keys == ["a", "b", "c"]


@pytest.mark.parametrize("content", ["[1]", '{"images": {}}', '{"images": [1], "annotations": []}', "{", "[" * 9000])
def test_other_json_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "coco.json").write_text(content)
    with pytest.raises(InputError, match=r"coco\.json: expected COCO instances JSON"):
        open_set(CocoSettings("coco", tmp_path / "coco.json", tmp_path, "entity"))


def test_photos_are_found_where_archives_put_them(tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "entity_01" / "images_merge" / "a.png")
    save_photo(tmp_path / "images" / "entity_02" / "a.png", (20, 20))
    images = [image(name="entity_01/a.png"), image(2, "entity_02/a.png", width=20, height=20)]
    found = opened(tmp_path, [annotation(), annotation(number=2, image_id=2)], images)
    assert found.keys == ["entity_01/a", "entity_02/a"]
    assert found.load(0).image.shape == (HEIGHT, WIDTH, 3)
    assert any("1 photos were found in other folders" in line for line in found.findings)


def test_coco_url_names_photos_that_have_no_file_name(tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "train2017" / "7.png")
    entry = {"id": 1, "coco_url": "http://images.example/train2017/7.png", "height": HEIGHT, "width": WIDTH}
    assert opened(tmp_path, [annotation()], [entry]).keys == ["train2017/7"]


CATEGORIES = [
    {"id": 0, "name": "cup", "supercategory": "OBJECT"},
    {"id": 1, "name": "cup:handle", "supercategory": "PART"},
    {"id": 2, "name": "knife:handle", "supercategory": "PART"},
]


@pytest.mark.parametrize(
    ("categories", "taken"),
    [((), [0, 1, 2]), ((0, 2), [0, 2]), (("PART",), [1, 2]), (("cup*",), [0, 1]), (("cup", 2), [0, 2])],
)
def test_categories_are_chosen_by_id_name_and_supercategory(
    categories: tuple[int | str, ...], taken: list[int], tmp_path: Path
) -> None:
    drawn = [annotation([[n, n, n + 9, n, n + 9, n + 9, n, n + 9]], n, category_id=n) for n in range(3)]
    masks = opened(tmp_path, drawn, more={"categories": CATEGORIES}, categories=categories).load(0).masks
    assert [int(np.flatnonzero(mask.any(0))[0]) for mask in masks] == taken


def test_category_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no category 'knife:handel'; did you mean 'knife:handle'"):
        opened(tmp_path, [annotation()], more={"categories": CATEGORIES}, categories=("knife:handel",))


def test_photo_of_another_folder_is_no_stand_in(tmp_path: Path) -> None:
    """Of two photos of one name, that of the folder which is there."""
    save_photo(tmp_path / "images" / "train" / "0.png")
    with pytest.raises(InputError, match=r"val/0\.png: missing"):
        opened(tmp_path, [annotation()], [image(name="val/0.png")])


@pytest.mark.parametrize(
    ("on_disk", "written", "key"),
    [
        (b"d\xff/caf\xe9.png", r"d\xff/caf\xe9.png", r"d\xff/caf\xe9"),
        (b"caf\xe9.png", "caf\udce9.png", r"caf\xe9"),
        (b"a\\xe9.png", r"a\xe9.png", r"a\xe9"),
        (b"d/x12.png", r".\d\x12.png", "d/x12"),
    ],
)
def test_names_with_backslashes_are_escapes_or_folders(on_disk: bytes, written: str, key: str, tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / os.fsdecode(on_disk))
    found = opened(tmp_path, [annotation()], [image(name=written)])
    assert found.keys == [found.load(0).key] == [key]


def test_file_that_two_names_lead_to_is_refused(tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "0.png")
    listed = [image(name="val/0.png"), image(2, "train/0.png")]
    with pytest.raises(InputError, match=r"0\.png is both val/0\.png and train/0\.png"):
        opened(tmp_path, [annotation(), annotation(number=2, image_id=2)], listed)


def test_category_is_found_by_its_own_name_and_none_without_an_id(tmp_path: Path) -> None:
    named = {"categories": [{"id": 1, "name": "cat [big]"}, {"name": "dog"}]}
    assert len(opened(tmp_path, [annotation()], more=named, categories=("cat [big]",)).keys) == 1
    with pytest.raises(InputError, match="has no category 'dog'"):
        opened(tmp_path, [annotation()], more=named, categories=("dog",))
