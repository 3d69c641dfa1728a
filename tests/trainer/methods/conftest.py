"""What tests of methods share: two small SAMs, and photos with masks."""

from __future__ import annotations

import pytest
from segment_anything.modeling import Sam

from lessons import make_sam, make_sample
from sum_factory.trainer.data.samples import TrainingSample


@pytest.fixture(scope="module")
def sam() -> Sam:
    """A SAM that no test may change."""
    return make_sam(0)


@pytest.fixture(scope="module")
def other() -> Sam:
    """Another one, which says other things."""
    return make_sam(1)


@pytest.fixture
def samples() -> list[TrainingSample]:
    """Photos with human masks, with pseudo-labels, and with pseudo-labels in a portrait."""
    return [make_sample(0, "human"), make_sample(1, "pseudo"), make_sample(2, "pseudo", (64, 40))]
