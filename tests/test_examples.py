"""The examples of the documentation do what they say, one after the other, in an empty folder."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "docs/examples"
ORDER = ("pipelines", "labelgen", "shared", "trainer")


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {f"{name}_example.py" for name in ORDER}
    monkeypatch.chdir(tmp_path)
    said = {}
    for name in ORDER:
        runpy.run_path(str(EXAMPLES / f"{name}_example.py"))
        said[name] = capsys.readouterr().out
    (masks,) = [line for line in said["labelgen"].splitlines() if line.endswith("masks of 2 photos")]
    assert int(masks.split()[0]) == len(said["shared"].splitlines()) > 5
    assert "2 steps in" in said["trainer"]
    assert (tmp_path / "run/weights.safetensors").stat().st_size > 1e6
