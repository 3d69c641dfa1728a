"""Whatever is cut, flipped, forged or lost in an uncertainty layer, ``verify`` names the file."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.codecs.label import encode_label
from sum_factory.shared.codecs.uncertainty import decode_uncertainty, encode_uncertainty
from sum_factory.shared.shards.dataset import DATASET
from sum_factory.shared.shards.encodings.tar_layer import TarEncoder, images_of_tar
from sum_factory.shared.shards.kinds import kind_of, schema_of
from sum_factory.shared.shards.manifest import UnitRecord, read_manifest, write_manifest
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.shards.verify import verify

Problems = Callable[[Path], list[str]]
Rows = list[dict[str, Any]]
KIND, SCHEMA = kind_of("uncertainty/refinement"), schema_of("uncertainty/refinement")
TAR, MANIFEST = "uncertainty/refinement/000001.tar", "manifest/uncertainty/refinement/000001.parquet"


def require_problem(found: list[str], shards: Path, name: str) -> None:
    assert any(f"{shards}/{name}: " in problem for problem in found), found


def test_sound_layers_are_checked_and_counted(refined: tuple[Path, RunSummary]) -> None:
    checks = list(verify(ShardSet.open(str(refined[0]))))
    assert [check.problems for check in checks] == [()] * 6
    assert [check.layer for check in checks] == ["masks", "uncertainty/refinement"] * 3
    for layer in ("masks", "uncertainty/refinement"):
        counted = [check.record.masks for check in checks if check.layer == layer and check.record is not None]
        assert sum(counted) == refined[1].masks


def test_units_without_maps_are_no_problem(own_refined: Path, problems: Problems) -> None:
    (own_refined / TAR).unlink()
    (own_refined / MANIFEST).unlink()
    assert problems(own_refined) == []


def test_every_cut_and_flipped_bit_of_the_data_is_found(own_refined: Path, problems: Problems) -> None:
    whole = (own_refined / TAR).read_bytes()
    for place in range(1, len(whole), 4999):
        (own_refined / TAR).write_bytes(whole[:place])
        require_problem(problems(own_refined), own_refined, TAR)
        flipped = bytearray(whole)
        flipped[place] ^= 1
        (own_refined / TAR).write_bytes(flipped)
        require_problem(problems(own_refined), own_refined, TAR)


def test_lost_data_and_lost_manifests_are_found(own_refined: Path, problems: Problems) -> None:
    data = (own_refined / TAR).read_bytes()
    (own_refined / TAR).unlink()
    require_problem(problems(own_refined), own_refined, TAR)
    (own_refined / TAR).write_bytes(data)
    (own_refined / MANIFEST).unlink()
    require_problem(problems(own_refined), own_refined, TAR)


def test_layer_that_the_dataset_file_does_not_list_is_found(own_refined: Path, problems: Problems) -> None:
    storage = ShardSet.open(str(own_refined)).storage
    dataset = ShardSet.open(str(own_refined)).dataset
    storage.write(DATASET, replace(dataset, layers={MASKS: dataset.layers[MASKS]}).to_json())
    (problem,) = problems(own_refined)
    assert problem.startswith(f"{own_refined}/manifest/uncertainty/refinement: ")
    assert "--layer-name refinement" in problem


def test_manifest_of_another_layer_or_unit_is_found(
    own_refined: Path, add_maps: Callable[..., RunSummary], problems: Problems
) -> None:
    add_maps(own_refined, source="entropy")
    for source in ("manifest/uncertainty/entropy/000001.parquet", "manifest/uncertainty/refinement/000000.parquet"):
        shutil.copy(own_refined / source, own_refined / MANIFEST)
        require_problem(problems(own_refined), own_refined, MANIFEST)


def test_maps_without_masks_are_found(own_refined: Path, problems: Problems) -> None:
    (own_refined / "manifest/masks/000001.parquet").unlink()
    (own_refined / "masks/000001.tar").unlink()
    (problem,) = problems(own_refined)
    assert "manifest/masks/000001.parquet: missing" in problem


Change = Callable[[list[bytes], Rows], object]


def forge(shards: Path, change: Change, **of_record: Any) -> None:
    """Write a unit's maps anew, with checksums that fit, after ``change`` edited the blobs and the rows."""
    table, record = read_manifest((shards / MANIFEST).read_bytes(), "")
    rows = table.to_pylist()
    samples = list(images_of_tar((shards / TAR).read_bytes(), KIND, ""))
    blobs = [blob for _, of_image in samples for blob in of_image]
    change(blobs, rows)
    encoder, left = TarEncoder("uncertainty/refinement"), iter(blobs)
    for meta, of_image in samples:
        encoder.add(meta["key"], [next(left) for _ in of_image], meta)
    (data,), places = encoder.finish()
    for row, place in zip(rows, places, strict=True):
        row.update(place)
    (shards / TAR).write_bytes(data)
    told: UnitRecord = replace(
        record, **{"data_bytes": len(data), "data_sha256": hashlib.sha256(data).hexdigest(), **of_record}
    )
    (shards / MANIFEST).write_bytes(write_manifest(pa.Table.from_pylist(rows, SCHEMA), told))


def test_forging_nothing_is_no_problem(own_refined: Path, problems: Problems) -> None:
    before = (own_refined / TAR).read_bytes(), (own_refined / MANIFEST).read_bytes()
    forge(own_refined, lambda blobs, rows: None)
    assert ((own_refined / TAR).read_bytes(), (own_refined / MANIFEST).read_bytes()) == before
    assert problems(own_refined) == []


def set_row(index: int, **values: Any) -> Change:
    return lambda blobs, rows: rows[index].update(values)


def set_blob(make: Callable[[bytes], bytes]) -> Change:
    def change(blobs: list[bytes], rows: Rows) -> None:
        blobs[0] = make(blobs[0])

    return change


def other_grid(blob: bytes) -> bytes:
    u = decode_uncertainty(blob).u
    return encode_uncertainty(u[:-1], encode_label(np.ones_like(u[:-1])))


def give_to_next_image(blobs: list[bytes], rows: Rows) -> None:
    """Have the last mask of the first image be one of the second."""
    last = max(number for number, row in enumerate(rows) if row["image_index"] == 0)
    rows[last].update({name: rows[last + 1][name] for name in ("image", "image_index", "height", "width")})
    for number, row in enumerate(rows[last:]):
        row["mask"] = number


def rename_images(blobs: list[bytes], rows: Rows) -> None:
    for row in rows:
        row["image"] = f"another {row['image']}"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda blobs, rows: rows[1].update(mask=5), "expected the masks of each image, numbered from 0"),
        (give_to_next_image, "its rows are not those of the masks"),
        (set_row(0, image="another"), "expected a key of its own for every image"),
        (rename_images, "the images of its rows are not those of the unit"),
        (set_row(0, mean_u=0.9), "its mean is not that of its map"),
        (set_row(0, mean_u=None), "its mean is not that of its map"),
        (set_blob(other_grid), "its map is of another size"),
        (set_blob(lambda blob: encode_uncertainty(decode_uncertainty(blob).u)), "it has no refined label"),
        (set_blob(lambda blob: blob[:-1]), "does not decode"),
        (set_blob(lambda blob: blob[:4] + blob[5:]), "labelgen verify"),
        (set_blob(lambda blob: b""), "cut short"),
    ],
    ids=[
        "no such mask",
        "other mask",
        "no such image",
        "other image",
        "mean",
        "no mean",
        "grid",
        "no label",
        "cut label",
        "cut map",
        "no blob",
    ],
)
def test_forged_maps_are_found(own_refined: Path, problems: Problems, change: Change, reason: str) -> None:
    forge(own_refined, change)
    (problem,) = problems(own_refined)
    assert problem.startswith(f"{own_refined}/{MANIFEST}: ")
    assert reason in problem


def test_unknown_mask_with_a_map_is_found(own_refined: Path, problems: Problems) -> None:
    forge(own_refined, set_row(0, u_valid=False), unknown=1)
    assert "it is unknown, but has a map" in problems(own_refined)[0]


def test_wrong_count_of_unknown_masks_is_found(own_refined: Path, problems: Problems) -> None:
    forge(own_refined, lambda blobs, rows: None, unknown=1)
    assert "0 unknown in its rows, 1 in its own count" in problems(own_refined)[0]


def test_maps_of_other_masks_are_found(own_refined: Path, problems: Problems) -> None:
    forge(own_refined, lambda blobs, rows: None, masks_sha256="0" * 64)
    assert f"{own_refined}/{MANIFEST}: its maps are of other masks" in problems(own_refined)[0]


def test_refined_label_where_there_was_no_refiner_is_found(
    own_refined: Path, add_maps: Callable[..., RunSummary], problems: Problems
) -> None:
    shutil.rmtree(own_refined / "uncertainty")
    shutil.rmtree(own_refined / "manifest/uncertainty")
    add_maps(own_refined, source="entropy")
    for folder in ("uncertainty", "manifest/uncertainty"):  # so that ``forge`` finds it
        (own_refined / folder / "refinement").symlink_to(own_refined / folder / "entropy", target_is_directory=True)

    def add_label(blob: bytes) -> bytes:
        u = decode_uncertainty(blob).u
        return encode_uncertainty(u, encode_label(np.ones_like(u)))

    forge(own_refined, set_blob(add_label))
    assert any("it has a refined label that no refiner made" in problem for problem in problems(own_refined))
