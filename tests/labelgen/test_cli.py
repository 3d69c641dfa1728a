"""The ``labelgen`` command: what it prints, its exit status, and errors that a user can act on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.commands.label import FINISHED_WITH_IMAGE_ERRORS
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.commands import FAILED

Finished = tuple[Path, RunSummary]
USAGE = 2


def labelgen(*arguments: str | Path) -> Result:
    """Call the command; anything but a clean exit is the test's error."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def two_photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("a", (200, 0, 0)), ("b", (0, 0, 200))):
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    return folder


def test_run_labels_and_then_has_nothing_to_do(two_photos: Path, tmp_path: Path, loose_options: list[str]) -> None:
    command = ("run", "--images", two_photos, "--shards", tmp_path / "shards", *loose_options)
    first = labelgen(*command)
    assert first.exit_code == 0
    assert re.search(r"1 of 1 units labelled: 2 images, \d+ masks, 0 errors", first.stdout)
    second = labelgen(*command)
    assert second.exit_code == 0
    assert second.stdout == "1 of 1 units present, nothing to do\n"


def test_run_takes_several_sources(two_photos: Path, tmp_path: Path, loose_options: list[str]) -> None:
    sources = ("--images", two_photos / "b.png", "--images", two_photos / "a.png")
    assert labelgen("run", *sources, "--shards", tmp_path / "shards", *loose_options).exit_code == 0
    unit = json.loads((tmp_path / "shards/units/000000.json").read_text())
    assert [image["key"] for image in unit["images"]] == ["b", "a"]


def test_run_with_a_bad_image_says_so_and_exits_with_3(
    two_photos: Path, tmp_path: Path, loose_options: list[str]
) -> None:
    (two_photos / "c.jpg").write_text("not a photo")
    command = ("run", "--images", two_photos, "--shards", tmp_path / "shards", *loose_options)
    result = labelgen(*command)
    assert result.exit_code == FINISHED_WITH_IMAGE_ERRORS == 3
    assert "1 errors" in result.stdout
    assert "1 images were skipped" in result.stdout
    assert f"skipped: {two_photos}/c.jpg: not an image" in result.stderr
    status = labelgen("status", "--shards", tmp_path / "shards")
    assert status.exit_code == 0
    assert "2 of 2 units, 3 images" in status.stdout
    assert f"skipped c: {two_photos}/c.jpg: not an image" in status.stdout
    assert labelgen("verify", "--shards", tmp_path / "shards").exit_code == 0


def test_run_says_how_much_was_there_before(photos: Path, own_shards: Path, loose_options: list[str]) -> None:
    (own_shards / "manifest/masks/000002.parquet").unlink()
    result = labelgen("run", "--images", photos, "--shards", own_shards, *loose_options)
    assert "2 of 3 units present, labelling the other 1" in result.stdout
    assert "1 of 3 units labelled (2 were there before): 2 images" in result.stdout


def test_missing_images_are_named(tmp_path: Path) -> None:
    result = labelgen("run", "--images", tmp_path / "gone", "--shards", tmp_path / "shards")
    assert result.exit_code == FAILED == 1
    assert result.stderr == f"error: {tmp_path}/gone: no such file or folder; check --images\n"


def test_other_settings_are_refused_with_what_to_do(
    photos: Path, finished: Finished, loose_options: Sequence[str]
) -> None:
    command = ("run", "--images", photos, "--shards", finished[0], *loose_options, "--points-per-side", "4")
    result = labelgen(*command)
    assert result.exit_code == FAILED
    assert "points_per_side: there 2, asked for 4" in result.stderr
    assert "another --shards folder" in result.stderr


def test_shards_that_cannot_be_written_are_named(two_photos: Path, tmp_path: Path, loose_options: list[str]) -> None:
    (tmp_path / "in_the_way").write_text("")
    shards = tmp_path / "in_the_way" / "shards"
    result = labelgen("run", "--images", two_photos, "--shards", shards, *loose_options)
    assert result.exit_code == FAILED
    assert result.stderr.startswith("error: cannot ")
    assert f"{shards}/dataset.json: Not a directory" in result.stderr


def test_unknown_weights_are_named(two_photos: Path, tmp_path: Path) -> None:
    for sam, message in (("gone.pth", "gone.pth: no such file"), ("vit_h", "vit_h: its weights do not ship here")):
        result = labelgen("run", "--images", two_photos, "--shards", tmp_path / "shards", "--sam", sam)
        assert result.exit_code == FAILED
        assert message in result.stderr


@pytest.mark.parametrize(
    "option",
    ["--unit-size=0", "--unit-size=-2", "--points-per-side=0", "--points-per-batch=0", "--workers=-1",
     "--crop-n-layers=-1", "--crop-n-points-downscale-factor=0", "--min-mask-region-area=-1", "--pred-iou-thresh=high"],
)  # fmt: skip
def test_senseless_option_is_refused_before_anything_happens(option: str, two_photos: Path, tmp_path: Path) -> None:
    result = labelgen("run", "--images", two_photos, "--shards", tmp_path / "shards", option)
    assert result.exit_code == USAGE
    assert option.split("=")[0] in result.stderr
    assert not (tmp_path / "shards").exists()


def test_run_without_images_or_shards_is_refused() -> None:
    for arguments, missing in ((("--shards", "x"), "--images"), (("--images", "x"), "--shards")):
        result = labelgen("run", *arguments)
        assert result.exit_code == USAGE
        assert f"Missing option '{missing}'" in result.stderr


def test_every_setting_of_automatic_masks_is_an_option_with_its_default() -> None:
    text = labelgen("run", "--help").stdout
    for option, default in (("--points-per-side", "32"), ("--pred-iou-thresh", "0.88"), ("--max-area-share", "0.95")):
        assert option in text
        assert f"default: {default}" in text


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("verify",),
        ("gc",),
        ("repair",),
        ("export", "--out", "x"),
        ("view", "--out", "x"),
        ("uncertainty", "--source=entropy"),
    ],
)
def test_folder_that_is_no_shard_set_is_named(command: tuple[str, ...], two_photos: Path) -> None:
    result = labelgen(*command, "--shards", two_photos)
    assert result.exit_code == FAILED
    assert f"error: {two_photos}/dataset.json: missing; {two_photos} is no shard set" in result.stderr
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "damaged"),
        (b'{"format": 2}', "format version 2, this software reads 3; read it with the software that made it"),
        (b'{"format": 4}', "format version 4, this software reads 3; read it with the software that made it"),
    ],
)
def test_foreign_dataset_file_is_named(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_bytes(content)
    for command in ("status", "verify"):
        result = labelgen(command, "--shards", tmp_path)
        assert result.exit_code == FAILED
        assert f"error: {tmp_path}/dataset.json: {reason}" in result.stderr


def test_run_with_a_refiner_and_uncertainty_later_tell_of_their_maps(
    two_photos: Path, tmp_path: Path, loose_options: list[str], refiner: str, other_refiner: str
) -> None:
    shards = ("--shards", tmp_path / "shards")
    options = ("--images", two_photos, *loose_options, "--refiner", refiner, "--layer-name", "first")
    first = labelgen("run", *shards, *options, "--min-refine-area", "1000000")
    assert first.exit_code == 0
    assert re.search(r"2 images, \d+ masks \(0 without an uncertainty map\), 0 errors", first.stdout)
    later = labelgen("uncertainty", *shards, "--refiner", other_refiner, "--device=cpu")
    assert later.exit_code == 0
    assert "1 of 1 units labelled: 2 images" in later.stdout
    again = labelgen("uncertainty", *shards, "--refiner", other_refiner, "--device=cpu")
    assert again.stdout == "1 of 1 units present, nothing to do\n"
    assert labelgen("uncertainty", *shards, "--source=confidence", "--device=cpu").exit_code == 0
    status = labelgen("status", *shards).stdout
    assert re.search(r"layer masks \(tar\): 1 of 1 units, 2 images", status)
    assert re.search(r"layer uncertainty/first \(tar\): 1 of 1 .* mean u 0\.0000, 0 masks unknown", status)
    assert re.search(r"layer uncertainty/refinement \(tar\): .* mean u 0\.\d{4}, 0 masks unknown", status)
    assert re.search(r"layer uncertainty/confidence \(tar\): .* mean u 0\.\d{4}, 0 masks unknown", status)
    verified = labelgen("verify", *shards)
    assert verified.exit_code == 0
    for layer in ("masks", "uncertainty/first", "uncertainty/refinement", "uncertainty/confidence"):
        assert re.search(rf"layer {layer}: 1 units sound with \d+ masks, 0 units not made yet", verified.stdout)


def test_other_refiner_is_refused_with_what_to_do(refined: Finished, other_refiner: str) -> None:
    result = labelgen("uncertainty", "--shards", refined[0], "--refiner", other_refiner)
    assert result.exit_code == FAILED
    assert "layer uncertainty/refinement: was made with other weights" in result.stderr
    assert "another --layer-name" in result.stderr


def test_photo_that_is_gone_when_maps_are_made_is_named(
    own_photos: Path, tmp_path: Path, label: Callable[..., RunSummary]
) -> None:
    label(own_photos, tmp_path / "shards", unit_size=6)
    (own_photos / "photo0.jpg").unlink()
    result = labelgen("uncertainty", "--shards", tmp_path / "shards", "--source=entropy", "--device=cpu")
    assert result.exit_code == FINISHED_WITH_IMAGE_ERRORS
    assert f"skipped: {own_photos}/photo0.jpg: cannot be read" in result.stderr
    assert re.search(r"masks \([1-9]\d* without an uncertainty map\), 1 errors", result.stdout)
    status = labelgen("status", "--shards", tmp_path / "shards").stdout
    assert f"no maps of photo0: {own_photos}/photo0.jpg: cannot be read" in status
    assert re.search(r"layer uncertainty/entropy .* [1-9]\d* masks unknown", status)


@pytest.mark.parametrize(
    "option", ["--source=guess", "--min-refine-area=-1", "--points-per-batch=0", "--bf16", "--exactness=half"]
)
def test_senseless_option_of_uncertainty_is_refused(option: str, finished: Finished) -> None:
    result = labelgen("uncertainty", "--shards", finished[0], option)
    assert result.exit_code == USAGE
    assert option.split("=")[0] in result.stderr


def test_other_exactness_is_refused_with_the_option_that_goes_on(
    photos: Path, finished: Finished, loose_options: list[str]
) -> None:
    again = ("run", "--images", photos, "--shards", finished[0], *loose_options)
    refused = labelgen(*again, "--exactness", "fast")
    assert refused.exit_code == FAILED
    assert "exactness: there exact, here it would be fast. Give --exactness exact to go on" in refused.stderr
    assert labelgen(*again, "--exactness", "exact").exit_code == 0


def test_status_counts_what_is_done(finished: Finished, own_shards: Path) -> None:
    (own_shards / "manifest/masks/000001.parquet").unlink()
    result = labelgen("status", "--shards", own_shards)
    assert result.exit_code == 0
    assert "6 images in 3 units" in result.stdout
    assert "layer masks (tar): 2 of 3 units, 4 images" in result.stdout
    assert f"6 images, {finished[1].masks} masks, 0 errors" in labelgen("status", "--shards", finished[0]).stdout


def test_verify_accepts_a_sound_set_and_refuses_a_damaged_one(finished: Finished, own_shards: Path) -> None:
    sound = labelgen("verify", "--shards", finished[0])
    assert sound.exit_code == 0
    assert sound.stdout.endswith(
        f"layer masks: 3 units sound with {finished[1].masks} masks, 0 units not made yet\n0 problems\n"
    )
    (own_shards / "masks/000001.tar").unlink()
    damaged = labelgen("verify", "--shards", own_shards)
    assert damaged.exit_code == FAILED
    assert f"problem: {own_shards}/masks/000001.tar: missing" in damaged.stdout
    assert "2 units sound" in damaged.stdout


def test_verify_of_an_unfinished_set_says_what_is_left(own_shards: Path) -> None:
    (own_shards / "manifest/masks/000001.parquet").unlink()
    (own_shards / "masks/000001.tar").unlink()
    result = labelgen("verify", "--shards", own_shards)
    assert result.exit_code == 0
    assert "2 units sound" in result.stdout
    assert "1 units not made yet" in result.stdout


def test_export_writes_all_masks(finished: Finished, tmp_path: Path) -> None:
    result = labelgen("export", "--shards", finished[0], "--out", tmp_path / "new/coco.json")
    assert result.exit_code == 0
    assert f"6 images, {finished[1].masks} masks" in result.stdout
    assert len(json.loads((tmp_path / "new/coco.json").read_text())["annotations"]) == finished[1].masks


def test_view_writes_one_page_without_links(finished: Finished, tmp_path: Path) -> None:
    result = labelgen("view", "--shards", finished[0], "--out", tmp_path / "new/page.html", "--limit", "3")
    assert result.exit_code == 0
    page = (tmp_path / "new/page.html").read_text()
    assert page.count('"data:image/jpeg;base64,') == 3
    assert "photo0" in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_view_of_photos_that_are_gone_names_one(
    own_photos: Path, tmp_path: Path, label: Callable[..., RunSummary]
) -> None:
    label(own_photos, tmp_path / "shards", unit_size=6)
    (own_photos / "photo0.jpg").unlink()
    result = labelgen("view", "--shards", tmp_path / "shards", "--out", tmp_path / "page.html")
    assert result.exit_code == FAILED
    assert "photo0.jpg: cannot be read" in result.stderr
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("command", ["export", "view"])
def test_output_that_cannot_be_written_is_named(command: str, finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "in_the_way").write_text("")
    out = tmp_path / "in_the_way" / "file"
    result = labelgen(command, "--shards", finished[0], "--out", out)
    assert result.exit_code == FAILED
    assert f"error: cannot write {out}" in result.stderr


def test_command_works_from_a_shell(two_photos: Path, tmp_path: Path, loose_options: list[str]) -> None:
    command = [str(Path(sys.executable).parent / "labelgen"), "run", "--images", "photos", "--shards", "shards"]
    (two_photos / "c.jpg").write_bytes(b"")
    done = subprocess.run([*command, *loose_options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == FINISHED_WITH_IMAGE_ERRORS, done.stderr
    assert "Traceback" not in done.stderr
    assert "2 of 2 units labelled: 3 images" in done.stdout
