"""Say how a run is getting on, and at its end what it did."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from sum_factory.labelgen.job import Begun, Event, GivenUp, ImageDone, Lost, Notice, UnitReport
from sum_factory.shared.gpu.busy import Busy
from sum_factory.shared.progress import Stage

BEFORE_THE_FIRST = "no unit begun yet, the models are being loaded"
FIRST_PHOTOS = 32
"""If not one mask was kept on so many photos, people are told at once."""
NO_MASKS = (
    "the weights (--sam) may be untrained, damaged or of another model, or the thresholds (--pred-iou-thresh, "
    "--stability-score-thresh) too strict for them; of an import, the masks may all be smaller than SAM's cells"
)


@dataclass(frozen=True)
class RunSummary:
    """What a run did. Units that were there before it count in ``units_before`` alone.

    ``unknown`` counts masks without an uncertainty map, and is None if none were to be made. ``retries`` counts what
    was begun again because a worker died. ``given_up`` says why units were not made, ``stopped`` why the run ended
    before it had made all.
    """

    units: int
    units_before: int
    units_done: int
    images: int
    masks: int
    errors: tuple[str, ...]
    images_per_second: float
    unknown: int | None = None
    retries: int = 0
    given_up: tuple[str, ...] = ()
    stopped: str | None = None
    errors_before: int = 0
    """Images of ``units_before`` that could not be labelled then."""
    is_planned: bool = True
    """Whether all photos were listed: if not, there are more units than ``units``."""
    gpu_busy: float | None = None
    """Share of the time in which the workers' GPUs had work; None without any."""

    @property
    def is_whole(self) -> bool:
        """Whether every unit is made."""
        return self.is_planned and self.units_before + self.units_done == self.units

    @property
    def has_no_masks(self) -> bool:
        """Whether a run labelled all that is there, and kept not one mask."""
        return self.masks == 0 and self.units_before == 0 and self.images > len(self.errors)

    def lines(self) -> str:
        """Return the summary for people."""
        if self.units_done == 0 and self.is_whole:
            return f"{self.units_before} of {self.units} units present, nothing to do"
        before = f" ({self.units_before} were there before)" if self.units_before else ""
        unknown = "" if self.unknown is None else f" ({self.unknown} without an uncertainty map)"
        retries = f", {self.retries} retries" if self.retries else ""
        gpus = "" if self.gpu_busy is None else f", GPU busy {self.gpu_busy:.0%} of the time"
        lines = [
            f"{self.units_done} of {self.units} units labelled{before}: {self.images} images, {self.masks} masks"
            f"{unknown}, {len(self.errors)} errors, {self.images_per_second:.2f} images/s{gpus}{retries}"
        ]
        if self.has_no_masks:
            lines.append(f"NO MASK was kept on any of {self.images - len(self.errors)} photos: {NO_MASKS}")
        lines += [f"  {count} x {kind}" for kind, count in kinds_of(self.errors)]
        lines += self.given_up
        return "\n".join(lines)


def kinds_of(errors: Sequence[str]) -> list[tuple[str, int]]:
    """Count errors by kind, the most frequent first: what they say after the photo's name, without the particulars."""
    texts = (re.split(r" \(|[;,]", error.partition(": ")[2], maxsplit=1)[0] for error in errors)
    return Counter(re.sub(r"\d+", "N", text).strip() for text in texts).most_common()


@dataclass
class _Tally:
    images: int = 0
    masks: int = 0
    errors: int = 0

    def add(self, other: _Tally) -> None:
        self.images += other.images
        self.masks += other.masks
        self.errors += other.errors


@dataclass
class ProgressReporter:
    """Counts images, masks and errors, and tells of them as a ``Stage`` does. ``total`` images are to be done.

    What units report when they are done is added up for good. The progress of units in work only tells how far they
    are, and is forgotten if their worker dies.
    """

    total: int
    started: float = field(default_factory=time.monotonic)
    errors: list[str] = field(default_factory=list)
    _done: _Tally = field(default_factory=_Tally)
    _in_work: dict[int, tuple[int, _Tally]] = field(default_factory=dict)
    _settled: set[int] = field(default_factory=set)
    _unknown: int = 0
    _gpus: Busy = field(default_factory=Busy)
    _retries: int = 0
    _given_up: list[str] = field(default_factory=list)
    _has_begun: bool = False
    _has_noted: bool = False
    _is_warned: bool = False

    def __post_init__(self) -> None:
        self._stage = Stage("labelling", self.total, "image", note=BEFORE_THE_FIRST if self.total else "")

    def __enter__(self) -> Self:
        self._stage.__enter__()
        return self

    def take(self, event: Event) -> None:
        """Count what happened, and say so where people should know."""
        match event:
            case Begun():
                self._has_begun = True
            case ImageDone():
                self._count(event)
            case UnitReport():
                self._in_work.pop(event.unit, None)
                self._settled.add(event.unit)
                self._done.add(_Tally(event.images, event.masks, len(event.errors)))
                self.errors += event.errors
                self._unknown += event.unknown
                self._gpus += Busy(*(event.gpu or (0.0, 0.0)))
            case Lost():
                self._retries += 1
                self._in_work.pop(event.unit, None)
                self._stage.speaker.say(_describe(event))
            case GivenUp():
                self._given_up.append(f"unit {event.unit:06d} was given up: {event.why}")
            case Notice():
                self._stage.speaker.say(event.text)
        now = self._now()
        if now.masks == 0 and now.images - now.errors >= FIRST_PHOTOS and not self._is_warned:
            self._is_warned = True
            self._stage.speaker.say(f"NO MASK was kept on the first {now.images - now.errors} photos: {NO_MASKS}")
        self._stage.reach(now.images, f"{now.masks} masks, {now.errors} errors" if self._has_begun else None)

    def _count(self, event: ImageDone) -> None:
        if event.error is not None:
            self._stage.speaker.say(f"skipped: {event.error}")
        if event.note is not None and not self._has_noted:
            self._stage.speaker.say(event.note)
            self._has_noted = True
        attempt, tally = self._in_work.get(event.unit, (0, _Tally()))
        if event.unit in self._settled or event.attempt < attempt:  # told late: it is counted, or was in vain
            return
        if event.attempt > attempt:
            tally = _Tally()
        tally.add(_Tally(1, event.masks, event.error is not None))
        self._in_work[event.unit] = (event.attempt, tally)

    def _now(self) -> _Tally:
        now = _Tally()
        for tally in (self._done, *(tally for _, tally in self._in_work.values())):
            now.add(tally)
        return now

    def expect(self, total: int) -> None:
        """Have ``total`` images be done: more of them have been planned."""
        self.total = self._stage.total = total

    def summary(
        self, units: int, units_before: int, stopped: str | None, with_maps: bool, is_planned: bool = True
    ) -> RunSummary:
        """Return what was done. ``stopped`` says why the run was asked to end, which counts if not all is done."""
        summary = RunSummary(
            units=units,
            units_before=units_before,
            units_done=len(self._settled),
            images=self._done.images,
            masks=self._done.masks,
            errors=tuple(self.errors),
            images_per_second=self._done.images / max(1e-9, time.monotonic() - self.started),
            unknown=self._unknown if with_maps else None,
            retries=self._retries,
            given_up=tuple(self._given_up),
            stopped=stopped,
            is_planned=is_planned,
            gpu_busy=self._gpus.share if self._gpus.seconds else None,
        )
        return replace(summary, stopped=None) if summary.is_whole else summary

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stage.__exit__(kind, error, traceback)


def _describe(lost: Lost) -> str:
    what = f"{lost.probed} images of unit {lost.unit:06d}" if lost.probed else f"unit {lost.unit:06d}"
    left_out = "" if lost.left_out is None else f"; its image {lost.left_out} is left out from now on"
    return f"lost: the worker at {what}, attempt {lost.attempt} ({lost.worker}: {lost.why}){left_out}"
