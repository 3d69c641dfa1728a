"""`trainer fit --dry-run`: it does what a run does, tells what it found, and leaves nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from pydantic import TypeAdapter

from sum_factory.shared.errors import SettingsDifferError
from sum_factory.trainer import dry_run as module
from sum_factory.trainer import training as fit_module
from sum_factory.trainer.cli import main
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.dry_run import rehearse
from sum_factory.trainer.methods import METHODS
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.run.settings import ValidationSettings
from sum_factory.trainer.training import fit
from sum_factory.trainer.variants import variants

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, dict[str, Any]]]:
    """The number and the logged values of each step that the one function for steps takes."""
    taken: list[tuple[int, dict[str, Any]]] = []
    train_step = fit_module.train_step

    def recorded(recipe: Any, model: Any, samples: Any, step: int, ranks: Any) -> dict[str, Any]:
        values = train_step(recipe, model, samples, step, ranks)
        taken.append((step, values))
        return values

    monkeypatch.setattr(fit_module, "train_step", recorded)
    return taken


def test_step_is_the_next_one_of_the_run_and_the_run_stays_as_it_is(
    make_recipe: MakeRecipe, steps: list[Any], tmp_path: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    recipe, out = make_recipe(batch=2, rounds=2), tmp_path / "out"
    rehearse(recipe, out, say=lambda _: None)
    assert list(tmp_path.iterdir()) == []
    fit(dataclasses.replace(recipe, steps=2), out, say=lambda _: None)
    assert steps[0] == steps[1], "the step of the rehearsal, and the first one of the run"
    before = snapshot(out)
    found = rehearse(recipe, out, say=lambda _: None)
    assert snapshot(out) == before
    assert found.steps == 4
    fit(recipe, out, say=lambda _: None)
    assert steps[3] == steps[4], "the step of the rehearsal, and the one that the run went on with"
    assert [line["step"] for line in read_log(out)] == [1, 2, 3, 4, 5, 6]
    done = rehearse(recipe, out, say=lambda _: None)
    assert (done.steps, len(steps)) == (0, 8)
    assert "the run is finished: no step was taken" in done.lines()
    with pytest.raises(SettingsDifferError):
        rehearse(dataclasses.replace(recipe, seed=1), out, say=lambda _: None)


def test_what_is_found_is_told(
    make_recipe: MakeRecipe,
    human_sets: tuple[SetSettings, ...],
    known_shards: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clock that goes on by a second a look shows how times are added up."""
    ticks = iter(range(1000))
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    validation = ValidationSettings(human_sets[:1], every=2, rounds=1, automatic=2)
    recipe = make_recipe(steps=200, batch=2, validation=validation, variant="decoder")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(TypeAdapter(Recipe).dump_python(recipe, mode="json")))
    result = CliRunner().invoke(main, ["fit", "--recipe", str(path), "--out", str(tmp_path / "out"), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out").exists()
    lines = result.stdout.splitlines()
    assert lines[0].startswith("sum, variant decoder: ")
    assert "parameters are trained (" in lines[0]
    assert lines[1] == "human set salient, task salient: 5 photos, 5 masks"
    assert lines[2].startswith("human set part, task part: 5 photos, 12 masks")
    count = sum(map(len, known_shards.masks.values()))
    assert f"7 photos with {count} masks in 4 units; layers masks (tar), uncertainty/refinement (tar); " in lines[3]
    assert "photos 128 x 128, embedding 32 x 8 x 8, losses and clicks on a grid of 32 x 32" in lines[4]
    assert lines[5].startswith("step: 1.00 s, of which ")
    assert "1 photos with 3 masks (3.0 per photo), 4 masks left out" in lines[5], "of the other one no map is known"
    assert lines[6].startswith("memory: at most ")
    told = "200 steps of 1.00 s and 100 validations of 1.2 s and 4.0 s of automatic masks at the end are 5 min, "
    assert lines[7].startswith(f"time: {told}"), "329 s: four of the five photos were evaluated in a second"


SOME = {("human-only", "full"), ("mask-refinement", "decoder"), ("sum-continuous-tp", "hq")}
ALL = {
    *((method, "full" if "u2pl" in method else "decoder") for method in METHODS),
    *(("sum", variant) for variant in variants()),
}


@pytest.mark.parametrize(
    ("method", "variant"),
    [pytest.param(*pair, marks=() if pair in SOME else pytest.mark.long) for pair in sorted(SOME | ALL)],
)
def test_every_method_and_variant_can_be_rehearsed(
    make_recipe: MakeRecipe, tmp_path: Path, method: str, variant: str
) -> None:
    uncertainty = "refinement" if METHODS[method].needs_uncertainty else None
    changes = {"method_settings": {"every": 1}} if method == "sum-online" else {}
    recipe = make_recipe(method=method, variant=variant, batch=2, rounds=1, uncertainty=uncertainty, **changes)
    found = rehearse(recipe, tmp_path / "out", say=lambda _: None)
    assert found.seconds > 0
    assert found.lines().count("shards ") == (METHODS[method].pseudo_labels != "none")
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_of_several_ranks_speaks(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(TypeAdapter(Recipe).dump_python(make_recipe(), mode="json")))
    told = module.Rehearsal(("found",), 1, 1.0, 1.0)
    monkeypatch.setattr("sum_factory.trainer.launch.on_ranks", lambda *_: told)
    for rank, said in (("0", "found\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        result = CliRunner().invoke(main, ["fit", f"--recipe={path}", f"--out={tmp_path / 'out'}", "--dry-run"])
        assert (result.exit_code, result.output) == (0, said)


def test_weights_after_a_rehearsal_are_those_before(make_recipe: MakeRecipe, tmp_path: Path, tiny_weights: str) -> None:
    before = Path(tiny_weights).read_bytes()
    rehearse(make_recipe(steps=1), tmp_path / "out", say=lambda _: None)
    assert Path(tiny_weights).read_bytes() == before
    assert torch.is_grad_enabled()
