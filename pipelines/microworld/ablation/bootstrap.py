"""Compare two methods on the same masks: the mean difference, and how far it would move with other scenes and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sum_factory.pipelines.microworld.ablation.results import MaskScores
from sum_factory.trainer.evaluation.bootstrap import DRAWS, Values, interval, resampled_means
from sum_factory.trainer.evaluation.report import ALL


@dataclass(frozen=True)
class Difference:
    """First minus second: the mean, the ends of its bootstrap interval, and over how many seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        """The mean and its interval, in points; what rounds to zero has no sign of its own."""
        mean, low, high = (f"{round(100 * value, 1) + 0.0:+.1f}" for value in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"


def verdict(found: Difference | None) -> str:
    """Say in words whether the first is better. The interval of one seed knows nothing of what seeds differ by."""
    if found is None:
        return "not run"
    said = "holds" if found.low > 0 else "does not hold" if found.high < 0 else "not told apart"
    return said if found.seeds > 1 else f"{said}, one seed"


def paired_difference(
    first: Mapping[int, MaskScores],
    second: Mapping[int, MaskScores],
    task: str,
    draws: int = DRAWS,
    within_tasks: bool = False,
) -> Difference | None:
    """Compare the runs of two methods, by seed; None if they have no seed in common.

    A scene's masks and a seed's runs hang together, so scenes and seeds are drawn with replacement, not masks; the same
    scenes for all seeds, and for both methods. For "all", tasks have equal weight. ``within_tasks`` is for tasks that
    share no scene: as many of each are drawn as it has. Raises ``ValueError`` if the masks are not the same.
    """
    pairs = [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]
    if not pairs:
        return None
    sums, counts = _by_scene(pairs, task)
    random = np.random.default_rng(0)
    means = (_means_within_tasks if within_tasks else resampled_means)(sums, counts, draws, random)
    drawn = random.integers(len(pairs), size=(draws, len(pairs)))
    drawn_means = np.take_along_axis(means.mean(2), drawn, axis=1).mean(1)
    low, high = interval(drawn_means)
    mean = float((sums.sum(2) / counts.sum(1)).mean())
    return Difference(mean, low, high, len(pairs))


def _means_within_tasks(sums: Values, counts: Values, draws: int, random: np.random.Generator) -> Values:
    """Return ``resampled_means`` of which those of each task come from the scenes that have masks of it."""
    own = [(slice(t, t + 1), row > 0) for t, row in enumerate(counts)]
    parts = [resampled_means(sums[:, t][:, :, seen], counts[t][:, seen], draws, random) for t, seen in own]
    return np.concatenate(parts, axis=2)


def _by_scene(pairs: list[tuple[MaskScores, MaskScores]], task: str) -> tuple[Values, Values]:
    """Return sums of differences, (S seeds, T tasks, N scenes), and the numbers of masks, (T, N)."""
    reference = pairs[0][0]
    for each in (scores for pair in pairs for scores in pair):
        if (each.images, each.tasks) != (reference.images, reference.tasks):
            raise ValueError("expected scores of the same masks")
    tasks = sorted(set(reference.tasks)) if task == ALL else [task]
    names, scene = np.unique(np.array(reference.images), return_inverse=True)
    of_task = np.array(reference.tasks)
    sums = np.zeros((len(pairs), len(tasks), len(names)))
    counts = np.zeros((len(tasks), len(names)))
    for t, name in enumerate(tasks):
        rows = of_task == name
        counts[t] = np.bincount(scene[rows], minlength=len(names))
        for s, (first, second) in enumerate(pairs):
            change = (first.values - second.values)[rows]
            sums[s, t] = np.bincount(scene[rows], change, minlength=len(names))
    return sums, counts
