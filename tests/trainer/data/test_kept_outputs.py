"""What labelling keeps of SAM's output is for labelling: training is the same with and without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sum_factory.shared.shards.dataset import OUTPUTS
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings
from sum_factory.trainer.methods import METHODS


def test_training_reads_the_same_with_and_without_kept_outputs(
    photos: Path, label: Callable[..., Any], finished: tuple[Path, Any], tmp_path: Path
) -> None:
    label(photos, tmp_path / "kept", keep_logits=True, keep_embeddings=True)
    grid = SampleSettings(side=256, stride=4, masks=30, seed=0)
    opened = [ShardSet.open(str(folder)) for folder in (tmp_path / "kept", finished[0])]
    assert {*OUTPUTS} <= opened[0].dataset.layers.keys()
    kept, plain = (PseudoSet(shards, None, METHODS["vanilla"], grid) for shards in opened)
    assert kept.identity == plain.identity
    for index in range(len(plain)):
        id = SampleId("pseudo", 0, index)
        found, expected = (each.load(index, id).on(torch.device("cpu")) for each in (kept, plain))
        assert torch.equal(found.image, expected.image)
        assert torch.equal(found.masks, expected.masks)
