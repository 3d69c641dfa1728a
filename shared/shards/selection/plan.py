"""What a selection is: the units that it takes of other shard sets, and their rows (``dataset.json``, ``rows/``).

No data are copied. A unit of a selection is one unit of a shard set, all of it or some rows of its manifests.
``bases`` are always shard sets that hold data, never selections.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sum_factory.shared.credentials import without_credentials
from sum_factory.shared.errors import ShardError
from sum_factory.shared.places import absolute, joined, parent_of, require_recorded
from sum_factory.shared.shards.dataset import (
    FORMAT_VERSION,
    LARGEST_UNIT,
    MASKS,
    MOST_UNITS,
    SELECTION,
    require_layer_name,
    require_version,
    unit_name,
)
from sum_factory.shared.shards.manifest import read_parquet
from sum_factory.shared.store.canonical_json import content_id, to_json
from sum_factory.shared.store.records import Record
from sum_factory.shared.store.seal import SEAL, is_sealed, require_seal, seal, with_room
from sum_factory.shared.store.storage import Storage

ROWS = "rows"
"""Folder of the files that name the rows of a selection's units."""
ROWS_SCHEMA = pa.schema([("image_index", pa.int32()), ("mask", pa.int32())])
"""Columns of a rows file: they name rows of the base's manifests, in their order; ``mask`` is null as there. Of the
layer of photos, which has a row per image, they name those of their images."""
REMEDY_FOR_SELECTION = "restore it, or delete the selection and give the same `labelgen select` or `merge` again"
MOST_BASES = 1 << 16
"""Shard sets that a selection takes units of, at most."""
_BESIDE = "../"


@dataclass(frozen=True)
class Base:
    """A shard set that a selection takes units of: where it is, the id of its units, and those of the layers taken."""

    url: str
    id: str
    layers: Mapping[str, str]

    @classmethod
    def of(cls, record: Record) -> Base:
        """Return a base as ``dataset.json`` describes it. Raises ``ValueError``."""
        record.only(("url", "id", "layers"))
        url, layers = record.text("url"), record.record("layers")
        require_recorded(url)
        if url.startswith(_BESIDE) and ("/" in url.removeprefix(_BESIDE) or url in (_BESIDE, f"{_BESIDE}..")):
            raise ValueError(f"{record.name}.url: expected a place, or the name of a folder beside, found {url[:60]!r}")
        if MASKS not in layers.entries:
            raise ValueError(f"{layers.name}.{MASKS}: missing")
        return cls(url, record.id("id"), {require_layer_name(name): layers.id(name) for name in layers.entries})


@dataclass(frozen=True)
class ViewUnit:
    """Unit ``unit`` of base ``base``, or some rows of it.

    ``id`` is that of its images, as ``Unit.id``; ``rows`` the SHA-256 of its rows file, or None if all rows are taken;
    ``data`` names for each layer that has the unit the SHA-256 of the data that the rows were chosen from.
    """

    base: int
    unit: int
    id: str
    images: int
    masks: int
    rows: str | None
    data: Mapping[str, str]

    @classmethod
    def of(cls, record: Record, bases: Sequence[Base]) -> ViewUnit:
        """Return a unit as ``dataset.json`` describes it. Raises ``ValueError``."""
        record.only(("base", "unit", "id", "images", "masks", "rows", "data"))
        base, data = record.number("base", most=len(bases) - 1), record.record("data")
        if MASKS not in data.entries or not data.entries.keys() <= bases[base].layers.keys():
            raise ValueError(f"{data.name}: expected {MASKS}, and of the other layers of its shard set those it has")
        return cls(
            base=base,
            unit=record.number("unit", most=MOST_UNITS),
            id=record.id("id"),
            images=record.number("images", 1, LARGEST_UNIT),
            masks=record.number("masks"),
            rows=None if record.value("rows") is None else record.digest("rows"),
            data={name: data.digest(name) for name in data.entries},
        )


@dataclass(frozen=True)
class SelectionPlan:
    """The content of a selection's ``dataset.json``. ``filter`` says how the rows were chosen, for people."""

    bases: tuple[Base, ...]
    units: tuple[ViewUnit, ...]
    filter: Mapping[str, Any] | None

    @property
    def id(self) -> str:
        """Hash of which masks of which data there are: where these lie, and why they were chosen, does not count."""
        bases = [[base.id, base.layers] for base in self.bases]
        return content_id([SELECTION, FORMAT_VERSION, bases, [asdict(unit) for unit in self.units]])

    def to_json(self) -> bytes:
        """Return the content of ``dataset.json``."""
        record = {"format": FORMAT_VERSION, "kind": SELECTION, "id": self.id, **asdict(self)}
        return seal(to_json(with_room(record)))

    @classmethod
    def from_json(cls, data: bytes, name: str) -> SelectionPlan | None:
        """Parse a selection's ``dataset.json``; None if it is a shard set's. Raises ``ShardError`` if damaged."""
        try:
            is_sealed(data)
            record = Record.parse(data)
            if record.entries.get("kind") != SELECTION:
                return None
            require_version(record.value("format"), name)
            require_seal(data)
            record.only(("format", "kind", "id", "bases", "units", "filter", SEAL))
            bases = tuple(map(Base.of, record.records("bases", MOST_BASES)))
            units = tuple(ViewUnit.of(unit, bases) for unit in record.records("units", MOST_UNITS))
            if not (bases and units) or any(base.layers.keys() != bases[0].layers.keys() for base in bases):
                raise ValueError("expected units, of shard sets that offer the same layers")
            plan = cls(bases, units, None if record.value("filter") is None else record.any("filter"))
            if plan.id != record.id("id"):
                raise ValueError("its units do not match its id")
        except ValueError as error:
            raise ShardError(f"{name}: damaged or edited ({error}); {REMEDY_FOR_SELECTION}") from error
        return plan


def rows_path(number: int) -> str:
    """Return the path of a unit's rows file inside the selection."""
    return f"{ROWS}/{unit_name(number)}.parquet"


def rows_file(rows: pa.Table) -> tuple[bytes, str]:
    """Return the bytes of a rows file, and their SHA-256."""
    sink = io.BytesIO()
    pq.write_table(rows.select(ROWS_SCHEMA.names).cast(ROWS_SCHEMA), sink, compression="zstd", store_schema=False)
    data = sink.getvalue()
    return data, hashlib.sha256(data).hexdigest()


def read_rows_file(storage: Storage, number: int, sha256: str) -> pa.Table:
    """Read a rows file. Raises ``ShardError`` if it is missing or not the one that was written."""
    name = rows_path(number)
    try:
        data = storage.read(name)
    except FileNotFoundError:
        raise ShardError(f"{storage.path(name)}: missing; {REMEDY_FOR_SELECTION}") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ShardError(
            f"{storage.path(name)}: damaged or edited (not the SHA-256 of the selection); {REMEDY_FOR_SELECTION}"
        )
    try:
        rows = read_parquet(data, ROWS_SCHEMA.names)
        numbers = [rows[column].fill_null(-1 if column == "mask" else -2).to_numpy() for column in ROWS_SCHEMA.names]
        if not rows.schema.equals(ROWS_SCHEMA) or len(rows) == 0 or numbers[0].min() < 0 or numbers[1].min() < -1:
            raise ValueError("its columns are not those of rows")
    except (Exception, MemoryError) as error:
        told = " ".join(str(error).split())[:300]
        raise ShardError(f"{storage.path(name)}: damaged or edited ({told}); {REMEDY_FOR_SELECTION}") from error
    return rows


def take_rows(table: pa.Table, rows: pa.Table, name: str) -> pa.Table:
    """Return the rows of a manifest that a rows file names, with images and masks numbered anew from 0.

    Raises ``ShardError``, naming the manifest, if it lacks one of them.
    """
    there, wanted = _keys(table), _keys(rows)
    positions = np.minimum(np.searchsorted(there, wanted), max(len(there) - 1, 0))
    if not np.array_equal(there[positions], wanted) or (np.diff(wanted) <= 0).any():
        raise ShardError(f"{name}: does not have the rows of the selection; run `labelgen verify` on both")
    taken = table.take(pa.array(positions))
    images = rows["image_index"].to_numpy()
    _, first, index = np.unique(images, return_index=True, return_inverse=True)
    number = pa.array(np.arange(len(images)) - first[index], pa.int32(), mask=rows["mask"].is_null().to_numpy())
    renumbered = {"image_index": pa.array(index, pa.int32()), "mask": number}
    for column, values in renumbered.items():
        taken = taken.set_column(taken.schema.get_field_index(column), table.schema.field(column), values)
    return taken


def take_images(table: pa.Table, rows: pa.Table, name: str) -> pa.Table:
    """Return the rows of a manifest, one per image, of the images that a rows file names, as ``take_rows`` does."""
    images = pc.unique(rows["image_index"])
    held = table.select(ROWS_SCHEMA.names).filter(pc.is_in(table["image_index"], value_set=images))
    if len(held) != len(images):
        raise ShardError(f"{name}: does not have the images of the selection; run `labelgen verify` on both")
    return take_rows(table, held, name)


def _keys(rows: pa.Table) -> npt.NDArray[np.int64]:
    """Return a number for each row that grows with image and mask, int64 (R,)."""
    image, mask = rows["image_index"].to_numpy(), rows["mask"].fill_null(-1).to_numpy()
    return np.asarray((image.astype(np.int64) << 32) + mask + 1)


def stored_url(base: str, selection: str) -> str:
    """Return how a selection names a base: beside itself if both are in one folder, so that both can move."""
    base, selection = (without_credentials(absolute(url)).rstrip("/") for url in (base, selection))
    (folder, _, name), (own, _, _) = base.rpartition("/"), selection.rpartition("/")
    return f"{_BESIDE}{name}" if folder == own else base


def base_url(stored: str, selection: str) -> str:
    """Undo ``stored_url``: return where a base is, for the selection at ``selection``."""
    if not stored.startswith(_BESIDE):
        return stored
    return joined(parent_of(absolute(selection).rstrip("/")), stored.removeprefix(_BESIDE))
