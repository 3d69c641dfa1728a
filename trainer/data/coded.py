"""Samples whose masks are still codes, which the device that trains makes into masks.

A code is one byte for each low-resolution cell (``codecs/codes.py``). On the loss grid the mask has up to sixteen cells
for each of these, and its certainty takes four bytes per cell. So codes are what is decoded ahead, queued and copied to
the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sum_factory.shared.codecs.codes import Codes
from sum_factory.shared.placement import Frame
from sum_factory.trainer.data.grid import (
    coverage_of_pixels,
    is_covered,
    label_pixels,
    logits_on_grid,
    maps_on_grid,
)
from sum_factory.trainer.data.samples import SampleId, TrainingSample
from sum_factory.trainer.target import Target


@dataclass(frozen=True)
class CodedSample:
    """A photo scaled for SAM, uint8 (3, h, w), with K masks as ``labels``, and their uncertainty maps unless the method
    reads none.

    ``crops`` int64 (K, 4) are the crops that the masks were found in (x0, y0, x1, y1), ``whole`` shows all of the
    photo. The sample has a certainty, for losses or for what a method reads of it, if ``needs_certainty``, and one
    for the drawing of points if ``sampling_by_certainty``. ``target`` says what losses compare with; the labels' logits
    are kept beside that if ``with_logits``. The rest is as in ``TrainingSample``; ``skipped`` counts the masks whose
    uncertainty is unknown.
    """

    id: SampleId
    key: str
    image: Tensor
    labels: Codes
    maps: Codes | None
    crops: npt.NDArray[np.int64]
    whole: Frame
    stride: int
    needs_certainty: bool
    sampling_by_certainty: bool
    valid: tuple[int, int]
    task: int
    skipped: int
    target: Target = "bits"
    with_logits: bool = False
    partners: tuple[Tensor, ...] = ()

    def on(self, device: torch.device) -> TrainingSample:
        """Look the codes up, bring them to the loss grid and threshold them, all on ``device``.

        Masks without a cell there are left out and counted.
        """
        side, cells = self.whole.side, self.whole.side // self.stride
        masks = torch.zeros(len(self.crops), cells, cells, dtype=torch.bool, device=device)
        logits = torch.zeros(masks.shape, device=device) if self.with_logits else None
        coverage = torch.zeros(masks.shape, device=device) if self.target == "coverage" else None
        pixel_masks = (
            torch.zeros(len(masks), side, side, dtype=torch.bool, device=device) if self.target == "points" else None
        )
        doubt = None if self.maps is None else torch.zeros(masks.shape, device=device)
        for frame, numbers in self._by_crop():
            indexes = torch.from_numpy(numbers).to(device)
            labels = look_up(self.labels, numbers, device)
            if logits is not None:
                logits[indexes] = logits_on_grid(labels, frame, self.whole, self.stride)
            if coverage is None and pixel_masks is None:
                masks[indexes] = logits_on_grid(labels, frame, self.whole, self.stride) > 0
            else:
                exact = label_pixels(labels, frame, self.whole)
                shares = coverage_of_pixels(exact, self.whole, self.stride)
                masks[indexes] = is_covered(shares)
                if coverage is not None:
                    coverage[indexes] = shares
                if pixel_masks is not None:
                    pixel_masks[indexes] = exact
            if self.maps is not None and doubt is not None:
                maps = look_up(self.maps, numbers, device)
                doubt[indexes] = maps_on_grid(maps, frame, self.whole, self.stride)
        nonempty = masks.flatten(1).any(1)
        certainty = None if doubt is None else 1 - doubt[nonempty]
        masks = masks[nonempty]
        return TrainingSample(
            id=self.id,
            key=self.key,
            image=self.image.to(device),
            masks=masks,
            certainty=certainty if self.needs_certainty else None,
            sampling=certainty if self.sampling_by_certainty else None,
            valid=self.valid,
            task=self.task,
            skipped=self.skipped + len(self.crops) - len(masks),
            logits=None if logits is None else logits[nonempty],
            partners=tuple(partner.to(device) for partner in self.partners),
            coverage=None if coverage is None else coverage[nonempty],
            pixel_masks=None if pixel_masks is None else pixel_masks[nonempty],
        )

    def _by_crop(self) -> list[tuple[Frame, npt.NDArray[np.int64]]]:
        """Return each crop's frame with the numbers of its masks."""
        boxes, which = np.unique(self.crops, axis=0, return_inverse=True)
        frames = [Frame.crop(self.whole.side, box) for box in boxes]
        return [(frame, np.flatnonzero(which.reshape(-1) == k)) for k, frame in enumerate(frames)]


Sample = TrainingSample | CodedSample
"""What a stream gives: a sample that is complete, or one that ``on`` completes on the device."""


def look_up(codes: Codes, numbers: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    """Return the values of the masks ``numbers`` of one crop, float32 (K, h, w), cut to their own grid.

    Equal to ``Codes.values``: the bytes and the tables are copied to ``device`` and looked up there.
    """
    height, width = codes.sizes[numbers].max(0).tolist()
    grid = torch.from_numpy(codes.grid[numbers, :height, :width]).to(device, non_blocking=True)
    table = torch.from_numpy(codes.table[numbers]).to(device, non_blocking=True)
    start = torch.arange(len(numbers), device=device, dtype=torch.int32)[:, None, None] * table.shape[1]
    return table.flatten().index_select(0, (grid.to(torch.int32) + start).flatten()).view(grid.shape)
