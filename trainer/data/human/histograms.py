"""How often which value stands in a mask file: what decisions about a set are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sum_factory.trainer.data.human.mask_files import OPAQUE, Coding, MaskFile, Values, read_mask_file

SAMPLED = 32
"""Files of a set, at most, whose values are looked at when it is opened."""


@dataclass(frozen=True)
class Histogram:
    """The values of a file in ascending order, and the pixels of each; its alpha's likewise, if not all is opaque."""

    path: Path
    coding: Coding
    is_lossy: bool
    values: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    opaque_values: int
    """How many different values its opaque pixels have."""
    inner: npt.NDArray[np.int64]
    """Pixels of each value whose four neighbours have it, too."""
    alphas: npt.NDArray[np.int64] | None
    """Pixels of each of the 256 values of alpha."""

    @property
    def pixels(self) -> int:
        """Pixels of the file."""
        return int(self.counts.sum())


def histogram_of(file: MaskFile, path: Path, is_lossy: bool) -> Histogram:
    """Count the values of a file."""
    values, counts = count(file.values)
    alphas, opaque_values = None, len(values)
    if file.alpha is not None:
        alphas = np.bincount(file.alpha.ravel(), minlength=256)
        opaque_values = len(count(file.values[file.alpha >= OPAQUE])[0])
    inner = count_inner(file.values, values)
    return Histogram(path, file.coding, is_lossy, values.astype(np.float64), counts, opaque_values, inner, alphas)


def count(values: Values) -> tuple[Values, npt.NDArray[np.int64]]:
    """Return the different values in ascending order and how often each is there; of 8 and 16 bits without sorting."""
    if values.dtype in (np.uint8, np.uint16):
        counts = np.bincount(values.ravel(), minlength=1)
        present = np.flatnonzero(counts)
        return present, counts[present]
    return np.unique(values, return_counts=True)


def count_inner(values: Values, present: Values) -> npt.NDArray[np.int64]:
    """Return how many pixels of each value that is ``present``, in ascending order, lie among four of the same."""
    middle = values[1:-1, 1:-1]
    is_inner = (middle == values[:-2, 1:-1]) & (middle == values[2:, 1:-1])
    is_inner &= (middle == values[1:-1, :-2]) & (middle == values[1:-1, 2:])
    return np.bincount(np.searchsorted(present, middle[is_inner]), minlength=len(present))


def sample_of(paths: Sequence[Path], lossy: Sequence[bool]) -> list[tuple[Path, bool]]:
    """Return ``SAMPLED`` of the files at equal distances, the first and the last among them; each with ``lossy``."""
    places = np.unique(np.linspace(0, len(paths) - 1, min(SAMPLED, len(paths))).round().astype(int))
    return [(paths[place], lossy[place]) for place in places.tolist()]


def sampled_histograms(paths: Sequence[Path], lossy: Sequence[bool], are_stated: bool = False) -> list[Histogram]:
    """Read some files of a set, with the values that a recipe names if ``are_stated``, else as shades: see
    ``MaskFile``. Raises as ``read_mask_file``."""
    read = ((read_mask_file(path), path, each) for path, each in sample_of(paths, lossy))
    return [histogram_of(file.stated() if are_stated else file.shades(), path, each) for file, path, each in read]
