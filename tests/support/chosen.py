"""What a selection has, to compare it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from click.testing import CliRunner, Result

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.shards.shard_set import MASKS, ImageRows, ShardSet
from sum_factory.shared.shards.verify import verify

Finished = tuple[Path, RunSummary]
MAPS = "uncertainty/refinement"


def labelgen(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def rows_of(shards: Path, layer: str = MASKS) -> list[dict[str, Any]]:
    """Return all rows of a layer's manifests, as another tool reads them."""
    return [row for path in sorted((shards / "manifest" / layer).glob("*")) for row in pq.read_table(path).to_pylist()]


def median_of(shards: Path, column: str, layer: str = MASKS) -> float:
    return float(np.median([row[column] for row in rows_of(shards, layer) if row[column] is not None]))


def seen(shards: ShardSet) -> list[tuple[str, float, float, bytes]]:
    """Return of every mask the key, what tells it from others, and its blob."""
    found = []
    for number, image in shards.walk():
        for row, blob in zip(image.masks, shards.label_blobs(number, image), strict=True):
            found.append((image.key, row["stability"], row["predicted_iou"], blob))
    return found


def image_of(shards: ShardSet, key: str) -> tuple[int, ImageRows]:
    return next((number, image) for number, image in shards.walk() if image.key == key)


def problems(shards: Path) -> list[str]:
    return [problem for check in verify(open_shards(str(shards))) for problem in check.problems]
