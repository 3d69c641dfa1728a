"""`trainer data check`: what the sets of a recipe, a suite or a folder hold, and what is wrong with them.

A public set is also compared with what is published of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from pydantic_core import to_jsonable_python

from sum_factory.shared.errors import InputError, SumError
from sum_factory.shared.progress import Stage, track
from sum_factory.trainer.data.guess import guess_sets
from sum_factory.trainer.data.human import HumanSample
from sum_factory.trainer.data.human.problems import MISSING
from sum_factory.trainer.data.public import PublicSet, public_set, public_sets
from sum_factory.trainer.data.sets import AnySetSettings, PublicSettings, SetSettings, layout_of, name_of_set, place_of
from sum_factory.trainer.settings import SUFFIXES, built_in_names, read_settings

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
    """What was found of a set: ``lines`` for people, samples to look at, whether it can be used, and whether its counts
    are those that are published, if it is a public one."""

    name: str
    lines: list[str]
    samples: list[HumanSample]
    is_sound: bool
    is_as_published: bool = True


def sets_of(target: str, variables: Mapping[str, str], root: Path | None = None) -> list[SetSettings]:
    """Return the sets of a recipe or suite, by path or name, those that a folder seems to hold, or with ``root`` the
    public set of this name.

    Raises ``SettingsError`` or ``InputError``.
    """
    if root is not None:
        return [_public(target, root)]
    if target in public_sets():
        raise InputError(f"{target}: a public set; say where it lies with --root")
    if Path(target).is_dir():
        return guess_sets(Path(target))
    found = read_settings(target, _Sets, variables, only=READ)
    sets = [*found.human, *found.sets, *found.validation.sets]
    if not sets:
        raise InputError(f"{target}: has no sets of photos and masks; expected some under {', '.join(READ)}")
    return sets


def public_sets_of(target: str) -> list[PublicSet]:
    """Return the public set of a name, or those that a recipe or suite names, each once.

    Raises ``SettingsError``, or ``InputError`` if there are none.
    """
    if target in public_sets():
        return [public_set(target)]
    is_file = target in built_in_names() or Path(target).suffix in SUFFIXES
    if not is_file:
        _public(target, Path())  # which suggests another
    sets = [each for each in sets_of(target, _Anything()) if isinstance(each, PublicSettings)]
    if not sets:
        raise InputError(f"{target}: names no public set; `trainer data list` names all")
    return list({each.set: each.published for each in sets}.values())


class _Anything(dict[str, str]):
    """Variables of a recipe whose paths do not matter."""

    def get(self, key: str, default: object = None) -> str:
        return key


def _public(name: str, root: Path) -> SetSettings:
    try:
        return PublicSettings(public_set(name).name, root)
    except ValueError as error:
        raise InputError(str(error)) from error


def check_set(settings: SetSettings, photos: int, read_all: bool = False, is_subset: bool = False) -> Checked:
    """Open a set and read ``photos`` of its samples at equal distances, or all to find those that cannot be read.

    With ``is_subset`` a public set may have fewer photos and masks than are published.
    """
    name = name_of_set(settings)
    try:
        opened = layout_of(settings)
        with Stage(f"opening {name}"):
            findings = opened.findings
            lines = [f"{len(opened.keys):,} photos, the first is {opened.keys[0]}", *place_of(settings), *findings]
    except SumError as error:
        return Checked(name, [f"cannot be used: {error}"], [], False)
    indexes = np.unique(np.linspace(0, len(opened.keys) - 1, min(photos, len(opened.keys))).round().astype(int))
    wanted = set(indexes.tolist())
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
    found = Checked(name, lines, samples, not errors)
    if isinstance(settings, PublicSettings):
        masks = counts["masks"] if read_all and not errors else opened.mask_count
        lacks_photos = any(MISSING in finding for finding in findings)
        compare(found, settings, len(opened.keys), masks, lacks_photos, is_subset)
    return found


def compare(
    found: Checked, settings: PublicSettings, photos: int, masks: int | None, lacks_photos: bool, is_subset: bool
) -> None:
    """Say in ``found`` how the photos and masks of a public set compare with those that are published."""
    if settings.limit is not None or settings.match is not None or settings.list is not None:
        found.lines.append("not compared with what is published, as only some photos are taken")
        return
    published = settings.published
    told = [
        _compared("photos", photos, published.photos, published, published.blank_photos),
        _compared("masks", masks, published.masks, published, False),
    ]
    found.lines += [words for words, _ in told]
    if lacks_photos and published.blank_photos:
        told.append(("", Verdict.FEWER))
    verdicts = {verdict for _, verdict in told}
    allowed = {Verdict.SAME, Verdict.UNKNOWN} | ({Verdict.FEWER} if is_subset else set())
    found.is_as_published = verdicts <= allowed
    if not found.is_as_published:
        hint = "; if that is meant, give --subset" if Verdict.MORE not in verdicts else ""
        found.lines.append(f"verdict: not what is published{hint}")
    elif Verdict.FEWER in verdicts:
        found.lines.append("verdict: a part of what is published")
    else:
        known = "what is published" if Verdict.SAME in verdicts else "readable; there is no count to compare with"
        found.lines.append(f"verdict: {known}")


class Verdict(Enum):
    """How a count compares with the published one."""

    SAME = "same"
    FEWER = "fewer"
    MORE = "more"
    UNKNOWN = "unknown"


def _compared(
    what: Literal["photos", "masks"], count: int | None, number: int | None, published: PublicSet, may_be_fewer: bool
) -> tuple[str, Verdict]:
    """Return in words how a count compares with the published ``number``, and the verdict."""
    if number is None:
        return f"{what}: no published number is known", Verdict.UNKNOWN
    if count is None:
        return f"{what}: {number:,} are published; --all counts what is here", Verdict.UNKNOWN
    if what in published.not_checked and count != number:
        return f"{what}: {count:,}; {number:,} may be published, which was not checked", Verdict.UNKNOWN
    if count > number:
        return f"{what}: {count:,}, more than the {number:,} that are published", Verdict.MORE
    if count == number:
        return f"{what}: {count:,}, as published", Verdict.SAME
    if may_be_fewer:
        return f"{what}: {count:,} of {number:,} that are published: those without a mask are left out", Verdict.SAME
    if number - count <= published.unusable:
        return f"{what}: {count:,} of {number:,} that are published: the others are known to be unusable", Verdict.SAME
    return f"{what}: {count:,} of {number:,} that are published: {number - count:,} are missing", Verdict.FEWER


def as_yaml(settings: SetSettings) -> str:
    """Return settings as a line of a recipe, without what is left at its default."""
    if isinstance(settings, PublicSettings):
        shown = {"set": settings.set, "root": str(settings.root)}
        return yaml.safe_dump(shown, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True).strip()
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
