"""``labelgen`` and ``trainer`` meet only in the shards on disk; nobody imports ``pipelines``."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "shared": {"shared"},
    "labelgen": {"labelgen", "shared"},
    "trainer": {"trainer", "shared"},
    "pipelines": {"pipelines", "labelgen", "trainer", "shared"},
}


def imported(path: Path) -> set[str]:
    """Return the top-level names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_package_imports_only_what_it_may(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        ours = imported(path) & MAY_IMPORT.keys()
        assert ours <= MAY_IMPORT[package], path
