"""Read recipes and suites: YAML with ``${VARIABLES}``, changed by options, checked against a dataclass.

    read_settings("paper14", Suite, {"DATA": "/data"})
    read_settings("mine.yaml", Recipe, {}, ["loss.theta=0.5", "steps=100"])

Everything that can be wrong is a ``SettingsError`` that names the file, the dotted key, what was expected and what was
found.
"""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from sum_factory.shared.errors import SettingsError
from sum_factory.shared.store.local_files import read_whole
from sum_factory.shared.store.refusals import reason_of
from sum_factory.trainer.yaml_text import MOST_TEXT, absurd_numbers, parse_yaml, under

T = TypeVar("T")

BUILT_IN = "sum_factory.trainer.recipes"
"""The package of the built-in YAML files."""
SUFFIXES = (".yaml", ".yml")
_VARIABLE = re.compile(r"\$\{([^}]*)\}")


def read_settings(
    path_or_name: str | Path,
    type_: type[T],
    variables: Mapping[str, str],
    changes: Sequence[str] = (),
    only: Sequence[str] = (),
) -> T:
    """Read a YAML file, or the built-in one of that name, as a ``type_`` (anything pydantic can validate).

    ``changes`` are ``key=value`` with dotted keys and values in YAML, applied first; then ``${NAME}`` in any text, also
    in a key, is filled from ``variables``, and from nothing else: who wrote the file must not read the environment.
    Paths are relative to the working directory. With ``only``, these keys are read and the others passed over. Raises
    ``SettingsError``.
    """
    where, text = _read(str(path_or_name))
    data = _parse(where, text)
    for change in changes:
        _apply(data, change, where)
    if only:
        data = {key: value for key, value in data.items() if key in only}
    filled = _fill(data, variables, where)
    _require_numbers(filled, where)
    value = _checked(filled, type_, where)
    made = _adapter_of(type_).dump_python(value)
    _require_numbers(made, where)  # texts have become numbers
    if flags := [key for key, _ in _flags_as_numbers(filled, made)]:
        raise SettingsError("\n".join(f"{where}: {key}: expected a number, found true or false" for key in flags))
    return value


def _flags_as_numbers(given: Any, made: Any, key: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the dotted keys of what was given as true or false and made a number."""
    if isinstance(given, dict) and isinstance(made, dict):
        for name in given.keys() & made.keys():
            yield from _flags_as_numbers(given[name], made[name], under(key, str(name)))
    elif isinstance(given, list) and isinstance(made, list | tuple):
        for index, (one, other) in enumerate(zip(given, made, strict=False)):
            yield from _flags_as_numbers(one, other, under(key, str(index)))
    elif isinstance(given, bool) and isinstance(made, int | float) and not isinstance(made, bool):
        yield key, given


def _require_numbers(values: Any, where: str) -> None:
    """Raise ``SettingsError`` for numbers among plain values that no setting can be."""
    if absurd := dict(absurd_numbers(values)):
        raise SettingsError("\n".join(f"{where}: {key}: {problem}" for key, problem in absurd.items()))


def change_settings(value: T, changes: Sequence[str], where: str) -> T:
    """Return a dataclass with ``changes``, as in ``read_settings``; ``where`` is what to call it in messages.

    Raises ``SettingsError``.
    """
    data = _adapter_of(type(value)).dump_python(value, mode="json")
    for change in changes:
        _apply(data, change, where)
    _require_numbers(data, where)
    changed = _checked(data, type(value), where)
    if flags := [key for key, _ in _flags_as_numbers(data, _adapter_of(type(value)).dump_python(changed))]:
        raise SettingsError("\n".join(f"{where}: {key}: expected a number, found true or false" for key in flags))
    return changed


def check_settings(data: dict[str, Any], type_: type[T], where: str) -> T:
    """Return ``data``, which may hold settings that are checked already, as a ``type_``. Raises ``SettingsError``."""
    plain = _adapter_of(dict[str, Any]).dump_python(data, mode="json")
    _require_numbers(plain, where)
    return _checked(plain, type_, where)


def _checked(data: dict[str, Any], type_: type[T], where: str) -> T:
    """Return ``data`` as a ``type_``. Raises ``SettingsError`` that says all that is wrong."""
    problems = dict(_unknown_keys(_schema_of(type_), data))
    try:
        value: T = _adapter_of(type_).validate_python(data)
    except ValidationError as error:
        problems = {**dict(_wrong_values(error, data)), **problems}
    if problems:
        lines = [f"{key}: {problem}" if key else problem for key, problem in problems.items()]
        if len(lines) == 1:
            raise SettingsError(f"{where}: {lines[0]}")
        raise SettingsError("\n  ".join([f"{where}: {len(lines)} settings are wrong", *lines]))
    return value


_adapters: dict[Any, tuple[TypeAdapter[Any], Mapping[str, Any]]] = {}
"""What checks each type that was asked for, and its JSON schema: making them takes longer than using them."""


def _adapter_of(type_: Any) -> TypeAdapter[Any]:
    return _made(type_)[0]


def _schema_of(type_: Any) -> Mapping[str, Any]:
    return _made(type_)[1]


def _made(type_: Any) -> tuple[TypeAdapter[Any], Mapping[str, Any]]:
    if type_ not in _adapters:
        adapter = TypeAdapter(type_)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of defaults that JSON cannot express; they do not matter here
            _adapters[type_] = adapter, adapter.json_schema()
    return _adapters[type_]


def parse_variables(assignments: Sequence[str]) -> dict[str, str]:
    """Return what options ``NAME=VALUE`` assign; ``NAME`` alone stands for the value that it has in the environment.

    Raises ``SettingsError``.
    """
    variables = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not name:
            raise SettingsError(f"--var: expected NAME=VALUE, found {assignment!r}")
        if not equals and name not in os.environ:
            raise SettingsError(f"--var {name}: not in the environment; give --var {name}=VALUE")
        variables[name] = value if equals else os.environ[name]
    return variables


def built_in_names() -> list[str]:
    """Return the sorted names of the built-in recipes and suites."""
    return sorted(_built_in())


def _built_in() -> dict[str, Traversable]:
    return {Path(file.name).stem: file for file in files(BUILT_IN).iterdir() if file.name.endswith(SUFFIXES)}


def _read(path_or_name: str) -> tuple[str, str]:
    """Return what to call the file in messages, and its text."""
    path = Path(path_or_name)
    is_path = path.suffix in SUFFIXES or path.name != path_or_name or path.is_file()
    built_in = _built_in()
    if not is_path and path_or_name not in built_in:
        raise SettingsError(
            f"{path_or_name}: no file and no built-in recipe or suite of that name; {_suggest(path_or_name, built_in)}"
        )
    try:
        data = read_whole(path, MOST_TEXT + 1) if is_path else built_in[path_or_name].read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{path_or_name}: cannot be read ({reason}); expected a YAML file") from error
    return path_or_name, text


def _suggest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Say which of the known names is meant, or list them."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known)) or 'none'}"


def _parse(where: str, text: str) -> dict[str, Any]:
    try:
        data = parse_yaml(text)
    except ValueError as error:
        raise SettingsError(f"{where}: {error}") from error
    if not isinstance(data, dict):
        raise SettingsError(f"{where}: expected keys and values, found {_kind(data)}")
    return data


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _apply(data: dict[str, Any], change: str, where: str) -> None:
    """Set one dotted key, making the mappings on the way; a number is an index in a list."""
    key, equals, text = change.partition("=")
    if not (key and equals):
        raise SettingsError(f"expected key=value, found {change!r}")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise SettingsError(f"{_shortened(change)[1:-1]}: {error}") from error
    *parents, last = key.split(".")
    node: Any = data
    for depth, name in enumerate(parents, 1):
        inner = _name_or_index(node, name, where, change)
        if isinstance(node, dict) and node.get(inner) is None:
            node[inner] = {}
        node = node[inner]
        if not isinstance(node, dict | list):
            raise SettingsError(f"{where}: {change}: {'.'.join(parents[:depth])} is {node!r} and has no keys")
    node[_name_or_index(node, last, where, change)] = value


def _name_or_index(node: dict[str, Any] | list[Any], given: str, where: str, change: str) -> Any:
    if isinstance(node, dict):
        return given
    if not (given.isdecimal() and int(given) < len(node)):
        raise SettingsError(f"{where}: {change}: expected an index in a list of {len(node)}, from 0, found {given!r}")
    return int(given)


def _fill(data: dict[str, Any], variables: Mapping[str, str], where: str) -> dict[str, Any]:
    """Return ``data`` with every ``${NAME}`` filled in."""
    missing: dict[str, str] = {}

    def fill(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            made = {fill(name, key): fill(item, under(key, str(name))) for name, item in value.items()}
            if len(made) < len(value):
                raise SettingsError(f"{where}: {key or 'the file'}: two keys are equal once variables are filled in")
            return made
        if isinstance(value, list):
            return [fill(item, f"{key}.{index}") for index, item in enumerate(value)]
        return _VARIABLE.sub(lambda match: look_up(match[1], key), value) if isinstance(value, str) else value

    def look_up(name: str, key: str) -> str:
        value = variables.get(name)
        if value is None:
            missing.setdefault(name, key)
        return value or ""

    filled: dict[str, Any] = fill(data, "")
    if missing:
        lines = [
            f"{where}: {key}: ${{{name}}} has no value; give --var {name}=VALUE, or --var {name} for the environment's"
            for name, key in missing.items()
        ]
        raise SettingsError("\n".join(lines))
    return filled


def _unknown_keys(root: Mapping[str, Any], data: Any) -> Iterator[tuple[str, str]]:
    """Yield the dotted keys of ``data`` that the JSON schema ``root`` does not know, and what to say.

    Pydantic ignores them in plain dataclasses, and where it does not, it does not say which keys there are.
    """

    def walk(node: Mapping[str, Any], value: Any, key: str) -> Iterator[tuple[str, str]]:
        node = _branch(node, value, root)
        properties, rest = node.get("properties", {}), node.get("additionalProperties")
        if isinstance(value, dict) and node.get("type") == "object":
            for name, item in value.items():
                inner = under(key, str(name))
                known = properties.get(name, rest)
                if isinstance(known, dict):
                    yield from walk(known, item, inner)
                elif known is not True:
                    meant = [key for key, each in properties.items() if name in each.get("enum", ())]
                    suggestion = f"did you mean {meant[0]}: {name}?" if meant else _suggest(str(name), properties)
                    yield inner, f"unknown key; {suggestion}"
        elif isinstance(value, list):
            for index, item in enumerate(value):
                items = [*node.get("prefixItems", []), *[node.get("items", {})] * len(value)]
                yield from walk(items[index], item, under(key, str(index)))

    return walk(root, data, "")


def _branch(node: Mapping[str, Any], value: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow references and choices of a JSON schema to the node for ``value``; empty if there is no telling."""
    if "$ref" in node:
        return _branch(root["$defs"][node["$ref"].rpartition("/")[2]], value, root)
    if "discriminator" in node:
        tag = value.get(node["discriminator"]["propertyName"]) if isinstance(value, dict) else None
        mapping = node["discriminator"]["mapping"]
        reference = mapping.get(tag) if isinstance(tag, str) else _untagged(mapping.values(), value, root)
        return {} if reference is None else _branch({"$ref": reference}, value, root)
    choices = [_branch(choice, value, root) for word in ("allOf", "anyOf", "oneOf") for choice in node.get(word, [])]
    if choices:
        wanted = "object" if isinstance(value, dict) else "array" if isinstance(value, list) else None
        fitting = [choice for choice in choices if choice.get("type") == wanted]
        return fitting[0] if len(fitting) == 1 else {}
    return node


def _untagged(references: Iterable[str], value: Any, root: Mapping[str, Any]) -> str | None:
    """Return the choice that needs no tag, if it is the only one whose required keys a value has."""
    required = {each: root["$defs"][each.rpartition("/")[2]].get("required", ()) for each in references}
    fitting = [each for each, keys in required.items() if isinstance(value, dict) and set(keys) <= value.keys()]
    return fitting[0] if len(fitting) == 1 else None


def _wrong_values(error: ValidationError, data: Any) -> Iterator[tuple[str, str]]:
    """Yield the dotted key of each of pydantic's errors, and what was expected and found."""
    for detail in error.errors(include_url=False):
        key = _dotted_key(detail["loc"], data)
        message, found, context = detail["msg"], _shortened(detail["input"]), detail.get("ctx", {})
        match detail["type"]:
            case "missing" | "missing_argument":
                yield key, "expected a value, found none"
            case "union_tag_not_found":
                yield under(key, context["discriminator"].strip("'")), "expected a value, found none"
            case "union_tag_invalid":
                tag_key = under(key, context["discriminator"].strip("'"))
                yield tag_key, f"expected one of {context['expected_tags']}, found {context['tag']!r}"
            case "dataclass_type" | "model_type" | "dict_type" | "model_attributes_type":
                yield key, f"expected keys and values, found {found}"
            case "value_error" | "assertion_error":
                yield key, message.partition(", ")[2]
            case _:
                expected = message.removeprefix("Input should be ").partition(", unable to")[0]
                expected = f"a value {expected}" if expected.startswith(("greater", "less")) else expected
                yield key, f"expected {expected}, found {found}"


def _dotted_key(location: Sequence[int | str], data: Any) -> str:
    """Return the key that pydantic's location means: without the names of the branches of a union."""
    names = []
    for number, name in enumerate(location):
        inside = isinstance(data, dict) and name in data
        if inside or (isinstance(data, list) and isinstance(name, int) and name < len(data)):
            data = data[name]
        elif not isinstance(data, dict | list) or (number + 1 < len(location)):
            continue  # a branch
        names.append(str(name))
    return ".".join(names)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
