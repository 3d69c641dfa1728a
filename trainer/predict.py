"""Segment one object of one photo from points and a box, and draw what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sum_factory.shared.drawing import draw_mask, stroke_of
from sum_factory.shared.errors import ImageError, SettingsError
from sum_factory.shared.exactness import Exactness, settle
from sum_factory.shared.images import RgbImage
from sum_factory.shared.photo_pixels import AnyPhoto, pixels_of
from sum_factory.shared.placement import Frame
from sum_factory.shared.precision import Precision
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.sam.decode import BOX_MAX, BOX_MIN, NEGATIVE, PAD, POSITIVE, Prompts, decode_prompts
from sum_factory.shared.sam.hq import HqOutput, add_vectors
from sum_factory.shared.sam.runtime import Embedder, Runtime, pick_device
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.evaluation.run import load_weights, prompted_task

Mask = npt.NDArray[np.bool_]
Point = tuple[float, float]
Box = tuple[float, float, float, float]
Coordinates = Sequence[Sequence[float]] | npt.NDArray[Any]

MASK_COLOUR, POSITIVE_COLOUR, NEGATIVE_COLOUR, BOX_COLOUR = (64, 160, 255), (60, 220, 60), (235, 50, 50), (255, 210, 0)
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class UserPrompt:
    """Points on the object and off it, each x, y, and a box, x0, y0, x1, y1; all in pixels of the photo."""

    positive: tuple[Point, ...] = ()
    negative: tuple[Point, ...] = ()
    box: Box | None = None

    @property
    def ambiguous(self) -> bool:
        """Whether it is a single point, which may mean the object, a part of it or the whole that it belongs to."""
        return self.box is None and len(self.positive) + len(self.negative) == 1


@dataclass(frozen=True)
class Prediction:
    """A mask, bool (H, W); the IoU that the model expects of it; which of ``outputs`` outputs it is, from 1.

    ``prompted_task`` is the task whose vector was given, None for a model without a task prompt.
    """

    mask: Mask
    predicted_iou: float
    output: int
    outputs: int
    prompted_task: str | None


@dataclass(frozen=True)
class Predictor:
    """A model that segments what a user points at. ``precision`` is that of the image encoder."""

    weights: LoadedSam
    precision: Precision = "fp32"

    def predict(
        self,
        image: AnyPhoto,
        points: Coordinates = (),
        labels: Sequence[int] | None = None,
        boxes: Coordinates | Sequence[float] = (),
        task: str = "unspecified",
    ) -> list[Prediction]:
        """Segment objects of one photo: one for each box, or one for the points. The photo is encoded once.

        ``image`` is a path or URL, a Pillow image, or RGB uint8 (H, W, 3). ``points`` (N, 2), x and y in pixels of the
        photo from 0 at the top left, are all of one object; ``labels`` say which are on it, 1, and off it, 0, by
        default all on. ``boxes`` is a box, x0, y0, x1, y1, or several (M, 4). Points may go with one box. ``task`` is
        unspecified, salient, entity or part. Raises as ``predict_masks``, and ``SettingsError`` for prompts that do not
        go together.
        """
        return self.predict_prompts(image, prompts_of(points, labels, boxes), task)

    def predict_prompts(
        self, image: AnyPhoto, prompts: Sequence[UserPrompt], task: str = "unspecified"
    ) -> list[Prediction]:
        """Segment what each of ``prompts`` means in one photo, as ``predict``."""
        return predict_masks(self.weights, pixels_of(image), prompts, task, self.precision)


def load_model(
    weights: str | Path,
    sam: str | None = None,
    hq_output: HqOutput = "hq",
    device: str = "auto",
    exactness: Exactness = "exact",
) -> Predictor:
    """Load weights of any kind for prediction: the folder of a run, SAM's, SUM's, a variant's, HQ-SAM's.

    ``sam`` is the SAM that the weights of a variant sit on, by default where it lay in training. ``exactness`` is
    exact, all in fp32, or encoder-bf16. Raises ``CheckpointError`` for weights that cannot be
    used, ``SettingsError`` for a device or output that there is not.
    """
    settle(exactness, pick_device(device))
    runtime = Runtime(device, exactness)
    return Predictor(load_weights(str(weights), runtime, sam, hq_output), runtime.level.encoder)


def prompts_of(
    points: Coordinates, labels: Sequence[int] | None, boxes: Coordinates | Sequence[float]
) -> list[UserPrompt]:
    """Return the prompts that points, (N, 2), their labels and boxes, (4,) or (M, 4), mean: one per object.

    Raises ``SettingsError`` for other shapes, and for those that do not go together.
    """
    several = _rows("boxes", boxes, 4)
    found = _rows("points", points, 2)
    kinds = [1] * len(found) if labels is None else [int(label) for label in labels]
    if len(kinds) != len(found) or not {*kinds} <= {0, 1}:
        raise SettingsError(f"labels: expected {len(found)} of 1 (on the object) and 0 (off it), found {list(kinds)}")
    if found and len(several) > 1:
        raise SettingsError(f"points of one object, and {len(several)} boxes: give points with a single box at most")
    on, off = (tuple((x, y) for (x, y), kind in zip(found, kinds, strict=True) if kind == each) for each in (1, 0))
    if not several:
        return [UserPrompt(on, off)]
    return [UserPrompt(on, off, (box[0], box[1], box[2], box[3])) for box in several]


def _rows(name: str, given: Coordinates | Sequence[float], size: int) -> list[list[float]]:
    try:
        found = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{name}: expected numbers of pixels in rows of {size} ({error})") from error
    if found.size == 0:
        return []
    if found.shape[-1] != size or found.ndim > 2:
        raise SettingsError(f"{name}: expected pixels in rows of {size}, found an array of shape {found.shape}")
    rows: list[list[float]] = found.reshape(-1, size).tolist()
    return rows


def predict_masks(
    weights: LoadedSam,
    image: RgbImage,
    prompts: Sequence[UserPrompt],
    task: str = "unspecified",
    precision: Precision = "fp32",
) -> list[Prediction]:
    """Segment what each of ``prompts`` means in an image, RGB uint8 (H, W, 3).

    A single point has three outputs, of which the one of highest predicted IoU counts; any other prompt has one.
    Raises ``SettingsError`` for a prompt that is empty or not in the image, and for a task that weights without a task
    prompt cannot be told; ``ImageError`` for an image that is too thin.
    """
    height, width = image.shape[:2]
    sam = weights.sam
    frame = Frame.whole(int(sam.image_encoder.img_size), height, width)
    if 0 in frame.input_size:
        raise ImageError(f"{width} x {height} is too thin for SAM; cut it up")
    for prompt in prompts:
        check_prompt(prompt, height, width)
    check_task(weights, task)
    embedding = Embedder(sam, precision).embed(image)
    vector = weights.task_vector(task)
    if vector is not None:
        embedding = add_vectors(embedding, vector.to(sam.device)[None])
    return [_predict(weights, embedding, prompt, frame, task) for prompt in prompts]


def predict_mask(
    weights: LoadedSam, image: RgbImage, prompt: UserPrompt, task: str = "unspecified", precision: Precision = "fp32"
) -> Prediction:
    """Segment what one prompt means, as ``predict_masks``."""
    return predict_masks(weights, image, [prompt], task, precision)[0]


def _predict(weights: LoadedSam, embedding: Tensor, prompt: UserPrompt, frame: Frame, task: str) -> Prediction:
    logits, predicted_iou = _decode(weights.sam, embedding, prompt, frame)
    best = int(predicted_iou.argmax())
    mask = (logits[best] > weights.sam.mask_threshold).cpu().numpy()
    return Prediction(mask, float(predicted_iou[best]), best + 1, len(logits), prompted_task(weights, task))


@torch.no_grad()
def _decode(sam: Sam, embedding: Tensor, prompt: UserPrompt, frame: Frame) -> tuple[Tensor, Tensor]:
    """Return the logits (N, H, W) of all outputs that count for a prompt, and their predicted IoU (N,)."""

    def to_input(points: Sequence[Sequence[float]]) -> Tensor:
        return torch.as_tensor(frame.to_input(np.array(points, np.float64)), dtype=torch.float32, device=sam.device)

    coords = to_input([*prompt.positive, *prompt.negative, *(_corners(prompt) or [(0.0, 0.0)])])
    labels = [POSITIVE] * len(prompt.positive) + [NEGATIVE] * len(prompt.negative)
    if prompt.box is None:
        coords[-1] = 0  # one token of padding, as upstream has it
    labels += [PAD] if prompt.box is None else [BOX_MIN, BOX_MAX]
    prompts = Prompts(coords[None], torch.tensor([labels], device=sam.device))
    low_res, predicted_iou = decode_prompts(
        sam, embedding, torch.zeros(1, dtype=torch.long, device=sam.device), prompts
    )
    counted = slice(1, None) if prompt.ambiguous and low_res.shape[1] > 1 else slice(0, 1)
    return sam.postprocess_masks(low_res[:, counted], frame.input_size, frame.crop_size)[0], predicted_iou[0, counted]


def _corners(prompt: UserPrompt) -> list[Point]:
    return [] if prompt.box is None else [prompt.box[:2], prompt.box[2:]]


def check_task(weights: LoadedSam, task: str) -> None:
    """Raise ``SettingsError`` if ``task`` is asked of weights that have no task prompt."""
    if weights.task_prompt is None and task != "unspecified":
        raise SettingsError(
            f"these weights have no task prompt, so the task {task!r} means nothing to them; leave the task out, "
            "or use weights that were trained with one"
        )


def check_prompt(prompt: UserPrompt, height: int, width: int) -> None:
    """Raise ``SettingsError`` if a prompt asks for nothing, or lies outside an image of this size."""
    if not prompt.positive and prompt.box is None:
        raise SettingsError("nothing to segment: give a point on the object, or a box around it")
    for x, y in (*prompt.positive, *prompt.negative):
        if not (0 <= x < width and 0 <= y < height):
            raise SettingsError(
                f"the point {x:g},{y:g} is outside the image: it is {width} x {height}, "
                f"x goes from 0 to {width - 1} and y from 0 to {height - 1}"
            )
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise SettingsError(
                f"the box {x0:g},{y0:g},{x1:g},{y1:g} is empty or not inside the image: expected x0,y0,x1,y1 with "
                f"0 <= x0 < x1 <= {width} and 0 <= y0 < y1 <= {height}"
            )


def draw_prediction(image: RgbImage, mask: Mask, prompt: UserPrompt) -> RgbImage:
    """Draw a mask with its outline over an image, and the prompt: green points on it, red ones off it, a yellow box."""
    drawn, stroke = image.astype(np.float32), stroke_of(image)
    draw_mask(drawn, image, mask, np.array(MASK_COLOUR, np.float32))
    canvas = np.ascontiguousarray(drawn.astype(np.uint8))
    if prompt.box is not None:
        height, width = mask.shape
        x0, y0, x1, y1 = (math.floor(value) for value in prompt.box)
        cv2.rectangle(canvas, (x0, y0), (min(x1, width - 1), min(y1, height - 1)), BOX_COLOUR, stroke)
    _draw_points(canvas, prompt.positive, POSITIVE_COLOUR, 3 * stroke)
    _draw_points(canvas, prompt.negative, NEGATIVE_COLOUR, 3 * stroke)
    return canvas


def _draw_points(canvas: RgbImage, points: Sequence[Point], colour: tuple[int, int, int], radius: int) -> None:
    """Draw discs with a white rim, in place."""
    for x, y in points:
        centre = (math.floor(x), math.floor(y))
        cv2.circle(canvas, centre, radius + max(1, radius // 3), WHITE, -1)
        cv2.circle(canvas, centre, radius, colour, -1)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return grey (H, W) or RGB (H, W, 3) pixels as the bytes of a PNG."""
    encoded, data = cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    assert encoded, "a PNG encoder is part of OpenCV"
    return data.tobytes()
