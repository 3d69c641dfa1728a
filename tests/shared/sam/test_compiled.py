"""What a compiler makes is used; where it fails, what was to be compiled runs as it is, and that is said once."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam
from torch import nn

from sum_factory.shared.automask.automask import LabelGenerator
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.sam import compiled
from sum_factory.shared.sam.compiled import compile_encoder, compiled_or_plain
from sum_factory.shared.sam.runtime import Runtime, move_to_device


class NoCompilerError(RuntimeError):
    """As a compiler's."""


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(compiled.SPEAKER, "say", lines.append)
    return lines


def compiler(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> list[object]:
    """Have torch compile functions to themselves, or to what raises at each call; return what was called."""
    calls: list[object] = []

    def compile(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append(arguments)
            if error is not None:
                raise error
            return function(*arguments)

        return call

    monkeypatch.setattr(torch, "compile", compile)
    return calls


@pytest.mark.parametrize("of_module", [True, False])
def test_compiler_that_fails_is_told_of_once_and_not_asked_again(
    of_module: bool, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    calls = compiler(monkeypatch, NoCompilerError("no C++ compiler\nand a page of advice"))
    layer, x = nn.Linear(3, 2), torch.ones(1, 3)
    expected = layer(x)
    if of_module:
        compile_encoder(layer)
    work = layer if of_module else compiled_or_plain(layer.forward, "the decoder")
    for _ in range(3):
        assert torch.equal(work(x), expected)
    assert len(calls) == 1
    what = "the image encoder" if of_module else "the decoder"
    assert said == [
        f"{what} could not be compiled and runs as it is (NoCompilerError: no C++ compiler and a page of advice)"
    ]


def test_what_is_compiled_is_called_and_a_shortage_of_memory_is_the_callers(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    calls = compiler(monkeypatch, None)
    work = compiled_or_plain(torch.neg, "the decoder")
    assert [int(work(torch.tensor(k))) for k in range(3)] == [0, -1, -2]
    assert len(calls) == 3
    compiler(monkeypatch, torch.OutOfMemoryError())
    with pytest.raises(torch.OutOfMemoryError):
        compiled_or_plain(torch.neg, "the decoder")(torch.ones(1))
    assert said == []


def test_call_that_is_wrong_is_wrong_without_a_compiler_too(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    compiler(monkeypatch, None)
    with pytest.raises(RuntimeError):
        compiled_or_plain(torch.mm, "the decoder")(torch.ones(2, 3), torch.ones(2, 3))
    assert said == []


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_encoder_and_decoder_are_compiled_and_give_the_same_masks(tiny_sam: Sam, said: list[str]) -> None:
    """By torch's own compiler, which takes minutes."""
    settings = AutomaskSettings(
        points_per_side=4, pred_iou_thresh=-1000.0, stability_score_thresh=0.0, max_area_share=2.0
    )
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    plain, made = (
        LabelGenerator(
            move_to_device(deepcopy(tiny_sam), Runtime("cpu", compile=is_compiled)), settings, compile=is_compiled
        ).label(image)
        for is_compiled in (False, True)
    )
    assert said == []
    assert len(made) == len(plain) > 0
    np.testing.assert_allclose(made.logits, plain.logits, rtol=1e-4, atol=1e-4)
