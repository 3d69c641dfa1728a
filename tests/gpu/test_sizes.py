"""As much is worked on at once as the memory allows, one at least."""

from __future__ import annotations

import pytest
import torch

from sum_factory.shared.gpu.sizes import AtOnce, bound_memory, bytes_of_photo, bytes_of_point, fitting
from sum_factory.shared.sam.architecture import ARCHITECTURES, NothingDrawn, build_architecture
from sum_factory.shared.sam.upstream import Sam

GIB = 1 << 30


@pytest.fixture(scope="module")
def vit_h() -> Sam:
    with torch.device("meta"), NothingDrawn():
        return build_architecture(ARCHITECTURES["vit_h"])


@pytest.mark.parametrize("gib", [0.1, 1, 4, 8, 16, 24, 40, 80, 141])
def test_what_is_done_at_once_fits(vit_h: Sam, gib: float) -> None:
    memory = int(gib * GIB)
    found = fitting(vit_h, memory, 3)
    taken = 3 * (found.photos * bytes_of_photo(vit_h) + found.points * bytes_of_point(vit_h))
    assert taken <= 0.75 * memory or found == AtOnce(1, 1) or min(found.photos, found.points) == 1
    assert 1024 % found.points == 0
    assert found.photos <= 8


def test_large_cards_work_on_more_and_small_ones_on_something(vit_h: Sam) -> None:
    sizes = [fitting(vit_h, int(gib * GIB)) for gib in (0.1, 8, 24, 80)]
    assert sizes[0] == AtOnce(1, 1)
    assert [each.points for each in sizes] == sorted(each.points for each in sizes)
    assert sizes[-1].photos == 8
    assert sizes[-1].points >= 256


def test_largest_arrays_are_counted(tiny_sam: Sam) -> None:
    """8 x 8 cells of 32 channels: eight heads of seven tokens, and sixteen finer cells of four channels."""
    assert bytes_of_point(tiny_sam) == 4 * (12 * 8 * 7 * 64 + 3 * 16 * 64 * 4)
    assert bytes_of_photo(tiny_sam) == 4 * 24 * 64 * 32


@pytest.mark.gpu
def test_memory_is_bounded_by_the_share() -> None:
    device = torch.device("cuda")
    total = torch.cuda.get_device_properties(device).total_memory
    try:
        memory = bound_memory(device, 0.1)
        assert memory == int(0.1 * total)
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(int(0.2 * total), dtype=torch.uint8, device=device)
    finally:
        bound_memory(device, 1.0)
