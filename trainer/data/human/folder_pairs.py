"""Photos with mask files of the same names, a mask per file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt

from sum_factory.shared.images import RgbImage
from sum_factory.trainer.data.human.choice import Choice
from sum_factory.trainer.data.human.fitting import Orientation, require_fitting
from sum_factory.trainer.data.human.foreground import Foreground, Setting, describe, foreground_of, require_masks
from sum_factory.trainer.data.human.histograms import Histogram, sampled_histograms
from sum_factory.trainer.data.human.mask_files import read_mask_file
from sum_factory.trainer.data.human.paired import Paired, PairedFile, open_pairs
from sum_factory.trainer.data.human.pairing import Names
from sum_factory.trainer.data.human.photos import Alpha, load_photo
from sum_factory.trainer.data.human.problems import Skip
from sum_factory.trainer.data.human.samples import HumanSample, Masks, stacked


@dataclass(frozen=True)
class FolderPairs:
    """Photos below ``images`` and masks below ``masks`` of the same key; what is foreground is decided for the set."""

    images: Path
    masks: Path
    task: int
    foreground: Setting = "auto"
    names: Names = field(default_factory=Names)
    choice: Choice = field(default_factory=Choice)
    orientation: Orientation = "auto"
    photo_alpha: Alpha = "white"
    most_blank: float = 0.1
    skip: Skip = "nothing"

    @cached_property
    def opened(self) -> Paired:
        """The pairs, sorted by key."""
        return open_pairs(self.images, self.masks, self.names, self.choice, self.orientation, self.skip)

    @cached_property
    def keys(self) -> list[str]:
        """The keys, sorted."""
        return [paired.pair.key for paired in self.opened.files]

    @cached_property
    def rule(self) -> Foreground:
        """What is foreground."""
        return foreground_of(self.foreground, self._sample, str(self.masks))

    @property
    def findings(self) -> list[str]:
        """What was found and decided, a sentence each. Raises ``InputError`` if too many masks are empty or full."""
        require_masks(self.rule, self._sample, self.most_blank, str(self.masks))
        return [describe(self.rule, self._sample, self.mask_count), *self.opened.said]

    @property
    def mask_count(self) -> int:
        """Masks of all photos."""
        return sum(len(paired.pair.masks) for paired in self.opened.files)

    def load(self, index: int) -> HumanSample:
        """Read one sample: a mask for each of its files."""
        paired = self.opened.files[index]
        image = load_photo(paired.pair.photo, paired.header, paired.fit, self.photo_alpha)

        def masks_at(numbers: Sequence[int]) -> Masks:
            return stacked([self._read(paired, number, image) for number in numbers], image)

        return HumanSample(paired.pair.key, image, self.task, len(paired.pair.masks), masks_at)

    def _read(self, paired: PairedFile, number: int, image: RgbImage) -> npt.NDArray[Any]:
        path, header = paired.pair.masks[number], paired.masks[number]
        file = read_mask_file(path)
        require_fitting(file.values, image, path)
        return self.rule.mask_of(file, path, header.is_lossy)

    @cached_property
    def _sample(self) -> list[Histogram]:
        paths = [path for paired in self.opened.files for path in paired.pair.masks]
        lossy = [header.is_lossy for paired in self.opened.files for header in paired.masks]
        return sampled_histograms(paths, lossy, isinstance(self.foreground, tuple))
