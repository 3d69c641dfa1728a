"""Which run of a tracker a folder's run is, so that it goes on there: ``tracker.json``."""

from __future__ import annotations

import json
from pathlib import Path

from sum_factory.shared.errors import SettingsError
from sum_factory.shared.store.canonical_json import to_json
from sum_factory.shared.store.storage import Storage

FILE = "tracker.json"


def known_id(out: Path, tracker: str) -> str | None:
    """Return the id of the run in ``out`` in a tracker; None if it was never there. Raises ``SettingsError``."""
    found = _read(out).get(tracker)
    if found is not None and not isinstance(found, str):
        raise SettingsError(f"{out / FILE}: damaged: {tracker} has no id; delete it to begin a new run in {tracker}")
    return found


def keep_id(out: Path, tracker: str, id: str) -> None:
    """Record the id of the run in ``out`` in a tracker, beside those in others."""
    Storage(str(out)).write(FILE, to_json({**_read(out), tracker: id}))


def _read(out: Path) -> dict[str, object]:
    if not (out / FILE).exists():
        return {}
    try:
        found = json.loads((out / FILE).read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SettingsError(f"{out / FILE}: damaged: no JSON object; delete it to begin a new run in the tracker")
    return found
