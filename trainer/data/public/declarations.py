"""The declarations of public sets, as their YAML files have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, NonNegativeInt, PositiveInt, TypeAdapter
from pydantic.dataclasses import dataclass

Task = Literal["unspecified", "salient", "entity", "part"]
Fact = Literal["photos", "masks", "licence", "source", "unpack", "values"]
PACKAGE = "sum_factory.trainer.data.public"
FILES = ("salient", "entity", "part", "further", "formats")
"""The YAML files of the package, in the order in which their sets are told of."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PublicSet:
    """What is known of a split of a public set."""

    name: str
    """What recipes and commands call it."""
    title: str
    """Name of the set in reports."""
    task: Task
    """What the masks are of."""
    split: str
    """Which of the published splits it is, in their own words."""
    source: str
    """Where it is published, and under which name."""
    unpack: str
    """What to unpack where: a tree, below the folder that is given as root."""
    layouts: tuple[dict[str, Any], ...]
    """The layouts in which it is about, the first that is there is read: the keys of a set in a recipe, but name and
    task. Paths are relative to the folder that holds them. ``needs`` are further paths that tell a layout."""
    licence: str = "not known"
    """On which terms it may be used."""
    photos: PositiveInt | None = None
    """How many photos are published, None where that is not known."""
    masks: PositiveInt | None = None
    """How many masks are published, None where that is not known."""
    unusable: NonNegativeInt = 0
    """How many of the published photos, or masks, are known to be unusable, at most."""
    blank_photos: bool = False
    """Whether some of the published photos have no mask: these are not in the set."""
    folder: str = ""
    """Name of the folder for what the archives hold, if they bring none of their own that tells."""
    not_checked: tuple[Fact, ...] = ()
    """What of this was written from memory, and compared with nothing."""
    notes: tuple[str, ...] = field(default=())
    """What a user should know."""

    @property
    def readers(self) -> list[str]:
        """The readers that its layouts are for."""
        return list(dict.fromkeys(str(each["kind"]) for layout in self.layouts for each in members_of(layout)))


def members_of(layout: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the layouts that a layout joins, or itself."""
    return tuple(layout["sets"]) if "sets" in layout else (layout,)


@cache
def public_sets() -> Mapping[str, PublicSet]:
    """Return all public sets by name, in the order of their files."""
    adapter = TypeAdapter(dict[str, PublicSet])
    found: dict[str, PublicSet] = {}
    for name in FILES:
        content = yaml.safe_load((files(PACKAGE) / f"{name}.yaml").read_text("utf-8"))
        own = {key: {"name": key, **each} for key, each in content.items() if not key.startswith(".")}
        found |= adapter.validate_python(own)
    return found


def public_set(name: str) -> PublicSet:
    """Return the public set of a name. Raises ``ValueError`` that suggests another."""
    known = public_sets()
    if name not in known:
        close = get_close_matches(name, list(known), n=1)
        hint = f"did you mean {close[0]}?" if close else "`trainer data list` names all"
        raise ValueError(f"set: no public set of the name {name!r}; {hint}")
    return known[name]
