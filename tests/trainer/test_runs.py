"""`trainer runs`: what the runs below a folder have come to, and folders that tell of none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sum_factory.trainer.cli import main
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.run.overview import DEEPEST, find_runs
from sum_factory.trainer.run.settings import ValidationSettings
from sum_factory.trainer.training import fit


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["runs", *map(str, arguments)])


@pytest.fixture
def run(make_recipe: Callable[..., Recipe], human_sets: tuple[SetSettings, ...], tmp_path: Path) -> Path:
    """A folder ``lab/one`` with a run of four steps, and a validation after every second."""
    validation = ValidationSettings(human_sets[:1], every=2, rounds=1)
    recipe = make_recipe(steps=4, batch=2, rounds=1, variant="decoder", validation=validation)
    fit(recipe, tmp_path / "runs" / "lab" / "one", say=lambda _: None)
    return tmp_path / "runs" / "lab" / "one"


def write(folder: Path, about: object, log: str = "") -> None:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "log.jsonl").write_text(log)


ABOUT = {"what": "training", "steps": 9, "method": "sum", "variant": "full", "data": "a", "score": "all"}


def test_table_tells_what_the_run_has_logged(run: Path) -> None:
    log = read_log(run)
    losses = [line["loss"] for line in log if "loss" in line]
    scores = {line["step"]: line["validation"]["all_mBIoU@1"] for line in log if "validation" in line}
    result = call(run.parent.parent)
    assert result.exit_code == 0, result.output
    best = Checkpoints(run).best()
    heading, row = result.stdout.splitlines()[:2]
    assert heading.split() == ["run", "method", "variant", "data", "step", "loss", "score", "best", "when"]
    assert row.startswith("lab/one  sum     decoder  salient + part + shards  4 of 4  ")
    assert f"  {sum(losses) / 4:.4f}  {scores[4]:.4f}  {scores[best]:.4f} at {best}  20" in row
    told = json.loads(call(run.parent, "--json").stdout)
    [only] = told["runs"]
    assert (only["run"], only["step"], only["steps"], only["best"]) == ("one", 4, 4, max(scores.values()))
    assert json.loads(call(run, "--json").stdout)["runs"][0]["run"] == "."


def test_run_that_goes_on_and_one_that_has_begun(tmp_path: Path) -> None:
    log = [{"step": n, "loss": n} for n in range(1, 31)]
    log[20:20] = [{"step": 20, "validation": {"all": 0.25}}, {"step": 10, "validation": {"all": 0.75}}]
    text = "".join(json.dumps(line) + "\n" for line in log)
    write(tmp_path / "cut", {**ABOUT, "steps": 40}, text + '{"step": 31, "lo')
    write(tmp_path / "new", ABOUT)
    (tmp_path / "new" / "log.jsonl").unlink()
    cut, new = find_runs(tmp_path)[0]
    assert (cut.step, cut.steps, cut.loss) == (30, 40, pytest.approx(20.5))
    assert (cut.score, cut.best, cut.best_step) == (0.25, 0.75, 10)
    assert (new.step, new.loss, new.score, new.best) == (0, None, None, None)


def test_settings_in_which_runs_differ_are_compared(tmp_path: Path) -> None:
    same = {"seed": 0, "sam_sha256": "a", "method": "sum", "loss.theta": 0.6}
    write(tmp_path / "a", {**ABOUT, "settings": same})
    other = {**same, "sam_sha256": "b", "method": "vanilla", "loss.theta": 0.5, "optimizer.learning_rate": 1e-4}
    write(tmp_path / "b", {**ABOUT, "settings": other})
    write(tmp_path / "old", ABOUT)
    *_, heading, first, second, third = call(tmp_path).stdout.splitlines()
    assert heading.split() == ["run", "seed", "loss.theta", "optimizer.learning_rate"]
    assert [line.split() for line in (first, second, third)] == [
        ["a", "0", "0.6", "-"],
        ["b", "0", "0.5", "0.0001"],
        ["old", "-", "-", "-"],
    ]
    (tmp_path / "old" / "run.json").unlink()
    (tmp_path / "b" / "run.json").write_text(json.dumps({**ABOUT, "settings": same}))
    assert "theta" not in call(tmp_path).stdout


@pytest.mark.parametrize(
    ("about", "log", "reason"),
    [
        ("nothing", "", "run.json is damaged: it is no JSON object"),
        ({**ABOUT, "steps": "many"}, "", "run.json is damaged: it does not say"),
        ({**ABOUT, "method": 3}, "", "run.json is damaged: it does not say"),
        (ABOUT, "rubbish\n", "line 1 of log.jsonl is damaged"),
        (ABOUT, '{"step": 1}\n{"loss": 1}\n', "line 2 of log.jsonl is damaged: it has no step"),
        (ABOUT, '{"step": 1, "loss": [1]}\n', "log.jsonl is damaged: what it says of step 1 is no number"),
        (ABOUT, '{"step": 1, "validation": {"other": 1}}\n', "log.jsonl is damaged: what it says of step 1"),
    ],
)
def test_damaged_run_is_named_and_the_others_are_told(tmp_path: Path, about: object, log: str, reason: str) -> None:
    write(tmp_path / "damaged", about, log)
    write(tmp_path / "sound", ABOUT, '{"step": 3, "loss": 0.5}\n')
    result = call(tmp_path)
    assert result.exit_code == 1
    assert "sound  sum     full     a     3 of 9  0.5000" in result.stdout
    assert result.stderr.startswith(f"damaged: {reason}")
    assert "1 runs, and 1 folders were skipped" in result.stderr


def test_folders_without_a_run_are_named_once(tmp_path: Path) -> None:
    write(tmp_path / "b" / "run", ABOUT)
    (tmp_path / "photos" / "of" / "cats").mkdir(parents=True)
    (tmp_path / "b" / "\x1b[31m").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "log.jsonl").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path)
    result = call(tmp_path)
    assert result.exit_code == 1
    names = [line.partition(": ")[0] for line in result.stderr.splitlines()]
    assert names == ["b/\\x1b[31m", "old", "photos", "error"]
    assert "a run without run.json, of an earlier version" in result.stderr


def test_runs_are_not_looked_for_without_end(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*"abcdefgh")
    write(deep, ABOUT)
    assert find_runs(tmp_path)[0] == []
    assert [run.run for run in find_runs(deep.parents[DEEPEST - 1])[0]] == ["/".join("cdefgh"[-DEEPEST:])]
