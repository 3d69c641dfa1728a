"""Segmentations of COCO, checked many at a time before any is decoded.

pycocotools trusts what it is given: an RLE that is shorter than its image decodes to memory that nobody wrote, and a
coordinate that is no number or is huge ends the process. So all are checked when a file is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from sum_factory.shared.errors import InputError
from sum_factory.shared.images import MAX_PIXELS

TOLERANCE = 0.02
"""Largest difference of width and of height between a mask and its photo, as a share of the photo's."""
SOUND = ""
MISSING = "have no segmentation"
NO_FORM = "have a segmentation that is neither polygons nor RLE"
NOT_NUMBERS = "have coordinates that are no finite numbers"
ODD = "have an odd number of coordinates"
FEW_POINTS = "have polygons of fewer than three points"
FAR_OUTSIDE = "have coordinates far outside their photos"
OUTSIDE = "lie outside their photos"
RLE_SIZE = "have an RLE of no size, or of another than their photos"
RLE_COUNTS = "have an RLE whose counts are no whole numbers from 0 on"
RLE_LENGTH = "have an RLE that is shorter or longer than its size"
LARGEST_SHARE = 2.0
"""Coordinates of a file are shares of the photo if none is larger: some lie a little outside."""
LEAST_AREA = 1e-6
"""Square pixels: a polygon of less lies on a line."""
CHECKED_AT_ONCE = 20_000
"""Annotations that are checked at once: more would take more memory."""
Kinds = npt.NDArray[np.object_]


@dataclass
class Checked:
    """What is wrong with each segmentation, "" if nothing is; of the others how many cover nothing, how many are
    polygons, and the places of those polygons that end beyond their photo by more than sizes may differ."""

    kinds: list[str] = field(default_factory=list)
    empty: int = 0
    outlines: int = 0
    beyond: list[int] = field(default_factory=list)
    reach: float = 0.0
    """How far these polygons reach at most, from the top left, as a share of the width or of the height."""
    largest: float = -1.0
    """The largest coordinate of all polygons."""

    @property
    def are_shares(self) -> bool:
        """Whether all polygons look as if their coordinates were shares of the photo."""
        return 0 <= self.largest <= LARGEST_SHARE


def check_segmentations(segmentations: Sequence[Any], sizes: npt.NDArray[np.int64]) -> Checked:
    """Check segmentations of photos of ``sizes``, int64 (N, 2): height and width."""
    checked = Checked()
    for start in range(0, len(segmentations), CHECKED_AT_ONCE):
        _check_some(segmentations[start : start + CHECKED_AT_ONCE], sizes[start : start + CHECKED_AT_ONCE], checked)
    return checked


def drawable(polygons: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Return the polygons of three points and more: the others cover nothing."""
    return [polygon for polygon in polygons if len(polygon) >= 6]


def draw(segmentation: Any, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Return the mask of a segmentation that was found to be sound: of polygons bool (height, width), of an RLE of its
    own size. Raises ``InputError`` if pycocotools cannot read it."""
    try:
        if isinstance(segmentation, list):
            rle = coco_mask.merge(coco_mask.frPyObjects(drawable(segmentation), height, width))
        elif isinstance(segmentation["counts"], list):
            rle = coco_mask.frPyObjects(segmentation, *segmentation["size"])
        else:
            rle = segmentation
        return np.asarray(coco_mask.decode(rle)).astype(np.bool_)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise InputError(f"does not decode ({error})") from error


def _check_some(segmentations: Sequence[Any], sizes: npt.NDArray[np.int64], checked: Checked) -> None:
    """Add what some segmentations are to what those before them are."""
    kinds = np.full(len(segmentations), SOUND, object)
    polygons, lists, texts = [], [], []
    for place, segmentation in enumerate(segmentations):
        if type(segmentation) is list and segmentation:
            polygons.append(place)
        elif type(segmentation) is dict and "counts" in segmentation:
            counts = segmentation["counts"]
            if type(counts) is list:
                lists.append(place)
            elif isinstance(counts, str):
                texts.append(place)
            else:
                kinds[place] = NO_FORM
        else:
            kinds[place] = NO_FORM if segmentation else MISSING
    _check_polygons(segmentations, polygons, sizes, kinds, checked)
    checked.empty += _check_rle(segmentations, lists, sizes, kinds, _sums_of_lists)
    checked.empty += _check_rle(segmentations, texts, sizes, kinds, _sums_of_texts)
    checked.kinds += kinds.tolist()


def _check_polygons(
    segmentations: Sequence[Any],
    places: list[int],
    sizes: npt.NDArray[np.int64],
    kinds: Kinds,
    checked: Checked,
) -> None:
    """Mark polygons that cannot be drawn; count the others, those without area, and those that leave their photo."""
    places = _of_form(segmentations, places, kinds)
    if not places:
        return
    found = [segmentations[place] for place in places]
    lengths = np.fromiter((len(polygon) for polygons in found for polygon in polygons), np.int64)
    owner = np.repeat(np.arange(len(found)), [len(polygons) for polygons in found])
    numbers = list(chain.from_iterable(chain.from_iterable(found)))
    try:
        values = np.array(numbers, np.float64)
    except OverflowError:  # whole numbers that no float holds
        values = np.array([float(number) if abs(number) < 1e300 else np.inf for number in numbers], np.float64)
    index = np.repeat(owner, lengths)
    height, width = sizes[np.asarray(places)].T.astype(np.float64)
    marks = np.asarray(places)
    is_y = (np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)) % 2 == 1
    limit = np.where(is_y, height[index], width[index])
    finite = np.isfinite(values)
    safe = np.where(finite, values, 0)
    far = (safe < -limit) | (safe > 2 * limit)
    big = lengths >= 6

    def any_of(flags: npt.NDArray[np.bool_], of: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return np.bincount(of[flags], minlength=len(found)) > 0

    low = [np.full(len(found), np.inf) for _ in range(2)]
    high = [np.full(len(found), -np.inf) for _ in range(2)]
    for axis, chosen in enumerate((~is_y, is_y)):
        np.minimum.at(low[axis], index[chosen], safe[chosen])
        np.maximum.at(high[axis], index[chosen], safe[chosen])
    outside = (high[0] <= 0) | (high[1] <= 0) | (low[0] >= width) | (low[1] >= height)
    for flags, kind in (
        (outside, OUTSIDE),
        (any_of(far, index), FAR_OUTSIDE),
        (~any_of(big, owner), FEW_POINTS),
        (any_of(lengths % 2 == 1, owner), ODD),
        (any_of(~finite, index), NOT_NUMBERS),
    ):  # the last that fits stays
        kinds[marks[flags]] = kind
    flat = ~any_of(_areas(safe, lengths) > LEAST_AREA, owner)
    sound = kinds[marks] == SOUND
    beyond = sound & ((high[0] > (1 + TOLERANCE) * width + 1) | (high[1] > (1 + TOLERANCE) * height + 1))
    reaches = np.maximum(high[0] / width, high[1] / height)
    checked.reach = max(checked.reach, float(reaches[sound].max(initial=0.0)))
    checked.largest = max(checked.largest, float(safe.max(initial=-1.0)))
    checked.empty += int((flat & sound).sum())
    checked.outlines += int(sound.sum())
    checked.beyond += (len(checked.kinds) + marks[beyond]).tolist()


def _areas(values: npt.NDArray[np.float64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the area of each polygon, whose coordinates x, y, x, y, ... are so many; an odd number has none."""
    ends = np.cumsum(lengths)
    following = np.arange(2, len(values) + 2)
    for offset in (1, 2):  # after the last point comes the first
        whole = lengths >= offset
        following[(ends - offset)[whole]] = ((ends - lengths) + 2 - offset)[whole]
    following = np.minimum(following, len(values) - 1)
    is_x = (np.arange(len(values)) - np.repeat(ends - lengths, lengths)) % 2 == 0
    x = np.flatnonzero(is_x)
    y, next_x = np.minimum(x + 1, len(values) - 1), following[x]
    with np.errstate(over="ignore", invalid="ignore"):  # of coordinates that are far outside, and refused for that
        terms = values[x] * values[np.minimum(next_x + 1, len(values) - 1)] - values[next_x] * values[y]
    return np.abs(np.bincount(np.repeat(np.arange(len(lengths)), lengths)[x], terms, minlength=len(lengths))) / 2


def _of_form(segmentations: Sequence[Any], places: list[int], kinds: Kinds) -> list[int]:
    """Return the places of lists of lists of numbers, and mark the others."""
    found = [segmentations[place] for place in places]
    parts = set(map(type, chain.from_iterable(found)))
    if parts <= {list} and set(map(type, chain.from_iterable(chain.from_iterable(found)))) <= {int, float}:
        return places
    sound = []
    for place in places:
        polygons = segmentations[place]
        if not all(type(polygon) is list for polygon in polygons):
            kinds[place] = NO_FORM
        elif not all(type(number) in (int, float) for polygon in polygons for number in polygon):
            kinds[place] = NOT_NUMBERS
        else:
            sound.append(place)
    return sound


Sums = tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""For each RLE: whether its counts are whole numbers from 0 on, their sum, and the sum of the foreground's."""


def _check_rle(
    segmentations: Sequence[Any],
    places: list[int],
    sizes: npt.NDArray[np.int64],
    kinds: Kinds,
    sums: Callable[[list[Any]], Sums],
) -> int:
    """Mark RLEs that cannot be decoded to their photo's size; return how many of the others are empty."""
    sized, own = [], []
    for place in places:
        size = segmentations[place].get("size")
        if type(size) is list and len(size) == 2 and all(type(side) is int and 0 < side <= MAX_PIXELS for side in size):
            sized.append(place)
            own.append(size)
        else:
            kinds[place] = RLE_SIZE
    if not sized:
        return 0
    marks, heights_widths = np.asarray(sized), np.asarray(own, np.int64)
    photos = sizes[marks]
    other = (np.abs(heights_widths - photos) > TOLERANCE * photos).any(1) | (heights_widths.prod(1) > MAX_PIXELS)
    whole, total, foreground = sums([segmentations[place]["counts"] for place in sized])
    wrong_length = total != heights_widths.prod(1)
    kinds[marks[wrong_length]] = RLE_LENGTH
    kinds[marks[~whole]] = RLE_COUNTS
    kinds[marks[other]] = RLE_SIZE
    return int((whole & ~wrong_length & ~other & (foreground == 0)).sum())


def _sums_of_lists(counts: list[Any]) -> Sums:
    lengths = np.fromiter(map(len, counts), np.int64)
    numbers = list(chain.from_iterable(counts))
    whole = np.ones(len(counts), bool)
    if not set(map(type, numbers)) <= {int} or any(not 0 <= number < 2**32 for number in numbers):
        whole = np.array([all(type(number) is int and 0 <= number < 2**32 for number in each) for each in counts])
        lengths = np.where(whole, lengths, 0)
        numbers = [number for each, sound in zip(counts, whole, strict=True) if sound for number in each]
    return whole, *_sums(np.array(numbers, np.float64), lengths)


def _sums_of_texts(texts: list[Any]) -> Sums:
    """Decode COCO's compressed counts: five bits a character, low ones first, the sixth says that more follow.

    From the fourth count on, what is written is the difference to the count before the last.
    """
    encoded = [text.encode("latin-1", "replace") for text in texts]
    lengths = np.fromiter(map(len, encoded), np.int64)
    codes = np.frombuffer(b"".join(encoded), np.uint8).astype(np.int64) - 48
    owner = np.repeat(np.arange(len(texts)), lengths)
    whole = np.bincount(owner[(codes < 0) | (codes > 63)], minlength=len(texts)) == 0
    last = (codes & 32) == 0
    ends_of_texts = np.cumsum(lengths)
    filled = lengths > 0
    whole &= filled
    whole[filled] &= last[ends_of_texts[filled] - 1]  # else the last count has no end
    if not len(codes):
        return whole, np.zeros(len(texts)), np.zeros(len(texts))
    begins = np.concatenate([[True], last[:-1]])
    begins[(ends_of_texts - lengths)[filled]] = True
    starts = np.flatnonzero(begins)
    place = np.arange(len(codes)) - starts[np.cumsum(begins) - 1]
    too_long = place > 6  # more than 32 bits
    whole &= np.bincount(owner[too_long], minlength=len(texts)) == 0
    differences = np.add.reduceat((codes & 31) << (5 * np.minimum(place, 6)), starts)
    ends = np.concatenate([starts[1:], [len(codes)]]) - 1
    bits = 5 * np.minimum(place[ends] + 1, 7)
    differences -= np.where(codes[ends] & 16, np.int64(1) << bits, 0)
    numbers_each = np.bincount(owner[starts], minlength=len(texts))
    counts = _undone(differences, numbers_each)
    number_owner = np.repeat(np.arange(len(texts)), numbers_each)
    whole &= np.bincount(number_owner[(counts < 0) | (counts >= 2**32)], minlength=len(texts)) == 0
    return whole, *_sums(counts.astype(np.float64), numbers_each)


def _undone(differences: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return counts from what is written: each from its fourth on has the count before the last added."""
    first = np.repeat(np.cumsum(lengths) - lengths, lengths)
    position = np.arange(len(differences)) - first
    counts = differences.copy()
    for parity, begin in ((1, 1), (0, 2)):
        chosen = np.flatnonzero((position % 2 == parity) & (position >= begin))
        sums = np.cumsum(differences[chosen])
        starts = position[chosen] == begin
        before = (sums - differences[chosen])[starts]
        counts[chosen] = sums - np.repeat(before, np.diff(np.append(np.flatnonzero(starts), len(chosen))))
    return counts


def _sums(numbers: npt.NDArray[np.float64], lengths: npt.NDArray[np.int64]) -> tuple[Any, Any]:
    """Return the sum of the numbers of each, and of every second one of them: the runs of foreground."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(numbers)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    total = np.bincount(owner, numbers, minlength=len(lengths))
    odd = position % 2 == 1
    return total, np.bincount(owner[odd], numbers[odd], minlength=len(lengths))
