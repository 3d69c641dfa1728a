"""``evaluate`` of programs: the means of its rows, the rows of ``trainer evaluate``, and sets in any form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from pydantic import TypeAdapter

from sum_factory.shared.errors import SettingsError
from sum_factory.trainer import evaluate, load_model
from sum_factory.trainer.cli import main
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.evaluation.settings import Protocol

PROTOCOL = Protocol(rounds=2)


def test_scores_are_those_of_the_command(
    tiny_weights: str, human_sets: tuple[SetSettings, ...], tmp_path: Path
) -> None:
    plain = TypeAdapter(tuple[SetSettings, ...]).dump_python(human_sets, mode="json")
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump({"sets": plain}))
    out = ["--out", str(tmp_path / "out"), "--rounds", "2", "--device", "cpu"]
    done = CliRunner().invoke(main, ["evaluate", "--weights", tiny_weights, "--suite", str(suite), *out])
    assert done.exit_code == 0, done.output
    scores = evaluate(load_model(tiny_weights, device="cpu"), human_sets, PROTOCOL)
    assert scores.rows == pq.read_table(tmp_path / "out" / "masks.parquet").select(scores.rows.column_names)
    rows = [row for row in scores.rows.to_pylist() if row["round"] == 2]
    by_set = {name: np.mean([row["iou"] for row in rows if row["set"] == name]) for name in ("salient", "part")}
    assert {name: means["mIoU@2"] for name, means in scores.by_set.items()} == pytest.approx(by_set)
    assert scores.by_task["all"]["mIoU@2"] == pytest.approx(np.mean(list(by_set.values())))
    assert "**all**" in str(scores)


def test_sets_are_settings_mappings_or_a_suite(
    tiny_weights: str, human_folder: Path, human_sets: tuple[SetSettings, ...], tmp_path: Path
) -> None:
    mapping: dict[str, Any] = {
        "name": "salient",
        "kind": "folder-pairs",
        "images": human_folder / "images",
        "masks": human_folder / "salient",
        "task": "salient",
    }
    suite = tmp_path / "suite.yaml"
    of_file = {**mapping, "images": "${HERE}/images", "masks": "${HERE}/salient"}
    suite.write_text(yaml.safe_dump({"sets": [of_file]}))
    model, once = load_model(tiny_weights, device="cpu"), Protocol(rounds=1)
    rows = [
        evaluate(model, sets, once, **options).rows
        for sets, options in (
            (human_sets[:1], {}),
            ([mapping], {}),
            (suite, {"variables": {"HERE": str(human_folder)}}),
        )
    ]
    assert rows[0] == rows[1] == rows[2]
    with pytest.raises(SettingsError, match=r"sets\.0\.name: expected a name"):
        evaluate(model, [{**mapping, "name": ""}], once)
    with pytest.raises(SettingsError, match="no_such_key: unknown key"):
        evaluate(model, [{**mapping, "no_such_key": 1}], once)
