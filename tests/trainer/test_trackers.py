"""Trackers: each step once, in the same run, whatever was done again; what is missing is said before a run begins."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from pydantic import TypeAdapter

from sum_factory.shared.errors import SettingsError
from sum_factory.trainer.cli import main
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run import trackers
from sum_factory.trainer.run.log import RunLog, read_log
from sum_factory.trainer.run.trackers import TRACKERS, TrackedRun, open_tracker, require_tracker
from sum_factory.trainer.training import fit

VALUES = {"masks": 3, "iou": [0.25, 0.75]}
PICTURE = np.zeros((8, 8, 3), np.uint8)


def of_tensorboard(out: Path) -> list[dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert len(events.Scalars("train/loss")) == 6
    return [{event.step: event.value for event in events.Scalars("train/loss")}]


def of_wandb(out: Path) -> list[dict[int, float]]:
    """Read the files that `wandb sync` would send, one for each start."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # what writes the files has ended then
    of_starts, ids = [], set()
    for path in sorted(out.glob("wandb/offline-run-*/run-*.wandb")):
        ids.add(path.name)
        found = {}
        for data in records_of(path.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            if "train/loss" in items:
                found[record.history.step.num] = json.loads(items["train/loss"])
        of_starts.append(found)
    assert len(ids) == 1, "of one run"
    return of_starts


def records_of(data: bytes) -> Iterator[bytes]:
    """Yield the records of a file of wandb's: LevelDB's log format, in blocks of 32 KiB behind seven bytes of its own.

    A record is in parts of kind 1 (all of it), or 2, 3 and 4 (begin, middle, end), each behind CRC, length and kind.
    """
    assert data[:4] == b":W&B"
    place, record = 7, b""
    while place + 7 <= len(data):
        length, kind = struct.unpack_from("<HB", data, place + 4)
        if kind == 0:  # the rest of a block
            place += 32_768 - place % 32_768
            continue
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if 32_768 - place % 32_768 < 7:
            place += 32_768 - place % 32_768
        if kind in (1, 4):
            yield record
            record = b""


def of_mlflow(out: Path) -> list[dict[int, float]]:
    """Read MLflow's file of the metric: a line a number, with time, value and step."""
    (path,) = (out.parent / "mlruns").glob("*/*/metrics/train/loss")
    lines = [line.split() for line in path.read_text().splitlines()]
    assert len(lines) == 6
    return [{int(step): float(value) for _, value, step in lines}]


READERS: dict[str, Callable[[Path], list[dict[int, float]]]] = {
    "tensorboard": of_tensorboard,
    "wandb": of_wandb,
    "mlflow": of_mlflow,
}


def write(out: Path, tracker: str, first: int, last: int, offset: float) -> None:
    with RunLog(out, first, 10, settings={"loss": {"theta": 0.5}}, tracker=tracker) as log:
        for step in range(first + 1, last + 1):
            log.step(step, {**VALUES, "loss": step + offset}, waited=0.0)
            log.validation(step, {"all_mBIoU@3": 0.25})
        log.show(last, {"human 1": PICTURE})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("tracker", sorted(READERS))
def test_resumed_run_goes_on_there_and_no_step_is_there_twice(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sum_factory.trainer.run.log.draw_curves", lambda lines: b"")
    out = tmp_path / "run"
    write(out, tracker, 0, 5, 0.0)
    write(out, tracker, 3, 6, 0.5)  # from the checkpoint of step 3, with other last bits
    assert [line["step"] for line in read_log(out) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    found = READERS[tracker](out)
    steps = [step for of_start in found for step in of_start]
    assert steps == [1, 2, 3, 4, 5, 6]
    redone = 4.5 if tracker == "tensorboard" else 4.0  # which alone can take back what it was told
    assert {**found[0], **found[-1]} == {1: 1, 2: 2, 3: 3, 4: redone, 5: redone + 1, 6: 6.5}


def test_run_without_tracker_leaves_its_log_alone(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    fit(make_recipe(steps=1, batch=1, rounds=1, tracker="none"), tmp_path / "run", say=lambda _: None)
    assert len(read_log(tmp_path / "run")) == 1
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert not (tmp_path / "run" / "tracker.json").exists()


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_library_that_is_not_there_is_named_before_anything_begins(
    tracker: str, make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(TypeAdapter(Recipe).dump_python(make_recipe(), mode="json")))
    result = CliRunner().invoke(
        main, ["fit", "--recipe", str(recipe), "--out", str(tmp_path / "out"), "--processes", "1", "--tracker", tracker]
    )
    assert result.exit_code == 1
    assert f"pip install 'sum-factory[{tracker}]'" in result.output
    assert not (tmp_path / "out").exists()


def test_folder_of_its_name_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with pytest.raises(SettingsError, match="is not installed"):
        require_tracker("mlflow")


@pytest.mark.parametrize("content", ["[]", "{", '{"mlflow": 3}'])
def test_damaged_record_of_ids_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tracker.json").write_text(content)
    with pytest.raises(SettingsError, match=r"tracker\.json: damaged"):
        open_tracker("mlflow", TrackedRun(tmp_path, 0, 0, {}))


def test_tracker_does_not_decide_the_result(make_recipe: Callable[..., Recipe]) -> None:
    identities = [make_recipe(tracker=name).identity() for name in TRACKERS]
    assert all(identity == identities[0] for identity in identities)
    with pytest.raises(ValueError, match="tracker"):
        make_recipe(tracker="else")
