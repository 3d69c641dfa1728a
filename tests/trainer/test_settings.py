"""Recipes are read as they are meant or refused with the file, the key, what was expected and what was found."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

from sum_factory.shared.errors import SettingsError
from sum_factory.trainer import recipe as training
from sum_factory.trainer.settings import built_in_names, change_settings, parse_variables, read_settings


@dataclass(frozen=True)
class Loss:
    """A plain dataclass, of which pydantic would ignore keys that it does not know."""

    theta: float = 0.6
    kind: Literal["focal", "dice"] = "dice"


@dataclass(frozen=True)
class Circle:
    shape: Literal["circle"]
    radius: float


@dataclass(frozen=True)
class Square:
    shape: Literal["square"]
    side: float


@dataclass(frozen=True)
class Recipe:
    lr: float = 1e-4
    steps: Annotated[int, Field(gt=0)] = 10
    loss: Loss = field(default_factory=Loss)
    folder: Path | None = None
    weights: dict[str, Loss] = field(default_factory=dict)
    figures: tuple[Annotated[Circle | Square, Field(discriminator="shape")], ...] = ()
    mixed: int | list[int] = 0


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Strict:
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")


def read(tmp_path: Path, text: str, *changes: str, **variables: str) -> Recipe:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return read_settings(path, Recipe, variables, changes)


def refusal(tmp_path: Path, text: str, *changes: str, **variables: str) -> str:
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, text, *changes, **variables)
    assert "mine.yaml" in str(caught.value)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_values_take_the_types_of_the_dataclass(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        "lr: 1e-5\nsteps: 7\nloss: {theta: 1}\nfolder: a/b\nweights: {x: {theta: 2}}\n"
        "figures: [{shape: circle, radius: 3}, {shape: square, side: 4}]\n",
    )
    assert recipe == Recipe(
        1e-5, 7, Loss(1.0), Path("a/b"), {"x": Loss(2.0)}, (Circle("circle", 3.0), Square("square", 4.0))
    )
    assert isinstance(recipe.lr, float)  # YAML reads 1e-5 as text


def test_changes_come_after_the_file(tmp_path: Path) -> None:
    text = "lr: 1\nfigures: [{shape: circle, radius: 3}]\nloss:\n"
    changed = read(
        tmp_path, text, "lr=2e-5", "loss.theta=0.5", "weights.a.kind=focal", "figures.0.radius=9", "mixed=[1]"
    )
    assert changed == Recipe(
        2e-5, loss=Loss(0.5), weights={"a": Loss(kind="focal")}, figures=(Circle("circle", 9.0),), mixed=[1]
    )


def test_variables_fill_text_anywhere_and_go_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOT", "/from/environment")
    monkeypatch.setenv("STEPS", "12")
    text = "folder: ${ROOT}/x/${PART}\nsteps: ${STEPS}\n"
    assert read(tmp_path, text, PART="y").folder == Path("/from/environment/x/y")
    given = read(tmp_path, text, PART="y", ROOT="/given")
    assert (given.folder, given.steps) == (Path("/given/x/y"), 12)
    assert read(tmp_path, "{}", "folder=${P}", P="q").folder == Path("q")


def test_missing_variable_is_named_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    message = refusal(tmp_path, "weights: {}\nfolder: ${NOWHERE}/x\n")
    assert (
        message == "mine.yaml: folder: ${NOWHERE} has no value; give it with --var NOWHERE=..., or in the environment"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step: 3", "step: unknown key; did you mean steps?"),
        ("loss: {thta: 3}", "loss.thta: unknown key; did you mean theta?"),
        ("loss: {zzz: 3}", "loss.zzz: unknown key; there are kind, theta"),
        ("weights: {a: {thta: 3}}", "weights.a.thta: unknown key; did you mean theta?"),
        (
            "figures: [{shape: square, side: 1}, {shape: circle, radius: 1, side: 2}]",
            "figures.1.side: unknown key; there are radius, shape",
        ),
        ("lr: fast", "lr: expected a valid number, found 'fast'"),
        ("steps: 1.5", "steps: expected a valid integer, got a number with a fractional part, found 1.5"),
        ("steps: 0", "steps: expected a value greater than 0, found 0"),
        ("loss: 3", "loss: expected keys and values, found 3"),
        ("loss: {kind: mse}", "loss.kind: expected 'focal' or 'dice', found 'mse'"),
        ("figures: [{shape: circle}]", "figures.0.radius: expected a value, found none"),
        ("figures: [{radius: 3}]", "figures.0.shape: expected a value, found none"),
        ("figures: [{shape: oval}]", "figures.0.shape: expected one of 'circle', 'square', found 'oval'"),
        ("mixed: [a]", "mixed.0: expected a valid integer, found 'a'"),
        ("lr: 1\nsteps: 2\nlr: 3", "not valid YAML: the key 'lr' is given twice (line 3, column 1)"),
        ("loss: {theta: 1, theta: 2}", "not valid YAML: the key 'theta' is given twice (line 1, column 18)"),
        ("- 1", "expected keys and values, found a list"),
        ("", "expected keys and values, found nothing"),
    ],
)
def test_what_is_wrong_is_said_in_dotted_keys(tmp_path: Path, text: str, message: str) -> None:
    found = refusal(tmp_path, text)
    lines = [line.strip() for line in found.removeprefix("mine.yaml: ").splitlines()]
    assert message in lines


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "lr: fast\nloss: {thta: 1}\n", "steps=no")
    assert message.splitlines()[0] == "mine.yaml: 3 settings are wrong"
    assert sorted(line.split(":")[0].strip() for line in message.splitlines()[1:]) == ["loss.thta", "lr", "steps"]


def test_checks_of_the_dataclass_itself_are_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "strict.yaml"
    path.write_text("low: 3\nhigh: 2\n")
    with pytest.raises(SettingsError, match=r"strict\.yaml: low 3 is above high 2$"):
        read_settings(path, Strict, {})
    path.write_text("low: 1\nhigh: 2\nhihg: 3\n")
    with pytest.raises(SettingsError, match=r"strict\.yaml: hihg: unknown key; did you mean high\?$"):
        read_settings(path, Strict, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lr", "expected key=value, found 'lr'"),
        ("=3", "expected key=value, found '=3'"),
        ("lr=[", "the value is not valid YAML"),
        ("lr.x=3", "lr is 1 and has no keys"),
        ("figures.1.side=3", "expected a place in a list of 1, from 0, found '1'"),
        ("figures.first=3", "expected a place in a list of 1, from 0, found 'first'"),
    ],
)
def test_changes_that_cannot_be_made_are_refused(tmp_path: Path, change: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lr: 1\nfigures: [{shape: circle, radius: 3}]\n")
    with pytest.raises(SettingsError, match=re.escape(message)):
        read_settings(path, Recipe, {}, [change])


def test_dataclass_is_changed_by_dotted_keys_and_checked_again() -> None:
    recipe = Recipe(1e-5, folder=Path("a"), figures=(Circle("circle", 3.0), Square("square", 4.0)))
    assert change_settings(recipe, (), "plan") == recipe
    changed = change_settings(recipe, ["loss.theta=0.5", "figures.1.side=5", "folder=b"], "plan")
    assert changed == replace(
        recipe, loss=Loss(0.5), folder=Path("b"), figures=(Circle("circle", 3.0), Square("square", 5.0))
    )
    with pytest.raises(SettingsError, match=r"^plan: loss\.tetha: unknown key; did you mean theta\?"):
        change_settings(recipe, ["loss.tetha=0.5"], "plan")


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml: cannot be read \(No such file"):
        read_settings(tmp_path / "none.yaml", Recipe, {})
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"binary\.yaml: cannot be read \(not UTF-8"):
        read_settings(binary, Recipe, {})


def test_built_in_files_are_found_by_name_and_suggested() -> None:
    assert {"paper14", "paper8"} <= set(built_in_names())
    with pytest.raises(SettingsError, match=r"papr14: no file .* did you mean paper14\?"):
        read_settings("papr14", Recipe, {})
    with pytest.raises(SettingsError, match=r"paper14: \d+ settings|paper14: sets: unknown key"):
        read_settings("paper14", Recipe, {"DATA": "/data"})


def test_variables_are_parsed_as_name_and_value() -> None:
    assert parse_variables(["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}
    for wrong in ("A", "=1"):
        with pytest.raises(SettingsError, match="expected NAME=value"):
            parse_variables([wrong])


def test_key_that_is_a_value_of_another_is_told_which(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("bf16: true\nhuman: []")
    with pytest.raises(SettingsError, match=r"bf16: unknown key; did you mean precision: bf16\?"):
        read_settings(path, training.Recipe, {})
