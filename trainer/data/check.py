"""`trainer data check`: what the sets of a recipe, a suite or a folder hold, and what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from pydantic_core import to_jsonable_python

from sum_factory.shared.errors import InputError, SumError
from sum_factory.shared.progress import Stage, track
from sum_factory.trainer.data.guess import guess_sets
from sum_factory.trainer.data.human import HumanSample
from sum_factory.trainer.data.sets import AnySetSettings, SetSettings, layout_of, name_of_set
from sum_factory.trainer.settings import read_settings

READ = ("human", "sets", "validation")
"""The keys of recipes and suites that hold sets."""
SHOWN_ERRORS = 5


@dataclass(frozen=True, config=ConfigDict(extra="allow"))
class _Validation:
    sets: tuple[SetSettings, ...] = ()


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class _Sets:
    human: tuple[SetSettings, ...] = ()
    sets: tuple[SetSettings, ...] = ()
    validation: _Validation = field(default_factory=_Validation)


@dataclass(config=ConfigDict(arbitrary_types_allowed=True))
class Checked:
    """What was found of a set: ``lines`` for people, samples to look at, and whether it can be used."""

    name: str
    lines: list[str]
    samples: list[HumanSample]
    is_sound: bool


def sets_of(target: str, variables: Mapping[str, str]) -> list[SetSettings]:
    """Return the sets of a recipe or suite, by path or name, or those that a folder seems to hold.

    Raises ``SettingsError`` or ``InputError``.
    """
    if Path(target).is_dir():
        return guess_sets(Path(target))
    found = read_settings(target, _Sets, variables, only=READ)
    sets = [*found.human, *found.sets, *found.validation.sets]
    if not sets:
        raise InputError(f"{target}: has no sets of photos and masks; expected some under {', '.join(READ)}")
    return sets


def check_set(settings: SetSettings, photos: int, read_all: bool = False) -> Checked:
    """Open a set and read ``photos`` of its samples at equal distances, or all to find those that cannot be read."""
    name = name_of_set(settings)
    try:
        opened = layout_of(settings)
        with Stage(f"opening {name}"):
            lines = [f"{len(opened.keys):,} photos, the first is {opened.keys[0]}", *opened.findings]
    except SumError as error:
        return Checked(name, [f"cannot be used: {error}"], [], False)
    places = np.unique(np.linspace(0, len(opened.keys) - 1, min(photos, len(opened.keys))).round().astype(int))
    wanted = set(places.tolist())
    errors: list[str] = []
    samples: list[HumanSample] = []
    counts: Counter[str] = Counter()
    indices: Sequence[int] = range(len(opened.keys)) if read_all else sorted(wanted)
    for index in track(indices, f"reading {name}", "photo"):
        try:
            sample = opened.load(index)
            counts += _counted(sample)
            if index in wanted:
                samples.append(sample)
        except SumError as error:
            errors.append(str(error))
    lines.append(_in_words(counts, len(indices) - len(errors)))
    lines += [f"cannot be read: {error}" for error in errors[:SHOWN_ERRORS]]
    if len(errors) > SHOWN_ERRORS:
        lines.append(f"and {len(errors) - SHOWN_ERRORS:,} photos more cannot be read")
    return Checked(name, lines, samples, not errors)


def as_yaml(settings: SetSettings) -> str:
    """Return settings as a line of a recipe, without what is left at its default."""
    defaults = {**to_jsonable_python(AnySetSettings()), "foreground": "auto", "most_blank": 0.1}
    values: dict[str, Any] = to_jsonable_python(settings)
    shown = {
        key: value
        for key, value in values.items()
        if value not in (None, []) and (key not in defaults or value != defaults[key])
    }
    ordered = {key: shown[key] for key in sorted(shown, key=lambda key: key not in ("kind", "name"))}
    return yaml.safe_dump(ordered, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True).strip()


def _counted(sample: HumanSample) -> Counter[str]:
    """Count the masks of a sample, the empty and the full ones; a mask at a time is in memory."""
    areas = [float(sample.masks_at([number]).mean()) for number in range(sample.count)]
    return Counter(
        masks=len(areas),
        empty=sum(area == 0 for area in areas),
        full=sum(area == 1 for area in areas),
        millionths=round(1e6 * sum(areas)),
    )


def _in_words(counts: Counter[str], photos: int) -> str:
    share = counts["millionths"] / 1e6 / max(1, counts["masks"])
    return (
        f"{photos:,} photos were read, with {counts['masks']:,} masks: {counts['empty']:,} empty, {counts['full']:,} "
        f"full, {share:.0%} of the photo on average"
    )
