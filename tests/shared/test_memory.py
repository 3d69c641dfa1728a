"""Batches become smaller when a GPU's memory runs out, until one at a time is too much."""

from __future__ import annotations

import pytest
import torch

from sum_factory.shared.memory import BatchSize


def on_a_gpu_for(most: int, batch: BatchSize, tried: list[int]) -> int:
    tried.append(batch.size)
    if batch.size > most:
        raise torch.OutOfMemoryError(f"no room for {batch.size}")
    return batch.size


def test_size_is_halved_until_it_fits_and_stays_so() -> None:
    batch, tried = BatchSize(64), list[int]()
    assert batch.fit(lambda: on_a_gpu_for(20, batch, tried)) == 16
    assert batch.fit(lambda: on_a_gpu_for(20, batch, tried)) == 16
    assert tried == [64, 32, 16, 16]


def test_what_does_not_fit_one_at_a_time_is_an_error() -> None:
    batch, tried = BatchSize(5), list[int]()
    with pytest.raises(torch.OutOfMemoryError, match="no room for 1"):
        batch.fit(lambda: on_a_gpu_for(0, batch, tried))
    assert tried == [5, 2, 1]


def test_other_errors_are_not_taken_for_it() -> None:
    batch = BatchSize(8)
    with pytest.raises(ZeroDivisionError):
        batch.fit(lambda: 1 // 0)
    assert batch.size == 8
