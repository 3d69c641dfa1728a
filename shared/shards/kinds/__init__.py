"""Kinds of layers, one a module: a new kind is a new module with a ``KIND``.

What reads, writes, checks, chooses and converts layers needs nothing else. The data of a kind are made by
``labelgen``: a kept kind (``is_kept``) also needs entries in its ``KEPT`` and ``KEPT_LAYERS``, and an option.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import pyarrow as pa

from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.dataset import ENCODINGS, OF_MASKS, REMEDY_FOR_DATASET, Dataset, Layer
from sum_factory.shared.shards.encodings.zarr_layout import ZarrLayout
from sum_factory.shared.shards.kinds.kind import LayerKind, Plane
from sum_factory.shared.shards.manifest import COMMON_COLUMNS


@cache
def kinds() -> Mapping[str, LayerKind]:
    """Return all kinds, by their name."""
    names = (module.name for module in iter_modules(__path__) if module.name != "kind")
    found: list[LayerKind] = [import_module(f"{__name__}.{name}").KIND for name in sorted(names)]
    return {kind.name: kind for kind in found}


def kind_of(layer: str) -> LayerKind:
    """Return the kind of a layer. Raises ``ShardError`` if there is no such kind."""
    name, slash, rest = layer.partition("/")
    kind = kinds().get(name)
    if kind is None or kind.is_family != bool(slash and rest) or layer.endswith(".zarr"):
        raise ShardError(f"layer {layer}: this software knows no such layer, but {', '.join(kinds())}")
    return kind


def require_sound(layer: Layer, name: str) -> None:
    """Raise ``ShardError`` for a layer that the ``dataset.json`` called ``name`` describes, and nobody can read."""
    kind = kind_of(layer.name)
    if layer.encoding not in ENCODINGS:
        raise ShardError(
            f"layer {layer.name} has encoding {layer.encoding!r}, and this software knows {' and '.join(ENCODINGS)}"
        )
    try:
        kind.require_settings(layer)
    except ValueError as error:
        raise ShardError(f"{name}: damaged or edited (layers.{layer.name}: {error}); {REMEDY_FOR_DATASET}") from error


def schema_of(layer: str) -> pa.Schema:
    """Return the columns of a layer's manifests; an encoding may add some."""
    return pa.schema([*COMMON_COLUMNS, *kind_of(layer).columns])


def zarr_layout_of(dataset: Dataset, layer: Layer) -> ZarrLayout:
    """Return what a layer is in Zarr."""
    return kind_of(layer.name).zarr_layout(dataset, layer)


def planes_of(layer: Layer) -> tuple[Plane, ...]:
    """Return what a layer holds of a mask as grids of codes."""
    return kind_of(layer.name).planes(layer)


def is_unknown(row: Mapping[str, Any]) -> bool:
    """Whether a row of a manifest is of a mask of which its layer knows nothing."""
    return any(row.get(kind.known_column) is False for kind in kinds().values() if kind.known_column)


def comparable(layer: Layer) -> Mapping[str, Any]:
    """Return the settings without layer ids, which differ between shard sets.

    Whether maps were made from a kept layer does count.
    """
    outputs = {kind.name for kind in kinds().values() if kind.is_output}
    settings = {name: "kept" if name in outputs else value for name, value in layer.settings.items()}
    settings.pop(OF_MASKS, None)
    return settings
