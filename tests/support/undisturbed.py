"""What a shard set is compared with after faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.progress import RunSummary
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.verify import verify

Label = Callable[..., RunSummary]
Finished = tuple[Path, RunSummary]
Snapshot = Callable[[Path], dict[str, str]]


def require_undisturbed(shards: Path, undisturbed: Path, snapshot: Snapshot) -> None:
    """Check that nothing tells a shard set from an undisturbed one, once left-over files of any age are removed."""
    gc = CliRunner().invoke(main, ["gc", f"--shards={shards}", "--older-than=0"], catch_exceptions=False)
    assert gc.exit_code == 0
    assert snapshot(shards) == snapshot(undisturbed)
    assert [problem for check in verify(ShardSet.open(str(shards))) for problem in check.problems] == []
