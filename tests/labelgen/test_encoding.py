"""``--encoding`` decides how a layer lies on disk and nothing else; layers of both kinds go together."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.errors import SettingsDifferError
from sum_factory.shared.shards.dataset import PHOTOS
from sum_factory.shared.shards.shard_set import MASKS, ShardSet

Label = Callable[..., RunSummary]
Refined = tuple[Path, RunSummary]
REFINEMENT = "uncertainty/refinement"


@pytest.fixture(scope="module")
def in_zarr(whole_in: Callable[[str], Path]) -> Path:
    """The shard set of one pass into Zarr, with every layer, which no test may change."""
    return whole_in("zarr")


@pytest.fixture(scope="module")
def in_tars(whole_in: Callable[[str], Path]) -> Path:
    """The same in tars."""
    return whole_in("tar")


def blobs(shards: Path, layer: str) -> list[bytes]:
    opened = ShardSet.open(str(shards))
    reader = opened.reader(layer)
    return [blob for unit in opened.committed(layer) for blob in reader.blobs(unit, range(len(reader.rows(unit))))]


def test_run_into_zarr_is_sound_and_holds_what_tars_hold(
    in_zarr: Path, in_tars: Path, problems: Callable[[Path], list[str]]
) -> None:
    assert problems(in_zarr) == []
    for layer in (MASKS, REFINEMENT, PHOTOS):
        assert blobs(in_zarr, layer) == blobs(in_tars, layer) != []
    assert not list(in_zarr.rglob("*.tar"))


def test_same_command_again_finds_nothing_to_do_and_another_encoding_is_refused(
    in_zarr: Path, photos: Path, label: Label, refiner: str, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    before = snapshot(in_zarr)
    assert label(photos, in_zarr, refiner=refiner, keep_photos=True, encoding="zarr").units_done == 0
    with pytest.raises(SettingsDifferError, match="encoding: there zarr, asked for tar"):
        label(photos, in_zarr, refiner=refiner)
    assert snapshot(in_zarr) == before


@pytest.mark.parametrize(("masks", "maps"), [("tar", "zarr"), ("zarr", "tar"), ("zarr", "zarr")])
def test_maps_of_either_encoding_are_added_to_masks_of_either(
    photos: Path, label: Label, refiner: str, add_maps: Label, refined: Refined, tmp_path: Path,
    problems: Callable[[Path], list[str]], masks: str, maps: str,
) -> None:  # fmt: skip
    label(photos, tmp_path / "shards", encoding=masks)
    add_maps(tmp_path / "shards", refiner, encoding=maps)
    assert problems(tmp_path / "shards") == []
    assert blobs(tmp_path / "shards", REFINEMENT) == blobs(refined[0], REFINEMENT)


def test_unit_that_is_made_anew_has_the_same_bytes(
    photos: Path, label: Label, refiner: str, in_zarr: Path, tmp_path: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    label(photos, tmp_path / "shards", refiner=refiner, encoding="zarr")
    label(photos, tmp_path / "shards", refiner=refiner, encoding="zarr", keep_photos=True)
    for name in (
        f"manifest/{MASKS}/000001.parquet",
        f"manifest/{REFINEMENT}/000001.parquet",
        "masks.zarr/label/c.1.0.0",
    ):
        (tmp_path / "shards" / name).unlink()
    (tmp_path / "shards/masks.zarr/label/zarr.json").unlink()
    label(photos, tmp_path / "shards", refiner=refiner, keep_photos=True, encoding="zarr")
    assert snapshot(tmp_path / "shards") == snapshot(in_zarr)


def test_unreadable_photo_has_no_row_and_no_problem(
    own_photos: Path, label: Label, refiner: str, tmp_path: Path, problems: Callable[[Path], list[str]]
) -> None:
    (own_photos / "photo2.jpg").write_bytes(b"no photo")
    shards = tmp_path / "shards"
    assert len(label(own_photos, shards, refiner=refiner, keep_photos=True, encoding="zarr").errors) == 1
    assert problems(shards) == []
    opened = ShardSet.open(str(shards))
    photos = zarr.open(shards / "photos.zarr", mode="r")["jpeg"]
    for unit in opened.committed(PHOTOS):
        for index, image in enumerate(opened.unit(unit).images):
            assert photos[unit * photos.shards[0] + index].any() == (image.key != "photo2")


def test_what_people_are_shown_is_the_same(in_zarr: Path, in_tars: Path, tmp_path: Path) -> None:
    texts = []
    for shards in (in_zarr, in_tars):
        (folder := tmp_path / str(len(texts))).mkdir()
        files = folder / "coco.json", folder / "page.html"
        for command in (["export", f"--out={files[0]}"], ["view", f"--out={files[1]}"]):
            result = CliRunner().invoke(main, [*command, f"--shards={shards}"], catch_exceptions=False)
            assert result.exit_code == 0
        texts.append([file.read_text().replace(str(shards), "") for file in files])
        status = CliRunner().invoke(main, ["status", f"--shards={shards}"], catch_exceptions=False)
        texts[-1].append(re.sub(r"\((tar|zarr)\)|[0-9.]+ MB", "", status.output.replace(str(shards), "")))
    assert texts[0] == texts[1]


def test_logits_for_people_are_the_same(in_zarr: Path, in_tars: Path) -> None:
    one, other = ShardSet.open(str(in_zarr)), ShardSet.open(str(in_tars))
    for (number, image), (_, same) in zip(one.walk(), other.walk(), strict=True):
        everything = range(len(image.masks))
        for a, b in zip(
            one.read_label_logits(number, image, everything),
            other.read_label_logits(number, same, everything),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
