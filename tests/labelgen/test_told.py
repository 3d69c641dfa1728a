"""What is told of a run while it goes on, and after it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.event_log import open_log
from sum_factory.shared.errors import SumError
from undisturbed import Label


def test_status_tells_of_a_run_that_is_going_on(
    photos: Path, tmp_path: Path, label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sum_factory.labelgen.progress import ProgressReporter

    take, told = ProgressReporter.take, []

    def take_and_ask(self: ProgressReporter, event: Any) -> None:
        take(self, event)
        if type(event).__name__ == "UnitReport":
            ask = ["status", f"--shards={tmp_path}/shards"]
            told.append(CliRunner().invoke(main, ask, catch_exceptions=False).stdout)

    monkeypatch.setattr(ProgressReporter, "take", take_and_ask)
    label(photos, tmp_path / "shards", unit_size=2)
    assert [text.split(" of 3 units")[0].split()[-1] for text in told] == ["1", "2", "3"]
    assert "units/h, the last one at" in told[1]
    assert "units/h" not in told[2]


def test_log_tells_of_units_and_attempts(own_photos: Path, tmp_path: Path, label: Label) -> None:
    (own_photos / "bad.jpg").write_bytes(b"")
    log = tmp_path / "log.jsonl"
    label(own_photos, tmp_path / "shards", log=str(log), unit_size=4)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines] == [
        "run begun", "weights read", "unit begun", "image failed", "unit done", "unit begun", "unit done", "run ended"
    ]  # fmt: skip
    assert {(line["unit"], line["attempt"]) for line in lines[2:-1]} == {(0, 1), (1, 1)}
    assert "bad.jpg" in lines[3]["error"]
    assert (lines[-1]["units_done"], lines[-1]["retries"], len(lines[-1]["errors"])) == (2, 0, 1)
    assert all(datetime.fromisoformat(line["time"]).tzinfo == UTC for line in lines)
    with pytest.raises(SumError, match=r"none/log\.jsonl: cannot be written .*--log"):
        label(own_photos, tmp_path / "shards", log=str(tmp_path / "none/log.jsonl"), unit_size=4)
    with pytest.raises(SumError, match=r"/dev/full: cannot be written .*--log"), open_log("/dev/full") as full:
        full.tell("anything")


def test_summary_counts_errors_by_kind(own_photos: Path, tmp_path: Path, label: Label) -> None:
    for name in ("a", "b"):
        (own_photos / f"{name}.jpg").write_bytes(b"")
    (own_photos / "c.jpg").write_text("not a photo")
    lines = label(own_photos, tmp_path / "shards").lines().splitlines()
    assert "3 errors" in lines[0]
    assert lines[1:] == ["  2 x the file is empty", "  1 x not an image of a known format"]
