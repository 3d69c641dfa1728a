"""The environment is installed in sight: what comes, how much of it, and how far it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import pytest

from sum_factory.pipelines import install
from sum_factory.shared.progress import Speaker


class Pip:
    """Takes pip's place: downloads a file and installs it, while somebody waits for it."""

    commands: list[list[str]] = []  # noqa: RUF012
    status = 0

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.commands.append(command)
        self.aside, self.waits = Path(env["TMPDIR"]), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def wait(self, timeout: float) -> int:
        self.waits += 1
        if self.waits == 1:
            with (self.aside / "torch.whl").open("wb") as file:
                file.truncate(7 * 10**6)
        elif self.waits == 2:
            os.rename(self.aside / "torch.whl", Path(sys.prefix) / f"torch{len(self.commands)}")
        else:
            return self.status
        raise subprocess.TimeoutExpired("pip", timeout)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, eager: Speaker) -> type[Pip]:
    class Own(Pip):
        commands: list[list[str]] = []  # noqa: RUF012

    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(subprocess, "Popen", Own)
    monkeypatch.setattr(install, "SPEAKER", eager)
    return Own


def test_parts_are_announced_with_their_sizes_and_followed(pip: Any, capsys: pytest.CaptureFixture[str]) -> None:
    install.main()
    captured = capsys.readouterr()
    lines = [re.sub(r": \d+ s so far", ": some s so far", line) for line in captured.err.splitlines()]
    assert captured.out == ""
    assert lines[0].startswith(f"1/2  installing PyTorch into {sys.prefix}, by far the largest part: about 5.5 GB")
    assert "installing PyTorch: some s so far, 7 MB downloaded and 0 MB installed" in lines
    assert "installing PyTorch: some s so far, 0 MB downloaded and 7 MB installed" in lines
    assert f"2/2  installing everything else into {sys.prefix}, about 1.3 GB" in lines
    assert "installing everything else: some s so far, 0 MB downloaded and 7 MB installed" in lines


def test_torch_comes_first_and_all_of_it_is_pinned(pip: Any) -> None:
    install.main()
    first, second = pip.commands
    for command in (first, second):
        assert command[:6] == [sys.executable, "-m", "pip", "install", "-c", "constraints.txt"]
        assert command[-2:] == ["--progress-bar", "off"]
    assert first[6:-2] == ["torch", "torchvision"]
    assert second[6:-2] == ["-e", ".[dev]"]


def test_failure_of_pip_ends_it_with_its_status(pip: Any) -> None:
    pip.status = 2
    with pytest.raises(SystemExit) as ended:
        install.main()
    assert ended.value.code == 2
    assert len(pip.commands) == 1
