"""``torch.compile`` where it works, and what was to be compiled where it does not: a compiler needs tools and a device
that not every machine has, and it tells so at the first call only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sum_factory.shared.names import printable
from sum_factory.shared.progress import SPEAKER

LONGEST = 200
"""Characters of what a compiler says that are told; it can say pages."""


def compile_encoder(encoder: nn.Module) -> None:
    """Have ``encoder`` compiled, in place, at its first call."""
    encoder.compile(dynamic=False)
    compiled: Callable[..., Any] = encoder._compiled_call_impl  # type: ignore[assignment]

    def give_up() -> None:
        encoder._compiled_call_impl = None

    encoder._compiled_call_impl = _guarded(compiled, encoder._call_impl, "the image encoder", give_up)


def compiled_or_plain(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """Return ``function`` compiled at its first call, or as it is if that fails; ``what`` says what it is."""
    return _guarded(torch.compile(function, dynamic=False), function, what)


def _guarded(
    compiled: Callable[..., Any], plain: Callable[..., Any], what: str, give_up: Callable[[], None] = lambda: None
) -> Callable[..., Any]:
    has_failed = False

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal has_failed
        if has_failed:
            return plain(*arguments, **options)
        try:
            return compiled(*arguments, **options)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler fails in many ways; what is wrong with the call fails again below
            found = plain(*arguments, **options)
            if not has_failed:
                has_failed = True
                give_up()
                why = printable(" ".join(f"{type(error).__name__}: {error}".split()))[:LONGEST]
                SPEAKER.say(f"{what} could not be compiled and runs as it is ({why})")
            return found

    return call
