"""The protocol against a loop written with upstream's predictor."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from shared.frame import Frame
from shared.sam.architecture import SamArchitecture, build_architecture
from trainer.evaluate.protocol import Protocol, evaluate_image

TINY = SamArchitecture("tiny", 32, 2, 2, (), 64, window_size=0, prompt_dim=32, decoder_mlp_dim=32)
Mask = npt.NDArray[np.bool_]
HEIGHT, WIDTH = 75, 100


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    return build_architecture(TINY)


@pytest.fixture(scope="module")
def image() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def targets() -> npt.NDArray[np.bool_]:
    masks = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    cv2.circle(masks[0], (30, 40), 21, 1, -1)
    cv2.rectangle(masks[1], (50, 5), (95, 60), 1, -1)
    return masks > 0


def overlap(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / (a | b).sum())


def deepest(region: Mask) -> tuple[int, int, float]:
    distance = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), region.shape)
    return int(x), int(y), float(distance[y, x])


def naive(predictor: SamPredictor, target: Mask, rounds: int, box: bool, oracle: bool) -> list[float]:
    """Play the rounds with upstream's predictor; return the IoU after each."""
    ys, xs = np.nonzero(target)
    prompt: dict[str, Any] = {"box": np.array([xs.min(), ys.min(), xs.max(), ys.max()])} if box else {}
    points: list[tuple[int, int]] = []
    labels: list[int] = []
    scores, mask, logits = [], np.zeros_like(target), None
    for number in range(rounds):
        if number > 0 or not box:
            missed, wrong = deepest(target & ~mask), deepest(mask & ~target)
            click, label = (missed, 1) if missed[2] >= wrong[2] else (wrong, 0)
            points.insert(0, click[:2])
            labels.insert(0, label)
        several = oracle and not box and number == 0
        masks, _, low_res = predictor.predict(
            point_coords=np.array(points) if points else None,
            point_labels=np.array(labels) if labels else None,
            mask_input=logits,
            multimask_output=several,
            **prompt,
        )
        best = int(np.argmax([overlap(m, target) for m in masks]))
        mask, logits = masks[best], low_res[best : best + 1]
        scores.append(overlap(mask, target))
    return scores


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("oracle", [False, True])
def test_every_round_equals_upstreams_predictor(
    sam: Sam, image: npt.NDArray[np.uint8], box: bool, oracle: bool
) -> None:
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    protocol = Protocol("box" if box else "point", 4, "oracle" if oracle else "single")
    frame = Frame.whole(64, HEIGHT, WIDTH)
    scores = evaluate_image(sam, predictor.features, None, frame, targets(), "image", protocol)
    for k, target in enumerate(targets()):
        ours = [score.iou for score in scores if score.mask == k]
        assert ours == pytest.approx(naive(predictor, target, 4, box, oracle), abs=1e-3)
        assert [score.round for score in scores if score.mask == k] == [1, 2, 3, 4]


def test_task_vector_acts_in_the_rounds_it_is_given(sam: Sam, image: npt.NDArray[np.uint8]) -> None:
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    frame = Frame.whole(64, HEIGHT, WIDTH)
    task = torch.full((32,), 0.7)

    def predicted(vector: torch.Tensor | None, task_rounds: int) -> list[float]:
        protocol = Protocol(rounds=2, task_rounds=task_rounds)
        scores = evaluate_image(sam, predictor.features, vector, frame, targets()[:1], "image", protocol)
        return [score.predicted_iou for score in scores]

    without, first, always = predicted(None, 1), predicted(task, 1), predicted(task, 2)
    assert without[0] != first[0]
    assert first[0] == always[0]
    assert first[1] != always[1]
    assert predicted(torch.zeros(32), 2) == without
