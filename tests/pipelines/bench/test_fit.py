"""The benchmark of a step compares two that differ in how they are computed alone, and gives no figures of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sum_factory.pipelines.bench import fit as bench
from sum_factory.pipelines.bench.fit import (
    EXACT,
    SIDES,
    Step,
    Work,
    compare,
    difference,
    in_its_own_process,
    largest_difference,
    make_batch,
    require_equal_in_float64,
    take_step,
)
from sum_factory.shared.sam.architecture import SamArchitecture, build_architecture
from sum_factory.shared.sam.upstream import Sam

WORK = Work("tiny", 64, 5)
NAME = "mask_decoder.iou_token.weight"


def make_sam(work: Work) -> Sam:
    torch.manual_seed(0)
    architecture = SamArchitecture("tiny", 32, 2, 2, (1,), work.side, window_size=3, prompt_dim=32, decoder_mlp_dim=32)
    return build_architecture(architecture)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "make_sam", make_sam)


Taken = tuple[Step, dict[str, Tensor]]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Taken]:
    """The naive step and ours, and the gradients of each."""
    file, taken = tmp_path_factory.mktemp("steps") / "gradients", {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "make_sam", make_sam)
        for side in ("naive", "same_losses"):
            taken[side] = take_step(side, WORK, file), torch.load(file, weights_only=True)
    return taken


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, Callable[[], Taken]]], None]:
    """Have ``compare`` find given steps, and no difference in float64."""

    def take(side: str, file: Path, taken: Mapping[str, Callable[[], Taken]]) -> Step:
        step, gradients = taken[side]()
        torch.save(gradients, file)
        return step

    def change(taken: Mapping[str, Callable[[], Taken]]) -> None:
        monkeypatch.setattr(bench, "in_its_own_process", lambda function, *given: function(*given))
        monkeypatch.setattr(bench, "take_step", lambda side, work, file: take(side, file, taken))
        monkeypatch.setattr(bench, "require_equal_in_float64", lambda work: 0.0)

    return change


def test_naive_step_and_ours_have_one_loss_and_one_gradient(steps: dict[str, Taken]) -> None:
    (naive, of_naive), (ours, of_ours) = steps["naive"], steps["same_losses"]
    assert ours.loss == pytest.approx(naive.loss, rel=1e-4)
    assert difference(of_naive, of_ours) < 1e-3
    assert of_naive.keys() == dict(make_sam(WORK).named_parameters()).keys()
    assert float(of_naive["image_encoder.pos_embed"].abs().max()) > 0


def test_in_float64_every_entry_of_every_gradient_is_the_naive_one() -> None:
    assert 0 < require_equal_in_float64(WORK) < EXACT


def test_one_entry_that_is_off_by_a_millionth_is_found_in_float64(
    steps: dict[str, Taken], monkeypatch: pytest.MonkeyPatch
) -> None:
    naive = steps["naive"][1]
    entry = torch.zeros_like(naive[NAME])
    entry[0, 0] = 1e-6 * naive[NAME].abs().max()
    found = {"naive": naive, "same_losses": {**naive, NAME: naive[NAME].double() + entry}}
    monkeypatch.setattr(bench, "step_in_float64", lambda side, work: (1.0, found[side]))
    monkeypatch.setattr(bench, "in_its_own_process", lambda function, *given: function(*given))
    with pytest.raises(AssertionError, match=r"in float64 the loss differs by 0\.0, gradients by (1\.0|9\.9).*e-0[67]"):
        compare(WORK, 1)


def test_another_gradient_or_loss_of_the_steps_that_are_timed_is_no_result(steps: dict[str, Taken], give: Any) -> None:
    ours, gradients = steps["same_losses"]
    name = max(gradients, key=lambda each: float(gradients[each].norm()))
    changed = {**gradients, name: gradients[name] * 1.1}
    assert largest_difference(gradients, changed) == pytest.approx(0.1)
    for wrong in ((ours, changed), (Step(ours.loss * 1.01, 1.0, 1.0), gradients)):
        give(
            {
                side: lambda side=side, wrong=wrong: {**steps, "ours": wrong, "same_losses": wrong}[side]
                for side in SIDES
            }
        )
        with pytest.raises(AssertionError, match="the loss differs by"):
            compare(WORK, 1)


def test_ratios_are_of_steps_that_were_taken_in_turn(steps: dict[str, Taken], give: Any) -> None:
    costs = {"naive": iter([(100.0, 8.0), (100.0, 6.0)]), "ours": iter([(10.0, 2.0), (20.0, 3.0)])}
    costs["same_losses"] = iter([(25.0, 4.0), (25.0, 3.0)])
    give({side: lambda side=side: (Step(1.0, *next(costs[side])), steps["naive"][1]) for side in SIDES})
    figures = compare(WORK, 2)
    assert figures["step_ratio"] == (3.0, 2.0, 4.0)
    assert figures["memory_ratio"] == pytest.approx((0.15, 0.1, 0.2))
    assert figures["same_losses_step_ratio"] == (2.0, 2.0, 2.0)


def grow(mb: int) -> float:
    """Return by how many MB the peak grows while so many are held."""
    before = bench._peak_mb()
    with mmap(-1, mb << 20, flags=MAP_PRIVATE | MAP_ANONYMOUS) as held:  # memory that was freed cannot be taken for it
        for _ in range(mb):
            held.write(bytes(1 << 20))
        return bench._peak_mb() - before


def test_memory_that_another_process_took_hides_none() -> None:
    """One after the other: the second would add nothing if it began with the peak of the first."""
    assert [in_its_own_process(grow, mb) for mb in (80, 40)] == pytest.approx([80, 40], abs=10)


def test_masks_of_a_photo_are_as_many_as_asked_for_and_none_is_empty() -> None:
    targets = make_batch(make_sam(WORK), WORK.side, 30, 1).targets
    assert targets.masks.shape == (30, 64, 64)
    assert targets.masks.flatten(1).any(1).all()
