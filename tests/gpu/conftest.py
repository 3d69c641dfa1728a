"""Tests of a GPU run on a CPU, too, wherever what they state can be stated there."""

from __future__ import annotations

import pytest
import torch

EVERYWHERE = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


@pytest.fixture(params=EVERYWHERE, ids=str)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the GPU where there is one."""
    found: torch.device = request.param
    return found
