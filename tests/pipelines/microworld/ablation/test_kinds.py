"""Kinds of masks: what an entity is, and who is better on which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sum_factory.pipelines.microworld.ablation.cells import FROZEN
from sum_factory.pipelines.microworld.ablation.kinds import (
    MEMBER,
    OTHER,
    SALIENT,
    MaskKind,
    differences_of_kinds,
    entity_kinds,
)
from sum_factory.pipelines.microworld.ablation.results import MaskScores, Results
from sum_factory.pipelines.microworld.ablation.settings import Plan
from sum_factory.trainer.evaluation.run import SCORES

SIDE = 24


def box(top: int, left: int, height: int = 6, width: int = 6) -> tuple[slice, slice]:
    return slice(top, top + height), slice(left, left + width)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Two scenes: in the first one entity is salient and one is not, in the second two are a group. Hidden parts of the
    second of these are not of the salient mask."""
    scenes = {"000000": ([box(2, 2), box(12, 12)], [0]), "000001": ([box(2, 2), box(10, 2), box(14, 14)], [0, 1])}
    plan = Plan(tmp_path)
    for name, (boxes, chosen) in scenes.items():
        entity, salient = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.uint8)
        for number, place in enumerate(boxes):
            entity[place] = number + 1
            salient[place] = 255 if number in chosen else 0
        salient[box(14, 2, 2, 2)] = 0
        for folder, values in (("images", np.dstack([entity] * 3)), ("entity", entity), ("salient", salient)):
            path = plan.scenes("held_out") / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    return plan


def results_of(masks: list[tuple[str, str, int]]) -> Results:
    """The frozen model's scores of masks by task, image and number, after one point."""
    rows = [
        {"set": task, "task": task, "image": image, "mask": number, "first": "point", "output": "oracle", "round": 1}
        for task, image, number in masks
    ]
    empty = {field.name: 0 for field in SCORES}
    return Results({FROZEN: pa.Table.from_pylist([{**empty, **row} for row in rows], SCORES)})


def test_entities_are_the_salient_object_of_a_salient_group_or_neither(plan: Plan) -> None:
    entities = [("entity", "000000", 0), ("entity", "000000", 1), *(("entity", "000001", n) for n in range(3))]
    others = [("part", "000000", 0), ("salient", "000001", 0)]
    kinds = {each.title: each.chosen.tolist() for each in entity_kinds(plan, results_of([*others, *entities]))}
    assert kinds == {
        SALIENT: [True, False, False, False, False, False, False],
        MEMBER: [False, False, True, True, False, False, False],
        OTHER: [False, True, False, False, True, False, False],
    }


def test_differences_are_of_the_masks_of_a_kind() -> None:
    images, tasks = ("a", "a", "b", "c"), ("entity", "part", "entity", "entity")
    first = {seed: MaskScores(np.array([0.5, 0.9, 0.7, 0.2]), images, tasks) for seed in (0, 1)}
    second = {seed: MaskScores(np.array([0.4, 0.1, 0.4, 0.3]), images, tasks) for seed in (0, 1)}
    kinds = [MaskKind("some", np.array([True, False, True, False])), MaskKind("none", np.zeros(4, bool))]
    (_, some), (_, none) = differences_of_kinds(first, second, kinds)
    assert some is not None
    assert some.mean == pytest.approx((0.1 + 0.3) / 2)
    assert none is None
