"""The benchmark of shards times the same work on both sides, notices what differs, and says what it found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from segment_anything.utils.amg import calculate_stability_score

from sum_factory.pipelines.bench import shards
from sum_factory.pipelines.bench.parts import shard_material
from sum_factory.pipelines.bench.parts.fidelity import DEAD_ZONE, largest_error, masks_of_sam, measure_fidelity
from sum_factory.pipelines.bench.parts.shard_material import (
    LEAST_STABILITY,
    OFFSET,
    LabelledPhoto,
    enlarge,
    find_photos,
    label_photos,
)
from sum_factory.pipelines.bench.parts.shard_sets import Loader, bytes_of_labels, plan_set, write_labels, write_photos
from sum_factory.pipelines.bench.shards import Bench, compare, compare_between_cells, interleave, probabilities, ratio
from sum_factory.shared.errors import InputError
from sum_factory.shared.shards.dataset import ENCODINGS
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.verify import verify

FLOORS = {
    "bytes_ratio",
    "labels_ratio_tar",
    "labels_ratio_zarr",
    "end_to_end_ratio",
    "write_share_tar",
    "write_share_zarr",
    "mask_iou",
    "mask_boundary_iou",
    "u_max_error",
}


@pytest.fixture(scope="module", autouse=True)
def small() -> object:
    """Few points, masks, and small originals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_material, "SETTINGS", replace(shard_material.SETTINGS, points_per_side=6))
        patch.setattr(shard_material, "MASKS_OF_A_PHOTO", 8)
        patch.setattr(shard_material, "ORIGINAL_SIDE", 320)
        patch.setattr(shards, "PICKED", 3)
        yield


@pytest.fixture(scope="module")
def photos() -> Sequence[LabelledPhoto]:
    return label_photos(None, 2, None)


def test_masks_are_of_the_photos_and_of_their_points(photos: Sequence[LabelledPhoto]) -> None:
    for photo in photos:
        original = cv2.imdecode(np.frombuffer(photo.original, np.uint8), cv2.IMREAD_COLOR)
        assert max(original.shape[:2]) == 320
        assert len(photo) == len(photo.r) == len(photo.points) == 8
        drawn = masks_of_sam(photo.s, photo.frame)
        np.testing.assert_array_equal(drawn.sum((1, 2)), photo.areas)
        rows, columns = np.nonzero(drawn[0])
        box = [columns.min(), rows.min(), np.ptp(columns), np.ptp(rows)]
        np.testing.assert_array_equal(photo.boxes[0], box)


def test_too_few_photos_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 photos, and 3 are needed"):
        next(find_photos(tmp_path, 3))


def test_enlarged_masks_are_the_same_as_flat_as_sam_would_keep(photos: Sequence[LabelledPhoto]) -> None:
    small, large = photos[0], enlarge(photos[0])
    assert large.s.shape == (8, 256, 256)
    assert large.frame.side == 1024
    stability = calculate_stability_score(torch.from_numpy(large.s), 0.0, OFFSET).numpy()
    assert (stability >= LEAST_STABILITY).all()
    flatter = calculate_stability_score(torch.from_numpy(large.s * np.float32(0.99)), 0.0, OFFSET).numpy()
    natural = shard_material._interpolate(torch.from_numpy(small.s)).numpy()
    grew = np.abs(large.s).max((1, 2)) > 1.01 * np.abs(natural).max((1, 2))
    assert grew.any()
    assert (flatter[grew] < LEAST_STABILITY).all()
    for before, after in zip(natural, large.s, strict=True):
        np.testing.assert_array_equal(before > 0, after > 0)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_shard_set_verifies_and_loads_what_was_labelled(
    photos: Sequence[LabelledPhoto], encoding: str, tmp_path: Path
) -> None:
    plan = plan_set(tmp_path, photos, encoding)
    write_labels(plan, photos)
    labels = bytes_of_labels(tmp_path)
    assert labels == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    write_photos(plan, photos, photos[0].frame.side)
    assert bytes_of_labels(tmp_path) == labels
    assert [problem for check in verify(ShardSet.open(str(tmp_path))) for problem in check.problems] == []
    loader = Loader(tmp_path, masks=3)
    picked = np.array([1, 4, 6])
    logits, maps = loader.labels(1, picked).values()
    rows, columns = photos[1].frame.interpolation_cells
    s, _, u = (grid[picked] for grid in photos[1].grids)
    np.testing.assert_array_equal(logits[:, :rows, :columns] > 0, s > 0)
    np.testing.assert_allclose(maps[:, :rows, :columns], u, atol=0.02 + 1e-6)
    assert len(loader.sample(0, 0).labels) == 3


def test_times_are_of_every_side_and_repeat_in_turn() -> None:
    calls: list[tuple[str, int]] = []
    sides = {name: lambda i, name=name: calls.append((name, i)) for name in ("a", "b")}
    seconds = interleave(sides, 2, 3)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    timed = calls[4:]
    assert timed == [(name, turn % 2) for _ in range(3) for name in ("a", "b") for turn in range(6)]


def test_ratio_is_the_median_with_the_spread() -> None:
    assert ratio({"png": [2.0, 9.0, 4.0], "ours": [1.0, 1.0, 1.0]}, "png", "ours") == (4.0, [2.0, 9.0])


def logits_of(photo: LabelledPhoto) -> tuple[npt.NDArray[np.float32], ...]:
    """Return logits, maps, and the reference's probabilities and maps, all without loss but for 8 bits."""
    s, _, u = photo.grids
    rows, columns = photo.frame.interpolation_cells
    both = (np.rint(p[:, :rows, :columns] * 255) / np.float32(255) for p in probabilities(photo, 64))
    theirs, refined = both
    return s, u, theirs.astype(np.float32), np.abs(theirs - refined).astype(np.float32)


def test_sides_that_agree_pass(photos: Sequence[LabelledPhoto]) -> None:
    s, u, theirs, doubt = logits_of(photos[0])
    compare(s, u, theirs, doubt, s)
    compare_between_cells(s, probabilities(photos[0], 256)[0], 64)


def test_cell_that_differs_is_noticed(photos: Sequence[LabelledPhoto]) -> None:
    s, u, theirs, doubt = logits_of(photos[0])
    changed = s.copy()
    changed[0, 3, 3] *= -1
    with pytest.raises(AssertionError, match="a mask differs"):
        compare(changed, u, theirs, doubt, s)
    with pytest.raises(AssertionError, match="a map differs"):
        compare(s, u + np.float32(0.03), theirs, doubt, s)


def test_other_masks_between_cells_are_noticed(photos: Sequence[LabelledPhoto]) -> None:
    s = photos[0].grids[0]
    with pytest.raises(AssertionError, match="IoU"):
        compare_between_cells(np.roll(s, 1, 2), probabilities(photos[0], 256)[0], 64)


def test_fidelity_of_what_is_exact_is_perfect_and_of_shifted_masks_is_not(photos: Sequence[LabelledPhoto]) -> None:
    logits, maps = [photo.grids[0] for photo in photos], [photo.grids[2] for photo in photos]
    exact = measure_fidelity(photos, logits, maps, 5)
    assert (exact.masks, exact.u_max_error) == (5, 0.0)
    assert exact.mask_iou > 0.9999
    shifted = measure_fidelity(photos, [np.roll(one, 1, 2) for one in logits], maps, 99)
    assert shifted.masks == 16
    assert shifted.mask_boundary_iou < shifted.mask_iou < 0.97


def test_error_of_u_counts_above_the_dead_zone_alone() -> None:
    exact = np.array([[[DEAD_ZONE / 2, 0.3, 0.9]]], np.float32)
    assert largest_error(np.array([[[0.0, 0.31, 0.9]]], np.float32), exact) == pytest.approx(0.01, abs=1e-6)


def test_damage_to_a_tar_of_pngs_is_noticed(photos: Sequence[LabelledPhoto], tmp_path: Path) -> None:
    bench = Bench(tmp_path, photos, lambda line: None)
    bench.write(1)
    loaders = {encoding: bench.open(encoding, 64) for encoding in ENCODINGS}
    bench.check(loaders)
    shutil.copy(tmp_path / "png 64/0.tar", tmp_path / "png 64/1.tar")
    with pytest.raises(AssertionError):
        bench.check(loaders)


def test_photos_that_are_not_there_are_not_replaced_by_scenes(tmp_path: Path) -> None:
    result = CliRunner().invoke(shards.main, ["--quick", "--photos", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert f"'{tmp_path / 'none'}' does not exist" in result.output


def test_last_line_is_json_with_every_figure_that_has_a_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LEAST_TIMINGS", 2)
    monkeypatch.setattr(shards, "UNIT", 24)
    result = CliRunner().invoke(shards.main, ["--quick"], catch_exceptions=False)
    assert "scenes of the micro-world" in result.output
    figures = json.loads(result.output.splitlines()[-1])
    assert figures.keys() >= FLOORS
    assert figures["u_max_error"] <= 0.02 + 1e-5
    assert figures["mask_iou"] > 0.99
    assert all(isinstance(figure, int | float) for figure in figures.values())
    assert figures.keys() >= {f"in_full_bytes_a_mask_{name}" for name in ("png 256", "png 64", *ENCODINGS)}
    assert figures.keys() >= {f"in_full_labels_a_second_{name}" for name in ("png 256, smart", *ENCODINGS)}
