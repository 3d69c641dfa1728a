"""The benchmark of a step compares two that differ in how they are computed alone, and gives no figures of others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sum_factory.pipelines.bench import fit as bench
from sum_factory.pipelines.bench.fit import (
    EXACT,
    Step,
    Work,
    compare,
    difference,
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


@pytest.fixture(scope="module")
def steps() -> Iterator[dict[str, Step]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "make_sam", make_sam)
        yield {side: take_step(side, WORK) for side in ("naive", "same_losses")}


def give(monkeypatch: pytest.MonkeyPatch, taken: dict[str, Step]) -> None:
    """Have ``compare`` find these steps, and nothing else to do."""
    monkeypatch.setattr(bench, "run_side", lambda side, work, folder: taken[side])
    monkeypatch.setattr(bench, "require_equal_in_float64", lambda work: 0.0)


def test_naive_step_and_ours_have_one_loss_and_one_gradient(steps: dict[str, Step]) -> None:
    naive, ours = steps["naive"], steps["same_losses"]
    assert ours.loss == pytest.approx(naive.loss, rel=1e-4)
    assert difference(naive.gradients, ours.gradients) < 1e-3
    assert naive.gradients.keys() == dict(make_sam(WORK).named_parameters()).keys()
    assert float(naive.gradients["image_encoder.pos_embed"].abs().max()) > 0


def test_in_float64_every_entry_of_every_gradient_is_the_naive_one() -> None:
    assert 0 < require_equal_in_float64(WORK) < EXACT


def test_one_entry_that_is_off_by_a_millionth_is_found_in_float64(
    steps: dict[str, Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    naive = steps["naive"].gradients
    entry = torch.zeros_like(naive[NAME])
    entry[0, 0] = 1e-6 * naive[NAME].double().abs().max()
    found = {"naive": naive, "same_losses": {**naive, NAME: naive[NAME].double() + entry}}
    monkeypatch.setattr(bench, "step_in_float64", lambda side, work: (1.0, found[side]))
    with pytest.raises(AssertionError, match=r"in float64 the loss differs by 0\.0, gradients by 1\.0"):
        compare(WORK, 1)


def test_another_gradient_or_loss_of_the_steps_that_are_timed_is_no_result(
    steps: dict[str, Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    naive, ours = steps["naive"], steps["same_losses"]
    name = max(naive.gradients, key=lambda each: float(naive.gradients[each].norm()))
    changed = {**ours.gradients, name: ours.gradients[name] * 1.1}
    assert largest_difference(naive.gradients, changed) == pytest.approx(0.1, rel=0.1)
    for wrong in (Step(ours.loss, changed, 1.0, 1.0), Step(ours.loss * 1.01, ours.gradients, 1.0, 1.0)):
        give(monkeypatch, {"naive": naive, "same_losses": wrong, "ours": ours})
        with pytest.raises(AssertionError, match="the loss differs by"):
            compare(WORK, 1)


def test_ratios_are_of_steps_that_were_taken_in_turn(steps: dict[str, Step], monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = steps["same_losses"].gradients
    costs = {"naive": iter([(8.0, 100.0), (6.0, 100.0)]), "ours": iter([(2.0, 10.0), (3.0, 20.0)])}
    costs["same_losses"] = iter([(4.0, 25.0), (3.0, 25.0)])

    def run_side(side: str, work: Work, folder: object) -> Step:
        seconds, mb = next(costs[side])
        return Step(1.0, gradients, mb, seconds)

    monkeypatch.setattr(bench, "run_side", run_side)
    monkeypatch.setattr(bench, "require_equal_in_float64", lambda work: 0.0)
    figures = compare(WORK, 2)
    assert figures["step_ratio"] == (3.0, 2.0, 4.0)
    assert figures["memory_ratio"] == pytest.approx((0.15, 0.1, 0.2))
    assert figures["same_losses_step_ratio"] == (2.0, 2.0, 2.0)


def test_masks_of_a_photo_are_as_many_as_asked_for_and_none_is_empty() -> None:
    targets = make_batch(make_sam(WORK), WORK.side, 30, 1).targets
    assert targets.masks.shape == (30, 64, 64)
    assert targets.masks.flatten(1).any(1).all()
