"""What the fields of settings mean: the docstrings below them, which Python itself does not keep."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import fields
from itertools import pairwise
from typing import Any


def docs_of(settings: type[Any]) -> dict[str, str]:
    """Return the docstring of each field of a dataclass, in one line; empty for a field that has none.

    Fields that are inherited have those of the class that they come from.
    """
    docs = {}
    for each in reversed(settings.__mro__[:-1]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(definition, ast.ClassDef), "a dataclass is a class"
        for field, below in pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                docs[field.target.id] = _text_of(below)
    return {field.name: docs.get(field.name, "") for field in fields(settings)}


def _text_of(statement: ast.stmt) -> str:
    text = (
        statement.value.value if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) else ""
    )
    return " ".join(text.split()) if isinstance(text, str) else ""
