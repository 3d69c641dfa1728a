"""What a selection is: the units that it takes of other shard sets, and their rows (``dataset.json``, ``rows/``).

No data are copied. A unit of a selection is one unit of a shard set, all of it or some rows of its manifests.
``bases`` are always shard sets that hold data, never selections.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sum_factory.shared.errors import ShardError
from sum_factory.shared.places import absolute
from sum_factory.shared.shards.dataset import FORMAT_VERSION, SELECTION, require_version, unit_name
from sum_factory.shared.shards.manifest import read_table
from sum_factory.shared.store.canonical_json import content_id, to_json
from sum_factory.shared.store.seal import is_sealed, require_seal, seal, with_room
from sum_factory.shared.store.storage import Storage

ROWS = "rows"
"""Folder of the files that name the rows of a selection's units."""
ROWS_SCHEMA = pa.schema([("image_index", pa.int32()), ("mask", pa.int32())])
"""Columns of a rows file: they name rows of the base's manifests, in their order; ``mask`` is null as there. Of the
layer of photos, which has a row an image, they name those of their images."""
REMEDY_FOR_SELECTION = "restore it, or delete the selection and give the same `labelgen select` or `merge` again"
_BESIDE = "../"


@dataclass(frozen=True)
class Base:
    """A shard set that a selection takes units of: where it is, the id of its units, and those of the layers taken."""

    url: str
    id: str
    layers: Mapping[str, str]


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
            record = json.loads(data)
            if record.get("kind") != SELECTION:
                return None
            require_version(record["format"], name)
            require_seal(data)
            bases = tuple(Base(**base) for base in record["bases"])
            plan = cls(bases, tuple(ViewUnit(**unit) for unit in record["units"]), record["filter"])
            if plan.id != record["id"]:
                raise ValueError("its units do not match its id")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
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
    return read_table(data)


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
    """Return the rows of a manifest, one an image, of the images that a rows file names, as ``take_rows`` does."""
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
    base, selection = (absolute(url).rstrip("/") for url in (base, selection))
    (folder, _, name), (own, _, _) = base.rpartition("/"), selection.rpartition("/")
    return f"{_BESIDE}{name}" if folder == own else base


def base_url(stored: str, selection: str) -> str:
    """Undo ``stored_url``: return where a base is, for the selection at ``selection``."""
    if not stored.startswith(_BESIDE):
        return stored
    return f"{absolute(selection).rstrip('/').rpartition('/')[0]}/{stored.removeprefix(_BESIDE)}"
