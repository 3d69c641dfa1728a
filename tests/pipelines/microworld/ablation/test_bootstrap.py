"""Paired differences, against sums written out and the normal approximation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sum_factory.pipelines.microworld.ablation.bootstrap import Difference, paired_difference
from sum_factory.pipelines.microworld.ablation.results import MaskScores

IMAGES = tuple(f"{n:03d}" for n in range(200) for _ in range(3))
TASKS = ("salient", "entity", "entity") * 200


def scores(values: np.ndarray) -> MaskScores:
    return MaskScores(values, IMAGES, TASKS)


def drawn(seed: int, mean: float) -> MaskScores:
    return scores(np.random.default_rng(seed).normal(mean, 0.1, len(IMAGES)))


def test_mean_is_that_of_the_differences_and_tasks_weigh_the_same() -> None:
    first, second = {0: drawn(1, 0.6), 1: drawn(2, 0.7)}, {0: drawn(3, 0.5), 1: drawn(4, 0.5)}
    for task in ("salient", "entity", "all"):
        found = paired_difference(first, second, task)
        assert found is not None
        expected = np.mean([first[seed].mean(task) - second[seed].mean(task) for seed in (0, 1)])
        assert np.isclose(found.mean, expected)
        assert found.low < found.mean < found.high
        assert found.seeds == 2


def test_interval_of_one_seed_is_that_of_scenes_that_are_drawn_again() -> None:
    """Masks of a scene hang together here, so the interval is as wide as that of 200 scenes, not of 400 masks."""
    per_scene = np.random.default_rng(0).normal(0.02, 0.05, 200)
    first = {0: scores(0.5 + np.repeat(per_scene, 3))}
    second = {0: scores(np.full(len(IMAGES), 0.5))}
    found = paired_difference(first, second, "entity")
    assert found is not None
    half = 1.96 * per_scene.std() / np.sqrt(200)
    assert np.isclose(found.high - found.low, 2 * half, rtol=0.1)
    assert np.isclose((found.high + found.low) / 2, per_scene.mean(), atol=0.2 * half)


def test_tasks_that_share_no_scene_are_drawn_apart() -> None:
    """As many scenes of each as it has: with one scene, the interval of a task has no width."""
    images, tasks = tuple(f"{n:03d}" for n in range(100)), ("salient",) + ("entity",) * 99
    values = np.random.default_rng(0).normal(0.1, 0.05, 100)
    first, second = MaskScores(values, images, tasks), MaskScores(np.zeros(100), images, tasks)
    one = paired_difference({0: first}, {0: second}, "salient", within_tasks=True)
    assert one is not None
    assert (one.low, one.high) == pytest.approx((values[0], values[0]))
    both = paired_difference({0: first}, {0: second}, "all", within_tasks=True)
    assert both is not None
    assert both.mean == pytest.approx((values[0] + values[1:].mean()) / 2)
    half = 1.96 * values[1:].std() / np.sqrt(99) / 2
    assert both.high - both.low == pytest.approx(2 * half, rel=0.1)


def test_spread_of_seeds_widens_the_interval() -> None:
    still = {seed: scores(np.full(len(IMAGES), 0.5)) for seed in range(3)}
    offsets = (0.0, 0.03, 0.09)
    moved = {seed: scores(np.full(len(IMAGES), 0.5 + offset)) for seed, offset in enumerate(offsets)}
    found = paired_difference(moved, still, "all")
    assert found is not None
    means = sorted(np.mean(some) for some in itertools.product(offsets, repeat=3))
    assert np.isclose(found.mean, np.mean(offsets))
    assert np.isclose(found.low, means[0])
    assert np.isclose(found.high, means[-1])


def test_only_seeds_that_both_have_are_compared() -> None:
    first, second = {0: drawn(1, 0.6), 2: drawn(2, 0.9)}, {0: drawn(3, 0.5), 1: drawn(4, 0.5)}
    found = paired_difference(first, second, "all")
    assert found is not None
    assert found.seeds == 1
    assert np.isclose(found.mean, first[0].mean("all") - second[0].mean("all"))
    assert paired_difference({5: drawn(1, 0.5)}, second, "all") is None


def test_other_masks_are_refused() -> None:
    other = MaskScores(np.zeros(2), ("000", "001"), ("salient", "entity"))
    with pytest.raises(ValueError, match="same masks"):
        paired_difference({0: drawn(1, 0.5)}, {0: other}, "all")


def test_what_rounds_to_zero_is_written_without_minus() -> None:
    assert str(Difference(-0.0004, -0.0123, 0.00951, 3)) == "+0.0 [-1.2, +1.0]"
