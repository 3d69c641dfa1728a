"""How busy GPUs were is written after each unit, and told by the summary and by status."""

from __future__ import annotations

from pathlib import Path

from sum_factory.labelgen.gpu_record import GpuRecord, gpus_line
from sum_factory.labelgen.job import ImageDone, UnitReport
from sum_factory.labelgen.progress import ProgressReporter, RunSummary
from sum_factory.labelgen.sets.status import status_of
from sum_factory.shared.gpu.busy import Busy
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.verify import verify
from sum_factory.shared.store.storage import Storage


class FakeClock:
    """Measures what a test says."""

    def __init__(self, *found: Busy) -> None:
        self.found = list(found)

    def take(self) -> Busy:
        return self.found.pop(0)


def test_status_tells_how_busy_the_gpus_of_all_workers_were(own_shards: Path) -> None:
    storage = Storage(str(own_shards))
    assert gpus_line(storage) is None
    record = GpuRecord(storage, "Some card", FakeClock(Busy(3600, 3600), Busy(1800, 3600)))  # type: ignore[arg-type]
    assert [record.take(), record.take()] == [(3600, 3600), (1800, 3600)]
    storage.write("gpus/other-7.json", b'{"gpu": "A card", "busy_seconds": 1800, "seconds": 7200}')
    storage.write("gpus/damaged.json", b'{"gpu"')
    told = list(status_of(ShardSet.open(str(own_shards)), "set"))
    assert "GPUs (A card, Some card): busy 50% of 4.00 h that they were at it" in told
    assert not [problem for check in verify(ShardSet.open(str(own_shards))) for problem in check.problems]


def test_summary_tells_the_share_of_all_units() -> None:
    progress = ProgressReporter(4)
    with progress:
        for unit, gpu in enumerate([(9.0, 10.0), (6.0, 10.0)]):
            progress.take(ImageDone(3, unit=unit))
            progress.take(UnitReport(unit, 2, 6, (), gpu=gpu))
    summary = progress.summary(2, 0, None, with_maps=False)
    assert summary.gpu_busy == 0.75
    assert "images/s, GPU busy 75% of the time" in summary.lines()


def test_summary_of_a_cpu_tells_of_no_gpu(finished: tuple[Path, RunSummary]) -> None:
    assert finished[1].gpu_busy is None
    assert "GPU" not in finished[1].lines()
    assert not (finished[0] / "gpus").exists()
