"""What a compiler makes is used; where it fails, what was to be compiled runs as it is, and that is said once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sum_factory.shared.sam import compiled
from sum_factory.shared.sam.compiled import compile_encoder, compiled_or_plain


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
