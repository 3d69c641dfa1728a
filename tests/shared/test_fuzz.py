"""Shard sets from anybody: whatever stands in their files, reading them is a success or ends with a ``SumError``.

Files are changed at random, always in the same way: entries of JSON of other types, of absurd sizes, missing or nested;
columns and values of manifests; bits and headers of data. Seals and ids are made to fit, as somebody else would.
"""

from __future__ import annotations

import io
import json
import random
import struct
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sum_factory.labelgen.sets.select import Filter, select
from sum_factory.shared.errors import SumError
from sum_factory.shared.shards.manifest import read_manifest, write_manifest
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.verify import verify
from sum_factory.shared.store.canonical_json import content_id
from sum_factory.shared.store.seal import SEAL, seal, with_room

DEEP = "[" * 3_000 + "]" * 3_000
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, -(2**31), 2**63 - 1, 2**63, -(2**63), 2**64, 10**18, 10**30, 10**4_000),
    *(0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", "a", "masks", "..", "../../x", "/etc/passwd", "\0", "\ud800", "é" * 300, "x" * 70_000, "0" * 64, "f" * 32),
    *("reference://x", "s3://", "::", "memory://a::b", "\x1b[2J", [], {}, [[]], [1, "a"], {"a": {"b": [None]}}),
)
"""Values that stand where others are expected."""

Change = Callable[[random.Random, bytes], bytes]


def mutated(chance: random.Random, value: Any) -> Any:
    """Return JSON with one entry, anywhere in it, changed, left out, repeated or given another name."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, item in items:
            places.append((node, key))
            walk(item)

    walk(value)
    node, key = chance.choice(places)
    match chance.randrange(6):
        case 0 | 1 | 2:
            node[key] = chance.choice(ODD)
        case 3:
            del node[key]
        case 4 if isinstance(node, dict):
            node[str(chance.choice(("", "../../x", "uncertainty/../a", "images", "kind", "a" * 300)))] = node.pop(key)
        case _:
            number = node[key] if type(node[key]) is int else 0
            node[key] = number + chance.choice((-1, 1, 1_000, -(2**40))) if number else [node[key]] * 3
    return value


def json_changed(chance: random.Random, data: bytes) -> bytes:
    """Return a sealed file of JSON with an entry changed, its ids made to fit, and sealed anew."""
    record = mutated(chance, json.loads(data))
    record.pop(SEAL, None)
    if chance.random() < 0.7:
        _fit_ids(record)
    text = json.dumps(with_room(record))
    if chance.random() < 0.05:
        text = text.replace('"format": 3', f'"format": 3, "deep": {chance.choice((DEEP, "9" * 5_000))}')
    return seal(text.encode("utf-8", "surrogatepass"))


def _fit_ids(record: dict[str, Any]) -> None:
    """Make ids those of what was changed, so far as that has any."""
    try:
        for layer in record.get("layers", {}).values():
            layer["id"] = content_id([3, *(layer[name] for name in ("name", "encoding", "settings", "weights"))])
    except (AttributeError, KeyError, TypeError, ValueError):
        return
    try:
        if "images" in record and "unit" in record:
            record["id"] = content_id([[image["key"], image.get("size")] for image in record["images"]])
        if record.get("kind") == "selection":
            bases = [[base["id"], base["layers"]] for base in record["bases"]]
            record["id"] = content_id(["selection", 3, bases, record["units"]])
    except (AttributeError, KeyError, TypeError, ValueError):
        return


def manifest_changed(chance: random.Random, data: bytes) -> bytes:
    """Return a manifest with values, columns, rows or its record changed, sealed anew."""
    table, record = read_manifest(data, "")
    plain = table.replace_schema_metadata(None)
    match chance.randrange(5):
        case 0:
            described = mutated(chance, json.loads(json.dumps(record.__dict__)))
            return _write_as(plain, described)
        case 1:
            order = [chance.randrange(len(table)) for _ in range(chance.choice((0, 1, len(table), 3 * len(table))))]
            plain = plain.take(pa.array(order, pa.int64()))
        case 2:
            name = chance.choice(plain.column_names)
            plain = plain.drop_columns([name]) if chance.random() < 0.5 else plain.rename_columns({name: "odd"})
        case 3:
            place = chance.randrange(plain.num_columns)
            kind = chance.choice((pa.int64(), pa.float64(), pa.string(), pa.list_(pa.int8()), pa.binary(), pa.bool_()))
            plain = plain.set_column(place, plain.column_names[place], pa.nulls(len(plain), kind))
        case _:
            for _ in range(chance.choice((1, 1, 5))):
                plain = _value_changed(chance, plain)
    return write_manifest(plain, record)


def _value_changed(chance: random.Random, table: pa.Table) -> pa.Table:
    """Return a table with one value, or all of a column, changed to what its type can hold."""
    place = chance.randrange(table.num_columns)
    field, values = table.schema.field(place), table.column(place).to_pylist()
    if pa.types.is_integer(field.type):
        bits = field.type.bit_width
        odd: Any = chance.choice((None, 0, 1, 2 ** (bits - 1) - 1, 7, 99_999))
        odd = -odd if odd and pa.types.is_signed_integer(field.type) and chance.random() < 0.5 else odd
        odd = None if odd is not None and abs(odd) >= 2 ** (bits - 1) else odd
    elif pa.types.is_floating(field.type):
        odd = chance.choice((None, 0.0, -1.0, float("nan"), float("inf"), 3e38))
    elif pa.types.is_boolean(field.type):
        odd = chance.choice((None, True, False))
    else:
        odd = chance.choice((None, "", "a", "../../x", "f" * 64, "x" * 10_000, "\x1b[2J"))
    for row in range(len(values)) if chance.random() < 0.3 else (chance.randrange(max(len(values), 1)),):
        if row < len(values):
            values[row] = odd
    return table.set_column(place, field, pa.array(values, field.type))


def _write_as(table: pa.Table, described: dict[str, Any]) -> bytes:
    """Return a manifest whose record is any JSON."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"sum_factory": json.dumps(with_room(described))})
    return seal(sink.getvalue())


def bytes_changed(chance: random.Random, data: bytes) -> bytes:
    """Return bytes with some flipped, cut out, repeated or put in."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 3, 20))):
        place = chance.randrange(len(changed) + 1)
        match chance.randrange(5):
            case 0 | 1 if place < len(changed):
                changed[place] ^= 1 << chance.randrange(8)
            case 2:
                del changed[place : place + chance.choice((1, 7, 512, 5_000))]
            case 3:
                changed[place:place] = changed[place : place + chance.choice((1, 16, 512))]
            case _:
                changed[place : place + 8] = struct.pack("<q", chance.choice((0, -1, 2**31, 2**62)))
    return bytes(changed)


def sealed_bytes_changed(chance: random.Random, data: bytes) -> bytes:
    """Return a sealed file with bytes changed, sealed anew if the place of the seal is still there."""
    start = data.rfind(b'"' + SEAL.encode() + b'": "') + len(SEAL) + 5
    changed = bytearray(bytes_changed(chance, data[:start] + b"0" * 64 + data[start + 64 :]))
    try:
        return seal(bytes(changed))
    except ValueError:
        return bytes(changed)


def header_changed(chance: random.Random, data: bytes) -> bytes:
    """Return a tar with a header changed so that its checksum fits: sizes, kinds and names that lie."""
    changed = bytearray(data)
    headers = [place for place in range(0, len(data), 512) if data[place + 257 : place + 262] == b"ustar"]
    place = chance.choice(headers)
    match chance.randrange(4):
        case 0:
            sizes = (b"00000000000\0", b"77777777777\0", b"\xff" * 12, b"\xff" * 11 + b"\0", b"\x80" + b"\x7f" * 11)
            changed[place + 124 : place + 136] = chance.choice(sizes)
        case 1:
            changed[place + 156] = chance.choice(b"0123456789xgLKSDVMN\0\xff")
        case 2:
            changed[place : place + 100] = chance.choice((b"../../x", b"/etc/passwd", b"\xff\xfe", b"")).ljust(
                100, b"\0"
            )
        case _:
            text = chance.choice((b"11 size=-9\n", b"9999999999 a=b\n", b"0 =\n", b"14 path=../x\n\n", b"-5 a=b\n"))
            changed[place + 156 : place + 157] = chance.choice((b"x", b"g"))
            changed[place + 512 : place + 512 + len(text)] = text
    total = sum(changed[place : place + 148]) + 8 * 32 + sum(changed[place + 156 : place + 512])
    changed[place + 148 : place + 156] = f"{total:06o}\0 ".encode()
    return bytes(changed)


def recommitted(folder: Path, name: str, change: Change) -> Change:
    """Return a change of a data file after which its manifests, which are rewritten, commit what it has become."""

    def recommit(chance: random.Random, data: bytes) -> bytes:
        changed = change(chance, data)
        shards = ShardSet.open(str(folder))
        for layer in shards.dataset.layers:
            for number in shards.committed(layer):
                files = shards.data_files(number, layer)
                if name in files:
                    _recommit(folder, layer, number, files, name, changed)
        return changed

    return recommit


def _recommit(folder: Path, layer: str, number: int, files: tuple[str, ...], name: str, changed: bytes) -> None:
    path = folder / "manifest" / layer / f"{number:06d}.parquet"
    table, record = read_manifest(path.read_bytes(), "")
    contents = [changed if file == name else (folder / file).read_bytes() for file in files]
    each = tuple((len(content), sha256(content).hexdigest()) for content in contents)
    whole = b"".join(contents)
    record = replace(
        record,
        files=each if len(each) > 1 else (),
        data_bytes=len(whole),
        data_sha256=sha256(whole).hexdigest(),
    )
    path.write_bytes(write_manifest(table.replace_schema_metadata(None), record))


def read_all(folder: Path) -> None:
    """Read a shard set in every way: check it, and read rows, masks, maps, photos and outputs. Raises ``SumError``."""
    shards = open_shards(str(folder))
    for problem in (problem for check in verify(shards) for problem in check.problems):
        assert "Traceback" not in problem
    failed: SumError | None = None
    for layer in shards.dataset.layers:
        for number in shards.committed(layer):
            try:
                rows = shards.reader(layer).rows(number)
                shards.reader(layer).blobs(number, np.arange(len(rows)))
                if layer == "masks":
                    for image in shards.images(number):
                        shards.read_label_logits(number, image, range(len(image.masks)))
                elif layer.startswith("uncertainty/"):
                    for of_image in shards.uncertainty(number, layer.partition("/")[2]):
                        shards.read_uncertainty(number, of_image, layer.partition("/")[2])
            except SumError as error:
                failed = error
    if failed is not None:
        raise failed


def outcome(work: Callable[[], object]) -> str:
    """Return what became of work: "success", or the kind of its ``SumError``. Any other error is raised."""
    try:
        work()
    except SumError as error:
        return type(error).__name__
    return "success"


COUNTS = ((2, "a photo that nobody could read"), (3, 1))
QUICK, LONG = 1, 400
"""Cases of each kind of change in the tests that always run, and in those that run for long."""


@dataclass(frozen=True)
class Small:
    """A small shard set in an encoding, and a selection of it beside it: for a test to change, and to put back."""

    folder: Path
    encoding: str

    @property
    def selection(self) -> Path:
        return self.folder.parent / "selection"

    def changes(self, own_alone: bool) -> list[tuple[Path, str, Change]]:
        """Return which file each kind of change is of, and which folder is read then; all, or the encoding's own."""
        data = "masks/000001.tar" if self.encoding == "tar" else "masks.zarr/label/c.1.0.0"
        photos = "photos/000001.tar" if self.encoding == "tar" else "photos.zarr/jpeg/c.1.0"
        shared: list[tuple[str, Change]] = [
            ("dataset.json", json_changed),
            ("dataset.json", sealed_bytes_changed),
            ("units/000001.json", json_changed),
            ("units/000001.json", sealed_bytes_changed),
            *((f"manifest/{layer}/000001.parquet", manifest_changed) for layer in LAYERS),
            ("manifest/masks/000001.parquet", sealed_bytes_changed),
        ]
        own: list[tuple[str, Change]] = [
            (data, recommitted(self.folder, data, bytes_changed)),
            (photos, recommitted(self.folder, photos, bytes_changed)),
        ]
        if self.encoding == "tar":
            own.append((data, recommitted(self.folder, data, header_changed)))
        else:
            own += [("masks.zarr/zarr.json", bytes_changed), ("masks.zarr/label/zarr.json", json_of_zarr_changed)]
        if own_alone:
            return [(self.folder, *one) for one in own]
        chosen: list[tuple[str, Change]] = [
            ("dataset.json", json_changed),
            ("rows/000001.parquet", rows_changed(self.selection)),
        ]
        return [(self.folder, *one) for one in (*shared, *own)] + [(self.selection, *one) for one in chosen]


LAYERS = ("masks", "uncertainty/refinement", "uncertainty/entropy", "logits", "embeddings", "photos")


def json_of_zarr_changed(chance: random.Random, data: bytes) -> bytes:
    """Return Zarr's description of an array with an entry changed."""
    return json.dumps(mutated(chance, json.loads(data))).encode("utf-8", "surrogatepass")


def rows_changed(selection: Path) -> Change:
    """Return a change of the rows of a selection, which its ``dataset.json`` then names."""

    def change(chance: random.Random, data: bytes) -> bytes:
        table = _value_changed(chance, pq.read_table(pa.BufferReader(data)))
        sink = io.BytesIO()
        pq.write_table(table.slice(chance.choice((0, 0, 1))), sink, store_schema=False)
        changed = bytes_changed(chance, sink.getvalue()) if chance.random() < 0.3 else sink.getvalue()
        described = json.loads((selection / "dataset.json").read_text())
        del described[SEAL]
        described["units"][1]["rows"] = sha256(changed).hexdigest()
        _fit_ids(described)
        (selection / "dataset.json").write_bytes(seal(json.dumps(with_room(described)).encode()))
        return changed

    return change


@pytest.fixture(scope="module", params=["tar", "zarr"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, write_known: Any) -> Small:
    """A small shard set in each encoding."""
    made = Small(tmp_path_factory.mktemp(request.param) / "set", request.param)
    write_known(made.folder, request.param, COUNTS)
    select(str(made.folder), str(made.selection), Filter(images=("unit1/photo.0", "unit0/*")))
    return made


def run_cases(small: Small, count: int, seed: int, own_alone: bool = False) -> Counter[str]:
    """Make so many changes of each kind, and return how often each outcome came of reading what they left."""
    outcomes: Counter[str] = Counter()
    unexpected: list[str] = []
    whole = {path: path.read_bytes() for path in small.folder.parent.rglob("*") if path.is_file()}
    for kind, (folder, name, change) in enumerate(small.changes(own_alone)):
        for case in range(count):
            chance = random.Random(f"{seed} {kind} {case}")
            path = folder / name
            try:
                path.write_bytes(change(chance, path.read_bytes()))
                outcomes[outcome(lambda folder=folder: read_all(folder))] += 1
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                told = f"{error!r:.200} in {Path(place.filename).name}, line {place.lineno}"
                unexpected.append(f"seed {seed}, {change.__name__} of {name}, case {case}: {told}")
            finally:
                for changed, data in whole.items():
                    if changed.read_bytes() != data:
                        changed.write_bytes(data)
    assert unexpected == []
    return outcomes


def test_whatever_stands_in_a_shard_set_it_is_read_or_refused(small: Small) -> None:
    outcomes = run_cases(small, QUICK, seed=0, own_alone=small.encoding == "zarr")
    assert min(outcomes["ShardError"], outcomes["success"]) > 0, outcomes


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 4))
def test_whatever_stands_in_a_shard_set_it_is_read_or_refused_many_times(small: Small, seed: int) -> None:
    assert run_cases(small, LONG, seed)["ShardError"] > LONG
