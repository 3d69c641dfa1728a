"""What programs import: public names are there, light until they are used, and no module stands in their way."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from sum_factory.pipelines.docs.reference import API

PACKAGES = ("labelgen", "trainer")


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_nothing_heavy(package: str) -> None:
    program = (
        f"import sys, sum_factory.{package}; print(sorted({{'torch', 'numpy', 'ray', 'click'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_there_and_is_no_module(package: str) -> None:
    opened = import_module(f"sum_factory.{package}")
    folder = Path(str(opened.__file__)).parent
    modules, stub = {path.stem for path in folder.iterdir()}, (folder / "__init__.py").read_text()
    documented = {
        f"sum_factory.{module}.{name}"
        for modules in API.values()
        for module, names in modules.items()
        for name in names
    }
    for name, place in opened.PLACES.items():
        assert getattr(opened, name) is getattr(import_module(place), name)
        assert name not in modules, "a module of that name would be found in its place"
        assert f"from {place} import {name} as {name}" in stub, "what type checkers see"
        assert f"{place}.{name}" in documented
    with pytest.raises(AttributeError, match=f"module 'sum_factory.{package}' has no attribute 'nothing'"):
        opened.nothing  # noqa: B018
