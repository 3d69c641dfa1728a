"""The examples in ``docs/shards.md`` run as they stand, without this project, and see every mask and photo."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sum_factory.shared.codecs.label import encode_label

DOCS = Path(__file__).parents[2] / "docs" / "shards.md"
MASKS_IN_TAR, PHOTOS_IN_TAR = 'WebDataset("labels/masks/', 'WebDataset("labels/photos/'
MASKS_IN_ZARR, PHOTOS_IN_ZARR = 'zarr.open("labels/masks.zarr"', 'zarr.open("labels/photos.zarr"'
SEAL = "file_sha256"
READERS = (MASKS_IN_TAR, PHOTOS_IN_TAR, MASKS_IN_ZARR, PHOTOS_IN_ZARR)


def example(call: str) -> str:
    """Return the indented block of the documentation that contains ``call``."""
    (block,) = [block for block in re.findall(r"(?:^    .*\n)+", DOCS.read_text(), re.M) if call in block]
    return textwrap.dedent(block)


def run(code: str, folder: Path) -> list[str]:
    """Run code in a process of its own, where warnings are errors, and return the lines that it prints."""
    options = ["-I", "-W", "error", "-W", "ignore::ResourceWarning", "-c", code]
    done = subprocess.run([sys.executable, *options], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def known(write_known: Callable[[Path, str], Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """``known(encoding)`` is the known shard set, in a folder called ``labels``."""
    made = {
        encoding: write_known(tmp_path_factory.mktemp(encoding) / "labels", encoding) for encoding in ("tar", "zarr")
    }
    return made.__getitem__


def test_plain_webdataset_reads_tars_as_documented(known: Callable[[str], Any]) -> None:
    lines = run(example(MASKS_IN_TAR), known("tar").folder.parent)
    assert len(lines) == len(known("tar").units[0])
    assert lines[0].startswith("unit0/photo%2E0 (")


def test_plain_zarr_reads_shards_as_documented(known: Callable[[str], Any]) -> None:
    lines = run(example(MASKS_IN_ZARR), known("zarr").folder.parent)
    masks = known("zarr").units[1]
    assert len(lines) == len(masks)
    assert [line.endswith("unknown") for line in lines] == [mask.by_refiner == b"" for mask in masks]
    assert lines[0].startswith("unit1/photo.0 0 0 ")  # an empty mask


@pytest.mark.parametrize(
    ("encoding", "call", "images"), [("tar", PHOTOS_IN_TAR, (0, 1, 2)), ("zarr", PHOTOS_IN_ZARR, (0, 2))]
)
def test_photos_are_read_as_documented(
    known: Callable[[str], Any], encoding: str, call: str, images: tuple[int, ...]
) -> None:
    """Of unit 0 in tars, and of unit 1, whose second photo nobody could read, in Zarr."""
    unit = 0 if encoding == "tar" else 1
    lines = run(example(call), known(encoding).folder.parent)
    assert lines == [f"unit{unit}/photo.{index} (128, 96)" for index in images]


def test_seal_is_checked_as_documented(known: Callable[[str], Any]) -> None:
    assert run(example(SEAL), known("zarr").folder.parent) == []


def test_documented_blob_is_that_of_the_described_grid() -> None:
    parts = re.findall(r"^((?:[0-9a-f]{2} )*[0-9a-f]{2})(?: {2,}|$)", example("62 6e 78"), re.M)
    logits = np.full((6, 8), -6, np.float32)
    logits[2:4, 3:6] = 5
    logits[2, 3] = 1
    assert encode_label(logits) == bytes.fromhex(" ".join(parts))


@pytest.mark.parametrize("call", READERS)
def test_documented_readers_are_short_and_need_nothing_of_this_project(call: str) -> None:
    code = example(call)
    assert len(code.splitlines()) <= 10
    assert not re.search(r"shared|labelgen|trainer", code)
