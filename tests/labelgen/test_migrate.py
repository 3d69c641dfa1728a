"""A shard set of version 1, written here from its description alone, comes over whole, or is refused by name."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from click.testing import CliRunner, Result

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.migrate import MigrationSummary, migrate
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.commands import FAILED
from sum_factory.shared.errors import SettingsDifferError, ShardError
from sum_factory.shared.shards.dataset import DATASET, Unit
from sum_factory.shared.shards.reader import Part, known
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.storage import Storage
from sum_factory.shared.uncertainty_codec import decode_u, refined_label

SIDE = 64
"""Pixels of the input of the SAM that is said to have made the masks; its grid has 16 cells."""
MAPS = "uncertainty/refinement"
Bits = npt.NDArray[np.uint8]
Problems = Callable[[Path], list[str]]
Snapshot = Callable[[Path], dict[str, str]]


def id_of(value: Any) -> str:
    """Return the first 128 bits of SHA-256 over compact JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def band_of(signs: Bits) -> list[tuple[int, int]]:
    """Return the cells that have one of their eight neighbours of the other sign, row by row."""
    rows, columns = signs.shape
    return [
        (i, j)
        for i in range(rows)
        for j in range(columns)
        if len({*signs[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].ravel().tolist()}) > 1
    ]


def raw_deflate(content: bytes) -> bytes:
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    return stream.compress(content) + stream.flush()


def packed(bits: Bits) -> bytes:
    """Return rows of bits, each but the first XORed with the one above, eight to a byte."""
    rows = [bits[0].tolist()] + [(bits[i] ^ bits[i - 1]).tolist() for i in range(1, len(bits))]
    text = "".join(str(bit) for row in rows for bit in row)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def write_label(signs: Bits, steps: int, typical: float, q: Sequence[int]) -> bytes:
    """Return a frame of version 1: positive cells not at the edge, one q for each cell of the band."""
    rows, columns = np.nonzero(signs)
    top, left, bottom, right = rows.min() - 1, columns.min() - 1, rows.max() + 1, columns.max() + 1
    box = signs[top : bottom + 1, left : right + 1]
    header = struct.pack("<6BeB", signs.shape[0] - 1, signs.shape[1] - 1, top, left, bottom, right, typical, steps)
    return header + raw_deflate(packed(box) + bytes(q))


def read_label(frame: bytes) -> tuple[Bits, int, float, list[int]]:
    """Return signs, steps, t and the q of the band, as the description of a frame says."""
    rows, columns, top, left, bottom, right, typical, steps = struct.unpack_from("<6BeB", frame)
    content = zlib.decompress(frame[9:], -15)
    height, width = bottom - top + 1, right - left + 1
    length = -(-height * width // 8)
    bits = [int(bit) for byte in content[:length] for bit in f"{byte:08b}"][: height * width]
    box = np.array(bits, np.uint8).reshape(height, width)
    for i in range(1, height):
        box[i] ^= box[i - 1]
    signs = np.zeros((rows + 1, columns + 1), np.uint8)
    signs[top : bottom + 1, left : right + 1] = box
    return signs, steps, typical, list(content[length:])


def write_map(levels: Bits) -> bytes:
    """Return the map of a frame of an uncertainty layer, its box being the whole grid."""
    rows, columns = levels.shape
    above = levels.ravel()[levels.ravel() > 0]
    header = struct.pack("<6B", rows - 1, columns - 1, 0, 0, rows - 1, columns - 1)
    return header + raw_deflate(packed((levels > 0).astype(np.uint8)) + bytes((above - 1).tolist()))


@dataclass(frozen=True)
class OldMask:
    """One mask of the old shard set: its label, its map and its refined label; no map if that is unknown."""

    label: bytes
    levels: Bits
    refined: bytes
    valid: bool

    @property
    def map_frame(self) -> bytes:
        part = write_map(self.levels)
        return struct.pack("<I", len(part)) + part + self.refined if self.valid else b""

    @property
    def mean_u(self) -> float | None:
        return float(np.float32(self.levels.mean() / 25)) if self.valid else None


def draw_label(random: np.random.Generator, size: tuple[int, int], thin: bool) -> bytes:
    """Return a label: a thin one has 128 steps."""
    signs = np.zeros(size, np.uint8)
    top, left = random.integers(2, 6, 2)
    signs[top : top + (2 if thin else 6), left : left + int(random.integers(1, 4) if thin else 6)] = 1
    signs[top, left] = thin  # a corner is missing
    steps = 128 if thin else int(random.integers(64, 128))
    q = random.integers(0, steps, len(band_of(signs)))
    q[:2] = 0, steps - 1
    return write_label(signs, steps, float(np.float16(random.uniform(0.5, 9))), q.tolist())


def draw_mask(seed: int, size: tuple[int, int]) -> OldMask:
    random = np.random.default_rng(seed)
    levels = (random.integers(0, 26, size) * (random.random(size) < 0.3)).astype(np.uint8)
    labels = [draw_label(random, size, bool(thin)) for thin in (seed % 2, seed % 3)]
    return OldMask(labels[0], levels, labels[1], valid=seed % 5 != 0)


IMAGES: list[tuple[str, tuple[int, int], int]] = [
    ("a/one.two", (64, 64), 3), ("a/100%", (48, 64), 2), ("empty", (64, 40), 0),
    ("broken", (0, 0), -1), ("last", (64, 64), 4),
]  # fmt: skip
"""Key, height and width, and how many masks; -1 for a photo that could not be read."""
UNITS = [IMAGES[:2], IMAGES[2:4], IMAGES[4:]]
NUMBERS = {key: number for number, (key, _, _) in enumerate(IMAGES)}


def masks_of(key: str) -> list[OldMask]:
    """Return the masks of an image, on the cells that its pixels are interpolated from."""
    number = NUMBERS[key]
    (height, width), count = IMAGES[number][1:]
    grid = min(height // 4 + 1, 16), min(width // 4 + 1, 16)
    return [draw_mask(10 * number + k, grid) for k in range(count)]


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a file to a tar; return where its data start."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))
    return tar.offset - len(data) - -len(data) % 512


PLACE = {
    "image": pa.string(), "image_index": pa.int32(), "height": pa.int32(), "width": pa.int32(), "error": pa.string(),
    "mask": pa.int32(), "offset": pa.int64(), "length": pa.int32(), "crc32": pa.uint32(),
}  # fmt: skip
COLUMNS: dict[str, dict[str, Any]] = {
    MASKS: {
        **dict.fromkeys(("box_x", "box_y", "box_w", "box_h"), pa.int32()), "area": pa.int64(),
        **dict.fromkeys(("point_x", "point_y", "predicted_iou", "stability"), pa.float32()),
        **dict.fromkeys(("crop_x0", "crop_y0", "crop_x1", "crop_y1"), pa.int32()),
    },
    MAPS: {"mean_u": pa.float32(), "u_valid": pa.bool_()},
}  # fmt: skip


def values_of(layer: str, key: str, size: tuple[int, int]) -> dict[str, list[Any]]:
    """Return the layer's own columns of an image's masks."""
    masks, (height, width) = masks_of(key), size
    if layer == MAPS:
        return {"mean_u": [mask.mean_u for mask in masks], "u_valid": [mask.valid for mask in masks]}
    values = {name: [10 * i + k for k in range(len(masks))] for i, name in enumerate(COLUMNS[MASKS])}
    crop = {"crop_x0": 0, "crop_y0": 0, "crop_x1": width, "crop_y1": height}
    return {**values, **{name: [value] * len(masks) for name, value in crop.items()}}


def rows_sha256(table: pa.Table) -> str:
    """Return the SHA-256 of the rows that a manifest of version 1 names."""
    hasher = hashlib.sha256()
    for name, kind in zip(table.schema.names, table.schema.types, strict=True):
        values = table[name].to_pylist()
        hasher.update(f"{name}:{kind};".encode() + bytes(value is None for value in values))
        if kind == pa.string():
            hasher.update(json.dumps(values).encode())
        else:
            hasher.update(np.array([value or 0 for value in values], kind.to_pandas_dtype()).tobytes())
    return hasher.hexdigest()


def write_unit(folder: Path, layer: str, number: int, ids: Mapping[str, str], masks_sha256: str = "") -> str:
    """Write the data of a unit and its manifest; return the SHA-256 of the data."""
    data, rows, errors = io.BytesIO(), [], 0
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for index, (key, size, count) in enumerate(UNITS[number]):
            frames = [mask.label if layer == MASKS else mask.map_frame for mask in masks_of(key)]
            meta = {"key": key, "digest": digest_of(key), "length": [len(frame) for frame in frames]}
            row: dict[str, Any] = {"image": key, "image_index": index}
            if count < 0:
                errors += 1
                meta["error"] = row["error"] = "not an image"
            else:
                row |= {"height": size[0], "width": size[1]}
                meta |= {"height": size[0], "width": size[1], "told": f"of {key}"}
            name = key.replace("%", "%25").replace(".", "%2E")
            member = "labels" if layer == MASKS else "uncertainty"
            start = add_member(tar, f"{name}.{member}", b"".join(frames))
            add_member(tar, f"{name}.json", json.dumps(meta).encode())
            own = values_of(layer, key, size)
            for k, frame in enumerate(frames):
                offset = start + sum(map(len, frames[:k]))
                place = {"mask": k, "offset": offset, "length": len(frame), "crc32": zlib.crc32(frame)}
                rows.append({**row, **place, **{name: values[k] for name, values in own.items()}})
            rows += [] if frames else [row]
    schema = pa.schema({**PLACE, **COLUMNS[layer]})
    table = pa.Table.from_pylist(rows, schema=schema)
    content = data.getvalue()
    record = {
        "unit": number, "unit_id": ids["unit"], "layer_id": ids[layer], "images": len(UNITS[number]),
        "masks": sum("mask" in row for row in rows), "errors": errors, "data_bytes": len(content),
        "data_sha256": hashlib.sha256(content).hexdigest(), "masks_sha256": masks_sha256,
        "unknown": sum(row.get("u_valid") is False for row in rows), "rows_sha256": rows_sha256(table),
    }  # fmt: skip
    for name in (layer, f"manifest/{layer}"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / layer / f"{number:06d}.tar").write_bytes(content)
    described = table.replace_schema_metadata({"sum_factory": json.dumps(record)})
    pq.write_table(described, folder / "manifest" / layer / f"{number:06d}.parquet", compression="zstd")
    return str(record["data_sha256"])


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def write_version1(folder: Path) -> Path:
    """Write the shard set: three units, of which the last has no maps yet."""
    (folder / "units").mkdir(parents=True)
    unit_ids = []
    for number, images in enumerate(UNITS):
        unit_ids.append(id_of([[key, digest_of(key)] for key, _, _ in images]))
        planned = [
            {"key": key, "digest": digest_of(key), "url": f"/photos/{key}.jpg", "member": "", "offset": 0,
             "size": 7, "stamp": ""} for key, _, _ in images
        ]  # fmt: skip
        plan = {"unit": number, "id": unit_ids[-1], "images": planned}
        (folder / "units" / f"{number:06d}.json").write_text(json.dumps(plan))
    sam = {"model_type": "tiny", "image_size": SIDE, "sha256": "0" * 64}
    ids: dict[str, str] = {}
    layers = {}
    for name, weights in ((MASKS, {"sam": sam}), (MAPS, {"sam": sam, "refiner": {"sha256": "1" * 64}})):
        settings: dict[str, Any] = {"precision": "fp32"} | ({"masks": ids[MASKS]} if name == MAPS else {"points": 32})
        ids[name] = id_of([1, unit_ids, name, "tar", settings, weights])
        layers[name] = {
            "id": ids[name], "name": name, "encoding": "tar", "settings": settings, "weights": weights,
            "provenance": {"software": "of then"},
        }  # fmt: skip
    record = {"format": 1, "unit_size": 2, "images": len(IMAGES), "units": unit_ids, "layers": layers}
    (folder / DATASET).write_text(json.dumps(record))
    for number, unit_id in enumerate(unit_ids):
        sha256 = write_unit(folder, MASKS, number, {**ids, "unit": unit_id})
        if number < 2:
            write_unit(folder, MAPS, number, {**ids, "unit": unit_id}, sha256)
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write_version1(tmp_path / "old")


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new"


def quiet(line: str) -> None:
    """Say nothing."""


def labelgen(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def require_label_of_today(was: bytes, now: bytes) -> bool:
    """Require that a label came over; return whether it was framed anew."""
    signs, steps, typical, q = read_label(was)
    if steps < 128:
        assert now == was
        return False
    positions = [Fraction(2 * step + 1, 256) for step in q]
    expected = signs, 127, typical, [int(127 * position) for position in positions]
    for ours, theirs in zip(read_label(now), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    return True


def test_fixture_is_a_shard_set_of_version_1_that_is_refused_with_what_to_do(old: Path) -> None:
    for command in ("status", "verify"):
        refused = labelgen(command, "--shards", old)
        assert refused.exit_code == FAILED
        assert "format version 1, this software reads 2; `labelgen migrate --shards OLD --out NEW`" in refused.output


def test_everything_comes_over_and_the_old_is_left_as_it_was(
    old: Path, new: Path, problems: Problems, snapshot: Snapshot
) -> None:
    before = snapshot(old)
    summary = migrate(str(old), str(new), say=quiet)
    assert snapshot(old) == before
    assert problems(new) == []
    shards = ShardSet.open(str(new))
    assert (shards.committed(MASKS), shards.committed(MAPS)) == ([0, 1, 2], [0, 1])
    assert [image.key for _, image in shards.walk()] == [key for key, _, _ in IMAGES]
    reframed = 0
    for number, image in shards.walk():
        _, size, count = IMAGES[NUMBERS[image.key]]
        assert image.error == ("not an image" if count < 0 else None)
        assert (image.height, image.width) == (size if count >= 0 else (None, None))
        frames = shards.label_frames(number, image)
        for was, now in zip(masks_of(image.key), frames, strict=True):
            reframed += require_label_of_today(was.label, now)
        own = values_of(MASKS, image.key, size)
        assert [{name: row[name] for name in own} for row in image.masks] == [
            {name: values[k] for name, values in own.items()} for k in range(len(frames))
        ]
        assert shards.unit(number).images[image.index].url == f"/photos/{image.key}.jpg"
    assert 0 < reframed < sum(len(masks_of(key)) for key, _, _ in IMAGES)
    assert summary == MigrationSummary(5, 0, 5, summary.reframed, ())
    assert summary.reframed > reframed


def test_maps_come_over_bit_for_bit_and_refined_labels_as_labels_do(old: Path, new: Path) -> None:
    migrate(str(old), str(new), say=quiet)
    shards = ShardSet.open(str(new))
    reader, compared = shards.reader(MAPS), 0
    for number in (0, 1):
        rows = shards.uncertainty(number)
        for image in shards.images(number):
            for row, was in zip(rows[image.index], masks_of(image.key), strict=True):
                (frame,) = reader.frames(number, [row.row])
                assert (row.u_valid, row.mean_u) == (was.valid, was.mean_u)
                if not was.valid:
                    assert frame == b""
                    continue
                np.testing.assert_array_equal(decode_u(frame), was.levels / np.float32(25))
                require_label_of_today(was.refined, refined_label(frame))
                compared += 1
    assert compared > 2


def test_values_are_those_of_the_description(old: Path, new: Path) -> None:
    migrate(str(old), str(new), say=quiet)
    shards = ShardSet.open(str(new))
    for number, image in shards.walk():
        logits = shards.read_logits(number, image, range(len(image.masks)))
        for was, now in zip(masks_of(image.key), logits, strict=True):
            signs, steps, typical, q = read_label(was.label)
            assert np.array_equal(now > 0, signs)
            for (i, j), step in zip(band_of(signs), q, strict=True):
                position = abs(now[i, j]) / (abs(now[i, j]) + typical)
                bound = 1e-6 if steps < 128 else 1 / 254 + 1e-6
                assert abs(position - (step + 0.5) / steps) <= bound


def test_samples_of_a_tar_say_what_cuts_them(old: Path, new: Path) -> None:
    migrate(str(old), str(new), say=quiet)
    for layer, member in ((MASKS, "labels"), (MAPS, "uncertainty")):
        for sample in webdataset.WebDataset(str(new / layer / "000000.tar"), shardshuffle=False):
            told = json.loads(sample["json"])
            _, (height, width), count = IMAGES[NUMBERS[told["key"]]]
            assert told.pop("digest") == digest_of(told.pop("key"))
            assert len(told["length"]) == count
            assert sum(told.pop("length")) == len(sample[member])
            assert told == {"height": height, "width": width}


def test_labels_of_version_1_become_arrays_of_the_values_that_become_tars(
    old: Path, new: Path, tmp_path: Path, problems: Problems
) -> None:
    migrate(str(old), str(new), say=quiet)
    migrate(str(old), str(tmp_path / "arrays"), "zarr", quiet)
    assert problems(tmp_path / "arrays") == []
    tars, arrays = (ShardSet.open(str(folder)) for folder in (new, tmp_path / "arrays"))
    layers: dict[str, tuple[Part, ...]] = {MASKS: ("label",), MAPS: ("u", "refined")}
    for layer, parts in layers.items():
        assert arrays.layer(layer).encoding == "zarr"
        assert arrays.committed(layer) == tars.committed(layer) != []
        for number in tars.committed(layer):
            readers = [shards.reader(layer) for shards in (tars, arrays)]
            rows = readers[0].rows(number)
            picked = np.flatnonzero(known(rows, np.arange(len(rows))))
            for part in parts:
                codes = [reader.read(number, picked, part) for reader in readers]
                for k in range(len(picked)):
                    np.testing.assert_array_equal(codes[0].values(k), codes[1].values(k))


def test_new_set_says_where_it_came_from_and_is_of_its_own_masks(old: Path, new: Path) -> None:
    migrate(str(old), str(new), say=quiet)
    was, shards = json.loads((old / DATASET).read_text()), ShardSet.open(str(new))
    assert list(shards.dataset.unit_ids) == was["units"]
    for name, layer in shards.dataset.layers.items():
        told = layer.provenance["migrated_from"]
        assert told == {"url": str(old), "format": 1, "layer_id": was["layers"][name]["id"]}
        assert layer.provenance["software"] == "of then"
        assert layer.weights == was["layers"][name]["weights"]
        assert shards.layer_id(name) != was["layers"][name]["id"]
    assert shards.layer(MAPS).settings == {"precision": "fp32", "masks": shards.layer_id(MASKS)}


@pytest.mark.parametrize("last", range(10))
def test_migration_that_dies_anywhere_is_finished_by_the_same_command(
    old: Path,
    new: Path,
    tmp_path: Path,
    last: int,
    monkeypatch: pytest.MonkeyPatch,
    snapshot: Snapshot,
    problems: Problems,
) -> None:
    migrate(str(old), str(tmp_path / "straight" / "new"), say=quiet)
    written: list[str] = []
    for verb in ("write", "create"):
        original: Callable[[Storage, str, bytes], bool | None] = getattr(Storage, verb)

        def counted(
            storage: Storage, name: str, data: bytes, original: Callable[[Storage, str, bytes], Any] = original
        ) -> Any:
            if len(written) == last:
                raise KeyboardInterrupt
            written.append(name)
            return original(storage, name, data)

        monkeypatch.setattr(Storage, verb, counted)
    with pytest.raises(KeyboardInterrupt):
        migrate(str(old), str(new), say=quiet)
    monkeypatch.undo()
    if (new / DATASET).exists():
        assert [
            problem for problem in problems(new) if "missing" not in problem and "without a man" not in problem
        ] == []
    done = {name: content for name, content in snapshot(new).items() if name.startswith("manifest/")}
    said: list[str] = []
    summary = migrate(str(old), str(new), say=said.append)
    assert summary.units_before == len(done)
    assert summary.units_before + summary.units_done == 5
    assert snapshot(new) == snapshot(tmp_path / "straight" / "new")
    assert problems(new) == []


def test_finished_migration_has_nothing_to_do(old: Path, new: Path, snapshot: Snapshot) -> None:
    first = labelgen("migrate", "--shards", old, "--out", new)
    assert first.exit_code == 0, first.output
    assert "5 of 5 units of all layers brought over, " in first.output
    before = snapshot(new)
    again = labelgen("migrate", "--shards", old, "--out", new)
    assert again.output == "5 of 5 units of all layers present, nothing to do\n"
    assert snapshot(new) == before


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1024])


def edit_rows(path: Path) -> None:
    table = pq.read_table(path)
    areas = pa.array([1] * len(table), pa.int64())
    place = table.schema.get_field_index("area")
    pq.write_table(table.set_column(place, table.schema.field(place), areas), path)


@pytest.mark.parametrize(
    ("name", "damage", "named"),
    [
        ("masks/000000.tar", flip, "its bytes are not those that were committed"),
        ("masks/000000.tar", cut, "its bytes are not those that were committed"),
        ("masks/000000.tar", Path.unlink, "missing, but its manifest is there"),
        ("manifest/masks/000000.parquet", cut, "damaged"),
        ("manifest/masks/000000.parquet", edit_rows, "its rows do not have the SHA-256"),
    ],
)
def test_damaged_unit_is_named_and_left_out_until_it_is_restored(
    old: Path, new: Path, name: str, damage: Callable[[Path], None], named: str, problems: Problems
) -> None:
    sound = (old / name).read_bytes()
    damage(old / name)
    result = labelgen("migrate", "--shards", old, "--out", new)
    assert result.exit_code == FAILED
    assert f"problem: {old}/{name}: " in result.output
    assert named in result.output
    shards = ShardSet.open(str(new))
    assert shards.committed(MASKS) == [1, 2]
    assert shards.committed(MAPS) == [1]
    assert problems(new) == []
    (old / name).write_bytes(sound)
    assert "2 of 5 units of all layers brought over" in labelgen("migrate", "--shards", old, "--out", new).output
    assert ShardSet.open(str(new)).committed(MASKS) == [0, 1, 2]


def test_edited_plan_and_dataset_are_named(old: Path, new: Path) -> None:
    plan = old / "units" / "000001.json"
    plan.write_text(plan.read_text().replace(digest_of("empty"), digest_of("other")))
    result = labelgen("migrate", "--shards", old, "--out", new)
    assert result.exit_code == FAILED
    assert f"{plan}: damaged or edited (its images are not those of the unit)" in result.output
    (old / DATASET).write_text((old / DATASET).read_text().replace('"points": 32', '"points": 16'))
    with pytest.raises(ShardError, match="layer masks does not match its id"):
        migrate(str(old), str(new), say=quiet)


def test_maps_of_other_masks_are_left_out(old: Path, new: Path) -> None:
    record = json.loads((old / DATASET).read_text())
    ids = {name: layer["id"] for name, layer in record["layers"].items()}
    write_unit(old, MAPS, 0, {**ids, "unit": record["units"][0]}, "2" * 64)
    summary = migrate(str(old), str(new), say=quiet)
    assert summary.problems == (f"{old}: layer {MAPS}, unit 0: its data are of other masks",)
    assert ShardSet.open(str(new)).committed(MAPS) == [1]


def test_other_folders_are_refused(
    old: Path, new: Path, own_shards: Path, finished: tuple[Path, RunSummary], snapshot: Snapshot
) -> None:
    before = snapshot(own_shards)
    with pytest.raises(SettingsDifferError, match=r"own_shards: is of other images"):
        migrate(str(old), str(own_shards), say=quiet)
    assert snapshot(own_shards) == before
    with pytest.raises(ShardError, match="own_shards: is of version 2 already; give --encoding"):
        migrate(str(own_shards), str(new), say=quiet)
    with pytest.raises(ShardError, match=r"dataset\.json: missing; .* is no shard set"):
        migrate(str(new), str(old), say=quiet)
    with pytest.raises(ShardError, match="format version 1"):
        migrate(str(old), str(old), say=quiet)
    assert not new.exists()


def test_layer_made_with_other_weights_there_is_refused(old: Path, new: Path) -> None:
    migrate(str(old), str(new), say=quiet)
    record = json.loads((old / DATASET).read_text())
    layer = record["layers"][MAPS]
    layer["weights"]["refiner"]["sha256"] = "3" * 64
    layer["id"] = id_of([1, record["units"], MAPS, "tar", layer["settings"], layer["weights"]])
    (old / DATASET).write_text(json.dumps(record))
    with pytest.raises(
        SettingsDifferError, match=r"(?s)layer uncertainty/refinement: was made with other weights.*refiner"
    ):
        migrate(str(old), str(new), say=quiet)


def test_shard_set_on_an_object_store_comes_over_like_a_local_one(
    old: Path, new: Path, bucket: str, upload: Callable[[Path, str], None], download: Callable[[str], dict[str, bytes]]
) -> None:
    upload(old, f"{bucket}/old")
    migrate(str(old), str(new), say=quiet)
    migrate(f"{bucket}/old", f"{bucket}/new", say=quiet)
    local = {str(path.relative_to(new)): path.read_bytes() for path in new.rglob("*") if path.is_file()}
    remote = download(f"{bucket}/new")
    assert {name for name in {*local, *remote} if local.get(name) != remote.get(name)} == {DATASET}


def test_units_that_were_never_labelled_can_be_labelled_after(old: Path, new: Path) -> None:
    """All plans come over, so that the same run finds its units."""
    (old / "manifest" / MASKS / "000002.parquet").unlink()
    migrate(str(old), str(new), say=quiet)
    shards = ShardSet.open(str(new))
    assert shards.committed(MASKS) == [0, 1]
    assert [image.key for image in shards.unit(2).images] == ["last"]
    assert isinstance(shards.unit(2), Unit)
