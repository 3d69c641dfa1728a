"""Whether masks fit their photos: sizes that are equal or nearly so, and photos that are turned by EXIF.

Some tools draw masks on a photo as it is stored, others on what a viewer shows. The size of the mask tells which, but
where both sizes are the same; there the other photos of the set tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import eq
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from sum_factory.shared.annotations.segmentations import TOLERANCE
from sum_factory.shared.errors import InputError
from sum_factory.shared.images import RgbImage
from sum_factory.trainer.data.human.headers import Header, Size
from sum_factory.trainer.data.human.problems import Problems

Orientation = Literal["auto", "applied", "ignored"]
OTHER_SIZE = "have another size than their photos"
UNTOLD_TURN = "are of photos that EXIF turns, and nothing tells whether they were drawn on the turned photo"


@dataclass(frozen=True, slots=True)
class Fit:
    """How a photo is brought to its masks: whether it stays as it is stored, and whether the masks are resized."""

    as_stored: bool = False
    is_resized: bool = False


@dataclass(frozen=True)
class ToFit:
    """A photo's header, the size that its masks were drawn at, and what to call both in a message."""

    header: Header
    drawn: Size | None
    photo: str
    masks: str


def nearly(size: Size, other: Size) -> bool:
    """Whether a size differs from ``other`` by 2 % of it at most, in width and in height."""
    return all(abs(a - b) <= TOLERANCE * b for a, b in zip(size, other, strict=True))


def require_fitting(mask: npt.NDArray[Any], image: RgbImage, path: Path) -> None:
    """Raise ``InputError`` for a mask, (h, w), that does not fit its photo, (H, W, 3), as it did when it was opened."""
    (height, width), (tall, wide) = mask.shape, image.shape[:2]
    if not nearly((width, height), (wide, tall)):
        raise InputError(
            f"{path}: {width} x {height}, but its photo is {wide} x {tall}; it has changed since its set was opened"
        )


def fit_all(cases: Sequence[ToFit], orientation: Orientation, problems: Problems) -> tuple[list[Fit | None], list[str]]:
    """Return for each photo how it fits its masks, None for those that do not, and what to say of all.

    Those that do not fit are counted as ``problems``.
    """
    turns = [_turn(case, orientation) for case in cases]
    decided = {turn for case, turn in zip(cases, turns, strict=True) if case.header.orientation != 1} - {
        "untold",
        "none",
    }
    usual = decided.pop() if len(decided) == 1 else None
    fits: list[Fit | None] = []
    said: Counter[str] = Counter()
    for case, turn in zip(cases, turns, strict=True):
        if turn == "untold":
            turn = usual or turn
        size = case.header.size if turn == "ignored" else case.header.upright
        if turn == "none":
            drawn = case.drawn or size
            problems.add(OTHER_SIZE, f"{case.photo}: {size[0]} x {size[1]}, but {case.masks} {drawn[0]} x {drawn[1]}")
            fits.append(None)
        elif turn == "untold":
            what = f"{case.photo}, orientation {case.header.orientation}; say `orientation: applied` or `ignored`"
            problems.add(UNTOLD_TURN, what)
            fits.append(None)
        else:
            fit = Fit(turn == "ignored" and case.header.orientation != 1, case.drawn is not None and case.drawn != size)
            fits.append(fit)
            said["as_stored"] += fit.as_stored
            said["resized"] += fit.is_resized
            said["turned"] += turn == "applied" and case.header.orientation != 1
    lines = {
        "turned": "{:,} photos are turned by EXIF, and their masks were drawn on them so",
        "as_stored": "{:,} photos are left as they are stored, not turned by EXIF: their masks were drawn on them so",
        "resized": "the masks of {:,} photos differ from them in size, by 2 % at most, and are resized",
    }
    return fits, [text.format(said[name]) for name, text in lines.items() if said[name]]


def _turn(case: ToFit, orientation: Orientation) -> Literal["applied", "ignored", "none", "untold"]:
    """Return whether masks were drawn on the turned photo; "none" if they fit neither, "untold" if both."""
    header, drawn = case.header, case.drawn
    if header.orientation == 1:
        return "applied" if drawn is None or nearly(drawn, header.size) else "none"
    if orientation != "auto":
        size = header.upright if orientation == "applied" else header.size
        return orientation if drawn is None or nearly(drawn, size) else "none"
    if drawn is None:
        return "untold"
    for fits in (eq, nearly):
        turned, stored = fits(drawn, header.upright), fits(drawn, header.size)
        if turned != stored:
            return "applied" if turned else "ignored"
        if turned:
            return "untold"
    return "none"
