"""The page that follows a photo through the code names functions and classes that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HOME = Path(__file__).parents[1]
PAGE = (HOME / "docs/journey.md").read_text()
STEPS = re.split(r"(?m)^\d+\. ", PAGE)[1:]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGE)))


def names_in(nodes: list[ast.stmt], prefix: str = "") -> set[str]:
    """Return the functions and classes of a module, and the methods of the classes as ``Class.method``."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            found |= {prefix + node.name} | names_in(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            found.add(prefix + node.name)
    return found


def test_every_step_names_code() -> None:
    assert len(STEPS) == 25
    assert all(re.search(r"`[\w/]+\.py:", step) for step in STEPS)
    assert len(NAMED) == len(set(re.findall(r"`([^` ]+\.py[^` ]*)`", PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_code_that_a_step_names_is_there(file: str, name: str) -> None:
    assert name in names_in(ast.parse((HOME / file).read_text()).body)
