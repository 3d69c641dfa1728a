"""The plan of a run, which grows while photos are being listed: a unit is labelled as soon as its plan is written."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.progress import Stage
from sum_factory.shared.shards.dataset import Unit
from sum_factory.shared.store.storage import Storage

NAMES_SHOWN = 20
"""Photos that people are told of by name."""


@dataclass
class Plan:
    """The units that a shard set has, and gets while photos are being listed.

    ``moved`` are units whose photos lie elsewhere than their plans say, by number; ``gone`` the keys of photos that are
    not listed any more; ``restamped`` counts those that have another time stamp, ``first_restamped`` names one.
    ``listed`` counts all that were listed so far.
    """

    storage: Storage
    moved: dict[int, Unit] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    restamped: int = 0
    first_restamped: str = ""
    listed: int = 0
    is_whole: bool = False
    """Whether the listing has come to its end."""
    sizes: dict[int, int] = field(default_factory=dict)
    """How many photos each unit has, by its number."""
    _ready: deque[int] = field(default_factory=deque)
    _thread: threading.Thread | None = None
    _error: BaseException | None = None
    _closed: bool = False

    @property
    def planned(self) -> Collection[int]:
        """The numbers of the units that there are by now."""
        return range(len(self.sizes))

    def size_of(self, number: int) -> int:
        """Return how many photos a unit has."""
        return self.sizes[number]

    def numbers(self) -> Iterator[int | None]:
        """Yield the numbers of units as they can be labelled, and None while the next one is still to be planned.

        Raises what went wrong with the listing.
        """
        while True:
            was_last = self._thread is None or not self._thread.is_alive()
            while self._ready:
                yield self._ready.popleft()
            if not was_last:
                yield None
                continue
            if self._error is not None:
                raise self._error
            return

    def notes(self) -> Iterator[str]:
        """Yield what people should know of photos that are not what they were."""
        if self.gone:
            names = ", ".join(map(repr, self.gone[:NAMES_SHOWN])) + (", ..." if len(self.gone) > NAMES_SHOWN else "")
            yield f"{len(self.gone)} planned images are gone, or not in --images: {names}; their labels stay"
        if self.restamped:
            yield (
                f"{self.restamped} images have another time stamp than when they were planned, such as "
                f"{self.first_restamped}; labels stay those of what was read, and whoever reads a photo again is told "
                "if it is another"
            )

    def counted(self, photos: Iterable[PhotoFile]) -> Iterator[PhotoFile]:
        """Yield the photos of a listing, and count them."""
        for photo in photos:
            self.listed += 1
            yield photo

    def add(self, number: int, size: int) -> None:
        """Have a unit labelled."""
        self.sizes[number] = size
        self._ready.append(number)

    def add_listed(self, unit: Unit, written: Unit) -> None:
        """Have a unit labelled whose plan on disk is ``written``, its photos read from where the listing found them.

        That may be elsewhere: the URLs of a listing may have credentials, for example, and those of a plan have none.
        """
        if unit != written:
            self.moved[unit.number] = unit
        self.add(unit.number, len(unit.images))

    def listing_stage(self) -> Stage:
        """Return the progress of the listing, to be shown."""
        return Stage("listing images", unit="image", done=self.listed)

    def take(self, steps: Iterator[None], seconds: float) -> None:
        """Take steps of planning, as far as one gets in that time; the rest is left to a thread."""
        until = time.monotonic() + seconds
        with self.listing_stage() as stage:
            for _ in steps:
                stage.reach(self.listed)
                if time.monotonic() > until:
                    break
            else:
                return
        self._thread = threading.Thread(target=self._take_rest, args=(steps,), name="planning", daemon=True)
        self._thread.start()

    def _take_rest(self, steps: Iterator[None]) -> None:
        try:
            for _ in steps:
                if self._closed:
                    return
        except BaseException as error:  # for whoever asks for the next unit
            self._error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Plan no more; the same command goes on with it."""
        self._closed = True
        if self._thread is not None:
            self._thread.join()
