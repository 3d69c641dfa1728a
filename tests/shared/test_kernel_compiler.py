"""Where compiled kernels are kept: beside their source, or where that may not be written elsewhere, or nowhere.

Each case is a process of its own, since Numba looks at the environment when it is imported. A place is made unwritable
for whoever runs the tests, root too, by a file where a folder would have to be.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sum_factory import labelgen, shared
from sum_factory.shared.kernel_compiler import own_folder

KERNEL = """
from sum_factory.shared.kernel_compiler import kernel_compiler

@kernel_compiler(boundscheck=False)
def double(x):
    return 2 * x
"""
CALL = """
import json, sys, tempfile
if not {temporary!r}:
    tempfile.tempdir = "/dev/null/nowhere"
from kernel import double
print(json.dumps([double(21), double.stats.cache_path, sum(double.stats.cache_hits.values())]))
"""


class Installed:
    """A kernel that is installed in ``folder``; ``run`` calls it in a fresh process."""

    def __init__(self, folder: Path, is_writable: bool) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "kernel.py").write_text(KERNEL)
        if not is_writable:
            (folder / "__pycache__").touch()

    def run(self, home: str | Path, has_temporary: bool = True, **environment: str) -> tuple[int, str | None, int]:
        """Return the kernel's value for 21, where it is kept, and how often it was found there."""
        paths = os.pathsep.join([str(self.folder), *sys.path])
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "XDG_"))}
        kept |= {"HOME": str(home), "TMPDIR": str(self.folder), "PYTHONPATH": paths, **environment}
        command = [sys.executable, "-c", CALL.format(temporary=has_temporary)]
        done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        value, place, hits = json.loads(done.stdout)
        return value, place, hits


@pytest.fixture
def nowhere() -> str:
    """A home that is not there and cannot be made."""
    return "/dev/null/nobody"


def test_kernel_is_kept_beside_its_source(tmp_path: Path, nowhere: str) -> None:
    installed = Installed(tmp_path / "package", is_writable=True)
    assert installed.run(nowhere) == (42, str(tmp_path / "package/__pycache__"), 0)


def test_kernel_is_kept_where_numba_is_told_to(tmp_path: Path, nowhere: str) -> None:
    installed = Installed(tmp_path / "package", is_writable=False)
    value, place, _ = installed.run(nowhere, NUMBA_CACHE_DIR=str(tmp_path / "told"))
    assert (value, Path(str(place)).parent) == (42, tmp_path / "told")


def test_kernel_of_a_read_only_package_is_kept_in_the_users_cache(tmp_path: Path) -> None:
    installed = Installed(tmp_path / "package", is_writable=False)
    value, place, _ = installed.run(tmp_path / "home")
    assert value == 42
    assert Path(str(place)).is_relative_to(tmp_path / "home")


def test_kernel_without_a_home_is_kept_in_a_private_folder_and_found_there(tmp_path: Path, nowhere: str) -> None:
    installed = Installed(tmp_path / "package", is_writable=False)
    folder = tmp_path / f"package/sum-factory-kernels-{os.geteuid()}"
    value, place, hits = installed.run(nowhere)
    assert (value, Path(str(place)).parent, hits) == (42, folder, 0)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert installed.run(nowhere) == (42, place, 1)


def test_kernel_works_where_nothing_may_be_written(tmp_path: Path, nowhere: str) -> None:
    installed = Installed(tmp_path / "package", is_writable=False)
    assert installed.run(nowhere, has_temporary=False) == (42, None, 0)


def test_kernels_of_a_read_only_copy_of_the_package_work(tmp_path: Path, nowhere: str) -> None:
    for package in (shared, labelgen):
        source = Path(str(package.__file__)).parent
        copy = tmp_path / "sum_factory" / source.name
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "weights"))
        for folder in [copy, *(path for path in copy.rglob("*") if path.is_dir())]:
            (folder / "__pycache__").touch()
    program = """
import tempfile
tempfile.tempdir = "/dev/null/nowhere"
import numpy as np
from sum_factory.shared.automask import region_kernel
from sum_factory.shared.codecs import kernel as codec_kernel
assert region_kernel.__file__.startswith({copy!r}) and codec_kernel.__file__.startswith({copy!r})
print(region_kernel._count_above(np.arange(9, dtype=np.float32), np.float32(4), 0, 9))
print(codec_kernel._header_fits(np.array([3, 3, 0, 1, 2, 3]), 4, 4), codec_kernel.label_codes.stats.cache_path)
""".format(copy=str(tmp_path))
    environment = {**os.environ, "HOME": nowhere, "PYTHONPATH": str(tmp_path)}
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "4\nTrue None\n", done.stderr


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder, the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_own_folder_is_made_for_this_user_alone_and_used_again(temporary: Path) -> None:
    folder = own_folder()
    assert folder is not None
    assert Path(folder).parent == temporary
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert own_folder() == folder


def test_folder_behind_a_link_is_not_ours(temporary: Path) -> None:
    folder = Path(str(own_folder()))
    folder.rename(temporary / "elsewhere")
    folder.symlink_to(temporary / "elsewhere")
    assert own_folder() is None


def test_folder_of_another_user_is_not_ours(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.geteuid() + 1
    (temporary / f"sum-factory-kernels-{other}").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert own_folder() is None


def test_folder_that_others_may_write_to_is_not_ours(temporary: Path) -> None:
    os.chmod(str(own_folder()), 0o770)
    assert own_folder() is None


def test_file_in_its_place_is_not_ours(temporary: Path) -> None:
    (temporary / f"sum-factory-kernels-{os.geteuid()}").touch(mode=0o600)
    assert own_folder() is None
