"""A folder in which Ray cannot work, or listed photos cannot wait, is named before anything starts."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from sum_factory.labelgen import comparison
from sum_factory.labelgen.comparison import Spool
from sum_factory.shared.cluster import folder as ray_folder
from sum_factory.shared.cluster.connect import Workers, connected
from sum_factory.shared.cluster.folder import LONGEST_SOCKET, require_ray_folder
from sum_factory.shared.errors import StorageError, WorkerError
from sum_factory.shared.photo_files import PhotoFile


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """No temporary file takes a byte."""
    for module in (comparison, ray_folder):
        monkeypatch.setattr(module.tempfile, "TemporaryFile", lambda **options: open("/dev/full", "w+b"))  # noqa: SIM115


def test_folder_with_too_long_a_name_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(folder))
    with pytest.raises(WorkerError, match=r"x: too long a name for Ray's sockets.*107 at most; set RAY_TMPDIR"):
        connected(Workers(1)).__enter__()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    require_ray_folder()


def test_names_that_ray_gives_are_as_long_as_we_think() -> None:
    """Ray's own name for a session, with the largest process id."""
    from datetime import datetime

    session = f"session_{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{2**22}"
    assert len(ray_folder._BELOW) == len(f"/ray/{session}/sockets/plasma_store")
    assert LONGEST_SOCKET in (103, 107)


def test_folder_without_room_is_refused_before_ray_starts(full: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    with pytest.raises(WorkerError, match=r"/tmp: Ray cannot work there .No space left on device.; free some space"):
        require_ray_folder()


def test_folder_that_is_not_there_is_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/nowhere")
    with pytest.raises(WorkerError, match=r"/nowhere: Ray cannot work there .No such file or directory."):
        require_ray_folder()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_listed_photos_that_have_no_room_to_wait_end_the_run_with_a_line(full: None) -> None:
    photos = [PhotoFile(f"photo{number}", "/photos", size=number) for number in range(2_000)]
    with Spool() as spool, pytest.raises(StorageError, match=r"cannot wait there .No space left on device.; free some"):
        spool.add(photos)


def test_no_folder_of_temporary_files_at_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(**options: object) -> io.BytesIO:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(comparison.tempfile, "TemporaryFile", none)
    with pytest.raises(StorageError, match="No usable temporary directory"):
        Spool()
