"""YAML that anybody may have written: parsed to plain values, of which there are no more than a recipe needs.

A few lines of anchors can stand for more values than there is memory, or for themselves. So they are counted, with all
that their aliases stand for, before anything is made of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator
from contextlib import closing
from typing import Any

import yaml

MOST_TEXT = 1 << 20
"""Bytes of a recipe or suite, at most."""
MOST_VALUES = 50_000
"""Values of a recipe or suite, at most, with those that aliases stand for."""
MOST_NESTED = 40
"""Lists, and keys with values, inside each other."""
LARGEST = (1 << 63) - 1


def parse_yaml(text: str) -> Any:
    """Return what a text in YAML says. Raises ``ValueError`` with one line that says where, and what is wrong."""
    if len(text) > MOST_TEXT:
        raise ValueError(f"more than {MOST_TEXT} characters; no recipe or suite is as long")
    try:
        with closing(_Loader(text)) as loader:
            node = loader.get_single_node()
            if node is None:
                return None
            _Size().of(node, "")
            return loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"nested more than {MOST_NESTED} times") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {_one_line(error)}") from error


def absurd_numbers(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key of each number of plain values that no setting can be, and what was expected."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from absurd_numbers(item, under(key, str(name)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from absurd_numbers(item, under(key, str(index)))
    elif isinstance(value, float) and not math.isfinite(value):
        yield key, f"expected a finite number, found {value}"
    elif isinstance(value, int) and abs(value) > LARGEST:
        yield key, f"expected a number of at most 64 bits, found one of {value.bit_length()}"


_INT = "tag:yaml.org,2002:int"


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, of which YAML would silently keep the second.

    Numbers and truth are those of YAML 1.2, and of people: ``on`` and ``no`` are words, ``010`` is ten, ``12:30`` is a
    text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  # by the first character
        first: [(tag, pattern) for tag, pattern in found if tag not in ("tag:yaml.org,2002:bool", _INT)]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def close(self) -> None:
        """Let go of the text."""
        self.dispose()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "a list is called a mapping", node.start_mark)
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (
            ValueError,
            OverflowError,
            LookupError,
            AttributeError,
            TypeError,
        ) as error:  # of a date, or of too many digits
            shown = node.value if isinstance(node.value, str) else ""
            raise yaml.constructor.ConstructorError(
                None, None, f"{shown[:40]!r} is no {node.tag.rpartition(':')[2]}", node.start_mark
            ) from error


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("(?i:true|false)$"), list("tTfF"))
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"), list("-+0123456789"))


class _Size:
    """Counts the values of nodes, and how deep they are nested, each once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int]] = {}
        self._open: set[int] = set()

    def of(self, node: yaml.Node, key: str) -> tuple[int, int]:
        """Return both for the node at a dotted key. Raises ``ValueError`` if one is too large, or has no end."""
        if isinstance(node, yaml.ScalarNode):
            return 1, 0
        if id(node) in self._open:
            raise ValueError(f"{key}: refers to itself (line {node.start_mark.line + 1})")
        if id(node) not in self._known:
            self._open.add(id(node))
            inner = [self.of(*each) for each in self._items(node, key)]
            self._open.remove(id(node))
            count, depth = 1 + sum(count for count, _ in inner), 1 + max((depth for _, depth in inner), default=0)
            if count > MOST_VALUES or depth > MOST_NESTED:
                found = (
                    f"more than {MOST_VALUES} values"
                    if count > MOST_VALUES
                    else f"nested more than {MOST_NESTED} times"
                )
                raise ValueError(f"{key or 'the file'}: {found}, with all that its aliases (*NAME) stand for")
            self._known[id(node)] = count, depth
        return self._known[id(node)]

    def _items(self, node: yaml.Node, key: str) -> Iterator[tuple[yaml.Node, str]]:
        if isinstance(node, yaml.MappingNode):
            for name, item in node.value:
                yield name, key
                yield item, under(key, str(name.value)[:40])
        else:
            for index, item in enumerate(node.value):
                yield item, under(key, str(index))


def _one_line(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    return str(error).replace("\n", " ")


def under(key: str, name: str) -> str:
    """Return the dotted key of what is called ``name`` below a key."""
    return f"{key}.{name}" if key else name
