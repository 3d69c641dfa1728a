"""The protocol against a loop written with upstream's predictor."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import segment_anything
import torch
from scipy.ndimage import distance_transform_edt
from segment_anything.modeling import Sam

from sum_factory.shared.placement import Frame
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.decode import PAD, POSITIVE, Prompts
from sum_factory.trainer.evaluation import protocol as protocol_module
from sum_factory.trainer.evaluation.clicks import click_near_boundary
from sum_factory.trainer.evaluation.protocol import evaluate_image
from sum_factory.trainer.evaluation.settings import Protocol

Mask = npt.NDArray[np.bool_]
HEIGHT, WIDTH, SIDE = 75, 100, 256


@pytest.fixture(scope="module")
def sam() -> Sam:
    """The packaged SAM: a random one would give nearly the same mask for all prompts."""
    return load_sam().sam


@pytest.fixture(scope="module")
def image() -> npt.NDArray[np.uint8]:
    """The targets in two colours on grey, with noise."""
    pixels = np.full((HEIGHT, WIDTH, 3), 90.0)
    for target, colour in zip(targets(), ((200, 60, 40), (60, 80, 220)), strict=True):
        pixels[target] = colour
    return np.clip(pixels + np.random.default_rng(0).normal(0, 25, pixels.shape), 0, 255).astype(np.uint8)


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


def naive(
    predictor: segment_anything.SamPredictor,
    target: Mask,
    rounds: int,
    box: bool,
    oracle: bool,
    start: tuple[int, int] | None = None,
    task: torch.Tensor | None = None,
) -> list[float]:
    """Play the rounds with upstream's predictor; return the IoU after each.

    ``start`` is the first click if it is not the deepest pixel; ``task`` is added to the embedding for round 1 alone.
    """
    ys, xs = np.nonzero(target)
    prompt: dict[str, Any] = {"box": np.array([xs.min(), ys.min(), xs.max(), ys.max()])} if box else {}
    points: list[tuple[int, int]] = []
    labels: list[int] = []
    scores, mask, logits = [], np.zeros_like(target), None
    embedding = predictor.features
    for number in range(rounds):
        predictor.features = embedding + task[None, :, None, None] if task is not None and number == 0 else embedding
        if number == 0 and start is not None:
            points, labels = [start], [1]
        elif number > 0 or not box:
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


def played(
    sam: Sam, predictor: segment_anything.SamPredictor, protocol: Protocol, task: torch.Tensor | None = None
) -> list[list[float]]:
    """The IoU of each target after each round."""
    frame = Frame.whole(SIDE, HEIGHT, WIDTH)
    scores = evaluate_image(sam, predictor.features, task, frame, targets(), "image", protocol)
    for k in range(2):
        assert [score.round for score in scores if score.mask == k] == list(range(1, protocol.rounds + 1))
    return [[score.iou for score in scores if score.mask == k] for k in range(2)]


@pytest.fixture
def predictor(sam: Sam, image: npt.NDArray[np.uint8]) -> segment_anything.SamPredictor:
    predictor = segment_anything.SamPredictor(sam)
    predictor.set_image(image)
    return predictor


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("oracle", [False, True])
@pytest.mark.parametrize("rounds", [1, 4, 9])
def test_every_round_equals_upstreams_predictor(
    sam: Sam, predictor: segment_anything.SamPredictor, box: bool, oracle: bool, rounds: int
) -> None:
    ours = played(sam, predictor, Protocol("box" if box else "point", rounds, "oracle" if oracle else "single"))
    for k, target in enumerate(targets()):
        assert ours[k] == pytest.approx(naive(predictor, target, rounds, box, oracle), abs=1e-3)


@pytest.mark.parametrize("oracle", [False, True])
def test_rounds_from_a_click_near_the_boundary_equal_upstreams_predictor(
    sam: Sam, predictor: segment_anything.SamPredictor, oracle: bool
) -> None:
    ours = played(sam, predictor, Protocol("near-boundary", 4, "oracle" if oracle else "single"))
    for k, target in enumerate(targets()):
        click = click_near_boundary(target, f"image/{k}")
        assert (click.x, click.y) != deepest(target)[:2]
        assert ours[k] == pytest.approx(naive(predictor, target, 4, False, oracle, (click.x, click.y)), abs=1e-3)


@pytest.mark.parametrize("box", [False, True])
def test_task_is_added_to_the_embedding_in_the_first_round_alone(
    sam: Sam, predictor: segment_anything.SamPredictor, box: bool
) -> None:
    task = torch.randn(192, generator=torch.Generator().manual_seed(0))
    ours = played(sam, predictor, Protocol("box" if box else "point", 4), task)
    without = played(sam, predictor, Protocol("box" if box else "point", 4))
    for k, target in enumerate(targets()):
        assert ours[k] == pytest.approx(naive(predictor, target, 4, box, True, task=task), abs=1e-3)
        assert ours[k][0] != pytest.approx(without[k][0], abs=1e-2)


def test_masks_keep_the_numbers_and_clicks_of_their_image(sam: Sam, predictor: segment_anything.SamPredictor) -> None:
    frame, protocol = Frame.whole(SIDE, HEIGHT, WIDTH), Protocol("near-boundary", 2)
    whole = evaluate_image(sam, predictor.features, None, frame, targets(), "image", protocol)
    part = evaluate_image(sam, predictor.features, None, frame, targets()[1:], "image", protocol, [1])
    assert [score.mask for score in part] == [1, 1]
    for ours, theirs in zip(part, [score for score in whole if score.mask == 1], strict=True):
        assert ours.iou == pytest.approx(theirs.iou, abs=1e-3)
    moved = evaluate_image(sam, predictor.features, None, frame, targets()[1:], "image", protocol)
    assert moved[0].predicted_iou != pytest.approx(part[0].predicted_iou, abs=1e-6)


def test_mask_that_is_found_gets_no_further_click(
    sam: Sam, predictor: segment_anything.SamPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that answers with the target itself is prompted with the same tokens again, and its own logits.

    From then on it has one output, whatever the tokens: with its logits, the point leaves no doubt any more.
    """
    seen: list[Prompts] = []

    def answer(_sam: Sam, _source: torch.Tensor, index: torch.Tensor, prompts: Prompts) -> Any:
        seen.append(prompts)
        return torch.full((len(index), 4, 64, 64), 3.0), torch.tensor([[0.25, 0.5, 0.5, 0.5]]).expand(len(index), 4)

    monkeypatch.setattr(protocol_module, "decode_prompts", answer)
    whole = np.ones((1, HEIGHT, WIDTH), bool)
    frame = Frame.whole(SIDE, HEIGHT, WIDTH)
    scores = evaluate_image(sam, predictor.features, None, frame, whole, "image", Protocol(rounds=3))
    assert [(score.iou, score.boundary_iou) for score in scores] == [(1.0, 1.0)] * 3
    assert [score.predicted_iou for score in scores] == [0.5, 0.25, 0.25]
    assert [prompts.mask_logits is None for prompts in seen] == [True, False, False]
    for prompts in seen:
        assert prompts.token_types.tolist() == [[POSITIVE, PAD]]
        assert torch.equal(prompts.coords, seen[0].coords)


def test_task_vector_acts_in_the_rounds_it_is_given(sam: Sam, image: npt.NDArray[np.uint8]) -> None:
    predictor = segment_anything.SamPredictor(sam)
    predictor.set_image(image)
    frame = Frame.whole(SIDE, HEIGHT, WIDTH)
    task = torch.full((192,), 0.7)

    def predicted(vector: torch.Tensor | None, task_rounds: int) -> list[float]:
        protocol = Protocol(rounds=2, task_rounds=task_rounds)
        scores = evaluate_image(sam, predictor.features, vector, frame, targets()[:1], "image", protocol)
        return [score.predicted_iou for score in scores]

    without, first, always = predicted(None, 1), predicted(task, 1), predicted(task, 2)
    assert without[0] != first[0]
    assert first[0] == always[0]
    assert first[1] != always[1]
    assert predicted(torch.zeros(192), 2) == without
