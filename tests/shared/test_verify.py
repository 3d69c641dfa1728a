"""Whatever is cut, flipped, edited or lost in a shard set, ``verify`` names the file; a sound set has no problem."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.kinds import schema_of
from sum_factory.shared.shards.manifest import read_manifest, write_manifest
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.verify import verify

Finished = tuple[Path, RunSummary]
TAR, MANIFEST, UNIT = "masks/000001.tar", "manifest/masks/000001.parquet", "units/000001.json"


def problems(shards: Path) -> list[str]:
    """Return what is wrong with a shard set: what ``verify`` finds, or why it does not even open."""
    try:
        return [problem for check in verify(ShardSet.open(str(shards))) for problem in check.problems]
    except ShardError as error:
        return [str(error)]


def require_problem(shards: Path, name: str) -> None:
    found = problems(shards)
    assert any(f"{shards}/{name}: " in problem for problem in found), found


def member_boundaries(tar: Path) -> list[int]:
    with tarfile.open(tar) as opened:
        return [0, *(member.offset for member in opened), *(member.offset_data for member in opened)]


def test_sound_set_has_no_problem(finished: Finished) -> None:
    checks = list(verify(ShardSet.open(str(finished[0]))))
    assert [check.problems for check in checks] == [()] * 3
    assert sum(check.record.masks for check in checks) == finished[1].masks > 0


def test_sound_set_with_bad_images_has_no_problem(
    own_photos: Path, tmp_path: Path, label: Callable[..., RunSummary]
) -> None:
    (own_photos / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (2_000, 1)).save(own_photos / "thin.png")
    assert len(label(own_photos, tmp_path / "shards", unit_size=8).errors) == 2
    assert problems(tmp_path / "shards") == []


def test_units_that_are_not_labelled_yet_are_no_problem(own_shards: Path) -> None:
    (own_shards / TAR).unlink()
    (own_shards / MANIFEST).unlink()
    assert problems(own_shards) == []
    assert [check.unit for check in verify(ShardSet.open(str(own_shards)))] == [0, 2]


def test_every_cut_of_a_tar_is_found(own_shards: Path) -> None:
    whole = (own_shards / TAR).read_bytes()
    cuts = {*member_boundaries(own_shards / TAR), *range(1, len(whole), 1499), len(whole) - 1, len(whole) - 512}
    for length in sorted(cuts):
        (own_shards / TAR).write_bytes(whole[:length])
        require_problem(own_shards, TAR)


def test_every_flipped_bit_of_a_tar_is_found(own_shards: Path) -> None:
    whole = (own_shards / TAR).read_bytes()
    for place in {*member_boundaries(own_shards / TAR), *range(3, len(whole), 1499), len(whole) - 1}:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        (own_shards / TAR).write_bytes(flipped)
        require_problem(own_shards, TAR)


def test_tar_with_more_behind_it_is_found(own_shards: Path) -> None:
    with (own_shards / TAR).open("ab") as file:
        file.write(bytes(512))
    require_problem(own_shards, TAR)


def test_missing_tar_is_found(own_shards: Path) -> None:
    (own_shards / TAR).unlink()
    require_problem(own_shards, TAR)


def test_tar_of_another_unit_is_found(own_shards: Path) -> None:
    shutil.copy(own_shards / "masks/000000.tar", own_shards / TAR)
    require_problem(own_shards, TAR)


def test_data_without_a_manifest_are_found(own_shards: Path) -> None:
    (own_shards / MANIFEST).unlink()
    require_problem(own_shards, TAR)


def test_every_cut_of_a_manifest_is_found(own_shards: Path) -> None:
    whole = (own_shards / MANIFEST).read_bytes()
    for length in {*range(0, len(whole), 499), len(whole) - 1}:
        (own_shards / MANIFEST).write_bytes(whole[:length])
        require_problem(own_shards, MANIFEST)


def test_every_flipped_bit_of_a_manifest_is_found(own_shards: Path) -> None:
    whole = (own_shards / MANIFEST).read_bytes()
    for place in {*range(0, len(whole), 251), len(whole) - 1}:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        (own_shards / MANIFEST).write_bytes(flipped)
        require_problem(own_shards, MANIFEST)


def test_manifest_of_another_unit_is_found(own_shards: Path) -> None:
    for name in ("manifest/masks/000000.parquet", "masks/000000.tar"):
        shutil.copy(own_shards / name, own_shards / name.replace("000000", "000001"))
    require_problem(own_shards, MANIFEST)


def test_manifest_without_a_plan_is_found(own_shards: Path) -> None:
    stray = "manifest/masks/000003.parquet"
    shutil.copy(own_shards / MANIFEST, own_shards / stray)
    require_problem(own_shards, stray)
    assert len(problems(own_shards)) == 1


def test_rows_of_other_images_are_found(own_shards: Path) -> None:
    table, record = read_manifest((own_shards / MANIFEST).read_bytes(), "")
    rows = [{**row, "image": f"another {row['image']}"} for row in table.to_pylist()]
    (own_shards / MANIFEST).write_bytes(write_manifest(pa.Table.from_pylist(rows, schema_of("masks")), record))
    (problem,) = problems(own_shards)
    assert problem.startswith(f"{own_shards}/{MANIFEST}: the images of its rows are not those of the unit")


@pytest.mark.parametrize("folder", ["", "units/", "masks/", "manifest/masks/"])
def test_stale_temporary_is_found_and_one_that_is_being_written_is_no_problem(own_shards: Path, folder: str) -> None:
    name = f"{folder}.partial-000001-00ff"
    (own_shards / name).write_bytes(b"half")
    assert problems(own_shards) == []
    os.utime(own_shards / name, (0, 0))
    require_problem(own_shards, name)
    assert "`labelgen gc` removes it" in problems(own_shards)[0]


def test_units_are_checked_whose_plan_is_lost(own_shards: Path) -> None:
    (own_shards / UNIT).unlink()
    (own_shards / TAR).write_bytes(b"damaged")
    require_problem(own_shards, UNIT)
    require_problem(own_shards, TAR)
    assert len(problems(own_shards)) == 2


def rewrite(manifest: Path, change: Callable[[list[dict[str, Any]]], object], keep_metadata: bool = True) -> None:
    """Write a manifest anew with other rows, as somebody with pyarrow would."""
    table = pq.read_table(manifest)
    rows = table.to_pylist()
    change(rows)
    schema = table.schema if keep_metadata else table.schema.remove_metadata()
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    manifest.write_bytes(sink.getvalue())


@pytest.mark.parametrize("column", ["box_x", "area", "point_y", "predicted_iou", "stability", "crop_x1", "height"])
def test_edited_value_of_a_manifest_is_found(own_shards: Path, column: str) -> None:
    rewrite(own_shards / MANIFEST, lambda rows: rows[-1].update({column: rows[-1][column] + 1}))
    require_problem(own_shards, MANIFEST)


@pytest.mark.parametrize(
    "change",
    [lambda rows: rows.pop(), lambda rows: rows.append(rows[0]), lambda rows: rows.reverse(),
     lambda rows: rows[0].update(image="another"), lambda rows: rows[0].update(error="none")],
    ids=["removed", "repeated", "reversed", "renamed", "error"],
)  # fmt: skip
def test_edited_rows_of_a_manifest_are_found(
    own_shards: Path, change: Callable[[list[dict[str, Any]]], object]
) -> None:
    rewrite(own_shards / MANIFEST, change)
    require_problem(own_shards, MANIFEST)


def test_manifest_that_lost_its_metadata_is_found(own_shards: Path) -> None:
    rewrite(own_shards / MANIFEST, lambda rows: None, keep_metadata=False)
    require_problem(own_shards, MANIFEST)


def test_manifest_that_was_only_compressed_otherwise_is_found(own_shards: Path) -> None:
    rewrite(own_shards / MANIFEST, lambda rows: None)
    require_problem(own_shards, MANIFEST)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda unit: unit["images"][0].update(key="another"),
        lambda unit: unit["images"][0].update(digest="0" * 64),
        lambda unit: unit["images"].pop(),
        lambda unit: unit["images"].reverse(),
        lambda unit: unit.update(id="0" * 32),
        lambda unit: unit.update(unit=0),
        lambda unit: unit.pop("images"),
    ],
    ids=["key", "digest", "removed", "reversed", "id", "number", "no images"],
)
def test_edited_plan_of_a_unit_is_found(own_shards: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(own_shards / UNIT, change)
    require_problem(own_shards, UNIT)


def test_plan_that_was_edited_with_its_id_is_found(own_shards: Path) -> None:
    def rename(unit: dict[str, Any]) -> None:
        unit["images"][0]["key"] = "another"
        pairs = [[image["key"], image["size"]] for image in unit["images"]]
        unit["id"] = hashlib.sha256(json.dumps(pairs, separators=(",", ":")).encode()).hexdigest()[:32]

    edit(own_shards / UNIT, rename)
    require_problem(own_shards, UNIT)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_damaged_plan_is_found(own_shards: Path, content: bytes) -> None:
    (own_shards / UNIT).write_bytes(content)
    require_problem(own_shards, UNIT)


def test_missing_plan_is_found(own_shards: Path) -> None:
    (own_shards / UNIT).unlink()
    require_problem(own_shards, UNIT)


def test_problem_of_a_plan_is_told_once(own_shards: Path) -> None:
    (own_shards / UNIT).unlink()
    assert len(problems(own_shards)) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda dataset: dataset["layers"]["masks"]["settings"].update(points_per_side=32),
        lambda dataset: dataset["layers"]["masks"]["weights"]["sam"].update(sha256="0" * 64),
        lambda dataset: dataset["layers"]["masks"].update(encoding="zarr"),
        lambda dataset: dataset["layers"]["masks"].update(id="0" * 32),
        lambda dataset: dataset["layers"].clear(),
        lambda dataset: dataset.update(unit_size=3),
        lambda dataset: dataset.update(unit_size=0),
        lambda dataset: dataset.update(images=7),
        lambda dataset: dataset["units"].pop(),
        lambda dataset: dataset["units"].reverse(),
        lambda dataset: dataset.update(format=1),
        lambda dataset: dataset.pop("units"),
    ],
    ids=["setting", "weights", "encoding", "layer id", "no layers", "unit size", "no unit size", "image count",
         "unit removed", "units reversed", "format", "no units"],
)  # fmt: skip
def test_edited_dataset_file_is_found(own_shards: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(own_shards / "dataset.json", change)
    assert problems(own_shards) != []


def test_verify_changes_nothing(own_shards: Path, snapshot: Callable[[Path], dict[str, str]]) -> None:
    (own_shards / TAR).write_bytes(b"damaged")
    (own_shards / "manifest/masks/000002.parquet").unlink()
    before = snapshot(own_shards)
    assert len(problems(own_shards)) == 2
    assert snapshot(own_shards) == before


def test_without_its_manifest_a_damaged_tar_is_made_again(
    own_shards: Path, photos: Path, finished: Finished, label: Callable[..., RunSummary],
    snapshot: Callable[[Path], dict[str, str]],
) -> None:  # fmt: skip
    (own_shards / TAR).write_bytes(b"damaged")
    (problem,) = problems(own_shards)
    assert "`labelgen repair` takes the unit back" in problem
    (own_shards / MANIFEST).unlink()
    label(photos, own_shards)
    assert snapshot(own_shards) == snapshot(finished[0])
