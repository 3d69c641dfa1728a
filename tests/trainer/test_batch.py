"""Backpropagation of the rounds of a batch, against a naive version: one mask at a time through upstream's modules,
all rounds in one graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.precision import Precision
from sum_factory.shared.sam.architecture import SamArchitecture, build_architecture
from sum_factory.shared.sam.decode import BOX_MIN
from sum_factory.shared.sam.task_prompt import TaskPrompt
from sum_factory.trainer.batch import Batch, Sums, backpropagate, collate
from sum_factory.trainer.data.samples import SampleId, TrainingSample
from sum_factory.trainer.interactive import InteractiveSettings, Targets
from sum_factory.trainer.losses import LossSettings
from sum_factory.trainer.prompts import click_errors, first_prompts

TINY = SamArchitecture("tiny", 32, 2, 2, (), 64, window_size=0, prompt_dim=32, decoder_mlp_dim=32)
STRIDE, CELLS = 2, 32
PHOTOS = 3
"""In the whole step: two in the batch, one that had no masks."""
Points = Callable[..., list[tuple[int, int]]]


@pytest.fixture(scope="module")
def sam() -> Sam:
    """A SAM in double precision; upstream encodes coordinates in single precision."""
    torch.manual_seed(0)
    model = build_architecture(TINY).double()
    model.prompt_encoder.pe_layer.float()
    return model


@pytest.fixture(scope="module")
def task_prompt() -> TaskPrompt:
    prompt = TaskPrompt(32).double()
    with torch.no_grad():
        prompt.weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    return prompt


def make_sample(index: int, size: tuple[int, int], masks: int, doubtful: bool) -> TrainingSample:
    """Return a sample of ``size`` height, width with random blocks as masks."""
    generator = torch.Generator().manual_seed(index)
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    rows, columns = -(-size[0] // STRIDE), -(-size[1] // STRIDE)
    drawn = torch.zeros(masks, CELLS, CELLS, dtype=torch.bool)
    for k in range(masks):
        top, left = (int(torch.randint(1, n // 2, (), generator=generator)) for n in (rows, columns))
        drawn[k, top : top + rows // 2, left : left + columns // 2] = True
    certainty = torch.rand(masks, CELLS, CELLS, generator=generator) if doubtful else None
    return TrainingSample(
        id=SampleId("pseudo" if doubtful else "human", 0, index),
        key=str(index),
        image=image,
        masks=drawn,
        certainty=certainty,
        sampling=certainty,
        valid=(rows, columns),
        task=0 if doubtful else 3,
    )


@pytest.fixture
def samples() -> list[TrainingSample]:
    """A landscape photo with human masks, one without masks, a portrait with doubtful ones."""
    return [
        make_sample(0, (45, 64), masks=2, doubtful=False),
        make_sample(1, (64, 64), masks=0, doubtful=True),
        make_sample(2, (64, 38), masks=4, doubtful=True),
    ]


def with_target(sample: TrainingSample, target: str) -> TrainingSample:
    """Return a sample whose losses compare with random shares of its cells, or with random pixels."""
    generator, count = torch.Generator().manual_seed(len(sample)), len(sample)
    shares = torch.rand(count, CELLS, CELLS, generator=generator).mul(2).sub(0.5).clamp(0, 1)
    pixels = torch.rand(count, TINY.image_size, TINY.image_size, generator=generator) > 0.6
    return dataclasses.replace(
        sample,
        coverage=shares if target == "coverage" else None,
        pixel_masks=pixels if target == "points" else None,
    )


def make_batch(samples: list[TrainingSample], sam: Sam, seed: int = 0) -> Batch:
    """Return the samples as a batch in double precision."""
    batch = collate(samples, sam, STRIDE, seed)
    assert batch is not None
    return dataclasses.replace(batch, images=batch.images.double())


def naive_mask_loss(logits: Tensor, mask: Tensor, valid: Tensor, certainty: Tensor, settings: LossSettings) -> Tensor:
    """20 focal + Dice of one mask, or of its shares, over its valid pixels one after the other."""
    p, y, c = logits[valid].sigmoid(), mask[valid].double(), certainty[valid].double()
    alpha = 0.25 * y + 0.75 * (1 - y)
    entropy = -(y * p.log() + (1 - y) * (1 - p).log())
    focal = (c * alpha * (y - p).abs() ** 2 * entropy).mean()
    kept = c > settings.theta
    dice = 1 - (2 * torch.where(p < y, p, y)[kept].sum() + 1) / ((y + p)[kept].sum() + 1)
    return 20 * focal + dice


def naive_target_loss(
    low: Tensor, targets: Targets, k: int, shifts: Tensor | None, settings: LossSettings, points: Points | None
) -> Tensor:
    """The mask loss of target ``k`` by its low-resolution logits (1, 1, h, w)."""
    if targets.pixel_masks is None or shifts is None or points is None:
        wanted = targets.masks if targets.coverage is None else targets.coverage
        return naive_mask_loss(_grid(low)[0, 0], wanted[k], targets.valid[k], targets.certainty[k], settings)
    side = TINY.image_size
    pixels_drawn = points(low[0, 0].detach(), shifts[k].tolist(), targets.pixel_masks.sizes[k].tolist(), side)
    full, c = (
        F.interpolate(each, (side, side), mode="bilinear", align_corners=False)[0, 0]
        for each in (low, targets.certainty[k][None, None])
    )
    found, wanted, c = (
        torch.stack([each[y, x] for x, y in pixels_drawn]) for each in (full, targets.pixel_masks.masks[k], c)
    )
    return naive_mask_loss(found, wanted, torch.ones_like(wanted), c, settings)


def naive_iou(logits: Tensor, mask: Tensor, valid: Tensor) -> float:
    found = (logits > 0) & valid
    return float((found & mask).sum() / (found | mask).sum())


def naive_loss(
    sam: Sam,
    prompt: TaskPrompt | None,
    batch: Batch,
    settings: InteractiveSettings,
    photos: int,
    naive_points: Points | None = None,
) -> Tensor:
    """Return the loss of all rounds with its whole graph."""
    targets, random = batch.targets, batch.random
    embeddings = sam.image_encoder(batch.images)
    first = first_prompts(targets.masks, targets.sampling, settings.box_share, STRIDE, TINY.image_size, random)
    boxed = (first.token_types[:, 0] == BOX_MIN).tolist()
    points = [[] if box else [(first.coords[k, 0], first.token_types[k, 0])] for k, box in enumerate(boxed)]
    previous: list[Tensor | None] = [None] * len(boxed)
    total = torch.zeros((), dtype=torch.float64)
    for number in range(1, settings.rounds + 1):
        if 1 < number < settings.rounds:
            predicted = torch.stack([_grid(logits)[0, 0] > 0 for logits in previous if logits is not None])
            coords, token_types, found = click_errors(predicted, targets.masks, targets.sampling, STRIDE, random)
            for k in found.nonzero()[:, 0].tolist():
                points[k].append((coords[k], token_types[k]))
        shifts = None if targets.pixel_masks is None else random.uniform(len(targets), 2)
        for k, box in enumerate(boxed):
            image = int(targets.image_index[k])
            embedding = embeddings[image]
            if prompt is not None and (number == 1 or settings.continuous_task_prompt):
                embedding = embedding + prompt.weight[batch.tasks[image]][:, None, None]
            given = tuple(torch.stack(list(part))[None] for part in zip(*points[k], strict=True)) or None
            sparse, dense = sam.prompt_encoder(given, first.coords[k].view(1, 4) if box else None, previous[k])
            positions = sam.prompt_encoder.get_dense_pe()
            logits, iou = sam.mask_decoder.predict_masks(embedding[None], positions, sparse, dense)
            trained = going_on = 0
            truth = targets, k, shifts, settings.loss, naive_points
            if number == 1 and not box:
                losses = [float(naive_target_loss(logits.detach()[:, i : i + 1], *truth)) for i in (1, 2, 3)]
                trained = 1 + losses.index(min(losses))
                going_on = 1 + int(iou[0, 1:].argmax())
            chosen = logits[:, trained : trained + 1]
            true = naive_iou(_grid(chosen)[0, 0], targets.masks[k], targets.valid[k])
            loss = naive_target_loss(chosen, *truth) + (iou[0, trained] - true) ** 2
            total = total + loss / (batch.counts[image] * settings.rounds * photos)
            previous[k] = logits[:, going_on : going_on + 1].detach()
    return total


def _grid(logits: Tensor) -> Tensor:
    return F.interpolate(logits, (CELLS, CELLS), mode="bilinear", align_corners=False)


def gradients(sam: Sam, prompt: TaskPrompt | None) -> dict[str, Tensor]:
    """Return all gradients there are, and remove them."""
    named = [*sam.named_parameters(), *([("task_prompt", prompt.weight)] if prompt is not None else [])]
    found = {name: p.grad.clone() for name, p in named if p.grad is not None}
    for _, parameter in named:
        parameter.grad = None
    return found


@pytest.mark.parametrize(
    ("continuous", "target", "rounds", "at_once"),
    [
        (False, "bits", 7, None),
        (True, "bits", 7, 4),
        (False, "bits", 3, 1),
        (False, "coverage", 3, None),
        (False, "points", 3, 4),
    ],
)
def test_rounds_backpropagated_one_by_one_give_the_gradients_of_the_whole_graph(
    sam: Sam,
    task_prompt: TaskPrompt,
    samples: list[TrainingSample],
    naive_points: Points,
    continuous: bool,
    target: str,
    rounds: int,
    at_once: int | None,
) -> None:
    settings = InteractiveSettings(rounds, continuous_task_prompt=continuous, masks_at_once=at_once)
    samples = [with_target(sample, target) for sample in samples]
    expected = naive_loss(sam, task_prompt, make_batch(samples, sam), settings, PHOTOS, naive_points)
    expected.backward()
    naive = gradients(sam, task_prompt)
    sums = Sums(settings.rounds)
    backpropagate(sam, task_prompt, make_batch(samples, sam), settings, PHOTOS, sums)
    flat = gradients(sam, task_prompt)
    assert sums.counts["loss"] == pytest.approx(expected.item(), rel=1e-9)
    assert {"image_encoder.pos_embed", "mask_decoder.iou_token.weight", "task_prompt"} <= naive.keys() == flat.keys()
    for name, gradient in naive.items():
        difference = float((flat[name] - gradient).abs().max())
        assert difference <= 1e-6 * float(gradient.abs().max()) + 1e-15, name  # biases of keys have gradient zero
    assert naive["task_prompt"].any(1).tolist() == [True, False, False, True]


def test_both_kinds_of_first_prompts_are_among_those_compared(sam: Sam, samples: list[TrainingSample]) -> None:
    targets = make_batch(samples, sam).targets
    random = make_batch(samples, sam).random
    prompts = first_prompts(targets.masks, targets.sampling, 0.5, STRIDE, TINY.image_size, random)
    assert set((prompts.token_types[:, 0] == BOX_MIN).tolist()) == {False, True}


def test_frozen_encoder_gets_no_gradient_and_the_rest_the_same(
    sam: Sam, task_prompt: TaskPrompt, samples: list[TrainingSample]
) -> None:
    settings = InteractiveSettings(rounds=3)
    backpropagate(sam, task_prompt, make_batch(samples, sam), settings, PHOTOS, Sums(3))
    full = gradients(sam, task_prompt)
    sam.image_encoder.requires_grad_(False)
    try:
        backpropagate(sam, task_prompt, make_batch(samples, sam), settings, PHOTOS, Sums(3))
    finally:
        sam.image_encoder.requires_grad_(True)
    frozen = gradients(sam, task_prompt)
    assert frozen.keys() == {name for name in full if not name.startswith("image_encoder.")}
    assert all(torch.allclose(gradient, full[name]) for name, gradient in frozen.items())


def test_no_task_prompt_needs_none(sam: Sam, samples: list[TrainingSample]) -> None:
    settings = InteractiveSettings(rounds=2)
    expected = naive_loss(sam, None, make_batch(samples, sam), settings, PHOTOS)
    sums = Sums(2)
    backpropagate(sam, None, make_batch(samples, sam), settings, PHOTOS, sums)
    gradients(sam, None)
    assert sums.counts["loss"] == pytest.approx(expected.item(), rel=1e-9)


def test_images_are_normalised_and_padded_as_sam_does(tiny_sam: Sam) -> None:
    samples = [make_sample(0, (90, 128), 1, False), make_sample(2, (128, 41), 1, True)]
    samples = [dataclasses.replace(s, masks=torch.ones(1, 64, 64, dtype=torch.bool)) for s in samples]
    batch = collate([dataclasses.replace(s, certainty=None, sampling=None) for s in samples], tiny_sam, STRIDE, 0)
    assert batch is not None
    for image, sample in zip(batch.images, samples, strict=True):
        assert torch.equal(image, tiny_sam.preprocess(sample.image))
    assert batch.tasks.tolist() == [3, 0]


def test_human_masks_are_certain_everywhere_and_nothing_is_drawn_from_padding(
    sam: Sam, samples: list[TrainingSample]
) -> None:
    full = [dataclasses.replace(s, masks=torch.ones_like(s.masks)) for s in samples]
    targets = make_batch(full, sam).targets
    assert targets.image_index.tolist() == [0, 0, 1, 1, 1, 1]
    for k, (sample, place) in enumerate([(full[0], 0), (full[0], 1), *((full[2], n) for n in range(4))]):
        rows, columns = sample.valid
        inside = torch.zeros(CELLS, CELLS, dtype=torch.bool)
        inside[:rows, :columns] = True
        assert torch.equal(targets.valid[k], inside)
        assert torch.equal(targets.masks[k], inside)
        wanted = torch.ones(CELLS, CELLS) if sample.sampling is None else sample.sampling[place]
        assert torch.equal(targets.sampling[k], wanted * inside)
        assert torch.equal(targets.certainty[k][inside], wanted[inside])


def test_samples_without_masks_make_no_batch(sam: Sam, samples: list[TrainingSample]) -> None:
    assert collate([samples[1]], sam, STRIDE, 0) is None
    assert collate([], sam, STRIDE, 0) is None


class Meter:
    """Counts the bytes that autograd keeps for the backward pass, and the most at a time."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def keep(self, tensor: Tensor) -> Any:
        meter, size = self, tensor.nbytes

        class Kept:
            def __init__(self) -> None:
                self.tensor = tensor
                meter.now += size
                meter.most = max(meter.most, meter.now)

            def __del__(self) -> None:
                meter.now -= size

        return Kept()


def most_bytes(work: Callable[[], object]) -> int:
    """Return the most bytes that autograd keeps at a time while ``work`` runs."""
    meter = Meter()
    with torch.autograd.graph.saved_tensors_hooks(meter.keep, lambda kept: kept.tensor):
        work()
    return meter.most


def test_memory_does_not_grow_with_the_rounds(sam: Sam, task_prompt: TaskPrompt, samples: list[TrainingSample]) -> None:
    def flat(rounds: int) -> None:
        settings = InteractiveSettings(rounds=rounds, masks_at_once=1)
        backpropagate(sam, task_prompt, make_batch(samples, sam), settings, PHOTOS, Sums(rounds))

    def naive(rounds: int) -> None:
        settings = InteractiveSettings(rounds=rounds)
        naive_loss(sam, task_prompt, make_batch(samples, sam), settings, PHOTOS).backward()

    flat_2, flat_7, naive_7 = (most_bytes(lambda: flat(2)), most_bytes(lambda: flat(7)), most_bytes(lambda: naive(7)))
    gradients(sam, task_prompt)
    assert flat_7 <= 1.2 * flat_2
    assert naive_7 > 3 * flat_7


@pytest.fixture
def single_precision(sam: Sam) -> Iterator[Sam]:
    yield sam.float()
    sam.double()
    sam.prompt_encoder.pe_layer.float()


def test_bf16_gives_losses_and_gradients_near_those_of_fp32(
    single_precision: Sam, samples: list[TrainingSample]
) -> None:
    """One round: later clicks would fall elsewhere where a mask differs by a pixel."""
    sam, settings = single_precision, InteractiveSettings(rounds=1)
    losses, parts = [], []
    for precision in get_args(Precision):
        batch, sums = collate(samples, sam, STRIDE, 0), Sums(1)
        assert batch is not None
        backpropagate(sam, None, batch, settings, PHOTOS, sums, precision)
        losses.append(sums.counts["loss"])
        found = gradients(sam, None)
        assert {gradient.dtype for gradient in found.values()} == {torch.float32}
        parts.append(
            {
                part: torch.cat([g.flatten() for name, g in found.items() if name.startswith(part)])
                for part in ("image_encoder", "prompt_encoder", "mask_decoder")
            }
        )
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    for part, gradient in parts[0].items():
        assert float(F.cosine_similarity(gradient, parts[1][part], dim=0)) > 0.98, part


def test_bf16_runs_through_all_rounds(single_precision: Sam, samples: list[TrainingSample]) -> None:
    batch, sums = collate(samples, single_precision, STRIDE, 0), Sums(7)
    assert batch is not None
    backpropagate(single_precision, None, batch, InteractiveSettings(), PHOTOS, sums, "bf16")
    found = gradients(single_precision, None)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert all(value > 0 for value in sums.mask_loss)


def test_sums_are_means_over_masks_but_for_the_loss() -> None:
    sums = Sums(2, mask_loss=[3.0, 6.0], iou=[1.5, 2.0])
    sums.counts.update(loss=0.25, photos=2, masks=3, skipped=4, kept=1.5)
    assert sums.means() == {
        "loss": 0.25,
        "photos": 2,
        "masks": 3,
        "skipped_masks": 4,
        "dice_kept": 0.5,
        "mask_loss": [1.0, 2.0],
        "iou": [0.5, 2.0 / 3],
    }
    assert Sums.from_list(sums.to_list(), 2) == sums
    assert Sums(2).means()["mask_loss"] == [0.0, 0.0]
