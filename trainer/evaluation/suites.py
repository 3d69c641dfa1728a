"""A suite: the sets of human masks that a model is judged on, as a YAML file describes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pydantic.dataclasses import dataclass

from sum_factory.trainer.data.sets import STRICT, SetSettings
from sum_factory.trainer.settings import read_settings


@dataclass(frozen=True, config=STRICT)
class Suite:
    """Sets with a name each. The mean over all of them counts every set once, however many its task has."""

    sets: tuple[SetSettings, ...]
    """Sets of photos with human masks, of which each needs a name of its own."""

    def __post_init__(self) -> None:
        if not self.sets:
            raise ValueError("sets: expected one set at least, found none")
        for place, settings in enumerate(self.sets):
            if not settings.name.strip():
                raise ValueError(f"sets.{place}.name: expected a name for the report, found {settings.name!r}")
        name, uses = Counter(settings.name for settings in self.sets).most_common(1)[0]
        if uses > 1:
            raise ValueError(f"sets: expected a name of its own for each set, found {name!r} {uses} times")


def read_suite(path_or_name: str | Path, variables: Mapping[str, str]) -> Suite:
    """Read a suite from a YAML file, or the built-in one of that name. Raises ``SettingsError``."""
    return read_settings(path_or_name, Suite, variables)
