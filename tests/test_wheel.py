"""The wheel, beside other packages of the same names, and used in a folder that has folders of these names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
OURS = ("labelgen", "trainer", "shared", "pipelines")
STRANGER = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "trainer"
version = "0"
[tool.setuptools]
packages = ["trainer"]
"""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this project, built of its files as they are."""
    folder = tmp_path_factory.mktemp("wheel")
    project = folder / "project"  # a copy, as building leaves folders behind
    project.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    for name in OURS:
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    run(*build, "--wheel-dir", folder, project)
    (built,) = folder.glob("sum_factory-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel, and with a package that is called ``trainer``, as one of PyPI's is.

    What ours requires is that of the environment which runs the tests; its own packages come first.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True, with_pip=False)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "requirements.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    stranger = tmp_path_factory.mktemp("stranger")
    (stranger / "pyproject.toml").write_text(STRANGER)
    (stranger / "trainer").mkdir()
    (stranger / "trainer" / "__init__.py").write_text("NAME = 'of a stranger'\n")
    install = [sys.executable, "-m", "pip", f"--python={folder / 'bin' / 'python'}", "install", "--no-deps", "--quiet"]
    run(*install, wheel)
    run(*install, "--no-build-isolation", stranger)
    return folder


def test_wheel_has_one_top_level_name_and_all_that_is_no_code(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"sum_factory"}
    for folder in OURS:
        kept = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert {f"sum_factory/{path.relative_to(ROOT)}" for path in kept} <= {*names}


def test_commands_work_beside_strangers_of_the_same_names(environment: Path, tmp_path: Path) -> None:
    """No mask passes the filter: to compile the kernels that measure masks, anew for this copy, takes half a minute."""
    for name in (*OURS, "sum"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a stranger was imported')\n")
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photos" / "a.png")
    programs = environment / "bin"
    options = ["--images=photos", "--shards=labels", "--pred-iou-thresh=1000", "--points-per-side=2", "--device=cpu"]
    assert "1 of 1 units labelled" in run(programs / "labelgen", "run", *options, cwd=tmp_path)
    run(programs / "labelgen", "verify", "--shards=labels", cwd=tmp_path)


def test_removing_the_stranger_leaves_ours(environment: Path) -> None:
    python = environment / "bin" / "python"
    told = run(
        python, "-c", "import trainer, sum_factory.trainer as ours; print(trainer.NAME, ours.__name__)", cwd=environment
    )
    assert told == "of a stranger sum_factory.trainer\n"
    run(sys.executable, "-m", "pip", f"--python={python}", "uninstall", "--yes", "--quiet", "trainer")
    assert run(environment / "bin" / "trainer", "--version").startswith("trainer")
