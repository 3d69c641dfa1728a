"""Suites: the built-in ones hold the paper's sets; sets need names of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from sum_factory.shared.errors import SettingsError
from sum_factory.trainer.data.sets import PublicSettings
from sum_factory.trainer.evaluation.suites import read_suite

PAPER14 = {
    "salient": ["COIFT", "DIS-VD", "HRSOD", "ThinObject5K", "BIG", "VOCEVAL"],
    "entity": ["EntitySeg 0", "EntitySeg 1", "EntitySeg 2"],
    "part": ["Bodypart", "EasyPortrait", "Fashionpedia", "Fashionpedia subpart", "PACO"],
}
PAPER8 = ["Cityscapes", "EgoHOS", "DRAM", "iShape", "GTAV", "NDD20", "TrashCan", "IBD"]
PAIR = "{name: NAME, kind: folder-pairs, task: salient, images: a, masks: b}"


def test_paper14_has_the_papers_sets_by_task() -> None:
    sets = read_suite("paper14", {"DATA": "/data"}).sets
    assert {task: [s.name for s in sets if s.task == task] for task in PAPER14} == PAPER14
    assert len(sets) == 14
    assert {s.limit for s in sets if s.task == "part"} == {1000}


def test_further8_has_the_further_sets() -> None:
    sets = read_suite("further8", {"DATA": "/data"}).sets
    assert [s.name for s in sets] == PAPER8
    assert {s.task for s in sets} == {"entity"}


@pytest.mark.parametrize("suite", ["paper14", "further8"])
def test_every_set_is_looked_for_in_the_data_folder_and_none_comes_twice(suite: str) -> None:
    sets = read_suite(suite, {"DATA": "/data"}).sets
    named = [settings for settings in sets if isinstance(settings, PublicSettings)]
    assert {settings.root for settings in named} == {Path("/data")}
    assert len({settings.set for settings in named}) == len(sets)


def test_suite_without_its_variable_names_it_and_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATA", raising=False)
    with pytest.raises(SettingsError, match=r"paper14: sets\.0\.root: \$\{DATA\} has no value"):
        read_suite("paper14", {})


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("[]", "sets: expected one set at least"),
        (
            f"[{PAIR.replace('NAME', 'a')}, {PAIR.replace('NAME', 'b')}, {PAIR.replace('NAME', 'a')}]",
            "found 'a' 2 times",
        ),
        (f"[{PAIR.replace('NAME', 'a')}, {PAIR.replace('name: NAME, ', '')}]", r"sets\.1\.name: expected a name"),
        (
            f"[{PAIR.replace('salient', 'thing')}]",
            r"sets\.0\.task: expected 'unspecified', 'salient', 'entity' or 'part'",
        ),
        ("[{name: a, kind: coco, task: part, images: a, masks: b}]", r"sets\.0\.masks: unknown key"),
        ("[{set: hrsod, root: a, images: b}]", r"sets\.0\.images: unknown key"),
        ("[{set: hrsd, root: a}]", "no public set of the name 'hrsd'; did you mean hrsod"),
        ("[{set: hrsod}]", r"sets\.0\.root: expected a value, found none"),
    ],
)
def test_wrong_suites_are_refused(tmp_path: Path, sets: str, message: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(f"sets: {sets}\n")
    with pytest.raises(SettingsError, match=message):
        read_suite(path, {})
