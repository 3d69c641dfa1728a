"""Names of photos and masks as archives, systems and lists have them."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sum_factory.shared.errors import InputError
from sum_factory.trainer.data.human import HumanSet
from sum_factory.trainer.data.sets import FolderPairsSettings, LabelMapsSettings, open_set


def save(path: Path, seed: int = 0) -> None:
    """Write a mask for a PNG, and a photo for anything else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
    if path.suffix == ".png":
        mask = np.zeros((20, 30), np.uint8)
        mask[3:9, 4 : 9 + seed] = 255
        Image.fromarray(mask).save(path)
    else:
        Image.fromarray(pixels).save(path)


def opened(images: Path, masks: Path, **changes: Any) -> HumanSet:
    return open_set(FolderPairsSettings("folder-pairs", images, masks, "salient", **changes))


def test_hidden_files_and_those_of_macos_are_passed_over(tmp_path: Path) -> None:
    for name in ("images/a.jpg", "masks/a.png", "images/.thumbs/a.jpg", "masks/__MACOSX/b.png"):
        save(tmp_path / name)
    for name in ("images/._a.jpg", "masks/._a.png", "masks/.DS_Store"):
        (tmp_path / name).write_bytes(b"\0\5\26\7 Mac OS X")
    assert opened(tmp_path / "images", tmp_path / "masks").keys == ["a"]


def test_composed_and_decomposed_names_are_the_same(tmp_path: Path) -> None:
    name = "caf\u00e9"
    save(tmp_path / "images" / (unicodedata.normalize("NFD", name) + ".jpg"))
    save(tmp_path / "masks" / (unicodedata.normalize("NFC", name) + ".png"))
    (tmp_path / "list.txt").write_text(unicodedata.normalize("NFD", name), encoding="utf-8")
    assert opened(tmp_path / "images", tmp_path / "masks", list=tmp_path / "list.txt").keys == [name]


def test_keys_of_names_that_are_not_utf8_can_be_written(tmp_path: Path) -> None:
    save(tmp_path / "images" / os.fsdecode(b"caf\xe9.jpg"))
    save(tmp_path / "masks" / os.fsdecode(b"caf\xe9.png"))
    found = opened(tmp_path / "images", tmp_path / "masks")
    assert found.keys == [found.load(0).key] == [r"caf\xe9"]


def test_photos_and_masks_lie_side_by_side(tmp_path: Path) -> None:
    for stem in "ba":
        save(tmp_path / f"{stem}.jpg")
        save(tmp_path / f"{stem}.png", seed=4)
    found = opened(tmp_path, tmp_path)
    assert found.keys == ["a", "b"]
    assert found.load(0).masks.sum() == 6 * 9


def test_patterns_tell_photos_from_masks_and_other_files(tmp_path: Path) -> None:
    for name in ("p_1_im.jpg", "p_1_gt.png", "p_1_seg.png", "q_im.bmp", "q_gt.png"):
        save(tmp_path / name)
    found = opened(tmp_path, tmp_path, photo_names="{}_im.*", mask_names="{}_gt.png")
    assert found.keys == ["p_1", "q"]
    with pytest.raises(InputError, match="photo_names and mask_names"):
        opened(tmp_path, tmp_path)
    with pytest.raises(InputError, match=r"none of its images has a name like '\{\}_x\.png'"):
        opened(tmp_path, tmp_path, photo_names="{}_im.*", mask_names="{}_x.png")


def test_names_that_come_again_in_other_folders_are_told_apart(tmp_path: Path) -> None:
    for number, folder in enumerate(("x", "y/deep")):
        save(tmp_path / "images" / folder / "1.jpg")
        save(tmp_path / "masks" / folder / "1.png", seed=number)
    found = opened(tmp_path / "images", tmp_path / "masks")
    assert found.keys == ["x/1", "y/deep/1"]
    assert [int(found.load(index).masks.sum()) for index in range(2)] == [6 * 5, 6 * 6]


def test_linked_folders_are_entered_and_circles_are_not(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "a.jpg")
    save(tmp_path / "masks" / "part" / "a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "part").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "images")
    assert opened(tmp_path / "images", tmp_path / "masks").keys == ["part/a"]


def test_masks_below_the_folder_of_the_photos_are_no_photos(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg")
    save(tmp_path / "masks" / "a.png")
    assert opened(tmp_path, tmp_path / "masks").keys == ["a"]


def test_pipes_are_never_opened(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.jpg")
    save(tmp_path / "masks" / "a.png")
    os.mkfifo(tmp_path / "images" / "b.jpg")
    (tmp_path / "images" / "c.jpg").symlink_to("/dev/zero")
    assert opened(tmp_path / "images", tmp_path / "masks").keys == ["a"]


def test_several_masks_of_a_photo_are_its_masks(tmp_path: Path) -> None:
    save(tmp_path / "x_im.jpg")
    for number in range(3):
        save(tmp_path / f"x_{number}_gt.png", seed=number)
    sample = opened(tmp_path, tmp_path, photo_names="{}_im.jpg", mask_names="{}_*_gt.png").load(0)
    assert sample.masks.sum((1, 2)).tolist() == [6 * 5, 6 * 6, 6 * 7]
    assert sample.masks_at([2]).sum() == 6 * 7


def test_several_label_maps_of_a_photo_may_overlap(tmp_path: Path) -> None:
    save(tmp_path / "images" / "1.jpg")
    (tmp_path / "maps").mkdir()
    maps = np.zeros((2, 20, 30, 3), np.uint8)  # as LV-MHP-v2 has them: the value is in the red channel
    maps[0, 2:9, 2:9, 0], maps[1, 5:12, 5:12, 0] = 3, 3
    for number, labels in enumerate(maps):
        Image.fromarray(labels).save(tmp_path / "maps" / f"1_02_0{number}.png")
    settings = LabelMapsSettings("label-maps", tmp_path / "images", tmp_path / "maps", "part", label_names="{}_*_*.png")
    assert np.array_equal(open_set(settings).load(0).masks, maps[..., 0] == 3)


@pytest.mark.parametrize(
    "text",
    [
        "a\nc\n",
        "\ufeffa.jpg\r\nc.jpg\r\n",
        "# the first half\na  # good\n\n  c  \n",
        "images/a.jpg masks/a.png\nimages/c.jpg masks/c.png\n",
        "/JPEGImages/480p/a.jpg\n.\\images\\c.jpg\n",
    ],
)
def test_lists_have_suffixes_folders_comments_and_marks(text: str, tmp_path: Path) -> None:
    for stem in "abc":
        save(tmp_path / "images" / f"{stem}.jpg")
        save(tmp_path / "masks" / f"{stem}.png")
    (tmp_path / "list.txt").write_bytes(text.encode())
    assert opened(tmp_path / "images", tmp_path / "masks", list=tmp_path / "list.txt").keys == ["a", "c"]


def test_names_with_a_number_sign_are_no_comments(tmp_path: Path) -> None:
    stem = "1#Accessories#1#Bag#2339506821"
    save(tmp_path / "images" / f"{stem}.jpg")
    save(tmp_path / "masks" / f"{stem}.png")
    (tmp_path / "list.txt").write_text(f"#a comment\n{stem}\n")
    assert opened(tmp_path / "images", tmp_path / "masks", list=tmp_path / "list.txt").keys == [stem]


@pytest.mark.parametrize(
    ("text", "message"),
    [("x -1\ny 1\n", "line 1, 'x -1': expected a name alone"), ("1\n", "line 1, '1', is the name of 2 photos")],
)
def test_lists_that_may_mean_something_else_are_refused(text: str, message: str, tmp_path: Path) -> None:
    for folder in "xy":
        save(tmp_path / "images" / folder / "1.jpg")
        save(tmp_path / "masks" / folder / "1.png")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        opened(tmp_path / "images", tmp_path / "masks", list=tmp_path / "list.txt")


def test_photos_without_masks_may_lie_there_if_a_list_leaves_them_out(tmp_path: Path) -> None:
    """As in VOC, where a part of the photos has masks."""
    for stem in "abcd":
        save(tmp_path / "images" / f"{stem}.jpg")
    save(tmp_path / "masks" / "b.png")
    (tmp_path / "list.txt").write_text("b\n")
    assert opened(tmp_path / "images", tmp_path / "masks", list=tmp_path / "list.txt").keys == ["b"]
    assert opened(tmp_path / "images", tmp_path / "masks", match="[b]*").keys == ["b"]


def test_files_without_a_partner_are_counted_and_left_out_if_told(tmp_path: Path) -> None:
    for stem in "abcdef":
        save(tmp_path / f"{stem}.jpg")
        save(tmp_path / f"{stem}.png")
    (tmp_path / "a.png").unlink()
    (tmp_path / "f.jpg").unlink()
    names = {"photo_names": "{}.jpg", "mask_names": "{}.png"}
    with pytest.raises(InputError, match=r"1 masks have no partner .*f\.png\); 1 photos have no partner .*a\.jpg"):
        opened(tmp_path, tmp_path, **names)
    found = opened(tmp_path, tmp_path, skip="problems", **names)
    assert found.keys == list("bcde")
    assert any("left out 2 of" in line for line in found.findings)
    for stem in "bcd":
        (tmp_path / f"{stem}.png").unlink()
    with pytest.raises(InputError, match="too many to leave out"):
        opened(tmp_path, tmp_path, skip="problems", **names)


def test_folder_that_an_archive_nests_is_found_and_named(tmp_path: Path) -> None:
    save(tmp_path / "DIS5K" / "DIS5K" / "DIS-TR" / "im" / "a.jpg")
    wanted = tmp_path / "DIS5K" / "DIS-TR" / "im"
    with pytest.raises(InputError, match=r"no such folder; there is .*DIS5K/DIS5K/DIS-TR/im"):
        opened(wanted, wanted)
