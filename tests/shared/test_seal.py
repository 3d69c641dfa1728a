"""A file names its own SHA-256: whichever bit of a plan, of ``dataset.json`` or of a manifest flips, it is refused."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sum_factory.shared.errors import ShardError
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.shards.dataset import Dataset, Unit
from sum_factory.shared.shards.kinds import schema_of
from sum_factory.shared.shards.manifest import UnitRecord, read_manifest, read_record, write_manifest
from sum_factory.shared.store.seal import SEAL, is_sealed, seal, with_room

Parse = Callable[[bytes, str], object]

FILES: dict[str, tuple[str, Parse]] = {
    "dataset": ("dataset.json", Dataset.from_json),
    "plan": ("units/000001.json", Unit.from_json),
    "manifest of masks": ("manifest/masks/000001.parquet", read_record),
    "manifest, with its rows": ("manifest/masks/000002.parquet", read_manifest),
}


def places(file: str, whole: bytes) -> list[int]:
    """Return every place of the plan; of the others those of the seal, and every seventh: one check serves all."""
    start = whole.rindex(SEAL.encode())
    return sorted({*range(0, len(whole), 1 if file == "plan" else 7), *range(start - 8, start + 90), len(whole) - 1})


@pytest.mark.parametrize("file", FILES)
def test_flipped_bit_of_a_small_file_is_refused(finished: tuple[Path, object], file: str) -> None:
    name, parse = FILES[file]
    whole = (finished[0] / name).read_bytes()
    parse(whole, name)
    for place in places(file, whole):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            with pytest.raises(ShardError, match=f"^{name}: damaged"):
                parse(bytes(flipped), name)


@pytest.mark.parametrize("file", FILES)
def test_cut_of_a_small_file_is_refused(finished: tuple[Path, object], file: str) -> None:
    name, parse = FILES[file]
    whole = (finished[0] / name).read_bytes()
    for length in places(file, whole):
        with pytest.raises(ShardError, match=f"^{name}: damaged"):
            parse(whole[:length], name)


@pytest.mark.parametrize("file", FILES)
def test_seal_is_the_hash_of_the_file_with_zeros_in_its_place(finished: tuple[Path, object], file: str) -> None:
    data = (finished[0] / FILES[file][0]).read_bytes()
    (named,) = re.findall(rb'"file_sha256": "([0-9a-f]{64})"', data)
    assert hashlib.sha256(data.replace(named, b"0" * 64)).hexdigest().encode() == named


def test_file_without_a_seal_is_refused() -> None:
    unit = Unit(0, (PhotoFile("a", "a.jpg"),))
    record = json.loads(unit.to_json())
    del record[SEAL]
    with pytest.raises(ShardError, match="does not name its SHA-256"):
        Unit.from_json(json.dumps(record).encode(), "unit")


def test_zeros_and_the_name_of_the_seal_elsewhere_do_not_matter() -> None:
    content = {"a": "0" * 64, "z": {SEAL: "0" * 64}, "key": f'"{SEAL}": "{"0" * 64}"'}
    data = seal(json.dumps(with_room({"z": content}), sort_keys=True).encode())
    assert is_sealed(data)
    assert not is_sealed(json.dumps({"a": "0" * 64}).encode())


def test_manifest_keeps_the_types_of_its_columns_and_its_record(tmp_path: Path) -> None:
    rows = pa.Table.from_pylist([{"image": "ä", "crc32": 2**32 - 1}, {"image": "b", "mask": 1}], schema_of("masks"))
    record = UnitRecord(3, "1" * 32, "2" * 32, 2, 1, 0, 10, "0" * 64, "f" * 64, 1)
    data = write_manifest(rows, record)
    table, read = read_manifest(data, "manifest")
    assert table.equals(rows)
    assert read == read_record(data, "manifest") == record
    (tmp_path / "manifest.parquet").write_bytes(data)
    metadata = pq.read_table(tmp_path / "manifest.parquet").schema.metadata
    described = json.loads(metadata[b"sum_factory"])
    assert {**asdict(record), "files": [], SEAL: described[SEAL]} == described
