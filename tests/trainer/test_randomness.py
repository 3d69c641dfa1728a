"""What is drawn for a sample depends on the sample alone, not on what it is batched with."""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from typing import Any

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sum_factory.trainer import interactive
from sum_factory.trainer.batch import Sums, backpropagate, collate
from sum_factory.trainer.data.samples import SampleId, TrainingSample
from sum_factory.trainer.interactive import InteractiveSettings
from sum_factory.trainer.randomness import RowGenerators, generator_of, seed_of


def test_seeds_are_non_negative_and_differ_with_every_part() -> None:
    parts = [(0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a"), ("0", "a", 1), (0, "a", "1"), (0, "a1")]
    seeds = [seed_of(*each) for each in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(*parts[0]) == seeds[0]


def test_numbers_of_a_sample_do_not_depend_on_its_neighbours() -> None:
    def draw(order: list[int]) -> dict[int, list[Tensor]]:
        counts = {0: 2, 1: 5, 2: 1}
        rows = RowGenerators([generator_of("sample", n) for n in order], [counts[n] for n in order])
        total = sum(rows.counts)
        drawn = [rows.uniform(total, 1), rows.normal(total, 4), rows.uniform(total, 1)]
        split = [part.split(list(rows.counts)) for part in drawn]
        return {n: [part[place] for part in split] for place, n in enumerate(order)}

    together = draw([0, 1, 2])
    for order in ([2, 0, 1], [1], [0, 2]):
        for number, drawn in draw(order).items():
            assert all(map(torch.equal, drawn, together[number]))
    assert not torch.equal(together[0][0], together[1][0][:2])


def test_numbers_have_the_ranges_that_are_promised() -> None:
    rows = RowGenerators.of(generator_of(0), 5000)
    uniform, normal = rows.uniform(5000, 2), rows.normal(5000, 2)
    assert (uniform.dtype, normal.dtype) == (torch.float64, torch.float32)
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.02
    assert abs(float(normal.mean())) < 0.05
    assert abs(float(normal.std()) - 1) < 0.05


def test_wrong_number_of_rows_is_refused() -> None:
    rows = RowGenerators([generator_of(0), generator_of(1)], [2, 3])
    with pytest.raises(ValueError, match="generators of 5 rows were asked for 4"):
        rows.uniform(4, 1)
    with pytest.raises(ValueError, match="of 5 rows were asked for 6"):
        rows.normal(6, 1)


@pytest.fixture
def sam(tiny_sam: Sam) -> Sam:
    """A copy of the tiny SAM in double precision: rounding cannot move a mask's edge over a cell."""
    sam = copy.deepcopy(tiny_sam).double()
    sam.prompt_encoder.pe_layer.float()
    return sam


@pytest.fixture
def samples() -> list[TrainingSample]:
    """Four photos with one to four masks each, told apart by their ids."""
    made = []
    for index in range(4):
        generator = torch.Generator().manual_seed(index)
        masks = torch.zeros(index + 1, 32, 32, dtype=torch.bool)
        masks[:, 4 : 12 + index, 3 : 20 - index] = True
        certainty = torch.rand(index + 1, 32, 32, generator=generator)
        made.append(
            TrainingSample(
                id=SampleId("pseudo", 1, index),
                key=str(index),
                image=torch.randint(0, 256, (3, 100, 128), generator=generator, dtype=torch.uint8),
                masks=masks,
                certainty=certainty,
                sampling=certainty,
                valid=(25, 32),
                task=0,
            )
        )
    return made


def train(
    sam: Sam, samples: list[TrainingSample], size: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], dict[int, list[Tensor]]]:
    """Backpropagate in micro-batches of ``size``; return the gradients, and what each sample was prompted with."""
    prompted: defaultdict[int, list[Tensor]] = defaultdict(list)
    decode = interactive.decode_prompts
    sam.zero_grad()
    for start in range(0, len(samples), size):
        part = samples[start : start + size]

        def recorded(
            sam: Sam,
            embeddings: Tensor,
            index: Tensor,
            prompts: Any,
            positions: Tensor,
            single: bool,
            part: Any = part,
        ) -> Any:
            tokens = torch.cat([prompts.coords, prompts.token_types[..., None]], 2)
            for number, sample in enumerate(part):
                if (index == number).any():
                    prompted[sample.id.index].append(tokens[index == number])
            return decode(sam, embeddings, index, prompts, positions, single)

        batch = collate(part, sam, 4, 7)
        assert batch is not None
        batch = dataclasses.replace(batch, images=batch.images.double())
        with monkeypatch.context() as patch:
            patch.setattr(interactive, "decode_prompts", recorded)
            backpropagate(sam, None, batch, InteractiveSettings(), 4, Sums(7))
    return {name: p.grad.clone() for name, p in sam.named_parameters() if p.grad is not None}, dict(prompted)


def test_prompts_and_gradients_do_not_depend_on_micro_batches(
    sam: Sam, samples: list[TrainingSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    one_by_one, prompted_alone = train(sam, samples, 1, monkeypatch)
    together, prompted_together = train(sam, samples, 4, monkeypatch)
    for index in range(4):
        alone, among = prompted_alone[index], prompted_together[index]
        assert len(alone) == len(among) >= 7
        assert all(map(torch.equal, alone, among))
    for name, gradient in one_by_one.items():
        difference = float((together[name] - gradient).abs().max())
        assert difference <= 1e-6 * float(gradient.abs().max()) + 1e-15, name


def test_other_passes_over_a_sample_are_prompted_otherwise(
    sam: Sam, samples: list[TrainingSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = train(sam, samples[3:], 1, monkeypatch)
    later = dataclasses.replace(samples[3], id=SampleId("pseudo", 2, 3))
    _, second = train(sam, [later], 1, monkeypatch)
    assert not torch.equal(first[3][0], second[3][0])
