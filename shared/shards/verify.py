"""Check a shard set: counts, checksums, and that every blob decodes. Nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath

from sum_factory.shared.errors import ShardError
from sum_factory.shared.progress import Stage
from sum_factory.shared.shards.blob_faults import faults_of_blobs
from sum_factory.shared.shards.collect import temporaries
from sum_factory.shared.shards.dataset import (
    DATASET,
    LEAST_AGE,
    REMEDY_FOR_DATA,
    REMEDY_FOR_DATASET,
    UNCERTAINTY,
    Unit,
    unit_name,
)
from sum_factory.shared.shards.encoding import faults_of_files, is_sound, open_reader, shared_files
from sum_factory.shared.shards.kinds import is_unknown, kinds
from sum_factory.shared.shards.kinds.kind import Row
from sum_factory.shared.shards.manifest import UnitRecord, manifest_path
from sum_factory.shared.shards.reader import HeldFiles, UnitRows
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.shards.unit_writer import sha256_of

PLANS = "units"
"""Takes the place of a layer in the check of a unit's plan."""
REMEDY_FOR_SHARED = "running the same command again writes it anew (no reader here needs it, those of others do)"


@dataclass(frozen=True)
class UnitCheck:
    """What the check of one unit in one layer found; ``problems`` name the file and what to do.

    ``unit`` is -1 for what is no unit's own, ``layer`` is ``PLANS`` for what is wrong with a unit's plan; ``record`` is
    None if the unit is not sound.
    """

    unit: int
    record: UnitRecord | None
    problems: tuple[str, ...]
    layer: str = MASKS


def verify(shards: ShardSet) -> Iterator[UnitCheck]:
    """Check every unit of every layer; one that is not committed yet is no problem and is not yielded."""
    with Stage("verifying", unit="unit") as stage:
        yield from _verify(shards, stage)


def _verify(shards: ShardSet, stage: Stage) -> Iterator[UnitCheck]:
    """Do the checks of ``verify``; in ``stage`` a unit counts once for each of its layers."""
    layers = (MASKS, *sorted(name for name in shards.dataset.layers if name != MASKS))
    committed = {layer: set(shards.committed(layer)) for layer in layers}
    stage.total = sum(map(len, committed.values()))
    here = layers if shards.holds_data else ()
    stray = [problem for layer in here for problem in _strays(shards, layer, committed[layer])]
    shared = [problem for layer in here for problem in _faults_of_shared_files(shards, layer)]
    sizes = []
    for number in range(shards.unit_count):
        unit = None
        try:
            base, own = shards.origin(number)
            unit = base.unit(own)
            sizes.append(len(unit.images))
        except ShardError as error:
            yield UnitCheck(number, None, (str(error),), PLANS)
        for layer in layers:
            if number in committed[layer]:
                yield _check_unit(shards, number, layer, unit)
                stage.advance()
    if len(sizes) == shards.unit_count and not shards.sizes_fit(sizes):
        name = shards.storage.path(DATASET)
        yield UnitCheck(-1, None, (f"{name}: unit_size or images do not match the units; {REMEDY_FOR_DATASET}",))
    for problem in (*shared, *stray, *_unlisted(shards), *_unlisted_kept(shards), *_stale(shards)):
        yield UnitCheck(-1, None, (problem,))


def _check_unit(shards: ShardSet, number: int, layer: str, unit: Unit | None) -> UnitCheck:
    try:
        base, own = shards.origin(number)
        record = _verify_unit(base, own, layer, unit)
        if base is not shards:  # a selection: of its own it has which rows it takes
            shards.unit(number)
            _, record = shards.manifest(number, layer)
        return UnitCheck(number, record, (), layer)
    except ShardError as error:
        return UnitCheck(number, None, (str(error),), layer)


def _strays(shards: ShardSet, layer: str, committed: set[int]) -> Iterator[str]:
    """Yield which files of a layer belong to nothing: data that are not committed, manifests of no unit."""
    described = shards.layer(layer)
    expected = {name for number in committed for name in shards.data_files(number, layer)}
    expected |= shared_files(shards.dataset, described).keys()
    folders = sorted({str(PurePosixPath(name).parent) for name in shards.data_files(0, layer)})
    for name in (f"{folder}/{name}" for folder in folders for name in shards.storage.names(folder)):
        if name not in expected:
            yield (
                f"{shards.storage.path(name)}: data without a manifest; running the same command again "
                "replaces it, or `labelgen gc` removes it when it is a day old"
            )
    planned = {f"{unit_name(number)}.parquet" for number in range(shards.unit_count)}
    for name in shards.storage.names(f"manifest/{layer}"):
        if name not in planned:
            yield f"{shards.storage.path(f'manifest/{layer}/{name}')}: a manifest of no unit that is planned; delete it"


def _faults_of_shared_files(shards: ShardSet, layer: str) -> Iterator[str]:
    """Yield what is wrong with the files of a layer that belong to no unit."""
    for name, content in shared_files(shards.dataset, shards.layer(layer)).items():
        try:
            fault = None if is_sound(content, shards.storage.read(name)) else "not what was written"
        except FileNotFoundError:
            fault = "missing"
        if fault is not None:
            yield f"{shards.storage.path(name)}: {fault}; {REMEDY_FOR_SHARED}"


def _unlisted(shards: ShardSet) -> Iterator[str]:
    """Yield which layers of uncertainty maps ``dataset.json`` does not list, so that nobody can read or check them."""
    names = (PurePosixPath(name).parts for name in shards.storage.files())
    found = {parts[2] for parts in names if parts[:2] == ("manifest", UNCERTAINTY) and len(parts) == 4}
    for name in sorted(found - {*shards.uncertainty_layers}):
        yield (
            f"{shards.storage.path(f'manifest/{UNCERTAINTY}/{name}')}: a layer that {DATASET} does not list; give the "
            f"`labelgen uncertainty --layer-name {name}` that made it again, which lists it, or delete it"
        )


def _unlisted_kept(shards: ShardSet) -> Iterator[str]:
    """Yield which of the layers that runs keep are there without ``dataset.json`` listing them."""
    for layer in (kind.name for kind in kinds().values() if kind.is_kept):
        if layer not in shards.dataset.layers and shards.storage.names(f"manifest/{layer}"):
            yield (
                f"{shards.storage.path(f'manifest/{layer}')}: a layer that {DATASET} does not list; give the "
                f"`labelgen run --keep-{layer}` that made it again, which lists it, or delete it"
            )


def _stale(shards: ShardSet) -> Iterator[str]:
    """Yield the temporary files that no run can still be writing."""
    limit = datetime.now(UTC) - LEAST_AGE
    for left in temporaries(shards):
        if left.modified <= limit:
            yield f"{shards.storage.path(left.name)}: temporary file of a run that died; `labelgen gc` removes it"


def _verify_unit(shards: ShardSet, number: int, layer: str, unit: Unit | None) -> UnitRecord:
    """Check a committed unit of a layer, without its plan if that is damaged.

    Raises ``ShardError`` for the first fault that is found.
    """
    table, record = shards.manifest(number, layer)
    manifest = shards.storage.path(manifest_path(layer, number))
    files: dict[str, bytes] = {}
    for name in shards.data_files(number, layer):
        try:
            files[name] = shards.storage.read(name)
        except FileNotFoundError:
            missing = f"{shards.storage.path(name)}: missing, but its manifest is there"
            raise ShardError(f"{missing}; {REMEDY_FOR_DATA}") from None
    rows = table.to_pylist()
    for name, fault in _faults_of_data(shards, files, rows, record, layer):
        raise ShardError(f"{shards.storage.path(name)}: {fault}; {REMEDY_FOR_DATA}")
    planned = () if unit is None else _faults_of_images(rows, unit)
    reader = open_reader(
        HeldFiles(shards.storage, files),
        shards.dataset,
        shards.layer(layer),
        lambda number: UnitRows.from_manifest(table, record, manifest),
    )
    counts, blobs = _faults_of_counts(rows, record), faults_of_blobs(shards, reader, rows, record, layer)
    for fault in (*planned, *counts, *blobs):
        raise ShardError(f"{manifest}: {fault}; {REMEDY_FOR_DATA}")
    return record


def _faults_of_data(
    shards: ShardSet, files: Mapping[str, bytes], rows: Sequence[Row], record: UnitRecord, layer: str
) -> Iterator[tuple[str, str]]:
    """Yield in what the data differ from the bytes that were committed, with the name of the file."""
    for (name, data), (size, sha256) in zip(files.items(), record.each_file, strict=True):
        if len(data) != size:
            yield name, f"{len(data)} bytes, expected {size}"
        if sha256_of([data]) != sha256:
            yield name, "its bytes do not have the SHA-256 of the manifest"
    if sha256_of(files.values()) != record.data_sha256:
        yield next(iter(files)), "the unit's data do not have the SHA-256 of the manifest"
    yield from faults_of_files(shards.dataset, shards.layer(layer), files, rows)


def _faults_of_counts(rows: Sequence[Row], record: UnitRecord) -> Iterator[str]:
    """Yield in what the rows of a manifest differ from its own counts."""
    found = {
        "images": len({row["image_index"] for row in rows}),
        "masks": sum(row["mask"] is not None for row in rows),
        "errors": len({row["image_index"] for row in rows if row["error"] is not None}),
        "unknown": sum(map(is_unknown, rows)),
    }
    for what, count in found.items():
        if count != getattr(record, what):
            yield f"{count} {what} in its rows, {getattr(record, what)} in its own count"


def _faults_of_images(rows: Sequence[Row], unit: Unit) -> Iterator[str]:
    """Yield in what the images of the rows differ from those of the unit."""
    if {(row["image_index"], row["image"]) for row in rows} != {*enumerate(image.key for image in unit.images)}:
        yield "the images of its rows are not those of the unit"
