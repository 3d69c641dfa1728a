"""SAM's weights are read once per process, and what a shard set records of them is of these very bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.torch import save_file

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.sam.checkpoint import identify_weights, load_sam
from sum_factory.shared.shards.shard_set import ShardSet

pytestmark = pytest.mark.usefixtures("weights_read_again")

Label = Callable[..., RunSummary]


@pytest.fixture
def own_weights(tmp_path: Path) -> Path:
    """A copy of the packaged weights, which nobody else reads."""
    path = tmp_path / "own.safetensors"
    path.write_bytes((files("sum_factory.shared.sam") / "weights/vit_micro.safetensors").read_bytes())
    return path


@pytest.fixture
def read(own_weights: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How these weights are read in this process: by reading, opening or mapping them."""
    calls: list[str] = []
    read_bytes = Path.read_bytes
    opened = Path.open

    def counted(self: Path) -> bytes:
        calls.extend(["read"] if self == own_weights else [])
        return read_bytes(self)

    def counted_open(self: Path, *arguments: Any, **options: Any) -> Any:
        calls.extend(["open"] if self == own_weights else [])
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_bytes", counted)
    monkeypatch.setattr(Path, "open", counted_open)
    for name in ("load_file", "safe_open"):
        monkeypatch.setattr(f"safetensors.torch.{name}", lambda *_, **__: pytest.fail("read in another way"))
    return calls


def told_of_weights(log: Path) -> list[tuple[str, int, int]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [(line["worker"], line["times"], line["bytes"]) for line in lines if line["event"] == "weights read"]


def test_command_reads_the_weights_once_and_says_so(
    three_photos: Path, tmp_path: Path, own_weights: Path, read: list[str], loose_options: list[str]
) -> None:
    log, shards = tmp_path / "log.jsonl", tmp_path / "shards"
    arguments = ["run", f"--images={three_photos}", f"--shards={shards}", f"--sam={own_weights}", f"--log={log}"]
    result = CliRunner().invoke(main, [*arguments, *loose_options])
    assert result.exit_code == 0, result.output
    assert read in (["read"], ["read", "open"])  # Path.read_bytes opens by itself
    assert told_of_weights(log) == [(f"process {os.getpid()}", 1, own_weights.stat().st_size)]
    recorded = ShardSet.open(str(shards)).layer().weights["sam"]
    assert recorded == identify_weights(str(own_weights))


def test_maps_are_added_after_one_reading(own_shards: Path, tmp_path: Path, add_maps: Label) -> None:
    log = tmp_path / "log.jsonl"
    add_maps(own_shards, source="entropy", log=str(log))
    (told,) = told_of_weights(log)
    assert told[1] == 1


def test_weights_that_change_after_they_were_read_do_not_count(
    three_photos: Path, tmp_path: Path, label: Label, own_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sum_factory.labelgen import plan

    before = identify_weights(str(own_weights))["sha256"]
    label(three_photos, tmp_path / "undisturbed", sam=str(own_weights))
    prepare = plan.prepare

    def prepare_and_change(*arguments: Any, **options: Any) -> Any:
        planned = prepare(*arguments, **options)
        state = load_sam(str(own_weights)).sam.state_dict()
        save_file({name: value * 0 for name, value in state.items()}, own_weights)
        return planned

    monkeypatch.setattr("sum_factory.labelgen.run.prepare", prepare_and_change)
    label(three_photos, tmp_path / "shards", sam=str(own_weights))
    assert ShardSet.open(str(tmp_path / "shards")).layer().weights["sam"]["sha256"] == before
    tars = [tmp_path / name / "masks/000000.tar" for name in ("undisturbed", "shards")]
    assert tars[0].read_bytes() == tars[1].read_bytes()


def test_each_process_of_a_cluster_reads_them_once(
    photos: Path, tmp_path: Path, label: Label, own_weights: Path
) -> None:
    log = tmp_path / "log.jsonl"
    label(photos, tmp_path / "shards", sam=str(own_weights), workers=2, log=str(log))
    told = told_of_weights(log)
    assert told[0] == (f"driver, process {os.getpid()}", 1, own_weights.stat().st_size)
    assert 1 <= len(told[1:]) <= 2
    assert {(times, size) for _, times, size in told} == {(1, own_weights.stat().st_size)}
