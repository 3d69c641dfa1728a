"""What the paper says comes out, and what came out here: claims about pairs of methods, and what was expected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sum_factory.pipelines.microworld.ablation.bootstrap import Difference
from sum_factory.pipelines.microworld.ablation.cells import SAM
from sum_factory.pipelines.microworld.ablation.compare import difference_of
from sum_factory.pipelines.microworld.ablation.results import Measure, Results
from sum_factory.pipelines.microworld.ablation.rows import row_of
from sum_factory.pipelines.microworld.sets import SCENE_TASKS
from sum_factory.trainer.evaluation.published import Prompted, column_of, published_task
from sum_factory.trainer.evaluation.report import ALL

LEAST_AUROC = 0.85
AT_3, AT_1 = Measure(round=3), Measure(round=1)


@dataclass(frozen=True)
class Claim:
    """The paper's words for ``better`` being above ``worse`` after as many points, over all sets or those of ``task``.

    With ``by_figures`` the paper says so in its tables alone: without a figure there is no such claim.
    """

    text: str
    better: str
    worse: str
    task: str = ALL
    measure: Measure = AT_3
    by_figures: bool = False


CLAIMS = (
    Claim("SUM is better than SAM", "sum", SAM),
    Claim("SUM is better than vanilla", "sum", "vanilla"),
    Claim("Human masks alone make SAM forget parts", SAM, "human-only", "part"),
    Claim("Vanilla gains", "vanilla", SAM),
    Claim("Vanilla gains on entities", "vanilla", SAM, "entity", by_figures=True),
    Claim("Vanilla gains on parts", "vanilla", SAM, "part", by_figures=True),
    Claim("Vanilla loses on entities", SAM, "vanilla", "entity", by_figures=True),
    Claim("Vanilla loses on parts", SAM, "vanilla", "part", by_figures=True),
    Claim("After one point SUM is below SAM on entities", SAM, "sum", "entity", AT_1, by_figures=True),
    Claim("After one point SUM is above SAM on entities", "sum", SAM, "entity", AT_1, by_figures=True),
    Claim("Training on refined masks beats vanilla", "mask-refinement", "vanilla"),
    Claim("UA loss and sampling add to vanilla", "sum-no-task-prompt", "vanilla"),
    Claim("UA loss and sampling beat refined masks", "sum-no-task-prompt", "mask-refinement"),
    Claim("The task prompt adds at 1 point", "sum", "sum-no-task-prompt", measure=AT_1),
    Claim("The task prompt adds at 3 points", "sum", "sum-no-task-prompt"),
    Claim("UA sampling adds", "sum", "sum-no-ua-sampling"),
    Claim("Continuous task prompts lose at 3 points", "sum", "sum-continuous-tp"),
    Claim("Refinement is better than confidence", "sum", "sum-confidence-uncer"),
    Claim("SUM with confidence is below SAM", SAM, "sum-confidence-uncer", by_figures=True),
    Claim("Refinement is better than discrepancy", "sum", "sum-discrepancy-uncer"),
    Claim("SUM is better than AugSeg, mixed prompts", "sum", "augseg-mixed-prompt"),
    Claim("SUM is better than U2PL", "sum", "u2pl"),
    Claim("SUM is better than distilling SAM", "sum", "self-distillation"),
    Claim("SUM is better than merging weights", "sum", "model-merging"),
    Claim("Merging weights keeps parts", "model-merging", "human-only", "part"),
    Claim("Refined probabilities as targets add to SUM", "sum-soft", "sum"),
    Claim("Maps made anew in training add to SUM", "sum-online", "sum"),
)
MIXES = {"small": "FT-Small", "medium": "FT-Medium", "large": "FT-Large"}
"""The paper's name of the human masks of a setting, whose figures its claims there are held against."""
CALLED = {"sum-no-task-prompt": "SUM w/o Task Prompt"}
"""What the paper calls methods, where it is not what they are called here."""


def claims_of(setting: str) -> Iterator[tuple[Claim, float | None]]:
    """Yield the paper's claims in a setting, and its difference in points of mIoU, None if it has no figures.

    What it has figures against, there, it does not claim there.
    """
    for claim in CLAIMS:
        gain = published_gain(claim, setting)
        if gain > 0 if gain is not None else not claim.by_figures:
            yield claim, gain


def published_gain(claim: Claim, setting: str) -> float | None:
    """Return the paper's difference of a claim with the human masks of a setting; None if it lacks a figure."""
    prompted = Prompted("mIoU", claim.measure.prompt, claim.measure.round, claim.measure.output)
    better, worse = (_published(method, setting, prompted, claim.task) for method in (claim.better, claim.worse))
    return None if better is None or worse is None else better - worse


def _published(method: str, setting: str, prompted: Prompted, task: str) -> float | None:
    name = "SAM" if method == SAM else f"{CALLED.get(method, method)} {MIXES[setting]}"
    column = column_of(name)
    return None if column is None else published_task(column, prompted, task)


def difference(
    results: Results, setting: str, better: str, worse: str, task: str, measure: Measure
) -> Difference | None:
    """Return method ``better`` minus ``worse`` in a setting, as ``difference_of`` does."""
    return difference_of(results, setting, row_of(better), row_of(worse), task, measure)


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
