"""What a labelled set is compared by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.verify import verify

Label = Callable[..., RunSummary]
Snapshot = Callable[[Path], dict[str, str]]
Finished = tuple[Path, RunSummary]

KEYS = ["photo0", "photo2", "photo4", "sub/photo1", "sub/photo3", "sub/photo5"]


def problems(shards: Path) -> list[str]:
    return [problem for check in verify(ShardSet.open(str(shards))) for problem in check.problems]
