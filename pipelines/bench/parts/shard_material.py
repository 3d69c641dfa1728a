"""What the benchmark of shards stores: photos, and for each some 90 masks with SAM's logits and a refiner's.

The masks are those of ``vit_micro``, on a grid of 64 cells. Its published thresholds keep two or three masks of a
photo, so they are lowered, and of what is kept the best by predicted IoU are taken. A grid of 256 cells is made of them
(``enlarge``).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from segment_anything.utils.amg import calculate_stability_score
from torch import Tensor
from torch.nn import functional as F

from sum_factory.labelgen.formulas import difference
from sum_factory.labelgen.uncertainty import photo_to_input
from sum_factory.pipelines.microworld.scene import make_scenes
from sum_factory.shared.automask.automask import LabelGenerator
from sum_factory.shared.automask.settings import settings_for
from sum_factory.shared.errors import InputError
from sum_factory.shared.images import IMAGE_SUFFIXES, RgbImage, decode_image
from sum_factory.shared.placement import Frame
from sum_factory.shared.progress import track
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.refiner import Refiner, load_refiner
from sum_factory.shared.sam.runtime import Runtime, move_to_device

Floats = npt.NDArray[np.float32]

SETTINGS = settings_for(
    "vit_micro", points_per_side=32, pred_iou_thresh=0.5, stability_score_thresh=0.5, box_nms_thresh=0.9
)
MASKS_OF_A_PHOTO = 90
ORIGINAL_SIDE = 2250
"""Longer side of the originals, in pixels: that of SA-1B's photos."""
ORIGINAL_QUALITY, GRAIN = 85, 6.0
"""JPEG quality of the originals, and the deviation of the noise that makes an enlarged photo as hard to decode as one
that a camera took."""
LEAST_STABILITY, OFFSET = 0.95, 1.0
"""SAM's own filter: a mask is kept if it keeps this share of its area when the threshold moves by the offset."""
STEEPEST = 64.0
SCENES = 4242


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo with K masks: logits ``s`` and refined logits ``r``, float32 (K, S, S), on the square of ``frame``.

    ``original`` is the JPEG that a loader without a layer of photos has to decode. ``points`` are x, y and ``boxes`` x,
    y, width, height in the photo of ``frame``.
    """

    key: str
    original: bytes
    frame: Frame
    s: Floats
    r: Floats
    points: npt.NDArray[np.float64]
    boxes: npt.NDArray[np.int64]
    areas: npt.NDArray[np.int64]
    predicted_iou: npt.NDArray[np.float64]
    stability: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.s)

    @cached_property
    def grids(self) -> tuple[Floats, Floats, Floats]:
        """s, r and the uncertainty u, (K, h, w), cut to the rows and columns that show the photo."""
        rows, columns = self.frame.interpolation_cells
        s, r = (np.ascontiguousarray(values[:, :rows, :columns]) for values in (self.s, self.r))
        return s, r, np.asarray(difference(torch.from_numpy(s), torch.from_numpy(r)).numpy(), np.float32)


def find_photos(folder: Path | None, count: int) -> Iterator[tuple[str, RgbImage]]:
    """Yield name and pixels of ``count`` photos of a folder, or of scenes of the micro-world without one."""
    if folder is None:
        for number, scene in enumerate(make_scenes(SCENES, 0, count)):
            yield f"scene{number}", scene.image
        return
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if len(paths) < count:
        raise InputError(f"{folder}: {len(paths)} photos, and {count} are needed; give another --photos")
    for path in paths[:count]:
        yield path.stem, decode_image(path.read_bytes(), str(path))


@torch.no_grad()
def label_photos(folder: Path | None, count: int, refiner_file: Path | None) -> list[LabelledPhoto]:
    """Label photos with ``vit_micro``; without a file the refiner is SAM's own decoder, given point, box and mask."""
    loaded = load_sam()
    sam = move_to_device(loaded.sam, Runtime("cpu"))
    refiner = Refiner.copy_of(sam) if refiner_file is None else load_refiner(refiner_file, loaded)
    generator = LabelGenerator(sam, SETTINGS)
    photos = track(find_photos(folder, count), "labelling", "photo", count)
    return [_label(generator, refiner, key, image) for key, image in photos]


def _label(generator: LabelGenerator, refiner: Refiner, key: str, image: RgbImage) -> LabelledPhoto:
    labels = generator.label(image)
    kept = slice(0, MASKS_OF_A_PHOTO)
    frame, s, boxes = labels.frames[0], labels.logits[kept], labels.boxes[kept]
    (embedding,) = labels.embeddings.values()
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1).reshape(-1, 2)
    points = photo_to_input(labels.points[kept].tolist(), frame)
    index = torch.zeros(len(s), dtype=torch.int64)
    r = refiner.refine(
        embedding, index, points, photo_to_input(corners.tolist(), frame).view(-1, 4), torch.from_numpy(s)
    )
    return LabelledPhoto(
        key=key,
        original=_original(image),
        frame=frame,
        s=s,
        r=np.asarray(r.numpy(), np.float32),
        points=labels.points[kept],
        boxes=boxes,
        areas=labels.areas[kept],
        predicted_iou=labels.predicted_iou[kept],
        stability=labels.stability[kept],
    )


def _original(image: RgbImage) -> bytes:
    """Return a photo as the JPEG of a camera: its longer side ``ORIGINAL_SIDE``, with grain."""
    scale = ORIGINAL_SIDE / max(image.shape[:2])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    noise = np.random.default_rng(0).normal(0, GRAIN, (size[1], size[0], 3))
    large = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) + noise
    sink = io.BytesIO()
    Image.fromarray(np.clip(large, 0, 255).astype(np.uint8)).save(sink, "JPEG", quality=ORIGINAL_QUALITY)
    return sink.getvalue()


def enlarge(photo: LabelledPhoto) -> LabelledPhoto:
    """Return a photo of a SAM with four times the input side: the same outlines, on a grid of four times the cells.

    Interpolated logits would be four times as flat, and SAM would not have kept such masks: its stability filter asks
    that moving the threshold by 1 changes no more than 5 % of a mask's area. So the logits of a mask, and with the same
    factor those of the refiner, are made as steep as it takes to pass: the flattest that SAM would keep. That
    makes for more uncertainty, and more levels in a PNG, than steeper ones would.
    """
    s, r = (_interpolate(torch.from_numpy(values)) for values in (photo.s, photo.r))
    gains = _least_gains(s)[:, None, None]
    with Image.open(io.BytesIO(photo.original)) as image:
        width, height = image.size
    scale = width / photo.frame.crop_size[1]
    return replace(
        photo,
        frame=Frame.whole(photo.frame.side * 4, height, width),
        s=(s * gains).numpy(),
        r=(r * gains).numpy(),
        points=photo.points * scale,
        boxes=np.rint(photo.boxes * scale).astype(np.int64),
        areas=np.rint(photo.areas * scale**2).astype(np.int64),
    )


def _interpolate(values: Tensor) -> Tensor:
    return F.interpolate(values[:, None], scale_factor=4, mode="bicubic", align_corners=False)[:, 0]


def _least_gains(logits: Tensor) -> Tensor:
    """Return the least factor, 1 to ``STEEPEST``, with which each mask is stable, float32 (K,)."""
    low, high = torch.ones(len(logits)), torch.full((len(logits),), STEEPEST)
    for _ in range(16):
        middle = (low * high).sqrt()
        stable = calculate_stability_score(logits * middle[:, None, None], 0.0, OFFSET) >= LEAST_STABILITY
        low, high = torch.where(stable, low, middle), torch.where(stable, middle, high)
    return high
