"""Muon takes PyTorch's steps in bf16, and steps near them in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sum_factory.pipelines.microworld.muon import Muon, orthogonalise

SHAPES = ((6, 9), (9, 6), (8, 8))


def steps_of(make: type[torch.optim.Optimizer], *arguments: object, **options: object) -> list[Tensor]:
    """Return matrices after four steps; the last has no gradient in the first two."""
    random = torch.Generator().manual_seed(0)
    matrices = [nn.Parameter(torch.randn(shape, generator=random)) for shape in SHAPES]
    optimizer = make(matrices, *arguments, **options)
    for step in range(4):
        for matrix in matrices:
            gradient = torch.randn(matrix.shape, generator=random)
            matrix.grad = None if matrix is matrices[-1] and step < 2 else gradient
        optimizer.step()
    return [matrix.detach() for matrix in matrices]


def test_steps_in_bf16_are_pytorchs_to_the_bit() -> None:
    expected = steps_of(torch.optim.Muon, 0.05, 0.1, adjust_lr_fn="match_rms_adamw")
    assert all(map(torch.equal, steps_of(Muon, 0.05, 0.1, "bf16"), expected))


def test_steps_in_fp32_are_near_and_not_the_same() -> None:
    expected = steps_of(torch.optim.Muon, 0.05, 0.1, adjust_lr_fn="match_rms_adamw")
    for found, rounded in zip(steps_of(Muon, 0.05, 0.1, "fp32"), expected, strict=True):
        assert not torch.equal(found, rounded)
        torch.testing.assert_close(found, rounded, atol=0.02, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_update_keeps_singular_vectors_and_brings_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    given = matrix.clone()
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    core = u.T @ orthogonalise(matrix, "fp32") @ v.T
    assert torch.equal(matrix, given)
    torch.testing.assert_close(core, core.diag().diag(), atol=1e-4, rtol=0)
    assert ((core.diag() > 0.4) & (core.diag() < 1.4)).all()
