"""What the paper says comes out, and what came out here: claims about pairs of methods, and what was expected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sum_factory.pipelines.microworld.ablation.bootstrap import Difference, paired_difference
from sum_factory.pipelines.microworld.ablation.cells import FULL, SAM
from sum_factory.pipelines.microworld.ablation.results import MaskScores, Measure, Results
from sum_factory.pipelines.microworld.sets import SCENE_TASKS
from sum_factory.trainer.evaluation.report import ALL

LEAST_AUROC = 0.85
AT_3, AT_1 = Measure(round=3), Measure(round=1)


@dataclass(frozen=True)
class Claim:
    """The paper's words for ``better`` being above ``worse``; ``published`` is its difference in points of mIoU after
    as many points, over all its sets unless ``task`` names one, where it has one."""

    text: str
    better: str
    worse: str
    task: str = ALL
    measure: Measure = AT_3
    published: float | None = None


CLAIMS = (
    Claim("SUM is better than SAM", "sum", SAM, published=4.9),
    Claim("SUM is better than vanilla", "sum", "vanilla", published=1.8),
    Claim("Human masks alone make SAM forget parts", SAM, "human-only", "part"),
    Claim("Vanilla gains", "vanilla", SAM, published=3.1),
    Claim("Vanilla gains on parts", "vanilla", SAM, "part", published=1.2),
    Claim("Training on refined masks beats vanilla", "mask-refinement", "vanilla", published=1.2),
    Claim("UA loss and sampling add to vanilla", "sum-no-task-prompt", "vanilla", published=1.7),
    Claim("UA loss and sampling beat refined masks", "sum-no-task-prompt", "mask-refinement", published=0.5),
    Claim("The task prompt adds at 1 point", "sum", "sum-no-task-prompt", measure=AT_1, published=2.4),
    Claim("The task prompt adds at 3 points", "sum", "sum-no-task-prompt", published=0.1),
    Claim("UA sampling adds", "sum", "sum-no-ua-sampling"),
    Claim("Continuous task prompts lose at 3 points", "sum", "sum-continuous-tp", published=1.1),
    Claim("Refinement is better than confidence", "sum", "sum-confidence-uncer", published=4.0),
    Claim("Refinement is better than discrepancy", "sum", "sum-discrepancy-uncer", published=2.6),
    Claim("SUM is better than AugSeg, mixed prompts", "sum", "augseg-mixed-prompt", published=3.0),
    Claim("SUM is better than U2PL", "sum", "u2pl", published=2.0),
    Claim("SUM is better than distilling SAM", "sum", "self-distillation"),
    Claim("SUM is better than merging weights", "sum", "model-merging"),
    Claim("Merging weights keeps parts", "model-merging", "human-only", "part"),
    Claim("Refined probabilities as targets add to SUM", "sum-soft", "sum"),
    Claim("Maps made anew in training add to SUM", "sum-online", "sum"),
)


def difference(
    results: Results, setting: str, better: str, worse: str, task: str, measure: Measure
) -> Difference | None:
    """Return ``better`` minus ``worse`` in a setting, by seed; None if they have no seed in common.

    The frozen model has no seed, and is compared with every run of the other.
    """
    first, second = (scores_of(results, setting, method, measure) for method in (better, worse))
    if better == SAM:
        first = {seed: only for only in first.values() for seed in second}
    if worse == SAM:
        second = {seed: only for only in second.values() for seed in first}
    return paired_difference(first, second, task)


def scores_of(
    results: Results, setting: str, method: str, measure: Measure, variant: str = FULL
) -> dict[int, MaskScores]:
    """Return the scores of a method's runs by seed, of those that have such a round; the frozen model is the same in
    every setting."""
    runs = results.runs("none", SAM, "frozen") if method == SAM else results.runs(setting, method, variant)
    scores = {seed: results.scores(cell, measure) for seed, cell in runs.items()}
    return {seed: each for seed, each in scores.items() if len(each.values)}


def verdict(found: Difference | None) -> str:
    """Say in words whether the better one is. The interval of one seed knows nothing of what seeds differ by."""
    if found is None:
        return "not run"
    said = "holds" if found.low > 0 else "does not hold" if found.high < 0 else "not told apart"
    return said if found.seeds > 1 else f"{said}, one seed"


@dataclass(frozen=True)
class Anchor:
    """What was expected before anything was run, and what was found: it "holds", as far as it can be told apart, or is
    "missed"."""

    text: str
    found: str
    verdict: str


def anchors(results: Results, world: Mapping[str, Any] | None) -> Iterator[Anchor]:
    """Yield the anchors, in the setting "small". Differences are in points of mBIoU."""
    for number in (1, 3, 5):
        for task in SCENE_TASKS:
            found = difference(results, "small", "sum", SAM, task, Measure(round=number))
            points = f"{number} point{'s' if number > 1 else ''}"
            yield _anchor(f"SUM above SAM on {task}, after {points}", found, 0.0)
    lost = difference(results, "small", SAM, "human-only", "part", AT_3)
    yield _anchor("human-only below SAM on part, after 3 points", lost, 0.0)
    gain = difference(results, "small", "sum", "vanilla", ALL, AT_3)
    yield _anchor("SUM above vanilla by 1.0 of mBIoU over all tasks, after 3 points", gain, 0.01)
    text = "stored refinement maps find wrong pixels: area under the ROC curve at least 0.85"
    if world is None:
        yield Anchor(text, "", "not run")
        return
    area = world["sources"]["refinement"][ALL]["auroc"]
    yield Anchor(text, f"{area:.3f}", "holds" if area >= LEAST_AUROC else "missed")


def _anchor(text: str, found: Difference | None, least: float) -> Anchor:
    if found is None:
        return Anchor(text, "", "not run")
    if found.mean <= 0 or found.mean < least:
        return Anchor(text, str(found), "missed")
    return Anchor(text, str(found), "holds" if found.low > 0 else "holds on average, not told apart from 0")
