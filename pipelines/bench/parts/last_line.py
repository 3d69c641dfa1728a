"""The last line of a benchmark: one flat JSON object of numbers and booleans, for whoever plots or compares them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

SPREAD = {2: ("_least", "_most"), 3: ("", "_least", "_most")}
"""What is put behind a figure's name for a spread, and for a median with its spread."""


def last_line(figures: Mapping[str, Any]) -> str:
    """Return ``figures`` as one flat JSON object.

    A spread, or a median with its spread, becomes a figure for each; of figures within figures, names are joined by
    "_". Raises ``TypeError`` for what is no number and no boolean.
    """
    return json.dumps(dict(_flat("", figures)))


def _flat(name: str, value: Any) -> Iterator[tuple[str, float | bool]]:
    if isinstance(value, Mapping):
        for inner, each in value.items():
            yield from _flat(f"{name}_{inner}" if name else str(inner), each)
    elif isinstance(value, list | tuple) and len(value) in SPREAD:
        for ending, each in zip(SPREAD[len(value)], value, strict=True):
            yield from _flat(name + ending, each)
    elif isinstance(value, int | float):
        yield name, value
    else:
        raise TypeError(f"{name}: {value!r} is no figure")
