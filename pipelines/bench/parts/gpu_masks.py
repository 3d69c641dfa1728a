"""Automatic masks on a device, ours and upstream's, of the same photo with the same weights and candidates.

Ours works as in ``labelgen run``: photos in batches, several batches in flight, labels encoded by processes; from the
pixels of a photo to the blobs of its labels. Upstream works a photo at a time, from pixels to COCO's RLE.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sum_factory.labelgen.coding import LabelCoder, coding_processes
from sum_factory.pipelines.bench.automask import StageClock, label_with_upstream, make_model, make_photo
from sum_factory.pipelines.bench.parts.agreement import compare
from sum_factory.pipelines.bench.parts.candidates import Candidates, Replacing, replace_upstream
from sum_factory.shared.automask.automask import GeneratedMasks, LabelGenerator
from sum_factory.shared.automask.lanes import take_cores
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.cores import usable_cores
from sum_factory.shared.exactness import LEVELS, Exactness
from sum_factory.shared.gpu.clock import clock_of
from sum_factory.shared.gpu.sizes import MEMORY_SHARE, AtOnce, bound_memory, fitting
from sum_factory.shared.images import RgbImage
from sum_factory.shared.precision import Precision
from sum_factory.shared.sam.architecture import ARCHITECTURES, build_architecture
from sum_factory.shared.sam.compiled import compiled_or_plain
from sum_factory.shared.sam.point_decoder import DecodedPoints, PointDecoder, PointImage
from sum_factory.shared.sam.runtime import Runtime, move_to_device, resize
from sum_factory.shared.sam.upstream import Sam

GIB = 1 << 30


@dataclass(frozen=True)
class MasksWork:
    """What is labelled: photos of ``size`` height, width, on a grid of so many points a side, so many by each side."""

    photos: int
    upstream_photos: int
    points: int
    size: tuple[int, int]
    small: bool = False
    """Whether models are cut down to two blocks and an input of 256 pixels, to see that every line runs."""

    def settings(self) -> AutomaskSettings:
        """Return the settings of both sides."""
        return AutomaskSettings(points_per_side=self.points, max_area_share=2.0)

    def model(self, name: str) -> Sam:
        """Return a model of random weights, the same always."""
        if not self.small:
            return make_model(name)
        torch.manual_seed(0)
        small = replace(ARCHITECTURES[name], encoder_depth=2, global_attention_blocks=(1,), image_size=256)
        return build_architecture(small)


class TabledCandidates(Candidates):
    """Candidates of the prompts of a grid, drawn once and kept on a device; the next photo's are the same again."""

    def __init__(self, cells: int, prompts: int, device: torch.device) -> None:
        super().__init__(cells)
        self.prompts, self.fields = prompts, self.fields.to(device)
        self._table = super()._draw(0, prompts).to(device)

    def _draw(self, first: int, count: int) -> Tensor:
        which = torch.arange(first, first + count, device=self._table.device) % self.prompts
        return self._table[:, which]


class LaneDecoder(PointDecoder):
    """Our decoder, which computes as ever and then returns candidates; each thread counts the prompts of its photos."""

    def __init__(self, sam: Sam, candidates: TabledCandidates, precision: Precision, compile: bool) -> None:
        super().__init__(sam, precision)
        self.candidates, self.own = candidates, threading.local()
        self.compute = compiled_or_plain(super().decode, "the decoder") if compile else super().decode

    def decode(self, image: PointImage, sparse: Tensor) -> DecodedPoints:
        decoded: DecodedPoints = self.compute(image, sparse)
        self.own.first = getattr(self.own, "next", 0)
        self.own.next = self.own.first + len(sparse)
        decoded.predicted_iou.copy_(self.candidates.predicted_iou(self.own.first, len(sparse)))
        return decoded

    def masks(self, decoded: DecodedPoints, wanted: Tensor) -> Tensor:
        super().masks(decoded, wanted)
        return self.candidates.logits(self.own.first, wanted)


def measure_masks(
    name: str, device: torch.device, levels: Sequence[Exactness], work: MasksWork, compile: bool = False
) -> dict[str, Any]:
    """Return photos/s of both sides at each level, their ratio, stages and peak memory. Masks of ``exact`` must agree.

    Raises ``AssertionError`` if they do not.
    """
    plain, image = work.model(name), make_photo("vit_b", work.size)
    candidates = TabledCandidates(plain.image_encoder.img_size // 4, work.points**2, device)
    figures: dict[str, Any] = {}
    for level in levels:
        ours, masks = _measure_ours(deepcopy(plain), device, level, work, image, candidates, compile)
        theirs, records = _measure_upstream(deepcopy(plain), device, level, work, image, candidates)
        agreement = compare(masks, records, work.settings())
        assert level != "exact" or not agreement.unexplained, agreement.unexplained
        ratio = ours["photos_per_second"] / theirs["photos_per_second"]
        told = {f"upstream_{key}": value for key, value in theirs.items()}
        equal = {"masks": len(masks), "masks_equal": agreement.exact}
        figures[level.replace("-", "_")] = {**ours, **told, "ratio": round(ratio, 2), **equal}
    return figures


def _measure_ours(
    sam: Sam,
    device: torch.device,
    level: Exactness,
    work: MasksWork,
    image: RgbImage,
    candidates: TabledCandidates,
    compile: bool,
) -> tuple[dict[str, Any], GeneratedMasks]:
    move_to_device(sam, Runtime(str(device), level, compile))
    cores = usable_cores()
    on_gpu = device.type == "cuda"
    at_once = fitting(sam, bound_memory(device, MEMORY_SHARE)) if on_gpu else AtOnce(2, 64)
    lanes, clock = take_cores(device, cores), clock_of(device)
    generator = LabelGenerator(
        sam,
        work.settings(),
        at_once.points,
        photos_per_batch=at_once.photos,
        exactness=level,
        lanes=lanes,
        clock=clock,
    )
    generator.decoder = LaneDecoder(sam, candidates, LEVELS[level].decoder, compile)
    coder = LabelCoder(coding_processes(on_gpu, cores))

    def label(batch: Sequence[Callable[[], RgbImage]]) -> list[GeneratedMasks]:
        return generator.label_all([(image, load()) for load in batch])

    def code(labelled: Sequence[GeneratedMasks]) -> GeneratedMasks:
        for each in labelled:
            coder.encode(each)
        return labelled[0]

    def run(photos: int) -> GeneratedMasks:
        with ThreadPoolExecutor(max(2, cores)) as pool:
            resized = [pool.submit(resize, image, generator.side).result for _ in range(photos)]
            batches = [resized[start : start + at_once.photos] for start in range(0, photos, at_once.photos)]
            *_, last = lanes.in_order(label, batches, code)
        return last

    run(lanes.count * at_once.photos)
    clock.take()
    with _peak(device) as peak:
        started = time.perf_counter()
        masks = run(work.photos)
        seconds = time.perf_counter() - started
    coder.close()
    busy = clock.take()
    stages = sum(busy.by_stage.values())
    return {
        "photos_per_second": round(work.photos / seconds, 3),
        "busy": round(busy.share, 3),
        "share_of": {stage: round(taken / stages, 3) for stage, taken in sorted(busy.by_stage.items())},
        "photos_at_once": at_once.photos,
        "points_at_once": at_once.points,
        **peak,
    }, masks


def _measure_upstream(
    sam: Sam, device: torch.device, level: Exactness, work: MasksWork, image: RgbImage, candidates: TabledCandidates
) -> tuple[dict[str, Any], Any]:
    sam.to(device)
    replace_upstream(sam, Replacing(candidates, 0))
    label_with_upstream(sam, replace(work.settings(), points_per_side=4), image, StageClock(), level)
    candidates_again = Replacing(candidates, 0)
    sam = _again(sam, candidates_again)
    records: Any = []
    with _peak(device) as peak:
        started = time.perf_counter()
        for _ in range(work.upstream_photos):
            records = label_with_upstream(sam, work.settings(), image, StageClock(), level)
        seconds = time.perf_counter() - started
    return {"photos_per_second": round(work.upstream_photos / seconds, 4), **peak}, records


def _again(sam: Sam, replacing: Replacing) -> Sam:
    """Return ``sam`` with prompts counted from 0: those that warmed it up do not count."""
    del sam.mask_decoder.forward  # what replaced the class's own
    replace_upstream(sam, replacing)
    return sam


@contextmanager
def _peak(device: torch.device) -> Iterator[dict[str, float]]:
    """Put the peak of a GPU's memory inside into what is yielded, in GiB; elsewhere nothing."""
    found: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        found["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / GIB, 2)
