"""A shard set brought to the other encoding is the one that a run in that encoding makes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.run import RunSummary
from sum_factory.labelgen.sets.convert import convert
from sum_factory.labelgen.sets.merge import merge
from sum_factory.shared.commands import FAILED
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.dataset import DATASET, PHOTOS
from sum_factory.shared.shards.photos import read_photo
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.shards.verify import verify
from sum_factory.shared.store.storage import Storage

Label = Callable[..., RunSummary]
Snapshot = Callable[[Path], dict[str, str]]
Both = dict[str, Path]
LAYERS = (MASKS, PHOTOS, "uncertainty/refinement")


def labelgen(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def quiet(line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="session")
def labelled(photos: Path, label: Label, refiner: str, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """A shard set of every layer in each encoding, one of its photos being unreadable; no test may change them."""
    folder = tmp_path_factory.mktemp("encodings")
    shutil.copytree(photos, folder / "photos")
    (folder / "photos" / "sub" / "photo3.png").write_bytes(b"no photo")
    for encoding in ("tar", "zarr"):
        label(folder / "photos", folder / encoding, refiner=refiner, keep_photos=True, encoding=encoding)
    return {encoding: folder / encoding for encoding in ("tar", "zarr")}


def all_but_dataset(snapshot: dict[str, str]) -> dict[str, str]:
    return {name: content for name, content in snapshot.items() if name != DATASET}


def values(shards: ShardSet) -> list[Any]:
    """Return all that a shard set holds: rows without places, blobs of every layer, and plans."""
    found: list[Any] = []
    for layer in LAYERS:
        for number in shards.committed(layer):
            table, record = shards.manifest(number, layer)
            own = [name for name in table.schema.names if name in COLUMNS[layer]]
            found.append(table.select(own).to_pylist())
            found.append(shards.reader(layer).blobs(number, range(record.masks)))
            found.append((record.images, record.masks, record.errors, record.unknown, shards.unit(number).images))
    return found


COMMON_COLUMNS = ("image", "image_index", "height", "width", "error", "mask")
COLUMNS = {
    MASKS: (
        *COMMON_COLUMNS, "box_x", "box_y", "box_w", "box_h", "area", "point_x", "point_y", "predicted_iou", "stability",
        "crop_x0", "crop_y0", "crop_x1", "crop_y1",
    ),
    "uncertainty/refinement": (*COMMON_COLUMNS, "mean_u", "u_valid"),
    PHOTOS: COMMON_COLUMNS,
}  # fmt: skip


def problems(url: Path | str) -> list[str]:
    return [problem for check in verify(open_shards(str(url))) for problem in check.problems]


def test_tars_become_the_arrays_that_a_run_makes(labelled: Both, tmp_path: Path, snapshot: Snapshot) -> None:
    before = snapshot(labelled["tar"])
    summary = convert(str(labelled["tar"]), str(tmp_path / "new"), "zarr", quiet)
    assert (summary.units_done, summary.problems) == (9, ())
    assert snapshot(labelled["tar"]) == before
    assert problems(tmp_path / "new") == []
    assert all_but_dataset(snapshot(tmp_path / "new")) == all_but_dataset(snapshot(labelled["zarr"]))
    ours, theirs = (ShardSet.open(str(folder)) for folder in (tmp_path / "new", labelled["zarr"]))
    assert {name: ours.layer_id(name) for name in LAYERS} == {name: theirs.layer_id(name) for name in LAYERS}


def test_arrays_become_the_tars_that_a_run_makes(labelled: Both, tmp_path: Path, snapshot: Snapshot) -> None:
    convert(str(labelled["zarr"]), str(tmp_path / "tars"), "tar", quiet)
    assert problems(tmp_path / "tars") == []
    assert all_but_dataset(snapshot(tmp_path / "tars")) == all_but_dataset(snapshot(labelled["tar"]))
    tars, expected = (ShardSet.open(str(folder)) for folder in (tmp_path / "tars", labelled["tar"]))
    assert values(tars) == values(expected) == values(ShardSet.open(str(labelled["zarr"])))
    assert [tars.layer_id(name) for name in LAYERS] == [expected.layer_id(name) for name in LAYERS]
    convert(str(tmp_path / "tars"), str(tmp_path / "back"), "zarr", quiet)
    assert all_but_dataset(snapshot(tmp_path / "back")) == all_but_dataset(snapshot(labelled["zarr"]))


def test_run_goes_on_where_the_shard_set_was_brought_to(
    labelled: Both, tmp_path: Path, label: Label, refiner: str, snapshot: Snapshot
) -> None:
    part = Path(shutil.copytree(labelled["tar"], tmp_path / "part"))
    for layer in LAYERS:
        (part / "manifest" / layer / "000001.parquet").unlink()
    convert(str(part), str(tmp_path / "new"), "zarr", quiet)
    photos = labelled["tar"].parent / "photos"
    assert label(photos, tmp_path / "new", refiner=refiner, keep_photos=True, encoding="zarr").units_done == 1
    assert all_but_dataset(snapshot(tmp_path / "new")) == all_but_dataset(snapshot(labelled["zarr"]))


@pytest.mark.parametrize("last", [3, 13, *(pytest.param(last, marks=pytest.mark.long) for last in (0, 8, 20))])
def test_conversion_that_dies_is_finished_by_the_same_command(
    labelled: Both, tmp_path: Path, last: int, monkeypatch: pytest.MonkeyPatch, snapshot: Snapshot
) -> None:
    written: list[str] = []
    for verb in ("write", "create"):
        original: Callable[..., Any] = getattr(Storage, verb)

        def counted(storage: Storage, name: str, data: bytes, original: Callable[..., Any] = original) -> Any:
            if len(written) == last:
                raise KeyboardInterrupt
            written.append(name)
            return original(storage, name, data)

        monkeypatch.setattr(Storage, verb, counted)
    with pytest.raises(KeyboardInterrupt):
        convert(str(labelled["tar"]), str(tmp_path / "new"), "zarr", quiet)
    monkeypatch.undo()
    convert(str(labelled["tar"]), str(tmp_path / "new"), "zarr", quiet)
    assert all_but_dataset(snapshot(tmp_path / "new")) == all_but_dataset(snapshot(labelled["zarr"]))
    assert problems(tmp_path / "new") == []


def test_nothing_to_convert_is_refused(labelled: Both, tmp_path: Path) -> None:
    for encoding, shards in labelled.items():
        same = labelgen("convert", "--shards", shards, "--out", tmp_path / "new", "--encoding", encoding)
        assert same.exit_code == FAILED
        assert f"is in the encoding {encoding} already" in same.output
    with pytest.raises(ShardError, match="no shard set"):
        convert(str(tmp_path), str(tmp_path / "new"), "zarr", quiet)
    assert not (tmp_path / "new").exists()


def test_damaged_shard_is_named_and_its_unit_left_out(labelled: Both, tmp_path: Path) -> None:
    own = Path(shutil.copytree(labelled["zarr"], tmp_path / "own"))
    shard = next(path for path in (own / "masks.zarr").rglob("c.1.*"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # in its index, which no reader here needs
    shard.write_bytes(bytes(data))
    result = labelgen("convert", "--shards", own, "--out", tmp_path / "new", "--encoding", "tar")
    assert result.exit_code == FAILED
    assert f"problem: {shard}: its bytes are not those that were committed" in result.output
    assert ShardSet.open(str(tmp_path / "new")).committed() == [0, 2]
    assert problems(tmp_path / "new") == []


def test_what_is_not_there_is_left_out_and_comes_with_the_same_command(
    labelled: Both, tmp_path: Path, snapshot: Snapshot
) -> None:
    """A lost plan is named once, whatever its layers; a unit that a layer does not have yet is no problem."""
    own = Path(shutil.copytree(labelled["tar"], tmp_path / "own"))
    plan, photos = own / "units" / "000001.json", own / "manifest" / "photos" / "000002.parquet"
    kept = {path: path.read_bytes() for path in (plan, photos)}
    for path in kept:
        path.unlink()
    summary = convert(str(own), str(tmp_path / "new"), "zarr", quiet)
    assert [problem.startswith(f"{plan}: missing") for problem in summary.problems] == [True]
    assert (summary.units, summary.units_done) == (8, 5)
    assert ShardSet.open(str(tmp_path / "new")).committed("photos") == [0]
    for path, data in kept.items():
        path.write_bytes(data)
    assert convert(str(own), str(tmp_path / "new"), "zarr", quiet).problems == ()
    assert all_but_dataset(snapshot(tmp_path / "new")) == all_but_dataset(snapshot(labelled["zarr"]))


def test_shard_sets_of_both_encodings_are_merged(photos: Path, label: Label, refiner: str, tmp_path: Path) -> None:
    label(photos / "sub", tmp_path / "tars", refiner=refiner, keep_photos=True)
    shutil.copytree(photos, tmp_path / "photos", ignore=shutil.ignore_patterns("sub"))
    label(tmp_path / "photos", tmp_path / "arrays", refiner=refiner, keep_photos=True, encoding="zarr")
    sources = [str(tmp_path / name) for name in ("tars", "arrays")]
    merge(sources, str(tmp_path / "selection"), say=quiet)
    selection = open_shards(str(tmp_path / "selection"))
    assert problems(tmp_path / "selection") == []
    assert set(selection.dataset.layers) == set(LAYERS)
    compared = 0
    for number, image in selection.walk():
        base, own = selection.origin(number)
        (there,) = (one for one in base.images(own) if one.key == image.key)
        assert selection.label_blobs(number, image) == base.label_blobs(own, there)
        assert (read_photo(selection, number, image.index) == read_photo(base, own, there.index)).all()
        compared += len(image.masks)
    assert compared == sum(len(image.masks) for url in sources for _, image in ShardSet.open(url).walk())
    status = labelgen("status", "--shards", tmp_path / "selection")
    assert "layer masks (tar and zarr): 4 of 4 units, 6 images" in status.output
    export = labelgen("export", "--shards", tmp_path / "selection", "--out", tmp_path / "coco.json")
    assert f"6 images, {compared} masks" in export.output
    assert (
        pq.read_schema(tmp_path / "arrays" / "manifest" / "masks" / "000000.parquet").names
        != pq.read_schema(tmp_path / "tars" / "manifest" / "masks" / "000000.parquet").names
    )
