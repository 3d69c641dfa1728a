"""What is foreground in the masks of a set: decided once for all its files, from a sample of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from sum_factory.shared.errors import ImageError, InputError
from sum_factory.trainer.data.human.histograms import Histogram, count, count_inner
from sum_factory.trainer.data.human.mask_files import OPAQUE, Coding, MaskFile, colours_in_words
from sum_factory.trainer.data.human.samples import Masks

Setting = Literal["auto", "half", "non-zero", "zero", "alpha"] | Annotated[tuple[int, ...], Field(min_length=1)]
HINT = (
    "say what is foreground: `foreground: half` (half of the largest value and above), `non-zero`, `zero`, `alpha`, or "
    "the values, such as [255]"
)
LEAST_SHADES = 8
"""Different values from which a picture of greys is one of soft edges, and not of a few numbers."""
STRAYS = 0.01
"""Share of the pixels that may lie between two values without meaning anything."""
LOW_BAND, HIGH_BAND = 0.1, 0.9
"""Shares of the largest value up to which a soft mask is background, and from which it is surely foreground."""
LEAST_SURE, MOST_FAINT = 1 / 3, 0.2
"""Of the pixels above zero in soft masks, the least share that is surely foreground, the largest of the low band."""
LEAST_INNER, MOST_CLASSES = 16, 32
"""Pixels within areas of one shade, and shades of nine tenths of them, from and to which the areas are of classes."""
FEW_COLOURS = 16
"""Opaque pixels of more colours than this are a photo that was cut out."""
GREY_AS_COLOUR = 0x010101
"""What a grey is multiplied with to be the number of a colour."""
MOSTLY = 0.6
"""Share of a photo that foreground seldom covers: more of it may be background."""


@dataclass(frozen=True)
class Foreground:
    """A rule for all files of a set.

    ``kind`` is "least" (values of ``values[0]`` and above), "values" (these), "zero", "non-zero" or "alpha". With
    ``others``, files must hold no values but these and ``values``: the rule was made from files that did not.
    """

    kind: Literal["least", "values", "zero", "non-zero", "alpha"]
    values: tuple[float, ...] = ()
    others: tuple[float, ...] | None = None
    words: str = ""
    is_guess: bool = False
    """Whether the sample told it, and no recipe."""

    def mask_of(self, file: MaskFile, path: Path, is_lossy: bool = False) -> Masks:
        """Return the foreground of a file, bool (H, W). Raises ``ImageError`` if the rule cannot be meant for it."""
        if self.kind == "values" and not self.is_guess:
            stated = file.stated()
            return self._has_stated(stated.values, stated.coding)
        shades = file.shades()
        if self.is_guess:
            self._require_alike(shades, path, is_lossy)
        if self.kind == "alpha":
            return np.ones(file.values.shape, bool) if file.alpha is None else file.alpha >= OPAQUE
        values = shades.values
        match self.kind:
            case "least":
                mask = values >= self.values[0]
            case "values":
                mask = values == self.values[0]
            case "zero":
                mask = values == 0
            case _:
                mask = values != 0
        return np.asarray(mask, bool)

    def _has_stated(self, values: npt.NDArray[Any], coding: Coding) -> Masks:
        """Return which values the recipe names; a grey that is stored as a colour has the number of either."""
        mask = np.isin(values, self.values)
        return mask | np.isin(values * float(GREY_AS_COLOUR), self.values) if coding == "grey" else mask

    def _require_alike(self, file: MaskFile, path: Path, is_lossy: bool) -> None:
        """Raise ``ImageError`` for a file that contradicts what the sample of its set told."""
        if self.kind == "alpha":
            if file.alpha is None and (file.values.min() != file.values.max() or not file.values.any()):
                raise self._other(path, "is opaque")
        elif file.alpha is not None:
            raise self._other(path, "is transparent somewhere")
        elif self.kind == "values" and self.others is not None:
            strange = ~np.isin(file.values, (*self.values, *self.others))
            if strange.any():
                raise self._other(path, f"holds the value {file.values[strange][0]}")
        elif self.kind == "non-zero":
            shown = file.values[file.values != 0]
            if is_lossy or (shown.size and shown.min() != shown.max()):
                raise self._other(path, "holds more than 0 and one other value")
        elif self.kind == "least":
            if file.coding != "grey":
                raise self._other(path, "holds colours")
            values, counts = count(file.values)
            why = None if is_lossy else _not_half(values, counts, self.values[0])
            if why is None and not is_lossy and len(values) > 2:
                why = _areas_of_classes(values, counts, count_inner(file.values, values), 2 * self.values[0])
            if why is not None:
                raise self._other(path, why)

    def _other(self, path: Path, what: str) -> ImageError:
        return ImageError(f"{path}: {what}, but the masks of its set were taken for {self.words}; {HINT}")

    def contradiction(self, histogram: Histogram) -> str | None:
        """Return in words how a file of the sample contradicts the rule that all of them told, if it does."""
        if not self.is_guess or self.kind != "least" or histogram.is_lossy:
            return None
        values, counts = histogram.values, histogram.counts
        top = 2 * self.values[0]
        return _not_half(values, counts, self.values[0]) or _areas_of_classes(values, counts, histogram.inner, top)

    def share(self, histogram: Histogram) -> float:
        """Return which share of a file is foreground."""
        if self.kind == "alpha":
            alphas = histogram.alphas
            return 1.0 if alphas is None else float(alphas[OPAQUE:].sum() / alphas.sum())
        match self.kind:
            case "least":
                chosen = histogram.values >= self.values[0]
            case "values":
                chosen = self._has_stated(histogram.values, histogram.coding)
            case "zero":
                chosen = histogram.values == 0
            case _:
                chosen = histogram.values != 0
        return float(histogram.counts[chosen].sum() / max(1, histogram.pixels))


def _not_half(values: npt.NDArray[Any], counts: npt.NDArray[Any], least: float) -> str | None:
    """Return in words why half of the set's largest value, ``least``, cannot divide a lossless file of these values:
    they are numbers of something else, as 0 and 1 are, or 100, or 1 beside a void of 255. None if nothing speaks
    against it: shades of soft edges are many, and most of them are beside what is surely foreground."""
    top, above = float(values.max(initial=0)), counts[values > 0].sum()
    if top == 0:
        return None
    few = len(values) < LEAST_SHADES
    if top < least:
        return f"holds no value above {top:g}" if few or top <= LOW_BAND * least else None
    faint = counts[(values > 0) & (values <= 2 * LOW_BAND * least)].sum() / above
    is_halfway = len(values) != 3 or 0.4 <= values[1] / top <= 0.6
    below = counts[(values > 0) & (values < least)].sum() / above
    some = ", ".join(f"{value:g}" for value in values.tolist())
    return f"holds {some}" if few and (faint > STRAYS or (below > MOST_FAINT and not is_halfway)) else None


def _areas_of_classes(
    values: npt.NDArray[Any], counts: npt.NDArray[Any], inner: npt.NDArray[Any], top: float
) -> str | None:
    """Return in words which values between 0 and ``top`` fill areas, as classes do, None if they are shades of edges.

    ``inner`` are the pixels of each value that lie among four of the same. Of edges these are few, of whole areas they
    are most, and of slow gradients they are of many values.
    """
    middle = (values > LOW_BAND * top) & (values < HIGH_BAND * top)
    total = inner[middle].sum()
    if total < LEAST_INNER or 2 * total <= counts[middle].sum():
        return None
    largest = np.argsort(-inner[middle], kind="stable")
    if np.searchsorted(np.cumsum(inner[middle][largest]), 0.9 * total) >= MOST_CLASSES:
        return None
    some = sorted(values[middle][largest[inner[middle][largest] > 0]][:4].tolist())
    return f"holds whole areas of {', '.join(f'{value:g}' for value in some)}, which may be classes or void"


def foreground_of(setting: Setting, sample: Sequence[Histogram], where: str) -> Foreground:
    """Return the rule that a recipe asks for, or that the sample of a set tells. Raises ``InputError`` if none does."""
    top = max(float(each.values.max(initial=0)) for each in sample)
    match setting:
        case "auto":
            return replace(_decided(sample, where), is_guess=True)
        case "half":
            if any(each.coding != "grey" for each in sample):
                raise InputError(f"{where}: `foreground: half` is for masks of greys, and these are of colours; {HINT}")
            return _half(top)
        case "non-zero":
            return Foreground("non-zero", words="all that is not 0")
        case "zero":
            return Foreground("zero", words="all that is 0")
        case "alpha":
            if all(each.alphas is None for each in sample):
                raise InputError(f"{where}: `foreground: alpha`, but none of its masks is transparent anywhere")
            return Foreground("alpha", words="what is opaque")
        case _:
            return Foreground("values", tuple(map(float, setting)), words=_listed(setting))


def describe(rule: Foreground, sample: Sequence[Histogram], total: int) -> str:
    """Return in one line what was taken for foreground, and how much of a photo it is."""
    share = float(np.mean([rule.share(each) for each in sample]))
    may_be_inverted = share > MOSTLY and rule.kind not in ("alpha", "zero")
    doubt = "; if these masks are inverted, set `foreground: zero`" if may_be_inverted else ""
    return (
        f"foreground is {rule.words}: {share:.0%} of a mask on average, seen in {len(sample)} of {total:,} masks{doubt}"
    )


def require_masks(rule: Foreground, sample: Sequence[Histogram], most_blank: float, where: str) -> None:
    """Raise ``InputError`` if a sampled mask contradicts the rule, or if more than a share ``most_blank`` of them are
    empty or full."""
    for each in sample:
        if (what := rule.contradiction(each)) is not None:
            raise InputError(f"{each.path}: {what}, but the masks of its set were taken for {rule.words}; {HINT}")
    blank = [each for each in sample if rule.share(each) in (0.0, 1.0)]
    if len(blank) > most_blank * len(sample):
        full = sum(rule.share(each) == 1 for each in blank)
        raise InputError(
            f"{where}: {len(blank) - full} of {len(sample)} masks that were looked at are empty and {full} are full, "
            f"the first is {blank[0].path}, with foreground being {rule.words}; {HINT}, or allow more with most_blank"
        )


def _decided(sample: Sequence[Histogram], where: str) -> Foreground:
    if any(each.alphas is not None for each in sample):
        return _of_alpha(sample, where)
    values = np.unique(np.concatenate([each.values for each in sample]))
    if len(values) == 1:
        raise InputError(f"{where}: all masks that were looked at hold the value {values[0]:g} alone; {HINT}")
    lossy = any(each.is_lossy for each in sample)
    if not lossy and all(each.coding == "grey" for each in sample) and len(values) == 2:
        return _of_two(float(values[0]), float(values[1]))
    pairs = {tuple(each.values) for each in sample if len(each.values) == 2}
    if not lossy and all(len(each.values) <= 2 for each in sample) and pairs and all(pair[0] == 0 for pair in pairs):
        return Foreground("non-zero", words="all that is not 0 (each mask has one other value)")
    if all(each.coding == "grey" for each in sample):
        return _of_shades(sample, values, where)
    most = max(sample, key=lambda each: len(each.values))
    what = "lossy colours" if lossy else "colours or numbers"
    if most.coding == "colour" and not lossy:
        what = f"colours ({colours_in_words([int(value) for value in most.values])})"
    raise InputError(f"{where}: {most.path} holds {what}, more than two; {HINT}, or `kind: label-maps`")


def _of_two(low: float, high: float) -> Foreground:
    words = f"{high:g} (of {low:g} and {high:g})"
    if high - low >= 100:
        return Foreground("least", (np.ceil((low + high) / 2),), words=words)
    return Foreground("values", (high,), (low,), words)


def _of_shades(sample: Sequence[Histogram], values: npt.NDArray[np.float64], where: str) -> Foreground:
    """Decide about masks of more than two greys: soft edges are told from numbers of objects or of classes."""
    counts = np.zeros(len(values))
    for each in sample:
        counts[np.searchsorted(values, each.values)] += each.counts
    top = float(values[-1])
    shares = values / top
    above = counts[values > 0].sum()
    sure = counts[shares >= HIGH_BAND].sum() / above
    faint = counts[(values > 0) & (shares <= LOW_BAND)].sum() / above
    between = counts[(values > values[0]) & (values < top)].sum() / counts.sum()
    for each in sample:
        if not each.is_lossy and (what := _areas_of_classes(each.values, each.counts, each.inner, top)):
            raise InputError(f"{where}: {each.path} {what}; {HINT}, or `kind: label-maps`")
    if top >= 100 or (top == 1 and values.min() >= 0):  # 1 is the top of floats
        lossy = all(each.is_lossy for each in sample)
        is_whole = lossy or _not_half(values, counts, top / 2) is None
        if values[0] == 0 and between <= STRAYS and is_whole:
            return _half(top)
        if len(values) >= LEAST_SHADES and sure >= LEAST_SURE and (faint <= MOST_FAINT or (lossy and top >= 200)):
            return _half(top)
    some = ", ".join(f"{value:g}" for value in values[:6]) + (", ..." if len(values) > 6 else "")
    raise InputError(
        f"{where}: {_first_of_many(sample)} is one of the masks that hold {len(values)} values ({some}), which may be "
        f"numbers of objects, classes, void or shades; {HINT}, or `kind: label-maps`"
    )


def _of_alpha(sample: Sequence[Histogram], where: str) -> Foreground:
    """Decide about masks that are transparent somewhere: all of them, with one colour or a photo where they are not."""
    for each in sample:
        if each.alphas is None:
            if len(each.values) > 1:
                raise InputError(f"{where}: some masks are transparent, but {each.path} is opaque; {HINT}")
        elif each.alphas[13:243].sum() > each.alphas.sum() / 2:
            raise InputError(f"{each.path}: its alpha holds shades, which may be no mask at all; {HINT}")
        elif 1 < each.opaque_values <= FEW_COLOURS:
            raise InputError(
                f"{each.path}: is transparent, and what is opaque has {each.opaque_values} colours: either may be the "
                f"mask; {HINT}"
            )
    return Foreground("alpha", words="what is opaque")


def _half(top: float) -> Foreground:
    """Return the rule of half of the largest value: 255 and 65,535 if it is near these, 255 if there is none."""
    top = top or 255.0
    for whole in (255.0, 65_535.0):
        if 0.95 * whole <= top <= whole:
            top = whole
    least = top / 2 if top <= 1 else np.floor((top + 1) / 2)
    return Foreground("least", (least,), words=f"{least:g} and above (of 0 to {top:g})")


def _first_of_many(sample: Sequence[Histogram]) -> Path:
    return max(sample, key=lambda each: len(each.values)).path


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
