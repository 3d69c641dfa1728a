"""Public sets are read from the layouts in which they are published: miniatures, whose masks are those that were drawn.

Each miniature has the odd files of its set, and those that macOS adds to archives.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from miniatures.annotations import sa_1b
from miniatures.cases import CASES, require_drawn
from miniatures.label_maps import pascal_part
from miniatures.pictures import save_photo
from sum_factory.shared.errors import InputError
from sum_factory.trainer.data.public import public_sets
from sum_factory.trainer.data.sets import PublicSettings, open_set


def add_files_of_macos(root: Path) -> None:
    """Add what macOS adds to archives: a file beside each, and a folder of such files."""
    for path in [path for path in root.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
        other = root / "__MACOSX" / path.relative_to(root).with_name(f"._{path.name}")
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(b"\0\5\26\7")


@pytest.mark.parametrize("case", CASES)
def test_set_is_read_from_its_published_layout(case: str, tmp_path: Path) -> None:
    name, build = CASES[case]
    drawn = build(tmp_path)
    add_files_of_macos(tmp_path)
    settings = PublicSettings(name, tmp_path)
    opened = open_set(settings)
    require_drawn(opened, drawn)
    assert opened.task == {"salient": 1, "entity": 2, "part": 3, "unspecified": 0}[public_sets()[name].task]


def test_height_beside_the_colours_of_a_photo_is_dropped(tmp_path: Path) -> None:
    CASES["IBD val"][1](tmp_path)
    image = open_set(PublicSettings("ibd-val", tmp_path)).load(0).image
    with Image.open(tmp_path / "IBD/val/r.png") as stored:
        assert np.array_equal(image, np.asarray(stored)[..., :3])


def test_every_set_has_a_miniature_and_a_name_of_its_own() -> None:
    assert {name for name, _ in CASES.values()} == set(public_sets())
    titles = [each.title for each in public_sets().values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(
    ("set_", "place"),
    [("hrsod", "HRSOD"), ("hrsod", "thin_object_detection"), ("hrsod", "."), ("hrsod", "..")],
)
def test_root_may_be_any_folder_that_leads_to_a_set(set_: str, place: str, tmp_path: Path) -> None:
    drawn = CASES["HRSOD"][1](tmp_path / "data")
    folders = {"HRSOD": "data/thin_object_detection/HRSOD", "thin_object_detection": "data/thin_object_detection"}
    root = tmp_path / folders.get(place, "data" if place == "." else ".")
    require_drawn(open_set(PublicSettings(set_, root)), drawn)


def test_folder_of_a_set_may_have_any_name_if_it_is_given(tmp_path: Path) -> None:
    drawn = CASES["EasyPortrait val"][1](tmp_path)
    (tmp_path / "EasyPortrait").rename(tmp_path / "faces")
    require_drawn(open_set(PublicSettings("easyportrait-val", tmp_path / "faces")), drawn)
    with pytest.raises(InputError, match="EasyPortrait is not there; expected images/val, annotations/val in EasyPort"):
        open_set(PublicSettings("easyportrait-val", tmp_path))


def test_set_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for copy in ("one", "two"):
        CASES["COIFT"][1](tmp_path / copy)
    with pytest.raises(
        InputError, match=r"COIFT is there several times, in \S+one\S* and \S+two\S*; give one of these"
    ):
        open_set(PublicSettings("coift", tmp_path))
    open_set(PublicSettings("coift", tmp_path / "one"))


def test_what_is_missing_of_a_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; expected one that holds HRSOD"):
        open_set(PublicSettings("hrsod", tmp_path / "none"))
    save_photo(tmp_path / "thin_object_detection/HRSOD/images/a.jpg")
    with pytest.raises(InputError, match=r"has HRSOD/images, but not HRSOD/masks_max255; .*fetch-help hrsod"):
        open_set(PublicSettings("hrsod", tmp_path))


def test_overrides_choose_among_the_photos_of_a_set(tmp_path: Path) -> None:
    drawn = CASES["iShape"][1](tmp_path)
    chosen = open_set(PublicSettings("ishape-val", tmp_path, match="*n*", limit=2))
    require_drawn(chosen, {key: drawn[key] for key in ("antenna/0", "branch/0")})
    assert chosen.keys == ["antenna/0", "branch/0"]
    assert open_set(PublicSettings("ishape-val", tmp_path, limit=2)).mask_count is None
    CASES["VOC val"][1](tmp_path)
    (tmp_path / "mine.txt").write_text("a\n")
    with pytest.raises(InputError, match="voc2012-val: its photos are chosen by list already"):
        open_set(PublicSettings("voc2012-val", tmp_path, list=tmp_path / "mine.txt"))


def test_line_that_the_list_does_not_have_is_refused(tmp_path: Path) -> None:
    CASES["MHP v1 val"][1](tmp_path)
    (tmp_path / "LV-MHP-v1/train_list.txt").write_text("0001.jpg\n" * 3999)
    with pytest.raises(InputError, match="has 3999 lines; expected 4000"):
        open_set(PublicSettings("mhp-v1-val", tmp_path))


def test_damaged_matlab_file_is_named(tmp_path: Path) -> None:
    pascal_part(tmp_path)
    (tmp_path / "Annotations_Part/2008_000002.mat").write_bytes(b"MATLAB 5.0 MAT-file" * 9)
    opened = open_set(PublicSettings("pascal-part", tmp_path))
    with pytest.raises(InputError, match=r"2008_000002\.mat: expected a MATLAB file of Pascal-Part"):
        opened.load(1)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"image": {}, "annotations": {}}', '{"images": [], "annotations": []}']
)
def test_folder_of_other_json_files_is_refused(content: str, tmp_path: Path) -> None:
    sa_1b(["SA-1B"])(tmp_path)
    (tmp_path / "SA-1B/other.json").write_text(content)
    with pytest.raises(InputError, match=r"other\.json: expected the JSON of one photo: as in SA-1B"):
        open_set(PublicSettings("sa-1b", tmp_path))
