"""What a listing has passed over, so that people can be told."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

from sum_factory.shared.names import printable

KINDS_TOLD, KINDS_COUNTED = 8, 1000
LONGEST_SUFFIX = 12
"""Characters of a suffix, its dot included, at most: a longer end of a name is not taken for a suffix."""
WITHOUT_SUFFIX, OTHERS = "without a suffix", "others"


class PassedOver:
    """Counts what is no photo, by kind of file, and what might be one and is not taken, by reason.

    May be used by several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds: Counter[str] = Counter()
        self._reasons: dict[str, list[str | int]] = {}

    def clear(self) -> None:
        """Forget all: another listing begins."""
        with self._lock:
            self._kinds.clear()
            self._reasons.clear()

    def file(self, name: str) -> None:
        """Count a file whose name is not that of a photo."""
        suffix = PurePosixPath(name).suffix.lower()
        kind = printable(suffix) if 1 < len(suffix) <= LONGEST_SUFFIX else WITHOUT_SUFFIX
        with self._lock:
            known = kind in self._kinds or len(self._kinds) < KINDS_COUNTED
            self._kinds[kind if known else OTHERS] += 1

    def one(self, why: str, name: str) -> None:
        """Count a file that has the name of a photo or of an archive, and is not taken.

        ``why`` is what a note says of such files, in the plural: "are encrypted in a zip".
        """
        with self._lock:
            told = self._reasons.setdefault(why, [0, printable(name)])
            told[0] = int(told[0]) + 1

    def notes(self) -> Iterator[str]:
        """Yield a line of what is no photo, and one of each other reason."""
        with self._lock:
            kinds = sorted(self._kinds.items(), key=lambda kind: (-kind[1], kind[0]))
            reasons = {why: tuple(told) for why, told in self._reasons.items()}
        if kinds:
            shown = [f"{count} {kind}" for kind, count in kinds[:KINDS_TOLD]]
            rest = sum(count for _, count in kinds[KINDS_TOLD:])
            shown += [f"{rest} of other kinds"] if rest else []
            yield f"{sum(count for _, count in kinds)} files were passed over, being no photos: {', '.join(shown)}"
        for why, (count, first) in reasons.items():
            yield f"passed over: {count} {why}, such as {first}"
