"""What tests of forms share: a small SAM that is known, and its weights."""

from __future__ import annotations

import pytest
from segment_anything.modeling import Sam

from sum_factory.shared.sam.architecture import ARCHITECTURES
from weight_files import TINY, State


@pytest.fixture(autouse=True)
def tiny_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``load_sam`` know the architecture meanwhile."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)


@pytest.fixture
def state(tiny_sam: Sam) -> State:
    """The weights of upstream's own classes, under its own names."""
    return {name: value.clone() for name, value in tiny_sam.state_dict().items()}
