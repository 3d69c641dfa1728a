"""Size, stability and box of masks from their low-resolution logits, without a full-resolution map of logits.

A mask is "upsample the logits to SAM's square, cut off the padding, resize to the crop, threshold", each time
bilinearly. An interpolated value is a convex combination of four neighbours, so a pixel is below a threshold if these
are: only the box of cells above the lowest threshold, and one cell around it, can hold a pixel that counts. On a CPU a
compiled kernel walks that box row by row and keeps two rows of each scale; on a GPU for which there is Triton another
does it tile by tile (``region_triton``); elsewhere the same is done with torch, in strips of rows.

The kernel takes products and sums in the order of ``torch.nn.functional.interpolate`` (its general kernel; for sums of
height and width up to 128 px, and for three channels on one thread, torch has another, which rounds differently). The
results are equal to the bit on a CPU that has fused multiply-add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sum_factory.shared.automask import region_kernel
from sum_factory.shared.placement import Frame

Floats = npt.NDArray[np.float32]
Taps = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Floats, Floats]
"""Of each output position: the two input positions that it lies between, and their weights."""

walk: Callable[..., tuple[int, ...]] = region_kernel.walk

STRIP_ELEMENTS = 1 << 26
"""Elements of a strip of rows of all masks, where torch does the work."""


@dataclass(frozen=True)
class Regions:
    """Where K masks of a crop are.

    ``areas``: int64 (K,), pixels. ``stability``: float32 (K,), NaN where not even the lower cut has a pixel.
    ``boxes``: int64 (K, 4), x0, y0, x1, y1 in the crop, x1 and y1 being the largest index; zeros for an empty mask.
    """

    areas: Tensor
    stability: Tensor
    boxes: Tensor


def measure(logits: Tensor, frame: Frame, threshold: float, offset: float) -> Regions:
    """Measure the masks of K low-resolution logits, float32 (K, h, w) on the square of ``frame``, at the crop's size.

    Stability is the IoU of the logits, at that size, cut at ``threshold + offset`` and at ``threshold - offset``.
    """
    cuts = (threshold, threshold + offset, threshold - offset)
    counts = _count_of(logits.device)(logits, frame, cuts)
    return Regions(
        areas=counts[:, 0],
        # as upstream: a quotient of int32 is a float32
        stability=counts[:, 1].to(torch.int32) / counts[:, 2].to(torch.int32),
        boxes=counts[:, 3:],
    )


def draw(logits: Floats, frame: Frame, threshold: float) -> npt.NDArray[np.bool_]:
    """Return the mask of low-resolution logits, float32 (h, w), at the crop's size, bool (H, W)."""
    mask = np.zeros(frame.crop_size, np.uint8)
    walk(logits, *_taps(frame), _float32((threshold, threshold, threshold)), mask)
    return mask.view(np.bool_)


def _count_of(device: torch.device) -> Callable[[Tensor, Frame, tuple[float, float, float]], Tensor]:
    if device.type == "cpu":
        return _count_on_cpu
    return _count_with_triton if device.type == "cuda" and find_spec("triton") else _count_with_torch


def _count_on_cpu(logits: Tensor, frame: Frame, cuts: tuple[float, float, float]) -> Tensor:
    """Return areas above each of ``cuts``, then the boxes, int64 (K, 7); on as many threads as torch has."""
    taps, limits, no_mask = _taps(frame), _float32(cuts), np.zeros((0, 0), np.uint8)
    counts = np.zeros((len(logits), 7), np.int64)

    def count(k: int) -> None:
        counts[k] = walk(planes[k], *taps, limits, no_mask)

    planes = logits.contiguous().numpy()
    threads = min(torch.get_num_threads(), len(planes))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(count, range(len(planes))))
    else:
        for k in range(len(planes)):
            count(k)
    return torch.from_numpy(counts)


def _count_with_triton(logits: Tensor, frame: Frame, cuts: tuple[float, float, float]) -> Tensor:
    """As ``_count_on_cpu``, to the bit, on a GPU."""
    from sum_factory.shared.automask.region_triton import count

    with torch.cuda.device(logits.device):  # Triton starts kernels on the current one
        return count(logits, _taps_on(logits.device, frame, _stream()), frame.crop_size, cuts)


def _stream() -> int:
    """Return the number of this thread's stream: memory that is given back may be taken again in its own alone."""
    return int(torch.cuda.current_stream().cuda_stream)


def _count_with_torch(logits: Tensor, frame: Frame, cuts: tuple[float, float, float]) -> Tensor:
    """As ``_count_on_cpu``, on any device."""
    count, (height, width) = len(logits), frame.crop_size
    areas = torch.zeros(count, 3, dtype=torch.int64, device=logits.device)
    rows = torch.zeros(count, height, dtype=torch.bool, device=logits.device)
    columns = torch.zeros(count, width, dtype=torch.bool, device=logits.device)
    for start, strip in _strips(logits, frame):
        for k, cut in enumerate(cuts):
            above = strip > cut
            areas[:, k] += above.flatten(1).sum(1)
            if k == 0:
                rows[:, start : start + strip.shape[1]] = above.any(2)
                columns |= above.any(1)
    edges = [edge for hits in (columns, rows) for edge in (_first(hits), hits.shape[1] - 1 - _first(hits.flip(1)))]
    boxes = torch.stack([edges[0], edges[2], edges[1], edges[3]], 1)
    return torch.cat([areas, boxes * (areas[:, :1] > 0)], 1)


def _first(hits: Tensor) -> Tensor:
    """Return the index of the first True of each row, int64 (K,); 0 where there is none."""
    return hits.to(torch.uint8).argmax(1)


def _strips(logits: Tensor, frame: Frame) -> Iterator[tuple[int, Tensor]]:
    """Upsample logits (K, h, w) to the crop's size in strips of rows: yield the first row and the strip, (K, n, W)."""
    square_rows, square_columns, crop_rows, crop_columns = (
        tuple(axis) for axis in _by_axis(_taps_on(logits.device, frame))
    )
    wide = _between(logits, square_columns, 2)
    height, width = frame.crop_size
    step = max(1, STRIP_ELEMENTS // max(1, len(logits) * max(width, frame.side)))
    for start in range(0, height, step):
        part = tuple(tap[start : start + step] for tap in crop_rows)
        first, last = int(part[0].min()), int(part[1].max())
        square = _between(wide, tuple(tap[first : last + 1] for tap in square_rows), 1)
        across = _between(square, crop_columns, 2)
        yield start, _between(across, (part[0] - first, part[1] - first, *part[2:]), 1)


def _between(values: Tensor, taps: tuple[Tensor, ...], dim: int) -> Tensor:
    """Interpolate ``values`` (K, h, w) along ``dim``."""
    before, after, weight_before, weight_after = taps
    shape = (-1, 1) if dim == 1 else (-1,)
    upper = values.index_select(dim, after) * weight_after.view(shape)
    return torch.addcmul(upper, values.index_select(dim, before), weight_before.view(shape))


@lru_cache(maxsize=256)
def _interpolation(before: int, after: int) -> Taps:
    """Return how ``after`` positions lie between ``before`` ones, as ``interpolate`` with ``align_corners=False``."""
    scale = np.float64(np.float32(before) / np.float32(after))
    # in float64 both operations are exact: rounding once is what a fused multiply-add does
    source = np.maximum(((np.arange(after) + 0.5) * scale - 0.5).astype(np.float32), np.float32(0))
    first = np.minimum(source.astype(np.int32), before - 1)
    second = np.minimum(first + 1, before - 1)
    weight = np.clip(source - first.astype(np.float32), np.float32(0), np.float32(1))
    return first, second, np.float32(1) - weight, weight


def _taps(frame: Frame) -> tuple[npt.NDArray[Any], ...]:
    """Return the taps of the square's rows and columns, as far as they show the image, then those of the crop's."""
    grid, (height, width) = frame.side // 4, frame.input_size
    square = _interpolation(grid, frame.side)
    rows, columns = (tuple(part[:size] for part in square) for size in (height, width))
    crop_height, crop_width = frame.crop_size
    return (*rows, *columns, *_interpolation(height, crop_height), *_interpolation(width, crop_width))


@lru_cache(maxsize=16)
def _taps_on(device: torch.device, frame: Frame, stream: int = 0) -> tuple[Tensor, ...]:
    """Return ``_taps`` on a device, for use in a stream."""
    return tuple(torch.tensor(part, device=device) for part in _taps(frame))


def _by_axis(taps: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    return [taps[start : start + 4] for start in range(0, 16, 4)]


def _float32(cuts: tuple[float, float, float]) -> Floats:
    return np.array(cuts, np.float32)
