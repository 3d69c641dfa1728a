"""What a shard set holds: its identity, its units and its layers (``dataset.json`` and ``units/``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from shared.errors import SettingsDifferError, ShardError
from shared.storage import Storage

FORMAT_VERSION = 1
DATASET = "dataset.json"
REMEDY_FOR_UNIT = "restore it, or delete it and give the same `labelgen run` again, which plans it anew"


@dataclass(frozen=True)
class PlannedImage:
    """One image of a unit: its key, the SHA-256 of its file, and where the run found it."""

    key: str
    digest: str
    url: str
    member: str = ""
    offset: int = 0
    size: int | None = None
    stamp: str = ""


@dataclass(frozen=True)
class Unit:
    """A fixed list of images: the unit of scheduling, failure, commit and shuffling."""

    number: int
    images: tuple[PlannedImage, ...]

    @property
    def name(self) -> str:
        """The six digits that name the unit's files."""
        return unit_name(self.number)

    @property
    def id(self) -> str:
        """Hash of the image keys and digests: where the images lie does not count."""
        return content_id([[image.key, image.digest] for image in self.images])

    def to_json(self) -> bytes:
        """Return the content of ``units/NNNNNN.json``."""
        images = [asdict(image) for image in self.images]
        return to_json({"unit": self.number, "id": self.id, "images": images})

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Unit:
        """Parse ``units/NNNNNN.json``. Raises ``ShardError`` if it is damaged or does not match its own id."""
        try:
            record = json.loads(data)
            unit = cls(record["unit"], tuple(PlannedImage(**image) for image in record["images"]))
            if unit.id != record["id"]:
                raise ValueError("its images do not match its id")
        except (ValueError, KeyError, TypeError) as error:
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

    def id(self, unit_ids: Iterable[str]) -> str:
        """Hash of the units, the settings, the weights and the format version."""
        return content_id([FORMAT_VERSION, list(unit_ids), self.name, self.encoding, self.settings, self.weights])


@dataclass(frozen=True)
class Dataset:
    """The content of ``dataset.json``."""

    unit_size: int
    unit_ids: tuple[str, ...]
    image_count: int
    layers: Mapping[str, Layer]

    def to_json(self) -> bytes:
        """Return the content of ``dataset.json``."""
        layers = {name: {"id": layer.id(self.unit_ids), **asdict(layer)} for name, layer in self.layers.items()}
        return to_json(
            {
                "format": FORMAT_VERSION,
                "unit_size": self.unit_size,
                "images": self.image_count,
                "units": list(self.unit_ids),
                "layers": layers,
            }
        )

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Dataset:
        """Parse ``dataset.json``. Raises ``ShardError`` if it is damaged or of another format version."""
        try:
            record = json.loads(data)
            if record["format"] != FORMAT_VERSION:
                raise ShardError(f"{name}: format version {record['format']}, this software reads {FORMAT_VERSION}")
            layers = {}
            for layer_name, fields in record["layers"].items():
                layers[layer_name] = Layer(**{key: value for key, value in fields.items() if key != "id"})
            dataset = cls(record["unit_size"], tuple(record["units"]), record["images"], layers)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ShardError(f"{name}: damaged ({error}); restore it, or make the shard set anew") from error
        for layer_name, layer in dataset.layers.items():
            if layer.id(dataset.unit_ids) != record["layers"][layer_name]["id"]:
                raise ShardError(f"{name}: layer {layer_name} does not match its id; it was edited or damaged")
        return dataset


def unit_name(number: int) -> str:
    """Return the six digits that name a unit's files."""
    return f"{number:06d}"


def unit_path(number: int) -> str:
    """Return the path of a unit's plan inside the shard set."""
    return f"units/{unit_name(number)}.json"


def read_dataset(storage: Storage) -> Dataset | None:
    """Read ``dataset.json``, or return None if there is none."""
    try:
        return Dataset.from_json(storage.read(DATASET), storage.path(DATASET))
    except FileNotFoundError:
        return None


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


def require_same(kind: str, place: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ``SettingsDifferError``, naming every setting in which ``wanted`` differs from what is ``stored``."""
    differences = [
        f"  {key}: there {stored.get(key, '(not set)')}, asked for {wanted.get(key, '(not set)')}"
        for key in sorted({*stored, *wanted})
        if stored.get(key) != wanted.get(key)
    ]
    if differences:
        raise SettingsDifferError(
            f"{place}: was made with other {kind}:\n" + "\n".join(differences) + "\n"
            "Give the settings of the existing shard set, or another --shards folder."
        )


def content_id(value: Any) -> str:
    """Return the first 128 bits of the SHA-256 of a JSON value, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def to_json(value: Any) -> bytes:
    """Return a JSON value as stable, readable bytes."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=True) + "\n").encode()
