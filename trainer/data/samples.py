"""What one photo gives to a training step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sum_factory.shared.errors import ImageError
from sum_factory.shared.images import RgbImage
from sum_factory.shared.placement import Frame
from sum_factory.shared.sam.runtime import resize
from sum_factory.trainer.data.grid import coverage_on_grid, is_covered, masks_on_grid, valid_cells
from sum_factory.trainer.data.human import HumanSet
from sum_factory.trainer.randomness import generator_of
from sum_factory.trainer.target import Target


@dataclass(frozen=True)
class SampleId:
    """A sample in one pass over its stream, the epoch. All that is drawn for the sample is seeded by this."""

    stream: str
    epoch: int
    index: int


@dataclass(frozen=True)
class SampleSettings:
    """How photos become samples. ``side``: pixels of SAM's square input; ``stride``: input pixels per cell of the loss
    grid; ``masks``: how many random masks of a photo are used at most; ``seed``: what is drawn follows from it;
    ``target``: what masks are compared with."""

    side: int
    stride: int
    masks: int
    seed: int
    target: Target = "bits"


@dataclass(frozen=True)
class TrainingSample:
    """A photo scaled for SAM with K masks on the loss grid.

    ``image`` is uint8 (3, h, w), its longer side SAM's. ``masks`` is bool (K, G, G); ``certainty`` float32 (K, G, G)
    weighs the losses, ``sampling`` the drawing of points; None means 1 everywhere. ``valid`` are the rows and columns
    of the grid that show the photo. ``skipped`` counts masks that could not be used: those whose uncertainty is
    unknown, and those without a cell. ``logits``, float32 (K, G, G), are those of the labels, and ``partners`` other
    photos, uint8 (3, h, w) each: both for methods that ask for them.

    What losses compare with, beside the bits of ``masks``: ``coverage`` float32 (K, G, G), the share of each cell that
    a mask covers, or ``pixel_masks`` bool (K, S, S), on SAM's input; None where the target is another.
    """

    id: SampleId
    key: str
    image: Tensor
    masks: Tensor
    certainty: Tensor | None
    sampling: Tensor | None
    valid: tuple[int, int]
    task: int
    skipped: int = 0
    coverage: Tensor | None = None
    pixel_masks: Tensor | None = None
    logits: Tensor | None = None
    partners: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.masks)

    def on(self, device: torch.device) -> TrainingSample:
        """Return the same sample on ``device``."""
        return replace(
            self,
            image=self.image.to(device),
            masks=self.masks.to(device),
            certainty=None if self.certainty is None else self.certainty.to(device),
            sampling=None if self.sampling is None else self.sampling.to(device),
            logits=None if self.logits is None else self.logits.to(device),
            partners=tuple(partner.to(device) for partner in self.partners),
            coverage=None if self.coverage is None else self.coverage.to(device),
            pixel_masks=None if self.pixel_masks is None else self.pixel_masks.to(device),
        )


def load_human(human: HumanSet, index: int, id: SampleId, settings: SampleSettings) -> TrainingSample:
    """Load a sample with human masks, which are certain everywhere. Raises ``InputError`` or ``ImageError``."""
    sample = human.load(index)
    height, width = sample.image.shape[:2]
    frame = Frame.whole(settings.side, height, width)
    if 0 in frame.input_size:
        raise ImageError(f"{sample.key}: {width} x {height} is too thin for SAM; cut it up or leave it out")
    picked = pick(sample.count, settings, id)
    exact = sample.masks_at(picked.tolist())
    coverage = coverage_on_grid(exact, frame, settings.stride) if settings.target == "coverage" else None
    masks = masks_on_grid(exact, frame, settings.stride) if coverage is None else is_covered(coverage)
    pixel_masks = masks_on_grid(exact, frame, 1) if settings.target == "points" else None
    nonempty = masks.flatten(1).any(1)
    return TrainingSample(
        id=id,
        key=sample.key,
        image=scale_image(sample.image, settings.side),
        masks=masks[nonempty],
        certainty=None,
        sampling=None,
        valid=valid_cells(frame, settings.stride),
        task=sample.task,
        skipped=int((~nonempty).sum()),
        coverage=None if coverage is None else coverage[nonempty],
        pixel_masks=None if pixel_masks is None else pixel_masks[nonempty],
    )


def pick(count: int, settings: SampleSettings, id: SampleId) -> npt.NDArray[np.int64]:
    """Return which of ``count`` masks this pass uses, in ascending order: at most ``settings.masks``, at random."""
    generator = generator_of(settings.seed, "pick", id.stream, id.epoch, id.index)
    chosen = torch.randperm(count, generator=generator)[: settings.masks]
    return np.asarray(chosen.sort().values.numpy(), np.int64)


def scale_image(image: RgbImage, side: int) -> Tensor:
    """Scale RGB uint8 (H, W, 3) as ``SamPredictor`` does; uint8 (3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(resize(image, side).transpose(2, 0, 1)))
