"""Upstream's packages wait until somebody asks for what they define, and are the same packages then."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from segment_anything.modeling import Sam
from segment_anything.utils import amg
from torchvision.ops.boxes import batched_nms

from sum_factory.shared.sam import upstream
from sum_factory.shared.sam.upstream import nms

NOT_LOADED = """
import sys
import sum_factory.labelgen.run
import sum_factory.trainer.evaluation.run
from sum_factory.shared.sam.checkpoint import load_sam
load_sam()
heavy = ("torch._dynamo", "torchvision.ops", "torchvision.models", "segment_anything.predictor", "sympy")
assert not [name for name in heavy if name in sys.modules], [name for name in heavy if name in sys.modules]
"""
WHOLE_AFTERWARDS = """
from sum_factory.shared.sam.upstream import Sam, amg
import segment_anything
import torchvision
from segment_anything import SamPredictor, sam_model_registry
from segment_anything.modeling import Sam as again
from torchvision.ops.boxes import batched_nms
assert Sam is again is segment_anything.modeling.Sam
assert amg is segment_anything.utils.amg
assert "vit_b" in sam_model_registry
assert not hasattr(segment_anything, "no_such_name")
assert torchvision.__version__ and torchvision.models.resnet18
"""


def test_packages_are_loaded_when_they_are_asked_and_are_whole_then() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOT_LOADED + WHOLE_AFTERWARDS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_package_that_was_loaded_before_is_the_same() -> None:
    assert upstream.Sam is Sam
    assert upstream.amg is amg


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("count", [300, 1500])  # from 1,001 boxes on torchvision takes another way
def test_nms_is_torchvisions_with_ties_too(threshold: float, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 20, (count, 2, 2), generator=generator).float().sort(1).values
    boxes, scores = corners.flatten(1), torch.randint(0, 9, (count,), generator=generator).float()
    expected = batched_nms(boxes, scores, torch.zeros(count, dtype=torch.int64), threshold)
    assert torch.equal(nms(boxes, scores, threshold), expected)
    assert 1 < len(expected) < count or threshold == 1.0
