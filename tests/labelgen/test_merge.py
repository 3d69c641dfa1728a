"""A merged selection has all that its shard sets have, each photo once, and refuses what was not made alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.run import RunSummary
from sum_factory.labelgen.sets.merge import merge
from sum_factory.labelgen.sets.select import Filter, select
from sum_factory.shared.commands import FAILED
from sum_factory.shared.errors import SettingsDifferError, ShardError
from sum_factory.shared.shards.dataset import DATASET, PHOTOS
from sum_factory.shared.shards.photos import read_photo
from sum_factory.shared.shards.selection.opened import Selection, open_shards
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.shards.verify import verify

Label = Callable[..., RunSummary]
Seen = list[tuple[str, bytes, float | None]]
MAPS = "uncertainty/refinement"


def labelgen(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def seen(shards: ShardSet) -> Seen:
    """Return of every mask the photo's digest, the blob of its label and the mean of its map, unit by unit."""
    found: Seen = []
    for number in shards.committed():
        rows = shards.uncertainty(number)
        for image in shards.images(number):
            blobs = shards.label_blobs(number, image)
            means = [row.mean_u for row in rows[image.index]]
            found += [(image.digest, *of) for of in zip(blobs, means, strict=True)]
    return found


def problems(url: str) -> list[str]:
    return [problem for check in verify(open_shards(url)) for problem in check.problems]


def quiet(line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="session")
def halves(photos: Path, label: Label, refiner: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two shard sets of three photos each, made apart, with maps and photos; no test may change them."""
    folder = tmp_path_factory.mktemp("halves")
    top = folder / "top"
    top.mkdir()
    for path in photos.glob("photo*"):
        shutil.copy(path, top)
    label(top, folder / "a", refiner=refiner, keep_photos=True)
    label(photos / "sub", folder / "b", refiner=refiner, keep_photos=True)
    return str(folder / "a"), str(folder / "b")


@pytest.fixture
def out(tmp_path: Path) -> str:
    return str(tmp_path / "selection")


def test_merged_selection_has_the_masks_of_all_in_one_numbering(halves: tuple[str, str], out: str) -> None:
    summary = merge(halves, out, say=quiet)
    selection, parts = open_shards(out), [ShardSet.open(url) for url in halves]
    assert seen(selection) == seen(parts[0]) + seen(parts[1])
    assert (summary.units, summary.images, summary.masks) == (4, 6, len(seen(selection)))
    assert selection.committed() == [0, 1, 2, 3]
    assert set(selection.dataset.layers) == {MASKS, MAPS, PHOTOS}
    assert {path.name for path in Path(out).rglob("*") if path.is_file()} == {DATASET}
    for number, image in selection.walk():
        base, own = selection.origin(number)
        np.testing.assert_array_equal(read_photo(selection, number, image.index), read_photo(base, own, image.index))
        for ours, theirs in zip(
            selection.read_uncertainty(number, selection.uncertainty(number)[image.index]),
            base.read_uncertainty(own, base.uncertainty(own)[image.index]),
            strict=True,
        ):
            assert ours is not None
            assert theirs is not None
            np.testing.assert_array_equal(ours.u, theirs.u)


def test_commands_read_a_merged_selection(halves: tuple[str, str], out: str, tmp_path: Path) -> None:
    made = labelgen("merge", *halves, "--out", out)
    assert made.exit_code == 0, made.output
    assert f"{halves[1]}: 2 of 2 units\n" in made.output
    count = len(seen(open_shards(out)))
    assert f"wrote a selection: {count} masks of 6 images in 4 units" in made.output
    assert "this selection is there, nothing to do" in labelgen("merge", *halves, "--out", out).output
    status = labelgen("status", "--shards", out)
    assert f"a selection of {halves[0]}, {halves[1]}\n" in status.output
    assert f"layer masks (tar): 4 of 4 units, 6 images, {count} masks" in status.output
    assert f"layer {MAPS} (tar): 4 of 4 units" in status.output
    assert labelgen("verify", "--shards", out).output.endswith("\n0 problems\n")
    assert labelgen("view", "--shards", out, "--out", str(tmp_path / "page.html")).exit_code == 0
    coco = tmp_path / "coco.json"
    assert f"6 images, {count} masks" in labelgen("export", "--shards", out, "--out", str(coco)).output
    assert len({image["source"] for image in json.loads(coco.read_text())["images"]}) == 6


def test_nothing_is_labelled_into_a_merged_selection(
    halves: tuple[str, str], out: str, photos: Path, loose_options: list[str]
) -> None:
    merge(halves, out, say=quiet)
    refused = labelgen("run", "--images", str(photos), "--shards", out, *loose_options)
    assert refused.exit_code == FAILED
    assert "of a selection, which nothing is written into; give a shard set that it is of" in refused.output
    assert all(url in refused.output for url in halves)


def test_other_settings_are_refused_by_name(
    halves: tuple[str, str], photos: Path, label: Label, loose: Any, out: str, tmp_path: Path
) -> None:
    label(photos / "sub", tmp_path / "other", automask=replace(loose, box_nms_thresh=0.5))
    with pytest.raises(
        SettingsDifferError, match=rf"(?s)other, layer masks: .*box_nms_thresh: there 0.5, in {halves[0]} 0.7"
    ):
        merge([halves[0], str(tmp_path / "other")], out, say=quiet)
    assert not Path(out).exists()


def test_other_weights_are_refused_unless_the_layer_is_left_out(
    halves: tuple[str, str], photos: Path, label: Label, other_refiner: str, out: str, tmp_path: Path
) -> None:
    other = str(tmp_path / "other")
    label(photos / "sub", other, refiner=other_refiner)
    with pytest.raises(
        SettingsDifferError, match=rf"(?s)layer {MAPS}: was made with other weights.*refiner: .*--layer"
    ):
        merge([halves[0], other], out, say=quiet)
    made = labelgen("merge", halves[0], other, "--out", out, "--layer", "masks")
    assert made.exit_code == 0, made.output
    assert set(open_shards(out).dataset.layers) == {MASKS}


def test_layers_are_those_that_all_have(
    halves: tuple[str, str], photos: Path, label: Label, out: str, tmp_path: Path
) -> None:
    plain = str(tmp_path / "plain")
    label(photos / "sub", plain)
    merge([halves[0], plain], out, say=quiet)
    assert set(open_shards(out).dataset.layers) == {MASKS}
    with pytest.raises(ShardError, match=rf"plain: no layer '{MAPS}'"):
        merge([halves[0], plain], str(tmp_path / "more"), layers=[MAPS], say=quiet)


def test_photo_in_two_sources_is_refused_or_taken_once(
    halves: tuple[str, str], refined: tuple[Path, RunSummary], out: str
) -> None:
    """All photos of the second are in the first too, under other keys."""
    whole = str(refined[0])
    with pytest.raises(ShardError, match=r"(?s)3 photos are in both, such as 'photo\d', .*--keep first"):
        merge([whole, halves[1]], out, say=quiet)
    assert not Path(out).exists()
    said: list[str] = []
    merge([halves[1], whole], out, keep="first", say=said.append)
    assert said[1] == f"{whole}: 3 of 3 units, without 3 photos of earlier ones"
    selection = open_shards(out)
    found, first = seen(selection), seen(ShardSet.open(halves[1]))
    assert found[: len(first)] == first
    kept = {digest for digest, _, _ in first}
    assert found[len(first) :] == [mask for mask in seen(ShardSet.open(whole)) if mask[0] not in kept]
    assert selection.dataset.image_count == 6
    assert problems(out) == []


def test_photo_twice_in_one_source_stays_twice(
    halves: tuple[str, str], own_photos: Path, label: Label, refiner: str, out: str, tmp_path: Path
) -> None:
    shutil.copy(own_photos / "sub" / "photo1.jpg", own_photos / "sub" / "again.jpg")
    label(own_photos / "sub", tmp_path / "twice", refiner=refiner)
    summary = merge([halves[0], str(tmp_path / "twice")], out, say=quiet)
    assert summary.images == 7


def test_merge_of_views_names_the_shard_sets_themselves(halves: tuple[str, str], tmp_path: Path, out: str) -> None:
    chosen, both = str(tmp_path / "chosen"), str(tmp_path / "both")
    select(halves[0], chosen, Filter(images=("photo0", "photo4")))
    merge([chosen, halves[1]], both, say=quiet)
    select(both, out, Filter(min_area=20))
    selection = open_shards(out)
    assert isinstance(selection, Selection)
    assert [base.storage.url for base in selection.bases] == list(halves)
    expected = [mask for url in (chosen, halves[1]) for mask in seen(open_shards(url))]
    large = [
        row["area"] >= 20
        for shards in map(open_shards, (chosen, halves[1]))
        for _, image in shards.walk()
        for row in image.masks
    ]
    assert seen(selection) == [mask for mask, keep in zip(expected, large, strict=True) if keep] != []
    for folder in (chosen, both):
        shutil.rmtree(folder)
    assert problems(out) == []


def test_changed_source_is_refused_by_name(halves: tuple[str, str], photos: Path, label: Label, tmp_path: Path) -> None:
    shutil.copytree(halves[0], tmp_path / "a")
    shutil.copytree(halves[1], tmp_path / "b")
    out = str(tmp_path / "selection")
    merge([str(tmp_path / "a"), str(tmp_path / "b")], out, layers=[MASKS], say=quiet)
    shutil.rmtree(tmp_path / "b")
    label(photos / "sub", tmp_path / "b", unit_size=3)
    with pytest.raises(ShardError, match=r"b: its units changed since the selection .* was made of it"):
        open_shards(out)


def test_source_without_units_is_refused(halves: tuple[str, str], tmp_path: Path, out: str) -> None:
    empty = Path(shutil.copytree(halves[1], tmp_path / "empty"))
    shutil.rmtree(empty / "manifest" / MASKS)
    with pytest.raises(ShardError, match="empty: has no unit yet"):
        merge([halves[0], str(empty)], out, say=quiet)
    assert labelgen("merge", halves[0], "--out", out).exit_code == FAILED
    assert not Path(out).exists()


def test_units_that_are_not_labelled_yet_are_said_to_be_left_out(
    halves: tuple[str, str], tmp_path: Path, out: str
) -> None:
    part = Path(shutil.copytree(halves[1], tmp_path / "part"))
    (part / "manifest" / MASKS / "000001.parquet").unlink()
    said: list[str] = []
    summary = merge([halves[0], str(part)], out, say=said.append)
    assert said[1] == f"{part}: 1 of 2 units, 1 that are not labelled yet are not in the selection"
    assert summary.units == 3


def test_shard_sets_on_an_object_store_are_merged_like_local_ones(
    halves: tuple[str, str], bucket: str, upload: Callable[[Path, str], None], out: str
) -> None:
    upload(Path(halves[1]), f"{bucket}/b")
    merge([halves[0], f"{bucket}/b"], out, say=quiet)
    merge([halves[0], f"{bucket}/b"], f"{bucket}/all", say=quiet)
    mixed, remote = open_shards(out), open_shards(f"{bucket}/all")
    assert seen(mixed) == seen(remote) == [mask for url in halves for mask in seen(ShardSet.open(url))]
    assert mixed.layer_id() == remote.layer_id()
    assert problems(f"{bucket}/all") == []
