"""The views of AugSeg: a photo mirrored and scaled with all that lies on it, changed in its colours, and mixed.

All is drawn from the generator of the sample, so a view depends on nothing but the sample. Colours are changed by
torchvision, which is imported when it is first used: it takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sum_factory.trainer.data.grid import is_covered
from sum_factory.trainer.data.samples import TrainingSample

FLIPPED = 0.5
"""Share of the photos that are mirrored."""


def draw(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    """Return a number, uniform from ``low`` to ``high``."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def beta(generator: torch.Generator, a: int, b: int) -> float:
    """Return a number of the distribution Beta(a, b): the ``a``-th smallest of a + b - 1 uniform ones."""
    uniform = torch.rand(a + b - 1, generator=generator, dtype=torch.float64)
    return float(uniform.sort().values[a - 1])


def moved(
    sample: TrainingSample, generator: torch.Generator, scales: tuple[float, float], stride: int
) -> TrainingSample:
    """Return a view of a sample, mirrored or not, scaled by a factor from ``scales`` and cut to SAM's square.

    Photo, masks, weights and valid area change alike. A cut is of whole cells of the loss grid; masks that it leaves
    nothing of are gone. Of the photo all is resized alike, so that a cell still shows what it showed.
    """
    rows, columns = sample.valid
    factor = math.exp(draw(generator, math.log(scales[0]), math.log(scales[1])))
    height, width = (max(1, round(size / max(1.0, factor))) for size in (rows, columns))
    top = int(draw(generator, 0, rows - height + 1))
    left = int(draw(generator, 0, columns - width + 1))
    cells = sample.masks.shape[-1]
    size = tuple(min(cells, max(1, round(each * factor))) for each in (height, width))
    photo = sample.image[:, top * stride : (top + height) * stride, left * stride : (left + width) * stride]
    pixels = _pixels(photo.shape[1:], (height, width), size, cells * stride)
    image = F.interpolate(photo[None].float(), pixels, mode="bilinear", align_corners=False, antialias=True)[0]
    mirrored = draw(generator) < FLIPPED

    def cut(values: Tensor) -> Tensor:
        shown = values[:, top : top + height, left : left + width].float()
        scaled = F.interpolate(shown[:, None], size, mode="bilinear", align_corners=False, antialias=True)[:, 0]
        padded = torch.zeros(len(values), cells, cells, device=values.device)
        padded[:, : size[0], : size[1]] = scaled.flip(2) if mirrored else scaled
        return padded

    coverage = None if sample.coverage is None else cut(sample.coverage)
    masks = cut(sample.masks) >= 0.5 if coverage is None else is_covered(coverage)
    kept = masks.flatten(1).any(1)
    view = replace(
        sample,
        image=(image.flip(2) if mirrored else image).round().clamp(0, 255).to(torch.uint8),
        masks=masks,
        coverage=coverage,
        certainty=None if sample.certainty is None else cut(sample.certainty),
        sampling=None if sample.sampling is None else cut(sample.sampling),
        logits=None if sample.logits is None else cut(sample.logits),
        valid=(size[0], size[1]),
    )
    return only(view, kept)


def _pixels(photo: torch.Size, cells: tuple[int, int], size: tuple[int, ...], side: int) -> list[int]:
    """Return the pixels that a cut of ``cells`` gets, scaled as its cells are to ``size``; the last may be cut
    short."""
    return [min(side, max(1, round(pixels * new / old))) for pixels, old, new in zip(photo, cells, size, strict=True)]


def only(sample: TrainingSample, kept: Tensor) -> TrainingSample:
    """Return a sample with the masks that ``kept``, bool (K,), marks; the others count as skipped."""
    skipped = sample.skipped + int((~kept).sum())
    masks = sample.masks[kept]
    certainty, sampling, logits, coverage = (
        None if values is None else values[kept]
        for values in (sample.certainty, sample.sampling, sample.logits, sample.coverage)
    )
    weights = replace(sample, certainty=certainty, sampling=sampling, logits=logits)
    return replace(weights, masks=masks, coverage=coverage, skipped=skipped)


def recoloured(image: Tensor, generator: torch.Generator, most: int) -> Tensor:
    """Change colours of uint8 (3, h, w) by one to ``most`` operations, each drawn with a strength of its own.

    Operations and ranges are AugSeg's: nothing, auto-contrast, equalising, blur, contrast, brightness, saturation,
    sharpness, fewer bits, solarising, hue.
    """
    operations = _operations()
    for _ in range(1 + int(draw(generator, 0, most))):
        image = operations[int(draw(generator, 0, len(operations)))](image, draw(generator), draw(generator) < 0.5)
    return image


def _operations() -> list[Callable[[Tensor, float, bool], Tensor]]:
    """Return what changes an image, given a strength in [0, 1) and a coin."""
    from torchvision.transforms.v2 import functional as v2

    def factor(strength: float) -> float:
        return 0.95 - 0.9 * strength

    def blur(image: Tensor, strength: float, _: bool) -> Tensor:
        sigma = 0.1 + 1.9 * strength
        reach = min(math.ceil(3 * sigma), min(image.shape[1:]) - 1)
        blurred: Tensor = v2.gaussian_blur(image, [2 * reach + 1] * 2, [sigma] * 2)
        return blurred

    return [
        lambda image, strength, coin: image,
        lambda image, strength, coin: v2.autocontrast(image),
        lambda image, strength, coin: v2.equalize(image),
        blur,
        lambda image, strength, coin: v2.adjust_contrast(image, factor(strength)),
        lambda image, strength, coin: v2.adjust_brightness(image, factor(strength)),
        lambda image, strength, coin: v2.adjust_saturation(image, factor(strength)),
        lambda image, strength, coin: v2.adjust_sharpness(image, factor(strength)),
        lambda image, strength, coin: v2.posterize(image, 8 - max(1, math.ceil(4 * strength))),
        lambda image, strength, coin: v2.solarize(image, 256.0 - max(1, math.ceil(255 * strength))),
        lambda image, strength, coin: v2.adjust_hue(image, 0.5 * strength * (1 if coin else -1)),
    ]


def pasted(
    image: Tensor, other: Tensor, share: float, generator: torch.Generator, stride: int, cells: int
) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of another photo, uint8 (3, h, w), at the same position of ``image``: CutMix.

    It takes ``share`` of the image's area unless it reaches beyond one of both photos, and whole cells of the loss
    grid. Returns the mixed image, and bool (cells, cells) where the other photo is.
    """
    covered = torch.zeros(cells, cells, dtype=torch.bool, device=image.device)
    spans = []
    for axis in (1, 2):
        size = image.shape[axis]
        length, centre = math.sqrt(share) * size, draw(generator, size // 8, size)
        most = min(size, other.shape[axis]) // stride
        low, high = round((centre - length / 2) / stride), round((centre + length / 2) / stride)
        spans.append((min(max(low, 0), most), min(max(high, 0), most)))
    (top, bottom), (left, right) = spans
    covered[top:bottom, left:right] = True
    mixed = image.clone()
    pixels = (slice(None), slice(top * stride, bottom * stride), slice(left * stride, right * stride))
    mixed[pixels] = other[pixels]
    return mixed, covered
