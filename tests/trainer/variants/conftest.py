"""Photos at the side of the tiny SAM."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
