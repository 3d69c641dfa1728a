"""The figures that say whether uncertainty finds errors, against naive counts."""

from __future__ import annotations

import itertools

import numpy as np

from sum_factory.pipelines.microworld.certainty import BAND, Judged, auroc, figures, near_outline


def test_area_under_the_curve_is_the_share_of_pairs_in_the_right_order() -> None:
    random = np.random.default_rng(0)
    score = random.integers(0, 6, 60).astype(np.float32)  # with ties
    positive = random.random(60) < 0.3
    pairs = list(itertools.product(score[positive], score[~positive]))
    expected = np.mean([1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs])
    assert np.isclose(auroc(score, positive), expected)


def test_area_of_many_pixels_is_exact() -> None:
    random = np.random.default_rng(0)
    positive = random.random(100_000) < 0.2
    score = (random.random(100_000) + 0.3 * positive).astype(np.float32)
    wrong, right = score[positive], np.sort(score[~positive])
    below = [np.searchsorted(right, wrong, side).sum() for side in ("left", "right")]
    assert np.isclose(auroc(score, positive), sum(below) / 2 / len(wrong) / len(right), rtol=1e-12, atol=0)


def test_area_is_undefined_where_nothing_or_everything_is_wrong() -> None:
    score = np.arange(4, dtype=np.float32)
    assert np.isnan(auroc(score, np.zeros(4, bool)))
    assert np.isnan(auroc(score, np.ones(4, bool)))


def test_accuracy_counts_the_pixels_above_and_not_above_the_threshold() -> None:
    certainty = np.array([[0.9, 0.6, 0.61], [0.2, 0.7, 0.0]], np.float32)
    wrong = np.array([[False, True, True], [True, False, False]])
    near = np.array([[True, True, False], [True, False, False]])
    found = figures([Judged("salient", iou, 0.9, certainty, wrong, near) for iou in (0.8, 0.6)])
    assert np.isclose(found["accuracy_certain"], 2 / 3)
    assert np.isclose(found["accuracy_doubtful"], 1 / 3)
    assert np.isclose(found["share_doubtful"], 0.5)
    assert np.isclose(found["errors_doubtful"], 2 / 3)
    assert np.isclose(found["mean_iou"], 0.7)
    assert found["labels"] == 2
    assert np.isclose(found["auroc_near"], 1.0)  # 0.2 and 0.6 are wrong, 0.9 is right


def test_near_are_the_pixels_within_the_band_of_the_outline() -> None:
    mask = np.zeros((70, 80), bool)
    mask[:, 40:] = True
    columns = np.flatnonzero(near_outline(mask)[35])
    assert (columns.min(), columns.max()) == (40 - BAND, 39 + BAND)
