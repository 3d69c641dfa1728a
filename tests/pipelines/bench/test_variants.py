"""The benchmark of variants notices what must not be: a frozen weight that moves, a start that is not that of SAM."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from sum_factory.pipelines.bench.parts import variant_steps
from sum_factory.pipelines.bench.parts.variant_steps import Steps, begin, take_steps, trained_parameters, write_workload
from sum_factory.pipelines.bench.variants import BEGIN_AS_SAM, losses_agree
from sum_factory.trainer.training import Model
from sum_factory.trainer.variants import variants


def test_weight_that_moves_without_being_trained_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def move(recipe: Any, model: Model, *others: Any) -> dict[str, float]:
        with torch.no_grad():
            model.sam.mask_decoder.iou_token.weight.add_(1)
        return {"loss": 1.0}

    workload = write_workload(tmp_path, "vit_micro", 1, 1, 1)
    monkeypatch.setattr(variant_steps, "train_step", move)
    assert take_steps(workload, ["decoder"], 1)["decoder"].losses == [1.0, 1.0]
    with pytest.raises(AssertionError, match=r"hq: does not train mask_decoder.iou_token.weight, which has changed"):
        take_steps(workload, ["hq"], 1)
    steps = begin(workload, "hq")
    taken = {name: dataclasses.replace(steps, losses=[1.0]) for name in ("full", *BEGIN_AS_SAM)}
    assert losses_agree(taken)
    taken["lora"] = Steps(steps.recipe, steps.model, losses=[1.001])
    assert not losses_agree(taken)


def test_counts_are_of_every_variant_and_a_share_of_the_model() -> None:
    counts = trained_parameters("vit_micro")
    assert counts.keys() == variants().keys()
    assert counts["full"] == (7_213_368, 1.0)
    assert counts["hq"][0] / counts["hq"][1] == pytest.approx(7_213_368)
