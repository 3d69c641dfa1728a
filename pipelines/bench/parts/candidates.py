"""Realistic candidates for a SAM whose weights are random, the same for whoever decodes.

The masks of random weights are noise over the whole image, and the quality filters keep none. So that a comparison
with such weights does realistic work after the decoder, its outputs are replaced, after they have been computed: by
masks of ``OBJECTS`` blobs of all sizes, some at the borders, each found by many points, nearly alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.precision import Precision
from sum_factory.shared.sam.point_decoder import POINT_OUTPUTS, DecodedPoints, PointDecoder, PointImage
from sum_factory.shared.sam.upstream import Sam

OBJECTS = 300
GOOD_PROMPTS, PASSING = 0.35, 0.2
"""Share of prompts with a candidate that passes the published threshold of predicted IoU, and of candidates that do."""
SLOPE = 5.0
"""Logits a cell at the boundary."""
SEED = 3


class Candidates:
    """Low-resolution logits and predicted IoU of the n-th prompt, whatever the prompt is."""

    def __init__(self, cells: int) -> None:
        generator = torch.Generator().manual_seed(SEED)
        rows, columns = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
        fields = []
        for _ in range(OBJECTS):
            centre = torch.rand(2, generator=generator) * cells * 1.1 - 0.05 * cells
            radius = cells * 0.02 * 20 ** torch.rand(1, generator=generator)
            stretch = 0.5 + torch.rand(1, generator=generator)
            distance = ((rows - centre[0]) * stretch).hypot((columns - centre[1]) / stretch)
            coarse = torch.randn(1, 1, 12, 12, generator=generator)
            bumps = F.interpolate(coarse, (cells, cells), mode="bicubic", align_corners=False)[0, 0]
            fields.append((SLOPE * (radius - distance + 0.15 * radius * bumps)).clamp(-20, 20))
        self.fields = torch.stack(fields).half()

    def logits(self, first: int, wanted: Tensor) -> Tensor:
        """Return the logits (K, h, w) of those that are ``wanted``, bool (P, 3), of prompts ``first`` and following."""
        objects, gain, *_ = self._draw(first, len(wanted))
        logits: Tensor = self.fields[(objects * OBJECTS).long()[wanted]].float() * (0.6 + gain[wanted])[:, None, None]
        return logits

    def predicted_iou(self, first: int, count: int) -> Tensor:
        """Return the predicted IoU (count, 3) of prompts ``first`` and following."""
        *_, quality, of_prompt = self._draw(first, count)
        passes = (of_prompt[:, :1] < GOOD_PROMPTS) & (of_prompt.roll(1, 1) * GOOD_PROMPTS < PASSING)
        return torch.where(passes, 0.88 + 0.1 * quality, 0.88 - 0.3 * quality)

    def _draw(self, first: int, count: int) -> Tensor:
        """Return four random numbers of each candidate, (4, count, 3)."""
        draws = [np.random.default_rng((SEED, first + k)).random((4, POINT_OUTPUTS)) for k in range(count)]
        return torch.from_numpy(np.stack(draws, 1)).float()


class Replacing:
    """Counts prompts as they are decoded, and keeps the real outputs of the first."""

    def __init__(self, candidates: Candidates, sample: int) -> None:
        self.candidates, self.sample = candidates, sample
        self.done = 0
        self.real: list[tuple[Tensor, Tensor]] = []

    def next(self, count: int) -> int:
        """Return the number of the first of the next ``count`` prompts."""
        first, self.done = self.done, self.done + count
        return first

    def keep(self, logits: Tensor, iou: Tensor) -> None:
        """Keep what the weights themselves gave, for the first ``sample`` prompts."""
        if sum(len(kept) for _, kept in self.real) < self.sample:
            self.real.append((logits.clone(), iou.clone()))

    def sampled(self) -> tuple[Tensor, Tensor]:
        """Return the real logits and predicted IoU of the first prompts."""
        logits, iou = (torch.cat(parts)[: self.sample] for parts in zip(*self.real, strict=True))
        return logits, iou


def replace_upstream(sam: Sam, replacing: Replacing) -> None:
    """Make ``sam.mask_decoder`` compute as ever and then return candidates."""
    forward: Callable[..., tuple[Tensor, Tensor]] = sam.mask_decoder.forward

    def replaced(**arguments: Any) -> tuple[Tensor, Tensor]:
        replacing.keep(*forward(**arguments))
        count = len(arguments["sparse_prompt_embeddings"])
        first = replacing.next(count)
        everything = torch.ones(count, POINT_OUTPUTS, dtype=torch.bool)
        logits = torch.unflatten(replacing.candidates.logits(first, everything), 0, (count, POINT_OUTPUTS))
        return logits, replacing.candidates.predicted_iou(first, count)

    sam.mask_decoder.forward = replaced


class ReplacingDecoder(PointDecoder):
    """Our decoder, which computes as ever and then returns candidates."""

    def __init__(self, sam: Sam, replacing: Replacing, precision: Precision = "fp32") -> None:
        super().__init__(sam, precision)
        self.replacing = replacing

    def decode(self, image: PointImage, sparse: Tensor) -> DecodedPoints:
        decoded = super().decode(image, sparse)
        if sum(len(kept) for _, kept in self.replacing.real) < self.replacing.sample:
            everything = torch.ones(len(sparse), POINT_OUTPUTS, dtype=torch.bool)
            logits = super().masks(decoded, everything)
            self.replacing.keep(torch.unflatten(logits, 0, (-1, POINT_OUTPUTS)), decoded.predicted_iou)
        self.first = self.replacing.next(len(sparse))
        decoded.predicted_iou.copy_(self.replacing.candidates.predicted_iou(self.first, len(sparse)))
        return decoded

    def masks(self, decoded: DecodedPoints, wanted: Tensor) -> Tensor:
        super().masks(decoded, wanted)
        return self.replacing.candidates.logits(self.first, wanted)
