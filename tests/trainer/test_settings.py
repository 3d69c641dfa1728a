"""Recipes are read as they are meant or refused with the file, the key, what was expected and what was found."""

from __future__ import annotations

import re
from collections.abc import Callable
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


def test_variables_fill_text_anywhere(tmp_path: Path) -> None:
    given = read(tmp_path, "folder: ${ROOT}/x/${PART}\nsteps: ${STEPS}\n", PART="y", ROOT="/given", STEPS="12")
    assert (given.folder, given.steps) == (Path("/given/x/y"), 12)
    assert read(tmp_path, "{}", "folder=${P}", P="q").folder == Path("q")


def test_environment_fills_nothing_that_was_not_asked_for_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "/from/environment")
    text = "folder: https://attacker/${SECRET}\n"
    assert "${SECRET} has no value; give --var SECRET=VALUE" in refusal(tmp_path, text)
    assert parse_variables(["SECRET", "B=SECRET"]) == {"SECRET": "/from/environment", "B": "SECRET"}
    with pytest.raises(SettingsError, match="--var NOT_THERE: not in the environment; give --var NOT_THERE=VALUE"):
        parse_variables(["NOT_THERE"])


def test_missing_variable_is_named_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    message = refusal(tmp_path, "weights: {}\nfolder: ${NOWHERE}/x\n")
    assert message == (
        "mine.yaml: folder: ${NOWHERE} has no value; give --var NOWHERE=VALUE, or --var NOWHERE for the environment's"
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
        ("lr=[", "lr=[: not valid YAML"),
        ("lr.x=3", "lr is 1 and has no keys"),
        ("figures.1.side=3", "expected an index in a list of 1, from 0, found '1'"),
        ("figures.first=3", "expected an index in a list of 1, from 0, found 'first'"),
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
    assert {"paper14", "further8"} <= set(built_in_names())
    with pytest.raises(SettingsError, match=r"papr14: no file .* did you mean paper14\?"):
        read_settings("papr14", Recipe, {})
    with pytest.raises(SettingsError, match=r"paper14: \d+ settings|paper14: sets: unknown key"):
        read_settings("paper14", Recipe, {"DATA": "/data"})


def test_variables_are_parsed_as_name_and_value() -> None:
    assert parse_variables(["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}
    for wrong in ("", "=1"):
        with pytest.raises(SettingsError, match="expected NAME=VALUE"):
            parse_variables([wrong])


def test_key_that_is_a_value_of_another_is_told_which(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("bf16: true\nhuman: []")
    with pytest.raises(SettingsError, match=r"bf16: unknown key; did you mean precision: bf16\?"):
        read_settings(path, training.Recipe, {})


# Files from somebody else


def nested(first: str, each: Callable[[str], str], times: int) -> str:
    """Return lines of anchors ``a0``, ``a1``, ..., of which each stands for what ``each`` makes of the one before."""
    lines = [f"a0: &a0 {first}", *(f"a{k}: &a{k} {each(f'*a{k - 1}')}" for k in range(1, times))]
    return "\n".join(lines)


BOMB = nested("[1, 1, 1, 1, 1, 1, 1, 1, 1, 1]", lambda one: f"[{', '.join([one] * 10)}]", 12)
MERGES = nested("{x: 1, y: 2}", lambda one: f"{{<<: [{', '.join([one] * 9)}]}}", 12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"a4: more than 50000 values, with all that its aliases"),
        (MERGES, r"a\d\.<<: more than 50000 values, with all that its aliases"),
        (nested("[]", lambda one: f"[{one}]", 900), "a40: nested more than 40"),
        ("weights: &a {x: *a}", r"weights.x: refers to itself \(line 1\)"),
        ("mixed: &a [[*a]]", r"mixed.0.0: refers to itself"),
        ("mixed: " + "[" * 2_000 + "]" * 2_000, "nested more than 40 times"),
        ("mixed: " + "[" * 100 + "]" * 100, "nested more than 40 times"),
        ("folder: " + "x" * (1 << 20), "more than 1048576 characters; no recipe or suite is as long"),
        ("lr: 1e400", "lr: expected a finite number, found inf"),
        ("lr: 1.0e+400", "lr: expected a finite number, found inf"),
        ("loss: {theta: .nan}", "loss.theta: expected a finite number, found nan"),
        ("figures: [{shape: circle, radius: -.inf}]", "figures.0.radius: expected a finite number, found -inf"),
        (f"steps: {'9' * 5_000}", r"'9+' is no int \(line 1, column 8\)"),
        (f"steps: {'9' * 500}", "steps: expected a number of at most 64 bits, found one of 1661"),
        ("steps: 0x" + "f" * 9_000, "steps: expected a number of at most 64 bits, found one of 36000"),
        (f"steps: '{'9' * 5_000}'", "steps: "),
        ("folder: 2001-99-99", r"'2001-99-99' is no timestamp \(line 1, column 9\)"),
        ("folder: !!python/object/apply:os.system [id]", "could not determine a constructor"),
    ],
    ids=range(18),
)
def test_file_of_somebody_else_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    refused = refusal(tmp_path, text)
    assert re.search(message, refused), refused
    assert len(refused) < 300
    assert "\n" not in refused


def test_anchors_and_merges_of_a_size_are_read(tmp_path: Path) -> None:
    text = "weights: {a: &a {theta: 0.5}, b: *a, c: {<<: *a, kind: focal}}"
    assert read(tmp_path, text).weights == {"a": Loss(0.5), "b": Loss(0.5), "c": Loss(0.5, "focal")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps=1000000000000000000", "steps: expected a value less than or equal to 1000000000, found 10{18}"),
        ("steps=1.0e+18", "steps: expected a value less than or equal to 1000000000"),
        ("checkpoint.keep=99999999", "checkpoint.keep: expected a value less than or equal to 1000000"),
        ("optimizer.learning_rate=1e999", "optimizer.learning_rate: expected a finite number"),
        ("loss.gamma=.inf", "loss.gamma: expected a finite number, found inf"),
        ("mix.human=10000000000", "mix: a mix is of 1000000 samples at most"),
        ("cache.limit_gb=.nan", "cache.limit_gb: expected a finite number, found nan"),
    ],
)
def test_absurd_numbers_are_refused_by_key(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"ft_small: {message}"):
        read_settings("ft_small", training.Recipe, {"SAM": "a", "SHARDS": "b", "HQSEG44K": "c"}, [change])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: on", "steps: expected"),
        ("steps: true", "steps: expected a number, found true or false"),
        ("lr: false", "lr: expected a number, found true or false"),
        ("steps: 12:30", "steps: expected"),
        ("!!map [1]", "not valid YAML"),
        ('steps: !!int ""', "is no int"),
        ('lr: !!float ""', "is no float"),
        ("steps: \0", "not valid YAML"),
        ("steps: 1\n${N}: 3", "two keys are equal once variables are filled in"),
    ],
)
def test_what_yaml_would_make_something_else_of_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, text, N="steps")


def test_number_with_a_zero_in_front_is_no_octal_one(tmp_path: Path) -> None:
    assert read(tmp_path, "steps: 010").steps == 10


def test_changes_are_held_to_what_a_file_is() -> None:
    changes = {"steps=true": "expected a number", "lr=.nan": "finite", f"steps=0x{'f' * 5_000}": "64 bits"}
    for change, message in changes.items():
        with pytest.raises(SettingsError, match=message):
            change_settings(Recipe(), [change], "here")
