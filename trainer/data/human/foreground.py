"""What is foreground in the masks of a set: decided once for all its files, from a sample of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from sum_factory.shared.errors import ImageError, InputError
from sum_factory.trainer.data.human.histograms import Histogram
from sum_factory.trainer.data.human.mask_files import OPAQUE, MaskFile
from sum_factory.trainer.data.human.samples import Masks

Setting = Literal["auto", "half", "non-zero", "zero", "alpha"] | tuple[int, ...]
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
FEW_COLOURS = 16
"""Opaque pixels of more colours than this are a photo that was cut out."""
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
        if self.kind == "alpha":
            if file.alpha is not None:
                return file.alpha >= OPAQUE
            if self.is_guess and file.values.min() != file.values.max():
                raise ImageError(f"{path}: is opaque, but the masks of its set were taken for {self.words}; {HINT}")
            return np.ones(file.values.shape, bool)
        values = file.shades().values
        match self.kind:
            case "least":
                mask = values >= self.values[0]
                if self.is_guess and not is_lossy and not mask.any():
                    self._require_black(values, path)
            case "values":
                mask = np.isin(values, self.values) if len(self.values) > 1 else values == self.values[0]
                if self.others is not None:
                    self._require_known(values, mask, path)
            case "zero":
                mask = values == 0
            case _:
                mask = values != 0
        return np.asarray(mask, bool)

    def share(self, histogram: Histogram) -> float:
        """Return which share of a file is foreground."""
        if self.kind == "alpha":
            alphas = histogram.alphas
            return 1.0 if alphas is None else float(alphas[OPAQUE:].sum() / alphas.sum())
        match self.kind:
            case "least":
                chosen = histogram.values >= self.values[0]
            case "values":
                chosen = np.isin(histogram.values, self.values)
            case "zero":
                chosen = histogram.values == 0
            case _:
                chosen = histogram.values != 0
        return float(histogram.counts[chosen].sum() / max(1, histogram.pixels))

    def _require_known(self, values: npt.NDArray[np.generic], mask: Masks, path: Path) -> None:
        strange = ~mask & ~np.isin(values, self.others or ())
        if strange.any():
            raise ImageError(
                f"{path}: holds the value {values[strange][0]}, but the masks of its set were taken for {self.words}; "
                f"{HINT}"
            )

    def _require_black(self, values: npt.NDArray[np.generic], path: Path) -> None:
        """Refuse a file of a few faint values, which are 0 and 1 where the set has 0 and 255."""
        top = float(values.max(initial=0))
        if 0 < top <= LOW_BAND / 2 * self.values[0]:
            raise ImageError(
                f"{path}: holds no value above {top:g}, but the masks of its set were taken for {self.words}; {HINT}"
            )


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
    doubt = "; if these masks are inverted, set `foreground: zero`" if share > MOSTLY else ""
    return (
        f"foreground is {rule.words}: {share:.0%} of a mask on average, seen in {len(sample)} of {total:,} masks{doubt}"
    )


def require_masks(rule: Foreground, sample: Sequence[Histogram], most_blank: float, where: str) -> None:
    """Raise ``InputError`` if more than a share ``most_blank`` of the sampled masks are empty or full."""
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
    what = "lossy colours" if lossy else "colours or numbers"
    raise InputError(f"{where}: {_first_of_many(sample)} holds {what}, more than two; {HINT}, or `kind: label-maps`")


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
    if top >= 100 or (top == 1 and values.min() >= 0):  # 1 is the top of floats
        lossy = all(each.is_lossy for each in sample)
        if values[0] == 0 and between <= STRAYS:
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
