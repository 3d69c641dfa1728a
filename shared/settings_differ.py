"""Refuse what was made with other settings than those that are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sum_factory.shared.errors import SettingsDifferError

REMEDY_FOR_SETTINGS = "Give the settings of the existing shard set, or another --shards folder."


def require_same(
    kind: str,
    place: str,
    stored: Mapping[str, Any],
    wanted: Mapping[str, Any],
    remedy: str = REMEDY_FOR_SETTINGS,
    wanted_by: str = "asked for",
) -> None:
    """Raise ``SettingsDifferError``, naming every setting in which ``wanted`` differs from what is ``stored``."""
    differences = [
        f"  {key}: there {stored.get(key, '(not set)')}, {wanted_by} {wanted.get(key, '(not set)')}"
        for key in sorted({*stored, *wanted})
        if stored.get(key) != wanted.get(key)
    ]
    if differences:
        raise SettingsDifferError(f"{place}: was made with other {kind}:\n" + "\n".join(differences) + f"\n{remedy}")
