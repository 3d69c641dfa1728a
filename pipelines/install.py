"""Install what the project needs beside the Python that runs this, and say what is being done.

    .venv/bin/python -m pipelines.install        # what `make` calls, from the folder of the project

PyTorch comes first and alone, pinned, so that no other requirement picks one. Nothing here needs more than Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sum_factory.shared.progress import SPEAKER, Stage

LOOK_SECONDS = 10.0
"""How often the sizes of what has come so far are taken."""
PARTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "PyTorch",
        "by far the largest part: about 5.5 GB on Linux with x86-64, where pip takes the build for CUDA, else 0.5 GB",
        ("torch", "torchvision"),
    ),
    ("everything else", "about 1.3 GB", ("-e", ".[dev]")),
)
"""What is installed: its name, what to expect, and pip's arguments."""


def main() -> None:
    """Install all parts; exit with pip's status if it fails."""
    SPEAKER.plain = True  # what draws bars is not there yet, and on a terminal pip draws its own
    for number, (name, expected, requirements) in enumerate(PARTS, 1):
        SPEAKER.say(f"{number}/{len(PARTS)}  installing {name} into {sys.prefix}, {expected}")
        status = install(name, requirements)
        if status:
            sys.exit(status)


def install(name: str, requirements: Sequence[str]) -> int:
    """Have pip install what it is asked for, and tell how much has come so far; return pip's status."""
    command = [sys.executable, "-m", "pip", "install", "-c", "constraints.txt", *requirements]
    if not sys.stdout.isatty():
        command += ["--progress-bar", "off"]
    before = size_of(Path(sys.prefix))
    with (
        Stage(f"installing {name}") as stage,
        tempfile.TemporaryDirectory(prefix=".pip-", dir=sys.prefix) as aside,  # where pip downloads to
        subprocess.Popen(command, env={**os.environ, "TMPDIR": aside}) as pip,
    ):
        while True:
            try:
                return pip.wait(LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                downloaded = size_of(Path(aside))
                installed = size_of(Path(sys.prefix)) - before - downloaded
                stage.reach(0, f"{downloaded // 10**6} MB downloaded and {installed // 10**6} MB installed")


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder and those below, while they come and go."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total


if __name__ == "__main__":
    main()
