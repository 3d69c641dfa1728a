"""Photos with label maps of the same names: pictures in which each value is one mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from sum_factory.shared.annotations.coco_file import id_of, is_crowd, read_json
from sum_factory.shared.errors import ImageError, InputError
from sum_factory.trainer.data.human.choice import Choice
from sum_factory.trainer.data.human.fitting import Orientation, require_fitting
from sum_factory.trainer.data.human.foreground import GREY_AS_COLOUR
from sum_factory.trainer.data.human.histograms import count, sample_of
from sum_factory.trainer.data.human.mask_files import BLACK, MaskFile, Values, colours_in_words, read_mask_file
from sum_factory.trainer.data.human.paired import Paired, open_pairs
from sum_factory.trainer.data.human.pairing import Names
from sum_factory.trainer.data.human.photos import Alpha, load_photo
from sum_factory.trainer.data.human.problems import Skip
from sum_factory.trainer.data.human.samples import HumanSample, Masks, stacked

Channel = Literal["red", "green", "blue"]
BITS = {"red": 0, "green": 8, "blue": 16}
"""How far the number of a colour is shifted for each of its channels."""
VOID = 255
LEAST_PIXELS = 16
"""Pixels a value, at least and on average: a picture of more values is no label map."""
MOST_COLOURS = 64
"""Colours of maps that people look at; if there are more, they are numbers of objects, and 255 is one of these."""
VOID_GAP = 200
"""255 means void, and not the last object, if nothing lies between this and it."""


@dataclass(frozen=True)
class Map:
    """A label map of the sample: its values, and what 0 may be."""

    path: Path
    values: frozenset[int]
    has_black_zero: bool
    """Whether 0 is the first place of a palette, and black."""
    is_coloured: bool
    """Whether the values are colours."""


@dataclass(frozen=True)
class LabelMaps:
    """Photos below ``images`` and label maps below ``labels`` of the same key.

    Each value is one mask, but those of ``ignored`` and those below ``least``. By default 0 is ignored, and 255 where
    it means void. Colours are values, too: R + 256 G + 65536 B, or one ``channel`` of them. ``segments`` is a file of
    COCO panoptic that says which values are crowds, which are no masks either.
    """

    images: Path
    labels: Path
    task: int
    ignored: tuple[int, ...] | None = None
    least: int = 0
    names: Names = field(default_factory=Names)
    choice: Choice = field(default_factory=Choice)
    orientation: Orientation = "auto"
    photo_alpha: Alpha = "white"
    most_blank: float = 0.1
    skip: Skip = "nothing"
    channel: Channel | None = None
    segments: Path | None = None

    @cached_property
    def opened(self) -> Paired:
        """The pairs, sorted by key. Raises ``InputError`` for label maps that are lossy or hold floats."""
        opened = open_pairs(self.images, self.labels, self.names, self.choice, self.orientation, self.skip)
        for paired in opened.files:
            for path, header in zip(paired.pair.masks, paired.masks, strict=True):
                if header.is_lossy or header.mode == "F":
                    what = "lossy compression changes values" if header.is_lossy else "its values are floats"
                    raise InputError(f"{path}: no label map, as {what}; expected whole numbers in a PNG or TIFF")
        return opened

    @cached_property
    def keys(self) -> list[str]:
        """The keys, sorted."""
        return [paired.pair.key for paired in self.opened.files]

    @property
    def mask_count(self) -> None:
        """Not known before all label maps are read."""
        return None

    @cached_property
    def left_out(self) -> frozenset[int]:
        """The values that are no masks."""
        return frozenset(self.ignored) if self.ignored is not None else _usual(self._sample, str(self.labels))

    @property
    def findings(self) -> list[str]:
        """What was found and decided, a sentence each. Raises ``InputError`` if too many maps have no mask."""
        counts = [len([value for value in each.values if self._is_mask(value, each.path)]) for each in self._sample]
        blank = [
            each.path
            for each, masks in zip(self._sample, counts, strict=True)
            if masks == 0 or (masks == 1 and len(each.values) == 1)
        ]
        if len(blank) > self.most_blank * len(self._sample):
            raise InputError(
                f"{self.labels}: {len(blank)} of {len(self._sample)} label maps that were looked at have no mask, or "
                f"one over all of the photo, the first is {blank[0]}; check `ignored` ({self._ignored_in_words()}) and "
                "`least`, or allow more with most_blank"
            )
        total = sum(len(paired.pair.masks) for paired in self.opened.files)
        return [
            f"{np.mean(counts):.1f} masks per label map on average, seen in {len(self._sample)} of {total:,}; no masks "
            f"are the values {self._ignored_in_words()}",
            *([f"left out {sum(map(len, self.crowds.values())):,} crowds"] if any(self.crowds.values()) else []),
            *self.opened.said,
        ]

    def load(self, index: int) -> HumanSample:
        """Read one sample; masks come in the order of their values, label map after label map."""
        paired = self.opened.files[index]
        image = load_photo(paired.pair.photo, paired.header, paired.fit, self.photo_alpha)
        maps = [self._numbers(path) for path in paired.pair.masks]
        for labels, path in zip(maps, paired.pair.masks, strict=True):
            require_fitting(labels, image, path)
        found = [
            (labels, value)
            for labels, path in zip(maps, paired.pair.masks, strict=True)
            for value in _values(labels, path)
            if self._is_mask(value, path)
        ]

        def masks_at(numbers: Sequence[int]) -> Masks:
            return stacked([found[number][0] == found[number][1] for number in numbers], image)

        return HumanSample(paired.pair.key, image, self.task, len(found), masks_at)

    @cached_property
    def crowds(self) -> dict[str, frozenset[int]]:
        """The values of each label map that ``segments`` calls crowds, by the name of its file.

        Raises ``InputError`` if it is no file of COCO panoptic.
        """
        if self.segments is None:
            return {}
        content = read_json(self.segments)
        try:
            return {
                Path(each["file_name"]).name: frozenset(
                    int(id_of(segment["id"]) or 0) for segment in each["segments_info"] if is_crowd(segment)
                )
                for each in content["annotations"]
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{self.segments}: expected COCO panoptic JSON, with a file_name and segments_info for each of its "
                f"annotations ({error})"
            ) from error

    def _is_mask(self, value: int, path: Path) -> bool:
        # a grey that is stored as a colour has the number of either
        numbers = {value, value * GREY_AS_COLOUR}
        return value >= self.least and not numbers & self.left_out and not numbers & self._crowds_of(path)

    def _crowds_of(self, path: Path) -> frozenset[int]:
        if self.segments is None:
            return frozenset()
        if path.name not in self.crowds:
            raise InputError(f"{path}: {self.segments} does not list it; expected all label maps there")
        return self.crowds[path.name]

    def _ignored_in_words(self) -> str:
        words = ", ".join(map(str, sorted(self.left_out))) or "none"
        return f"{words} and all below {self.least}" if self.least else words

    @cached_property
    def _sample(self) -> list[Map]:
        paths = [path for paired in self.opened.files for path in paired.pair.masks]
        return [_map_of(self._read(path), path) for path, _ in sample_of(paths, [False] * len(paths))]

    def _read(self, path: Path) -> MaskFile:
        file = _read(path)
        if self.channel is not None and file.coding == "palette":
            raise ImageError(f"{path}: expected colours, of which {self.channel} is read, found a palette")
        if self.channel is not None and file.coding == "colour":
            return MaskFile((file.values >> BITS[self.channel] & 255).astype(np.uint8), "grey")
        if self.ignored is None and file.coding == "palette" and file.colours[0] != BLACK:
            used = np.flatnonzero(np.bincount(file.values.ravel(), minlength=len(file.colours))).tolist()
            if any(file.colours[place] == BLACK for place in used if place < len(file.colours)):
                raise ImageError(
                    f"{path}: the first colour of its palette, which counts as background, is "
                    f"{file.colours[0]}, and another is black: say which places are no masks by `ignored`"
                )
        return file

    def _numbers(self, path: Path) -> Values:
        """Return the values of a map. Raises ``ImageError`` if it has red where the maps of greys have void."""
        file = self._read(path)
        is_guess = self.ignored is None and VOID in self.left_out
        if is_guess and file.coding == "colour" and (file.values == VOID).any():
            raise ImageError(f"{path}: {_with_red(_values(file.values, path))}")
        return file.numbers()


def _usual(sample: Sequence[Map], where: str) -> frozenset[int]:
    """Return the values that are no masks by default. Raises ``InputError`` where 0 may be a class."""
    coloured = frozenset[int]().union(*(each.values for each in sample if each.is_coloured))
    if VOID in coloured and len(coloured) <= MOST_COLOURS:
        first = next(each.path for each in sample if each.is_coloured and VOID in each.values)
        raise InputError(f"{where}: {first} {_with_red(sorted(coloured))}")
    values = frozenset[int]().union(*(each.values for each in sample if not each.is_coloured))
    has_void = VOID in values and not any(VOID_GAP <= value < VOID or value > VOID for value in values)
    if has_void and 0 in values and not all(each.has_black_zero for each in sample):
        first = next(each.path for each in sample if VOID in each.values)
        raise InputError(
            f"{where}: {first} holds 255, which is void, so 0 may be background or the first class: say "
            "`ignored: [0, 255]` or `ignored: [255]`"
        )
    return frozenset((0, VOID)) if has_void else frozenset((0,))


def _with_red(colours: Sequence[int]) -> str:
    return (
        f"is in colours, of which red has the number of void, 255; there are {colours_in_words(colours)}: say which "
        "are no masks, such as `ignored: [0]`, or `ignored: [0, 255]`"
    )


def _read(path: Path) -> MaskFile:
    file = read_mask_file(path)
    if file.alpha is not None:
        raise ImageError(f"{path}: expected a label map, found a picture that is transparent somewhere")
    if file.values.dtype.kind == "f":
        raise ImageError(f"{path}: expected a label map of whole numbers, found floats")
    return file


def _values(labels: Values, path: Path) -> list[int]:
    values, _ = count(labels)
    if len(values) > max(1, labels.size // LEAST_PIXELS):
        raise ImageError(
            f"{path}: expected a label map, found {len(values)} values in {labels.size} pixels; is this a photo, or a "
            "picture of soft edges?"
        )
    found: list[int] = values.tolist()
    return found


def _map_of(file: MaskFile, path: Path) -> Map:
    black = file.coding == "palette" and file.colours[0] == BLACK
    return Map(path, frozenset(_values(file.numbers(), path)), black, file.coding == "colour")
