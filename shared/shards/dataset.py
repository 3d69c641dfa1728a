"""What a shard set holds: its identity, its units and its layers (``dataset.json`` and ``units/``)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sum_factory.shared.credentials import without_credentials
from sum_factory.shared.errors import ShardError
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.settings_differ import require_same
from sum_factory.shared.store.canonical_json import content_id, to_json
from sum_factory.shared.store.records import Record, whole_number
from sum_factory.shared.store.seal import SEAL, is_sealed, require_seal, seal, with_room

if TYPE_CHECKING:
    from sum_factory.shared.store.storage import Storage

FORMAT_VERSION = 3
DATASET = "dataset.json"
UNITS = "units"
"""Folder of the plans of the units."""
MASKS = "masks"
"""The layer of pseudo-labels."""
SELECTION = "selection"
"""The ``kind`` of a ``dataset.json`` that only chooses from other shard sets (``selection/plan.py``)."""
UNCERTAINTY = "uncertainty"
"""Folder of the layers of uncertainty maps: ``uncertainty/<name>``, one for each refiner or source."""
REFINEMENT = "refinement"
"""Name of the uncertainty layer that is read if no other is asked for."""
CERTAIN = "certain"
"""The source of maps that are 0 everywhere: of masks that people drew or corrected. Every method takes them."""
OF_MASKS = "masks"
"""A setting of layers beside the masks: the id of the layer of masks that their data belong to."""
PHOTOS = "photos"
"""The layer of the photos themselves, at the input side of the SAM that labels them."""
LOGITS = "logits"
"""The layer of the full logits of each mask."""
EMBEDDINGS = "embeddings"
"""The layer of what the image encoder made of each crop in which there are masks."""
OUTPUTS = (LOGITS, EMBEDDINGS)
"""What `labelgen uncertainty --use-kept` makes maps of."""
TAR, ZARR = "tar", "zarr"
ENCODINGS = (TAR, ZARR)
"""How a layer's data may lie on disk (``shared/shards/encoding.py``)."""
LEAST_AGE = timedelta(hours=24)
"""Younger files may belong to a run that is still at work; older ones cannot: a run commits much sooner."""
REMEDY_FOR_DATASET = (
    "restore it, or move it away and give the same commands again, which write it anew and keep every sound unit: "
    "`labelgen run`, then `labelgen uncertainty` for each layer that it added"
)
REMEDY_FOR_DATA = "`labelgen repair` takes the unit back, so that the same command makes it again"
REMEDY_FOR_UNIT = "restore it, or delete it and give the same `labelgen run` again, which plans it anew"
MOST_LAYERS = 10_000
"""Layers of a shard set, at most."""
MOST_UNITS = 10_000_000
"""Units of a shard set, at most."""
LARGEST_UNIT = 1 << 20
"""Photos of a unit, at most."""
MOST_LOST = 10_000
"""Plans that may be missing before one that is there, at most: a file of a larger number is not a plan."""
_OF_PHOTO = tuple(each.name for each in fields(PhotoFile))
_LAYER = re.compile(r"[a-z]+(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,199})?")
_RECORD_OF_LAYER = ("id", "name", "encoding", "settings", "weights", "provenance")
_RECORD = ("format", "unit_size", "images", "units", "extended", "layers", SEAL)


@dataclass(frozen=True)
class Unit:
    """A fixed list of photos: the unit of scheduling, failure, commit and shuffling."""

    number: int
    images: tuple[PhotoFile, ...]

    @property
    def name(self) -> str:
        """The six digits that name the unit's files."""
        return unit_name(self.number)

    @property
    def id(self) -> str:
        """Hash of the keys of the photos and the sizes of their files: where these lie does not count."""
        return content_id([[photo.key, photo.size] for photo in self.images])

    def recorded(self) -> Unit:
        """Return the unit as its plan has it: without the credentials of the URLs that its photos are read from."""
        urls = [without_credentials(photo.url) for photo in self.images]
        if all(url is photo.url for url, photo in zip(urls, self.images, strict=True)):
            return self
        images = (replace(photo, url=url) for url, photo in zip(urls, self.images, strict=True))
        return Unit(self.number, tuple(images))

    def to_json(self) -> bytes:
        """Return the content of ``units/NNNNNN.json``, with a line per photo."""
        told = json.dumps(with_room({"unit": self.number, "id": self.id}))
        images = self.recorded().images
        photos = (json.dumps({name: getattr(photo, name) for name in _OF_PHOTO}) for photo in images)
        return seal((f'{told[:-1]}, "images": [\n' + ",\n".join(photos) + "\n]}\n").encode())

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Unit:
        """Parse ``units/NNNNNN.json``. Raises ``ShardError`` if it is damaged or does not match its own id."""
        from sum_factory.shared.shards.recorded_photo import photo_of  # brings fsspec, which no help text needs

        try:
            require_seal(data)
            record = Record.parse(data)
            record.only(("unit", "id", "images", SEAL))
            images = record.items("images", LARGEST_UNIT)
            photos = tuple(photo_of(image, f"images[{index}]") for index, image in enumerate(images))
            unit = cls(record.number("unit", most=MOST_UNITS), photos)
            if not photos or len({photo.key for photo in photos}) < len(photos):
                raise ValueError("images: expected photos, each with a key of its own")
            if unit.id != record.id("id"):
                raise ValueError("its images do not match its id")
        except ValueError as error:
            raise ShardError(f"{name}: damaged or edited ({error}); {REMEDY_FOR_UNIT}") from error
        return unit


@dataclass(frozen=True)
class Layer:
    """One kind of data for all units: how it is encoded, and everything that decided its values.

    ``settings`` are those that change the result; ``weights`` names each model and the SHA-256 of its weights;
    ``provenance`` says what made it, for people: it is no part of the identity.
    """

    name: str
    encoding: str
    settings: Mapping[str, Any]
    weights: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Record) -> Layer:
        """Return a layer as ``dataset.json`` describes it. Raises ``ValueError``."""
        record.only(_RECORD_OF_LAYER)
        name, encoding = record.text("name", _LAYER), record.text("encoding")
        return cls(name, encoding, record.any("settings"), record.any("weights"), record.any("provenance"))

    @property
    def id(self) -> str:
        """Hash of format version, name, encoding, settings and weights: which units there are does not count."""
        return content_id([FORMAT_VERSION, self.name, self.encoding, self.settings, self.weights])


@dataclass(frozen=True)
class Dataset:
    """The content of ``dataset.json``.

    ``unit_ids`` are the units that were there when a listing had come to its end, with ``image_count`` photos in all:
    none while the first one is still going on. Those of the first listing all have ``unit_size`` photos, but for the
    last of them. ``extended`` are the sizes of the units that were added since.
    """

    unit_size: int
    unit_ids: tuple[str, ...]
    image_count: int
    layers: Mapping[str, Layer]
    extended: tuple[int, ...] = ()

    @property
    def first_units(self) -> int:
        """How many units the first listing gave."""
        return len(self.unit_ids) - len(self.extended)

    @property
    def id(self) -> str:
        """Hash of format version, unit size and the ids of the units of the first listing: an extension keeps it."""
        return content_id([FORMAT_VERSION, self.unit_size, list(self.unit_ids[: self.first_units])])

    def size_of(self, number: int) -> int:
        """Return how many photos a unit has."""
        if number >= self.first_units:
            return self.extended[number - self.first_units]
        return min(self.unit_size, self.image_count - sum(self.extended) - number * self.unit_size)

    def with_units(self, units: Sequence[tuple[str, int]]) -> Dataset:
        """Return the dataset with more units, given by id and size.

        The first listing ends with the first unit of another size than ``unit_size``; all after it are extensions.
        """
        sizes = [size for _, size in units]
        own = 0
        if not self.unit_ids:
            own = next((k + 1 for k, size in enumerate(sizes) if size != self.unit_size), len(sizes))
        return replace(
            self,
            unit_ids=(*self.unit_ids, *(id for id, _ in units)),
            image_count=self.image_count + sum(sizes),
            extended=(*self.extended, *sizes[own:]),
        )

    def to_json(self) -> bytes:
        """Return the content of ``dataset.json``."""
        layers = {name: {"id": layer.id, **asdict(layer)} for name, layer in self.layers.items()}
        record = {
            "format": FORMAT_VERSION,
            "unit_size": self.unit_size,
            "images": self.image_count,
            "units": list(self.unit_ids),
            "extended": list(self.extended),
            "layers": layers,
        }
        return seal(to_json(with_room(record)))

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Dataset:
        """Parse ``dataset.json``. Raises ``ShardError`` if it is damaged or of another format version."""
        try:
            is_sealed(data)  # a file with a flipped bit may also claim another format version
            record = Record.parse(data)
            require_version(record.value("format"), name)
            require_seal(data)
            if record.entries.get("kind") == SELECTION:
                bases = ", ".join(base.text("url") for base in record.records("bases"))
                raise ShardError(
                    f"{name}: of a selection, which nothing is written into; give a shard set that it is of "
                    f"({bases}), or a new folder, and `labelgen merge` it with the selection"
                )
            record.only(_RECORD)
            unit_ids = record.ids("units", MOST_UNITS)
            unit_size = record.number("unit_size", 1, LARGEST_UNIT)
            extended = [
                whole_number(size, "extended", 1, unit_size) for size in record.items("extended", len(unit_ids))
            ]
            dataset = cls(unit_size, unit_ids, record.number("images"), _layers_of(record), tuple(extended))
            dataset.require_sizes()
        except ValueError as error:
            raise ShardError(f"{name}: damaged or edited ({error}); {REMEDY_FOR_DATASET}") from error
        from sum_factory.shared.shards.kinds import require_sound  # which imports this module

        for layer in dataset.layers.values():
            require_sound(layer, name)
        return dataset

    def require_sizes(self) -> None:
        """Raise ``ValueError`` if so many photos are not what units of these sizes have."""
        own, most = self.image_count - sum(self.extended), self.first_units * self.unit_size
        if not max(most - self.unit_size, -1) < own <= most:
            raise ValueError("unit_size or images do not match the units")


def _layers_of(record: Record) -> dict[str, Layer]:
    """Return the layers that ``dataset.json`` describes, by name. Raises ``ValueError``."""
    told, layers = record.record("layers"), {}
    if len(told.entries) > MOST_LAYERS:
        raise ValueError(f"layers: {len(told.entries)}, more than {MOST_LAYERS}")
    for name in told.entries:
        described = told.record(name)
        layers[name] = layer = Layer.of(described)
        if layer.name != name or layer.id != described.id("id"):
            raise ValueError(f"layers.{name[:80]}: does not match its name or id")
    if MASKS not in layers:
        raise ValueError(f"layers.{MASKS}: missing")
    return layers


def require_version(version: Any, name: str) -> None:
    """Raise ``ShardError`` if a ``dataset.json`` is of another format version."""
    if version != FORMAT_VERSION:
        raise ShardError(
            f"{name}: format version {str(version)[:40]}, this software reads {FORMAT_VERSION}; "
            "read it with the software that made it"
        )


def require_layer_name(name: str) -> str:
    """Return what is the name of a layer. Raises ``ValueError`` if no layer can be called so."""
    if not _LAYER.fullmatch(name) or name.endswith(".zarr"):
        raise ValueError(f"{name[:80]!r} cannot name a layer")
    return name


def uncertainty_layer(name: str) -> str:
    """Return the layer of the uncertainty maps called ``name``. Raises ``ShardError`` if no folder can be called so."""
    layer = f"{UNCERTAINTY}/{name}"
    if not _LAYER.fullmatch(layer) or name.endswith(".zarr"):
        raise ShardError(
            f"{name!r} cannot name a layer; use letters, digits, '-', '_' and '.', and no '.zarr' at its end"
        )
    return layer


def unit_name(number: int) -> str:
    """Return the six digits that name a unit's files."""
    return f"{number:06d}"


def unit_path(number: int) -> str:
    """Return the path of a unit's plan inside the shard set."""
    return f"{UNITS}/{unit_name(number)}.json"


def number_of(name: str) -> int | None:
    """Return of which unit a file of this name in ``UNITS`` is the plan; None for other names."""
    matched = re.fullmatch(r"([0-9]{6,8})\.json", name)
    number = None if matched is None else int(matched[1])
    return number if number is not None and name == f"{unit_name(number)}.json" else None


def add_layer(storage: Storage, layer: Layer, remedy: str) -> Dataset:
    """Add a layer to ``dataset.json``, unless it is there, and return the dataset as it is then.

    Raises ``SettingsDifferError``, with ``remedy``, if a layer of that name was made with other settings or weights.

    Two runs may add layers at once. On a local disk one waits for the other. Elsewhere each reads again what it wrote
    and merges again if its own layer is not there. One race remains: a run
    may overwrite the file with an older copy after another has read its own back. The other's files stay, and its layer
    is added again at its end, as every run does.
    """
    with storage.locked():
        while True:
            dataset = require_dataset(storage)
            if layer.name in dataset.layers:
                require_same_layer(storage.url, dataset.layers[layer.name], layer, remedy)
                return dataset
            storage.write(DATASET, replace(dataset, layers={**dataset.layers, layer.name: layer}).to_json())


def add_units(storage: Storage, first: int, units: Sequence[tuple[str, int]]) -> Dataset:
    """Have ``dataset.json`` name the units from number ``first`` on, each by id and size; return it as it is then.

    Those that it names already stay: units are never changed. What another run's copy of ``dataset.json`` leaves out is
    no loss, since plans say the same: whoever comes next names them again.
    """
    with storage.locked():
        dataset = require_dataset(storage)
        new = units[max(0, len(dataset.unit_ids) - first) :] if len(dataset.unit_ids) >= first else ()
        if new:
            dataset = dataset.with_units(new)
            storage.write(DATASET, dataset.to_json())
        return dataset


def read_dataset(storage: Storage) -> Dataset | None:
    """Read ``dataset.json``, or return None if there is none."""
    try:
        return Dataset.from_json(storage.read(DATASET), storage.path(DATASET))
    except FileNotFoundError:
        return None


def require_dataset(storage: Storage) -> Dataset:
    """Read ``dataset.json``. Raises ``ShardError`` if there is none."""
    dataset = read_dataset(storage)
    if dataset is None:
        raise ShardError(f"{storage.path(DATASET)}: missing; {REMEDY_FOR_DATASET}")
    return dataset


def read_unit(storage: Storage, number: int) -> Unit:
    """Read a unit's plan. Raises ``ShardError`` if it is missing or damaged."""
    name = unit_path(number)
    try:
        unit = Unit.from_json(storage.read(name), storage.path(name))
    except FileNotFoundError:
        raise ShardError(f"{storage.path(name)}: missing; {REMEDY_FOR_UNIT}") from None
    if unit.number != number:
        raise ShardError(f"{storage.path(name)}: of unit {unit.number}; {REMEDY_FOR_UNIT}")
    return unit


def require_same_layer(place: str, stored: Layer, wanted: Layer, remedy: str) -> None:
    """Raise ``SettingsDifferError``, with what to do, if a layer was made with other settings or weights."""
    where = f"{place}, layer {stored.name}"
    require_same("settings", where, _with_encoding(stored), _with_encoding(wanted), remedy)
    require_same("weights", where, stored.weights, wanted.weights, remedy)


def _with_encoding(layer: Layer) -> Mapping[str, Any]:
    return {**layer.settings, "encoding": layer.encoding}
