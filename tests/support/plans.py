"""Plans of a few photos, and what is in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sum_factory.labelgen.growing_plan import Plan
from sum_factory.labelgen.listing import list_photos
from sum_factory.labelgen.plan import prepare
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.shards.dataset import MASKS, Layer
from sum_factory.shared.store.storage import Storage

Label = Callable[..., RunSummary]
Snapshot = Callable[[Path], dict[str, str]]
Finished = tuple[Path, RunSummary]
Problems = Callable[[Path], list[str]]

LAYER = Layer(MASKS, "tar", {}, {"sam": {"model_type": "none", "image_size": 64, "sha256": "0"}})


def planned(folder: Path, *sources: Path, extend: bool = False, unit_size: int = 2) -> Plan:
    """Plan a run over the photos of ``sources``; nothing is labelled."""
    return prepare(
        Storage(str(folder)), partial(list_photos, [str(one) for one in sources]), [(LAYER, "")], unit_size, extend
    )


def units_in(folder: Path) -> list[list[dict[str, Any]]]:
    """Read the plans as any JSON."""
    return [json.loads(path.read_text())["images"] for path in sorted((folder / "units").glob("*.json"))]


def keys_in(folder: Path) -> list[list[str]]:
    return [[image["key"] for image in images] for images in units_in(folder)]


def write_photos(folder: Path, *names: str) -> None:
    """Write files that are called like photos, each of a size of its own."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(hashlib.sha512(name.encode()).digest() * (1 + sum(name.encode()) % 7))
