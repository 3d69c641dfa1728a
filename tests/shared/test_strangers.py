"""Shard sets from somebody else: no command touches anything outside the folders that it was given."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from numcodecs.zstd import compress

from sum_factory.labelgen.cli import main
from sum_factory.shared.errors import ShardError, SumError
from sum_factory.shared.shards.dataset import Dataset, Unit
from sum_factory.shared.shards.encodings.tar_layer import images_of_tar
from sum_factory.shared.shards.encodings.zarr_reader import content_size
from sum_factory.shared.shards.kinds import kind_of
from sum_factory.shared.shards.manifest import read_manifest, read_parquet, write_manifest
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.store.canonical_json import content_id
from sum_factory.shared.store.seal import SEAL, seal, with_room

COUNTS = ((2, "unread"), (1, 1))
COMMANDS = (
    ("status",),
    ("verify",),
    ("repair",),
    ("gc", "--older-than", "0"),
    ("select", "--out", "OUT"),
    ("convert", "--out", "OUT", "--encoding", "zarr"),
    ("export", "--out", "OUT/a.json"),
)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, write_known: Any) -> Path:
    """A folder of two small shard sets, ``one`` and ``x``, which no test may change."""
    folder = tmp_path_factory.mktemp("kept")
    for name in ("one", "x"):
        write_known(folder / name, "tar", COUNTS)
    return folder


@pytest.fixture
def sets(kept: Path, tmp_path: Path) -> Path:
    """Its copy, for a test to change."""
    return shutil.copytree(kept, tmp_path / "sets")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a sealed file of JSON, and make its ids and its seal fit."""
    record = json.loads(path.read_text())
    del record[SEAL]
    change(record)
    for layer in record.get("layers", {}).values():
        layer["id"] = content_id([3, *(layer[name] for name in ("name", "encoding", "settings", "weights"))])
    if "unit" in record:
        record["id"] = content_id([[image["key"], image["size"]] for image in record["images"]])
    path.write_bytes(seal(json.dumps(with_room(record)).encode()))


def call(sets: Path, *command: str) -> Any:
    """Run a command of ``labelgen`` on the set ``one``, with its output beside the sets."""
    arguments = [argument.replace("OUT", str(sets.parent / "out")) for argument in command]
    return CliRunner().invoke(main, [arguments[0], "--shards", str(sets / "one"), *arguments[1:]])


def rename_layer(record: dict[str, Any], name: str, new: str) -> None:
    record["layers"][new] = {**record["layers"].pop(name), "name": new}


@pytest.mark.parametrize(
    "name",
    [
        "../../x/manifest/masks",
        "uncertainty/../../x/masks",
        "uncertainty/..",
        "uncertainty/a/b",
        "/etc/masks",
        "uncertainty/a\0",
        "MASKS",
        "uncertainty/a.zarr",
        "depths",
    ],
)
def test_layer_that_would_lie_elsewhere_is_refused_by_every_command(
    sets: Path, name: str, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    edit(sets / "one/dataset.json", lambda record: rename_layer(record, "uncertainty/entropy", name))
    before = snapshot(sets)
    for command in COMMANDS:
        result = call(sets, *command)
        assert (result.exit_code, type(result.exception)) == (1, SystemExit), result.output
        assert "error: " in result.output
    assert snapshot(sets) == before
    assert not (sets.parent / "out").exists()


@pytest.mark.parametrize("linked", ["masks", "manifest/masks", "units", "quarantine"])
@pytest.mark.parametrize("command", [("repair",), ("gc", "--older-than", "0")])
def test_nothing_is_taken_from_or_put_to_where_a_planted_link_leads(
    sets: Path, linked: str, command: tuple[str, ...], snapshot: Callable[[Path], dict[str, str]]
) -> None:
    (sets / "one/photos/000000.tar").write_bytes(b"broken")
    target = sets / "x" / linked
    target.mkdir(exist_ok=True)
    for name in (".partial-000000.tar-0", "000000.tar", "000009.tar"):
        (target / name).exists() or (target / name).write_bytes(b"precious")
    if (sets / "one" / linked).exists():
        shutil.rmtree(sets / "one" / linked)
    (sets / "one" / linked).symlink_to(target)
    before = snapshot(sets / "x")
    result = call(sets, *command)
    assert result.exit_code in (0, 1, 3), result.output
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert snapshot(sets / "x") == before
    assert (sets / "one" / linked).is_symlink()


def test_conversion_into_a_folder_with_a_planted_link_writes_nothing_through_it(
    sets: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    (sets.parent / "out").mkdir()
    (sets.parent / "out/masks.zarr").symlink_to(sets / "x")
    before = snapshot(sets)
    result = call(sets, "convert", "--out", "OUT", "--encoding", "zarr")
    assert result.exit_code == 1
    assert "masks.zarr is a link, and nothing is written through one" in result.output
    assert snapshot(sets) == before


def test_link_in_the_way_of_repair_is_named(sets: Path) -> None:
    (sets / "one/photos/000000.tar").write_bytes(b"broken")
    (sets / "one/quarantine").symlink_to(sets / "x")
    result = call(sets, "repair")
    assert result.exit_code == 1
    assert "quarantine is a link, and nothing is written through one" in result.output


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("dataset.json", lambda r: r.update(unit_size=10**12), r"unit_size: expected a whole number from 1 to"),
        ("dataset.json", lambda r: r.update(unit_size=-1), "unit_size: expected a whole number"),
        ("dataset.json", lambda r: r.update(images=10**18), "unit_size or images do not match the units"),
        ("dataset.json", lambda r: r.update(extended=[1, 2**60]), "extended: expected a whole number from 1 to 2"),
        ("dataset.json", lambda r: r.update(units=["../x"]), r"units\[0\]: expected \[0-9a-f\]"),
        ("dataset.json", lambda r: r.update(more=1), "more: not expected here"),
        ("dataset.json", lambda r: r["layers"].pop("masks"), "layers.masks: missing"),
        (
            "dataset.json",
            lambda r: r["layers"]["masks"]["weights"]["sam"].update(image_size=2**40),
            "layers.masks: weights.sam.image_size: expected a whole number from 4 to 8192",
        ),
        (
            "dataset.json",
            lambda r: r["layers"]["embeddings"]["settings"].update(shape=[1, 2**50, 1]),
            "layers.embeddings: settings.shape: expected a whole number from 1 to",
        ),
        (
            "dataset.json",
            lambda r: r["layers"]["masks"].update(settings={"a": float("nan")}),
            "NaN is no number of JSON",
        ),
        (
            "dataset.json",
            lambda r: r["layers"]["masks"].update(settings={"a": 10**400}),
            "expected a number of 64 bits",
        ),
        ("units/000000.json", lambda r: r["images"][1].update(key=r["images"][0]["key"]), "each with a key of its own"),
        ("units/000000.json", lambda r: r["images"][1].update(url="reference://a"), r"images\[1\]: reference:// URLs"),
        ("units/000000.json", lambda r: r["images"][1].update(offset=-1), r"images\[1\].offset: expected a whole"),
        ("units/000000.json", lambda r: r["images"][1].update(size=2.5), r"images\[1\].size: expected a whole"),
        ("units/000000.json", lambda r: r["images"][0].update(run="id"), r"images\[0\]: expected key, url, member"),
        ("units/000000.json", lambda r: r.update(images=[]), "images: expected photos"),
    ],
)
def test_entry_that_nobody_writes_is_named_when_it_is_read(
    sets: Path, file: str, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(sets / "one" / file, change)
    data, name = (sets / "one" / file).read_bytes(), str(sets / "one" / file)
    read = Dataset.from_json if file == "dataset.json" else Unit.from_json
    with pytest.raises(ShardError, match=message) as caught:
        read(data, name)
    assert name in str(caught.value)


def test_plan_of_an_absurd_number_is_named(sets: Path) -> None:
    shutil.copy(sets / "one/units/000000.json", sets / "one/units/99999999.json")
    with pytest.raises(ShardError, match=r"units/99999999\.json: there are 3 plans, and none has so large a number"):
        _ = ShardSet.open(str(sets / "one")).unit_count
    (sets / "one/units/99999999.json").unlink()
    for name in ("999999999999.json", "0000001.json", "\u0660\u0660\u0660\u0660\u0660\u0665.json"):
        shutil.copy(sets / "one/units/000000.json", sets / "one/units" / name)
        assert ShardSet.open(str(sets / "one")).unit_count == 2, "no name of a plan"


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("offset", -1, "offset is -1"),
        ("offset", 2**62, "offset is"),
        ("length", 2**31 - 1, "length is"),
        ("height", 0, "height is 0"),
        ("width", 2**30, "width is"),
        ("crop_x1", 10_000, "crop_x1 is 10000"),
        ("crop_y0", -5, "crop_y0 is -5"),
        ("predicted_iou", float("nan"), "predicted_iou is nan"),
        ("point_x", None, "point_x is None"),
        ("crop_x0", None, "crop_x0 is None"),
        ("offset", None, "offset is None"),
        ("mask", 7, "numbered from 0"),
        ("image_index", 5, "expected the 2 images"),
        ("image", "unit1/photo.0", "a key of its own"),
        ("digest", "no hexadecimal", "digest is 'no hexadecimal'"),
    ],
)
def test_row_that_nobody_writes_is_named_when_it_is_read(sets: Path, column: str, value: Any, message: str) -> None:
    path = sets / "one/manifest/masks/000001.parquet"
    table, record = read_manifest(path.read_bytes(), "")
    values = table[column].to_pylist()
    values[1] = value
    place = table.schema.get_field_index(column)
    forged = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    path.write_bytes(write_manifest(forged.replace_schema_metadata(None), record))
    with pytest.raises(ShardError, match=rf"masks/000001\.parquet: damaged \(.*{message}"):
        ShardSet.open(str(sets / "one")).manifest(1)


def test_rows_that_take_no_bytes_are_not_made_room_for() -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"image_index": pa.nulls(10**7, pa.int32())}), sink)
    assert len(sink.getvalue()) < 10**5
    with pytest.raises(ValueError, match="10000000 rows in"):
        read_parquet(sink.getvalue())
    sink = io.BytesIO()
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 2_000, pa.int32()), ["x" * 2**20])
    pq.write_table(pa.table({"error": texts}), sink, store_schema=False)
    assert len(sink.getvalue()) < 10**7
    with pytest.raises(ValueError, match="column error: 2097152000 bytes of text"):
        read_parquet(sink.getvalue())


def tar_of(*members: tuple[str, bytes]) -> bytearray:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return bytearray(sink.getvalue())


def with_header(tar: bytearray, place: int, start: int, value: bytes) -> bytes:
    """Return a tar with a field of a header changed, and its checksum made to fit."""
    tar[place + start : place + start + len(value)] = value
    tar[place + 148 : place + 156] = b" " * 8
    tar[place + 148 : place + 156] = f"{sum(tar[place : place + 512]):06o}\0 ".encode()
    return bytes(tar)


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\xff" * 11 + b"\x00", b"\x80" + b"\x7f" * 11])
@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"S", b"L", b"1", b"5"])
def test_tar_whose_headers_lie_comes_to_an_end(kind: bytes, size: bytes) -> None:
    sound = tar_of(("a.json", b'{"key": "a", "length": [3]}'), ("a.labels", b"abc"))
    tar = with_header(bytearray(with_header(sound, 1024, 124, size)), 1024, 156, kind)
    until = time.monotonic() + 60
    with pytest.raises(ShardError):
        list(images_of_tar(tar, kind_of("masks"), "a.tar"))
    assert time.monotonic() < until


@pytest.mark.parametrize("size", [0, 1, 255, 256, 70_000, 2**20])
def test_zstandard_says_what_it_holds(size: int) -> None:
    frame = compress(np.zeros(size, np.uint8))
    assert content_size(frame) == size
    assert content_size(frame[:5]) is None or size < 256
    assert content_size(b"no frame of it") is content_size(b"") is None


def test_set_whose_dataset_is_a_device_is_refused(sets: Path) -> None:
    (sets / "one/dataset.json").unlink()
    (sets / "one/dataset.json").symlink_to("/dev/zero")
    with pytest.raises(SumError, match="not a regular file"):
        ShardSet.open(str(sets / "one"))
    os.unlink(sets / "one/dataset.json")
    os.mkfifo(sets / "one/dataset.json")
    with pytest.raises(SumError, match="not a regular file"):
        ShardSet.open(str(sets / "one"))


def test_control_characters_of_a_set_do_not_reach_the_terminal(sets: Path) -> None:
    edit(sets / "one/dataset.json", lambda record: record.update({"\x1b[2J": 1}))
    result = call(sets, "status")
    assert result.exit_code == 1
    assert "\\x1b[2J: not expected here" in result.output
    assert "\x1b" not in result.output
