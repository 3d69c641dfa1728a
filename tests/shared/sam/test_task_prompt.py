"""The task prompt: zero at first, the same in two places for plain SAM, and not the same as none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sum_factory.shared.sam.architecture import SamArchitecture
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.sam.decode import POSITIVE, Prompts, decode_prompts
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.sam.task_prompt import TaskPrompt, task_id

ARCHITECTURE = SamArchitecture("tiny", 32, 2, 2, (1,), 128, prompt_dim=32)
POINTS = Prompts(torch.tensor([[[40.0, 70.0]], [[90.0, 20.0]]]), torch.full((2, 1), POSITIVE))


@pytest.fixture(scope="module")
def embedding(tiny_sam: Sam) -> Tensor:
    """The embedding of one image."""
    with torch.no_grad():
        encoded: Tensor = tiny_sam.image_encoder(
            torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
        )
    return encoded


@torch.no_grad()
def decode(sam: Sam, embedding: Tensor, vector: Tensor | None) -> tuple[Tensor, Tensor]:
    source = embedding if vector is None else embedding + vector[None, :, None, None]
    return decode_prompts(sam, source, torch.zeros(2, dtype=torch.int64), POINTS)


def trained(seed: int = 0) -> TaskPrompt:
    prompt = TaskPrompt(32)
    with torch.no_grad():
        prompt.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(seed))
    return prompt


def test_tasks_are_unspecified_salient_entity_and_part_in_this_order() -> None:
    assert [task_id(name) for name in ("unspecified", "salient", "entity", "part")] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="'parts' is no task; there are unspecified, salient, entity, part"):
        task_id("parts")


def test_table_is_one_parameter_of_zeros() -> None:
    prompt = TaskPrompt(256)
    assert [(name, p.shape, p.requires_grad) for name, p in prompt.named_parameters()] == [
        ("weight", (len(TASKS), 256), True)
    ]
    assert not prompt.weight.any()


def test_untrained_task_gives_bit_for_bit_what_no_task_gives(tiny_sam: Sam, embedding: Tensor) -> None:
    for task in range(len(TASKS)):
        with_task = decode(tiny_sam, embedding, TaskPrompt(32)(torch.tensor([task]))[0])
        assert all(map(torch.equal, with_task, decode(tiny_sam, embedding, None)))


def test_no_task_differs_from_a_trained_task_0(tiny_sam: Sam, embedding: Tensor) -> None:
    prompt = trained()
    unspecified = decode(tiny_sam, embedding, prompt(torch.tensor([0]))[0])
    for found, without in zip(unspecified, decode(tiny_sam, embedding, None), strict=True):
        assert not torch.allclose(found, without, atol=1e-4)


def test_adding_to_the_image_is_adding_to_the_dense_prompt(tiny_sam: Sam, embedding: Tensor) -> None:
    """By upstream's own mask decoder, which adds the dense prompt to the image embedding."""
    vector = trained()(torch.tensor([2]))[0]
    logits, iou = decode(tiny_sam, embedding, vector)
    padded = torch.cat([POINTS.coords, torch.zeros(2, 1, 2)], 1), torch.tensor([[1, -1], [1, -1]])
    with torch.no_grad():
        ours = decode_prompts(tiny_sam, embedding + vector[None, :, None, None], torch.tensor([0, 0]), Prompts(*padded))
        sparse, dense = tiny_sam.prompt_encoder((POINTS.coords, POINTS.token_types), None, None)
        positions = tiny_sam.prompt_encoder.get_dense_pe()
        dense = dense + vector[None, :, None, None]
        theirs = tiny_sam.mask_decoder.predict_masks(embedding, positions, sparse, dense)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert logits.shape == theirs[0].shape
    assert iou.shape == theirs[1].shape


def test_each_image_gets_the_vector_of_its_task_and_only_those_get_gradients() -> None:
    prompt = trained()
    vectors = prompt(torch.tensor([3, 1, 3]))
    assert torch.equal(vectors, torch.stack([prompt.weight[3], prompt.weight[1], prompt.weight[3]]))
    vectors.sum().backward()
    assert prompt.weight.grad is not None
    assert prompt.weight.grad[:, 0].tolist() == [0, 1, 0, 2]


def test_task_that_was_never_trained_is_prompted_as_unspecified(tiny_sam: Sam) -> None:
    prompt = trained()
    model = LoadedSam(tiny_sam, ARCHITECTURE, "", prompt, ("unspecified", "part"))
    for task, row in (("unspecified", 0), ("part", 3), ("salient", 0), ("entity", 0)):
        vector = model.task_vector(task)
        assert vector is not None
        assert torch.equal(vector, prompt.weight[row])
        assert not vector.requires_grad
    assert replace(model, task_prompt=None).task_vector("part") is None
