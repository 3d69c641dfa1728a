"""The reference's layout holds what it was given, in plain PNGs, and both its loaders read the same."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from sum_factory.pipelines.bench.parts.reference_shards import COLUMNS, index_image, load, load_smart, write_image

MASKS, SIDE = 5, 24
PICKED = [0, 3, 4]

Floats = npt.NDArray[np.float32]


@pytest.fixture
def masks() -> tuple[Floats, Floats]:
    random = np.random.default_rng(0)
    s, r = random.random((2, MASKS, SIDE, SIDE)).astype(np.float32)
    return s, r


@pytest.fixture
def folder(masks: tuple[Floats, Floats], tmp_path: Path) -> Path:
    rows = [[k, *(k + n / 10 for n in range(len(COLUMNS) - 1))] for k in range(MASKS)]
    size = write_image(tmp_path, "photo", *masks, rows)
    assert size == sum(path.stat().st_size for path in tmp_path.iterdir())
    return tmp_path


def test_loader_gives_back_the_picked_masks_to_8_bits(folder: Path, masks: tuple[Floats, Floats]) -> None:
    s, u, metadata = load(folder, "photo", PICKED)
    assert s.dtype == u.dtype == np.float32
    np.testing.assert_allclose(s, masks[0][PICKED], atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(u, np.abs(masks[0] - masks[1])[PICKED], atol=1 / 255 + 1e-6)
    assert [(line["id"], line["area"]) for line in metadata] == [("0", "0.0"), ("3", "3.0"), ("4", "4.0")]


def test_smart_loader_gives_the_same(folder: Path) -> None:
    s, u, _ = load(folder, "photo", PICKED)
    smart_s, smart_u = load_smart(index_image(folder, "photo"), PICKED)
    np.testing.assert_array_equal(smart_s, s)
    np.testing.assert_array_equal(smart_u, u)


def test_tars_hold_a_csv_and_a_png_a_mask(folder: Path, masks: tuple[Floats, Floats]) -> None:
    names = [f"{k}.png" for k in range(MASKS)]
    for file, expected, values in (
        ("photo.tar", ["metadata.csv", *names], masks[0]),
        ("photo_refined.tar", names, masks[1]),
    ):
        with tarfile.open(folder / file) as tar:
            assert tar.getnames() == expected
            for k, name in enumerate(names):
                png = tar.extractfile(name)
                assert png is not None
                pixels = cv2.imdecode(np.frombuffer(png.read(), np.uint8), cv2.IMREAD_UNCHANGED)
                assert pixels.dtype == np.uint8
                np.testing.assert_array_equal(pixels, np.rint(values[k] * 255))
    with tarfile.open(folder / "photo.tar") as tar:
        table = tar.extractfile("metadata.csv")
        assert table is not None
        assert tuple(next(csv.reader(io.TextIOWrapper(table)))) == COLUMNS
