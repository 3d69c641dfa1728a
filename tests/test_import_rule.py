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
    """Return the folders of the project that a file imports from, and other names that it imports, wherever in it."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module.removeprefix("sum_factory.").split(".")[0] for module in modules}


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_package_imports_only_what_it_may(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        ours = imported(path) & MAY_IMPORT.keys()
        assert ours <= MAY_IMPORT[package], path


@pytest.mark.parametrize("folder", [*sorted(MAY_IMPORT), "tests"])
def test_the_project_is_imported_by_its_one_name(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [str(node.module)] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert not {name.split(".")[0] for name in names} & MAY_IMPORT.keys(), path
