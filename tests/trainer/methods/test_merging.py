"""Merged weights lie between their ends."""

from __future__ import annotations

import pytest
import torch

from sum_factory.trainer.methods.merging import between


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_merged_weights_lie_between_their_ends(alpha: float) -> None:
    start, end = {"w": torch.tensor([1.0, -0.0, 1e-30])}, {"w": torch.tensor([3.0, 7.0, 0.1])}
    found = between(start, end, alpha)["w"]
    assert torch.allclose(found, (1 - alpha) * start["w"] + alpha * end["w"])
    if alpha in (0, 1):
        assert found.numpy().tobytes() == (end if alpha else start)["w"].numpy().tobytes()
