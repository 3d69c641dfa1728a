"""The log of a run: a line per step, and none of a step that has to be done again."""

from __future__ import annotations

from pathlib import Path

import pytest

from sum_factory.trainer.run.log import LOG, RunLog, read_log

VALUES = {"loss": 0.5, "masks": 3, "iou": [0.25, 0.75]}


def write(out: Path, first: int, last: int) -> None:
    out.mkdir(exist_ok=True)
    with RunLog(out, first, 10) as log:
        for step in range(first + 1, last + 1):
            log.step(step, {**VALUES, "loss": step / 4}, waited=0.0)


def test_every_step_is_a_line_of_json(tmp_path: Path) -> None:
    write(tmp_path, 0, 3)
    assert read_log(tmp_path) == [{"step": step, **VALUES, "loss": step / 4} for step in (1, 2, 3)]


def test_lines_are_there_while_the_run_goes_on(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0, 10) as log:
        log.step(1, VALUES, waited=0.0)
        assert len(read_log(tmp_path)) == 1
        log.validation(1, {"all_mBIoU@3": 0.25})
        assert read_log(tmp_path)[1:] == [{"step": 1, "validation": {"all_mBIoU@3": 0.25}}]


def test_steps_after_the_checkpoint_are_dropped_and_written_again(tmp_path: Path) -> None:
    write(tmp_path, 0, 5)
    write(tmp_path, 3, 6)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("rest", ['{"step": 4, "lo', '{"step": 4, "loss": 1}\n{"step"', "\n", "null\n"])
def test_line_that_was_cut_short_is_dropped(tmp_path: Path, rest: str) -> None:
    write(tmp_path, 0, 3)
    with (tmp_path / LOG).open("a") as file:
        file.write(rest)
    write(tmp_path, 3, 4)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4]


def test_validation_of_the_last_step_that_counts_stays(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0, 10) as log:
        for step in (1, 2):
            log.step(step, VALUES, waited=0.0)
            log.validation(step, {"score": step})
    write(tmp_path, 1, 1)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 1]


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, 0, 10) as log:
        log.step(1, VALUES, waited=0.125)
        log.validation(1, {"all_mBIoU@3": 0.25})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]} == {
        "train/loss": 0.5,
        "train/masks": 3,
        "train/iou_round_1": 0.25,
        "train/iou_round_2": 0.75,
        "train/data_wait": 0.125,
        "validation/all_mBIoU@3": 0.25,
    }
