"""Tell a photo that is gone from a place that is gone: a disk that is not mounted, a folder that was moved, a bucket
that is not there, a store that is down. The first is the photo's own fault, and is recorded. The second says nothing of
any photo: it is waited for, and if it lasts the run ends and its unit is not committed.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from sum_factory.labelgen.settings import WAIT_SECONDS, Missing
from sum_factory.shared.deadlines import LIST_SECONDS, within
from sum_factory.shared.errors import InputError, UnreachableError
from sum_factory.shared.images import IMAGE_SUFFIXES
from sum_factory.shared.photo_files import PhotoFile, is_readable
from sum_factory.shared.places import is_local, parent_of, store_of
from sum_factory.shared.progress import SPEAKER
from sum_factory.shared.shortages import is_shortage

LONGEST_PAUSE = 60.0
FIRST_PAUSE = 1.0
STOP_SECONDS = 0.2
"""How often it is looked, while waiting, whether the run is to stop."""
NEIGHBOURS = 4
"""Photos beside one that cannot be read that are tried before it is told whose fault that is."""
FAILURES_OF_ONE = 3
"""So often a store or disk may fail on one photo while it gives others, before that is the photo's own fault."""


@dataclass
class Outages:
    """Reads photos, and waits up to ``seconds`` in all wherever their place is gone.

    With ``missing`` "record", a photo that is gone counts as its own fault, whatever is beside it. ``is_stopping``
    ends the waiting at once; ``say`` is told of it, and ``on_look`` is called again and again while it lasts. May be
    used by several threads: one of them waits and tells, the others wait for it.
    """

    seconds: float = WAIT_SECONDS
    missing: Missing = "wait"
    is_stopping: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = SPEAKER.say
    on_look: Callable[[], object] = lambda: None
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _has_given_up: bool = False
    """Whether it was waited in vain: whoever reads next does not wait again, and the run comes to its end."""

    def read(self, photo: PhotoFile, neighbours: Sequence[PhotoFile], read: Callable[[], bytes]) -> bytes:
        """Return what ``read`` gives of a photo. ``neighbours`` are the photos of its unit, in their order.

        Raises as ``read`` for what is the photo's own fault, and ``UnreachableError`` if its place stays away longer
        than is waited for.
        """
        made = self._tried(photo, neighbours, read, 0)
        if isinstance(made, bytes):
            return made
        with self._turn:
            for failures, (pause, left) in enumerate(_pauses(0.0 if self._has_given_up else self.seconds), 1):
                made = self._tried(photo, neighbours, read, failures)
                if isinstance(made, bytes):
                    return made
                if left <= 0 or not self._wait(made, pause, left):
                    self._has_given_up = True
                    raise UnreachableError(_told(made, self.seconds)) from made
        raise AssertionError("the last pause has no time left")

    def _tried(
        self, photo: PhotoFile, neighbours: Sequence[PhotoFile], read: Callable[[], bytes], failures: int
    ) -> bytes | InputError | UnreachableError:
        """Return what ``read`` gives, or why it gives nothing if that is not the photo's own fault."""
        try:
            return read()
        except (InputError, UnreachableError) as error:
            if not self._is_own_fault(error, photo, neighbours, failures):
                return error
            return _once_more(error, read)

    def _is_own_fault(self, error: Exception, photo: PhotoFile, neighbours: Sequence[PhotoFile], failures: int) -> bool:
        """Whether it is this photo alone that cannot be read: others beside it can, and what it lay in is there."""
        if is_shortage(error):
            return False
        if isinstance(error, UnreachableError):
            return failures >= FAILURES_OF_ONE and _is_place_there(photo, neighbours)
        return self.missing == "record" or _is_place_there(photo, neighbours)

    def _wait(self, error: Exception, pause: float, left: float) -> bool:
        """Wait for a while, and say so; return False if the run is to stop."""
        self.say(f"{error}; neither can what is beside it: waiting {pause:.0f} s, {left:.0f} s at most")
        until = time.monotonic() + pause
        while time.monotonic() < until:
            self.on_look()
            if self.is_stopping():
                return False
            time.sleep(min(STOP_SECONDS, pause))
        return True


def _once_more(error: InputError | UnreachableError, read: Callable[[], bytes]) -> bytes | UnreachableError:
    """Return what ``read`` gives now: the place of a photo may have come back before it was looked for.

    Raises what it is this time as the photo's own fault, unless only now its place is gone.
    """
    try:
        return read()
    except UnreachableError as again:
        if isinstance(error, InputError):
            return again
        raise _as_own(again) from error
    except InputError as again:
        raise again from error


def _pauses(seconds: float) -> Iterator[tuple[float, float]]:
    """Yield pauses that grow, each with the time that is left for it and those after it; at last one without any."""
    pause, left = FIRST_PAUSE, seconds
    while left > 0:
        now = min(pause, left)
        yield now, left
        left, pause = left - now, min(2 * pause, LONGEST_PAUSE)
    yield 0.0, 0.0


def _is_place_there(photo: PhotoFile, neighbours: Sequence[PhotoFile]) -> bool:
    """Whether what a photo lies in is there and gives photos: its tar or, for a file, the folder beside it.

    Photos of other folders tell nothing, as each may be on a disk of its own. Only in a store, where there are no
    folders, do they count for a photo that is alone in its own.
    """
    if photo.member:
        return is_readable(PhotoFile("", photo.url))
    beside = [other for other in neighbours if _folder_of(other) == _folder_of(photo)]
    if is_local(photo.url):
        return any(map(is_readable, _nearest(photo, beside))) or _holds_others(photo)
    return any(map(is_readable, _nearest(photo, beside) or _nearest(photo, neighbours)))


def _nearest(photo: PhotoFile, neighbours: Sequence[PhotoFile]) -> list[PhotoFile]:
    """Return the photos of other files next to one in the order of the plan, the nearest first."""
    at = next((index for index, other in enumerate(neighbours) if other.key == photo.key), 0)
    others = [(abs(index - at), other) for index, other in enumerate(neighbours) if other.url != photo.url]
    return [other for _, other in sorted(others, key=lambda pair: pair[0])[:NEIGHBOURS]]


def _holds_others(photo: PhotoFile) -> bool:
    """Whether the folder of a photo on a disk holds others that can be read; an unmounted one may hold other files."""
    own = os.path.basename(photo.url)

    def names() -> list[str]:
        with os.scandir(_folder_of(photo)) as entries:
            return [entry.path for entry in entries if entry.name != own and _is_photo(entry.name)]

    try:
        return any(is_readable(PhotoFile("", path)) for path in within(LIST_SECONDS, store_of(photo.url), names))
    except OSError:
        return False


def _is_photo(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _folder_of(photo: PhotoFile) -> str:
    return parent_of(photo.url.removeprefix("file://")) or "/"


def _as_own(error: InputError | UnreachableError) -> InputError:
    return error if isinstance(error, InputError) else InputError(str(error))


def _told(error: Exception, seconds: float) -> str:
    return (
        f"{error}; nor, from {socket.gethostname()}, can what is beside it: its disk, folder or store is not there. It "
        f"was waited for, {seconds:.0f} s at most, and its unit was not made. Bring it back and give the same command "
        "again; if these photos are gone for good, --missing-photos record has them recorded as such"
    )
