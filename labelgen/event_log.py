"""Everything that happens in a run, one JSON object per line, for machines to read (``--log``)."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sum_factory.labelgen.job import Begun, Event, GivenUp, ImageDone, Lost, Notice, UnitReport, WeightsRead
from sum_factory.shared.credentials import concealed
from sum_factory.shared.errors import SettingsError
from sum_factory.shared.store.local_files import open_lines
from sum_factory.shared.store.refusals import reason_of

NAMES: dict[type, str] = {
    WeightsRead: "weights read",
    Begun: "unit begun",
    ImageDone: "image failed",
    UnitReport: "unit done",
    Lost: "worker lost",
    GivenUp: "unit given up",
    Notice: "notice",
}
"""What each event is called. Of images, only those that fail are told of."""


class EventLog:
    """Writes lines to ``file`` at ``path``, or nowhere if there is none. Raises ``SettingsError`` if it cannot."""

    def __init__(self, file: io.RawIOBase | None = None, path: str = "") -> None:
        self.file, self.path = file, path

    def tell(self, event: str, **values: Any) -> None:
        """Write one line: the time in UTC, the name of the event, and what belongs to it."""
        if self.file is not None:
            line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **values}
            try:
                self.file.write(f"{concealed(json.dumps(line))}\n".encode())
            except OSError as error:
                raise _not_written(self.path, error) from error

    def take(self, event: Event) -> None:
        """Write what happened, unless it is that an image was labelled; what is noted of one, too."""
        if isinstance(event, ImageDone) and event.note is not None:
            self.tell(NAMES[Notice], text=event.note)
        if not isinstance(event, ImageDone) or event.error is not None:
            self.tell(NAMES[type(event)], **asdict(event))


@contextmanager
def open_log(path: str | None) -> Iterator[EventLog]:
    """Append to the log at ``path``; None logs nowhere. Raises ``SettingsError`` if it cannot be written."""
    if path is None:
        yield EventLog()
        return
    try:
        file = open_lines(Path(path))
    except OSError as error:
        raise _not_written(path, error) from error
    with file:
        yield EventLog(file, path)


def _not_written(path: str, error: OSError) -> SettingsError:
    return SettingsError(f"{path}: cannot be written ({reason_of(error)}); give --log another path")
