"""Differences on some of the masks: who is better where?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sum_factory.pipelines.microworld.ablation.bootstrap import Difference, paired_difference
from sum_factory.pipelines.microworld.ablation.cells import FROZEN
from sum_factory.pipelines.microworld.ablation.compare import scores_of
from sum_factory.pipelines.microworld.ablation.results import MaskScores, Measure, Results
from sum_factory.pipelines.microworld.ablation.rows import FROZEN_ROW, OURS, row_of
from sum_factory.pipelines.microworld.ablation.settings import Plan
from sum_factory.pipelines.microworld.ablation.tables import table
from sum_factory.pipelines.microworld.sets import describe_set
from sum_factory.shared.masks import Mask
from sum_factory.trainer.data.human import HumanSample, Masks
from sum_factory.trainer.data.sets import open_set
from sum_factory.trainer.evaluation.report import ALL

SALIENT, MEMBER, OTHER = "the salient object", "of a salient group", "not salient"
"""What an entity is, beside being one."""
COVERED = 0.5
"""Share of an entity that a salient mask covers at least, if the entity is of what is salient."""
MEASURES = {
    "1 pt": Measure("mIoU", round=1),
    "3 pt": Measure("mIoU"),
    "1 pt, single": Measure("mIoU", round=1, output="single"),
    "3 pt, single": Measure("mIoU", output="single"),
}
COMPARED = (row_of("human-only"), row_of("vanilla"), OURS)


@dataclass(frozen=True, eq=False)
class MaskKind:
    """Some of the masks: ``title`` says which, ``chosen`` bool (M,) are they."""

    title: str
    chosen: npt.NDArray[np.bool_]


def differences_of_kinds(
    first: Mapping[int, MaskScores], second: Mapping[int, MaskScores], kinds: Sequence[MaskKind]
) -> Iterator[tuple[MaskKind, Difference | None]]:
    """Yield the mean difference of two methods' scores by seed for each kind of masks, whose masks all count alike."""
    for kind in kinds:
        chosen = [_only(scores, kind) for scores in (first, second)]
        yield kind, paired_difference(chosen[0], chosen[1], ALL) if kind.chosen.any() else None


def _only(scores: Mapping[int, MaskScores], kind: MaskKind) -> dict[int, MaskScores]:
    """Return the scores of the masks of a kind, as those of one task."""
    places = np.flatnonzero(kind.chosen).tolist()
    return {
        seed: MaskScores(each.values[places], tuple(each.images[place] for place in places), (ALL,) * len(places))
        for seed, each in scores.items()
    }


def entities_table(plan: Plan, results: Results, setting: str) -> str:
    """Return how much methods are above the frozen model on entities, by what these are: who learnt from salient
    objects alone may take a click on a member of a group for one on the group."""
    kinds = entity_kinds(plan, results)
    rows: list[list[object]] = []
    for title, measure in MEASURES.items():
        frozen = scores_of(results, setting, FROZEN_ROW, measure)
        for row in COMPARED:
            scores = scores_of(results, setting, row, measure)
            still = {seed: only for only in frozen.values() for seed in scores}
            found = [each for _, each in differences_of_kinds(scores, still, kinds)]
            if any(found):
                rows.append([title, f"{row.title} above {FROZEN_ROW.title}", *(each or "" for each in found)])
    return table(["mIoU of entities", "", *(f"{each.title} ({each.chosen.sum()})" for each in kinds)], rows)


def entity_kinds(plan: Plan, results: Results) -> list[MaskKind]:
    """Return what the entities are that were tested, of all masks in the order of ``Results.scores``."""
    rows = results.rows_of_masks(FROZEN, MEASURES["1 pt"])
    salient, entity = (open_set(describe_set(plan.scenes(FROZEN.split), task)) for task in ("salient", "entity"))
    salient_at, entity_at = ({key: place for place, key in enumerate(each.keys)} for each in (salient, entity))
    known: dict[str, list[str]] = {}
    titles = []
    for task, image, number in zip(*(rows[name].to_pylist() for name in ("task", "image", "mask")), strict=True):
        if task != "entity":
            titles.append("")
            continue
        if image not in known:
            (mask,) = _masks_of(salient.load(salient_at[image]))
            known[image] = _kinds_in(mask, _masks_of(entity.load(entity_at[image])))
        titles.append(known[image][number])
    return [MaskKind(title, np.array(titles) == title) for title in (SALIENT, MEMBER, OTHER)]


def _masks_of(sample: HumanSample) -> Masks:
    return sample.masks_at(range(sample.count))


def _kinds_in(salient: Mask, entities: Masks) -> list[str]:
    covered = [(salient & each).sum() >= COVERED * each.sum() for each in entities]
    own = SALIENT if sum(covered) == 1 else MEMBER
    return [own if each else OTHER for each in covered]
